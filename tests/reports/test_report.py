"""Reports show what the metrics are: safe with hostile answers, offline, the same every time.

Figures can be read: nothing overlaps or is cut off, colours differ for every eye.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import itertools
import json
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from answer_files import Page, Undrawn, varied_rows, write_answers
from commands import beans, call, write_lines

from NatureLM.errors import UsageError
from NatureLM.evaluation.answers import ReadOptions, load_rows
from NatureLM.evaluation.metrics import BootstrapOptions, Estimate
from NatureLM.evaluation.protocols import protocol
from NatureLM.evaluation.score import Scores, score, score_answers
from NatureLM.reports import page as page_module
from NatureLM.reports.charts import CurveChart, Table
from NatureLM.reports.figures import DARK, LIGHT, draw, fitted, inline_svg, style_sheet, svg
from NatureLM.reports.page import latex, markdown, page
from NatureLM.reports.report import make_report

pytest.importorskip("rapidfuzz")
pytestmark = pytest.mark.usefixtures("own_folder")
pytest.importorskip("matplotlib")

FEW = BootstrapOptions(resamples=20)
SVG = "{http://www.w3.org/2000/svg}"
HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)> &amp; <!-- <b>"


def test_answers_are_text_whatever_they_hold(tmp_path: Path) -> None:
    rows = varied_rows(samples=12, alphas=[0.0, 1.0])
    for row in rows[:5]:
        row |= {"prediction": HOSTILE, "label": f"Owl {HOSTILE}", "prompt": HOSTILE}
    for row in rows:
        row["dataset_name"] = f"mine {HOSTILE}"
    rows[7]["prediction"] = "half a character \ud800 and \u2028 a line"
    out = tmp_path / "report"
    call(
        *("report", write_answers(rows), "--task", "classification"),
        *("--title", HOSTILE, "--output-path", out, "--resamples", 20),
    )
    shown = Page(out)
    tags = [tag for tag, _ in shown.tags]
    assert tags.count("script") == 3
    assert "img" not in tags
    assert not [name for _, attrs in shown.tags for name in attrs if name.startswith("on")]
    answers = json.loads(shown.scripts["answer-data"])
    assert HOSTILE in answers["texts"]
    assert "half a character \ud800 and \u2028 a line" in answers["texts"]
    assert any(HOSTILE in word for word in shown.words)
    checksum = hashlib.sha256(shown.scripts["code"].encode()).digest()
    (policy,) = [a["content"] for t, a in shown.tags if t == "meta" and "http-equiv" in a]
    assert f"'sha256-{base64.b64encode(checksum).decode()}'" in (policy or "")
    assert "innerHTML" not in shown.scripts["code"]
    assert all(re.fullmatch(r"[\w.-]+", path.name) for path in out.rglob("*.*"))


def test_the_page_needs_no_network_and_names_no_folder(folder: Path) -> None:
    text = (folder / "index.html").read_text()
    addresses = set(re.findall(r"https?://[^\s\"'<]+", text))
    assert addresses <= {"http://www.w3.org/1999/xlink", "http://www.w3.org/2000/svg"}
    assert not re.search(r'(?:src|href)="(?!#)', text)
    assert str(folder.parent) not in text
    assert "answers.jsonl" in text
    identities = re.findall(r'\bid="([^"]+)"', text)
    assert len(identities) == len(set(identities))
    for target in re.findall(r'href="#([^"]+)"', text) + re.findall(r"url\(#([^)]+)\)", text):
        assert target in identities
    figures = {
        suffix: {one.stem for one in folder.glob(f"figures/*{suffix}")}
        for suffix in (".svg", ".png")
    }
    assert figures[".svg"] == figures[".png"] == Page(folder).charts.keys()
    tables = [
        {one.stem for one in folder.glob(f"tables/*{suffix}")} for suffix in (".csv", ".md", ".tex")
    ]
    assert tables[0] == tables[1] == tables[2] > {"metrics", "form", "cbi-query-0-classes"}


def test_the_same_bytes_every_time(tmp_path: Path) -> None:
    path = write_answers(varied_rows(samples=18, queries=[0], alphas=[0.0, 1.0]))
    words = ["report", str(path), "--resamples", "20", "--output-path"]
    call(*words, tmp_path / "here")
    program = "from NatureLM.cli.main import naturelm; naturelm()"
    subprocess.run(
        [sys.executable, "-c", program, *words, str(tmp_path / "there")],
        env={**os.environ, "PYTHONHASHSEED": "77"},
        check=True,
        capture_output=True,
    )
    here, there = (
        {file.relative_to(out): file.read_bytes() for file in out.rglob("*") if file.is_file()}
        for out in (tmp_path / "here", tmp_path / "there")
    )
    assert here == there


def test_as_many_answers_as_asked_for_and_the_same_samples_everywhere() -> None:
    scores = score([write_answers(varied_rows())], [protocol("strict")], bootstrap=FEW)
    for limit, samples in ((100, 10), (3000, 36), (0, 0)):
        report = make_report(scores, most_answers=limit, bootstrap=FEW)
        shown = report.answers
        assert shown.samples == samples
        assert len(shown.data["rows"]) == shown.shown == samples * 10
        by_group: dict[int, list[str]] = {}
        for group, identity, *_ in shown.data["rows"]:
            by_group.setdefault(group, []).append(shown.data["texts"][identity])
        assert len({tuple(ids) for ids in by_group.values()}) <= 1
        if limit == 100:
            words = "".join(Page(page(report, Undrawn())).words)
            assert "100 of 360 answers are in this page" in words
    groups = [group for one in report.series for group in one.series.groups]
    for number, identity, label, answer, taken, right in shown_rows(scores):
        line_group = groups[number]
        place = line_group.ids.index(identity)
        assert (line_group.labels[place], line_group.answers[place]) == (label, answer)
        assert line_group.samples.predicted[place] == taken
        assert line_group.samples.correct[place] == right


def shown_rows(scores: Any) -> list[tuple[Any, ...]]:
    data = make_report(scores, most_answers=20, bootstrap=FEW).answers.data
    texts = data["texts"]
    return [(row[0], *(texts[place] for place in row[1:5]), row[5]) for row in data["rows"]]


def test_captions_are_neither_right_nor_wrong() -> None:
    """A caption without a word of the reference has CIDEr 0, which is a score and no verdict."""
    rows = varied_rows(samples=6, queries=[0], alphas=[1.0])
    captions = [
        row | {"dataset_name": "captioning", "label": f"A {row['label']} sings.", "prediction": "?"}
        for row in rows
    ]
    scores = score([write_answers(rows + captions)], [protocol("strict")], bootstrap=FEW)
    groups = make_report(scores, bootstrap=FEW).answers.data["groups"]
    assert [(dataset, is_caption) for dataset, _, _, is_caption in groups] == [
        ("captioning", True),
        ("watkins", False),
    ]


def test_without_matplotlib(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = write_answers(varied_rows(samples=6))
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    said = call("report", path, "--output-path", tmp_path / "report", ends=2)
    assert "pip install 'naturelm-audio[plots]'" in said
    assert not (tmp_path / "report").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--between", "1.0"], "--between 1.0: write two values"),
        (["--between", "1,1"], "are the same"),
        (["--between", "1.0,0.3"], "has no answers at α = 0.3; there are 0.0, 0.25"),
        (["--protocol", "papre"], "there is no protocol 'papre'"),
        (["--by", "id"], "cannot make groups"),
    ],
)
def test_wrong_requests(tmp_path: Path, words: list[str], message: str) -> None:
    path = write_answers(varied_rows(samples=6))
    assert message in call("report", path, "--output-path", tmp_path / "report", *words, ends=2)


def test_scores_of_several_protocols_are_refused() -> None:
    path = write_answers(varied_rows(samples=6))
    scores = score([path], [protocol("strict"), protocol("mention")], bootstrap=FEW)
    with pytest.raises(UsageError, match="a report shows one protocol"):
        make_report(scores)


def test_lines_that_are_left_out_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page_module, "_write_figures", lambda *_, **__: (Undrawn(), []))
    rows = varied_rows(samples=6, queries=[0], alphas=[1.0])
    rows[3]["prediction"] = None
    path, out = write_answers(rows), tmp_path / "report"
    call("report", path, "--output-path", out, ends=1)
    said = call("report", path, "--output-path", out, "--on-error", "skip")
    assert "1 line with errors left out" in said
    words = Page(out).words
    assert words[words.index("Lines left out") + 1] == "1"


def test_tables_are_escaped() -> None:
    table = Table(
        "t", "A & B_1", ("class", "a|b"), (("50 % *of* {x} \\ ~^", Estimate(0.5, 0.25, 1.0)),)
    )
    assert "\\*of\\*" in markdown(table)
    assert "| a\\|b |" in markdown(table)
    text = latex(table)
    assert "50 \\% *of* \\{x\\} \\textbackslash{} \\textasciitilde{}\\textasciicircum{}" in text
    assert "A \\& B\\_1" in text
    assert "0.500 [0.250, 1.000] \\\\" in text


@pytest.fixture(scope="module")
def two_sets() -> list[dict[str, Any]]:
    """Answers to two questions to two data sets at five α."""
    return varied_rows() + varied_rows(dataset="cbi", samples=24)


@pytest.fixture(scope="module")
def scores(two_sets: list[dict[str, Any]]) -> Scores:
    """Their scores."""
    return score_answers(load_rows(two_sets, ReadOptions()), [protocol("mention")], FEW)


@pytest.fixture(scope="module")
def folder(two_sets: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Their report, by the command."""
    made = tmp_path_factory.mktemp("report")
    path = write_lines(made / "answers.jsonl", two_sets)
    words = ("--protocol", "mention", "--resamples", 20, "--output-path", made / "report")
    assert "600 answers" in call("report", path, *words, by=beans)
    return made / "report"


