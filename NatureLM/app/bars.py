"""Ranked names with bars, as HTML whose numbers can be read back."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from NatureLM.app.asking import NONE_OF_THESE, Ranked
from NatureLM.app.player import span

_SHOWN = 5


def bars(ranked: Ranked, title: str, shown: int = _SHOWN, *, headline: bool = False) -> str:
    """The likeliest names of a stretch of sound."""
    rows = "".join(_row(label, share) for label, share in ranked.labels[:shown])
    rest = len(ranked.labels) - shown
    more = f'<p class="about">{rest} other names are less likely.</p>' if rest > 0 else ""
    best = f'<p class="best">{escape(said(ranked.labels[0][0]))}</p>' if headline else ""
    return (
        f'<section class="ranking" data-start="{ranked.start:.6g}" data-end="{ranked.end:.6g}">'
        f"<h3>{escape(title)}</h3>{best}<ol>{rows}</ol>{more}</section>"
    )


def rankings(whole: Ranked, windows: Sequence[Ranked]) -> str:
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
