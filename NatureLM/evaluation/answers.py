"""Files of answers, read into groups: a data set at one value of each grouping column.

`load_answers` reads JSON lines, plain or gzipped, one at a time. A line that cannot be scored
becomes a `Problem` with file and line. Groups hold columns of numbers, and each distinct answer and
label is kept once, so 100,000 answers take a few megabytes.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import sys
import zlib
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any, TypeAlias, cast, get_args

from NatureLM.data.components import Task, components
from NatureLM.errors import NatureLMError, UsageError
from NatureLM.evaluation.names import (
    InvalidRow,
    NameKind,
    NameRule,
    Problem,
    means_value,
    refuse_unused_rules,
    rename,
)
from NatureLM.evaluation.protocols import NO_LABEL
from NatureLM.util import did_you_mean

Value: TypeAlias = str | int | float | None
Key: TypeAlias = tuple[Value, ...]
"""The data set and the values of the grouping columns."""

Row: TypeAlias = Mapping[str, Any]

DEFAULT_BY = ("query", "lora_scale")
CLUSTER_COLUMNS = ("cluster", "family", "recording")
BY_SAMPLE = "sample"
SUFFIXES = (".jsonl", ".jsonl.gz")
METRICS_SUFFIX = "_metrics.jsonl"


class NothingToScoreError(UsageError):
    """No row of the answers can be scored; the message says why."""


@dataclass(frozen=True)
class ReadOptions:
    """How rows are read.

    by: columns that make groups besides the data set; None takes those of `query` and `lora_scale`
        that the first row has
    labels: all that may be right; None allows any
    rules, scientific: the names under which labels are scored
    cluster: column of the clusters for intervals; None takes `cluster`, `family` or `recording`
        where all rows of a group have it
    task: of data sets that are no component of the benchmark
    where: only rows with these values are read
    apart: columns that make no groups, besides those of `where`, though they are among the default
    """

    by: tuple[str, ...] | None = None
    labels: tuple[str, ...] | None = None
    rules: tuple[NameRule, ...] = ()
    scientific: Mapping[str, str] = field(default_factory=dict)
    cluster: str | None = None
    task: Task | None = None
    where: Mapping[str, str] = field(default_factory=dict)
    apart: frozenset[str] = frozenset()


@dataclass
class Group:
    """The answers of one data set, query, alpha ...; row by row.

    names: the kind of names that its labels have been given
    prompt: the complete prompt of the first of its rows, where rows tell
    answers, labels: numbers of strings, (rows,)
    """

    key: Key
    task: Task
    names: NameKind = "common"
    prompt: str | None = None
    ids: list[str] = field(default_factory=list)
    answers: array[int] = field(default_factory=lambda: array("i"))
    labels: array[int] = field(default_factory=lambda: array("i"))
    clusters: list[str | None] = field(default_factory=list)
    cluster_by: str = BY_SAMPLE

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, rows: Iterable[int]) -> Group:
        """The group with these of its rows, in this order."""
        rows = list(rows)
        return replace(
            self,
            ids=[self.ids[i] for i in rows],
            answers=array("i", (self.answers[i] for i in rows)),
            labels=array("i", (self.labels[i] for i in rows)),
            clusters=[self.clusters[i] for i in rows],
        )


@dataclass
class Answers:
    """All answers: groups in sorted order, and the strings that their numbers stand for."""

    options: ReadOptions
    by: tuple[str, ...]
    groups: list[Group]
    answers: list[str]
    labels: list[str]
    problems: list[Problem]

    def __len__(self) -> int:
        return sum(map(len, self.groups))

    def answers_of(self, group: Group) -> list[str]:
        """The answer to each sample, (samples,)."""
        return [self.answers[number] for number in group.answers]

    def labels_of(self, group: Group) -> list[str]:
        """The label of each sample, (samples,)."""
        return [self.labels[number] for number in group.labels]


def load_answers(
    paths: Iterable[Path], options: ReadOptions, problems: list[Problem] | None = None
) -> Answers:
    """Read all files into groups.

    problems: gets the lines that cannot be scored; None raises NatureLMError at the first of them

    Raises NothingToScoreError where no row is left, and UsageError where a rule for names applies
    to none.
    """
    loader = _Loader(options, problems)
    for path in paths:
        loader.add(path, read_objects(path, loader.report))
    return loader.answers()


def load_rows(rows: Iterable[Row], options: ReadOptions = ReadOptions()) -> Answers:
    """The same for rows that are in memory; raises at the first that cannot be scored."""
    loader = _Loader(options, None)
    loader.add(Path("answers"), enumerate(rows, start=1))
    return loader.answers()


def split_labels(label: str) -> list[str]:
    """The labels that a label of a detection task names."""
    return [part for part in (part.strip() for part in label.split(",")) if part]


class _Loader:
    """Puts rows into groups.

    What the rows of a group have in common is checked at its first row and remembered; of the
    others only what may differ is looked at.
    """

    def __init__(self, options: ReadOptions, problems: list[Problem] | None) -> None:
        self._options = options
        self._stops = problems is None
        self._problems = [] if problems is None else problems
        self._by: tuple[str, ...] | None = options.by
        self._groups: dict[Key, Group] = {}
        self._numbers: dict[str, int] = {}  # of answers
        self._label_numbers: dict[str, int] = {}
        self._label_of: dict[tuple[Key, str], int] = {}  # the number of a label as rows have it
        self._place_of: dict[tuple[Key, str], tuple[Path, int]] = {}  # file and line of an id
        self._allowed = None if options.labels is None else frozenset(options.labels)
        self._used_rules: set[NameRule] = set()
        self._paths: list[Path] = []

    def report(self, problem: Problem) -> None:
        """Collect a problem, or raise NatureLMError where problems end the work."""
        if self._stops:
            raise NatureLMError(
                f"{problem} (--on-error skip leaves such lines out and counts them)"
            )
        self._problems.append(problem)

    def add(self, path: Path, rows: Iterable[tuple[int, Row]]) -> None:
        """Add rows with their numbers, from 1."""
        self._paths.append(path)
        for line, row in rows:
            key: Key | None = None
            try:
                if self._options.where and not self._is_wanted(row):
                    continue
                group = self._group(row)
                key = group.key
                self._add(row, group, (path, line))
            except InvalidRow as bad:
                self.report(Problem(str(path), line, bad.kind, str(bad), key))

    def answers(self) -> Answers:
        """What was read; rows in the order of their ids, so that the order of lines is the same."""
        groups = [group for group in self._groups.values() if len(group)]
        if not groups:
            files = ", ".join(map(str, self._paths))
            lines = f"; {len(self._problems)} lines have errors" if self._problems else ""
            where = " and ".join(f"{k}={v}" for k, v in self._options.where.items())
            wanted = f" with {where}" if where else ""
            message = f"{files}: there is no answer{wanted} that can be scored{lines}"
            raise NothingToScoreError(message)
        groups.sort(key=lambda group: _sort_key(group.key))
        by = self._by or ()
        seen = {name: {g.key[i] for g in groups} for i, name in enumerate(("dataset_name", *by))}
        refuse_unused_rules(self._options.rules, self._used_rules, seen)
        return Answers(
            self._options,
            by,
            [self._finished(group) for group in groups],
            list(self._numbers),
            list(self._label_numbers),
            self._problems,
        )

    def _finished(self, group: Group) -> Group:
        group = group.take(sorted(range(len(group)), key=group.ids.__getitem__))
        columns = {one and one.partition("\n")[0] for one in group.clusters}
        if len(columns) == 1 and None not in columns:
            group.cluster_by = columns.pop() or BY_SAMPLE
        elif self._options.cluster is None:
            group.clusters = [None] * len(group)
        return group

    def _is_wanted(self, row: Row) -> bool:
        where = self._options.where
        return all(means_value(text, _group_value(row, name)) for name, text in where.items())

    def _add(self, row: Row, group: Group, place: tuple[Path, int]) -> None:
        identity = _id_of(row)
        label = _nonempty(row, "label")
        number = self._label_of.get((group.key, label))
        if number is None:
            scored = self._scored_label(label, group)
            number = self._label_numbers.setdefault(scored, len(self._label_numbers))
            self._label_of[group.key, label] = number
        answer = _answer_of(row)
        cluster = _cluster_of(row, self._options.cluster)
        self._check_task(row, group)
        first = self._place_of.setdefault((group.key, identity), place)
        if first is not place:
            where = f"{first[0]}:{first[1]}"
            message = f"the id {identity!r} is there twice, the first time at {where}"
            raise InvalidRow("duplicate id", message)
        group.ids.append(identity)
        group.answers.append(self._numbers.setdefault(answer, len(self._numbers)))
        group.labels.append(number)
        group.clusters.append(cluster)

    def _group(self, row: Row) -> Group:
        if self._by is None:
            apart = self._options.apart | self._options.where.keys()
            self._by = tuple(name for name in DEFAULT_BY if _has(row, name) and name not in apart)
        try:
            key: Key = tuple(row[name] for name in ("dataset_name", *self._by))
            if bool not in map(type, key):
                return self._groups[key]
        except (KeyError, TypeError):
            pass  # it is new, or something is wrong with it
        key = (_nonempty(row, "dataset_name"), *(_group_value(row, name) for name in self._by))
        if key not in self._groups:
            task = self._task(str(key[0]), row)
            self._groups[key] = Group(key, task, self._names(key), _prompt_of(row))
        return self._groups[key]

    def _task(self, dataset: str, row: Row) -> Task:
        known = components().get(dataset)
        task = known.task if known else self._options.task or row.get("task")
        if task not in get_args(Task):
            raise InvalidRow(
                "unknown dataset",
                f"{dataset!r} is no component of BEANS-Zero{did_you_mean(dataset, components())}; "
                "for data of your own say --task, or give rows a key `task` "
                f"({', '.join(get_args(Task))})",
            )
        return cast(Task, task)

    def _check_task(self, row: Row, group: Group) -> None:
        """Raise InvalidRow for a row whose task is another than that of its group."""
        task = row.get("task") or group.task
        if task == group.task or self._options.task or group.key[0] in components():
            return
        raise InvalidRow(
            "wrong value",
            f"task is {task!r:.60}, and rows of {group.key[0]!r} before it have {group.task!r}; "
            "give them another dataset_name, or group by it: --by query,lora_scale,task",
        )

    def _scored_label(self, label: str, group: Group) -> str:
        """The label under the name that is scored."""
        is_set = group.task == "detection"
        parts = split_labels(label) if is_set else [label]
        if self._allowed is not None and group.task != "captioning":
            for part in parts:
                if part not in self._allowed and not (is_set and part == NO_LABEL):
                    message = f"the label {part!r} is not among those of --labels"
                    hint = did_you_mean(part, self._allowed)
                    raise InvalidRow("label not allowed", message + hint)
        return ", ".join(
            part
            if is_set and part == NO_LABEL
            else rename(part, group.names, self._options.scientific)
            for part in parts
        )

    def _names(self, key: Key) -> NameKind:
        """The kind of names of a group's labels."""
        values = dict(zip(("dataset_name", *(self._by or ())), key, strict=True))
        rules = [rule for rule in self._options.rules if rule.applies_to(values)]
        if len({rule.kind for rule in rules}) > 1:
            raise UsageError(f"--names {rules[0]} and {rules[1]} are both true of {values}")
        self._used_rules.update(rules)
        return rules[0].kind if rules else "common"


