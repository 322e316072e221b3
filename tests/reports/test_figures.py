"""Figures can be read: nothing overlaps or is cut off, colours differ for every eye."""

from __future__ import annotations

import itertools
import re
from typing import Any

import numpy as np
import pytest
from answer_files import varied_rows, write_answers

from NatureLM.evaluation.bootstrap import BootstrapOptions
from NatureLM.evaluation.protocols import protocol
from NatureLM.evaluation.score import score
from NatureLM.reports.figures import DARK, LIGHT, draw, fitted, inline_svg, style_sheet, svg
from NatureLM.reports.report import make_report

pytest.importorskip("rapidfuzz")
pytestmark = pytest.mark.usefixtures("own_folder")
pytest.importorskip("matplotlib")
FEW = BootstrapOptions(resamples=20)
LONG = [
    f"Scientificus longissimus {n} : Long-tailed and white-browed Warbler {n}" for n in range(60)
]
QUERIES = [
    "What is the common name for the focal species in the audio, and how sure are you of it?",
    *range(7),
]


def texts_of(figure: Any) -> list[tuple[str, Any]]:
    """Every text that is drawn, with the box that it fills."""
    figure.canvas.draw()
    axes = figure.axes[0]
    shown = [*axes.get_xticklabels(), *axes.get_yticklabels(), axes.xaxis.label, axes.yaxis.label]
    shown += [text for legend in figure.legends for text in legend.get_texts()]
    shown += axes.texts + ([figure._suptitle] if figure._suptitle else [])
    inside = [text for text in shown if text.get_text().strip() and in_range(text, axes)]
    return [(text.get_text(), text.get_window_extent()) for text in inside]


def in_range(text: Any, axes: Any) -> bool:
    """Whether it is drawn: matplotlib keeps ticks outside the axes and leaves them out."""
    for place, labels, limits in (
        (0, axes.get_xticklabels(), axes.get_xlim()),
        (1, axes.get_yticklabels(), axes.get_ylim()),
    ):
        low, high = sorted(limits)
        if text in labels and not low - 1e-9 <= text.get_position()[place] <= high + 1e-9:
            return False
    return True


@pytest.mark.parametrize("names", [["Owl", "Loon"], LONG], ids=["two", "sixty"])
def test_no_text_overlaps_another_or_the_edge(names: list[str]) -> None:
    rows = varied_rows(names=names, samples=60, queries=QUERIES, alphas=[0, 0.05, 0.35, 0.4, 1])
    rows += varied_rows(names=names, samples=60, dataset="cbi", queries=[0], alphas=[0, 0.4, 1.0])
    scores = score([write_answers(rows)], [protocol("strict")], bootstrap=FEW)
    charts = list(make_report(scores, bootstrap=FEW).charts())
    assert len({chart.key for chart in charts}) == len(charts)
    last = [chart for chart in charts if "query-6" in chart.key or "watkins-words" in chart.key]
    for chart in charts[:6] + last:
        figure = draw(chart)
        texts = texts_of(figure)
        for (one, box), (other, box2) in itertools.combinations(texts, 2):
            assert not overlap(box, box2), f"{chart.key}: {one!r} and {other!r}"
        for text, box in texts:
            assert box.x0 >= -1, f"{chart.key}: {text!r} is cut off"
            assert box.y0 >= -1, f"{chart.key}: {text!r} is cut off"
            assert box.x1 <= figure.bbox.width + 1, f"{chart.key}: {text!r} is cut off"
            assert box.y1 <= figure.bbox.height + 1, f"{chart.key}: {text!r} is cut off"


def overlap(a: Any, b: Any) -> bool:
    """Whether two boxes share more than a touch."""
    width = min(a.x1, b.x1) - max(a.x0, b.x0)
    height = min(a.y1, b.y1) - max(a.y0, b.y0)
    return bool(width > 1 and height > 1)


def test_pages_take_the_colours_of_light_or_dark() -> None:
    scores = score([write_answers(varied_rows())], [protocol("strict")], bootstrap=FEW)
    chart = make_report(scores, bootstrap=FEW).datasets[0].charts[0]
    alone = svg(draw(chart))
    inside = inline_svg(alone, "key", "title")
    assert set(re.findall(r"#[0-9a-f]{6}\b", alone)) <= set(LIGHT.values())
    assert not re.findall(r"#[0-9a-f]{6}\b", inside)
    roles = set(re.findall(r"var\(--([\w-]+)\)", inside))
    assert {"ink", "muted", "grid", "paper", "series-0", "series-1"} <= roles <= set(LIGHT)
    assert set(LIGHT) == set(DARK)
    sheet = style_sheet()
    assert all(sheet.count(f"--{role}:") == 2 for role in LIGHT)


# Machado, Oliveira and Fernandes (2009), severity 1.0, on linear RGB.
EYES = {
    "all": np.eye(3),
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritanopia": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}


def linear(color: str) -> Any:
    values = np.array([int(color[place : place + 2], 16) for place in (1, 3, 5)]) / 255
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def lab(rgb: Any) -> Any:
    to_xyz = [
        [0.4124, 0.3576, 0.1805],
        [0.2126, 0.7152, 0.0722],
        [0.0193, 0.1192, 0.9505],
    ]
    x, y, z = np.cbrt(np.array(to_xyz) @ np.clip(rgb, 0, 1) / [0.9505, 1.0, 1.089])
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("colors", [LIGHT, DARK], ids=["light", "dark"])
@pytest.mark.parametrize("eye", EYES)
def test_the_first_series_differ_for_every_eye(colors: dict[str, str], eye: str) -> None:
    """Three questions are the usual number; further ones differ by marks and dashes, too."""
    seen = [lab(np.array(EYES[eye]) @ linear(colors[f"series-{n}"])) for n in range(3)]
    for one, other in itertools.combinations(seen, 2):
        assert np.linalg.norm(one - other) > 17


@pytest.mark.parametrize("colors", [LIGHT, DARK], ids=["light", "dark"])
def test_lines_and_text_stand_out(colors: dict[str, str]) -> None:
    def luminance(color: str) -> float:
        return float(np.array([0.2126, 0.7152, 0.0722]) @ linear(color))

    paper = luminance(colors["paper"])
    for role, color in colors.items():
        if role in ("paper", "grid"):
            continue
        lighter, darker = sorted((luminance(color), paper), reverse=True)
        least = 3.0 if role.startswith("series") else 4.5
        assert (lighter + 0.05) / (darker + 0.05) >= least, role


def test_fitted() -> None:
    assert fitted("Short", 10) == "Short"
    assert fitted("Black-throated Green Warbler", 12) == "Black-throa…"
    assert fitted("one two three four", 9, 2) == "one two\n…ree four"
    assert fitted(f"{'a very long data set ' * 9}: accuracy", 30, 2).endswith("set : accuracy")
    assert fitted("bad\x00\nname", 20) == "bad name"
    assert fitted("", 5) == ""
