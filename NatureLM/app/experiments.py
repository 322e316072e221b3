"""The tab Experiments: accuracy against α, classes and single answers of a run or scored folder.

A run holds answers, which are scored here; a scored folder holds what `beans score` wrote. Every
text of them is escaped, and no file outside the folder of runs is ever given.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import lru_cache
from html import escape
from itertools import takewhile
from pathlib import Path
from typing import Any

import gradio as gr

from NatureLM.app.context import AppContext
from NatureLM.app.jobs import JOBS_FOLDER
from NatureLM.app.ui import HIDDEN, answers_table, html, notice, on_page_load
from NatureLM.audio import AUDIO_SUFFIXES
from NatureLM.data.components import METRICS_OF, metric_name
from NatureLM.data.table import read_table
from NatureLM.errors import NatureLMError, UsageError
from NatureLM.evaluation.metrics import Estimate
from NatureLM.reports.charts import Cell, Curve, CurveChart, Point, Table, cell_text
from NatureLM.results.tables import with_formula
from NatureLM.util import parse_json

ANSWER_HEADERS = ("Sample", "α", "Right", "Answer", "Label", "Taken for", "Question")
_SCORES = "metrics.json"
_DEEPEST = 4
_MOST_FOLDERS = 500
_MOST_ANSWERS = 2000  # of a run, and rows of a table on the page
_MOST_CLIPS = 100_000
_SAME_AGAIN = "reference_layout"  # copies of a run's answers in another layout
_BASELINES = {"majority": "always the same answer", "random": "random"}
_ALL = "all"
_NOTHING = (
    "There is no run below {} yet. <code>naturelm infer</code> with an experiment's configuration, "
    "<code>beans</code> and <code>beans score</code> make some."
)


def build(context: AppContext) -> None:
    """Put the tab's components into the page."""
    runs = context.runs_dir.name
    with gr.Row(equal_height=False):
        run = gr.Dropdown(
            [],
            label="Run or scored folder",
            info="Folders with answers or scores below the folder of runs.",
            elem_id="experiments-run",
            scale=6,
            min_width=240,
        )
        refresh = gr.Button(
            "Look again", size="sm", elem_id="experiments-refresh", scale=0, min_width=120
        )
    problem = html(elem_id="experiments-problem", elem_classes=["quiet"])
    with gr.Column(visible=False, elem_id="experiments-panel") as panel:
        facts = html(elem_id="experiments-facts")
        charts = html(elem_id="experiments-charts")
        html("<h2>Numbers</h2>")
        metrics = answers_table("experiments-metrics", (), 360)
        line = gr.Dropdown([], label="Classes of", elem_id="experiments-line", min_width=240)
        classes = answers_table("experiments-classes", (), 360)
        with gr.Column(visible=False) as single:
            html("<h2>Answers</h2>")
            with gr.Row():
                alpha = gr.Dropdown(
                    [_ALL], value=_ALL, label="α", elem_id="experiments-alpha", min_width=120
                )
                words = gr.Textbox(
                    "", label="Filter", placeholder="owl", elem_id="experiments-filter"
                )
                wrong = gr.Checkbox(
                    False, label="Only wrong ones", elem_id="experiments-wrong", min_width=120
                )
            answers = answers_table("experiments-answers", ANSWER_HEADERS, 360)
            audio = gr.Audio(
                visible=False, interactive=False, label="Sample", elem_id="experiments-audio"
            )
            heard = html(elem_id="experiments-heard", elem_classes=["quiet"])

    shown = [problem, panel, facts, charts, metrics, line, classes, single, alpha, answers, audio]

    def files_of(name: str) -> tuple[Path, ...]:
        """The files of a folder in the list as it is now: names are never paths."""
        try:
            return find_experiments(context.runs_dir)[name]
        except KeyError:
            raise UsageError("This folder is not there any more: look again.") from None

    def listed() -> Any:
        names = list(find_experiments(context.runs_dir))
        said = "" if names else f'<p class="job-empty">{_NOTHING.format(escape(runs))}</p>'
        return gr.Dropdown(choices=names, value=None), said

    def opened(name: str | None) -> dict[Any, Any]:
        if not name:
            return {problem: gr.skip()}
        try:
            experiment = open_experiment(name, files_of(name))
        except (NatureLMError, OSError) as error:
            return {problem: notice(str(error)), panel: gr.Column(visible=False)}
        lines = list(experiment.classes)
        first = lines[0] if lines else None
        alphas = sorted({row[1] for row in experiment.answers if row[1]}, key=float)
        return {
            problem: "",
            panel: gr.Column(visible=True),
            facts: facts_html(experiment),
            charts: charts_html(experiment),
            metrics: table_value(experiment.metrics),
            line: gr.Dropdown(choices=lines, value=first, visible=bool(lines)),
            classes: classes_of(experiment, first),
            single: gr.Column(visible=bool(experiment.answers)),
            alpha: gr.Dropdown(choices=[_ALL, *alphas], value=_ALL),
            answers: answer_rows(experiment, _ALL, "", False),
            audio: gr.Audio(value=None, visible=False),
        }

    def classes_of(experiment: Experiment, wanted: str | None) -> gr.Dataframe:
        table = experiment.classes.get(wanted or "")
        if table is None:
            return gr.Dataframe(visible=False)
        return gr.Dataframe(value=table_value(table), visible=True)

    def other_line(name: str, wanted: str | None) -> Any:
        return classes_of(open_experiment(name, files_of(name)), wanted)

    def filtered(name: str, share: str, text: str, is_wrong: bool) -> Any:
        return answer_rows(open_experiment(name, files_of(name)), share, text, is_wrong)

    def listen(name: str, select: gr.SelectData) -> list[Any]:
        sample = str((select.row_value or [""])[0])
        try:
            path = find_audio(sample, files_of(name)[0].parent, context.runs_dir)
        except (NatureLMError, OSError):
            path = None
        if path is None:
            said = f"There is no recording of {sample} beside the run."
            return [gr.Audio(value=None, visible=False), notice(said, "hint")]
        return [gr.Audio(value=str(path), label=sample, visible=True), ""]

    refresh.click(listed, None, [run, problem], **HIDDEN)
    on_page_load(listed, [run, problem])
    run.change(opened, [run], shown, show_progress="minimal", api_visibility="private")
    line.input(other_line, [run, line], [classes], **HIDDEN)
    for changed in (alpha.input, words.change, wrong.input):
        changed(filtered, [run, alpha, words, wrong], [answers], **HIDDEN)
    answers.select(listen, [run], [audio, heard], **HIDDEN)


