"""What is asked of recordings, their windows, decoded ahead of the model, and the answers to them.

`AskOptions` is the one checked record of what is asked, from every door to the engine.

Detections of another program can be asked about in place of windows: "BirdNET says wren at 12.3 s:
what do you say?" Such a claim is part of the row, with whether the answer agrees; `{label}` in a
question is the name that the table gives.
"""

from __future__ import annotations

import logging
import math
import os
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import InitVar, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from NatureLM.audio import AudioError
from NatureLM.audio.windows import (
    Window,
    check_windows,
    iter_windows,
    parse_channel,
    read_noted_clip,
    to_fraction,
)
from NatureLM.errors import UsageError
from NatureLM.field.context import RecordingContext, fill
from NatureLM.generation.labels import NOTHING, LabelChoice, Normalize
from NatureLM.results.detections import Detection
from NatureLM.results.rows import Prediction
from NatureLM.results.thresholds import MinConfidence, least
from NatureLM.storage import AnyPath
from NatureLM.util import check_range, prefetch

if TYPE_CHECKING:
    from NatureLM.config.schema import GenerateConfig
    from NatureLM.results.store import WindowStore

logger = logging.getLogger(__name__)
Mode = Literal["generate", "constrained", "score"]
MODES = get_args(Mode)
_CHUNK = 4  # windows that a recording is read on at a time
LABEL_PLACE = "{label}"
_YES_OR_NO = re.compile(r"\W*(yes|no)\b", re.IGNORECASE)