def record(scores: Scores, dataset: str, query: int, alpha: float) -> dict[str, Any]:
    (found,) = [
        one
        for one in scores.records()
        if (one["dataset"], one["query"], one["lora_scale"]) == (dataset, query, alpha)
    ]
    return found


@pytest.mark.parametrize("metric", ["accuracy", "f1"])
def test_curves_are_the_metrics(scores: Scores, folder: Path, metric: str) -> None:
    charts = Page(folder).charts
    for dataset in ("watkins", "cbi"):
        chart = charts[f"{dataset}-{metric}"]
        assert [curve["name"] for curve in chart["curves"]] == ["query 0", "query 1"]
        for query, curve in enumerate(chart["curves"]):
            assert [point["alpha"] for point in curve["points"]] == [0.0, 0.25, 0.5, 0.75, 1.0]
            for point in curve["points"]:
                wanted = record(scores, dataset, query, point["alpha"])
                assert point["value"] == wanted[metric]
                assert [point["low"], point["high"]] == wanted["intervals"][metric]
        baseline = record(scores, dataset, 0, 0.0)["baselines"]["majority"][metric]
        assert chart["baselines"]["majority"] == baseline


def test_the_svg_shows_the_values(scores: Scores, folder: Path) -> None:
    """Read back from the drawing: marks stand where the ticks of the axis say."""
    root = ElementTree.parse(folder / "figures" / "watkins-accuracy.svg").getroot()
    heights = marks(root, "curve-1")
    wanted = [record(scores, "watkins", 1, a)["accuracy"] for a in (0.0, 0.25, 0.5, 0.75, 1.0)]
    assert len(set(wanted)) > 2
    bottom, top = level(root, "baseline-0"), level(root, "baseline-1")
    baselines = record(scores, "watkins", 1, 0.0)["baselines"]
    scale = (baselines["majority"]["accuracy"] - baselines["random"]["accuracy"]) / (bottom - top)
    found = [baselines["majority"]["accuracy"] + (y - bottom) * scale for y in heights]
    assert found == pytest.approx(wanted, abs=2e-3)


