"""All rows of a result file: as CSV, JSON lines and Parquet, which has the types of the columns.

A wide table has a column for each thing that is said. Of answers to queries they are those of a
`WindowRow`; of a survey one for each question, with `NAME_confidence` where it is scored and
`NAME_said` where an answer could not be parsed. `note`, and the columns of events, of time and
place and of claims are there where a row has one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from NatureLM.data.table import DataError, read_table
from NatureLM.generation.labels import NOTHING
from NatureLM.results.detections import Detection, ResultFile
from NatureLM.results.rows import ErrorRow, Row, SurveyRow, WindowRow, to_line, value_text
from NatureLM.results.tables import (
    CSV_ENCODING,
    alternatives_of,
    alternatives_text,
    arrow_and_parquet,
    number,
    recording_of,
    share,
    with_formula,
    without_formula,
    write_batches,
    write_lines,
    write_rows,
)

BEFORE = ("recording", "start", "end")
ANSWER = ("query", "text", "confidence", "alternatives")
AFTER = ("merging_alpha", "model", "error")
EVENT = ("windows", "mean_confidence")
CLAIM = "claim_"
CONFIDENCE, SAID = "_confidence", "_said"
_TAKEN = frozenset({*BEFORE, *AFTER, "note"})


@dataclass
class Columns:
    """The columns that rows need, in the order of the table.

    values: of a questionnaire: its columns, each with the types of its values
    context: when and where, each with the types of its values
    """

    is_survey: bool = False
    values: dict[str, set[type]] = field(default_factory=dict)
    scored: dict[str, None] = field(default_factory=dict)
    said: dict[str, None] = field(default_factory=dict)
    has_notes: bool = False
    has_events: bool = False
    context: dict[str, set[type]] = field(default_factory=dict)
    claims: dict[str, set[type]] = field(default_factory=dict)

    def add(self, row: Row) -> None:
        """Count a row in."""
        if isinstance(row, ErrorRow):
            return
        self.has_notes |= bool(row.note)
        _count(row.context, self.context)
        _count(row.claim, self.claims)
        if isinstance(row, SurveyRow):
            self.is_survey = True
            before = ""
            for name, value in row.answers.items():
                if name not in self.values:
                    self.values = _with(self.values, name, before)
                self.values[name].add(_kind(value))
                before = name
            self.scored.update(dict.fromkeys(row.confidences or ()))
            self.said.update(dict.fromkeys(row.said or ()))
        else:
            self.has_events |= row.windows is not None

    @property
    def names(self) -> list[str]:
        """The header."""
        names = [*BEFORE, *(self._asked() if self.is_survey else ANSWER), *AFTER]
        names += ["note"] * self.has_notes
        names += EVENT if self.has_events else ()
        names += [_free(name, names) for name in self.context]
        return [*names, *(CLAIM + name for name in self.claims)]

    @property
    def shares(self) -> set[str]:
        """The columns that hold confidences."""
        scored = {name + CONFIDENCE for name in self.scored}
        return {"confidence", "mean_confidence", "claim_confidence", *scored}

    @property
    def questions(self) -> list[str]:
        """The columns of a questionnaire."""
        return list(dict.fromkeys([*self.values, *self.scored, *self.said]))

    @property
    def kinds(self) -> dict[int, set[type]]:
        """The types of values, by the place of their column, where rows alone say them."""
        names = self._asked()
        found = {}
        if self.is_survey:
            for name in self.questions:
                shown = f"answer_{name}" if name in _TAKEN else name
                found[len(BEFORE) + names.index(shown)] = self.values.get(name, set())
        last = [*self.context.values(), *self.claims.values()]
        first = len(self.names) - len(last)
        return {**found, **{first + at: one for at, one in enumerate(last)}}

    def _asked(self) -> list[str]:
        found: list[str] = []
        for name in self.questions:
            found.append(f"answer_{name}" if name in _TAKEN else name)
            found += [name + CONFIDENCE] if name in self.scored else []
            found += [name + SAID] if name in self.said else []
        return found

    def cells(self, row: Row) -> list[Any]:
        """The values of a row, in the order of `names`; None where there is none."""
        cells: list[Any]
        if isinstance(row, ErrorRow):
            asked = len(self._asked()) if self.is_survey else len(ANSWER)
            cells = [row.audio_path, None, None, *[None] * asked]
            cells += [row.merging_alpha, row.model, row.error]
            return cells + [None] * (len(self.names) - len(cells))
        cells = [row.audio_path, row.start, row.end, *self._answers(row)]
        cells += [row.merging_alpha, row.model, None]
        cells += [row.note] if self.has_notes else []
        if self.has_events:
            cells += (
                [row.windows, row.mean_confidence] if isinstance(row, WindowRow) else [None] * 2
            )
        context, claim = flat(row.context), flat(row.claim)
        return [*cells, *map(context.get, self.context), *map(claim.get, self.claims)]

    def _answers(self, row: WindowRow | SurveyRow) -> list[Any]:
        if not isinstance(row, SurveyRow):
            return [row.query, row.text, row.confidence, row.alternatives]
        cells: list[Any] = []
        for name in self.questions:
            cells.append(row.answers.get(name))
            cells += [(row.confidences or {}).get(name)] if name in self.scored else []
            cells += [(row.said or {}).get(name)] if name in self.said else []
        return cells


def columns_for(answers: ResultFile) -> Columns:
    """The columns of a file of answers; events of a questionnaire are answers to its questions."""
    return columns_of(answers.rows(), () if "events" in answers.settings else answers.types)


def columns_of(rows: Iterable[Row], questions: Iterable[str] = ()) -> Columns:
    """The columns that the rows need, and those of a questionnaire that no row has."""
    columns = Columns()
    for row in rows:
        columns.add(row)
    for name in questions:
        columns.values.setdefault(name, set())
    columns.is_survey = bool(columns.values)
    return columns


def _with(values: dict[str, set[type]], name: str, before: str) -> dict[str, set[type]]:
    """The columns with one more behind the one that it follows: not every row has all."""
    names = list(values)
    names.insert(names.index(before) + 1 if before else 0, name)
    return {one: values.get(one, set()) for one in names}


# CSV and JSON lines


def write_csv(answers: ResultFile, target: Path) -> int:
    """All rows of the answers for spreadsheets; the number of lines. Raises OutputError.

    Texts that a spreadsheet would run as a formula begin with an apostrophe.
    """
    header, lines = csv_lines(columns_for(answers), answers.rows())
    return write_rows(target, header, lines, encoding=CSV_ENCODING, lineterminator="\r\n")


def csv_lines(columns: Columns, rows: Iterable[Row]) -> tuple[list[str], Iterator[list[str]]]:
    """The header, and one line for each answer and each recording that could not be read."""
    is_share = [name in columns.shares for name in columns.names]
    lines = (list(map(_cell, columns.cells(row), is_share)) for row in rows)
    return list(map(without_formula, columns.names)), lines


def _cell(value: Any, is_share: bool) -> str:
    if value is None:
        return ""
    if is_share:
        return share(value)
    if isinstance(value, float):
        return number(value)
    if isinstance(value, tuple):
        value = alternatives_text(value)
    return without_formula(value_text(value))


def read_csv(path: Path) -> Iterator[Detection]:
    """What a table says that is a detection. Raises DataError."""
    table = [row for _, row in read_table(path).rows]
    rows = ({name: with_formula(cell) for name, cell in row.items()} for row in table)
    yield from detections(rows, path, choices_in(table), alternatives_of)


def write_jsonl(answers: ResultFile, target: Path) -> int:
    """All rows as they are, which all commands read again; how many. Raises OutputError."""
    return write_lines(target, (to_line(row).decode() for row in answers.rows()))


def read_jsonl(path: Path) -> Iterator[Detection]:
    """The detections of a result file, with the full paths of their recordings."""
    yield from ResultFile(path)


# Reading wide tables


def detections(
    rows: Iterable[Mapping[str, Any]],
    path: Path,
    choices: Sequence[str],
    pairs: Callable[[Any], tuple[tuple[str, float], ...]],
) -> Iterator[Detection]:
    """What the rows of a table say that is a detection.

    choices: the columns of a questionnaire that name something
    pairs: other answers, from the cell `alternatives`
    """
    for row in rows:
        if row.get("error") or row.get("start") in (None, ""):
            continue
        for question, label, confidence in _answers_of(row, choices):
            used = {*_KNOWN, question, question + CONFIDENCE}
            yield Detection.named(
                label,
                audio_path=recording_of(path, str(row["recording"])),
                start=float(row["start"]),
                end=float(row["end"]),
                confidence=confidence,
                question=question,
                alternatives=pairs(row["alternatives"]) if row.get("alternatives") else (),
                note=row.get("note") or "",
                windows=int(row["windows"]) if row.get("windows") else None,
                mean_confidence=_float(row.get("mean_confidence")),
                claim=_claim(row),
                values={
                    name: value
                    for name, value in row.items()
                    if name not in used and not name.startswith(CLAIM) and value not in (None, "")
                },
            )


def _answers_of(
    row: Mapping[str, Any], choices: Sequence[str]
) -> Iterator[tuple[str, str, float | None]]:
    if "query" in row:
        if row["text"] not in (None, "", NOTHING):
            yield row["query"], row["text"], _float(row.get("confidence"))
        return
    for name in choices:
        value, confidence = row.get(name), _float(row.get(name + CONFIDENCE))
        said = value if isinstance(value, list) else [value]
        for one in said:
            if one is True or one == "yes":
                yield name, name, confidence
            elif one not in (None, "", NOTHING, False, "no"):
                yield name, str(one), confidence


def choices_in(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The columns of a questionnaire that name something, as far as a table shows.

    They are scored, or hold yes and no; where there are none, they are those that hold a text.
    """
    names = list(rows[0]) if rows else []
    if "query" in names or "merging_alpha" not in names:
        return []
    asked = names[len(BEFORE) : names.index("merging_alpha")]
    asked = [name for name in asked if not name.endswith((CONFIDENCE, SAID))]
    held = {name: {row.get(name) for row in rows} - {None, ""} for name in asked}
    found = [
        name
        for name in asked
        if name + CONFIDENCE in names or (held[name] and held[name] <= {"yes", "no", True, False})
    ]
    return found or [
        name for name in asked if any(_float(one) is None for one in held[name] - {True, False})
    ]


