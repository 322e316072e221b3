"""The form that begins a job: its fields on the page, and what their values ask for."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import lru_cache
from html import escape
from itertools import islice
from pathlib import Path
from typing import Any

import gradio as gr

from NatureLM.app.chat import list_of
from NatureLM.app.context import AppContext
from NatureLM.app.job import Job, Kind, refuse_too_many, windows_of
from NatureLM.app.job_view import counted
from NatureLM.app.settings import Limits
from NatureLM.app.ui import (
    HIDDEN,
    QUESTIONS,
    QUIET,
    alpha_slider,
    html,
    names_box,
    notice,
    share_slider,
)
from NatureLM.audio import AudioError
from NatureLM.audio.decode import SoundLimits, probe
from NatureLM.errors import NatureLMError, UsageError
from NatureLM.inference.windows import AskOptions
from NatureLM.species import presets
from NatureLM.survey import preset_names
from NatureLM.survey.questionnaire import read_questionnaire
from NatureLM.util import format_bytes, format_duration

MOST_QUESTIONS = 10
_ANY = "any answer"
_OWN = "questions of your own"
_LONGEST_QUESTION = 200
_CHANNELS = [("All channels mixed", "mean"), *((f"Channel {n}", str(n)) for n in range(1, 9))]


class JobForm:
    """The form, put into the page where this is made.

    kind: of the jobs; the ids of components begin with it
    inputs: the components that hold recordings
    fields: those of `job_fields`
    """

    def __init__(self, context: AppContext, kind: Kind) -> None:
        self._context, self._kind = context, kind
        self._is_long = is_long = kind == "long"
        limits, size = context.limits, format_bytes(context.limits.upload_bytes)
        about = (
            f"Up to {format_duration(limits.long_seconds, short=True)} and {size}. The question is "
            "asked of every window of 10 s; the answers come one after the other."
            if is_long
            else f"Up to {limits.folder_files:,} recordings of at most {size} each. What cannot be "
            "read is named, and the others go on."
        )
        self.drop = gr.File(
            label=f"Drop {'a long recording' if is_long else 'recordings'} here, or choose",
            file_count="single" if is_long else "multiple",
            height=150 if is_long else 160,
            elem_id=f"{kind}-drop",
            elem_classes=["drop"],
        )
        html(f'<p class="about">{about}</p>')
        self.inputs = [self.drop, context.handed_over] if is_long else [self.drop]
        if is_long:
            self._given = html(elem_id="long-given", elem_classes=["quiet"])
        self.fields = job_fields(context, kind)
        self._lengths = gr.State([])  # seconds of the recordings; None of one that is none
        self._makes = html(elem_id=f"{kind}-makes", elem_classes=["quiet"])
        self.start = gr.Button("Start", variant="primary", elem_id=f"{kind}-start")

    def wire(self) -> None:
        """What was handed over, and how many answers there will be, is said before the start."""
        limits, handed_over = self._context.limits, self._context.handed_over

        def show_given(handed: Any) -> str:
            said = f"{handed[1]} is here and waits for its question." if handed else ""
            return notice(said, "hint")

        def said(lengths: Sequence[float | None], *values: Any) -> str:
            return makes_html(lengths, values, limits)

        def measured(dropped: Any, *rest: Any) -> list[Any]:
            handed, values = (rest[0], rest[1:]) if self._is_long else (None, rest)
            files = dropped if isinstance(dropped, list) else [dropped] if dropped else []
            lengths = lengths_of(files or ([handed[0]] if handed else []), limits)
            return [lengths, said(lengths, *values)]

        if self._is_long:
            handed_over.change(show_given, [handed_over], [self._given], **HIDDEN)
        for component in self.inputs:
            component.change(
                measured, [*self.inputs, *self.fields], [self._lengths, self._makes], **HIDDEN
            )
        makes = [self._lengths, *self.fields]
        for component in self.fields:
            component.change(said, makes, [self._makes], trigger_mode="always_last", **QUIET)

    def begin(self, files: Sequence[tuple[Path, str]], values: Sequence[Any]) -> Job:
        """Begin a job about files, each (path, name), with the values of the fields.

        Raises NatureLMError with a sentence for the visitor.
        """
        context = self._context
        if self._is_long and not files:
            raise UsageError("There is no recording yet: drop one, or choose a file.")
        settings = settings_of(values, context.folder, context.limits)
        context.jobs.refuse_if_full()
        try:
            if self._is_long:
                probe(files[0][0], SoundLimits(seconds=context.limits.long_seconds))
            job = context.jobs.create(self._kind, files, settings, questionnaire_of(values))
            context.jobs.submit(job.id)
        except AudioError as error:
            raise error.renamed(files[0][1]) from None
        return job


def job_fields(context: AppContext, name: str) -> list[Any]:
    """Put the fields of a job into the page: questions, α, windows, and what may be answered.

    `settings_of` takes their values.
    """
    questionnaire = gr.Dropdown(
        [(_OWN, ""), *((titles_of(one), one) for one in preset_names())],
        value="",
        label="Questionnaire",
        info="Many questions about every window and a column for each, or questions of your own.",
        elem_id=f"{name}-questionnaire",
    )
    about = html(elem_id=f"{name}-columns")
    questions = gr.Textbox(
        QUESTIONS[0],
        label="Question about every window",
        info="Several questions: one on each line.",
        lines=1,
        max_lines=10,
        elem_id=f"{name}-question",
    )
    with gr.Row(elem_classes=["chips"], elem_id=f"{name}-chips") as chips:
        for text in QUESTIONS:
            chip = gr.Button(text, size="sm", min_width=60)
            chip.click(None, None, [questions], js=f"() => {text!r}", **HIDDEN)
    alpha = alpha_slider(context, name)

    def number(value: float, label: str, info: str, part: str) -> gr.Number:
        return gr.Number(value, label=label, info=info, elem_id=f"{name}-{part}", min_width=140)

    with gr.Accordion("Windows, channel, bats", open=False, elem_id=f"{name}-windows"):
        with gr.Row():
            window = number(10.0, "Length of a window (s)", "At most 10.", "window")
            hop = number(
                10.0, "Step from window to window (s)", "5: windows overlap by half.", "hop"
            )
        with gr.Row():
            channel = gr.Dropdown(
                _CHANNELS, value="mean", label="Channel", elem_id=f"{name}-channel", min_width=140
            )
            expansion = number(
                1.0,
                "Slow the sound down (times)",
                "10 makes bats audible; times stay true.",
                "expansion",
            )
    with gr.Accordion("Choose from a list of names", open=False, elem_id=f"{name}-list") as listed:
        preset = gr.Dropdown(
            [_ANY, *presets()],
            value=_ANY,
            label="Ready-made list",
            info="With a list every answer is one of its names or None, with its confidence.",
            elem_id=f"{name}-preset",
        )
        names = names_box(name, value="")
        sure = share_slider(
            label="Least confidence", info="Below it the answer is None.", elem_id=f"{name}-sure"
        )
    questionnaire.input(
        _questionnaire_changes,
        [questionnaire],
        [about, questions, chips, listed, alpha, window, hop, channel, expansion],
        **QUIET,
    )
    return [questions, alpha, window, hop, channel, expansion, names, preset, sure, questionnaire]


@lru_cache
def titles_of(questionnaire: str) -> str:
    """What a questionnaire is called on the page."""
    return read_questionnaire(questionnaire).title or questionnaire


def _questionnaire_changes(name: str) -> list[Any]:
    """What the page shows of the questionnaire that is chosen: its columns, and its windows."""
    if name not in preset_names():
        shown = [gr.update(visible=True)] * 3
        return ["", *shown, *[gr.skip()] * 5]
    chosen = read_questionnaire(name)
    columns = "".join(
        f"<li><b>{escape(one.name)}</b>: {escape(one.question[:_LONGEST_QUESTION])}"
        f"{f' (if {escape(one.condition.text)})' if one.condition else ''}</li>"
        for one in chosen.columns
    )
    said = f" α is for {escape(chosen.weights)}." if chosen.weights else ""
    alphas = {one.merging_alpha for one in chosen.columns} - {None}
    windows = [
        gr.skip() if value is None else value
        for value in (
            *(chosen.window_length_seconds, chosen.hop_length_seconds),
            None if chosen.channel is None else str(chosen.channel),
        )
    ]
    return [
        f'<ul class="about columns">{columns}</ul><p class="about">{said}</p>',
        *[gr.update(visible=False)] * 3,
        alphas.pop() if len(alphas) == 1 else gr.skip(),
        *windows,
        chosen.time_expansion or 1.0,
    ]


def settings_of(values: Sequence[Any], folder: Path, limits: Limits) -> AskOptions:
    """The settings of a job from the values of `job_fields`; `folder` is for temporary files.

    Raises NatureLMError that names the field and what is allowed.
    """
    questions, alpha, window, hop, channel, expansion, names, preset, sure = values[:9]
    questionnaire = questionnaire_of(values)
    named = None if preset == _ANY else preset
    labels: tuple[str, ...] = ()
    if (names.strip() or named) and not questionnaire:
        labels = list_of(names, None, named, folder, limits).names
    queries = (
        tuple(one.name for one in read_questionnaire(questionnaire).columns)
        if questionnaire
        else _questions(questions, limits)
    )
    return AskOptions(
        queries=queries,
        merging_alpha=_number("α", alpha, -10.0, 10.0),
        window_length_seconds=_number("The length of a window", window, 0.1, 10.0),
        hop_length_seconds=_number("The step from window to window", hop, 0.1, 3600.0),
        channel=_channel(channel),
        time_expansion=_number("The slowing down", expansion, 0.01, 100.0),
        mode="score" if labels else "generate",
        labels=labels,
        min_confidence=_number("The least confidence", sure, 0.0, 1.0) if labels else 0.0,
    )


def questionnaire_of(values: Sequence[Any]) -> str:
    """The questionnaire of a job, "" for none. Raises UsageError for one that is not there."""
    name = values[9] if len(values) > 9 else ""
    if name and name not in preset_names():
        raise UsageError(f"There is no questionnaire {str(name)[:80]!r}.")
    return str(name or "")


def lengths_of(files: Iterable[str | Path], limits: Limits) -> list[float | None]:
    """Seconds of recordings as their headers say, of as many as a job takes; None of others."""
    lengths: list[float | None] = []
    bounds = SoundLimits(seconds=limits.long_seconds)
    for file in islice(files, limits.folder_files):
        try:
            lengths.append(probe(file, bounds).duration)
        except (AudioError, OSError):
            lengths.append(None)
    return lengths


def makes_html(lengths: Sequence[float | None], values: Sequence[Any], limits: Limits) -> str:
    """How many answers a job would have with these values of `job_fields`; nothing of no job."""
    windows = 0
    try:
        # The list of names plays no part; it is read at the start.
        settings = settings_of([*values[:6], "", _ANY, 0.0, *values[9:]], Path(), limits)
        windows = sum(windows_of(one, settings) for one in lengths if one is not None)
        refuse_too_many(windows, settings, limits)
    except NatureLMError as error:
        return notice(str(error)) if lengths else ""
    if not windows:
        return ""
    questions = len(settings.queries)
    asked = f", {questions} questions about each" if questions > 1 else ""
    answers = counted(windows * questions, "answer")
    return notice(f"About {answers}: {counted(windows, 'window')}{asked}.", "hint")


def _questions(text: str, limits: Limits) -> tuple[str, ...]:
    found = tuple(dict.fromkeys(line.strip() for line in (text or "").splitlines() if line.strip()))
    if not found:
        raise UsageError(f"There is no question yet, such as: {QUESTIONS[0]}")
    if len(found) > MOST_QUESTIONS:
        raise UsageError(f"{len(found)} questions are more than the {MOST_QUESTIONS} of one job.")
    longest = max(map(len, found))
    if longest > limits.question_characters:
        raise UsageError(
            f"A question has {longest:,} characters, and {limits.question_characters:,} are the "
            "most that are taken."
        )
    return found


def _number(name: str, value: Any, least: float, most: float) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not least <= number <= most:
        shown = "not filled in" if value in (None, "") else f"{value}"
        raise UsageError(f"{name} is {shown}, and it must be a number from {least:g} to {most:g}.")
    return number


def _channel(value: str) -> str | int:
    if value == "mean":
        return value
    if str(value).isdecimal() and 1 <= int(value) <= 1024:
        return int(value)
    raise UsageError(f"The channel is {value!r}, and it must be mean or a number from 1.")
