"""The keys of a questionnaire's YAML, and what is said about those that cannot stand."""

from __future__ import annotations

import keyword
import re
from collections.abc import Mapping
from functools import cache
from typing import Annotated, Any, Literal, get_args

from pydantic import ConfigDict, Field, field_validator

from NatureLM.config.load import describe, not_among, show
from NatureLM.config.schema import MAX_POSITIONS, Section, Share, Text
from NatureLM.config.strict_yaml import KeyPath, Source

ColumnType = Literal["choice", "yes_no", "count", "number", "text", "names", "counts", "json"]
ColumnMode = Literal["score", "constrained", "generate"]
TYPES: tuple[ColumnType, ...] = get_args(ColumnType)

_LABELS: dict[str, Any] = {
    "allowed": "a list of texts, at least one; those such as yes and 1.5 in quotes"
}


class ColumnFile(Section):
    """One column: what is asked, and what its answers are."""

    question: Text
    """What is asked about each window. May hold {labels} or {species_list} (the labels, with commas
    between them), {options} (the labels with letters, one a line), and {place}, {site}, {habitat},
    {date}, {month}, {time}, {label}, which each window fills."""
    type: ColumnType
    """What an answer is: one or several of `labels` (`choice`), true or false (`yes_no`), a whole
    number (`count`), a number in `unit` (`number`), text as it comes (`text`), a list of any names
    (`names`), how many of each name (`counts`), or a value that follows `schema` (`json`)."""
    labels: Annotated[list[Text] | None, Field(min_length=1)] = Field(
        default=None, json_schema_extra=_LABELS
    )
    """For `choice`: what may be answered. `None` may always be; where a model knows another
    spelling of it, such as `none`, this stands among the labels, and is the same answer."""
    species_list: Text | None = None
    """For `choice`, instead of `labels`: a file beside the YAML, names with commas between them, or
    a list that comes with the program (`naturelm-tiny`, `cbi`, ...)."""
    names: Literal["common", "scientific"] = "common"
    """Which names are taken from a `species_list` that has both."""
    synonyms: dict[str, list[Text]] = Field(
        default={},
        json_schema_extra={"allowed": "a mapping from labels to lists of other names of theirs"},
    )
    """For `choice`: other names that free answers may use."""
    several: bool = False
    """For `choice`: whether an answer may be several labels."""
    mode: ColumnMode | None = None
    """`score` looks how likely each label is, `constrained` decodes an answer that can be nothing
    else, `generate` takes any text and parses it. Null: `score` for `choice` and `yes_no`,
    `constrained` for `several` and `json`, else `generate`."""
    min_confidence: Share | Text = Field(
        default=0.0,
        json_schema_extra={"allowed": "a number from 0 to 1, or thresholds as FILE or FILE:0.95"},
    )
    """For `score` and `constrained` of `choice` and `yes_no`: below it there is no answer. A file
    has thresholds for each species (`naturelm calibrate`), so it is for `choice`."""
    species: bool | None = None
    """Whether the answers name species, which events, clips, reports and tables of other programs
    are about. Null: if it has a `species_list` or is of type `names`. Where no column names any,
    those of type `choice` and `yes_no` count."""
    top_k: int = Field(default=3, ge=1, le=1_000_000)
    """For `score`: how many labels are named with their probabilities, the answer included."""
    unit: Text | None = None
    """For `number`: what the values are in, such as Hz, kHz, s, ms, dB, m. Others are converted."""
    json_schema: dict[str, Any] | None = Field(
        default=None,
        alias="schema",
        json_schema_extra={"allowed": "a JSON Schema, such as {type: object, properties: ...}"},
    )
    """For `json`: the JSON Schema that values follow."""
    max_new_tokens: Annotated[int | None, Field(ge=1, le=MAX_POSITIONS)] = None
    """Longest answer, in tokens; what the command line or the configuration says if null."""
    merging_alpha: float | None = None
    """Share of the adapter for this column."""
    ask_if: Text | None = None
    """A condition on columns that stand before: only then it is asked."""


class QuestionnaireFile(Section):
    """A whole questionnaire."""

    model_config = ConfigDict(title="Questionnaire")

    title: Text | None = None
    """What it is called."""
    weights: Text | None = None
    """Which weights the values of `merging_alpha` are for; it is shown, and changes nothing."""
    window_length_seconds: Annotated[float | None, Field(gt=0, le=3600)] = None
    """Length of a window, after time expansion."""
    hop_length_seconds: Annotated[float | None, Field(gt=0, le=3600)] = None
    """From the start of one window to the next, after time expansion."""
    time_expansion: Annotated[float | None, Field(gt=0, le=1000)] = None
    """The sound is slowed down so many times, so that ultrasound is heard."""
    channel: Annotated[int, Field(ge=1, le=100_000)] | Literal["mean"] | None = Field(
        default=None, json_schema_extra={"allowed": "mean, or the number of a channel from 1 on"}
    )
    """Which channel is heard."""
    merging_alpha: float | None = None
    """Share of the adapter, for columns that have none of their own."""
    columns: dict[str, ColumnFile] = Field(
        json_schema_extra={
            "allowed": "a mapping from names of columns to sections with the keys "
            "question, type, ..."
        },
    )
    """What is asked, in the order in which it stands in the table."""

    @field_validator("columns")
    @classmethod
    def _names_are_usable(cls, columns: dict[str, ColumnFile]) -> dict[str, ColumnFile]:
        if not columns:
            raise ValueError("there is no column; ask for at least one")
        return columns