def _sort_key(key: Key) -> tuple[tuple[int, float, str], ...]:
    """Sorts keys of mixed values: null, numbers, then strings."""
    return tuple(
        (0, 0.0, "") if v is None else (2, 0.0, v) if isinstance(v, str) else (1, float(v), "")
        for v in key
    )


# Rows of `naturelm infer` and of the benchmark's own data name some things differently.
_OTHER_NAMES = {"prediction": "text", "label": "output", "lora_scale": "merging_alpha"}


def _has(row: Row, key: str) -> bool:
    """Whether the row has the key, under this name or the other one."""
    return key in row or _OTHER_NAMES.get(key) in row


def _get(row: Row, key: str) -> Any:
    if not _has(row, key):
        raise InvalidRow("missing key", f"the key {key!r} is missing")
    return row[key] if key in row else row[_OTHER_NAMES[key]]


def _nonempty(row: Row, key: str) -> str:
    """A string that is not blank."""
    found = _get(row, key)
    if isinstance(found, str) and found.strip():
        return found
    what = "empty" if isinstance(found, str) else "null" if found is None else f"{found!r:.60}"
    raise InvalidRow("wrong value", f"{key} is {what}; a string is needed")


def _answer_of(row: Row) -> str:
    """The answer, which may be empty."""
    if "error" in row and not (row.get("prediction") or row.get("text")):
        raise InvalidRow("no answer", f"the run has no answer here: {row['error']!s:.200}")
    found = _get(row, "prediction")
    if found is None:
        message = "the answer is null; a string is needed, which may be empty"
        raise InvalidRow("null answer", message)
    if not isinstance(found, str):
        raise InvalidRow("wrong value", f"the answer is {found!r:.60}; a string is needed")
    return found


