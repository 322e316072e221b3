"""How the page looks: one theme with the colours of the reports, all of it local.

Ranked names with bars, as HTML whose numbers can be read back.

The page: header, tabs, and what they share.
"""

from __future__ import annotations

import html
import os
from collections.abc import Sequence
from html import escape
from importlib import import_module
from importlib.resources import files
from typing import TYPE_CHECKING, Any, cast

from NatureLM.app.chat import NONE_OF_THESE, LabelRanking
from NatureLM.app.player import handler, span
from NatureLM.app.settings import AppContext, AppSettings, PageParts
from NatureLM.errors import UsageError
from NatureLM.reports.figures import DARK, LIGHT

if TYPE_CHECKING:
    import gradio as gr


_SANS = ("system-ui", "Segoe UI", "Roboto", "Helvetica Neue", "Arial", "sans-serif")
_MONO = ("ui-monospace", "SFMono-Regular", "Consolas", "DejaVu Sans Mono", "monospace")
# Colours of text and controls, light and dark: the accent is the first series of the figures.
_PAGE = ("#f3f1ec", "#141517")
_RAISED = ("#f8f6f2", "#26272b")
_LINE = ("#d3d0c9", "#3b3b3f")
_ACCENT = ("#00598f", "#7cc4f5")
_ON_ACCENT = ("#ffffff", "#101214")


def theme() -> Any:
    """The `gr.Theme`; its fonts are those of the reader's machine."""
    import gradio as gr

    ink, muted = (LIGHT["ink"], DARK["ink"]), (LIGHT["muted"], DARK["muted"])
    paper = (LIGHT["paper"], DARK["paper"])
    values = {
        "body_background_fill": _PAGE,
        "body_text_color": ink,
        "body_text_color_subdued": muted,
        "background_fill_primary": paper,
        "background_fill_secondary": _RAISED,
        "block_background_fill": paper,
        "block_border_color": _LINE,
        "block_label_background_fill": paper,
        "block_label_text_color": muted,
        "block_title_text_color": ink,
        "block_info_text_color": muted,
        "border_color_primary": _LINE,
        "border_color_accent": _ACCENT,
        "color_accent_soft": ("#dcebf5", "#1f3442"),
        "input_background_fill": _RAISED,
        "input_border_color": ("#8b8881", "#76767c"),
        "input_border_color_focus": _ACCENT,
        "input_placeholder_color": muted,
        "panel_background_fill": paper,
        "link_text_color": _ACCENT,
        "slider_color": _ACCENT,
        "button_primary_background_fill": _ACCENT,
        "button_primary_background_fill_hover": ("#004470", "#a5d8fa"),
        "button_primary_text_color": _ON_ACCENT,
        "button_secondary_background_fill": _RAISED,
        "button_secondary_background_fill_hover": ("#e9e6df", "#303137"),
        "button_secondary_border_color": ("#8b8881", "#76767c"),
        "button_secondary_text_color": ink,
        "table_text_color": ink,
        "table_even_background_fill": paper,
        "table_odd_background_fill": _RAISED,
        "table_border_color": _LINE,
        "code_background_fill": _RAISED,
        "error_background_fill": ("#fff3ec", "#33231a"),
        "error_border_color": ("#d05a00", "#f28e4b"),
        "error_text_color": ("#8a3200", "#f7b48a"),
    }
    both = {}
    for name, (light, dark) in values.items():
        both[name], both[f"{name}_dark"] = light, dark
    base = gr.themes.Base(
        primary_hue=_hue(), neutral_hue="stone", font=_SANS, font_mono=_MONO, radius_size="md"
    )
    return base.set(
        **both, color_accent="*primary_600", block_shadow="none", block_border_width="1px"
    )


def _hue() -> Any:
    """The accent from lightest to darkest, for what the theme derives itself."""
    from gradio.themes.utils.colors import Color

    return Color(
        "#eef6fb", "#dcebf5", "#b9dbf0", "#8fc8ea", "#7cc4f5", "#2f8cc4", "#0070b0", "#00598f",
        "#004470", "#003152", "#002138",
    )  # fmt: skip


def css() -> str:
    """The style sheet, with the colours of figures as variables (`--series-0`, `--muted` …)."""
    light = "".join(f"--fig-{role}:{color};" for role, color in LIGHT.items())
    dark = "".join(f"--fig-{role}:{color};" for role, color in DARK.items())
    dark += f"--color-accent:{_ACCENT[1]};"  # for which the theme has no dark value
    colors = f":root{{{light}}}\n:root.dark,:root .dark{{{dark}}}\n"
    return colors + static("app.css") + static("jobs.css")


def head() -> str:
    """Goes into the page's head: the script of the players."""
    return f"<script>{static('app.js')}</script>"


def static(name: str) -> str:
    """A text file of the folder `static`."""
    return (files("NatureLM.app") / "static" / name).read_text(encoding="utf-8")


