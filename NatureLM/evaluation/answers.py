"""The values that scoring takes out of a row; each raises Unusable for what cannot be used.

Lines of JSON objects from files, plain or gzipped, one at a time.

Answers in columns, group by group: what reading files of answers leaves in memory.

Texts are kept once each, rows are numbers, so 100,000 answers take a few megabytes.

From files of answers to groups of answers.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import sys
import zlib
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, TypeAlias, get_args

from NatureLM.data.components import Task, components
from NatureLM.errors import UsageError
from NatureLM.evaluation.names import (
    InvalidRow,
    Kind,
    NameRule,
    Problem,
    Problems,
    refuse_idle_rules,
    renamed,
    same,
)
from NatureLM.evaluation.protocols import NO_LABEL
from NatureLM.util import did_you_mean

# Rows of `naturelm infer` and of the benchmark's own data name some things differently.
_OTHER_NAMES = {"prediction": "text", "label": "output", "lora_scale": "merging_alpha"}


def has(row: Mapping[str, Any], key: str) -> bool:
    """Whether the row has the key, under this name or the other one."""
    return key in row or _OTHER_NAMES.get(key) in row


def text_of(row: Mapping[str, Any], key: str) -> str:
    """A text that is not blank."""
    found = _get(row, key)
    if isinstance(found, str) and found.strip():
        return found
    what = "empty" if isinstance(found, str) else "null" if found is None else f"{found!r:.60}"
    raise InvalidRow("wrong value", f"{key} is {what}; a text is needed")


def answer_of(row: Mapping[str, Any]) -> str:
    """The answer, which may be empty."""
    if "error" in row and not (row.get("prediction") or row.get("text")):
        raise InvalidRow("no answer", f"the run has no answer here: {row['error']!s:.200}")
    found = _get(row, "prediction")
    if found is None:
        raise InvalidRow("null answer", "the answer is null; a text is needed, which may be empty")
    if not isinstance(found, str):
        raise InvalidRow("wrong value", f"the answer is {found!r:.60}; a text is needed")
    return found


def value_of(row: Mapping[str, Any], key: str) -> Value:
    """A text, a finite number or null: what groups are made by; an α in quotes is a number."""
    found: Any = _get(row, key)
    if key == "lora_scale" and isinstance(found, str):
        with contextlib.suppress(ValueError):
            found = float(found)
    if found is None or isinstance(found, str):
        return found
    if type(found) in (int, float) and abs(found) <= sys.float_info.max:
        return found  # type: ignore[no-any-return]
    raise InvalidRow("wrong value", f"{key} is {found!r:.60}; a number or a text is needed")


def identity_of(row: Mapping[str, Any]) -> str:
    """The id as a text."""
    found = _get(row, "id")
    if isinstance(found, str) and found.strip():
        return found
    if type(found) is int:
        return str(found)
    raise InvalidRow("wrong value", f"id is {found!r:.60}; a text or a whole number is needed")


def prompt_of(row: Mapping[str, Any]) -> str | None:
    """What was asked, if the row tells: the complete prompt, else a query in words."""
    for key in ("prompt", "query"):
        found = row.get(key)
        if isinstance(found, str) and found.strip():
            return found
    return None


def cluster_of(row: Mapping[str, Any], column: str | None) -> str | None:
    """Column and value of the row's cluster; without a column, of the first there is, or None."""
    for name in (column,) if column else CLUSTER_COLUMNS:
        found = row.get(name)
        if isinstance(found, (str, int, float)):
            return f"{name}\n{found}"
    if column:
        raise InvalidRow("missing key", f"the column {column!r} of --cluster has no value here")
    return None


def _get(row: Mapping[str, Any], key: str) -> Any:
    if key in row:
        return row[key]
    other = _OTHER_NAMES.get(key)
    if other is not None and other in row:
        return row[other]
    raise InvalidRow("missing key", f"the key {key!r} is missing")


SUFFIXES = (".jsonl", ".jsonl.gz")
METRICS = "_metrics.jsonl"
_GZIP = b"\x1f\x8b"
_MARK = b"\xef\xbb\xbf"  # some editors begin UTF-8 with it


def find_files(paths: Iterable[str | Path]) -> list[Path]:
    """The files as named, and every .jsonl and .jsonl.gz of a folder, sorted.

    Metrics that a run has left beside its answers (`..._metrics.jsonl`) are passed over.

    Raises UsageError for a path that is not there, a folder without such files, or a file named
    twice.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = sorted(inside for inside in path.iterdir() if _is_meant(inside))
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


def read_objects(path: Path, problems: Problems) -> Iterator[tuple[int, dict[str, Any]]]:
    """Number (from 1) and object of each line; empty lines are passed over.

    What is no JSON object becomes a problem, and so does the place where a damaged file ends.
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
                    problems.add(Problem(str(path), number, "not JSON", row))
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        message = f"the gzip data is damaged or cut short here ({error}); lines after it are lost"
        problems.add(Problem(str(path), number + 1, "damaged file", message))
    except OSError as error:
        message = f"cannot be read ({error.strerror or error})"
        problems.add(Problem(str(path), None, "damaged file", message))


