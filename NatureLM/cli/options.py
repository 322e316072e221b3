"""Groups of options that several verbs share: a dataclass stands for its fields.

Tables on the terminal.

Options about the model and the windows of recordings, which several verbs share.

What `naturelm embed` and `naturelm search` share: the model, and what decides its vectors.

Options of verbs that ask about samples, which several of them share.

Options of verbs that score answers, and what they mean for the library.

The options of `naturelm infer` about species lists, and what they come to.
"""

from __future__ import annotations

import inspect
import json
import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from NatureLM.errors import UsageError

if TYPE_CHECKING:
    from NatureLM.config import Config
    from NatureLM.evaluation.answers import ReadOptions
    from NatureLM.evaluation.score import BootstrapOptions
    from NatureLM.inference.answers import AnswerOptions
    from NatureLM.species import SpeciesList


logger = logging.getLogger(__name__)


def expanded(verb: Callable[..., None]) -> Callable[..., None]:
    """The verb with an option for each field of those parameters whose type is a dataclass.

    Fields are annotated and have defaults as parameters of a verb do. The verb itself is given the
    dataclass.
    """
    hints = get_type_hints(verb, include_extras=True)
    groups: dict[str, Any] = {name: kind for name, kind in hints.items() if is_dataclass(kind)}
    parameters: dict[str, inspect.Parameter] = {}
    for name, parameter in inspect.signature(verb).parameters.items():
        if name in groups:
            types = get_type_hints(groups[name], include_extras=True)
            for one in fields(groups[name]):
                parameters[one.name] = _parameter(one.name, one.default, types[one.name])
        else:
            parameters[name] = _parameter(name, parameter.default, hints[name])

    @wraps(verb)
    def called(**given: Any) -> None:
        for name, kind in groups.items():
            given[name] = kind(**{one.name: given.pop(one.name) for one in fields(kind)})
        verb(**given)

    called.__signature__ = inspect.Signature(list(parameters.values()))  # type: ignore[attr-defined]
    called.__annotations__ = {name: one.annotation for name, one in parameters.items()}
    return called


def _parameter(name: str, default: Any, annotation: Any) -> inspect.Parameter:
    kind = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(name, kind, default=default, annotation=annotation)


