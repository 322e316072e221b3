"""Questionnaires: YAML files that say what is asked about every window, column by column.

`ColumnFile` and `QuestionnaireFile` are the keys of the YAML. `read_questionnaire` reads and checks
one; whatever is wrong is named with its key and line.
"""

from __future__ import annotations

import keyword
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import ConfigDict, Field, field_validator

from NatureLM.config.load import as_error, checked, describe, not_among, show
from NatureLM.config.schema import MAX_POSITIONS, Section, Share, Text
from NatureLM.config.strict_yaml import MAX_PROBLEMS, KeyPath, Source, read_yaml
from NatureLM.errors import ConfigError, UsageError
from NatureLM.generation.labels import NOTHING, LabelChoice
from NatureLM.results.thresholds import MinConfidence, read_min_confidence
from NatureLM.species import SpeciesList, presets, read_species_list
from NatureLM.survey import parse, preset_folder, preset_names
from NatureLM.survey.condition import Condition, read_condition, waves
from NatureLM.survey.lists import LETTERS, ClosedList, counts, names, options_text
from NatureLM.survey.parse import Unparsed
from NatureLM.util import did_you_mean

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
    for name in sorted(column.model_fields_set):
        key = key_name(name)
        if key not in fit and getattr(column, name) is not None:
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


YES, NO = "Yes", "No"
"""What a `yes_no` column is scored between."""

OF_WINDOW = ("place", "site", "habitat", "date", "month", "time", "label")
"""What a question may hold in braces, and each window fills."""
_OF_LABELS = ("labels", "species_list", "options")
_IN_BRACES = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)\}")

WINDOWS = ("window_length_seconds", "hop_length_seconds", "time_expansion", "channel")
"""What a questionnaire may say of windows."""


@dataclass(frozen=True, eq=False)
class Column:
    """A question and what its answers are.

    question: with the labels filled in, and `placeholders` still to be filled
    placeholders: what each window fills, see `OF_WINDOW`
    labels: what may be answered: of a choice without `None`, of yes_no `YES` and `NO`, else none
    is_species: whether answers name species
    scientific_names: from common to scientific name, where the list has both
    synonyms: from other names that are understood in answers to labels
    min_confidence: a number, or thresholds for each species (see `results.thresholds.least`)
    merging_alpha, max_new_tokens: None where the file says none
    condition: None where it is always asked
    parser: see `value`
    """

    name: str
    type: ColumnType
    question: str
    mode: ColumnMode
    labels: tuple[str, ...] = ()
    several: bool = False
    is_species: bool = False
    top_k: int = 3
    min_confidence: float | MinConfidence = 0.0
    merging_alpha: float | None = None
    max_new_tokens: int | None = None
    unit: str | None = None
    json_schema: Mapping[str, Any] | None = None
    condition: Condition | None = None
    scientific_names: Mapping[str, str] = field(default_factory=dict)
    synonyms: Mapping[str, str] = field(default_factory=dict)
    parser: Callable[[str], Any] = field(default=parse.text, repr=False)

    @property
    def is_scored(self) -> bool:
        """Whether answers have a confidence."""
        return bool(self.labels) and self.mode != "generate"

    @cached_property
    def placeholders(self) -> frozenset[str]:
        """What each window fills in the question."""
        return frozenset(_IN_BRACES.findall(self.question)) & frozenset(OF_WINDOW)

    def value(self, text: str) -> tuple[Any, bool]:
        """The typed value of an answer, and whether it could be parsed.

        None for the answer that no label fits; a list for several labels and for names. What could
        not be parsed has the value None.
        """
        found = self.parser(text)
        return (None, False) if isinstance(found, Unparsed) else (found, True)

    def settings(self) -> dict[str, Any]:
        """All that changes its answers, as plain values; what is at its default is left out."""
        values: dict[str, Any] = {"type": self.type, "question": self.question, "mode": self.mode}
        if self.labels:
            values["labels"] = list(self.labels)
        if self.is_species:
            values["species"] = True
        for name in ("several", "min_confidence", "max_new_tokens", "unit"):
            if getattr(self, name):
                values[name] = getattr(self, name)
        if isinstance(self.min_confidence, MinConfidence):
            values["min_confidence"] = self.min_confidence.plain()
        if self.merging_alpha is not None:
            values["merging_alpha"] = self.merging_alpha
        if self.mode == "score":
            values["top_k"] = self.top_k
        if self.synonyms:
            values["synonyms"] = dict(self.synonyms)
        if self.json_schema is not None:
            values["schema"] = dict(self.json_schema)
        if self.condition is not None:
            values["ask_if"] = self.condition.text
        return values