def _claim(row: Mapping[str, Any]) -> dict[str, Any]:
    told = {name.removeprefix(CLAIM): one for name, one in row.items() if name.startswith(CLAIM)}
    claim = {name: one for name, one in told.items() if one not in (None, "")}
    if "confidence" in claim:
        claim["confidence"] = _float(claim["confidence"])
    if "agrees" in claim:
        claim["agrees"] = claim["agrees"] in (True, "yes")
    return claim


def _float(value: Any) -> float | None:
    try:
        return None if value in (None, "") else float(value)
    except (TypeError, ValueError):
        return None


_KNOWN = frozenset({*BEFORE, *ANSWER, *AFTER, *EVENT, "note"})


# Values


def flat(values: Mapping[str, Any] | None) -> dict[str, Any]:
    """Values without levels: `{"sun": {"set": 1}}` is `{"sun_set": 1}`; lists become text."""
    found: dict[str, Any] = {}
    for name, value in (values or {}).items():
        if isinstance(value, Mapping):
            found.update({f"{name}_{key}": one for key, one in flat(value).items()})
        else:
            found[name] = value_text(value) if isinstance(value, list) else value
    return found


def _count(values: Mapping[str, Any] | None, found: dict[str, set[type]]) -> None:
    for name, value in flat(values).items():
        found.setdefault(name, set()).add(_kind(value))


