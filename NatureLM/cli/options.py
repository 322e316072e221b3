"""Options that several commands share, what they come to, and tables on the terminal.

A command is a function whose parameters are its options. A parameter whose type is a dataclass
stands for the options that the fields of the dataclass are (`expanded`).
"""

from __future__ import annotations

import gc
import inspect
import json
import logging
import sys
from collections.abc import Callable, Collection, Sequence
from copy import copy
from dataclasses import dataclass, fields, is_dataclass
from functools import wraps
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer
from typer.models import OptionInfo

from NatureLM.errors import UsageError

if TYPE_CHECKING:
    from NatureLM.config import Config
    from NatureLM.evaluation.answers import ReadOptions
    from NatureLM.evaluation.bootstrap import BootstrapOptions
    from NatureLM.models import NatureLM


logger = logging.getLogger(__name__)


def expanded(command: Callable[..., None]) -> Callable[..., None]:
    """The command with an option for each field of those parameters whose type is a dataclass.

    Fields are annotated and have defaults as parameters do. Those that a class declares itself
    stand in the order in which it does so, inherited ones or not; the others follow.
    """
    hints = get_type_hints(command, include_extras=True)
    groups: dict[str, Any] = {name: kind for name, kind in hints.items() if is_dataclass(kind)}
    parameters: dict[str, inspect.Parameter] = {}
    for name, parameter in inspect.signature(command).parameters.items():
        if name in groups:
            types = get_type_hints(groups[name], include_extras=True)
            own = list(groups[name].__annotations__)
            for one in sorted(fields(groups[name]), key=lambda field: _place(field.name, own)):
                parameters[one.name] = _parameter(one.name, one.default, types[one.name])
        else:
            parameters[name] = _parameter(name, parameter.default, hints[name])

    @wraps(command)
    def called(**given: Any) -> None:
        for name, kind in groups.items():
            given[name] = kind(**{one.name: given.pop(one.name) for one in fields(kind)})
        command(**given)

    called.__signature__ = inspect.Signature(list(parameters.values()))  # type: ignore[attr-defined]
    called.__annotations__ = {name: one.annotation for name, one in parameters.items()}
    return called


def _place(name: str, order: Sequence[str]) -> int:
    return order.index(name) if name in order else len(order)


def option(text: str, panel: str | None = None, names: Sequence[str] = (), **more: Any) -> Any:
    """What stands beside the type of an option: its line in the help, and under which heading."""
    return typer.Option(*names, help=text, rich_help_panel=panel, **more)


def _parameter(name: str, default: Any, annotation: Any) -> inspect.Parameter:
    """The parameter of an option; a flag is not given with `--no-` in front."""
    kind, info = inspect.Parameter.KEYWORD_ONLY, getattr(annotation, "__metadata__", (None,))[0]
    is_named = isinstance(info, OptionInfo) and (info.param_decls or info.default is not ...)
    if isinstance(info, OptionInfo) and annotation.__origin__ is bool and not is_named:
        info = copy(info)
        info.param_decls = (f"--{name.replace('_', '-')}",)
        annotation = Annotated[bool, info]
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

_MODEL_NAME = option(
    "A name from `naturelm models`, an id on the Hugging Face Hub, or a folder.",
    MODEL,
    show_default="naturelm-tiny",
)
ModelName = Annotated[str, _MODEL_NAME]
OptionalModelName = Annotated[str | None, _MODEL_NAME]  # a configuration may name the model, too
Adapter = Annotated[
    str | None,
    option(
        "A LoRA adapter in PEFT's format (a folder) in place of the model's own.",
        MODEL,
        show_default="the model's own",
    ),
]
Device = Annotated[str, option("Device.", MODEL, metavar="auto|cpu|cuda|mps")]
Dtype = Annotated[
    str,
    option("Precision of the weights.", MODEL, metavar="auto|float32|bfloat16|float16"),
]
MaxMemory = Annotated[
    str | None,
    option(
        "Memory that batches may take beside the model, such as 4GB.",
        MODEL,
        metavar="SIZE",
        show_default="chosen for the device",
    ),
]
CacheDir = Annotated[
    Path | None,
    option(
        "Folder where audio embeddings are kept, so that sound heard before is not encoded "
        "again (`naturelm cache` shows and clears it).",
        MODEL,
        show_default="the environment variable NATURELM_CACHE, else none",
    ),
]
CfgPath = Annotated[
    Path | None,
    option(
        "Configuration file, such as configs/inference.yml.",
        MODEL,
        show_default="built-in settings",
    ),
]
Overrides = Annotated[
    list[str] | None,
    option(
        "Change a value of the configuration, such as generate.num_beams=1. May be given "
        "several times.",
        MODEL,
        metavar="KEY.SUB=VALUE",
    ),
]
WindowLength = Annotated[float, option("Length of a window.", AUDIO)]
HopLength = Annotated[float, option("From one start to the next.", AUDIO)]
Channel = Annotated[
    str,
    option("Channel to listen to; mean mixes them all.", AUDIO, metavar="mean|1|2|..."),
]
TimeExpansion = Annotated[
    float,
    option("Slow the sound down so many times; 10 makes bats audible. Times stay true.", AUDIO),
]


