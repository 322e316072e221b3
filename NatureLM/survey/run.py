"""Asks a questionnaire about every window: one row a window, a value a column.

Windows are taken in blocks, and a block is asked in waves: first the columns without a condition,
then those whose conditions the answers fulfil. A window is encoded once, whatever it is asked.
"""

from __future__ import annotations

import logging
import math
import zlib
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, cast

from NatureLM.audio import AudioError
from NatureLM.errors import UsageError
from NatureLM.generation.labels import NOTHING, LabelChoice
from NatureLM.inference.loading import processor_of
from NatureLM.inference.pipeline import Fill, Pipeline
from NatureLM.inference.windows import (
    AskOptions,
    HeardWindows,
    Recording,
    RecordingError,
    RecordingWindow,
    WindowKey,
    agrees,
    in_blocks,
)
from NatureLM.prompts import PLACEHOLDER
from NatureLM.results.rows import SurveyRow
from NatureLM.results.thresholds import MinConfidence, least
from NatureLM.survey.questionnaire import WINDOWS, Column, Questionnaire

if TYPE_CHECKING:
    from NatureLM.config.schema import GenerateConfig
    from NatureLM.generation.decoding import Constraint
    from NatureLM.generation.engine import Answer, Engine, GenerationOptions, Request
    from NatureLM.inference.calibration import Calibration
    from NatureLM.results.store import WindowStore

logger = logging.getLogger(__name__)
_BLOCK = {"cpu": 64}  # windows whose sound is held at once
_ACCELERATOR_BLOCK = 256
_MOST_TOKENS = {"yes_no": 16, "count": 32, "number": 32}  # of free answers that are short


@dataclass
class _Asked:
    """A window, and what has been answered about it."""

    heard: RecordingWindow
    values: dict[str, Any] = field(default_factory=dict)
    confidences: dict[str, float | None] = field(default_factory=dict)
    said: dict[str, str] = field(default_factory=dict)
    others: dict[str, list[tuple[str, float]]] = field(default_factory=dict)

    @property
    def decided(self) -> dict[str, Any]:
        """Values that conditions may look at: of answers that could be parsed."""
        return {name: value for name, value in self.values.items() if name not in self.said}

    def row(self, merging_alpha: float, columns: Sequence[Column]) -> SurveyRow:
        window, claim = self.heard.window, self.heard.claimed
        values = {one.name: self.values[one.name] for one in columns if one.name in self.values}
        return SurveyRow(
            audio_path=self.heard.recording.name,
            start=round(window.start, 6),
            end=round(window.end, 6),
            answers=values,
            confidences={
                name: round(one, 6)
                for name in values
                if (one := self.confidences.get(name)) is not None
            },
            said=dict(self.said),
            others={
                name: [(label, round(share, 6)) for label, share in ranked]
                for name, ranked in self.others.items()
            },
            merging_alpha=merging_alpha,
            note=window.note,
            claim=None if claim is None else {**claim, "agrees": self._agreement(claim, columns)},
            model="",
            run="",
        )

    def _agreement(self, claim: Mapping[str, Any], columns: Sequence[Column]) -> bool | None:
        """Whether the first column that tells agrees with the claim: a name, or yes or no about it.

        A yes or no is about the claim if its question names it.
        """
        for column in columns:
            is_about_it = column.type == "yes_no" and "label" in column.placeholders
            tells = column.type in ("choice", "names") or is_about_it
            if tells and column.name in self.decided:
                value = self.values[column.name]
                return agrees(claim, NOTHING if value is None else value)
        return None


def known_settings(
    questionnaire: Questionnaire,
    options: AskOptions,
    *,
    model: str,
    adapter: str | None,
    generate: GenerateConfig,
) -> dict[str, Any]:
    """What changes the answers, as far as it is known without the model; plain values."""
    return {
        **options.settings(model=model, adapter=adapter, generate=generate),
        **questionnaire.settings(),
        **{name: getattr(options, name) for name in WINDOWS},
    }


