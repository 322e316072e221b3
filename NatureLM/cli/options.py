"""Options that several commands share, what they come to, and tables on the terminal.

A command is a function whose parameters are its options; a parameter whose type is a dataclass
stands for the options that the fields of the dataclass are (`expanded`).
"""

from __future__ import annotations

import gc
import inspect
import json
import sys
from collections.abc import Callable, Collection, Sequence
from contextlib import nullcontext
from copy import copy
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from functools import wraps
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_type_hints

import typer

from NatureLM.errors import UsageError
from NatureLM.models.deferred import deferred
from NatureLM.progress import printable
from NatureLM.storage import AnyPath, as_path

if TYPE_CHECKING:
    from NatureLM.config import Config
    from NatureLM.evaluation.answers import ReadOptions
    from NatureLM.evaluation.bootstrap import BootstrapOptions
    from NatureLM.models import NatureLM
    from NatureLM.results.thresholds import MinConfidence

# Declaring options


def option(default: Any, text: str, panel: str | None = None, *names: str, **more: Any) -> Any:
    """An option, as the default of a parameter or of a field of a dataclass.

    default: `...` for an option that has to be given
    panel: heading that it stands under in the help
    names: such as "-q"; the name of the parameter if there are none
    more: of `typer.Option`; a metavar may be a function, which is called for the help
    """
    return _declared(typer.Option(default, *names, help=text, rich_help_panel=panel, **more))


def argument(default: Any, text: str, metavar: str | Callable[[], str] | None = None) -> Any:
    """An argument, that is an option without a name; a metavar is as of an option."""
    return _declared(typer.Argument(default, help=text, metavar=cast("str | None", metavar)))


def _declared(info: Any) -> Any:
    default = MISSING if info.default is ... else info.default
    return field(default=default, kw_only=True, metadata={"option": info})


def expanded(command: Callable[..., None]) -> Callable[..., None]:
    """The command as typer takes it: with an option for each field of a dataclass.

    Fields that a class declares itself stand in the order in which it does so, inherited ones or
    not; the others follow.
    """
    hints = get_type_hints(command)
    groups: dict[str, Any] = {name: kind for name, kind in hints.items() if is_dataclass(kind)}
    parameters: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(command).parameters.items():
        if name not in groups:
            parameters.append(_parameter(name, hints[name], parameter.default))
            continue
        kind, types = groups[name], get_type_hints(groups[name])
        declared = {one.name: one for one in fields(kind)}
        for own in dict.fromkeys([*kind.__annotations__, *declared]):
            parameters.append(_parameter(own, types[own], declared[own]))

    @wraps(command)
    def called(**given: Any) -> None:
        for name, kind in groups.items():
            given[name] = kind(**{one.name: given.pop(one.name) for one in fields(kind)})
        command(**given)

    called.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    called.__annotations__ = {one.name: one.annotation for one in parameters}
    return called


def _parameter(name: str, annotation: Any, declared: Field[Any]) -> inspect.Parameter:
    """The parameter of an option; a flag is not given with `--no-` in front."""
    info = copy(declared.metadata["option"])
    if "RemotePath" in str(annotation):  # typer knows no unions: paths, and addresses as well
        annotation = _without_union(annotation)
        info.parser = as_path
        if isinstance(info, typer.models.OptionInfo):
            info.metavar = info.metavar or "PATH|URL"
    if annotation is bool and not info.param_decls:
        info.param_decls = (f"--{name.replace('_', '-')}",)
    if callable(info.metavar):
        info.metavar = info.metavar()
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=info, annotation=annotation
    )


def _without_union(annotation: Any) -> Any:
    """`list[Path] | None` of `list[AnyPath] | None`."""
    text = str(annotation)
    kind: Any = list[Path] if "list[" in text else Path
    return kind | None if text.endswith("None]") or text.endswith("| None") else kind


# Options of the model and of windows

MAX_BATCH, MAX_ROWS, MAX_SEED = 100_000, 1_000_000_000, 2**32 - 1

MODEL = "Model"
AUDIO = "Windows and audio"