_DTYPES = ("auto", "float32", "bfloat16", "float16")
_MODEL_CODE = "NatureLM.models.modeling"


def import_model() -> None:
    """Import the model's code, with torch, transformers and peft, unless that was done.

    It makes a million objects that stay to the end. Looking for garbage among them, while they are
    made and ever after, takes a third of the time to a first answer; so they are kept out of it.
    Not for somebody else's process: what is garbage at that moment stays, too.
    """
    if _MODEL_CODE in sys.modules:
        return
    was_on = gc.isenabled()
    gc.disable()
    try:
        import_module(_MODEL_CODE)
    finally:
        gc.freeze()
        if was_on:
            gc.enable()


def load_model(model: str, config: Config | None = None, **options: Any) -> NatureLM:
    """See `NatureLM.inference.loading.load_model`; for a command's own process."""
    import_model()
    from NatureLM.inference import loading

    return loading.load_model(model, config, **options)


def model_name(given: str | None, config: Config) -> str:
    """The model that --model names, else the configuration, else the embedded one."""
    from NatureLM.models.registry import EMBEDDED

    return given or config.model.ckpt or EMBEDDED


def check_device(device: str, dtype: str) -> None:
    """Raise UsageError for values of --device and --dtype that are not allowed."""
    if not (device.startswith("cuda:") and device.removeprefix("cuda:").isdecimal()):
        _check("--device", device, ("auto", "cpu", "cuda", "mps"))
    check_dtype(dtype)


def check_dtype(dtype: str) -> None:
    """Raise UsageError for a value of --dtype that is not allowed."""
    _check("--dtype", dtype, _DTYPES)