def _group_value(row: Row, key: str) -> Value:
    """A string, a finite number or null, by which groups are made; an α in quotes is a number."""
    found: Any = _get(row, key)
    if key == "lora_scale" and isinstance(found, str):
        with contextlib.suppress(ValueError):
            found = float(found)
    if found is None or isinstance(found, str):
        return found
    if type(found) in (int, float) and abs(found) <= sys.float_info.max:
        return found  # type: ignore[no-any-return]
    raise InvalidRow("wrong value", f"{key} is {found!r:.60}; a number or a string is needed")


def _id_of(row: Row) -> str:
    found = _get(row, "id")
    if isinstance(found, str) and found.strip():
        return found
    if type(found) is int:
        return str(found)
    raise InvalidRow("wrong value", f"id is {found!r:.60}; a string or an integer is needed")


def _prompt_of(row: Row) -> str | None:
    """The complete prompt, if the row tells, else a query in words."""
    for key in ("prompt", "query"):
        found = row.get(key)
        if isinstance(found, str) and found.strip():
            return found
    return None


def _cluster_of(row: Row, column: str | None) -> str | None:
    """Column and value of the row's cluster; without a column, of the first there is, or None."""
    for name in (column,) if column else CLUSTER_COLUMNS:
        found = row.get(name)
        if isinstance(found, (str, int, float)):
            return f"{name}\n{found}"
    if column:
        raise InvalidRow("missing key", f"the column {column!r} of --cluster has no value here")
    return None