MODEL_TEXT = "A name from `naturelm models`, an id on the Hugging Face Hub, or a folder."
MODEL_NAME = option("naturelm-tiny", MODEL_TEXT, MODEL, show_default="naturelm-tiny")
REVISION = option(
    None,
    "Revision of the model on the Hub; its results record the commit.",
    MODEL,
    metavar="COMMIT|TAG|BRANCH",
    show_default="the newest, or as in --model OWNER/NAME@REVISION",
)
WEIGHTS_HASH = option(
    None,
    "Refuse other weights than those that results record with this hash (`weights`).",
    MODEL,
    metavar="HASH",
)
# A configuration may name the model, too.
OPTIONAL_MODEL_NAME = option(None, MODEL_TEXT, MODEL, show_default="naturelm-tiny")
ADAPTER = option(
    None,
    "A LoRA adapter in PEFT's format (a folder) in place of the model's own.",
    MODEL,
    show_default="the model's own",
)
DEVICE = option("auto", "Device.", MODEL, metavar="auto|cpu|cuda|mps")
DTYPES = ("auto", "float32", "bfloat16", "float16")
DTYPE = option(
    "auto",
    "Precision of the weights; auto takes the best that fits.",
    MODEL,
    metavar="|".join(DTYPES),
)
QUANTIZATIONS = ("int8", "int4")
QUANTIZE = option(
    None,
    "Store the language model's weights as integers of 8 or 4 bits, for less memory.",
    MODEL,
    metavar="int8|int4",
    show_default="model.quantize of the configuration, none",
)
MAX_MEMORY = option(
    None,
    "Memory that batches may take beside the model, such as 4GB.",
    MODEL,
    metavar="SIZE",
    show_default="chosen for the device",
)
CACHE_DIR = option(
    None,
    "Folder where audio embeddings are kept, so that sound heard before is not encoded again "
    "(`naturelm cache` shows and clears it).",
    MODEL,
    show_default="the environment variable NATURELM_CACHE, else none",
)
CFG_PATH = option(
    None,
    "Configuration file, such as configs/inference.yml.",
    MODEL,
    show_default="built-in settings",
)
OVERRIDES = option(
    None,
    "Change a value of the configuration, such as generate.num_beams=1. May be given several "
    "times.",
    MODEL,
    metavar="KEY.SUB=VALUE",
)
WINDOW_LENGTH = option(10.0, "Length of a window.", AUDIO)
HOP_LENGTH = option(10.0, "From one start to the next.", AUDIO)
CHANNEL = option(
    "mean", "Channel to listen to; mean mixes them all.", AUDIO, metavar="mean|1|2|..."
)
TIME_EXPANSION = option(
    1.0, "Slow the sound down so many times; 10 makes bats audible. Times stay true.", AUDIO
)
ASK_SILENCE = option(
    False,
    "Ask about windows that are silent or constant, or whose channels cancel, too.",
    AUDIO,
)


MIN_CONFIDENCE = option(
    "0.0",
    "Below it the answer is None: a number, or thresholds of each species, at which it is right "
    "with probability 0.95 or another (`naturelm calibrate` of reviewed clips makes them).",
    "Species lists and confidence",
    metavar="NUMBER|FILE|FILE:PROBABILITY",
)

CLASSIFIER = option(
    None,
    "Folder of a classifier that `naturelm teach` made: it answers, at the speed of the audio "
    "encoder, in place of the language model.",
    "Species lists and confidence",
    metavar="FOLDER",
)


# Options of archives

ARCHIVE = "Archives"
MANIFEST = option(
    None,
    "List of recordings, beside those that are named: what `naturelm manifest` made, a table with "
    "a column path, or a text with a path on each line.",
    ARCHIVE,
    metavar="LIST.csv|LIST.parquet|LIST.txt",
)
SHARD = option(
    None,
    "Only this part of the recordings, such as 1/4, the first of four; by the hashes of their "
    "paths. The output gets `.shard-1-of-4` into its name; `naturelm merge-runs` joins them.",
    ARCHIVE,
    metavar="I/N",
)


# Options of work on many machines

ENGINE = option(
    "plain",
    "Work in this process, or with Ray Data on many machines (`ray`); answers are Parquet parts in "
    "a folder then, an index is one as always.",
    ARCHIVE,
    metavar="plain|ray",
)
RAY_ADDRESS = option(
    None,
    "With --engine ray: cluster that runs, such as auto for the one of this machine.",
    ARCHIVE,
    metavar="ADDRESS",
    show_default="the environment variable RAY_ADDRESS, else one of this machine alone",
)
RAY_WORKERS = option(
    None,
    "With --engine ray: models at once.",
    ARCHIVE,
    show_default="one for each share of a GPU, else one a machine",
)
GPUS = option(
    None,
    "With --engine ray: GPUs of each model, such as 1 or 0.5; 0 for none.",
    ARCHIVE,
    show_default="1, where there are some",
)
BLOCK_SECONDS = option(
    None,
    "With --engine ray: seconds of sound that a model is given at a time.",
    ARCHIVE,
    show_default="600",
)