def _is_meant(path: Path) -> bool:
    return path.name.endswith(SUFFIXES) and not path.name.endswith(METRICS) and path.is_file()


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


_KINDS: dict[type, str] = {
    list: "list",
    str: "text",
    int: "number",
    float: "number",
    bool: "truth value",
    type(None): "null",
}


Value: TypeAlias = str | int | float | None
Key: TypeAlias = tuple[Value, ...]
"""The data set and the values of the grouping columns."""

DEFAULT_BY = ("query", "lora_scale")
CLUSTER_COLUMNS = ("cluster", "family", "recording")
BY_SAMPLE = "sample"


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


class StringTable:
    """Distinct texts and their numbers."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self._number: dict[str, int] = {}

    def number(self, text: str) -> int:
        """The text's number, a new one for a new text."""
        number = self._number.setdefault(text, len(self.texts))
        if number == len(self.texts):
            self.texts.append(text)
        return number


@dataclass
class Group:
    """The answers of one data set, query, alpha ...; row by row.

    names: the kind of names that its labels have been given
    prompt: the complete text that the first of its rows was asked, where rows tell
    """

    key: Key
    task: Task
    names: Kind = "common"
    prompt: str | None = None
    ids: list[str] = field(default_factory=list)
    answers: array[int] = field(default_factory=lambda: array("i"))
    labels: array[int] = field(default_factory=lambda: array("i"))
    clusters: list[str | None] = field(default_factory=list)
    cluster_by: str = BY_SAMPLE

    def __len__(self) -> int:
        return len(self.ids)


@dataclass
class Answers:
    """All answers: groups in sorted order, texts by number."""

    by: tuple[str, ...]
    groups: list[Group]
    texts: list[str]
    labels: list[str]

    def __len__(self) -> int:
        return sum(map(len, self.groups))


def parts(label: str) -> list[str]:
    """The labels that a label of a detection task names."""
    return [part for part in (part.strip() for part in label.split(",")) if part]


def sort_key(key: Key) -> tuple[tuple[int, float, str], ...]:
    """Sorts keys of mixed values: null, numbers, then texts."""
    return tuple(
        (0, 0.0, "") if v is None else (2, 0.0, v) if isinstance(v, str) else (1, float(v), "")
        for v in key
    )


def resolve(group: Group, cluster: str | None) -> None:
    """Bring rows into the order of their ids, so that the order of lines changes nothing.

    cluster: the column of the clusters that was asked for
    """
    order = sorted(range(len(group)), key=group.ids.__getitem__)
    group.ids = [group.ids[i] for i in order]
    group.answers = array("i", (group.answers[i] for i in order))
    group.labels = array("i", (group.labels[i] for i in order))
    group.clusters = [group.clusters[i] for i in order]
    columns = {None if one is None else one.partition("\n")[0] for one in group.clusters}
    if len(columns) == 1 and None not in columns:
        group.cluster_by = next(iter(columns)) or BY_SAMPLE
    elif cluster is None:
        group.clusters = [None] * len(order)


def read_answers(paths: Sequence[Path], reading: ReadOptions, problems: Problems) -> Answers:
    """Read all files into groups; lines that cannot be scored become problems.

    Raises ScoringError at the first problem if problems end the work, and UsageError where no
    row is left or a rule for names fits none.
    """
    gatherer = _Gatherer(reading, problems)
    for path in paths:
        gatherer.read(path)
    return gatherer.answers()


def gather_rows(
    rows: Iterable[Mapping[str, Any]],
    reading: ReadOptions,
    problems: Problems,
    name: str = "answers",
) -> Answers:
    """The same for rows that are in memory; `name` stands for the file in messages."""
    gatherer = _Gatherer(reading, problems)
    gatherer.take(Path(name), enumerate(rows, start=1))
    return gatherer.answers()


class _Open:
    """A group that is being filled."""

    def __init__(self, group: Group) -> None:
        self.group = group
        self.labels: dict[str, int] = {}
        self.places: dict[str, tuple[int, int]] = {}


