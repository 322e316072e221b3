"""Options that several commands share, what they come to, and tables on the terminal.

A command is a function whose parameters are its options; a parameter whose type is a dataclass, a
group, stands for the options that the fields of the dataclass are (`expanded`).
"""

from __future__ import annotations

import gc
import inspect
import sys
from collections.abc import Callable, Collection, Sequence
from contextlib import nullcontext
from copy import copy
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from functools import wraps
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast, get_type_hints

import typer

from NatureLM.errors import UsageError
from NatureLM.models.deferred import deferred
from NatureLM.progress import printable, say
from NatureLM.storage import AnyPath, as_path
from NatureLM.util import check_range

if TYPE_CHECKING:
    from NatureLM.config import Config
    from NatureLM.inference.pipeline import Pipeline
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


def but(declared: Any, **changes: Any) -> Any:
    """The same option with another `default`, `help`, `show_default` ..., as typer calls them."""
    info = copy(declared.metadata["option"])
    for name, value in changes.items():
        setattr(info, name, value)
    return _declared(info)


def _declared(info: Any) -> Any:
    default = MISSING if info.default is ... else info.default
    return field(default=default, kw_only=True, metadata={"option": info})


def expanded(command: Callable[..., None]) -> Callable[..., None]:
    """The command as typer takes it: with an option for each field of a group."""
    hints = get_type_hints(command)
    groups: dict[str, Any] = {name: kind for name, kind in hints.items() if is_dataclass(kind)}
    parameters: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(command).parameters.items():
        if name not in groups:
            parameters.append(_parameter(name, hints[name], parameter.default))
            continue
        kind, types = groups[name], get_type_hints(groups[name])
        declared = {one.name: one for one in fields(kind)}
        for own in in_order(kind):
            parameters.append(_parameter(own, types[own], declared[own]))

    @wraps(command)
    def called(**given: Any) -> None:
        for name, kind in groups.items():
            given[name] = kind(**{one.name: given.pop(one.name) for one in fields(kind)})
        command(**given)

    called.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    called.__annotations__ = {one.name: one.annotation for one in parameters}
    return called


def in_order(kind: Any) -> list[str]:
    """The options of a group as the help has them.

    First those of its `ORDER`, which holds names and groups that it inherits, then those that it
    declares itself, then the others.
    """
    names: list[str] = []
    for one in vars(kind).get("ORDER", ()):
        names += [one] if isinstance(one, str) else in_order(one)
    every = [one.name for one in fields(kind)]
    names += [name for name in kind.__annotations__ if name in every]
    return list(dict.fromkeys([*names, *every]))


def _parameter(name: str, annotation: Any, declared: Field[Any]) -> inspect.Parameter:
    """The parameter of an option; a flag is not given with `--no-` in front."""
    info = copy(declared.metadata["option"])
    if "RemotePath" in str(annotation):  # typer knows no unions: paths, and addresses as well
        annotation = _without_union(annotation)
        info.parser = as_path
        if isinstance(info, typer.models.OptionInfo):
            info.metavar = info.metavar or "PATH|URL"
    if annotation is bool and not info.param_decls:
        info.param_decls = (option_name(name),)
    if callable(info.metavar):
        info.metavar = info.metavar()
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=info, annotation=annotation
    )


def option_name(name: str) -> str:
    """What the option of a parameter is called on the command line."""
    return f"--{name.replace('_', '-')}"


def _without_union(annotation: Any) -> Any:
    """`list[Path] | None` of `list[AnyPath] | None`."""
    text = str(annotation)
    kind: Any = list[Path] if "list[" in text else Path
    return kind | None if text.endswith("None]") or text.endswith("| None") else kind


# Options of the model and of windows

MAX_BATCH, MAX_ROWS, MAX_SEED = 100_000, 1_000_000_000, 2**32 - 1

