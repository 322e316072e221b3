"""What happens when somebody opens the page.

The jobs that a browser remembers: a link that was lost is no lost job.

A job in words, tables and bars: HTML in which every text of a user or model is escaped.

What the timeline's script asks the app for: pictures and sound of a stretch of a recording.

The components that show one job.

The fields of a job: questions, α, and how the sound is cut into windows.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, TypeAlias

from NatureLM.app.intake import list_of
from NatureLM.app.jobs.queue import JobQueue
from NatureLM.app.jobs.sound import JobSound
from NatureLM.app.jobs.store import (
    DEFAULT_QUESTION,
    Job,
    JobError,
    JobRecording,
    JobSettings,
    make_settings,
)
from NatureLM.app.jobs.view import JobView, RecordingView
from NatureLM.app.limits import say_seconds
from NatureLM.app.page import static
from NatureLM.app.settings import AppContext
from NatureLM.errors import NatureLMError
from NatureLM.results.rows import WindowRow
from NatureLM.results.tables import alternatives_text
from NatureLM.species import presets


def on_page_load(act: Callable[..., Any], outputs: Sequence[Any]) -> None:
    """Call a function whenever the page that is being built is opened."""
    from gradio.context import Context

    page = Context.root_block
    assert page is not None, "tabs are built within a page"
    page.load(
        act, None, list(outputs), queue=False, show_progress="hidden", api_visibility="private"
    )


MOST_REMEMBERED = 30


def remember(remembered: Any, job_id: str) -> list[str]:
    """The ids with a new one in front; what a browser gives is not trusted."""
    known = [one for one in ids(remembered) if one != job_id]
    return [job_id, *known][:MOST_REMEMBERED]


def ids(remembered: Any) -> list[str]:
    """The ids among what a browser gave."""
    if not isinstance(remembered, list):
        return []
    return [one for one in remembered if isinstance(one, str)][:MOST_REMEMBERED]


def choices(remembered: Any, queue: JobQueue, kind: str) -> list[tuple[str, str]]:
    """(label, id) of the remembered jobs that are still there, newest first."""
    found = []
    for job_id in ids(remembered):
        try:
            job = queue.open(job_id)
        except JobError:
            continue
        if job.kind == kind:
            found.append((label(job), job.id))
    return found


def label(job: Job) -> str:
    """What a job is called in the list."""
    first = job.recordings[0].name
    more = f" and {len(job.recordings) - 1} more" if len(job.recordings) > 1 else ""
    return f"{job.created.replace('T', ' ').removesuffix('+00:00')} · {first}{more} · {job.state}"


MOST_ROWS = 5000
"""Rows of the table on the page; downloads hold all."""
RECORDING, FROM, TO = "Recording", "From (s)", "To (s)"
ANSWER, CONFIDENCE, QUESTION = "Answer", "Confidence", "Question"


def status_html(view: JobView) -> str:
    """How far the job is: a sentence, a bar, the link."""
    job, share = view.job, view.share
    label = f"{100 * share:.0f} %"
    created = job.created.replace("T", " ").removesuffix("+00:00")
    return (
        f'<div class="job" data-job="{escape(job.id)}" data-state="{escape(job.state)}" '
        f'data-answers="{len(view.answers)}" data-expected="{job.expected}">'
        f'<p role="status">{escape(progress_sentence(view))}</p>'
        f'<progress max="1" value="{share:.4f}" aria-label="Progress">{label}</progress>'
        f'<p class="about">Begun {escape(created)} UTC. It goes on when this page is closed; '
        f'<a href="?job={escape(job.id)}">this link opens it again</a>. Keep the link to '
        "yourself: whoever has it can see the job.</p></div>"
    )


def progress_sentence(view: JobView) -> str:
    """How far the job is, in one sentence or two."""
    job = view.job
    done = f"{len(view.answers):,} of {job.expected:,} answers"
    if job.state == "waiting":
        return f"Waits: {_count(view.ahead, 'job')} before it." if view.ahead else "Begins …"
    if job.state == "working":
        if view.is_stopping:
            return f"Stops after the answer that is being made: {done} so far."
        return f"Works: {done}." if view.answers else "Begins with the first windows …"
    if job.state == "failed":
        return job.message
    bad = f", {_count(len(view.errors), 'recording')} with errors" if view.errors else ""
    if job.state == "stopped":
        return f"Stopped at {done}{bad}. What is there is kept; Go on asks the rest."
    return f"Done: {_count(len(view.answers), 'answer')}{bad}."


def recordings_html(view: JobView) -> str:
    """A table of the recordings: how far each is, and what was wrong."""
    lines = "".join(map(_recording_line, view.recordings()))
    return (
        '<div class="job-files" tabindex="0" role="region" aria-label="Recordings of the job">'
        "<table><thead><tr><th>Recording</th><th>Length</th><th>Progress</th><th>State</th></tr>"
        f"</thead><tbody>{lines}</tbody></table></div>"
    )


@dataclass(frozen=True)
class AnswerTable:
    """The columns that a job's answers need: what is the same in all rows stays out."""

    headers: tuple[str, ...]

    @classmethod
    def of(cls, view: JobView) -> AnswerTable:
        """The table of a job."""
        wanted = [RECORDING] if len(view.job.recordings) > 1 else []
        wanted += [FROM, TO, ANSWER]
        wanted += [CONFIDENCE] if has_confidence(view) else []
        wanted += [QUESTION] if len(view.job.settings.queries) > 1 else []
        return cls(tuple(wanted))

    def value(self, rows: Sequence[WindowRow], names: Mapping[str, str]) -> dict[str, Any]:
        """What the component shows."""
        return {
            "headers": list(self.headers),
            "data": [self._cells(row, names) for row in rows[:MOST_ROWS]],
        }

    def named(self, cells: Sequence[Any]) -> dict[str, Any]:
        """The cells of one row by their headers."""
        return dict(zip(self.headers, cells, strict=False))

    def _cells(self, row: WindowRow, names: Mapping[str, str]) -> list[Any]:
        cells: dict[str, Any] = {
            RECORDING: names[row.audio_path],
            FROM: row.start,
            TO: row.end,
            ANSWER: row.text,
            CONFIDENCE: confidence_text(row),
            QUESTION: row.query,
        }
        return [cells[header] for header in self.headers]