# Options of field work

FIELD = "Times, places and tables"
DEPLOYMENTS = option(
    None,
    "Table of where recorders stood: site, latitude, longitude, from, to, zone, recorder. Rows get "
    "site, UTC, hours after sunset and sunrise; questions may hold {place}, {date}, {habitat}.",
    FIELD,
    metavar="TABLE",
)
FILE_TIMES = option(
    None,
    "Table of when recordings began (file, time, zone), for those whose name and header do not "
    "say it.",
    FIELD,
    metavar="TABLE",
)
FROM_TABLE = option(
    None,
    "Ask about the detections of this table (of BirdNET, Raven, Kaleidoscope, Audacity, Ecosounds "
    "...) in place of windows; {label} in a question is what it says.",
    FIELD,
    "--from",
    metavar="TABLE",
)
PER_RECORDING = option(False, "Write a table for each recording, too, in a folder.", FIELD)


def format_names() -> str:
    """The formats of tables, for a help."""
    from NatureLM.formats import FORMATS

    return "|".join(FORMATS)


FORMATS = option(
    None,
    "Table to write at the end. May be given several times.",
    FIELD,
    "--format",
    metavar=format_names,
    show_default="none; of a survey csv",
)


def check_named(request: Any) -> None:
    """Raise UsageError where a request names no recordings."""
    if not request.audio_paths and request.manifest is None and request.from_table is None:
        raise UsageError(
            "nothing to listen to: name a recording or a folder with --audio-path, or a list with "
            "--manifest"
        )


def check_device(device: str, dtype: str, quantize: str | None = None) -> None:
    """Raise UsageError for values of --device, --dtype and --quantize that are not allowed."""
    if not (device.startswith("cuda:") and device.removeprefix("cuda:").isdecimal()):
        check_choice("--device", device, ("auto", "cpu", "cuda", "mps"))
    check_choice("--dtype", dtype, DTYPES)
    if quantize is not None:
        check_choice("--quantize", quantize, QUANTIZATIONS)


def check_choice(option: str, value: str, choices: Collection[str]) -> None:
    """Raise UsageError for a value that is not one of the choices."""
    if value not in choices:
        raise UsageError(f"{option} is {value!r}, and it must be one of {', '.join(choices)}")


def check_window(seconds: float, model: NatureLM, name: str | None) -> None:
    """Raise UsageError for windows that are longer than what the model hears."""
    longest = model.config.window_seconds
    if seconds > longest:
        raise UsageError(
            f"--window-length-seconds is {seconds:g}, and {name} hears at most {longest:g} s at "
            "once"
        )


def min_confidence(text: str) -> float | MinConfidence:
    """The value of --min-confidence; raises UsageError."""
    from NatureLM.results.thresholds import read_min_confidence

    found = read_min_confidence(text)
    return found if found.is_by_species else found.number


def memory_size(text: str | None) -> int | None:
    """Bytes of --max-memory; raises UsageError."""
    from NatureLM.util import parse_bytes

    return None if text is None else parse_bytes(text, "--max-memory")


def model_name(given: str | None, config: Config) -> str:
    """The model that --model names, else the configuration, else the embedded one."""
    from NatureLM.models.registry import EMBEDDED

    return given or config.model.ckpt or EMBEDDED


_MODEL_CODE = "NatureLM.models.modeling"


def import_model(*, for_training: bool = False) -> None:
    """Import the model's code, with torch and transformers, unless that was done.

    It makes a million objects that stay to the end. Looking for garbage among them, while they are
    made and ever after, takes a third of the time to a first answer; so they are kept out of it.
    Not for somebody else's process: what is garbage at that moment stays, too.

    for_training: with what only training uses of transformers and torch
    """
    if _MODEL_CODE in sys.modules:
        return
    was_on = gc.isenabled()
    gc.disable()
    try:
        with nullcontext() if for_training else deferred():
            import_module(_MODEL_CODE)
    finally:
        gc.freeze()
        if was_on:
            gc.enable()


def load_model(model: str, config: Config | None = None, **options: Any) -> NatureLM:
    """See `NatureLM.inference.pipeline.load_model`; for a command's own process."""
    import_model()
    from NatureLM.inference import pipeline

    return pipeline.load_model(model, config, **options)


# Options of experiments, and of recordings with known answers

_EXPERIMENTS = "Experiments"
KNOWN_ANSWERS = "Recordings with known answers"