class Survey:
    """A questionnaire and the model that it is asked.

    options: windows and channel, the α of columns without one of their own, whether silence is
        asked about; its queries and its mode play no part
    fill: puts what is known of a window into a question
    unparsed: counts the answers that could not be parsed, by column

    Raises UsageError for a question that leaves no room for an answer.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        questionnaire: Questionnaire,
        options: AskOptions,
        *,
        batch_size: int | None = None,
        fill: Fill | None = None,
        warn: Callable[[str], None] | None = None,
    ) -> None:
        self.pipeline, self.questionnaire, self._options = pipeline, questionnaire, options
        self._fill, self._warn = fill, warn
        self._engine: Engine = pipeline.engine({}, batch_size)
        self._block = batch_size or _BLOCK.get(pipeline.model.device.type, _ACCELERATOR_BLOCK)
        self._calibrations: dict[float, Calibration | None] = {}
        self.unparsed: Counter[str] = Counter()
        for column in questionnaire.columns:
            self._check(column)

    @property
    def revisions(self) -> dict[str, str]:
        """Commits of what the model came from, as far as that was the Hub."""
        return self.pipeline.revisions

    def alpha(self, column: Column) -> float:
        """The α that a column is asked at."""
        own = column.merging_alpha
        return self._options.merging_alpha if own is None else own

    def settings(self) -> dict[str, Any]:
        """What changes the answers, and only a model knows: weights, precision, calibration.

        Raises UsageError where thresholds of a column are those of other weights or another α.
        """
        columns: dict[str, Any] = self.questionnaire.settings()["columns"]
        for column in self.questionnaire.columns:
            if column.mode == "score":
                one = self._calibration(self.alpha(column))
                columns[column.name]["calibration"] = one and {
                    "normalize": one.normalize,
                    "temperature": one.temperature,
                }
        found = {**self.pipeline.settings(self._options), "columns": columns}
        for column in self.questionnaire.columns:
            if isinstance(column.min_confidence, MinConfidence):
                now = {**found, "merging_alpha": self.alpha(column)}
                for note in column.min_confidence.check(now, [column.name]):
                    (self._warn or logger.warning)(note)
        return found

    def rows(
        self,
        recordings: Sequence[Recording],
        store: WindowStore,
        *,
        until: Callable[[WindowKey], bool] | None = None,
    ) -> Generator[SurveyRow | RecordingError, None, None]:
        """Rows and recordings that could not be read (further), in their order.

        store: windows that it has a row of are left out
        until: ends it before the first window for which it is true
        """
        stream = self.pipeline.window_stream(recordings, self._options, warn=self._warn)

        yield from self.about(stream, stream.unanswered("", store, until))

    @property
    def alphas(self) -> list[float]:
        """The α of each column."""
        return [self.alpha(one) for one in self.questionnaire.columns]

    def about(
        self,
        stream: HeardWindows,
        wanted: Iterable[RecordingWindow | RecordingError] | None = None,
    ) -> Generator[SurveyRow | RecordingError, None, None]:
        """Rows of windows, and what went wrong, in their order; `wanted`: those of the windows."""
        from NatureLM.generation.engine import fold_if_single_alpha

        refused: set[str] = set()  # recordings whose error was given
        alphas = self.alphas
        with fold_if_single_alpha(self.pipeline.model, alphas) if alphas else nullcontext():
            for block in in_blocks(stream if wanted is None else wanted, self._block):
                windows = [_Asked(one) for one in block if isinstance(one, RecordingWindow)]
                for one in windows:
                    stream.hold(one.heard)
                unknown = dict(self._ask(windows, stream.load))
                for one in windows:
                    stream.let_go(one.heard.key)
                self._engine.forget_audio()
                yield from self._in_order(block, windows, unknown, refused)

    def _in_order(
        self,
        block: Sequence[RecordingWindow | RecordingError],
        windows: Iterable[_Asked],
        unknown: Mapping[str, AudioError],
        refused: set[str],
    ) -> Iterator[SurveyRow | RecordingError]:
        asked = iter(windows)
        for item in block:
            if isinstance(item, RecordingError):
                yield item
                continue
            one = next(asked)
            name = item.recording.name
            if item.key not in unknown:
                yield one.row(self._options.merging_alpha, self.questionnaire.columns)
            elif name not in refused:
                refused.add(name)
                yield RecordingError(name, unknown[item.key])

    def _ask(
        self, windows: Sequence[_Asked], load: Callable[[str], Any]
    ) -> Iterator[tuple[str, AudioError]]:
        """Ask the windows of a block; gives those that a question needs to know more about."""
        with_sound = [
            one for one in windows if self._options.ask_silence or not one.heard.window.note
        ]
        unknown: dict[str, AudioError] = {}
        for wave in self.questionnaire.groups():
            requests = list(self._requests(with_sound, wave, unknown))
            for answer in self._engine.run(requests, load):
                place, column = cast("tuple[int, Column]", answer.key)
                self._take(with_sound[place], column, answer)
            with_sound = [one for one in with_sound if one.heard.key not in unknown]
        yield from unknown.items()

    def _requests(
        self, windows: Sequence[_Asked], wave: Sequence[Column], unknown: dict[str, AudioError]
    ) -> Iterator[Request]:
        for place, one in enumerate(windows):
            for column in wave:
                condition = column.condition
                if condition is not None and not condition.holds(one.decided, one.confidences):
                    continue
                try:
                    yield self._request(one.heard, column, (place, column))
                except AudioError as error:
                    unknown[one.heard.key] = error

    def _request(self, heard: RecordingWindow, column: Column, key: Any) -> Request:
        from NatureLM.generation.engine import Request

        question = column.question if self._fill is None else self._fill(column.question, heard)
        prompt = processor_of(self.pipeline.model).render(question)
        name = repr((heard.recording.name, heard.window.start, question))
        return Request(
            key=key,
            prompt=prompt,
            audios=(heard.key,) * prompt.count(PLACEHOLDER),
            alpha=self.alpha(column),
            stream=zlib.crc32(name.encode()),
            choice=self._choice(column),
            options=self._generation(column),
            constraint=self._constraint(column),
        )

    def _choice(self, column: Column) -> LabelChoice | None:
        """The list that a column is chosen from; yes and no have no third."""
        if column.mode == "generate" or not column.labels:
            return None
        calibration = self._calibration(self.alpha(column)) if column.mode == "score" else None
        labels = column.labels if column.type == "yes_no" else (*column.labels, NOTHING)
        return LabelChoice(
            labels,
            cast(Any, column.mode),
            several=column.several,
            normalize="sum" if calibration is None else calibration.normalize,
        )

    def _generation(self, column: Column) -> GenerationOptions:
        options = self._engine.options
        most = column.max_new_tokens or min(
            options.max_new_tokens, _MOST_TOKENS.get(column.type, options.max_new_tokens)
        )
        beams = 1 if column.json_schema is not None else options.num_beams
        return replace(options, max_new_tokens=most, num_beams=beams)

    def _constraint(self, column: Column) -> Constraint | None:
        """For a column of JSON, what its schema allows; each answer needs one of its own."""
        if column.json_schema is None or column.mode == "generate":
            return None
        from NatureLM.generation.json_schema import JsonSchemaGrammar

        model = self.pipeline.model
        return JsonSchemaGrammar(
            dict(column.json_schema),
            model.tokenizer,
            model.eos_ids,
            self._generation(column).max_new_tokens,
        )

    def _take(self, one: _Asked, column: Column, answer: Answer) -> None:
        """Put an answer where it belongs: a value, or what was said where it is none."""
        if answer.error is not None:
            raise answer.error
        text, confidence = answer.text or "", None
        if answer.scores is not None:
            calibration = self._calibration(self.alpha(column))
            temperature = 1.0 if calibration is None else calibration.temperature
            scores = answer.scores.at_temperature(temperature)
            (text, confidence), *others = scores.ranked(column.top_k)
            if others and column.type != "yes_no":
                one.others[column.name] = others
        elif answer.log_probability is not None and column.is_scored:
            confidence = math.exp(answer.log_probability)
        name = column.name
        if confidence is not None:
            one.confidences[name] = confidence
            if confidence < least(column.min_confidence, text, name):
                one.values[name] = None
                return
        value, is_parsed = column.value(text)
        one.values[name] = value
        if not is_parsed:
            one.said[name] = text
            self.unparsed[name] += 1

    def _calibration(self, alpha: float) -> Calibration | None:
        if alpha not in self._calibrations:
            found, mismatch = self.pipeline.calibration_at(alpha)
            if mismatch is not None:
                (self._warn or logger.warning)(mismatch)
            self._calibrations[alpha] = found
        return self._calibrations[alpha]

    def _check(self, column: Column) -> None:
        """Raise UsageError for a question or a label that leaves no room in the model's context."""
        try:
            self._constraint(column)
            self.pipeline.check_room(self._engine, column.question, self._choice(column))
        except UsageError as error:
            raise UsageError(f"column {column.name!r}: {error}") from None