def has_confidence(view: JobView) -> bool:
    """Whether the answers say how sure they are."""
    return any(row.confidence is not None for row in view.answers[:100])


def confidence_text(row: WindowRow) -> str:
    """`83 % (Barn Owl 0.10)`; nothing where it is not known."""
    if row.confidence is None:
        return ""
    others = alternatives_text(row)
    return f"{100 * row.confidence:.0f} %" + (f" ({others})" if others else "")


def filtered(
    rows: Sequence[WindowRow], names: Mapping[str, str], words: str, least: float
) -> list[WindowRow]:
    """Rows with all of the words somewhere in them, and enough confidence where it is known."""
    wanted = words.casefold().split()
    return [
        row
        for row in rows
        if all(
            word in f"{names[row.audio_path]} {row.text} {row.query}".casefold() for word in wanted
        )
        and (row.confidence is None or row.confidence >= least)
    ]


def _recording_line(one: RecordingView) -> str:
    recording = one.recording
    length = "" if recording.seconds is None else say_seconds(recording.seconds)
    state = {
        "done": "done",
        "begun": f"{one.answers} of {one.expected}",
        "waiting": "waits",
        "error": escape(one.error),
    }[one.state]
    bar = (
        f'<progress max="{max(1, one.expected)}" value="{one.answers}" '
        f'aria-label="Progress of {escape(recording.name)}"></progress>'
        if one.expected
        else ""
    )
    return (
        f'<tr data-file="{escape(recording.file)}" data-state="{one.state}">'
        f'<td class="job-name" title="{escape(recording.name)}">{escape(recording.name)}</td>'
        f"<td>{escape(length)}</td><td>{bar}</td><td>{state}</td></tr>"
    )


def _count(number: int, word: str) -> str:
    return f"{number:,} {word}" if number == 1 else f"{number:,} {word}s"


ServerFunction: TypeAlias = Callable[[Any], dict[str, Any]]

_COLUMNS = 1200
_CLOSE_UP_COLUMNS = 1000


def server_functions(context: AppContext) -> list[ServerFunction]:
    """`stretch` and `listen`; each takes job, recording, start and end, and never raises."""
    sound = JobSound(context.library, lambda: context.sample_rate)

    def stretch(wanted: Any) -> dict[str, Any]:
        def draw(job: Job, recording: JobRecording, start: float, end: float) -> dict[str, Any]:
            columns = int(wanted.get("columns", _COLUMNS))
            highest = context.sample_rate / 2000 * job.settings.time_expansion
            return {
                "picture": _base64(sound.stretch(job, recording, start, end, columns)),
                "kilohertz": f"{highest:g}",
            }

        return _answer(context, wanted, draw)

    def listen(wanted: Any) -> dict[str, Any]:
        def play(job: Job, recording: JobRecording, start: float, end: float) -> dict[str, Any]:
            return {
                "picture": _base64(sound.stretch(job, recording, start, end, _CLOSE_UP_COLUMNS)),
                "sound": _base64(sound.heard(job, recording, start, end)),
            }

        return _answer(context, wanted, play)

    return [stretch, listen]