MODEL = "Model"
OUTPUT = "Output"
OUTPUT_NAMES = ("--output-path", "--output", "-o")
AUDIO = "Windows and audio"

MODEL_TEXT = "A name from `naturelm models`, an id on the Hugging Face Hub, or a folder."
REVISION = option(
    None,
    "Revision of the model on the Hub; its results record the commit.",
    MODEL,
    metavar="COMMIT|TAG|BRANCH",
    show_default="the newest, or as in --model OWNER/NAME@REVISION",
)
ADAPTER = option(
    None,
    "A LoRA adapter in PEFT's format (a folder) in place of the model's own.",
    MODEL,
    show_default="the model's own",
)
MERGING_ALPHA = option(
    None,
    "Share of the adapter: 0 is the base language model, 1 the adapted one.",
    MODEL,
    show_default="generate.merging_alpha of the configuration, 1.0",
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
LLAMA_PATH = option(None, "Base language model, where it is not where the checkpoint says.", MODEL)
BATCH_SIZE = option(16, "Windows at a time.", MODEL)
MAX_MEMORY = option(
    None,
    "Memory that batches may take beside the model, such as 4GB.",
    MODEL,
    metavar="SIZE",
    show_default="chosen for the device",
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


@dataclass(frozen=True)
class RevisionOptions:
    """Which weights of a model."""

    revision: str | None = REVISION
    weights_hash: str | None = option(
        None,
        "Refuse other weights than those that results record with this hash (`weights`).",
        MODEL,
        metavar="HASH",
    )


@dataclass(frozen=True)
class WeightsOptions(RevisionOptions):
    """Which model, and which weights of it."""

    model: str | None = option(None, MODEL_TEXT, MODEL, show_default="naturelm-tiny")

    @property
    def name(self) -> str:
        """The model, where no configuration names one."""
        from NatureLM.models.registry import EMBEDDED

        return self.model or EMBEDDED

    @property
    def pinned(self) -> dict[str, Any]:
        """What the weights must be, for what loads a model."""
        return {"revision": self.revision, "weights_hash": self.weights_hash}


@dataclass(frozen=True)
class ConfiguredWeightsOptions(WeightsOptions):
    """The same where a configuration may name the model, too."""

    model: str | None = option(
        None, MODEL_TEXT, MODEL, show_default="model.ckpt of the configuration, naturelm-tiny"
    )


@dataclass(frozen=True)
class PrecisionOptions:
    """Where a model is, and how precise its weights are."""

    device: str = DEVICE
    dtype: str = DTYPE
    quantize: str | None = option(
        None,
        "Store the language model's weights as integers of 8 or 4 bits, for less memory.",
        MODEL,
        metavar="int8|int4",
        show_default="model.quantize of the configuration, none",
    )

    def check_device(self) -> None:
        """Raise UsageError for values that are not allowed."""
        check_device(self.device, self.dtype)
        self.check_precision()

    def check_precision(self) -> None:
        """The same, of the weights alone."""
        check_choice("--dtype", self.dtype, DTYPES)
        if self.quantize is not None:
            check_choice("--quantize", self.quantize, QUANTIZATIONS)


@dataclass(frozen=True)
class ModelOptions(PrecisionOptions, ConfiguredWeightsOptions):
    """The options of commands that ask a model what a configuration says."""

    ORDER: ClassVar[tuple[Any, ...]] = (WeightsOptions, "adapter", PrecisionOptions)
    adapter: str | None = ADAPTER
    max_memory: str | None = MAX_MEMORY
    cache_dir: Path | None = option(
        None,
        "Folder where audio embeddings are kept, so that sound heard before is not encoded again "
        "(`naturelm cache` shows and clears it).",
        MODEL,
        show_default="the environment variable NATURELM_CACHE, else none",
    )
    cfg_path: Path | None = CFG_PATH
    options: list[str] | None = OVERRIDES

    def load_model(self, config: Config) -> NatureLM:
        """The model that was asked for."""
        given = {"adapter": self.adapter, "quantize": self.quantize, **self.pinned}
        given |= {"device": self.device, "dtype": self.dtype}
        return load_model(model_name(self.model, config), config, **given)


@dataclass(frozen=True)
class AnsweringOptions(ModelOptions):
    """The options of `infer` and `survey` on the model."""

    ORDER: ClassVar[tuple[Any, ...]] = (
        *(WeightsOptions, "adapter", "merging_alpha", PrecisionOptions, "batch_size"),
        ModelOptions,
    )
    merging_alpha: float | None = MERGING_ALPHA
    batch_size: int | None = option(
        None,
        "Answers and windows at a time. Changes the speed, never the answers.",
        MODEL,
        show_default="chosen for the device",
    )

    def check(self) -> None:
        """Raise UsageError for values that are not allowed."""
        if self.batch_size is not None:
            check_range("--batch-size", self.batch_size, 1, MAX_BATCH)
        self.check_device()
        memory_size(self.max_memory)

    def load_pipeline(self, config: Config, window_seconds: float, kept_bytes: int) -> Pipeline:
        """The model, ready to be asked; raises UsageError for windows that it cannot hear.

        kept_bytes: of embeddings that stay for questions about the same sound
        """
        model = self.load_model(config)
        from NatureLM.inference.pipeline import Pipeline

        check_window(window_seconds, model, model.name_or_path)
        return Pipeline(
            model,
            config=config,
            cache_dir=self.cache_dir,
            max_memory=memory_size(self.max_memory),
            kept_bytes=kept_bytes,
        )


WINDOW_LENGTH = option(10.0, "Length of a window.", AUDIO)
HOP_LENGTH = option(10.0, "From one start to the next.", AUDIO)
CHANNEL = option(
    "mean", "Channel to listen to; mean mixes them all.", AUDIO, metavar="mean|1|2|..."
)
TIME_EXPANSION = option(
    1.0, "Slow the sound down so many times; 10 makes bats audible. Times stay true.", AUDIO
)


@dataclass(frozen=True)
class WindowOptions:
    """How recordings are cut; None as what is asked says."""

    window_length_seconds: float | None = WINDOW_LENGTH
    hop_length_seconds: float | None = HOP_LENGTH
    channel: str | None = CHANNEL
    time_expansion: float | None = TIME_EXPANSION


# Options of archives, and of work on many machines

ARCHIVE = "Archives"


@dataclass(frozen=True)
class ArchiveOptions:
    """Which part of an archive, and what it is worked off with (`cli.runs`)."""

    manifest: AnyPath | None = option(
        None,
        "List of recordings, beside those that are named: what `naturelm manifest` made, a table "
        "with a column path, or a text with a path on each line.",
        ARCHIVE,
        metavar="LIST.csv|LIST.parquet|LIST.txt",
    )
    shard: str | None = option(
        None,
        "Only this part of the recordings, such as 1/4, the first of four; by the hashes of their "
        "paths. The output gets `.shard-1-of-4` into its name; `naturelm merge-runs` joins them.",
        ARCHIVE,
        metavar="I/N",
    )
    engine: str = option(
        "plain",
        "Work in this process, or with Ray Data on many machines (`ray`); answers are Parquet "
        "parts in a folder then, an index is one as always.",
        ARCHIVE,
        metavar="plain|ray",
    )
    ray_address: str | None = option(
        None,
        "With --engine ray: cluster that runs, such as auto for the one of this machine.",
        ARCHIVE,
        metavar="ADDRESS",
        show_default="the environment variable RAY_ADDRESS, else one of this machine alone",
    )
    workers: int | None = option(
        None,
        "With --engine ray: models at once.",
        ARCHIVE,
        show_default="one for each share of a GPU, else one a machine",
    )
    gpus: float | None = option(
        None,
        "With --engine ray: GPUs of each model, such as 1 or 0.5; 0 for none.",
        ARCHIVE,
        show_default="1, where there are some",
    )
    block_seconds: float | None = option(
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


def format_names() -> str:
    """The formats of tables, for a help."""
    from NatureLM.formats import FORMATS

    return "|".join(FORMATS)


@dataclass(frozen=True)
class TableOptions:
    """What is known of recordings, and in which tables answers are wanted."""

    deployments: Path | None = DEPLOYMENTS
    file_times: Path | None = FILE_TIMES
    format_name: list[str] | None = option(
        None,
        "Table to write at the end. May be given several times.",
        FIELD,
        "--format",
        metavar=format_names,
        show_default="none; of a survey csv",
    )
    per_recording: bool = option(
        False, "Write a table for each recording, too, in a folder.", FIELD
    )


AUDIO_PATH = option(
    None,
    "A recording, or a folder with recordings. May be given several times.",
    "What to ask",
    *("--audio-path", "--audio", "-a"),
)


@dataclass(frozen=True)
class RecordingOptions(TableOptions, ArchiveOptions, WindowOptions):
    """The options of `infer` and `survey` on recordings."""

    recordings: list[AnyPath] | None = argument(
        None, "Recordings or folders, as with --audio-path."
    )
    audio_path: list[AnyPath] | None = AUDIO_PATH
    ask_silence: bool = option(
        False,
        "Ask about windows that are silent or constant, or whose channels cancel, too.",
        AUDIO,
    )
    from_table: Path | None = option(
        None,
        "Ask about the detections of this table (of BirdNET, Raven, Kaleidoscope, Audacity, "
        "Ecosounds ...) in place of windows; {label} in a question is what it says.",
        FIELD,
        "--from",
        metavar="TABLE",
    )
    overwrite: bool = option(False, "Start the answers anew.", OUTPUT)
    quiet: bool = option(False, "Do not show the answers.", OUTPUT)

    @property
    def audio_paths(self) -> list[AnyPath]:
        """All recordings and folders that were named."""
        return [*(self.recordings or ()), *(self.audio_path or ())]

    def check_named(self) -> None:
        """Raise UsageError where no recordings are named."""
        if not self.audio_paths and self.manifest is None and self.from_table is None:
            raise UsageError(
                "nothing to listen to: name a recording or a folder with --audio-path, or a list "
                "with --manifest"
            )


def check_device(device: str, dtype: str) -> None:
    """Raise UsageError for values of --device and --dtype that are not allowed."""
    if not (device.startswith("cuda:") and device.removeprefix("cuda:").isdecimal()):
        check_choice("--device", device, ("auto", "cpu", "cuda", "mps"))
    check_choice("--dtype", dtype, DTYPES)


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
    """See `NatureLM.inference.loading.load_model`; for a command's own process."""
    import_model()
    from NatureLM.inference import loading

    return loading.load_model(model, config, **options)


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


def one_of(option: str, value: str | None, allowed: Sequence[str]) -> Any:
    """The value; raises UsageError where it is not one of the allowed ones."""
    if value is not None and value not in allowed:
        raise UsageError(f"{option} {value}: take one of {', '.join(allowed)}")
    return value


def listed(option: str, value: str) -> list[str]:
    """The names of an option that takes several, set off by commas, each once."""
    names = list(dict.fromkeys(name for name in map(str.strip, value.split(",")) if name))
    if not names:
        raise UsageError(f"{option} is empty: give a name, or several with commas between")
    return names


# What is shown


def can_draw(*, is_needed: bool = False) -> bool:
    """Whether figures can be drawn, which is said before the work.

    is_needed: raises UsageError where they cannot
    """
    from NatureLM.reports.figures import need_matplotlib

    try:
        need_matplotlib()
    except UsageError as error:
        if is_needed:
            raise
        say(f"There will be no figure: {error}")
        return False
    return True


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