def marks(root: Any, gid: str) -> list[float]:
    """Heights of the marks of a curve."""
    (group,) = [one for one in root.iter(f"{SVG}g") if one.get("id") == gid]
    return [float(use.get("y")) for use in group.iter(f"{SVG}use")]


def level(root: Any, gid: str) -> float:
    """Height of a level line."""
    (group,) = [one for one in root.iter(f"{SVG}g") if one.get("id") == gid]
    (path,) = group.iter(f"{SVG}path")
    return float(re.findall(r"[\d.]+", path.get("d"))[1])


def test_bands_are_the_intervals(scores: Scores) -> None:
    chart = next(iter(make_report(scores, bootstrap=FEW).datasets[1].charts))
    assert isinstance(chart, CurveChart)
    figure = draw(chart)
    (band,) = [one for one in figure.axes[0].collections if one.get_gid() == "band-0"]
    corners = {(round(x, 9), round(y, 9)) for x, y in band.get_paths()[0].vertices}
    for point in chart.curves[0].points:
        assert (point.alpha, round(point.low or 0, 9)) in corners
        assert (point.alpha, round(point.high or 0, 9)) in corners


def test_heat_map_is_data_set_by_alpha(scores: Scores, folder: Path) -> None:
    chart = Page(folder).charts["datasets-query-1-accuracy"]
    assert chart["columns"] == ["0", "0.25", "0.5", "0.75", "1"]
    for dataset, values in zip(chart["rows"], chart["values"], strict=True):
        for alpha, value in zip(chart["columns"], values, strict=True):
            assert value == record(scores, dataset, 1, float(alpha))["accuracy"]
    assert set(chart["rows"]) == {"watkins", "cbi"}