def _answer(
    context: AppContext,
    wanted: Any,
    make: Callable[[Job, JobRecording, float, float], dict[str, Any]],
) -> dict[str, Any]:
    """Answer a request of the page, or say what is wrong; what it sends is not trusted."""
    try:
        job = context.library.open(wanted["job"])
        recording = {one.file: one for one in job.recordings}[wanted["recording"]]
        return make(job, recording, float(wanted["start"]), float(wanted["end"]))
    except NatureLMError as error:
        return {"error": str(error)}
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError):
        return {"error": "The page asked for something that is not there: load it again."}


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


_POLL_SECONDS = 1.0
_NO_SECRET = "naturelm"
"""What a browser remembers is its own; a secret that changes would make it forget."""
_COLOURS = [("by answer", "answer"), ("by confidence", "confidence")]
_EMPTY = {
    "long": "The timeline of the recording appears here, and below it what was heard when.",
    "folder": "Progress and answers of the recordings appear here.",
}


class JobParts:
    """Components of a panel, put into the page where this is made.

    kind: of the jobs that are shown; the ids of components begin with it
    """

    def __init__(self, context: AppContext, kind: str) -> None:
        import gradio as gr

        self._context, self._kind = context, kind
        name = kind
        self.job = gr.State("")
        self.drawn = gr.State(None)
        self.remembered = gr.BrowserState(
            [], storage_key=f"naturelm-{name}-jobs", secret=_NO_SECRET
        )
        self.earlier = gr.Dropdown(
            [], label="Earlier jobs of this browser", visible=False, elem_id=f"{name}-earlier"
        )
        self.problem = gr.HTML(
            "", elem_id=f"{name}-problem", elem_classes=["quiet"], js_on_load=None
        )
        self.empty = gr.HTML(
            f'<p class="job-empty">{_EMPTY[name]}</p>', elem_id=f"{name}-empty", js_on_load=None
        )
        with gr.Column(visible=False, elem_id=f"{name}-panel") as self.panel:
            self.status = gr.HTML("", elem_id=f"{name}-status", js_on_load=None)
            with gr.Row(elem_classes=["job-buttons"]):
                self.stop = gr.Button("Stop", elem_id=f"{name}-stop", min_width=90)
                self.go_on = gr.Button("Go on", elem_id=f"{name}-go-on", min_width=90)
                self.remove = gr.Button("Remove …", elem_id=f"{name}-remove", min_width=90)
            with gr.Row(visible=False, elem_classes=["job-buttons"]) as self.sure:
                gr.HTML("<p>Remove the job with its recordings and answers?</p>", js_on_load=None)
                self.gone = gr.Button(
                    "Remove for good", variant="stop", elem_id=f"{name}-remove-sure", min_width=130
                )
                self.kept = gr.Button("Keep it", elem_id=f"{name}-keep", min_width=90)
            self.files = gr.HTML(
                "", elem_id=f"{name}-files", js_on_load=None, visible=name == "folder"
            )
            self._build_timeline()
            self._build_table()
            with gr.Row(elem_classes=["job-buttons"], elem_id=f"{name}-downloads"):
                self.downloads = [
                    gr.DownloadButton(label, elem_id=f"{name}-{key}", min_width=150)
                    for label, key in (
                        ("Table (CSV)", "csv"),
                        ("Raven selection table", "raven"),
                        ("JSON lines", "jsonl"),
                    )
                ]
        self.timer = gr.Timer(_POLL_SECONDS, active=False)

    def _build_timeline(self) -> None:
        import gradio as gr

        name = self._kind
        with gr.Row():
            self.recording = gr.Dropdown(
                [], label="Recording", elem_id=f"{name}-recording", visible=False, min_width=160
            )
            self.question = gr.Dropdown(
                [], label="Question", elem_id=f"{name}-which", visible=False, min_width=160
            )
            self.colouring = gr.Radio(
                _COLOURS,
                value="answer",
                label="Colours",
                elem_id=f"{name}-colours",
                visible=False,
                min_width=160,
            )
        self.timeline = gr.HTML(
            "",
            html_template='<div class="tl timeline" hidden></div>',
            css_template=static("timeline.css"),
            js_on_load=static("timeline.js"),
            server_functions=server_functions(self._context),
            apply_default_css=False,
            elem_id=f"{name}-timeline",
            focus=-1,
        )

    def _build_table(self) -> None:
        import gradio as gr

        name = self._kind
        with gr.Row():
            self.words = gr.Textbox(
                "",
                label="Filter",
                placeholder="owl",
                info="Shows answers with all of these words in them.",
                elem_id=f"{name}-filter",
                min_width=160,
            )
            self.least = gr.Slider(
                0.0,
                1.0,
                value=0.0,
                step=0.05,
                label="Least confidence",
                elem_id=f"{name}-least",
                visible=False,
                min_width=160,
            )
        self.count = gr.HTML("", elem_id=f"{name}-count", js_on_load=None)
        self.table = gr.Dataframe(
            headers=[FROM, TO, ANSWER],
            interactive=False,
            wrap=True,
            max_height=420,
            show_label=False,
            elem_id=f"{name}-table",
            elem_classes=["answers-table"],
            buttons=[],
        )

    @property
    def outputs(self) -> list[Any]:
        """All that changes with a job, in the order of the values that `JobPanel` gives."""
        return [
            *(self.problem, self.empty, self.panel, self.status),
            *(self.stop, self.go_on, self.remove),
            *(self.files, self.recording, self.question, self.colouring, self.timeline),
            *(self.least, self.count, self.table, *self.downloads, self.timer, self.drawn),
        ]