# -- names of columns -------------------------------------------------------------------------

_OTHER_COLUMNS = (
    "audio_path audio_bytes audio_modified audio_digest audio_folder start end query text answers "
    "said confidence confidences alternatives merging_alpha note asked model run schema_version "
    "context claim error error_type windows mean_confidence question label site recorder zone "
    "deployment latitude longitude place habitat date month time week local_time utc_time hour"
)
RESERVED = frozenset(_OTHER_COLUMNS.split())
"""What other columns of the tables are called."""
_ENDINGS = ("_confidence", "_said", "_alternatives")
_MOST_LETTERS = 60
_WORDS = {"true", "false", "none"}


def problem_of_name(name: str, before: Mapping[str, object]) -> str | None:
    """Why a column cannot be called so, None if it can.

    before: the columns that stand before it
    """
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name) or len(name) > _MOST_LETTERS:
        return f"begins with a letter and has letters A to Z, digits and _, at most {_MOST_LETTERS}"
    if keyword.iskeyword(name) or name.lower() in _WORDS:
        return "is a word of conditions; take another name"
    if name.lower() in RESERVED or name.lower().endswith(_ENDINGS):
        return "is what another column of the table is called; take another name"
    twin = next((one for one in before if one.lower() == name.lower()), None)
    return None if twin is None else f"differs from {twin} by capital letters only"


# -- keys that go with a type -----------------------------------------------------------------

_OF_ANY = ("question", "type", "merging_alpha", "ask_if", "max_new_tokens")
_OF_TYPE: dict[str, tuple[str, ...]] = {
    "choice": (
        *("labels", "species_list", "names", "synonyms"),
        *("several", "mode", "min_confidence", "top_k", "species"),
    ),
    "yes_no": ("mode", "min_confidence"),
    "text": ("species",),
    "names": ("species",),
    "number": ("unit",),
    "json": ("schema", "mode"),
}
MODES: dict[str, tuple[ColumnMode, ...]] = {
    "choice": ("score", "constrained", "generate"),
    "yes_no": ("score", "constrained", "generate"),
    "json": ("constrained", "generate"),
}


def key_name(field: str) -> str:
    """The key of a field in the file."""
    return ColumnFile.model_fields[field].alias or field


def wrong_keys(column: ColumnFile) -> list[tuple[str, str]]:
    """Keys that do not go with the type, each with what is wrong."""
    fit = (*_OF_ANY, *_OF_TYPE.get(column.type, ()))
    found = []
    for field in sorted(column.model_fields_set):
        key = key_name(field)
        if key not in fit and getattr(column, field) is not None:
            owners = " and ".join(one for one, keys in _OF_TYPE.items() if key in keys)
            found.append(
                (key, f"is for type {owners}, and the type is {column.type}; leave it out")
            )
    if column.mode is not None and column.mode not in MODES.get(column.type, (column.mode,)):
        modes = ", ".join(MODES[column.type])
        found.append(("mode", f"{column.mode} does not go with {column.type}; take one of {modes}"))
    return found


# -- problems in words ------------------------------------------------------------------------


@cache
def _nodes(section: type[Section]) -> dict[str, Any]:
    """JSON Schema of each key of a section."""
    properties: dict[str, Any] = section.model_json_schema()["properties"]
    return properties


def problem_of(detail: Any, source: Source) -> str:
    """A pydantic error in words: key, line, value and what is allowed."""
    path: KeyPath = tuple(detail["loc"])
    if path[-1] == "[key]":
        where = f"columns: {show(detail['input'])} is not allowed"
        return f"{where}; the name of a column is a text, and such as yes, no and on are none"
    in_column = len(path) > 2 and path[0] == "columns"
    section = ColumnFile if in_column else QuestionnaireFile
    path = path[: 3 if in_column else 2] if in_column or path[0] == "columns" else path[:1]
    place = source.place(path)
    kind, value, nodes = detail["type"], detail["input"], _nodes(section)
    key = str(path[2] if in_column else path[0])
    if kind == "extra_forbidden":
        return f"{place}: {not_among(key.lower().replace('-', '_'), nodes, value)}"
    if len(path) == 2 and path[0] == "columns" and not in_column:
        keys = "question, type and those that go with the type"
        return f"{place}: {show(value)} is not allowed; it must be a section with {keys}"
    allowed = describe(nodes[key])
    if kind == "missing":
        return f"{place}: missing; it must be {allowed}"
    if kind == "value_error":
        return f"{place}: {detail['ctx']['error']}"
    if isinstance(value, bool) and "true" not in allowed:
        allowed += "; in YAML yes, no, on and off are true and false: write them in quotes"
    return f"{place}: {show(value)} is not allowed; it must be {allowed}"