def test_change_and_confusion_are_the_counts(scores: Scores, folder: Path) -> None:
    charts = Page(folder).charts
    lines = {
        (one.series.dataset, one.series.name): one.series for one in make_report(scores).series
    }
    line = lines["watkins", "query 0"]
    best = line.groups[line.best]
    adapted = line.groups[line.alphas.index(1.0)]
    before = {row.label: row for row in adapted.samples.class_rows()}
    after = {row.label: row for row in best.samples.class_rows()}
    shown = charts["watkins-query-0-change"]["classes"]
    assert len(shown) == 6
    for one in shown:
        assert (one["before"], one["after"]) == (before[one["name"]].f1, after[one["name"]].f1)
        assert one["support"] == 6
    changes = [one["after"] - one["before"] for one in shown]
    assert changes == sorted(changes, reverse=True)

    chart = charts["watkins-query-0-confusion"]
    counts = {(row.label, row.predicted): row.count for row in best.samples.confusion_rows()}
    for label, row, shares in zip(chart["rows"], chart["counts"], chart["values"], strict=True):
        assert sum(row) == 6
        for taken, count, share in zip(chart["columns"], row, shares, strict=True):
            assert count == counts.get((label, taken), 0)
            assert share == count / 6


def test_form_of_answers(folder: Path) -> None:
    charts = Page(folder).charts
    rows = [row for row in varied_rows() if row["query"] == 1]
    for place, alpha in enumerate((0.0, 0.25, 0.5, 0.75, 1.0)):
        texts = [row["prediction"] for row in rows if row["lora_scale"] == alpha]
        exact = np.mean([not text.startswith("It may") for text in texts])
        words = np.mean([len(text.split()) for text in texts])
        points = {
            name: charts[f"watkins-{name}"]["curves"][1]["points"][place]
            for name in ("is-label", "names-one", "words")
        }
        assert points["is-label"]["value"] == pytest.approx(exact)
        assert points["names-one"]["value"] == 1
        assert points["words"]["value"] == pytest.approx(words)
        assert points["words"]["low"] <= words <= points["words"]["high"]


def test_tables_hold_the_metrics(scores: Scores, folder: Path) -> None:
    with (folder / "tables" / "metrics.csv").open(newline="") as lines:
        table = list(csv.DictReader(lines))
    assert len(table) == 20
    for row in table:
        wanted = record(scores, row["data set"], int(row["question"][-1]), float(row["α"]))
        assert float(row["accuracy"]) == wanted["accuracy"]
        assert float(row["F1_low"]) == wanted["intervals"]["f1"][0]
    text = (folder / "tables" / "metrics.md").read_text()
    one = record(scores, "watkins", 0, 0.5)
    low, high = one["intervals"]["accuracy"]
    assert f"| {one['accuracy']:.3f} [{low:.3f}, {high:.3f}] |" in text
    latex = (folder / "tables" / "metrics.tex").read_text()
    assert latex.count("\\\\\n") == 21
    assert "$\\alpha$" in latex