@dataclass(frozen=True, eq=False)
class Questionnaire:
    """A checked questionnaire.

    source: the file, or the name of the preset
    columns: in their order
    weights: which weights its α are for
    notes: what there is to say about how it was read
    The other fields are None where the file leaves them to the command line.
    """

    source: str
    columns: tuple[Column, ...]
    title: str | None = None
    weights: str | None = None
    window_length_seconds: float | None = None
    hop_length_seconds: float | None = None
    time_expansion: float | None = None
    channel: int | str | None = None
    notes: tuple[str, ...] = ()

    def groups(self) -> tuple[tuple[Column, ...], ...]:
        """The columns in waves: the conditions of one depend on earlier waves only."""
        by_name = {column.name: column for column in self.columns}
        order = waves({column.name: column.condition for column in self.columns})
        return tuple(tuple(by_name[name] for name in wave) for wave in order)

    def settings(self) -> dict[str, Any]:
        """All that changes the answers, as plain values; `columns` by name."""
        values = {name: getattr(self, name) for name in WINDOWS if getattr(self, name) is not None}
        return {**values, "columns": {column.name: column.settings() for column in self.columns}}

    @property
    def scientific_names(self) -> dict[str, str]:
        """From common to scientific name, of all columns."""
        return {k: v for column in self.columns for k, v in column.scientific_names.items()}


def read_questionnaire(source: str | Path) -> Questionnaire:
    """The questionnaire of a YAML file, or of the preset of that name.

    Raises ConfigError with all problems: file, key, line, value and what is allowed.
    """
    path, name = _found(source)
    read = read_yaml(path, "questionnaire", "keys such as `title:` and `columns:`")
    read.name = name
    given = checked(QuestionnaireFile, read, problem_of)
    return _Builder(given, read, path.parent).build()


def _found(source: str | Path) -> tuple[Path, str]:
    """The file of a questionnaire, and how messages call it."""
    text, path = str(source), Path(source)
    known = preset_names()
    if isinstance(source, Path) or path.is_file() or re.search(r"[/\\]|\.ya?ml$", text):
        return path, text
    if text in known:
        return preset_folder() / f"{text}.yml", text
    hint = did_you_mean(text, known)
    raise ConfigError(
        f"there is no questionnaire {text!r}{hint}; name a YAML file, or one of {', '.join(known)}"
    )


