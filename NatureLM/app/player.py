"""What the handlers of the page's events have in common.

The HTML of clips: picture with windows and playhead, sound, and what can be done with them.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from html import escape
from inspect import signature
from typing import Any, TypeVar

from NatureLM.app.clips import Clip
from NatureLM.app.limits import address, say_seconds
from NatureLM.errors import NatureLMError

F = TypeVar("F", bound=Callable[..., Any])


def handler(function: F) -> F:
    """Mark a function that answers an event, so that Gradio fills its special parameters.

    `request` gets the `gr.Request`, `event` the `gr.EventData` (`gr.SelectData` as `select`).
    Gradio looks at annotations for that, which are mere text here because it is imported late.
    """
    import gradio as gr

    kinds = {"request": gr.Request, "event": gr.EventData, "select": gr.SelectData}
    names = signature(function).parameters
    function.__annotations__ = {name: kinds[name] for name in names if name in kinds}
    return function


def what_went_wrong(error: Exception) -> str:
    """A sentence for the page; where the program itself is at fault, the rest goes to stderr."""
    if isinstance(error, NatureLMError):
        return str(error)
    traceback.print_exception(error, file=sys.stderr)
    return (
        f"The program failed at this ({type(error).__name__}); the terminal that it runs in says "
        "more. Everything else goes on."
    )


ASK_ABOUT = "Ask about"

# Buttons of our HTML carry what they do as data; Python gets it as the data of a click.
RELAY = """
element.addEventListener('click', (event) => {
  const button = event.target.closest('[data-action]');
  if (button) trigger('click', {...button.dataset});
});
"""


def players(
    clips: Sequence[Clip],
    *,
    numbered: bool = True,
    choosing: bool = True,
    asking: str = ASK_ABOUT,
    labels: Mapping[str, str] | None = None,
) -> str:
    """The clips below one another; nothing for none."""
    return "".join(
        player(
            clip,
            number if numbered else None,
            choosing=choosing,
            asking=asking,
            label=(labels or {}).get(clip.id, ""),
        )
        for number, clip in enumerate(clips, start=1)
    )


def player(
    clip: Clip,
    number: int | None = None,
    *,
    choosing: bool = True,
    asking: str = ASK_ABOUT,
    label: str = "",
) -> str:
    """One clip as a figure. `choosing` lets one of several windows be chosen, for what `asking`
    says.
    """
    several = choosing and len(clip.spans) > 1
    name = escape(clip.name)
    mark = "" if number is None else f'<span class="number">[{number}]</span> '
    tag = f'<span class="tag" title="{escape(label)}">{escape(label)}</span> ' if label else ""
    notes = "".join(f"<li>{escape(note)}</li>" for note in clip.notes)
    slowed = f", heard {clip.slowed:g} times slower" if clip.slowed != 1 else ""
    return (
        f'<figure class="clip" data-clip="{clip.id}" data-seconds="{clip.seconds:.6g}">'
        f'<figcaption>{mark}{tag}<span class="name" title="{name}">{name}</span> '
        f'<span class="about">{say_seconds(clip.seconds)}{slowed}</span>'
        f'<button type="button" class="remove" data-action="remove" data-clip="{clip.id}" '
        f'aria-label="Take {name} out">×</button></figcaption>'
        f"{_picture(clip, several)}"
        f'<audio controls preload="metadata" src="{escape(address(clip.sound))}" '
        f'aria-label="{name}, as the model hears it"></audio>'
        f"{_choices(clip, asking) if several else ''}"
        f"{f'<ul class=notes>{notes}</ul>' if notes else ''}</figure>"
    )


def notice(text: str, kind: str = "problem") -> str:
    """A sentence where it matters; `kind` is `problem` or `hint`. Nothing for no text."""
    if not text:
        return ""
    role = "alert" if kind == "problem" else "status"
    lines = "".join(f"<p>{escape(line)}</p>" for line in text.splitlines() if line)
    return f'<div class="notice {kind}" role="{role}">{lines}</div>'


def span(start: float, end: float) -> str:
    """A window in words: `0–10 s`."""
    return f"{_time(start)}–{_time(end)} s"


def _picture(clip: Clip, several: bool) -> str:
    top = clip.sample_rate / 2000 * clip.slowed
    lines = "".join(
        f'<span class="edge" style="left:{100 * start / clip.seconds:.3f}%"></span>'
        for start, _ in clip.spans[1:]
    )
    start, end = clip.spans[clip.chosen]
    here = (
        f'<span class="here" style="left:{100 * start / clip.seconds:.3f}%;'
        f'width:{100 * (end - start) / clip.seconds:.3f}%"></span>'
        if several
        else ""
    )
    ticks = "".join(
        f'<span style="left:{100 * at / clip.seconds:.3f}%">{_time(at)}</span>'
        for at in _ticks(clip.seconds)
    )
    return (
        f'<div class="picture"><div class="frequencies" aria-hidden="true"><span>{top:g} kHz</span>'
        f"<span>{top / 2:g}</span><span>0</span></div>"
        f'<div class="spectrogram" data-seek><img src="{escape(address(clip.image))}" '
        f'alt="Spectrogram of {escape(clip.name)}, {say_seconds(clip.seconds)}, '
        f'0 to {top:g} kHz">{here}{lines}<span class="playhead"></span></div>'
        f'<div class="times" aria-hidden="true">{ticks}<span class="last">'
        f"{_time(clip.seconds)} s</span></div></div>"
    )


def _choices(clip: Clip, asking: str) -> str:
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


def _time(seconds: float) -> str:
    return f"{seconds:.2f}".rstrip("0").rstrip(".")