def test_one_alpha_has_a_mark_for_each_question() -> None:
    path = write_answers(varied_rows(alphas=[1.0], queries=["plain", "a question in words"]))
    scores = score([path], [protocol("strict")], bootstrap=FEW)
    report = make_report(scores, bootstrap=FEW)
    figure = draw(report.datasets[0].charts[0])
    marks = {
        line.get_gid(): line.get_xdata()[0]
        for line in figure.axes[0].lines
        if str(line.get_gid()).startswith("curve")
    }
    values = [line.groups[0].metrics["accuracy"] for line in (one.series for one in report.series)]
    assert [marks["curve-0"], marks["curve-1"]] == values
    keys = [chart.key for chart in report.charts()]
    assert not [key for key in keys if "change" in key]


@pytest.mark.parametrize("task", ["detection", "captioning"])
def test_other_tasks(task: str) -> None:
    rows = [
        {
            "prediction": ("Owl, Loon", "None", "Owl, Frog", "a frog")[(number + shift) % 4],
            "label": ("Owl, Loon", "None", "Owl", "Loon")[number % 4],
            "id": number,
            "dataset_name": "mine",
            "task": task,
            "lora_scale": float(shift),
            "query": 0,
        }
        for shift in (0, 1)
        for number in range(20)
    ]
    scores = score([write_answers(rows)], [protocol("beans-zero")], bootstrap=FEW)
    charts = Page(page(make_report(scores, bootstrap=FEW), Undrawn())).charts
    metric = {"detection": "f1", "captioning": "cider"}[task]
    points = charts[f"mine-{metric}"]["curves"][0]["points"]
    assert [point["value"] for point in points] == [
        group.metrics[metric] for group in scores.groups
    ]
    if task == "detection":
        values = [p["value"] for p in charts["mine-is-label"]["curves"][0]["points"]]
        assert values == [0.5, 0.5]


def test_a_detection_without_any_label() -> None:
    """Nothing is heard anywhere, so F1 is not defined, and the sets that agree are counted."""
    rows = varied_rows(samples=6, dataset="gibbons", queries=[0], alphas=[0.0, 1.0])
    for number, row in enumerate(rows):
        row |= {"label": "None", "prediction": "None" if number % 3 else "Hoolock"}
    report = make_report(score([write_answers(rows)], [protocol("beans-zero")], bootstrap=FEW))
    (line,) = (one.series for one in report.series)
    assert line.main_metric == "accuracy"
    charts = {chart.key: chart for chart in report.charts()}
    assert "gibbons-accuracy" in charts
    assert "gibbons-f1" not in charts
    text = page(report, Undrawn())
    assert "accuracy is highest at" in text
    assert "nan" not in text.lower().split("<main")[1].split("<script")[0]


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


def luminance(color: str) -> float:
    return float(np.array([0.2126, 0.7152, 0.0722]) @ linear(color))


@pytest.mark.parametrize("colors", [LIGHT, DARK], ids=["light", "dark"])
def test_shades_differ_for_every_eye_and_in_grey(colors: dict[str, str]) -> None:
    """Ever darker on light pages, ever brighter on dark ones: no hue is needed."""
    roles = ["quiet", *(f"heard-{n}" for n in range(1, 6))]
    found = sorted((luminance(colors[role]) + 0.05 for role in roles), reverse=colors is LIGHT)
    assert found == [luminance(colors[role]) + 0.05 for role in roles]
    assert min(max(a, b) / min(a, b) for a, b in itertools.pairwise(found)) > 1.3


@pytest.mark.parametrize("colors", [LIGHT, DARK], ids=["light", "dark"])
def test_lines_and_text_stand_out(colors: dict[str, str]) -> None:
    paper = luminance(colors["paper"])
    for role, color in colors.items():
        if role in ("paper", "grid", "quiet") or role.startswith("heard"):  # areas
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
