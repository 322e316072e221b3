"""The tab Experiments: accuracy against α, classes and single answers of a run or scored folder."""

from __future__ import annotations

from html import escape
from typing import Any

from NatureLM.app.context import AppContext
from NatureLM.app.events import handler
from NatureLM.app.experiments import Experiment, Found, find_experiments, open_experiment
from NatureLM.app.experiments.audio import find_audio
from NatureLM.app.player import notice
from NatureLM.app.tabs.experiment_shown import (
    ANSWER_HEADERS,
    answer_rows,
    charts_html,
    facts_html,
    table_value,
)
from NatureLM.app.tabs.loading import on_page_load
from NatureLM.errors import NatureLMError, UsageError

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