class _Builder:
    """Makes the columns of a file that pydantic has passed, and gathers what is wrong with them."""

    def __init__(self, given: QuestionnaireFile, source: Source, folder: Path) -> None:
        self._given, self._source, self._folder = given, source, folder
        self._problems: list[str] = []
        self._notes: list[str] = []

    def build(self) -> Questionnaire:
        made: dict[str, Column] = {}
        for name, column in self._given.columns.items():
            made[name] = self._column(name, column, made)
        if self._problems:
            raise as_error(self._source.name, self._problems[:MAX_PROBLEMS])
        return Questionnaire(
            self._source.name,
            tuple(made.values()),
            title=self._given.title,
            weights=self._given.weights,
            notes=tuple(self._notes),
            **{one: getattr(self._given, one) for one in WINDOWS},
        )

    def _wrong(self, name: str, key: str | None, what: str) -> None:
        path: KeyPath = ("columns", name) if key is None else ("columns", name, key)
        place = self._source.place(path if path in self._source.lines else path[:2])
        said = "" if path in self._source.lines or key is None else f"{key} "
        self._problems.append(f"{place}: {said}{what}")

    def _column(self, name: str, given: ColumnFile, earlier: Mapping[str, Column]) -> Column:
        problem = problem_of_name(name, earlier)
        if problem is not None:
            self._wrong(
                name, None, f"the name of a column {problem}" if "begins" in problem else problem
            )
        for key, what in wrong_keys(given):
            self._wrong(name, key, what)
        species = self._species(name, given)
        labels = self._labels(name, given, species)
        mode = self._mode(name, given)
        self._check_top_k(name, given, mode)
        synonyms = dict(_synonyms(given, species))
        alpha = self._given.merging_alpha if given.merging_alpha is None else given.merging_alpha
        return Column(
            name,
            given.type,
            self._question(name, given, mode, labels),
            mode,
            labels=labels,
            several=given.several,
            is_species=(
                given.species_list is not None or given.type == "names"
                if given.species is None
                else given.species
            ),
            top_k=given.top_k,
            min_confidence=self._min_confidence(name, given, mode),
            merging_alpha=alpha,
            max_new_tokens=given.max_new_tokens,
            unit=given.unit,
            json_schema=given.json_schema,
            condition=self._condition(name, given, earlier),
            scientific_names={} if species is None else species.scientific,
            synonyms=synonyms,
            parser=self._parser(name, given, labels, synonyms),
        )

    def _species(self, name: str, given: ColumnFile) -> SpeciesList | None:
        if given.type != "choice" or given.species_list is None:
            return None
        beside = self._folder / given.species_list
        source = beside if _exists(beside) and beside.is_file() else given.species_list
        try:
            found = read_species_list(source, prefer=given.names, presets=presets())
        except UsageError as error:
            self._wrong(name, "species_list", str(error))
            return None
        self._notes += found.notes
        return found

    def _labels(self, name: str, given: ColumnFile, species: SpeciesList | None) -> tuple[str, ...]:
        if given.type == "yes_no":
            return (YES, NO)
        if given.type != "choice":
            return ()
        if (given.labels is None) == (given.species_list is None):
            what = "a choice has labels or a species_list" + (", not both" if given.labels else "")
            self._wrong(name, "labels" if given.labels else None, what)
            return ()
        found = species.names if species is not None else tuple(given.labels or ())
        labels = tuple(label for label in found if label != NOTHING)
        if found:
            try:
                LabelChoice(labels)
            except UsageError as error:
                self._wrong(name, "labels" if given.labels else "species_list", str(error))
        for label in given.synonyms:
            if label not in labels and labels:
                hint = did_you_mean(label, labels)
                self._wrong(name, "synonyms", f"{label!r} is no label of the column{hint}")
        return labels

    def _mode(self, name: str, given: ColumnFile) -> ColumnMode:
        if given.several and given.mode == "score":
            self._wrong(name, "mode", "score finds one label; take constrained for several")
        if given.mode is not None:
            return given.mode
        if given.type in ("choice", "yes_no"):
            return "constrained" if given.several else "score"
        return "constrained" if given.type == "json" else "generate"

    def _min_confidence(
        self, name: str, given: ColumnFile, mode: ColumnMode
    ) -> float | MinConfidence:
        said = given.min_confidence
        if said and mode == "generate":
            self._wrong(name, "min_confidence", "is for mode score and mode constrained")
        if not isinstance(said, str):
            return said
        if given.type == "yes_no":
            self._wrong(name, "min_confidence", "is a number for yes_no, which is of no species")
            return 0.0
        beside = self._folder / said.strip()
        file = said.rpartition(":")[0]
        is_beside = _exists(beside) or (bool(file) and _exists(self._folder / file))
        try:
            source = beside if is_beside else said.strip()
            return read_min_confidence(source, option="min_confidence")
        except UsageError as error:
            self._wrong(name, "min_confidence", str(error).removeprefix("min_confidence "))
            return 0.0

    def _check_top_k(self, name: str, given: ColumnFile, mode: ColumnMode) -> None:
        if "top_k" in given.model_fields_set and given.type == "choice" and mode != "score":
            self._wrong(name, "top_k", f"is for mode score, and the mode is {mode}")

    def _question(
        self, name: str, given: ColumnFile, mode: ColumnMode, labels: Sequence[str]
    ) -> str:
        held = set(_IN_BRACES.findall(given.question))
        for one in sorted(held - {*OF_WINDOW, *_OF_LABELS}):
            known = [*_OF_LABELS, *OF_WINDOW]
            hint = did_you_mean(one, known, "{{{}}}")
            all_ = ", ".join(f"{{{each}}}" for each in known)
            self._wrong(name, "question", f"{{{one}}} is nothing that is filled in{hint} ({all_})")
        for one in sorted(held & set(_OF_LABELS)):
            if given.type != "choice":
                what = f"{{{one}}} is for type choice, and the type is {given.type}"
                self._wrong(name, "question", what)
        if "options" in held and given.type == "choice":
            if mode != "generate":
                what = "{options} asks for a letter, which mode generate reads; else take {labels}"
                self._wrong(name, "question", what)
            if len(labels) > len(LETTERS):
                self._wrong(name, "question", f"{{options}} is for up to {len(LETTERS)} labels")
        listed = ", ".join(labels)
        filled = {"labels": listed, "species_list": listed, "options": options_text(labels)}
        return _IN_BRACES.sub(lambda one: filled.get(one[1], one[0]), given.question)

    def _condition(
        self, name: str, given: ColumnFile, earlier: Mapping[str, Column]
    ) -> Condition | None:
        if given.ask_if is None:
            return None
        try:
            return read_condition(given.ask_if, earlier)
        except UsageError as error:
            self._wrong(name, "ask_if", f"{given.ask_if!r:.80}: {error}")
            return None

    def _parser(
        self, name: str, given: ColumnFile, labels: Sequence[str], synonyms: Mapping[str, str]
    ) -> Callable[[str], Any]:
        if given.type == "choice":
            closed = ClosedList(labels, synonyms, with_letters="{options}" in given.question)
            return closed.several if given.several else closed.one
        if given.type == "number":
            try:
                parse.check_unit(given.unit)
            except ValueError as error:
                self._wrong(name, "unit", f"{given.unit!r}: {error}")
            unit = given.unit
            return lambda text: parse.number(text, unit)
        if given.type == "json":
            return self._json_parser(name, given)
        return _PARSERS[given.type]

    def _json_parser(self, name: str, given: ColumnFile) -> Callable[[str], Any]:
        if given.json_schema is None:
            self._wrong(name, None, "a column of type json has a schema, such as {type: object}")
            return parse.text
        try:
            follows = parse.json_checker(given.json_schema)
        except UsageError as error:
            self._wrong(name, "schema", str(error))
            return parse.text
        return lambda text: parse.json_value(text, follows)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # longer than the name of a file can be
        return False


_PARSERS: dict[str, Callable[[str], Any]] = {
    "yes_no": parse.yes_no,
    "count": parse.count,
    "text": parse.text,
    "names": names,
    "counts": counts,
}


def _synonyms(given: ColumnFile, species: SpeciesList | None) -> Iterator[tuple[str, str]]:
    """Other names of labels: those of the file, and the scientific or common ones of the list."""
    for label, others in given.synonyms.items():
        yield from ((other, label) for other in others)
    if species is not None:
        for common, scientific in species.scientific.items():
            is_common = common in species.names
            yield (scientific, common) if is_common else (common, scientific)