def _kind(value: Any) -> type:
    """The type of a value; whole numbers that no table holds are text."""
    return str if isinstance(value, int) and abs(value) >= 1 << 63 else type(value)


def _free(name: str, taken: list[str]) -> str:
    return f"context_{name}" if name in taken else name


# Parquet: small, typed, and quickly read by pandas, R and DuckDB

_AT_A_TIME = 10_000  # rows that are held
_ABOUT = b"naturelm"


def write_parquet(answers: ResultFile, target: Path) -> int:
    """All rows of the answers; the number of lines. Raises OutputError."""
    arrow, _ = arrow_and_parquet()
    columns = columns_for(answers)
    about = {"columns": list(answers.columns), "settings": dict(answers.settings)}
    schema = _schema(arrow, columns, {_ABOUT: json.dumps(about).encode()})
    rows = map(columns.cells, answers.rows())
    array = partial(_array, arrow)
    return write_batches(target, schema, rows, at_a_time=_AT_A_TIME, array=array)


def _schema(arrow: Any, columns: Columns, about: Mapping[bytes, bytes]) -> Any:
    text, share = arrow.string(), arrow.float64()
    pair = arrow.struct([("label", text), ("confidence", share)])
    types = {
        **dict.fromkeys((*BEFORE, *ANSWER, *AFTER), text),
        **dict.fromkeys(("start", "end", "merging_alpha", *columns.shares), share),
        **{"alternatives": arrow.list_(pair), "windows": arrow.int64()},
    }
    kinds = {at: _type(arrow, found) for at, found in columns.kinds.items()}
    return arrow.schema(
        [(name, kinds.get(at, types.get(name, text))) for at, name in enumerate(columns.names)],
        metadata=about,
    )


