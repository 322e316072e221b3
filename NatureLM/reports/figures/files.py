"""Figures as bytes: SVG for pages and files, PNG. The same figure gives the same bytes."""

from __future__ import annotations

import io
import re
from typing import Any

from NatureLM.reports.figures.style import DARK, LIGHT, styled

_DPI = 200
_ROLE_OF = {color: role for role, color in LIGHT.items()}
_COLOR = re.compile(r"#[0-9a-f]{6}\b")
_ID = re.compile(r'(\bid="|href="#|url\(#)')


def svg(figure: Any) -> str:
    """The figure as an SVG file of its own, in light colours."""
    stream = io.StringIO()
    with styled():
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines()) + "\n"


def png(figure: Any) -> bytes:
    """The figure as a PNG file."""
    stream = io.BytesIO()
    with styled():
        figure.savefig(stream, format="png", dpi=_DPI, metadata={"Software": None})
    return stream.getvalue()


def inline_svg(text: str, key: str, title: str) -> str:
    """An SVG file as a part of a page: colours are the page's, ids are its own.

    key: makes the ids differ from those of other figures; title: what it is read out as
    """
    body = text[text.index("<svg") :]
    opening, _, rest = body.partition(">")
    box = re.search(r'viewBox="[^"]+"', opening)
    assert box is not None, "matplotlib writes a viewBox"
    rest = re.sub(r"<metadata>.*?</metadata>", "", rest, flags=re.DOTALL)
    rest = _ID.sub(lambda found: f"{found[1]}{key}-", rest)
    rest = _COLOR.sub(_as_variable, rest)
    points = float(box[0].split()[2])
    return (
        f'<svg xmlns:xlink="http://www.w3.org/1999/xlink" {box[0]} role="img" '
        f'aria-label="{title}" style="--width: {points * 96 / 72:.0f}px">{rest.strip()}'
    )


def style_sheet() -> str:
    """The variables of the colours, for light and for dark pages."""

    def rules(colors: dict[str, str]) -> str:
        return "".join(f"--{role}:{color};" for role, color in colors.items())

    return (
        f":root{{{rules(LIGHT)}}}\n@media (prefers-color-scheme: dark){{:root{{{rules(DARK)}}}}}\n"
    )


def _as_variable(found: re.Match[str]) -> str:
    role = _ROLE_OF.get(found[0])
    return found[0] if role is None else f"var(--{role})"
