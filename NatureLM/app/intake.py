"""Lists of species that visitors paste, drop or pick.

How clips come into a tab: dropped, recorded or picked, and what is shown of them.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from NatureLM.app.clips import SLOW_FACTOR, ClipList, TooLong, samples_of
from NatureLM.app.limits import LimitError, Limits, shown_name
from NatureLM.app.player import ASK_ABOUT, RELAY, handler, notice, players
from NatureLM.app.settings import AppContext
from NatureLM.app.visitors import Visitor
from NatureLM.errors import UsageError
from NatureLM.species import SpeciesList, hints, presets, read_species_list
from NatureLM.util import format_bytes


def list_of(
    pasted: str, file: str | None, preset: str | None, folder: Path, limits: Limits
) -> SpeciesList:
    """The list that a visitor gave: a file goes before pasted names, these before a preset.

    What is pasted is text and never taken for the name of a file. Raises UsageError or LimitError.
    """
    if file:
        return _read(Path(file), shown_name(file), limits)
    if pasted.strip():
        names = pasted if "\n" in pasted.strip() else pasted.replace(",", "\n")
        path = folder / f"{secrets.token_urlsafe(8)}.txt"
        path.write_text(names, encoding="utf-8")
        try:
            return _read(path, "The list", limits)
        finally:
            path.unlink()
    if preset:
        return read_species_list(preset, presets=presets())
    raise UsageError("There is no list yet: paste names, drop a file, or pick a ready-made one.")


def unknown_names(names: SpeciesList, known: tuple[str, ...]) -> list[str]:
    """Sentences on names that may be misspelt."""
    return list(hints(names.names, known))


def _read(path: Path, name: str, limits: Limits) -> SpeciesList:
    size = path.stat().st_size
    if size > limits.list_bytes:
        raise LimitError(
            f"{name} has {format_bytes(size)}, and a list may have "
            f"{format_bytes(limits.list_bytes)}."
        )
    try:
        found = read_species_list(path)
    except UsageError as error:
        raise UsageError(str(error).replace(str(path), name)) from None
    if len(found.names) > limits.labels:
        raise LimitError(
            f"{name} has {len(found.names)} names, and a list may have {limits.labels}."
        )
    notes = tuple(note.replace(str(path), name) for note in found.notes)
    return SpeciesList(found.names, found.kind, name, notes)


_AS_RECORDED = "as recorded"
_SLOWED = f"{SLOW_FACTOR} times slower, for bats and other ultrasound"


@dataclass
class ClipInput:
    """The components through which clips come into a tab.

    Attributes:
        name: of the tab or the part of it; the shelf of a visitor goes by it.
        most: clips that it holds.
        what: what is dropped, in the words of the page.
        label: a `gr.Textbox` whose text each new clip gets, if there is one.
        choosing, asking: whether one window of a long clip is chosen, and what for.
        always_add: whether new clips never take the place of those that are there.
        changed: events after which the clips are others; `.then` more to them.
    """

    context: AppContext
    name: str
    most: int
    what: str = "recording"
    label: Any = None
    always_add: bool = False
    choosing: bool = True
    asking: str = ASK_ABOUT
    changed: list[Any] = field(default_factory=list)

    def shelf(self, visitor: Visitor) -> ClipList:
        """The visitor's clips of this intake."""
        return visitor.keep(
            f"shelf {self.name}",
            lambda: ClipList(visitor.folder, self.context.limits, self.most),
        )

    def build(self) -> ClipInput:
        """Put the components into the page."""
        import gradio as gr

        context, name = self.context, self.name
        several = self.most > 1
        self.drop = gr.File(
            label=f"Drop {'recordings' if several else f'a {self.what}'} here, or choose",
            file_count="multiple",
            height=110,
            elem_id=f"{name}-drop",
            elem_classes=["drop"],
        )
        samples = samples_of(context.assets_dir)
        with gr.Row(elem_classes=["sources"]):
            self.sample = gr.Dropdown(
                list(samples),
                value=None,
                label="or pick a sample",
                elem_id=f"{name}-sample",
                visible=bool(samples),
                min_width=180,
            )
            with gr.Accordion("or record", open=False, elem_id=f"{name}-record"):
                self.microphone = gr.Audio(
                    sources=["microphone"],
                    type="filepath",
                    label="Microphone",
                    show_label=False,
                    elem_id=f"{name}-microphone",
                )
        self.add = gr.Checkbox(
            False,
            label="Add to the sounds that are here (several in one question)",
            visible=several and not self.always_add,
            elem_id=f"{name}-add",
        )
        self.notice = gr.HTML("", elem_id=f"{name}-notice", js_on_load=None)
        self.to_long = gr.Button(
            "Open it in Long recording", visible=False, elem_id=f"{name}-to-long", variant="primary"
        )
        self.label = gr.State("") if self.label is None else self.label
        self.html = gr.HTML("", js_on_load=RELAY, elem_id=f"{name}-clips")
        with gr.Accordion("Bats", open=False, elem_id=f"{name}-bats"):
            self.slow = gr.Radio(
                [_AS_RECORDED, _SLOWED],
                value=_AS_RECORDED,
                label="New sounds are heard",
                elem_id=f"{name}-slow",
            )
        self._wire(samples)
        return self

    def shown(self, shelf: ClipList) -> str:
        """The clips as HTML."""
        return players(
            shelf.clips,
            numbered=self.most > 1,
            choosing=self.choosing,
            asking=self.asking,
            labels=shelf.labels,
        )

    def _wire(self, samples: dict[str, Path]) -> None:
        """Let the components act: files come in, clips go out or get another window."""
        options = [self.label, self.add, self.slow]
        shown = [self.html, self.notice, self.to_long]

        @handler
        def dropped(files: Any, label: str, add: bool, slow: str, request: Any) -> Any:
            given = [(file, None) for file in files or []]
            return [None, *self._take(request, given, label, add, slow)]

        @handler
        def picked(name: str, label: str, add: bool, slow: str, request: Any) -> Any:
            given = [(samples[name], name)] if name in samples else []
            return [None, *self._take(request, given, label, add, slow)]

        @handler
        def recorded(file: Any, label: str, add: bool, slow: str, request: Any) -> Any:
            given = [(file, "Recording from the microphone")] if file else []
            return [None, *self._take(request, given, label, add, slow)]

        def on(listener: Any, act: Any, source: Any) -> None:
            event = listener(
                act,
                [source, *options],
                [source, *shown],
                api_name=f"{self.name}_{act.__name__}",
                show_progress_on=[self.html],
                show_progress="minimal",
            )
            self.changed.append(event)

        on(self.drop.upload, dropped, self.drop)
        on(self.sample.input, picked, self.sample)
        on(self.microphone.stop_recording, recorded, self.microphone)

        @handler
        def pressed(event: Any, request: Any) -> Any:
            return self._press(event._data or {}, request)

        pressing = self.html.click(
            pressed, None, [self.html], show_progress="hidden", api_visibility="private"
        )
        self.changed.append(pressing)
        self._wire_hand_over()

    def _take(
        self,
        request: Any,
        files: Sequence[tuple[str | Path, str | None]],
        label: str,
        add: bool,
        slow: str,
    ) -> list[Any]:
        """Open files; what is shown then: the clips, a sentence, the way to Long recording."""
        import gradio as gr

        visitor = self.context.visitor(request)
        with visitor.lock:
            shelf = self.shelf(visitor)
            taken = shelf.put(
                files,
                add=add or self.always_add,
                slowed=float(SLOW_FACTOR) if slow == _SLOWED else 1.0,
                label=label.strip(),
                sample_rate=self.context.sample_rate,
            )
            _too_long(visitor)[self.name] = taken.too_long
            return [
                self.shown(shelf),
                notice("\n".join(taken.problems)),
                gr.Button(visible=taken.too_long is not None),
            ]

    def _press(self, pressed: dict[str, Any], request: Any) -> Any:
        """A button of a clip: take it out, or ask about another window of it."""
        import gradio as gr

        visitor = self.context.visitor(request)
        with visitor.lock:
            shelf = self.shelf(visitor)
            key, window = str(pressed.get("clip")), str(pressed.get("window", ""))
            if pressed.get("action") == "remove":
                shelf.remove(key)
                return self.shown(shelf)
            if pressed.get("action") == "choose" and window.isdecimal():
                shelf.choose(key, int(window))
            return gr.skip()  # the page has marked it already, and the sound may be playing

    def _wire_hand_over(self) -> None:
        """The button that carries a recording that is too long to where it belongs."""
        import gradio as gr

        context = self.context

        @handler
        def hand_over(request: Any) -> Any:
            visitor = context.visitor(request)
            recording = _too_long(visitor).pop(self.name, None)
            if recording is None:
                return gr.Tabs(selected="long"), gr.skip(), "", gr.Button(visible=False)
            given = (str(recording.path), recording.name)
            return gr.Tabs(selected="long"), given, "", gr.Button(visible=False)

        self.to_long.click(
            hand_over,
            None,
            [context.parts.tabs, context.parts.handed_over, self.notice, self.to_long],
            api_visibility="private",
        )


def _too_long(visitor: Visitor) -> dict[str, TooLong | None]:
    """The last recording that was too long, by the name of the intake that it was given to."""
    found: dict[str, TooLong | None] = visitor.keep("too long", dict)
    return found