def facts_html(experiment: Experiment) -> str:
    facts = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>"
        for name, value in experiment.facts.items()
    )
    remark = f'<p class="about">{escape(experiment.remark)}</p>' if experiment.remark else ""
    return f'<h2>{escape(experiment.name)}</h2><dl class="facts">{facts}</dl>{remark}'


def charts_html(experiment: Experiment) -> str:
    """The curves as drawings, each with its numbers as data."""
    from NatureLM.reports.figures import draw, inline_svg, need_matplotlib, svg

    if not experiment.charts:
        return ""
    try:
        need_matplotlib()
    except UsageError as error:
        return f'<p class="notice hint">{escape(str(error))}</p>'

    def figure(chart: CurveChart) -> str:
        drawn = inline_svg(svg(draw(chart)), chart.key, escape(chart.title, quote=True))
        numbers = escape(json.dumps([asdict(curve) for curve in chart.curves]), quote=True)
        return f'<figure data-chart="{escape(chart.key)}" data-curves="{numbers}">{drawn}</figure>'

    return f'<div class="figures">{"".join(map(figure, experiment.charts))}</div>'


def table_value(table: Table) -> dict[str, Any]:
    return {
        "headers": list(table.columns),
        "data": [
            [cell if isinstance(cell, int | str) else cell_text(cell) for cell in row]
            for row in table.rows[:_MOST_ANSWERS]
        ],
    }


def answer_rows(experiment: Experiment, alpha: str, words: str, only_wrong: bool) -> dict[str, Any]:
    """Single answers under `ANSWER_HEADERS`.

    alpha: only at this α; words: only those with all of them; only_wrong: none that is right
    """
    wanted = (words or "").casefold().split()
    rows = []
    for row in experiment.answers:
        sample, share, right, *rest = row
        text = " ".join([sample, *rest]).casefold()
        is_at = alpha in (_ALL, share) and not (only_wrong and right != "no")
        if is_at and all(word in text for word in wanted):
            rows.append(list(row))
    return {"headers": list(ANSWER_HEADERS), "data": rows[:_MOST_ANSWERS]}


@dataclass(frozen=True)
class Experiment:
    """What is shown.

    facts: what was read and how, by name
    charts: curves over α
    classes: the table of classes of each line (data set and question), by its name
    answers: single answers under `ANSWER_HEADERS`, the same samples at every α; of captions, which
        are neither right nor wrong, `Right` is empty; none for a scored folder
    remark: what should be known besides
    """

    name: str
    facts: dict[str, str]
    charts: tuple[CurveChart, ...]
    metrics: Table
    classes: dict[str, Table]
    answers: tuple[tuple[str, ...], ...] = ()
    remark: str = "This folder holds scores; single answers are in the folder of the run."