@dataclass(frozen=True)
class AskOptions:
    """What is asked of every window of recordings, how they are cut, and how answers are made.

    queries: each is asked of every window
    merging_alpha: share of the adapter
    window_length_seconds, hop_length_seconds: after time expansion
    channel: "mean", or the number of a channel from 1 on
    time_expansion: the sound is slowed down so many times
    mode: "generate" for any text; of the others, whose answers are one of the labels or `None`,
        "constrained" decodes it token by token and "score" looks how likely each of them is
    labels: what may be answered; for "generate" none
    several: whether a constrained answer may be several labels
    top_k: how many labels are named, the answer included
    min_confidence: below it the answer is `None`; a number, or thresholds for each species
    ask_silence: windows without sound are asked, too
    named: what messages call a field

    Raises UsageError that says what is wrong and what is allowed.
    """

    queries: tuple[str, ...]
    merging_alpha: float = 1.0
    window_length_seconds: float = 10.0
    hop_length_seconds: float = 10.0
    channel: str | int = "mean"
    time_expansion: float = 1.0
    mode: Mode = "generate"
    labels: tuple[str, ...] = ()
    several: bool = False
    top_k: int = 3
    min_confidence: float | MinConfidence = 0.0
    ask_silence: bool = False
    named: InitVar[Callable[[str], str]] = str

    def __post_init__(self, named: Callable[[str], str]) -> None:
        for name in ("window_length_seconds", "hop_length_seconds", "time_expansion"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise UsageError(f"{named(name)} is {value:g}, and it must be above 0")
        check_windows(self.window_length_seconds, self.hop_length_seconds, named)
        if not math.isfinite(self.merging_alpha):
            alpha = f"{named('merging_alpha')} is {self.merging_alpha:g}"
            raise UsageError(f"{alpha}, and it must be a finite number")
        parse_channel(self.channel)
        check_answers(self.mode, self.several, self.top_k, self.min_confidence, named)
        if self.mode != "generate" and not self.labels:
            raise UsageError(f"{named('mode')} {self.mode!r} needs labels to choose from")
        if self.mode == "generate" and self.labels:
            raise UsageError(
                "labels are chosen from in the modes 'score' and 'constrained'; "
                f"{named('mode')} is 'generate'"
            )
        self.choice()  # refuses labels that cannot be used

    def choice(self, normalize: Normalize = "sum") -> LabelChoice | None:
        """The list that the engine chooses from; None for free answers."""
        if self.mode == "generate":
            return None
        labels = self.labels if NOTHING in self.labels else (*self.labels, NOTHING)
        return LabelChoice(labels, self.mode, several=self.several, normalize=normalize)

    def cutting(self, sample_rate: int) -> dict[str, Any]:
        """How windows are cut and which channels are heard, as `iter_windows` is told."""
        return {
            "sample_rate": sample_rate,
            "window_seconds": self.window_length_seconds,
            "hop_seconds": self.hop_length_seconds,
            "channel": self.channel,
            "time_expansion": self.time_expansion,
        }

    def settings(
        self, *, model: str, adapter: str | None, generate: GenerateConfig
    ) -> dict[str, Any]:
        """What changes the answers, as far as it is known without the model; plain values.

        generate: the section of the configuration, whose α plays no part
        """
        values: dict[str, Any] = {
            "model": model,
            "adapter": adapter,
            "merging_alpha": self.merging_alpha,
            "queries": list(self.queries),
            "window_length_seconds": self.window_length_seconds,
            "hop_length_seconds": self.hop_length_seconds,
            "channel": self.channel,
            "time_expansion": self.time_expansion,
            "generate": generate.model_dump(mode="json", exclude={"merging_alpha"}),
        }
        if self.mode != "generate":
            names = ("mode", "labels", "several", "top_k", "min_confidence")
            values["choosing"] = {name: getattr(self, name) for name in names}
            if isinstance(self.min_confidence, MinConfidence):
                values["choosing"]["min_confidence"] = self.min_confidence.plain()
        if self.ask_silence:  # files of before have no such key, and are resumed
            values["ask_silence"] = True
        return values


def check_answers(
    mode: str,
    several: bool,
    top_k: int,
    min_confidence: float | MinConfidence,
    named: Callable[[str], str] = str,
) -> None:
    """Raise UsageError for fields of `AskOptions` about answers that do not go together."""
    by_mode, confidence = named("mode"), named("min_confidence")
    if mode not in MODES:
        raise UsageError(f"{by_mode} is {mode!r}, and it must be one of {', '.join(MODES)}")
    if several and mode != "constrained":
        raise UsageError(f"{named('several')} is for {by_mode} constrained")
    check_range(named("top_k"), top_k, 1, 1_000_000)
    if isinstance(min_confidence, MinConfidence):
        is_any = min_confidence.is_by_species or min_confidence.number > 0
    elif not 0 <= min_confidence <= 1:
        raise UsageError(f"{confidence} is {min_confidence:g}, and it must be between 0 and 1")
    else:
        is_any = min_confidence > 0
    if is_any and mode == "generate":
        raise UsageError(f"{confidence} is for {by_mode} score and {by_mode} constrained")


Scored: TypeAlias = tuple[str, float]
"""A label and its probability."""


@dataclass(frozen=True, kw_only=True)
class WindowResult(Prediction):
    """The answer to one question about one window; times are seconds in the recording.

    confidence: 0 to 1. Of scored labels the probability of the answer among them, of a constrained
        answer the probability that the model says just that, of a free one the mean (geometric) of
        the probabilities of its tokens
    alternatives: other labels and their probabilities, best first, where they were scored
    prompt: the question as the model gets it
    window_index: number of the window, from 0 on
    audio_index: place of the recording among those that were given
    asked: whether the model was asked; of a window without sound, which `note` names, it is not
    """

    prompt: str
    window_index: int
    audio_index: int = 0
    asked: bool = True

    @property
    def window(self) -> str:
        """Names the sound of the window among all that were given."""
        return f"{self.audio_index}/{self.window_index}"

    def answered(self, text: str, confidence: float | None, *others: Scored) -> WindowResult:
        """The same with an answer, and other labels with their probabilities, best first."""
        claim = with_agreement(self.claim, text)
        return replace(self, text=text, confidence=confidence, alternatives=others, claim=claim)

    def chosen(self, ranked: Sequence[Scored], options: AskOptions) -> WindowResult:
        """The same with the likeliest of labels, or `NOTHING` where that is not sure enough.

        ranked: labels with their probabilities, best first
        """
        (text, confidence), *others = ranked
        if text != NOTHING and confidence < least(options.min_confidence, text, self.query):
            return self.answered(NOTHING, confidence, *ranked)
        return self.answered(text, confidence, *others)


@dataclass(frozen=True)
class RecordingError:
    """A recording that could not be read (further); the windows before it stand."""

    audio_path: str
    error: AudioError


@dataclass(frozen=True)
class WindowKey:
    """Names a window and a question, so that work already done can be left out.

    claim: label of the detection that is asked about, "" for none
    """

    audio_path: str
    start: float
    query: str
    claim: str = ""


@dataclass(frozen=True)
class Recording:
    """A recording and what is asked of each of its windows.

    number: place in the list of those that are asked about
    source: path of a file, or samples
    claims: detections that are asked about in place of windows; None for windows
    """

    number: int
    name: str
    source: Any
    queries: tuple[str, ...]
    claims: tuple[Detection, ...] | None = None


def recordings_of(
    paths: Iterable[AnyPath],
    queries: tuple[str, ...],
    claims: Mapping[AnyPath, tuple[Detection, ...]] | None = None,
) -> list[Recording]:
    """Recordings of which the same is asked, numbered in their order."""
    return [
        Recording(number, str(path), path, queries, None if claims is None else claims[path])
        for number, path in enumerate(paths)
    ]


@dataclass(frozen=True)
class RecordingWindow:
    """A window of a recording, or the stretch of a detection that is asked about.

    key: names its sound, as `WindowResult.window` does
    """

    recording: Recording
    window: Window
    key: str
    claim: Detection | None = None

    @property
    def claimed(self) -> Mapping[str, Any] | None:
        """What a row says of the detection that it is about; None where it is about none."""
        one = self.claim
        if one is None:
            return None
        named = {"common_name": one.common_name, "scientific_name": one.scientific_name}
        return {
            "label": one.label,
            "confidence": one.confidence,
            **{key: name for key, name in named.items() if name and name != one.label},
        }

    def key_of(self, query: str) -> WindowKey:
        """What names it with a question."""
        label = "" if self.claim is None else self.claim.label
        return WindowKey(self.recording.name, self.window.start, query, label)

    def result(self, query: str, prompt: str, options: AskOptions) -> WindowResult:
        """The result of a question about it, which has no answer yet.

        prompt: the question as the model gets it
        """
        return WindowResult(
            audio_path=self.recording.name,
            start=self.window.start,
            end=self.window.end,
            query=query,
            text="",
            merging_alpha=options.merging_alpha,
            note=self.window.note,
            claim=self.claimed,
            prompt=prompt,
            window_index=self.window.index,
            audio_index=self.recording.number,
            asked=options.ask_silence or not self.window.note,
        )


def with_label(query: str, heard: RecordingWindow) -> str:
    """The question with the name that the table gives."""
    return query.replace(LABEL_PLACE, heard.claim.label if heard.claim is not None else "")


def filled(query: str, heard: RecordingWindow, known: RecordingContext | None) -> str:
    """The question with what is known of the recording and of the detection.

    known: of the recording, where questions ask for it

    Raises AudioError where that is too little.
    """
    if known is not None:
        question, missing = fill(query, known.at(heard.window.start))
        if missing:
            advice = "Give a table with --deployments that says it, or ask without it"
            raise AudioError(heard.recording.name, missing, advice, "UnknownContext")
        query = question
    return with_label(query, heard)


def agrees(claim: Mapping[str, Any], answer: Any) -> bool | None:
    """Whether an answer says what the table says; None where it says neither.

    answer: a name, several with commas between, a text with a name in it, or yes or no

    A text that names nothing of the claim agrees as little as another name does.
    """
    if answer is None or isinstance(answer, bool):
        return answer
    said = [answer] if isinstance(answer, str) else list(answer)
    if len(said) == 1 and (decided := _YES_OR_NO.match(said[0])):
        return decided[1].lower() == "yes"
    if not any(said):
        return None
    if said == [NOTHING]:
        return False
    names = [claim.get(key) for key in ("label", "common_name", "scientific_name")]
    wanted = {_plain(name) for name in names if name}
    return any(f" {name} " in f" {_plain(text)} " for text in said for name in wanted)


def with_agreement(claim: Mapping[str, Any] | None, answer: Any) -> Mapping[str, Any] | None:
    """The claim, and whether the answer agrees with it."""
    return None if claim is None else {**claim, "agrees": agrees(claim, answer)}


def _plain(name: str) -> str:
    """A name without what spellings differ in: case, accents, hyphens, apostrophes."""
    letters = unicodedata.normalize("NFKD", name).casefold()
    kept = "".join(one for one in letters if not unicodedata.combining(one) and one not in "'’")  # noqa: RUF001
    return " ".join(re.findall(r"\w+", kept.replace("_", " ")))


def in_blocks(
    items: Iterable[RecordingWindow | RecordingError], size: int
) -> Iterator[list[RecordingWindow | RecordingError]]:
    """Items in lists with so many windows; errors between them do not count."""
    block: list[RecordingWindow | RecordingError] = []
    windows = 0
    for item in items:
        block.append(item)
        windows += isinstance(item, RecordingWindow)
        if windows >= size:
            yield block
            block, windows = [], 0
    if block:
        yield block


class HeardWindows:
    """Windows, one after the other, and in their place what went wrong; and their sound.

    The sound of a window is held for as long as something is asked of it.
    """

    def __init__(self, items: Iterable[RecordingWindow | RecordingError] = ()) -> None:
        self._items = items
        self._held: dict[str, NDArray[np.float32]] = {}
        self._once: set[str] = set()

    def __iter__(self) -> Iterator[RecordingWindow | RecordingError]:
        return iter(self._items)

    def unanswered(
        self, query: str, store: WindowStore, until: Callable[[WindowKey], bool] | None = None
    ) -> Iterator[RecordingWindow | RecordingError]:
        """What the store has no answer to the query about, up to the first that `until` is of."""
        for one in self:
            if isinstance(one, RecordingWindow):
                key = one.key_of(query)
                if store.is_done(key.audio_path, key.start, key.query, key.claim):
                    continue
                if until is not None and until(key):
                    return
            yield one

    def hold(self, heard: RecordingWindow, *, once: bool = False) -> None:
        """Keep the sound of a window, so that `load` finds it; `once`: it is loaded once only."""
        self._held[heard.key] = heard.window.samples
        if once:
            self._once.add(heard.key)

    def load(self, key: str) -> NDArray[np.float32]:
        """The samples of a window that is held."""
        if key not in self._once:
            return self._held[key]
        self._once.remove(key)
        return self._held.pop(key)

    def let_go(self, key: str) -> None:
        """Nothing more is asked of this window."""
        self._once.discard(key)
        self._held.pop(key, None)


class WindowStream(HeardWindows):
    """The windows of recordings, which are decoded as they are taken.

    cutting: what `iter_windows` is told of windows and channels
    input_sample_rate: Hz, of recordings that are samples
    warn: told the notes about a recording when its turn comes; without it they are logged
    workers: recordings that are decoded at once, ahead of who takes the windows
    """

    def __init__(
        self,
        recordings: Sequence[Recording],
        cutting: Mapping[str, Any],
        *,
        input_sample_rate: float,
        warn: Callable[[str], None] | None = None,
        workers: int = 2,
    ) -> None:
        super().__init__()
        self._recordings, self._cutting = recordings, cutting
        self._rate, self._workers = input_sample_rate, workers
        self._warn = warn or logger.warning

    def __iter__(self) -> Iterator[RecordingWindow | RecordingError]:
        streams = map(self._decode, self._recordings)
        for item in prefetch(streams, workers=self._workers, chunk=_CHUNK):
            if isinstance(item, str):
                self._warn(item)
            else:
                yield item

    def _decode(self, recording: Recording) -> Iterator[RecordingWindow | RecordingError | str]:
        """Windows, and in their place notes and what went wrong."""
        if recording.claims is not None:
            yield from self._stretches(recording, recording.claims)
            return
        notes: list[str] = []
        is_file = isinstance(recording.source, (str, os.PathLike))
        try:
            for window in iter_windows(
                recording.source,
                input_sample_rate=None if is_file else self._rate,
                warn=notes.append,
                **self._cutting,
            ):
                while notes:
                    yield notes.pop(0)
                yield RecordingWindow(recording, window, f"{recording.number}/{window.index}")
        except AudioError as error:
            yield from notes
            yield RecordingError(recording.name, error)
        else:
            yield from notes

    def _stretches(
        self, recording: Recording, claims: Sequence[Detection]
    ) -> Iterator[RecordingWindow | RecordingError]:
        """The sound of detections; of one that is longer than a window, its beginning."""
        cutting = dict(self._cutting)
        seconds, expansion = cutting.pop("window_seconds"), cutting["time_expansion"]
        del cutting["hop_seconds"]
        samples_S = round(to_fraction(seconds) * cutting["sample_rate"])
        for index, claim in enumerate(claims):
            length = min(claim.end - claim.start, seconds / expansion)
            try:
                heard, note = read_noted_clip(
                    recording.source, start=claim.start, duration=length, **cutting
                )
            except AudioError as error:
                yield RecordingError(recording.name, error)
                continue
            padded = np.zeros(samples_S, np.float32)
            padded[: len(heard)] = heard[:samples_S]
            end = min(claim.end, claim.start + len(heard) / cutting["sample_rate"] / expansion)
            window = Window(index, claim.start, end, padded, note)
            yield RecordingWindow(recording, window, f"{recording.number}/{index}", claim)
