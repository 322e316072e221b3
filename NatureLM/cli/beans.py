"""`beans run`, `info`, `fetch` and `make-mini`: the benchmark, its data, and one of one's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import typer

from NatureLM.cli import experiment
from NatureLM.cli import options as of
from NatureLM.cli.experiment import BEANS_ZERO
from NatureLM.cli.terminal import RESUMES, stop_message
from NatureLM.errors import UsageError
from NatureLM.progress import ProgressBar, printable, show

if TYPE_CHECKING:
    from NatureLM.beans.fetch import RowGroup
    from NatureLM.beans.mini import MiniSummary
    from NatureLM.data.components import Component


@dataclass(frozen=True)
class RunRequest(experiment.ExperimentOptions):
    """The options of `beans run`."""

    ORDER: ClassVar[tuple[Any, ...]] = (
        *("cfg_path", "data_path", "output_path", "components", "merging_alpha"),
        *(of.WeightsOptions, "adapter", of.PrecisionOptions),
    )
    cfg_path: Path | None = of.option(
        None,
        "Configuration file, such as configs/inference.yml or configs/cbi.yml.",
        show_default="built-in settings",
    )
    output_path: Path | None = of.option(
        None,
        "Where the answers go: a folder, or a file NAME.jsonl, whose metrics are in "
        "NAME_metrics.jsonl. What exists is resumed.",
        show_default="runs/ and the name of the configuration",
    )
    components: str | None = of.option(
        None,
        "Components that are tested, set off by commas.",
        show_default="all that the data hold",
    )
    merging_alpha: float | None = of.option(
        None,
        "How much of the adapter is merged in, where extended.lora_scales is not set.",
        metavar="ALPHA",
        show_default="generate.merging_alpha of the configuration, 1.0",
    )
    model: str | None = of.option(
        None, of.MODEL_TEXT, show_default="model.ckpt of the configuration, naturelm-tiny"
    )
    options: list[str] | None = of.option(
        None,
        "Change a value of the configuration, such as extended.limit=100. May be given several "
        "times.",
        metavar="KEY.SUB=VALUE",
    )


def run(request: RunRequest) -> None:
    """Ask a model about labelled samples; `beans --cfg-path ...` is the same.

    Each sample is asked its own question, and the answers are scored; or it is asked the queries
    of the section `extended` of the configuration.

    beans --cfg-path configs/inference.yml --data-path beans-zero --output-path answers.jsonl
    """
    config, names = request.load_config(), request.components
    datasets = None if names is None else of.listed("--components", names)
    raise typer.Exit(experiment.run(request, config, command="beans", datasets=datasets))


def info(
    component: str | None = of.argument(None, "Show this component with its labels."),
) -> None:
    """Show the components of BEANS-Zero: task, labels, longest clip, metric."""
    from NatureLM.data import components as data

    if component is None:
        _show_all(list(data.components().values()))
    else:
        _show_one(data.component(component))


def _show_all(components: list[Component]) -> None:
    from NatureLM.data.components import main_metric

    columns = ["component", "task", "labels", "longest clip", "metric"]
    rows = [
        [one.name, one.task, str(len(one.labels) or "-"), _clip(one), main_metric(one.task)]
        for one in components
    ]
    of.print_table(columns, rows, right={"labels", "longest clip"})
    show(f"\n{len(components)} components. `beans info NAME` shows the labels of one.")


def _show_one(one: Component) -> None:
    from NatureLM.data.components import main_metric

    unknown = f" ({one.unknown_label!r} stands for everything else)" if one.unknown_label else ""
    for name, value in (
        ("component", one.name),
        ("task", one.task),
        ("metric", main_metric(one.task)),
        ("longest clip", _clip(one)),
        ("recorded at", f"{one.sample_rate} Hz"),
        ("license", one.license),
        ("labels", f"{len(one.labels)}{unknown}" if one.labels else "none: free text"),
    ):
        show(f"{name:<14}{value}")
    for label in one.labels:
        show(f"  {label}")


def _clip(one: Component) -> str:
    return "-" if one.max_duration is None else f"{one.max_duration:g} s"


def fetch(
    *,
    output_path: Path = of.option(..., "Folder for the data."),
    components: str | None = of.option(
        None,
        "Components, set off by commas; `beans info` lists them.",
        show_default="all, about 180 GB",
    ),
    repository: str = of.option(BEANS_ZERO, "Dataset on the Hugging Face Hub."),
    revision: str | None = of.option(
        None,
        "Revision of the dataset; its commit is recorded in source.json.",
        metavar="COMMIT|TAG|BRANCH",
        show_default="the newest, or as in --repository OWNER/NAME@REVISION",
    ),
    yes: bool = of.option(False, "Do not ask before fetching."),
) -> None:
    """Fetch components of BEANS-Zero: says the size first, and goes on where it was stopped.

    beans fetch --components esc50,zf-indiv --output-path beans-zero
    """
    from NatureLM.beans.fetch import RemoteDataset, recorded_commit
    from NatureLM.data.components import component
    from NatureLM.models.registry import apart
    from NatureLM.util import check_place

    repository, revision = apart(repository, revision)
    check_place(output_path, "--output-path", folder=True)
    wanted = None if components is None else of.listed("--components", components)
    if repository == BEANS_ZERO:
        for name in wanted or ():
            component(name)
    # A fetch that goes on takes what it began with, whatever is the newest by now.
    known = recorded_commit(output_path, repository)
    dataset = RemoteDataset(repository, revision or known)
    dataset.record(output_path)
    looking = ProgressBar(f"looking at {dataset.name}", "bar", total=len(dataset.files), stays=True)
    with looking:
        groups = dataset.row_groups(wanted, looking.advance)
    missing = [group for group in groups if not group.is_there(output_path)]
    if _wants_more(groups, missing, output_path, yes):
        total = sum(group.bytes for group in missing)
        bar = ProgressBar("fetching", "bar", "size", "speed", "time", total=total, stays=True)
        output_path.mkdir(parents=True, exist_ok=True)
        dataset.record(output_path)
        with stop_message(f"Stopped. What is in {output_path} is whole; {RESUMES}"), bar:
            for group in missing:
                dataset.fetch(group, output_path)
                bar.advance(group.bytes)
    show(f"All is there: beans --data-path {output_path} --output-path answers.jsonl")


def _wants_more(
    groups: Sequence[RowGroup], missing: Sequence[RowGroup], folder: Path, yes: bool
) -> bool:
    """Say what there is to fetch; whether it is to be fetched."""
    from NatureLM.beans.fetch import check_room, size_text

    names = sorted({name for group in groups for name in group.components})
    size, left = (sum(group.bytes for group in some) for some in (groups, missing))
    there = "" if left == size else f", {size_text(left)} of them still to fetch"
    show(f"{', '.join(names)}: {size_text(size)}{there}, into {folder}")
    if not missing:
        return False
    check_room(folder, left)
    try:
        is_wanted = yes or typer.confirm("Fetch it?", err=True)
    except typer.Abort:  # nobody is there to answer
        is_wanted = False
    if not is_wanted:
        raise UsageError("nothing was fetched (--yes fetches without asking)")
    return True


def make_mini(
    *,
    source: str = of.argument(
        ...,
        "A folder with a folder of clips for each class, or a table (CSV, JSON lines, Parquet) "
        "with a column for the recording and one for the label.",
        "FOLDER_OR_TABLE",
    ),
    output_path: Path = of.option(..., "Folder to make."),
    columns: list[str] | None = of.option(
        None,
        "What a column is called, such as label=species, path=wav or caption=text. May be given "
        "several times.",
        metavar="OURS=THEIRS",
    ),
    where: list[str] | None = of.option(
        None,
        "Only such rows, such as split=test. May be given several times.",
        metavar="COLUMN=VALUE",
    ),
    classes: int = of.option(10, "Labels, the most frequent ones."),
    classification: int = of.option(60, "Clips with one label."),
    detection: int = of.option(40, "Mixed windows with 0 to 3 labels."),
    captioning: int = of.option(40, "Clips with a caption."),
    in_context: int = of.option(
        0,
        "Clips of four labels that are called A to D, and of others that are called None: for "
        "prompts with example clips, as in configs/tiny/in-context.yml.",
    ),
    caption: str = of.option(
        "The sound of {label}.", "Caption of a clip, where no column caption is named."
    ),
    window_seconds: float = of.option(10.0, "Longest clip, and mixed windows."),
    seed: int = of.option(0, "Of everything that is drawn.", min=0, max=of.MAX_SEED),
    overwrite: bool = of.option(False, "Replace what is there."),
) -> None:
    """Make a benchmark in BEANS-Zero's schema: classification, detection and captioning.

    beans make-mini clips.csv --output-path mini
    """
    from NatureLM.beans import mini
    from NatureLM.config.schema import TableSource
    from NatureLM.util import check_place

    check_place(output_path, "--output-path", folder=True)
    form = "write two names with = between"
    names = of.pairs("--columns", columns, form)
    caption_column = names.pop("caption", None)
    made = mini.make_mini(
        TableSource.named(source, columns=names, where={**of.pairs("--where", where, form)}),
        output_path,
        mini.Sizes(classification, detection, captioning, classes, in_context),
        seed=seed,
        window_seconds=window_seconds,
        caption=caption,
        caption_column=caption_column,
        overwrite=overwrite,
    )
    _show(made, output_path)


_MOST_SHOWN = 3


def _show(made: MiniSummary, folder: Path) -> None:
    for why in list(made.unread.values())[:_MOST_SHOWN]:
        show(printable(why), err=True)
    if made.unread:
        show(f"{len(made.unread)} clips could not be used.", err=True)
    for name, count in made.samples.items():
        show(f"{name:<22}{count:>5} samples")
    show(
        f"{len(made.labels)} labels: {', '.join(made.labels)}\n"
        f"Ask a model: beans --data-path {folder} --output-path answers.jsonl"
    )