def find_experiments(folder: Path) -> dict[str, tuple[Path, ...]]:
    """Files of runs (answers) and of scored folders (scores) by the name of their folder.

    Names are paths below `folder`. The jobs of the app are not among them; links are not followed.
    """
    found: dict[str, tuple[Path, ...]] = {}
    for root, folders, _ in os.walk(folder):
        place = Path(root)
        name = place.relative_to(folder)
        folders[:] = sorted(
            one
            for one in folders
            if len(name.parts) < _DEEPEST
            and not one.startswith(".")
            and one not in (JOBS_FOLDER, _SAME_AGAIN)
        )
        scores = place / _SCORES
        answers = [path for path in sorted(place.glob("*.jsonl")) if _holds_answers(path)]
        files = (scores,) if scores.is_file() else tuple(answers)
        if files:
            found[str(name)] = files
        if len(found) >= _MOST_FOLDERS:
            break
    return found


def _holds_answers(path: Path) -> bool:
    """Whether the first row is an answer that can be scored."""
    if path.is_symlink():
        return False
    try:
        with open(path, "rb") as file:
            row = parse_json(file.readline(1 << 20))
    except (OSError, ValueError):
        return False
    return isinstance(row, dict) and {"prediction", "label", "id"} <= row.keys()


def open_experiment(name: str, files: tuple[Path, ...]) -> Experiment:
    """Read a folder of `find_experiments`; a second time only when its files have changed.

    Raises UsageError and OutputError for files that cannot be scored.
    """
    changed = tuple((one.st_size, one.st_mtime_ns) for one in (path.stat() for path in files))
    return _open(name, files, changed)


@lru_cache(maxsize=8)
def _open(name: str, files: tuple[Path, ...], changed: object) -> Experiment:
    return _scored(name, files[0]) if files[0].name == _SCORES else _run(name, files)


def _run(name: str, files: tuple[Path, ...]) -> Experiment:
    from NatureLM.evaluation.protocols import protocol
    from NatureLM.evaluation.score import score
    from NatureLM.reports.report import make_report

    scores = score([str(path) for path in files], [protocol("beans-zero")], on_error="skip")
    report = make_report(
        scores, title=name, sources=[path.name for path in files], most_answers=_MOST_ANSWERS
    )
    shown = report.answers
    remark = "; ".join(report.remarks)
    if shown.shown < shown.total:
        remark = f"{shown.shown:,} of {shown.total:,} answers can be read here. {remark}".strip()
    return Experiment(
        name=name,
        facts=report.facts,
        charts=tuple(chart for dataset in report.datasets for chart in dataset.charts),
        metrics=report.metrics,
        classes={
            f"{one.series.dataset}, {one.series.name}": one.classes
            for one in report.series
            if one.classes is not None and one.classes.rows
        },
        answers=tuple(_answers(shown.data)),
        remark=remark,
    )


def _answers(data: dict[str, list[list[Any]]]) -> Iterator[tuple[str, ...]]:
    """Single answers from the form in which the page of a report holds them."""
    groups, texts = data["groups"], data["texts"]
    for group, *places, score in data["rows"]:
        dataset, line, alpha, is_caption = groups[group]
        sample, label, answer, taken = (str(texts[place]) for place in places)
        share = f"{alpha:g}" if isinstance(alpha, int | float) else ""
        right = "" if is_caption else ("yes" if score == 1 else "no")
        yield sample, share, right, answer, label, taken, f"{dataset}, {line}"


def _scored(name: str, path: Path) -> Experiment:
    """The scores of the folder of a `metrics.json`. Raises UsageError where it is none."""
    try:
        records = parse_json(path.read_text(encoding="utf-8"))
        lines: dict[tuple[str, str], list[_Score]] = {}
        for record in records:
            key = str(record["dataset"]), _line(record)
            lines.setdefault(key, []).append(_Score.read(record))
        charts = tuple(_charts(lines))
        rows: tuple[tuple[Cell, ...], ...] = tuple(
            (*key, one.point.alpha, one.samples, metric_name(one.metric), one.value)
            for key, some in lines.items()
            for one in some
        )
    except (OSError, ValueError, KeyError, TypeError):
        raise UsageError(f"{path.name}: this is no file of scores of `beans score`") from None
    if not rows:
        raise UsageError(f"{path.name}: there is no score in it")
    columns = ("data set", "question", "α", "n", "metric", "value")
    return Experiment(
        name=name,
        facts={
            "Scores": f"{len(rows):,} groups",
            "Protocol": str(records[0].get("protocol", "-")),
        },
        charts=charts,
        metrics=Table("metrics", "Metrics", columns, rows, frozenset({"value"})),
        classes=_class_tables(path.with_name("per_class.csv")),
    )


