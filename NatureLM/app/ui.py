"""What tabs share on the page: notices, the slider of α, and the input of clips.

A clip is shown as a figure (`player`): name and duration, picture with windows and playhead, sound,
and what can be done with it.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Sequence
from html import escape
from importlib.resources import files as resources
from pathlib import Path
from typing import Any
from urllib.parse import quote

import gradio as gr
from gradio.context import Context

from NatureLM.app.clips import (
    SLOW_FACTOR,
    Clip,
    ClipList,
    samples_of,
    span,
    time_text,
    without_paths,
)
from NatureLM.app.context import AppContext, Visitor
from NatureLM.errors import NatureLMError, UsageError
from NatureLM.util import format_duration

QUESTIONS = (
    "What is the common name for the focal species in the audio?",
    "What makes the sound in the audio?",
    "What is the scientific name for the focal species in the audio?",
    "Is it a bird, a frog or a mammal?",
    "Caption the audio",
)
ASK_ABOUT = "Ask about"
HIDDEN: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
"""Of events that belong to the page alone."""
QUIET: dict[str, Any] = {"queue": False, **HIDDEN}
"""Of those that are answered at once."""
_AS_RECORDED = "as recorded"
_SLOWED = f"{SLOW_FACTOR} times slower, for bats and other ultrasound"

# Buttons of our HTML carry what they do as data; Python gets it as the data of a click.
_RELAY = """
element.addEventListener('click', (event) => {
  const button = event.target.closest('[data-action]');
  if (button) trigger('click', {...button.dataset});
});
"""


def on_page_load(act: Callable[..., Any], outputs: Sequence[Any]) -> None:
    """Call a function whenever the page that is being built is opened."""
    page = Context.root_block
    assert page is not None, "tabs are built within a page"
    page.load(act, None, list(outputs), **QUIET)


def what_went_wrong(error: Exception) -> str:
    """A notice; where the program itself is at fault, the rest goes to stderr."""
    if isinstance(error, NatureLMError):
        return notice(str(error))
    traceback.print_exception(error, file=sys.stderr)
    return notice(
        f"The program failed at this ({type(error).__name__}); the terminal that it runs in says "
        "more. Everything else goes on."
    )


def notice(text: str, kind: str = "problem") -> str:
    """A sentence where it matters; `kind` is `problem` or `hint`. Nothing for no text."""
    if not text:
        return ""
    text = without_paths(text)
    role = "alert" if kind == "problem" else "status"
    lines = "".join(f"<p>{escape(line)}</p>" for line in text.splitlines() if line)
    return f'<div class="notice {kind}" role="{role}">{lines}</div>'


def html(value: str = "", **options: Any) -> gr.HTML:
    """A `gr.HTML` without a script."""
    return gr.HTML(value, js_on_load=None, **options)


def answers_table(name: str, headers: Sequence[str], height: int) -> gr.Dataframe:
    """A table to read, whose rows can be chosen."""
    return gr.Dataframe(
        headers=list(headers) or None,
        interactive=False,
        wrap=True,
        max_height=height,
        show_label=False,
        elem_id=name,
        elem_classes=["answers-table"],
        buttons=[],
    )


def static(name: str) -> str:
    """A text file of the folder `static`."""
    return (resources("NatureLM.app") / "static" / name).read_text(encoding="utf-8")


def share_slider(value: float = 0.0, **options: Any) -> gr.Slider:
    """A slider from 0 to 1."""
    return gr.Slider(0.0, 1.0, value=value, step=0.05, **options)


def alpha_slider(context: AppContext, name: str) -> gr.Slider:
    """The slider of α, in plain words."""
    return share_slider(
        min(1.0, max(0.0, context.settings.default_alpha)),
        label="α: follows instructions (0) ↔ knows animals (1)",
        info="How much of what was learned about animal sound is mixed into the language model. "
        "1 for naming animals; 0 cannot hear. For unusual instructions 0.4 to 0.6 with "
        "NatureLM-audio 1.0, 0.6 to 0.9 with 1.1.",
        elem_id=f"{name}-alpha",
    )


def names_box(name: str, **options: Any) -> gr.Textbox:
    """The field for names that answers are chosen from."""
    return gr.Textbox(
        label="or names of your own",
        info="One a line, or with commas between them. They go before the list above.",
        placeholder="Barn Owl, Common Cuckoo, European Nightjar",
        lines=2,
        max_lines=8,
        elem_id=f"{name}-names",
        **options,
    )


class ClipInput:
    """The components through which clips come into a tab, put into the page where this is made.

    name: of the tab or the part of it; the ids of components begin with it
    most: clips that it holds
    what: what is dropped, in the words of the page
    label: a `gr.Textbox` whose text each new clip gets, if there is one
    choosing, asking: whether one window of a long clip is chosen, and what for
    always_add: whether new clips never take the place of those that are there

    `changed` holds the events after which the clips are others; `.then` more to them.
    """

    def __init__(
        self,
        context: AppContext,
        name: str,
        most: int,
        *,
        what: str = "recording",
        label: gr.Textbox | None = None,
        always_add: bool = False,
        choosing: bool = True,
        asking: str = ASK_ABOUT,
    ) -> None:
        self.changed: list[Any] = []
        self._context, self._name, self._most = context, name, most
        self._always_add, self._choosing, self._asking = always_add, choosing, asking
        self._samples = samples_of(context.assets_dir)
        self._build(what, label)
        self._wire()

    def clips(self, visitor: Visitor) -> ClipList:
        return visitor.keep(
            f"clips {self._name}",
            lambda: ClipList(visitor.folder, self._context.limits, self._most),
        )

    def _build(self, what: str, label: gr.Textbox | None) -> None:
        name, several = self._name, self._most > 1
        self._drop = gr.File(
            label=f"Drop {'recordings' if several else f'a {what}'} here, or choose",
            file_count="multiple",
            height=110,
            elem_id=f"{name}-drop",
            elem_classes=["drop"],
        )
        with gr.Row(elem_classes=["sources"]):
            self._sample = gr.Dropdown(
                list(self._samples),
                value=None,
                label="or pick a sample",
                elem_id=f"{name}-sample",
                visible=bool(self._samples),
                min_width=180,
            )
            with gr.Accordion("or record", open=False, elem_id=f"{name}-record"):
                self._microphone = gr.Audio(
                    sources=["microphone"],
                    type="filepath",
                    label="Microphone",
                    show_label=False,
                    elem_id=f"{name}-microphone",
                )
        self._add = gr.Checkbox(
            False,
            label="Add to the sounds that are here (several in one question)",
            visible=several and not self._always_add,
            elem_id=f"{name}-add",
        )
        self._notice = html(elem_id=f"{name}-notice")
        self._to_long = gr.Button(
            "Open it in Long recording", visible=False, elem_id=f"{name}-to-long", variant="primary"
        )
        self._label = gr.State("") if label is None else label
        self._html = gr.HTML("", js_on_load=_RELAY, elem_id=f"{name}-clips")
        with gr.Accordion("Bats", open=False, elem_id=f"{name}-bats"):
            self._slow = gr.Radio(
                [_AS_RECORDED, _SLOWED],
                value=_AS_RECORDED,
                label="New sounds are heard",
                elem_id=f"{name}-slow",
            )

    def _wire(self) -> None:
        """Let the components act: files come in, clips go out or get another window."""

        def dropped(files: Any, label: str, add: bool, slow: str, request: gr.Request) -> Any:
            return self._put(request, [(file, None) for file in files or []], label, add, slow)

        def picked(name: str, label: str, add: bool, slow: str, request: gr.Request) -> Any:
            given = [(self._samples[name], name)] if name in self._samples else []
            return self._put(request, given, label, add, slow)

        def recorded(file: Any, label: str, add: bool, slow: str, request: gr.Request) -> Any:
            given = [(file, "Recording from the microphone")] if file else []
            return self._put(request, given, label, add, slow)

        for listen, act, source in (
            (self._drop.upload, dropped, self._drop),
            (self._sample.input, picked, self._sample),
            (self._microphone.stop_recording, recorded, self._microphone),
        ):
            event = listen(
                act,
                [source, self._label, self._add, self._slow],
                [source, self._html, self._notice, self._to_long],
                api_name=f"{self._name}_{act.__name__}",
                show_progress_on=[self._html],
                show_progress="minimal",
            )
            self.changed.append(event)
        self.changed.append(self._html.click(self._press, None, [self._html], **HIDDEN))
        self._to_long.click(
            self._hand_over,
            None,
            [self._context.tabs, self._context.handed_over, self._notice, self._to_long],
            api_visibility="private",
        )

    def _put(
        self,
        request: gr.Request,
        files: Sequence[tuple[str | Path, str | None]],
        label: str,
        add: bool,
        slow: str,
    ) -> list[Any]:
        """Open files; what is shown then: the clips, a sentence, the way to Long recording."""
        visitors = self._context.visitors
        visitor = self._context.visitor(request)
        try:
            visitors.make_room()
        except UsageError as error:
            return [None, gr.skip(), notice(str(error)), gr.skip()]
        visitors.use_up(visitor, [file for file, _ in files])
        with visitor.lock:
            clips = self.clips(visitor)
            problems = clips.put(
                files,
                add=add or self._always_add,
                slowed=float(SLOW_FACTOR) if slow == _SLOWED else 1.0,
                label=label.strip(),
                sample_rate=self._context.sample_rate,
            )
            to_long = gr.Button(visible=clips.too_long is not None)
            return [None, self._shown(clips), notice("\n".join(problems)), to_long]

    def _press(self, event: gr.EventData, request: gr.Request) -> Any:
        """A button of a clip: take it out, or ask about another window of it."""
        pressed: dict[str, Any] = event._data or {}
        visitor = self._context.visitor(request)
        with visitor.lock:
            clips = self.clips(visitor)
            key, window = str(pressed.get("clip")), str(pressed.get("window", ""))
            if pressed.get("action") == "remove":
                clips.remove(key)
                return self._shown(clips)
            if pressed.get("action") == "choose" and window.isdecimal():
                clips.choose(key, int(window))
            return gr.skip()  # the page has marked it already, and the sound may be playing

    def _hand_over(self, request: gr.Request) -> Any:
        """Carry a recording that is too long to where it belongs."""
        clips = self.clips(self._context.visitor(request))
        given, clips.too_long = clips.too_long or gr.skip(), None
        return gr.Tabs(selected="long"), given, "", gr.Button(visible=False)

    def _shown(self, clips: ClipList) -> str:
        return "".join(
            player(
                clip,
                number if self._most > 1 else None,
                choosing=self._choosing,
                asking=self._asking,
            )
            for number, clip in enumerate(clips.clips, start=1)
        )


def player(
    clip: Clip, number: int | None = None, *, choosing: bool = True, asking: str = ASK_ABOUT
) -> str:
    """One clip as a figure. `choosing` lets one of several windows be chosen, for what `asking`
    says.
    """
    several = choosing and len(clip.spans) > 1
    name, label = escape(clip.name), escape(clip.label)
    mark = "" if number is None else f'<span class="number">[{number}]</span> '
    tag = f'<span class="tag" title="{label}">{label}</span> ' if label else ""
    notes = "".join(f"<li>{escape(note)}</li>" for note in clip.notes)
    slowed = f", heard {clip.slowed:g} times slower" if clip.slowed != 1 else ""
    return (
        f'<figure class="clip" data-clip="{clip.id}" data-seconds="{clip.seconds:.6g}">'
        f'<figcaption>{mark}{tag}<span class="name" title="{name}">{name}</span> '
        f'<span class="about">{format_duration(clip.seconds, short=True)}{slowed}</span>'
        f'<button type="button" class="remove" data-action="remove" data-clip="{clip.id}" '
        f'aria-label="Take {name} out">×</button></figcaption>'
        f"{_picture(clip, several)}"
        f'<audio controls preload="metadata" src="{_address(clip.sound)}" '
        f'aria-label="{name}, as the model hears it"></audio>'
        f"{_windows(clip, asking) if several else ''}"
        f"{f'<ul class=notes>{notes}</ul>' if notes else ''}</figure>"
    )


def _picture(clip: Clip, several: bool) -> str:
    top = clip.sample_rate / 2000 * clip.slowed

    def percent(seconds: float) -> str:
        return f"{100 * seconds / clip.seconds:.3f}%"

    lines = "".join(
        f'<span class="edge" style="left:{percent(start)}"></span>' for start, _ in clip.spans[1:]
    )
    start, end = clip.spans[clip.chosen]
    here = (
        f'<span class="here" style="left:{percent(start)};width:{percent(end - start)}"></span>'
        if several
        else ""
    )
    ticks = "".join(
        f'<span style="left:{percent(at)}">{time_text(at)}</span>' for at in _ticks(clip.seconds)
    )
    return (
        f'<div class="picture"><div class="frequencies" aria-hidden="true"><span>{top:g} kHz</span>'
        f"<span>{top / 2:g}</span><span>0</span></div>"
        f'<div class="spectrogram" data-seek><img src="{_address(clip.image)}" '
        f'alt="Spectrogram of {escape(clip.name)}, {format_duration(clip.seconds, short=True)}, '
        f'0 to {top:g} kHz">{here}{lines}<span class="playhead"></span></div>'
        f'<div class="times" aria-hidden="true">{ticks}<span class="last">'
        f"{time_text(clip.seconds)} s</span></div></div>"
    )


def _windows(clip: Clip, asking: str) -> str:
    buttons = "".join(
        f'<button type="button" data-action="choose" data-clip="{clip.id}" data-window="{place}" '
        f'data-start="{start:.6g}" data-end="{end:.6g}" '
        f'aria-pressed="{str(place == clip.chosen).lower()}">{span(start, end)}</button>'
        for place, (start, end) in enumerate(clip.spans)
    )
    return (
        f'<div class="windows" role="group" aria-label="{asking}">'
        f'<span class="about">{asking}</span>{buttons}</div>'
    )


def _ticks(seconds: float) -> list[float]:
    """Round times below the end, at most eight."""
    for step in (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 3600):
        if seconds / step <= 8:
            return [step * n for n in range(int(seconds / step) + 1) if step * n < seconds * 0.93]
    return [0.0]


def sound_address(clip: Clip) -> str:
    """Where the browser finds a clip as the model hears it."""
    return _address(clip.sound)


def _address(path: Path) -> str:
    """Where the browser finds a visitor's file, relative to the page; for an attribute of HTML."""
    return escape(f"gradio_api/file={quote('/'.join(path.parts[-3:]))}")
