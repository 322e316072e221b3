"""How the page looks: one theme with the colours of the reports, all of it local."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

from NatureLM.reports.figures.style import DARK, LIGHT

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