@dataclass(frozen=True)
class _Score:
    """The main metric of a record of `metrics.json`."""

    metric: str
    samples: int
    value: Estimate | None
    point: Point
    baselines: dict[str, float]

    @classmethod
    def read(cls, record: Mapping[str, Any]) -> _Score:
        metric, alpha = METRICS_OF[record["task"]][0], record.get("lora_scale")
        value, interval = record[metric], (record.get("intervals") or {}).get(metric)
        low, high = interval or (None, None)
        return cls(
            metric,
            int(record["n"]),
            None if value is None else Estimate(value, *(interval or ())),
            Point(None if alpha is None else float(alpha), float(value or 0.0), low, high),
            {
                _BASELINES.get(name, name): float(values[metric])
                for name, values in (record.get("baselines") or {}).items()
                if values.get(metric) is not None
            },
        )


def _line(record: Mapping[str, Any]) -> str:
    """The question: what tells groups of a data set apart, but α, stands before the protocol."""
    named = [
        f"{name} {value}"
        for name, value in takewhile(lambda item: item[0] != "protocol", record.items())
        if name not in ("dataset", "lora_scale") and value is not None
    ]
    return ", ".join(named) or "all answers"


def _charts(lines: Mapping[tuple[str, str], list[_Score]]) -> Iterator[CurveChart]:
    """The main metric of every data set and task, a curve for each question."""
    alike: dict[tuple[str, str], dict[str, list[_Score]]] = {}
    for (dataset, line), scores in lines.items():
        alike.setdefault((dataset, scores[0].metric), {})[line] = scores
    for number, ((dataset, metric), some) in enumerate(alike.items()):
        yield CurveChart(
            key=f"scored-{number}",
            title=f"{dataset}: {metric_name(metric)}",
            measure=metric_name(metric),
            curves=tuple(
                Curve(line, tuple(sorted((one.point for one in scores), key=_alpha)))
                for line, scores in some.items()
            ),
            baselines=next(iter(some.values()))[0].baselines,
            is_share=metric != "cider",
        )


def _alpha(point: Point) -> float:
    return point.alpha or 0.0


def _class_tables(path: Path) -> dict[str, Table]:
    """The classes of each data set of a `per_class.csv`; none where it is not there."""
    try:
        with open(path, encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file, restval=""))
    except (OSError, ValueError, csv.Error):
        return {}
    found: dict[str, list[tuple[Cell, ...]]] = {}
    for row in rows:
        row.pop(None, None)  # cells beyond the last column
        dataset = with_formula(row.pop("dataset", ""))
        found.setdefault(dataset, []).append(tuple(map(_number, row.values())))
    columns = tuple(rows[0]) if rows else ()
    return {
        name: Table(f"classes-{number}", f"Classes of {name}", columns, tuple(some))
        for number, (name, some) in enumerate(found.items())
    }


def _number(cell: str) -> Cell:
    for kind in (int, float):
        with suppress(ValueError):
            return kind(cell)
    return with_formula(cell)


def find_audio(sample: str, run: Path, root: Path) -> Path | None:
    """The file of a sample, or None.

    sample: its id, as the answers have it; run: the folder of the answers; root: no file outside
    of it is ever given

    Benchmarks keep their clips beside the answers, under a `metadata.jsonl` with ids and files.
    """
    places = [run, *sorted(path for path in run.iterdir() if path.is_dir())]
    if run != root:
        places += sorted(path for path in run.parent.iterdir() if path.is_dir() and path != run)
    for place in places:
        try:
            for number, row in read_table(place / "metadata.jsonl").rows:
                if number > _MOST_CLIPS:
                    break
                if str(row.get("id")) == sample:
                    return _clip_of(row, place, root)
        except (NatureLMError, OSError, UnicodeDecodeError):
            continue
    return None


def _clip_of(row: dict[str, Any], folder: Path, root: Path) -> Path | None:
    for name in ("file_name", "path", "file", "audio_path"):
        value = row.get(name)
        if isinstance(value, str) and value:
            path = (folder / value).resolve()
            is_inside = path.is_relative_to(root.resolve())
            is_audio = path.suffix.lower() in AUDIO_SUFFIXES and path.is_file()
            return path if is_inside and is_audio else None
    return None