DATA_PATH = option(
    None,
    "What is tested: BEANS-Zero on disk or its id on the Hub, or a table of your own.",
    _EXPERIMENTS,
    show_default="extended.data.path of the configuration",
)
DRY_RUN = option(False, "Show the plan and the first prompts; ask nothing.", _EXPERIMENTS)
WORKERS = option(None, "Threads that decode ahead of the model.", _EXPERIMENTS, show_default="2")
COLUMN = option(
    None,
    "Name of a column, such as label=common_name. May be given several times.",
    KNOWN_ANSWERS,
    metavar="OURS=THEIRS",
)
WHERE = option(
    None,
    "Only rows with this value, such as split=valid. May be given several times.",
    KNOWN_ANSWERS,
    metavar="COLUMN=VALUE",
)


@dataclass(frozen=True)
class ModelOptions:
    """The options of commands that ask a model what a configuration says.

    Commands declare them again in the order of their help.
    """

    model: str | None = OPTIONAL_MODEL_NAME
    revision: str | None = REVISION
    weights_hash: str | None = WEIGHTS_HASH
    adapter: str | None = ADAPTER
    device: str = DEVICE
    dtype: str = DTYPE
    quantize: str | None = QUANTIZE
    max_memory: str | None = MAX_MEMORY
    cache_dir: Path | None = CACHE_DIR
    cfg_path: Path | None = CFG_PATH
    options: list[str] | None = OVERRIDES

    def load_model(self, config: Config) -> NatureLM:
        """The model that was asked for."""
        names = ("adapter", "device", "dtype", "quantize", "revision", "weights_hash")
        given = {name: getattr(self, name) for name in names}
        return load_model(model_name(self.model, config), config, **given)


@dataclass(frozen=True)
class ExperimentOptions(ModelOptions):
    """The options of commands that may run an experiment."""

    merging_alpha: float | None = None
    output_path: AnyPath | None = None
    data_path: str | None = DATA_PATH
    dry_run: bool = DRY_RUN
    workers: int | None = WORKERS

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


def as_yaml(value: Any) -> str:
    """A value as an override holds it."""
    text = json.dumps(value, ensure_ascii=False)
    # The bytes of a file name that is no UTF-8 are escaped: YAML holds no halves of characters.
    return text if text.isprintable() else json.dumps(value)


# Values with a form of their own


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


# Options of scoring

PROTOCOLS = "beans-zero|paper|mention|strict"
LABELS = option(
    None,
    "File of the labels that may be answered, one a line.",
    show_default="the labels that occur",
)
TASK = option(
    None,
    "Task of data sets that are no component of BEANS-Zero.",
    metavar="classification|detection|captioning",
    show_default="the rows' key task",
)
RESAMPLES = option(1000, "Resamples of the bootstrap.", min=1, max=1_000_000)
SEED = option(0, "Seed of the bootstrap and of random answers.", min=0, max=MAX_SEED)


@dataclass(frozen=True)
class ScoringOptions:
    """The options that `beans score`, `beans compare` and `report` share, in the order of the help.

    The methods raise UsageError for values that cannot be.
    """

    by: str | None = option(
        None,
        "Columns that make groups, besides the data set, set off by commas.",
        show_default="query,lora_scale, as far as rows have them",
    )
    labels: Path | None = LABELS
    scientific_names: Path | None = option(None, "JSON file from common to scientific name.")
    names: list[str] | None = option(
        None,
        "Names of labels where a column has a value: query=1:scientific (or :both, :common). "
        "May be given several times.",
    )
    task: str | None = TASK
    cluster: str | None = option(
        None,
        "Column of what intervals resample as a whole.",
        show_default="cluster, family or recording, as far as rows have them",
    )
    on_error: str = option(
        "fail", "At a line that cannot be scored: stop, or count it.", metavar="fail|skip"
    )
    resamples: int = RESAMPLES
    seed: int = SEED

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

    def arguments(self) -> dict[str, Any]:
        """All of them, as the functions of `NatureLM.evaluation` take them."""
        return {
            "options": self.reading(),
            "bootstrap": self.evaluation(),
            "on_error": one_of("--on-error", self.on_error, ("fail", "skip")),
        }


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


# What is printed


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
        table.add_row(*(Text(printable(cell)) for cell in row))
    console = Console()
    if console.is_terminal:
        console.print(table)
        return
    plain = Console(width=1000)
    with plain.capture() as made:
        plain.print(table)
    typer.echo("\n".join(line.rstrip() for line in made.get().splitlines()))