_ANY = "any answer"
_CHANNELS = [("All channels mixed", "mean"), *((f"Channel {n}", str(n)) for n in range(1, 9))]


def settings_of(context: AppContext, values: Sequence[Any]) -> JobSettings:
    """The settings from the values of `job_fields`. Raises UsageError with a sentence."""
    questions, alpha, window, hop, channel, expansion, names, preset, sure = values
    named = None if preset == _ANY else preset
    labels: tuple[str, ...] = ()
    if names.strip() or named:
        labels = list_of(names, None, named, context.folder, context.limits).names
    return make_settings(
        *(questions, alpha, window, hop, channel, expansion),
        labels=labels,
        sure=sure,
        limits=context.limits,
    )


def job_fields(context: AppContext, name: str) -> list[Any]:
    """Put the fields into the page."""
    import gradio as gr

    from NatureLM.app.tabs.ask import QUESTIONS, alpha_slider

    questions = gr.Textbox(
        DEFAULT_QUESTION,
        label="Question about every window",
        info="Several questions: one on each line.",
        lines=1,
        max_lines=10,
        elem_id=f"{name}-question",
    )
    with gr.Row(elem_classes=["chips"], elem_id=f"{name}-chips"):
        for text in QUESTIONS:
            chip = gr.Button(text, size="sm", min_width=60)
            chip.click(
                None,
                None,
                [questions],
                js=f"() => {text!r}",
                api_visibility="private",
                show_progress="hidden",
            )
    alpha = alpha_slider(context, name)
    with gr.Accordion("Windows, channel, bats", open=False, elem_id=f"{name}-windows"):
        with gr.Row():
            window = gr.Number(
                10.0,
                label="Length of a window (s)",
                info="At most 10.",
                elem_id=f"{name}-window",
                min_width=140,
            )
            hop = gr.Number(
                10.0,
                label="Step from window to window (s)",
                info="5: windows overlap by half.",
                elem_id=f"{name}-hop",
                min_width=140,
            )
        with gr.Row():
            channel = gr.Dropdown(
                _CHANNELS, value="mean", label="Channel", elem_id=f"{name}-channel", min_width=140
            )
            expansion = gr.Number(
                1.0,
                label="Slow the sound down (times)",
                info="10 makes bats audible; times stay true.",
                elem_id=f"{name}-expansion",
                min_width=140,
            )
    with gr.Accordion("Choose from a list of names", open=False, elem_id=f"{name}-list"):
        preset = gr.Dropdown(
            [_ANY, *presets()],
            value=_ANY,
            label="Ready-made list",
            info="With a list every answer is one of its names or None, with its confidence.",
            elem_id=f"{name}-preset",
        )
        names = gr.Textbox(
            "",
            label="or names of your own",
            info="One a line, or with commas between them. They go before the list above.",
            placeholder="Barn Owl, Common Cuckoo, European Nightjar",
            lines=2,
            max_lines=8,
            elem_id=f"{name}-names",
        )
        sure = gr.Slider(
            0.0,
            1.0,
            value=0.0,
            step=0.05,
            label="Least confidence",
            info="Below it the answer is None.",
            elem_id=f"{name}-sure",
        )
    return [questions, alpha, window, hop, channel, expansion, names, preset, sure]