def _type(arrow: Any, kinds: set[type]) -> Any:
    """The type that holds all values: what is mixed is text."""
    kinds = kinds - {type(None)}
    if kinds == {bool}:
        return arrow.bool_()
    if kinds == {int}:
        return arrow.int64()
    if kinds and kinds <= {int, float}:
        return arrow.float64()
    return arrow.list_(arrow.string()) if kinds == {list} else arrow.string()


def _array(arrow: Any, kind: Any, values: Sequence[Any]) -> Any:
    made: list[Any]
    if arrow.types.is_string(kind):
        made = [None if one is None else _text(one) for one in values]
    elif not arrow.types.is_list(kind):
        made = list(values)
    elif arrow.types.is_struct(kind.value_type):
        made = [
            None if one is None else [{"label": _text(a), "confidence": b} for a, b in one]
            for one in values
        ]
    else:
        made = [None if one is None else [_text(part) for part in one] for one in values]
    return arrow.array(made, type=kind)


def _text(value: Any) -> str:
    """As text without halves of characters, which names of files may have."""
    return value_text(value).encode("utf-8", "backslashreplace").decode()


def read_parquet(path: Path) -> Iterator[Detection]:
    """What a table says that is a detection. Raises DataError."""
    arrow, parquet = arrow_and_parquet()
    try:
        with parquet.ParquetFile(path) as file:
            about = json.loads((file.schema_arrow.metadata or {}).get(_ABOUT, b"{}"))
            missing = [name for name in BEFORE if name not in file.schema_arrow.names]
            if missing:
                raise DataError(f"{path}: has no column {', '.join(missing)}")
            choices = about.get("columns")
            if choices is None:
                choices = choices_in(file.read().to_pylist())
            for batch in file.iter_batches(_AT_A_TIME):
                yield from detections(batch.to_pylist(), path, choices, _pairs)
    except (OSError, ValueError, arrow.ArrowException) as error:
        raise DataError(f"{path}: cannot be read as Parquet ({error})") from None


def _pairs(cell: Any) -> tuple[tuple[str, float], ...]:
    return tuple((one["label"], one["confidence"]) for one in cell)
