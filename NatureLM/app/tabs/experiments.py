"""An experiment as HTML and tables; every text of a run is escaped.

The tab Experiments: accuracy against α, classes and single answers of a run or scored folder.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from html import escape
from typing import Any

from NatureLM.app.experiments import (
    Answer,
    Experiment,
    Found,
    find_audio,
    find_experiments,
    open_experiment,
)
from NatureLM.app.player import handler, notice
from NatureLM.app.settings import AppContext
from NatureLM.app.tabs.job_form import on_page_load
from NatureLM.errors import NatureLMError, UsageError
from NatureLM.reports.charts import CurveChart
from NatureLM.reports.tables import Table, cell_text

ANSWER_HEADERS = ("Sample", "α", "Right", "Answer", "Label", "Taken for", "Question")
MOST_ROWS = 2000


def facts_html(experiment: Experiment) -> str:
    """What was read, and how."""
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
    """A table of a report as the component shows it."""
    return {
        "headers": list(table.columns),
        "data": [[_cell(cell) for cell in row] for row in table.rows[:MOST_ROWS]],
    }


def answer_rows(
    answers: Sequence[Answer], alpha: float | None, words: str, only_wrong: bool
) -> dict[str, Any]:
    """Single answers under `ANSWER_HEADERS`.

    alpha: only at this α; words: only those with all of them; only_wrong: none that is right
    """
    wanted = (words or "").casefold().split()
    rows = []
    for one in answers:
        text = f"{one.sample} {one.answer} {one.label} {one.taken_for} {one.line}".casefold()
        if alpha is not None and one.alpha != alpha:
            continue
        if (only_wrong and one.right is not False) or not all(word in text for word in wanted):
            continue
        right = {True: "yes", False: "no", None: ""}[one.right]
        share = "" if one.alpha is None else f"{one.alpha:g}"
        rows.append([one.sample, share, right, one.answer, one.label, one.taken_for, one.line])
    return {"headers": list(ANSWER_HEADERS), "data": rows[:MOST_ROWS]}


def _cell(cell: Any) -> Any:
    return cell if isinstance(cell, int | str) else cell_text(cell)


_ALL = "all"
_NOTHING = (
    "There is no run below {} yet. <code>naturelm infer</code> with an experiment's configuration, "
    "<code>beans</code> and <code>beans score</code> make some."
)


def build(context: AppContext) -> None:
    """Put the tab's components into the page."""
    import gradio as gr

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
    problem = gr.HTML("", elem_id="experiments-problem", elem_classes=["quiet"], js_on_load=None)
    with gr.Column(visible=False, elem_id="experiments-panel") as panel:
        facts = gr.HTML("", elem_id="experiments-facts", js_on_load=None)
        charts = gr.HTML("", elem_id="experiments-charts", js_on_load=None)
        gr.HTML("<h2>Numbers</h2>", js_on_load=None)
        metrics = _table("experiments-metrics")
        line = gr.Dropdown([], label="Classes of", elem_id="experiments-line", min_width=240)
        classes = _table("experiments-classes")
        with gr.Column(visible=False) as single:
            gr.HTML("<h2>Answers</h2>", js_on_load=None)
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
            answers = _table("experiments-answers")
            audio = gr.Audio(
                visible=False, interactive=False, label="Sample", elem_id="experiments-audio"
            )
            heard = gr.HTML(
                "", elem_id="experiments-heard", elem_classes=["quiet"], js_on_load=None
            )

    shown = [problem, panel, facts, charts, metrics, line, classes, single, alpha, answers, audio]

    def found(name: str) -> Found:
        """The folder of this name, from the list as it is now: names are never paths."""
        for one in find_experiments(context.runs_dir):
            if one.name == name:
                return one
        raise UsageError("This folder is not there any more: look again.")

    def listed() -> Any:
        names = [one.name for one in find_experiments(context.runs_dir)]
        said = "" if names else _nothing(context)
        return gr.Dropdown(choices=names, value=None), said

    def opened(name: str | None) -> list[Any]:
        if not name:
            return [gr.skip() for _ in shown]
        try:
            experiment = open_experiment(found(name))
        except (NatureLMError, OSError) as error:
            return [notice(str(error)), gr.Column(visible=False), *[gr.skip()] * (len(shown) - 2)]
        lines = list(experiment.classes)
        first = lines[0] if lines else None
        alphas = sorted({one.alpha for one in experiment.answers if one.alpha is not None})
        return [
            "",
            gr.Column(visible=True),
            facts_html(experiment),
            charts_html(experiment),
            table_value(experiment.metrics),
            gr.Dropdown(choices=lines, value=first, visible=bool(lines)),
            _classes(experiment, first),
            gr.Column(visible=bool(experiment.answers)),
            gr.Dropdown(choices=[_ALL, *(f"{one:g}" for one in alphas)], value=_ALL),
            answer_rows(experiment.answers, None, "", False),
            gr.Audio(value=None, visible=False),
        ]

    def other_line(name: str, wanted: str | None) -> Any:
        return _classes(open_experiment(found(name)), wanted)

    def filtered(name: str, share: str, text: str, is_wrong: bool) -> Any:
        at = None if share == _ALL else float(share)
        return answer_rows(open_experiment(found(name)).answers, at, text, is_wrong)

    @handler
    def listen(name: str, select: Any) -> list[Any]:
        sample = str((select.row_value or [""])[0])
        try:
            folder = found(name).files[0].parent
            path = find_audio(sample, folder, context.runs_dir)
        except (NatureLMError, OSError):
            path = None
        if path is None:
            said = f"There is no recording of {sample} beside the run."
            return [gr.Audio(value=None, visible=False), notice(said, "hint")]
        return [gr.Audio(value=str(path), label=sample, visible=True), ""]

    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    refresh.click(listed, None, [run, problem], **quiet)
    on_page_load(listed, [run, problem])
    run.change(opened, [run], shown, show_progress="minimal", api_visibility="private")
    line.input(other_line, [run, line], [classes], **quiet)
    for listen_to in (alpha.input, words.change, wrong.input):
        listen_to(filtered, [run, alpha, words, wrong], [answers], **quiet)
    answers.select(listen, [run], [audio, heard], **quiet)


def _table(name: str) -> Any:
    import gradio as gr

    headers = list(ANSWER_HEADERS) if name.endswith("answers") else []
    return gr.Dataframe(
        headers=headers or None,
        interactive=False,
        wrap=True,
        max_height=360,
        show_label=False,
        elem_id=name,
        elem_classes=["answers-table"],
        buttons=[],
    )


def _classes(experiment: Experiment, line: str | None) -> Any:
    import gradio as gr

    table = experiment.classes.get(line or "")
    if table is None:
        return gr.Dataframe(visible=False)
    return gr.Dataframe(value=table_value(table), visible=True)


def _nothing(context: AppContext) -> str:
    return f'<p class="job-empty">{_NOTHING.format(escape(str(context.settings.runs_dir)))}</p>'