_SHOWN = 5


def bars(ranked: LabelRanking, title: str, shown: int = _SHOWN, *, headline: bool = False) -> str:
    """The likeliest names of a stretch of sound."""
    rows = "".join(_row(label, share) for label, share in ranked.labels[:shown])
    rest = len(ranked.labels) - shown
    more = f'<p class="about">{rest} other names are less likely.</p>' if rest > 0 else ""
    best = f'<p class="best">{escape(said(ranked.labels[0][0]))}</p>' if headline else ""
    return (
        f'<section class="ranking" data-start="{ranked.start:.6g}" data-end="{ranked.end:.6g}">'
        f"<h3>{escape(title)}</h3>{best}<ol>{rows}</ol>{more}</section>"
    )


def rankings(whole: LabelRanking, windows: Sequence[LabelRanking]) -> str:
    """The whole clip, and its windows where it has several."""
    parts = [bars(whole, "The whole clip" if len(windows) > 1 else "The clip", headline=True)]
    if len(windows) > 1:
        each = "".join(bars(one, span(one.start, one.end), shown=3) for one in windows)
        parts.append(f'<div class="per-window">{each}</div>')
    return "".join(parts)


def said(label: str) -> str:
    """A label in the words of the page."""
    return "None of these" if label == NONE_OF_THESE else label


def _row(label: str, share: float) -> str:
    percent = "&lt;1 %" if share < 0.005 else f"{share:.0%}".replace("%", " %")
    return (
        f'<li data-label="{escape(label)}" data-share="{share:.6f}">'
        f'<span class="label">{escape(said(label))}</span>'
        f'<span class="bar" aria-hidden="true"><span style="width:{100 * share:.2f}%"></span>'
        f'</span><span class="share">{percent}</span></li>'
    )


TITLE = "NatureLM"
TABS = {
    "ask": "Ask",
    "identify": "Identify",
    "teach": "Teach by example",
    "long": "Long recording",
    "folder": "Folder",
    "experiments": "Experiments",
    "about": "About",
}
_POLL_SECONDS = 1.0
_DELETE_UPLOADS = (3600, 24 * 3600)  # seconds: look so often for files that are older than that


def build(settings: AppSettings, context: AppContext | None = None) -> gr.Blocks:
    """The whole page, of a new app or of the one whose context is given.

    Raises UsageError where Gradio is not installed.
    """
    gradio = need_gradio()
    context = context or AppContext(settings)
    # Components remember this folder when they are made.
    os.environ["GRADIO_TEMP_DIR"] = str(context.uploads)
    with gradio.Blocks(
        title=TITLE, analytics_enabled=False, fill_width=True, delete_cache=_DELETE_UPLOADS
    ) as page:
        _header(context)
        handed_over = gradio.State(None)
        with gradio.Tabs(elem_id="tabs") as tabs:
            context.parts = PageParts(tabs, handed_over)
            for name, label in TABS.items():
                with gradio.Tab(label, id=name, elem_id=f"tab-{name}"):
                    import_module(f"NatureLM.app.tabs.{name}").build(context)

        @handler
        def left(request: Any) -> None:
            context.visitors.closed(request.session_hash)

        page.unload(left)
    return cast("gr.Blocks", page)


def need_gradio() -> Any:
    """Gradio, with its telemetry off; raises UsageError where it is not installed."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    # Else the browser keeps what was asked and answered after the page is closed.
    os.environ["GRADIO_RUN_HISTORY"] = "False"
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    try:
        return import_module("gradio")
    except ImportError:
        raise UsageError(
            "the web app needs gradio, which is not installed: pip install 'naturelm-audio[app]'"
        ) from None


def _header(context: AppContext) -> None:
    """Name, one sentence, and how far the model is."""
    import gradio as gr

    gr.HTML(
        f"<h1>{TITLE}</h1><p>Ask questions of animal sound. Everything stays on this computer.</p>",
        elem_id="header",
        js_on_load=None,
    )
    status = gr.HTML(status_line(context), elem_id="status", js_on_load=None)
    timer = gr.Timer(_POLL_SECONDS)

    def look() -> tuple[str, Any]:
        waiting = context.state in ("waiting", "loading")
        return status_line(context), gr.Timer(active=waiting)

    timer.tick(
        look, outputs=[status, timer], show_progress="hidden", queue=False, api_visibility="private"
    )


def status_line(context: AppContext) -> str:
    """HTML that says whether questions can be answered yet."""
    name = html.escape(context.model_name)
    text = {
        "waiting": f"The model {name} is loading …",
        "loading": f"The model {name} is loading …",
        "ready": f"The model {name} is ready.",
        "failed": f"The model {name} could not be loaded: {html.escape(context.error or '')}",
    }[context.state]
    return f'<p role="status" class="model {context.state}">{text}</p>'
