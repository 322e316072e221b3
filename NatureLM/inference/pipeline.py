"""`Pipeline`: asks a model about recordings, window by window, or about clips as they are."""

from __future__ import annotations

import logging
import math
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from itertools import count, groupby
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias, cast

import numpy as np

from NatureLM.audio import AudioError
from NatureLM.config import Config, load_config
from NatureLM.errors import UsageError
from NatureLM.generation.labels import NOTHING, SEPARATOR, LabelChoice
from NatureLM.inference.calibration import Calibration, find_calibration
from NatureLM.inference.loading import dtype_names, load_model, processor_of
from NatureLM.inference.windows import (
    AskOptions,
    HeardWindows,
    Mode,
    Recording,
    RecordingError,
    RecordingWindow,
    WindowKey,
    WindowResult,
    WindowStream,
    recordings_of,
)
from NatureLM.prompts import PLACEHOLDER, ChatTemplate, PromptTooLong, quoted, with_clips
from NatureLM.results.thresholds import MinConfidence, least
from NatureLM.storage import AnyPath

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from NatureLM.generation.audio_cache import EmbeddingCache
    from NatureLM.generation.engine import Answer, Engine, Request, Run
    from NatureLM.inference.conversation import Conversation
    from NatureLM.models import NatureLM
    from NatureLM.results.detections import Detection
    from NatureLM.results.store import WindowStore

logger = logging.getLogger(__name__)
Fill: TypeAlias = Callable[[str, RecordingWindow], str]
"""A question with what is known of a window in it; raises AudioError where that is not enough."""
_CPU_ROWS, _ACCELERATOR_ROWS = 32, 256  # answers decoded at once, unless the user says


class Prepared(NamedTuple):
    """What answers questions: the engine, and what makes confidences of its scores."""

    engine: Engine
    calibration: Calibration | None