def _check(option: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise UsageError(f"{option} is {value!r}, and it must be one of {', '.join(choices)}")


def memory_size(text: str | None) -> int | None:
    """Bytes of --max-memory; raises UsageError."""
    from NatureLM.util import parse_bytes

    return None if text is None else parse_bytes(text, "--max-memory")


_EXPERIMENT_PANEL = "Experiments"

DataPath = Annotated[
    str | None,
    option(
        "What is tested: BEANS-Zero on disk or its id on the Hub, or a table of your own.",
        _EXPERIMENT_PANEL,
        show_default="extended.data.path of the configuration",
    ),
]
DryRun = Annotated[
    bool,
    option("Show the plan and the first prompts; ask nothing.", _EXPERIMENT_PANEL),
]
Workers = Annotated[
    int,
    option("Threads that decode ahead of the model.", _EXPERIMENT_PANEL),
]

_ANSWERS = "Recordings with known answers"
Column = Annotated[
    list[str] | None,
    option(
        "Name of a column, such as label=common_name. May be given several times.",
        _ANSWERS,
        metavar="OURS=THEIRS",
    ),
]
Where = Annotated[
    list[str] | None,
    option(
        "Only rows with this value, such as split=valid. May be given several times.",
        _ANSWERS,
        metavar="COLUMN=VALUE",
    ),
]


@dataclass(frozen=True)
class ExperimentOptions:
    """The options of commands that may run an experiment; each declares them in its own order."""

    model: OptionalModelName = None
    adapter: Adapter = None
    merging_alpha: float | None = None
    device: Device = "auto"
    dtype: Dtype = "auto"
    max_memory: MaxMemory = None
    cache_dir: CacheDir = None
    cfg_path: CfgPath = None
    options: Overrides = None
    output_path: Path | None = None
    data_path: DataPath = None
    dry_run: DryRun = False
    workers: Workers = 2

    def load_config(self) -> Config:
        """The configuration with its overrides.

        --data-path stands before them where they name other keys of the data.
        """
        from NatureLM.config import load_config

        given = list(self.options or ())
        changes_data = any(one.strip().startswith("extended.data.") for one in given)
        if self.data_path is not None and changes_data:
            given.insert(0, f"extended.data.path={as_yaml(self.data_path)}")
        return load_config(self.cfg_path, given)

    def load_model(self, config: Config) -> NatureLM:
        """The model that was asked for."""
        return load_model(
            model_name(self.model, config),
            config,
            adapter=self.adapter,
            device=self.device,
            dtype=self.dtype,
        )


def as_yaml(value: Any) -> str:
    """A value as an override holds it."""
    return json.dumps(value, ensure_ascii=False)


def pairs(
    option: str, texts: Sequence[str] | None, form: str, *, may_be_empty: bool = False
) -> dict[str, str]:
    """The values of an option that is given as NAME=VALUE; the last one of a name wins.

    form: what a message says of how to write it
    may_be_empty: whether a value may be the empty string

    Raises UsageError.
    """
    found: dict[str, str] = {}
    for text in texts or ():
        name, equals, value = text.partition("=")
        if not (name.strip() and equals and (may_be_empty or value.strip())):
            raise UsageError(f"{option} {text}: {form}")
        found[name.strip()] = value.strip()
    return found


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


By = Annotated[
    str | None,
    option(
        "Columns that make groups, besides the data set, set off by commas.",
        show_default="query,lora_scale, as far as rows have them",
    ),
]
Labels = Annotated[
    Path | None,
    option(
        "File of the labels that may be answered, one a line.", show_default="the labels that occur"
    ),
]
ScientificNames = Annotated[
    Path | None,
    option("JSON file from common to scientific name."),
]
Names = Annotated[
    list[str] | None,
    option(
        "Names of labels where a column has a value: query=1:scientific (or :both, :common). "
        "May be given several times."
    ),
]
Task = Annotated[
    str | None,
    option(
        "Task of data sets that are no component of BEANS-Zero.",
        metavar="classification|detection|captioning",
        show_default="the rows' key task",
    ),
]
Cluster = Annotated[
    str | None,
    option(
        "Column of what intervals resample as a whole.",
        show_default="cluster, family or recording, as far as rows have them",
    ),
]
OnError = Annotated[
    str,
    option("At a line that cannot be scored: stop, or count it.", metavar="fail|skip"),
]
Resamples = Annotated[int, option("Resamples of the bootstrap.", min=1)]
Seed = Annotated[int, option("Seed of the bootstrap and of random answers.", min=0)]


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
        from NatureLM.evaluation.answers import ReadOptions, parse_rules, read_labels, read_map

        rules = parse_rules(self.names or ())
        if self.scientific_names is None and any(rule.kind != "common" for rule in rules):
            raise UsageError("--names needs --scientific-names, a JSON file from common name to it")
        if self.scientific_names is not None and not rules:
            raise UsageError("--scientific-names needs --names, such as --names query=1:scientific")
        columns = None if self.by is None else _columns(self.by)
        for rule in rules:
            if columns is not None and rule.column not in (*columns, "dataset_name"):
                raise UsageError(
                    f"--names {rule}: {rule.column!r} is not among the columns of --by"
                )
        return ReadOptions(
            by=columns,
            labels=None if self.labels is None else read_labels(self.labels),
            rules=rules,
            scientific={} if self.scientific_names is None else read_map(self.scientific_names),
            cluster=self.cluster,
            task=one_of("--task", self.task, ("classification", "detection", "captioning")),
        )

    def evaluation(self) -> BootstrapOptions:
        """How intervals are made."""
        from NatureLM.evaluation.bootstrap import BootstrapOptions

        return BootstrapOptions(resamples=self.resamples, seed=self.seed)

    def at_errors(self) -> Any:
        """What happens at a line that cannot be scored: "fail" or "skip"."""
        return one_of("--on-error", self.on_error, ("fail", "skip"))


def _columns(by: str) -> tuple[str, ...]:
    """The columns of --by; the data set is one always."""
    columns = [column.strip() for column in by.split(",")]
    columns = [column for column in columns if column and column not in ("dataset", "dataset_name")]
    for column in columns:
        if columns.count(column) > 1:
            raise UsageError(f"--by {by}: {column!r} is named twice")
        if column in ("id", "prediction", "label"):
            raise UsageError(f"--by {by}: {column!r} cannot make groups")
    return tuple(columns)
