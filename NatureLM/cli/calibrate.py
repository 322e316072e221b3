"""`naturelm calibrate`: makes confidences mean what they say, on recordings with known answers."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from NatureLM.cli import options as of_model
from NatureLM.cli import options as options_of
from NatureLM.errors import UsageError

if TYPE_CHECKING:
    from NatureLM.data.sample import Sample
    from NatureLM.experiments.calibrate import Reliability, Scored

logger = logging.getLogger(__name__)
_DATA = "Recordings with known answers"
_OUTPUT = "Output"


def calibrate(
    table: Annotated[
        str,
        typer.Argument(
            help="A table with the columns path and label (.csv, .jsonl, .parquet), or a folder "
            "with one.",
            show_default=False,
        ),
    ],
    where: options_of.Where = None,
    test_where: Annotated[
        list[str] | None,
        typer.Option(
            metavar="COLUMN=VALUE",
            help="Rows to measure on, such as split=test; they should be others.",
            show_default="the rows that it is fitted to",
            rich_help_panel=_DATA,
        ),
    ] = None,
    column: options_of.Column = None,
    species_list: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|NAMES|PRESET",
            help="The labels to choose from.",
            show_default="the labels of the table",
            rich_help_panel=_DATA,
        ),
    ] = None,
    query: Annotated[
        str | None,
        typer.Option(
            "--query",
            "-q",
            help="What to ask of every recording.",
            show_default="the question for the name of the species",
            rich_help_panel=_DATA,
        ),
    ] = None,
    normalize: Annotated[
        str,
        typer.Option(
            metavar="sum|mean|prior",
            help="How labels are made comparable: by log-likelihood, by that of a token, or by "
            "what the sound adds.",
            rich_help_panel=of_model.MODEL,
        ),
    ] = "sum",
    model: of_model.ModelName = "naturelm-tiny",
    adapter: of_model.Adapter = None,
    merging_alpha: Annotated[
        float, typer.Option(help="Share of the adapter.", rich_help_panel=of_model.MODEL)
    ] = 1.0,
    device: of_model.Device = "auto",
    dtype: of_model.Dtype = "auto",
    output_path: Annotated[
        Path | None,
        typer.Option(
            "--output-path",
            "--output",
            help="File for the calibration.",
            show_default="calibration.json in the folder of the model",
            rich_help_panel=_OUTPUT,
        ),
    ] = None,
    figure: Annotated[
        Path | None,
        typer.Option(
            help="File (.svg) for a reliability diagram.",
            show_default=False,
            rich_help_panel=_OUTPUT,
        ),
    ] = None,
) -> None:
    """Fit the temperature that makes the confidence in species mean what it says.

    naturelm calibrate clips.csv --where split=valid --test-where split=test

    `naturelm infer --species-list ...` then uses it wherever the model is used at this α.
    """
    from NatureLM.cli.request import device_option, dtype_option
    from NatureLM.config import Config
    from NatureLM.experiments.calibrate import fit_calibration, measure
    from NatureLM.generation.labels import check_normalize

    check_normalize(normalize)
    if query is not None and not query.strip():
        raise UsageError("--query is empty: give a question, or leave the option out")
    target = _target(output_path, model)
    if figure is not None:
        _check_figure(figure)
    samples = _samples(table, column or (), where or ())
    others = _samples(table, column or (), test_where) if test_where else None
    names, asked = _question(samples, species_list, query)
    choice = of_model.ModelChoice(
        model, adapter, device_option(device), dtype_option(dtype), Config()
    )
    scored, tested = _score(choice, samples, others, names, asked, merging_alpha, normalize)
    found = fit_calibration(
        scored[0],
        scored[1],
        asked,
        alpha=merging_alpha,
        normalize=normalize,  # type: ignore[arg-type]
    )
    before, after = measure(tested, 1.0), measure(tested, found.temperature)
    if found.is_at_the_edge:
        _note(
            f"Note: the temperature is as far as it goes, {found.temperature:g}: "
            f"{found.samples} recordings do not say how sure the model should be. Take more, "
            "among them some that it gets wrong"
        )
    _write(found, target)
    if figure is not None:
        _draw(figure, before, after)
    _show(before, after, fitted=len(scored[1]), on_others=others is not None)
    typer.echo(f"Calibration: {target}")


def _target(output_path: Path | None, model: str) -> Path:
    """Where the calibration goes."""
    from NatureLM.inference.calibration import beside_model

    target = output_path or beside_model(model)
    if target is None:
        raise UsageError(f"{model} is no folder on this machine: say where with --output-path")
    return target


def _check_figure(path: Path) -> None:
    from NatureLM.reports.figures import need_matplotlib

    if path.suffix.lower() != ".svg":
        raise UsageError(f"--figure is {path}, and its name must end in .svg")
    need_matplotlib()


def _samples(table: str, columns: Sequence[str], where: Sequence[str]) -> tuple[Sample, ...]:
    from NatureLM.config.base import TableSource
    from NatureLM.data.sample import open_samples

    source = TableSource(
        path=table, columns=_pairs("--column", columns), where=dict(_pairs("--where", where))
    )
    return open_samples(source).samples


def _pairs(option: str, texts: Sequence[str]) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not (name.strip() and equals and value.strip()):
            example = "label=common_name" if option == "--column" else "split=valid"
            raise UsageError(f"{option} {text}: write it as {example}")
        pairs[name.strip()] = value.strip()
    return pairs


def _question(
    samples: Sequence[Sample], species_list: str | None, query: str | None
) -> tuple[tuple[str, ...], str]:
    """The labels to choose from, and what is asked."""
    from NatureLM.species import default_question, kind_of, presets, read_species_list

    if species_list is not None:
        found = read_species_list(species_list, presets=presets())
        for text in found.notes:
            logger.warning("Note: %s", text)
        names, kind = found.names, found.kind
    else:
        names = tuple(sorted({sample.label for sample in samples}))
        kind = kind_of(names)
    return names, query or default_question(names, kind)


def _score(
    choice: of_model.ModelChoice,
    samples: Sequence[Sample],
    others: Sequence[Sample] | None,
    names: Sequence[str],
    query: str,
    alpha: float,
    normalize: Any,
) -> tuple[tuple[Any, list[Scored]], list[Scored]]:
    """The model with the scores that are fitted to, and the scores that are measured on."""
    from NatureLM.cli.infer import load_model
    from NatureLM.experiments.calibrate import score_samples

    _note(f"Loading {choice.model}")
    model = load_model(choice)

    def score(of: Sequence[Sample]) -> list[Scored]:
        _note(f"Scoring {len(names)} labels on {len(of)} recordings")
        return score_samples(
            model, of, names, query, alpha=alpha, normalize=normalize, note=logger.warning
        )

    fitted = score(samples)
    return (model, fitted), fitted if others is None else score(others)


def _write(found: Any, target: Path) -> None:
    from NatureLM.inference.calibration import write_calibration

    write_calibration(found, target)


def _draw(path: Path, before: Reliability, after: Reliability) -> None:
    from NatureLM.reports.figures import draw_reliability, svg

    lines = {
        "as scored": before.bins,
        f"temperature {after.temperature:.2f}": after.bins,
    }
    made = draw_reliability(lines, f"{after.error.samples} recordings")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(svg(made), encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{path}: cannot be written ({error.strerror})") from None


def _show(before: Reliability, after: Reliability, *, fitted: int, on_others: bool) -> None:
    from NatureLM.cli.options import print_table

    rows = [
        [name, f"{one.temperature:.2f}", str(one.error), str(one.surprise), str(one.accuracy)]
        for name, one in (("as scored", before), ("calibrated", after))
    ]
    print_table(
        ["confidence", "temperature", "calibration error", "surprise (nats)", "accuracy"],
        rows,
        right={"temperature"},
    )
    which = "others than it was fitted to" if on_others else "those that it was fitted to"
    typer.echo(
        f"Fitted to {fitted} recordings; measured on {after.error.samples}, {which}, resampled by "
        f"{after.error.clusters} groups."
    )


def _note(text: str) -> None:
    typer.echo(text, err=True)
