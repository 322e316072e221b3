"""Questionnaires: YAML files that say what is asked about every window, column by column.

`read_questionnaire` reads and checks one; whatever is wrong is named with its key and line.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from NatureLM.config.load import as_error, checked
from NatureLM.config.strict_yaml import MAX_PROBLEMS, KeyPath, Source, read_yaml
from NatureLM.errors import ConfigError, UsageError
from NatureLM.generation.labels import NOTHING, LabelChoice
from NatureLM.results.thresholds import MinConfidence, read_min_confidence
from NatureLM.species import SpeciesList, presets, read_species_list
from NatureLM.survey import parse, preset_folder, preset_names
from NatureLM.survey.condition import Condition, read_condition, waves
from NatureLM.survey.lists import LETTERS, ClosedList, counts, names, options_text
from NatureLM.survey.said import Unparsed
from NatureLM.survey.schema import (
    ColumnFile,
    ColumnMode,
    ColumnType,
    QuestionnaireFile,
    problem_of,
    problem_of_name,
    wrong_keys,
)
from NatureLM.util import did_you_mean

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