class _Gatherer:
    """Puts rows into groups.

    What the rows of a group have in common is checked at its first row and remembered; of the
    others only what may differ is looked at.
    """

    def __init__(self, reading: ReadOptions, problems: Problems) -> None:
        self._reading = reading
        self._problems = problems
        self._by: tuple[str, ...] | None = reading.by
        self._texts, self._labels = StringTable(), StringTable()
        self._open: dict[Key, _Open] = {}
        self._allowed = None if reading.labels is None else frozenset(reading.labels)
        self._used: set[NameRule] = set()
        self._paths: list[Path] = []

    def read(self, path: Path) -> None:
        """Add the rows of a file."""
        self.take(path, read_objects(path, self._problems))

    def take(self, path: Path, rows: Iterable[tuple[int, Mapping[str, Any]]]) -> None:
        """Add rows with their numbers, from 1."""
        self._paths.append(path)
        for line, row in rows:
            group: _Open | None = None
            try:
                if self._reading.where and not self._is_meant(row):
                    continue
                group = self._group(row)
                self._add(row, group, line)
            except InvalidRow as bad:
                key = None if group is None else group.group.key
                self._problems.add(Problem(str(path), line, bad.kind, bad.message, key))

    def answers(self) -> Answers:
        """What was read."""
        groups = [one.group for one in self._open.values() if len(one.group)]
        groups.sort(key=lambda group: sort_key(group.key))
        if not groups:
            files = ", ".join(map(str, self._paths))
            lines = f"; {len(self._problems)} lines have errors" if len(self._problems) else ""
            where = " and ".join(f"{k}={v}" for k, v in self._reading.where.items())
            wanted = f" with {where}" if where else ""
            raise UsageError(f"{files}: there is no answer{wanted} that can be scored{lines}")
        columns = ("dataset_name", *(self._by or ()))
        seen = {name: {group.key[i] for group in groups} for i, name in enumerate(columns)}
        refuse_idle_rules(self._reading.rules, self._used, seen)
        for group in groups:
            resolve(group, self._reading.cluster)
        return Answers(self._by or (), groups, self._texts.texts, self._labels.texts)

    def _is_meant(self, row: Mapping[str, Any]) -> bool:
        return all(same(value_of(row, name), text) for name, text in self._reading.where.items())

    def _add(self, row: Mapping[str, Any], one: _Open, line: int) -> None:
        identity = identity_of(row)
        label = text_of(row, "label")
        number = one.labels.get(label)
        if number is None:
            number = one.labels[label] = self._labels.number(self._label(label, one.group))
        answer = answer_of(row)
        cluster = cluster_of(row, self._reading.cluster)
        self._check_task(row, one.group)
        place = (len(self._paths) - 1, line)
        first = one.places.setdefault(identity, place)
        if first is not place:
            where = f"{self._paths[first[0]]}:{first[1]}"
            message = f"the id {identity!r} is there twice, the first time at {where}"
            raise InvalidRow("duplicate id", message)
        group = one.group
        group.ids.append(identity)
        group.answers.append(self._texts.number(answer))
        group.labels.append(number)
        group.clusters.append(cluster)

    def _group(self, row: Mapping[str, Any]) -> _Open:
        if self._by is None:
            apart = self._reading.apart | self._reading.where.keys()
            self._by = tuple(name for name in DEFAULT_BY if has(row, name) and name not in apart)
        try:
            key: Key = tuple(row[name] for name in ("dataset_name", *self._by))
            if bool not in map(type, key):
                return self._open[key]
        except (KeyError, TypeError):
            pass  # it is new, or something is wrong with it
        key = (text_of(row, "dataset_name"), *(value_of(row, name) for name in self._by))
        if key not in self._open:
            task = self._task(str(key[0]), row)
            self._open[key] = _Open(Group(key, task, self._names(key), prompt_of(row)))
        return self._open[key]

    def _task(self, dataset: str, row: Mapping[str, Any]) -> Task:
        known = components().get(dataset)
        task: Any = known.task if known else self._reading.task or row.get("task")
        if task not in get_args(Task):
            raise InvalidRow(
                "unknown dataset",
                f"{dataset!r} is no component of BEANS-Zero{did_you_mean(dataset, components())}; "
                "for data of your own say --task, or give rows a key `task` "
                f"({', '.join(get_args(Task))})",
            )
        found: Task = task
        return found

    def _check_task(self, row: Mapping[str, Any], group: Group) -> None:
        """Raise Unusable for a row whose task is another than that of its group."""
        task = row.get("task") or group.task
        if task == group.task or self._reading.task or group.key[0] in components():
            return
        raise InvalidRow(
            "wrong value",
            f"task is {task!r:.60}, and rows of {group.key[0]!r} before it have {group.task!r}; "
            "give them another dataset_name, or group by it: --by query,lora_scale,task",
        )

    def _label(self, label: str, group: Group) -> str:
        """The label under the name that is scored."""
        if self._allowed is not None and group.task != "captioning":
            for part in parts(label) if group.task == "detection" else (label,):
                if part not in self._allowed and (part, group.task) != (NO_LABEL, "detection"):
                    message = f"the label {part!r} is not among those of --labels"
                    raise InvalidRow(
                        "label not allowed", message + did_you_mean(part, self._allowed)
                    )
        scientific = self._reading.scientific
        if group.task == "detection":
            names = [
                one if one == NO_LABEL else renamed(one, group.names, scientific)
                for one in parts(label)
            ]
            return ", ".join(names)
        return renamed(label, group.names, scientific)

    def _names(self, key: Key) -> Kind:
        """The kind of names of a group's labels."""
        values = dict(zip(("dataset_name", *(self._by or ())), key, strict=True))
        fitting = [rule for rule in self._reading.rules if rule.fits(values)]
        if len({rule.kind for rule in fitting}) > 1:
            raise UsageError(f"--names {fitting[0]} and {fitting[1]} are both true of {values}")
        self._used.update(fitting)
        return fitting[0].kind if fitting else "common"