class Pipeline:
    """Asks a model about recordings in sliding windows, and about clips as they are.

    `model` is a loaded `NatureLM`, or the name, folder or Hugging Face id of one; without it the
    embedded model is loaded. `revision`, `weights_hash` and `quantize` are those of
    `NatureLM.from_pretrained`.
    `cfg_path` is a YAML file whose `generate` section is used. `device`
    is `auto`, `cpu`, `cuda` or `mps`. `calibration` is a file that `naturelm calibrate` made; by
    default ("auto") that beside the model, if there is one, and with None there is none.
    `cache_dir` is a folder where audio embeddings are kept beyond the process (by default that of
    the environment variable NATURELM_CACHE, if it is set). `max_memory` is how many bytes batches
    may take beside the model's weights; `kept_bytes` those of embeddings that stay in memory for
    questions about the same sound (256 MB).
    """

    def __init__(
        self,
        model: NatureLM | str | Path | None = None,
        cfg_path: str | Path | None = None,
        *,
        config: Config | None = None,
        device: str = "auto",
        dtype: Any = None,
        calibration: Calibration | str | Path | None = "auto",
        cache_dir: str | Path | None = None,
        max_memory: int | None = None,
        kept_bytes: int | None = None,
        revision: str | None = None,
        weights_hash: str | None = None,
        quantize: str | None = None,
    ) -> None:
        self._calibration = calibration
        self.cfg = config if config is not None else load_config(cfg_path)
        if model is None or isinstance(model, (str, Path)):
            model = load_model(
                model,
                device=device,
                dtype=dtype,
                revision=revision,
                weights_hash=weights_hash,
                quantize=quantize or self.cfg.model.quantize,
            )
        self.model = model
        self._cache_dir, self._max_memory, self._kept_bytes = cache_dir, max_memory, kept_bytes
        self._embeddings: EmbeddingCache | None = None

    def __call__(
        self,
        audios: Any,
        queries: str | Sequence[str],
        window_length_seconds: float = 10.0,
        hop_length_seconds: float = 10.0,
        input_sample_rate: int = 16000,
        verbose: bool = False,
        *,
        alpha: float | None = None,
        **options: Any,
    ) -> list[str]:
        """One string per audio, with a line per window: `#0.00s - 10.00s#: Green Treefrog\\n`.

        Windows without sound are not asked: their lines hold the times only, which is logged.

        `audios` are paths or arrays (at `input_sample_rate` Hz); `queries` one question for all or
        one per audio. `options` are those of `windows`. A bad recording raises its `AudioError`.
        """
        items = as_list(audios)
        results = self.windows(
            items,
            queries,
            window_length_seconds=window_length_seconds,
            hop_length_seconds=hop_length_seconds,
            input_sample_rate=input_sample_rate,
            alpha=alpha,
            **{**options, "errors": "raise"},
        )
        answers = [""] * len(items)
        found = (one for one in results if isinstance(one, WindowResult))
        for number, group in groupby(found, key=lambda one: one.audio_index):
            ours = list(group)
            silent = [one.note for one in ours if not one.asked]
            if silent:
                logger.warning(
                    "%s: %d of %d windows hold no sound (%s) and were not asked",
                    _name(items[number], number),
                    len(silent),
                    len(ours),
                    ", ".join(sorted(set(silent))),
                )
            answers[number] = "".join(f"#{r.start:.2f}s - {r.end:.2f}s#: {r.text}\n" for r in ours)
            if verbose:
                print(f"{_name(items[number], number)}:\n{answers[number]}")
        return answers

    def windows(
        self,
        audios: Any,
        queries: str | Sequence[str] | Sequence[Sequence[str]],
        *,
        window_length_seconds: float = 10.0,
        hop_length_seconds: float = 10.0,
        input_sample_rate: int = 16000,
        channel: str | int = "mean",
        time_expansion: float = 1.0,
        alpha: float | None = None,
        batch_size: int | None = None,
        errors: Literal["raise", "yield"] = "raise",
        skip: Callable[[WindowKey], bool] | None = None,
        warn: Callable[[str], None] | None = None,
        fold: bool = False,
        mode: Mode = "generate",
        labels: Sequence[str] | None = None,
        several: bool = False,
        top_k: int = 3,
        min_confidence: float | MinConfidence = 0.0,
        ask_silence: bool = False,
        **generation: Any,
    ) -> Iterator[WindowResult | RecordingError]:
        """Typed results as they come: by audio, then window, then question.

        `queries`: one question for all audios, one per audio, or a list of questions per audio.
        `skip` leaves windows and questions out. With `errors="yield"` a bad recording gives a
        `RecordingError` in its place and the rest goes on. `batch_size`: most windows encoded and
        most answers decoded at once; it changes the speed and never an answer. `fold` writes α into
        the model's weights until the last result is taken: quicker, but nobody else may use the
        model meanwhile. `warn` takes the notes about recordings and confidences, which are logged
        without it. `generation` overrides the configuration's `generate`.

        `mode`: "score" answers with the likeliest of `labels` and `None`, says how likely it is,
        and names the next ones up to `top_k`; "constrained" decodes one of them or `None` (or
        `several`, separated by ", "). Below `min_confidence` the answer is `None`; with thresholds
        for each species (`results.thresholds.read_min_confidence`), below that of the answer.

        Windows without sound have a `note` and no answer; `ask_silence` asks them, too.
        """
        if isinstance(labels, str):
            raise UsageError(f"labels must be a list of strings, got the string {labels!r}")
        items = as_list(audios)
        asked = _queries_per_audio(queries, len(items))
        options = AskOptions(
            queries=(),  # each recording has its own
            merging_alpha=self._alpha(alpha),
            window_length_seconds=window_length_seconds,
            hop_length_seconds=hop_length_seconds,
            channel=channel,
            time_expansion=time_expansion,
            mode=mode,
            labels=tuple(labels or ()),
            several=several,
            top_k=top_k,
            min_confidence=min_confidence,
            ask_silence=ask_silence,
        )
        yield from self._ask(
            [Recording(n, _name(one, n), one, asked[n]) for n, one in enumerate(items)],
            options,
            input_sample_rate=input_sample_rate,
            batch_size=batch_size,
            errors=errors,
            skip=skip,
            warn=warn,
            fold=fold,
            generation=generation,
        )

    def unanswered(
        self,
        recordings: Sequence[AnyPath],
        options: AskOptions,
        store: WindowStore | None,
        *,
        claims: Mapping[AnyPath, tuple[Detection, ...]] | None = None,
        **how: Any,
    ) -> Generator[WindowResult | RecordingError, None, None]:
        """Answers and bad recordings as they come; windows that the store answers are left out.

        With `claims` these detections are asked about, in place of windows. `how`: `batch_size`,
        `fold` and `warn` are those of `windows`. `until` ends it before the first window and
        question for which it is true; what is before them is answered. `fill` puts what is known of
        a window into a question. `run` is what answers the requests, such as a service that others
        ask, too.
        """

        def is_done(key: WindowKey) -> bool:
            return store is not None and store.is_done(
                key.audio_path, key.start, key.query, key.claim
            )

        named = recordings_of(recordings, options.queries, claims)
        yield from self._ask(named, options, errors="yield", skip=is_done, **how)

    def prepare(
        self,
        options: AskOptions,
        queries: Iterable[str] | None = None,
        *,
        batch_size: int | None = None,
        warn: Callable[[str], None] | None = None,
        generation: dict[str, Any] | None = None,
    ) -> Prepared:
        """What answers questions as `options` say; `queries` are theirs unless told.

        It is to be made before the model is folded. Raises UsageError where a question or label
        does not fit the model, or thresholds are those of other weights or another α.
        """
        calibration = None
        if options.mode == "score":
            calibration, mismatch = self.calibration_at(options.merging_alpha)
            if mismatch is not None:
                (warn or logger.warning)(mismatch)
        queries = list(options.queries if queries is None else queries)
        for note in self._check_thresholds(options, queries):
            (warn or logger.warning)(note)
        engine = self.engine(generation or {}, batch_size)
        for query in queries:
            self.check_room(engine, query, options.choice())
        return Prepared(engine, calibration)

    def about(
        self,
        windows: HeardWindows,
        options: AskOptions,
        prepared: Prepared,
        *,
        fill: Fill | None = None,
    ) -> Iterator[WindowResult | RecordingError]:
        """Answers about windows that were decoded elsewhere, and what went wrong, in their order.

        fill: puts what is known of a window into a question
        """
        requests = self._requests(windows, options, prepared.calibration, None, None, fill)
        yield from self._answered(windows, requests, options, prepared)
        prepared.engine.forget_audio()

    @property
    def revisions(self) -> dict[str, str]:
        """Commits of what the model came from, as far as that was the Hub."""
        return self.model.revisions

    def settings(self, options: AskOptions) -> dict[str, Any]:
        """Weights, precision, template, calibration: what changes answers and only a model knows.

        Raises UsageError where the model has no tokenizer, a question or label does not fit it, or
        thresholds are those of other weights or another α.
        """
        engine = self.engine({})
        for query in options.queries:
            self.check_room(engine, query, options.choice())
        values: dict[str, Any] = {
            "weights": self.model.fingerprint,
            "dtype": dtype_names(self.model),
            "prompt_template": processor_of(self.model).prompt_template,
        }
        if options.mode == "score":
            found, _ = self.calibration_at(options.merging_alpha)
            values["calibration"] = found and {
                "normalize": found.normalize,
                "temperature": found.temperature,
            }
        self._check_thresholds(options, options.queries)
        return values

    def conversation(
        self,
        audios: Any = (),
        *,
        alpha: float | None = None,
        input_sample_rate: float = 16000,
        ask_silence: bool = False,
        **generation: Any,
    ) -> Conversation:
        """A conversation whose first question is about these clips.

        `audios` is a clip or several, each a path or samples at `input_sample_rate` Hz. Of one that
        is longer than the model's window the beginning is used, which is logged. One without sound
        raises `AudioError`, unless `ask_silence`.

        `Conversation.ask` gives an answer's text as it comes. It is decoded greedily, or sampled
        (`do_sample=True`), whatever number of beams the configuration has: beams may change what
        they said before.
        """
        from NatureLM.generation.engine import GenerationOptions
        from NatureLM.inference.conversation import Conversation

        def load(clip: Any) -> NDArray[Any]:
            return self._clip(clip, input_sample_rate, ask_silence)

        options = GenerationOptions(**{**self._generation(), "num_beams": 1, **generation})
        return Conversation(
            self.model, load, as_list(audios), alpha=self._alpha(alpha), options=options
        )

    def stream(
        self, audios: Any, query: str, *, alpha: float | None = None, **generation: Any
    ) -> Iterator[str]:
        """The answer to one question about a clip, or about several, as text that comes in pieces.

        Decoded with one beam; `generation` may hold what `conversation` takes.
        """
        return self.conversation(audios, alpha=alpha, **generation).ask(query)

    def compare_alphas(
        self,
        audios: Any,
        query: str,
        alphas: Sequence[float],
        *,
        input_sample_rate: float = 16000,
        ask_silence: bool = False,
        **generation: Any,
    ) -> list[str]:
        """The answers to one question at several α, in their order; the clips are encoded once.

        `ask_silence` is that of `conversation`.
        """
        from NatureLM.generation.engine import Answer, Request, yield_in_input_order

        if not query.strip():
            raise UsageError("the question is empty")
        clips = {
            str(number): self._clip(clip, input_sample_rate, ask_silence)
            for number, clip in enumerate(as_list(audios))
        }
        template = ChatTemplate.of(processor_of(self.model).prompt_template)
        prompt = template.text([(with_clips(query, len(clips)), "")])
        requests = [
            Request(key=place, prompt=prompt, audios=tuple(clips), alpha=float(alpha))
            for place, alpha in enumerate(alphas)
        ]
        texts: list[str] = []
        for answer in yield_in_input_order(
            self.engine(generation).run, requests, clips.__getitem__
        ):
            assert isinstance(answer, Answer)
            if answer.error is not None:
                raise answer.error
            texts.append(answer.text or "")
        return texts

    def _ask(
        self,
        recordings: Sequence[Recording],
        options: AskOptions,
        *,
        input_sample_rate: int = 16000,
        batch_size: int | None = None,
        errors: Literal["raise", "yield"],
        skip: Callable[[WindowKey], bool] | None = None,
        warn: Callable[[str], None] | None = None,
        fold: bool = False,
        until: Callable[[WindowKey], bool] | None = None,
        generation: dict[str, Any] | None = None,
        run: Run | None = None,
        fill: Fill | None = None,
    ) -> Iterator[WindowResult | RecordingError]:
        """What `windows` gives; each recording is asked its own questions."""
        from NatureLM.generation.engine import fold_if_single_alpha

        stream = self.window_stream(
            recordings, options, input_sample_rate=input_sample_rate, warn=warn
        )
        prepared = self.prepare(
            options,
            dict.fromkeys(query for one in recordings for query in one.queries),
            batch_size=batch_size,
            warn=warn,
            generation=generation,
        )
        requests = self._requests(stream, options, prepared.calibration, skip, until, fill)
        alphas = [options.merging_alpha]
        with fold_if_single_alpha(self.model, alphas) if fold else nullcontext():
            for made in self._answered(stream, requests, options, prepared, run):
                if isinstance(made, RecordingError) and errors == "raise":
                    raise made.error
                yield made

    def _answered(
        self,
        stream: HeardWindows,
        requests: Iterable[Request | WindowResult | RecordingError],
        options: AskOptions,
        prepared: Prepared,
        run: Run | None = None,
    ) -> Iterator[WindowResult | RecordingError]:
        """The results of requests, in their order; the sound of a window goes after its last."""
        from NatureLM.generation.engine import yield_in_input_order

        window = ""
        for made in yield_in_input_order(run or prepared.engine.run, requests, stream.load):
            if isinstance(made, (RecordingError, WindowResult)):
                yield made
                continue
            result = _result(cast("Answer", made), options, prepared.calibration)
            if result.window != window:
                stream.let_go(window)
                window = result.window
            yield result

    def _requests(
        self,
        stream: HeardWindows,
        options: AskOptions,
        calibration: Calibration | None,
        skip: Callable[[WindowKey], bool] | None,
        until: Callable[[WindowKey], bool] | None = None,
        fill: Fill | None = None,
    ) -> Iterator[Request | WindowResult | RecordingError]:
        """A request for every question about every window with sound, in order.

        The key of a request is its number and its result, which has no answer yet.
        """
        from NatureLM.generation.engine import Request

        processor, numbers = processor_of(self.model), count()
        choice = options.choice("sum" if calibration is None else calibration.normalize)
        unknown: set[int] = set()  # recordings of which is not known what a question needs
        for heard in stream:
            if isinstance(heard, RecordingError):
                yield heard
                continue
            recording = heard.recording
            for query in recording.queries if recording.number not in unknown else ():
                key = heard.key_of(query)
                if skip is not None and skip(key):
                    continue
                if until is not None and until(key):
                    return
                try:
                    question = query if fill is None else fill(query, heard)
                except AudioError as error:
                    unknown.add(recording.number)
                    yield RecordingError(recording.name, error)
                    break
                result = heard.result(query, processor.render(question), options)
                if not result.asked:
                    yield result
                    continue
                stream.hold(heard, once=len(recording.queries) == 1)
                yield Request(
                    key=(next(numbers), result),
                    prompt=result.prompt,
                    audios=(result.window,) * result.prompt.count(PLACEHOLDER),
                    alpha=result.merging_alpha,
                    stream=zlib.crc32(repr((result.audio_path, result.start, question)).encode()),
                    choice=choice,
                )

    def check_room(self, engine: Engine, query: str, choice: LabelChoice | None) -> None:
        """Raise UsageError for a question that leaves no room for an answer, or a label: of all
        windows alike, so it is said before the first.
        """
        from NatureLM.generation.engine import Request

        prompt = processor_of(self.model).render(query)
        clips = prompt.count(PLACEHOLDER)
        request = Request(query, prompt, ("",) * clips, choice=choice)
        problem = engine.problem_of(request, clips * self.model.config.audio_positions())
        if isinstance(problem, PromptTooLong):
            raise problem.about(f"the question {quoted(query)}")
        if problem is not None:
            raise problem

    def window_stream(
        self,
        recordings: Sequence[Recording],
        options: AskOptions,
        *,
        input_sample_rate: float = 16000,
        warn: Callable[[str], None] | None = None,
    ) -> WindowStream:
        """The windows of recordings, as this model hears them.

        Raises UsageError for windows that are longer than what the model hears at once.
        """
        longest, seconds = self.model.config.window_seconds, options.window_length_seconds
        if seconds > longest:
            raise UsageError(
                f"a window of {seconds:g} s is longer than the {longest:g} s that this model "
                f"hears at once; give window_length_seconds of at most {longest:g}"
            )
        return WindowStream(
            recordings,
            options.cutting(self.model.config.sample_rate),
            input_sample_rate=input_sample_rate,
            warn=warn,
        )

    def engine(self, generation: dict[str, Any], batch_size: int | None = None) -> Engine:
        """What answers requests; sound that was encoded before is not encoded again."""
        from NatureLM.generation.audio_cache import make_embedding_cache
        from NatureLM.generation.engine import Engine, GenerationOptions

        if self._embeddings is None:
            self._embeddings = make_embedding_cache(
                self._cache_dir, max_memory=self._max_memory, max_bytes=self._kept_bytes
            )
        is_cpu = self.model.device.type == "cpu"
        rows = batch_size or (_CPU_ROWS if is_cpu else _ACCELERATOR_ROWS)
        return Engine(
            self.model,
            GenerationOptions(**{**self._generation(), **generation}),
            batch_rows=rows,
            lookahead=rows,
            max_memory=self._max_memory,
            embeddings=self._embeddings,
        )

    def calibration_at(self, alpha: float) -> tuple[Calibration | None, str | None]:
        """The calibration that holds at this α, or why the one that there is does not."""
        found = find_calibration(self.model.name_or_path or "", self._calibration)
        mismatch = None if found is None else found.mismatch(self.model.fingerprint, alpha)
        return found if mismatch is None else None, mismatch

    def _check_thresholds(self, options: AskOptions, queries: Iterable[str]) -> list[str]:
        """What to say of thresholds that were made with something else; see their `check`."""
        if not isinstance(options.min_confidence, MinConfidence):
            return []
        found, _ = self.calibration_at(options.merging_alpha)
        now = {
            "weights": self.model.fingerprint,
            "merging_alpha": options.merging_alpha,
            "choosing": {"mode": options.mode, "labels": options.labels},
            "calibration": found and {"temperature": found.temperature},
        }
        return options.min_confidence.check(now, queries)

    def _alpha(self, alpha: float | None) -> float:
        if alpha is not None:
            return alpha
        folded = self.model.folded
        return self.cfg.generate.merging_alpha if folded is None else folded.alpha

    def _generation(self) -> dict[str, Any]:
        return self.cfg.generate.model_dump(exclude={"merging_alpha"})

    def _clip(self, clip: Any, rate: float, ask_silence: bool) -> NDArray[Any]:
        """The beginning of a clip, as much as the model takes at once."""
        from NatureLM.audio.decode import probe
        from NatureLM.audio.windows import read_noted_clip

        config = self.model.config
        longest = config.window_seconds
        if isinstance(clip, (str, Path)):
            seconds = probe(clip).duration
            if seconds > longest:
                logger.warning(
                    "%s: lasts %.1f s, and the first %g s of it are heard", clip, seconds, longest
                )
        samples, note = read_noted_clip(
            clip, input_sample_rate=rate, duration=longest, sample_rate=config.sample_rate
        )
        if note and not ask_silence:
            path = clip if isinstance(clip, (str, Path)) else None
            advice = "An answer would be invented; ask_silence=True asks for it all the same"
            raise AudioError(path, f"there is no sound to ask about ({note})", advice)
        return samples