def print_table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], right: Collection[str] = ()
) -> None:
    """Print rows of text under their columns; `right` names the columns aligned to the right.

    As wide as the terminal; where the output is no terminal nothing is wrapped.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if column in right else "left", no_wrap=i == 0)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    console = Console()
    if not console.is_terminal:
        console = Console(width=1000)
    console.print(table)


MODEL = "Model"
AUDIO = "Windows and audio"

_MODEL_NAME = typer.Option(
    help="A name from `naturelm models`, an id on the Hugging Face Hub, or a folder.",
    show_default="naturelm-tiny",
    rich_help_panel=MODEL,
)
ModelName = Annotated[str, _MODEL_NAME]
OptionalModelName = Annotated[str | None, _MODEL_NAME]
"""The same where a configuration may name the model, too."""
Adapter = Annotated[
    str | None,
    typer.Option(
        help="A LoRA adapter in PEFT's format (a folder) in place of the model's own.",
        show_default="the model's own",
        rich_help_panel=MODEL,
    ),
]
Device = Annotated[
    str, typer.Option(metavar="auto|cpu|cuda|mps", help="Device.", rich_help_panel=MODEL)
]
Dtype = Annotated[
    str,
    typer.Option(
        metavar="auto|float32|bfloat16|float16",
        help="Precision of the weights.",
        rich_help_panel=MODEL,
    ),
]
MaxMemory = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE",
        help="Memory that batches may take beside the model, such as 4GB.",
        show_default="chosen for the device",
        rich_help_panel=MODEL,
    ),
]
CacheDir = Annotated[
    Path | None,
    typer.Option(
        help="Folder where audio embeddings are kept, so that sound heard before is not encoded "
        "again (`naturelm cache` shows and clears it).",
        show_default="the environment variable NATURELM_CACHE, else none",
        rich_help_panel=MODEL,
    ),
]
CfgPath = Annotated[
    Path | None,
    typer.Option(
        help="Configuration file, such as configs/inference.yml.",
        show_default="built-in settings",
        rich_help_panel=MODEL,
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        metavar="KEY.SUB=VALUE",
        help="Change a value of the configuration, such as generate.num_beams=1. May be given "
        "several times.",
        show_default=False,
        rich_help_panel=MODEL,
    ),
]
WindowLength = Annotated[float, typer.Option(help="Length of a window.", rich_help_panel=AUDIO)]
HopLength = Annotated[
    float, typer.Option(help="From one start to the next.", rich_help_panel=AUDIO)
]
Channel = Annotated[
    str,
    typer.Option(
        metavar="mean|1|2|...",
        help="Channel to listen to; mean mixes them all.",
        rich_help_panel=AUDIO,
    ),
]
TimeExpansion = Annotated[
    float,
    typer.Option(
        help="Slow the sound down so many times; 10 makes bats audible. Times stay true.",
        rich_help_panel=AUDIO,
    ),
]


@dataclass(frozen=True)
class ModelChoice:
    """Which model to load, as `NatureLM.cli.infer.load_model` wants to know it."""

    model: str
    adapter: str | None
    device: str
    dtype: str
    config: Config


_EXPERIMENT_PANEL = "Experiments"

DataPath = Annotated[
    str | None,
    typer.Option(
        help="What is tested: BEANS-Zero on disk or its id on the Hub, or a table of your own.",
        show_default="extended.data.path of the configuration",
        rich_help_panel=_EXPERIMENT_PANEL,
    ),
]
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run",
        help="Show the plan and the first prompts; ask nothing.",
        rich_help_panel=_EXPERIMENT_PANEL,
    ),
]
Workers = Annotated[
    int,
    typer.Option(help="Threads that decode ahead of the model.", rich_help_panel=_EXPERIMENT_PANEL),
]

_ANSWERS = "Recordings with known answers"
Column = Annotated[
    list[str] | None,
    typer.Option(
        metavar="OURS=THEIRS",
        help="Name of a column, such as label=common_name. May be given several times.",
        show_default=False,
        rich_help_panel=_ANSWERS,
    ),
]
Where = Annotated[
    list[str] | None,
    typer.Option(
        metavar="COLUMN=VALUE",
        help="Only rows with this value, such as split=valid. May be given several times.",
        show_default=False,
        rich_help_panel=_ANSWERS,
    ),
]


def with_data_path(options: Sequence[str] | None, data_path: str | None) -> list[str]:
    """The overrides, before which `--data-path` stands where they name other keys of the data."""
    given = list(options or ())
    if data_path is not None and any(one.strip().startswith("extended.data.") for one in given):
        return [f"extended.data.path={as_yaml(data_path)}", *given]
    return given


def as_yaml(value: Any) -> str:
    """A value as an override holds it."""
    return json.dumps(value, ensure_ascii=False)


def refuse_without_experiment(data_path: str | None, dry_run: bool, cfg_path: Path | None) -> None:
    """Raise UsageError for options of experiments where the configuration is none."""
    for option, is_given in (("--data-path", data_path is not None), ("--dry-run", dry_run)):
        if is_given:
            raise UsageError(
                f"{option} is for experiments, and {cfg_path or 'the built-in configuration'} has "
                "no section `extended`; recordings are named with --audio-path, and `beans run` "
                "asks every sample its own question"
            )


By = Annotated[
    str | None,
    typer.Option(
        help="Columns that make groups, besides the data set, set off by commas.",
        show_default="query,lora_scale, as far as rows have them",
    ),
]
Labels = Annotated[
    Path | None,
    typer.Option(
        help="File of the labels that may be answered, one a line.",
        show_default="the labels that occur",
    ),
]
ScientificNames = Annotated[
    Path | None,
    typer.Option(help="JSON file from common to scientific name.", show_default=False),
]
Names = Annotated[
    list[str] | None,
    typer.Option(
        help="Names of labels where a column has a value: query=1:scientific (or :both, :common). "
        "May be given several times.",
        show_default=False,
    ),
]
Task = Annotated[
    str | None,
    typer.Option(
        metavar="classification|detection|captioning",
        help="Task of data sets that are no component of BEANS-Zero.",
        show_default="the rows' key task",
    ),
]
Cluster = Annotated[
    str | None,
    typer.Option(
        help="Column of what intervals resample as a whole.",
        show_default="cluster, family or recording, as far as rows have them",
    ),
]
OnError = Annotated[
    str,
    typer.Option(metavar="fail|skip", help="At a line that cannot be scored: stop, or count it."),
]
Resamples = Annotated[int, typer.Option(min=1, help="Resamples of the bootstrap.")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of the bootstrap and of random answers.")]


@dataclass(frozen=True)
class ScoringOptions:
    """The options that `beans score`, `beans compare` and `report` share, in the order of the help.

    The methods raise UsageError for values that cannot be.
    """

    by: By = None
    labels: Labels = None
    scientific_names: ScientificNames = None
    names: Names = None
    task: Task = None
    cluster: Cluster = None
    on_error: OnError = "fail"
    resamples: Resamples = 1000
    seed: Seed = 0

    def reading(self) -> ReadOptions:
        """How rows are read."""
        return make_reading(
            self.by, self.labels, self.scientific_names, self.names, self.task, self.cluster
        )

    def evaluation(self) -> BootstrapOptions:
        """How intervals are made."""
        return make_evaluation(self.resamples, self.seed)

    def at_errors(self) -> Any:
        """What happens at a line that cannot be scored: "fail" or "skip"."""
        return one_of("--on-error", self.on_error, ("fail", "skip"))


def make_reading(
    by: str | None,
    labels: Path | None,
    scientific_names: Path | None,
    names: Sequence[str] | None,
    task: str | None,
    cluster: str | None,
) -> ReadOptions:
    """How rows are read; raises UsageError for options that do not go together."""
    from NatureLM.evaluation.answers import ReadOptions
    from NatureLM.evaluation.names import parse_rules, read_labels, read_map

    rules = parse_rules(names or ())
    if scientific_names is None and any(rule.kind != "common" for rule in rules):
        raise UsageError("--names needs --scientific-names, a JSON file from common name to it")
    if scientific_names is not None and not rules:
        raise UsageError("--scientific-names needs --names, such as --names query=1:scientific")
    columns = None if by is None else columns_of(by)
    for rule in rules:
        if columns is not None and rule.column not in (*columns, "dataset_name"):
            raise UsageError(f"--names {rule}: {rule.column!r} is not among the columns of --by")
    return ReadOptions(
        by=columns,
        labels=None if labels is None else read_labels(labels),
        rules=rules,
        scientific={} if scientific_names is None else read_map(scientific_names),
        cluster=cluster,
        task=one_of("--task", task, ("classification", "detection", "captioning")),
    )


def make_evaluation(resamples: int, seed: int) -> BootstrapOptions:
    """How intervals are made."""
    from NatureLM.evaluation.score import BootstrapOptions

    return BootstrapOptions(resamples=resamples, seed=seed)


def columns_of(by: str) -> tuple[str, ...]:
    """The columns of --by; the data set is one always."""
    columns = [column.strip() for column in by.split(",")]
    columns = [column for column in columns if column and column not in ("dataset", "dataset_name")]
    for column in columns:
        if columns.count(column) > 1:
            raise UsageError(f"--by {by}: {column!r} is named twice")
        if column in ("id", "prediction", "label"):
            raise UsageError(f"--by {by}: {column!r} cannot make groups")
    return tuple(columns)


def listed(option: str, value: str) -> list[str]:
    """The names of an option that takes several, set off by commas, each once."""
    names = list(dict.fromkeys(name for name in map(str.strip, value.split(",")) if name))
    if not names:
        raise UsageError(f"{option} is empty: give a name, or several with commas between")
    return names


def one_of(option: str, value: str | None, allowed: Sequence[str]) -> Any:
    """The value; raises UsageError where it is not one of the allowed ones."""
    if value is not None and value not in allowed:
        raise UsageError(f"{option} {value}: take one of {', '.join(allowed)}")
    return value


_SPECIES_PANEL = "Species lists and confidence"
_MOST_HINTS = 10
_LIST_PLACE = "{species_list}"

SpeciesListOption = Annotated[
    str | None,
    typer.Option(
        "--species-list",
        metavar="FILE|NAMES|PRESET",
        help="Species that may be answered: a file, names separated by commas, or a preset such as "
        "naturelm-tiny or cbi.",
        show_default=False,
        rich_help_panel=_SPECIES_PANEL,
    ),
]
ModeOption = Annotated[
    str | None,
    typer.Option(
        "--mode",
        metavar="generate|constrained|score",
        help="Say anything, say nothing but the list, or score every species of the list.",
        show_default="score with a species list, else generate",
        rich_help_panel=_SPECIES_PANEL,
    ),
]
SpeciesNames = Annotated[
    str,
    typer.Option(
        "--species-names",
        metavar="common|scientific",
        help="The names to take where a list has both.",
        rich_help_panel=_SPECIES_PANEL,
    ),
]
Several = Annotated[
    bool,
    typer.Option(
        "--several",
        help="With --mode constrained: an answer may be several species, separated by commas.",
        rich_help_panel=_SPECIES_PANEL,
    ),
]
TopK = Annotated[
    int,
    typer.Option(
        "--top-k",
        help="Species that are named, the answer included.",
        rich_help_panel=_SPECIES_PANEL,
    ),
]
MinConfidence = Annotated[
    float,
    typer.Option(
        "--min-confidence",
        help="Below it the answer is None.",
        rich_help_panel=_SPECIES_PANEL,
    ),
]


@dataclass(frozen=True)
class ListOptions:
    """What was given on the command line."""

    species_list: str | None = None
    mode: str | None = None
    names: str = "common"
    several: bool = False
    top_k: int = 3
    min_confidence: float = 0.0


def choose(
    given: ListOptions, queries: Sequence[str], model: str
) -> tuple[AnswerOptions, list[str]]:
    """How answers are chosen, and the questions, with one of ours where none was asked.

    Raises UsageError that names the option, its value and what is allowed.
    """
    from NatureLM.inference.answers import MODES, make_answer_options

    mode: Any = given.mode or ("generate" if given.species_list is None else "score")
    if mode not in MODES:
        raise UsageError(f"--mode is {mode!r}, and it must be one of {', '.join(MODES)}")
    if given.species_list is None:
        return _without_list(given, mode, queries)
    _check(given, mode)
    species = _read(given, model)
    asked = [query.replace(_LIST_PLACE, ", ".join(species.names)) for query in queries]
    if not asked:
        asked = [_question(species, mode, given.several)]
        logger.warning("asking: %s", _shortened(asked[0]))
    if mode == "generate":
        if not all(_LIST_PLACE in query for query in queries):
            raise UsageError(
                "--mode generate says anything, so the question has to name the list: write "
                f"{_LIST_PLACE} into --query where it goes, or leave --query out"
            )
        return make_answer_options(
            "generate", None, several=False, top_k=1, min_confidence=0.0
        ), asked
    choosing = make_answer_options(
        mode,
        species.names,
        several=given.several,
        top_k=given.top_k,
        min_confidence=given.min_confidence,
    )
    return choosing, asked


def _without_list(
    given: ListOptions, mode: Any, queries: Sequence[str]
) -> tuple[AnswerOptions, list[str]]:
    from NatureLM.inference.answers import AnswerOptions

    if mode != "generate":
        raise UsageError(f"--mode {mode} needs species to choose from: give --species-list")
    _check(given, mode)
    return AnswerOptions(), list(queries)


def _check(given: ListOptions, mode: str) -> None:
    from NatureLM.inference.answers import check_options

    if given.names not in ("common", "scientific"):
        raise UsageError(
            f"--species-names is {given.names!r}, and it must be one of common, scientific"
        )
    check_options(mode, given.several, given.top_k, given.min_confidence, _option)


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _read(given: ListOptions, model: str) -> SpeciesList:
    from NatureLM.species import hints, known_names, presets, read_species_list

    kind: Any = given.names
    species = read_species_list(given.species_list or "", prefer=kind, presets=presets())
    for text in species.notes:
        logger.warning(text)
    found = list(hints(species.names, known_names(model)))
    for text in found[:_MOST_HINTS]:
        logger.warning(text)
    if len(found) > _MOST_HINTS:
        logger.warning("and %d more names that are close to known ones", len(found) - _MOST_HINTS)
    return species


def _question(species: SpeciesList, mode: str, several: bool) -> str:
    from NatureLM.species import default_question

    return default_question(species.names, species.kind, lists_names=several or mode == "generate")


def _shortened(text: str) -> str:
    return text if len(text) <= 120 else f"{text[:117]}..."