def find_files(paths: Iterable[str | Path]) -> list[Path]:
    """The files as named, and every .jsonl and .jsonl.gz of a folder, sorted.

    Metrics that a run has left beside its answers (`..._metrics.jsonl`) are left out.

    Raises UsageError for a path that is not there, a folder without such files, or a file named
    twice.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = sorted(inside for inside in path.iterdir() if _holds_answers(inside))
            if not inside:
                raise UsageError(f"{path}: the folder holds no {' or '.join(SUFFIXES)} file")
            found += inside
        elif path.exists():
            found.append(path)
        else:
            raise UsageError(f"{path}: there is no such file")
    if not found:
        raise UsageError("name at least one file of answers")
    seen: dict[Path, Path] = {}
    for path in found:
        if other := seen.get(path.resolve()):
            raise UsageError(f"{path}: named twice (the other time as {other})")
        seen[path.resolve()] = path
    return found


def _holds_answers(path: Path) -> bool:
    name = path.name
    return name.endswith(SUFFIXES) and not name.endswith(METRICS_SUFFIX) and path.is_file()


_GZIP = b"\x1f\x8b"
_MARK = b"\xef\xbb\xbf"  # some editors begin UTF-8 with it
_KINDS: dict[type, str] = {
    list: "list",
    str: "string",
    int: "number",
    float: "number",
    bool: "truth value",
    type(None): "null",
}


def read_objects(
    path: Path, report: Callable[[Problem], None]
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Number (from 1) and object of each line; empty lines are skipped.

    What is no JSON object is reported, and so is the place where a damaged file ends.
    """
    number = 0
    try:
        with _open(path) as lines:
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                row = _parse(line.removeprefix(_MARK) if number == 1 else line)
                if isinstance(row, dict):
                    yield number, row
                else:
                    report(Problem(str(path), number, "not JSON", row))
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        message = f"the gzip data is damaged or cut short here ({error}); lines after it are lost"
        report(Problem(str(path), number + 1, "damaged file", message))
    except OSError as error:
        message = f"cannot be read ({error.strerror or error})"
        report(Problem(str(path), None, "damaged file", message))


def _open(path: Path) -> IO[bytes]:
    stream = path.open("rb")
    if stream.peek(2)[:2] == _GZIP:
        return gzip.open(stream)  # type: ignore[return-value]
    if path.suffix == ".gz":
        stream.close()
        raise gzip.BadGzipFile("no gzip data")
    return stream


def _parse(line: bytes) -> dict[str, Any] | str:
    """The object of a line, or what is wrong with it."""
    try:
        row = json.loads(line.decode())
    except UnicodeDecodeError:
        return "is no UTF-8 text; one JSON object a line is needed"
    except json.JSONDecodeError as error:
        return f"is no JSON ({error.msg} at character {error.pos + 1}); one object a line is needed"
    except (RecursionError, ValueError) as error:  # nested too deeply, or a number too long
        return f"cannot be read as JSON ({error}); one object a line is needed"
    if isinstance(row, dict):
        return row
    return f"holds a JSON {_KINDS[type(row)]}; one object a line is needed"