def as_list(audios: Any) -> list[Any]:
    """One audio or several; an array is one audio, a list of numbers too."""
    if isinstance(audios, (str, Path)) or hasattr(audios, "__array__"):
        return [audios]
    items = list(audios)
    if items and all(isinstance(one, Real) for one in items):
        return [np.asarray(items, np.float32)]
    return items


def _queries_per_audio(queries: Any, audios: int) -> list[tuple[str, ...]]:
    if isinstance(queries, str):
        return [(queries,)] * audios
    if len(queries) != audios:
        raise UsageError(f"{len(queries)} queries were given for {audios} audios")
    return [(query,) if isinstance(query, str) else tuple(query) for query in queries]


def _name(audio: Any, index: int) -> str:
    return str(audio) if isinstance(audio, (str, Path)) else f"audio {index}"


def _result(answer: Answer, options: AskOptions, calibration: Calibration | None) -> WindowResult:
    """The result of a request, with what the engine answered."""
    if answer.error is not None:
        raise answer.error
    _, result = cast(tuple[int, WindowResult], answer.key)
    if answer.scores is not None:
        temperature = 1.0 if calibration is None else calibration.temperature
        ranked = answer.scores.at_temperature(temperature).ranked(options.top_k)
        return result.chosen(ranked, options)
    text, confidence = answer.text or "", None
    if answer.log_probability is not None:
        is_free = options.mode == "generate"
        of_tokens = answer.mean_log_probability or 0.0
        confidence = math.exp(of_tokens if is_free else answer.log_probability)
    if confidence is not None and options.min_confidence:  # a number, or thresholds
        asked = result.query
        names = text.split(SEPARATOR) if options.several else [text]
        sure = [one for one in names if confidence >= least(options.min_confidence, one, asked)]
        text = SEPARATOR.join(sure) if sure else NOTHING
    return result.answered(text, confidence)
