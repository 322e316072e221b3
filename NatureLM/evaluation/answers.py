"""Files of answers, read into groups: a data set at one value of each grouping column.

`load_answers` reads JSON lines, plain or gzipped, one at a time. A line that cannot be scored
becomes a `Problem` with file and line. Equal answers and labels are one string, so 100,000 answers
take a few megabytes. A rule such as `query=1:scientific` says under which names the labels of some
rows are scored: the published benchmark asks one data set for common, scientific and both names.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import logging
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any, Literal, TypeAlias, cast, get_args

from NatureLM.data.components import Task, components
from NatureLM.data.table import clean, decoded, parse_json, read_bytes
from NatureLM.errors import NatureLMError, UsageError
from NatureLM.evaluation.protocols import NO_LABEL
from NatureLM.util import did_you_mean

logger = logging.getLogger(__name__)

Value: TypeAlias = str | int | float | None
Key: TypeAlias = tuple[Value, ...]
"""The data set and the values of the grouping columns."""

Row: TypeAlias = Mapping[str, Any]
NameKind = Literal["common", "scientific", "both"]
OnError = Literal["fail", "skip"]

DEFAULT_BY = ("query", "lora_scale")
CLUSTER_COLUMNS = ("cluster", "family", "recording")
BY_SAMPLE = "sample"
SUFFIXES = (".jsonl", ".jsonl.gz")
METRICS_SUFFIX = "_metrics.jsonl"


class NothingToScoreError(UsageError):
    """No row of the answers can be scored; the message says why."""


class InvalidRow(Exception):  # noqa: N818 (caught where file and line are known)
    """A value of a row cannot be used; `kind` is the same for all rows with the same fault."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True)
class Problem:
    """One line that cannot be scored.

    line: counts from 1; None where the whole file is meant
    kind: a few words that are the same for all problems of the kind
    group: the data set and the values of the grouping columns, where the line still tells
    """

    path: str
    line: int | None
    kind: str
    message: str
    group: tuple[object, ...] | None = None

    def __str__(self) -> str:
        place = self.path if self.line is None else f"{self.path}:{self.line}"
        return f"{place}: {self.message}"


@dataclass(frozen=True)
class NameRule:
    """Where `column` has `value`, labels are scored under these names.

    kind: "common" leaves labels as they are, "scientific" replaces them, "both" makes
        "scientific : common"
    """

    column: str
    value: str
    kind: NameKind

    def __str__(self) -> str:
        return f"{self.column}={self.value}:{self.kind}"


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


@dataclass(frozen=True)
class Group:
    """The answers of one data set, query, alpha ...; a place in each list for each row.

    names: the kind of names that its labels have been given
    prompt: the complete prompt of the first of its rows, where rows tell
    families: what clusters rows, column and value; None where a row does not tell
    """

    key: Key
    task: Task
    names: NameKind = "common"
    prompt: str | None = None
    ids: list[str] = field(default_factory=list)
    answers: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    families: list[str | None] = field(default_factory=list)
    cluster_by: str = BY_SAMPLE

    @property
    def dataset(self) -> str:
        return str(self.key[0])

    def take(self, rows: Iterable[int]) -> Group:
        """The group with these of its rows, in this order."""
        rows = list(rows)
        return replace(
            self,
            ids=[self.ids[i] for i in rows],
            answers=[self.answers[i] for i in rows],
            labels=[self.labels[i] for i in rows],
            families=[self.families[i] for i in rows],
        )


@dataclass(frozen=True)
class Answers:
    """All answers: groups in sorted order, and the lines that cannot be scored."""

    options: ReadOptions
    by: tuple[str, ...]
    groups: list[Group]
    problems: list[Problem]


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
        loader.add(path, _objects(path, loader.report))
    return loader.answers()


def load_rows(rows: Iterable[Row], options: ReadOptions = ReadOptions()) -> Answers:
    """The same for rows that are in memory; raises at the first that cannot be scored."""
    loader = _Loader(options, None)
    loader.add(Path("answers"), enumerate(rows, start=1))
    return loader.answers()


def split_labels(label: str) -> list[str]:
    """The labels that a label of a detection task names."""
    return [part for part in (part.strip() for part in label.split(",")) if part]


def rename(label: str, kind: NameKind, scientific: Mapping[str, str]) -> str:
    """The label under its other names; raises InvalidRow if it has none."""
    if kind == "common":
        return label
    if label not in scientific:
        hint = did_you_mean(label, scientific)
        raise InvalidRow("no scientific name", f"{label!r} has no scientific name{hint}")
    return scientific[label] if kind == "scientific" else f"{scientific[label]} : {label}"


class _Loader:
    """Puts rows into groups; what the rows of a group have in common is read at its first row."""

    def __init__(self, options: ReadOptions, problems: list[Problem] | None) -> None:
        self._options = options
        self._stops = problems is None
        self._problems = [] if problems is None else problems
        self._by: tuple[str, ...] | None = options.by
        self._groups: dict[Key, Group] = {}
        self._texts: dict[str, str] = {}  # equal answers are kept once
        self._scored: dict[tuple[Key, str], str] = {}  # labels as rows have them to those scored
        self._place_of: dict[tuple[Key, str], tuple[Path, int]] = {}  # file and line of an id
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
        where = self._options.where.items()
        for line, row in rows:
            key: Key | None = None
            try:
                if all(_means(text, _group_value(row, name)) for name, text in where):
                    group = self._group(row)
                    key = group.key
                    self._add(row, group, (path, line))
            except InvalidRow as bad:
                self.report(Problem(str(path), line, bad.kind, str(bad), key))

    def answers(self) -> Answers:
        """What was read; rows in the order of their ids, so that the order of lines is the same."""
        groups = [self._finished(group) for group in self._groups.values() if group.ids]
        if not groups:
            files = ", ".join(map(str, self._paths))
            lines = f"; {len(self._problems)} lines have errors" if self._problems else ""
            where = " and ".join(f"{k}={v}" for k, v in self._options.where.items())
            wanted = f" with {where}" if where else ""
            message = f"{files}: there is no answer{wanted} that can be scored{lines}"
            raise NothingToScoreError(message)
        groups.sort(key=lambda group: list(map(_sort_key, group.key)))
        by = self._by or ()
        for rule in self._options.rules:
            if rule not in self._used_rules:
                columns = [dict(zip(("dataset_name", *by), one.key, strict=True)) for one in groups]
                seen = {values[rule.column] for values in columns if rule.column in values}
                known = ", ".join(sorted(map(str, seen))[:12])
                raise UsageError(f"--names {rule}: no row has it; {rule.column} is one of {known}")
        return Answers(self._options, by, groups, self._problems)

    def _finished(self, group: Group) -> Group:
        group = group.take(sorted(range(len(group.ids)), key=group.ids.__getitem__))
        columns = {one and one.partition("\n")[0] for one in group.families}
        if len(columns) == 1 and None not in columns:
            return replace(group, cluster_by=columns.pop() or BY_SAMPLE)
        if self._options.cluster is None:
            return replace(group, families=[None] * len(group.ids))
        return group

    def _add(self, row: Row, group: Group, place: tuple[Path, int]) -> None:
        identity = _id_of(row)
        label = _nonempty(row, "label")
        scored = self._scored.get((group.key, label))
        if scored is None:
            scored = self._scored[group.key, label] = self._scored_label(label, group)
        answer = _answer_of(row)
        family = _family_of(row, self._options.cluster)
        self._check_task(row, group)
        first = self._place_of.setdefault((group.key, identity), place)
        if first is not place:
            where = f"{first[0]}:{first[1]}"
            message = f"the id {identity!r} is there twice, the first time at {where}"
            raise InvalidRow("duplicate id", message)
        group.ids.append(identity)
        group.answers.append(self._texts.setdefault(answer, answer))
        group.labels.append(scored)
        group.families.append(family)

    def _group(self, row: Row) -> Group:
        if self._by is None:
            apart = self._options.apart | self._options.where.keys()
            self._by = tuple(name for name in DEFAULT_BY if _has(row, name) and name not in apart)
        dataset = _nonempty(row, "dataset_name")
        key = (dataset, *(_group_value(row, name) for name in self._by))
        if key not in self._groups:
            task = self._task(dataset, row)
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
        if (allowed := self._options.labels) is not None and group.task != "captioning":
            for part in parts:
                if clean(part) not in allowed and not (is_set and part == NO_LABEL):
                    message = f"the label {part!r} is not among those of --labels"
                    raise InvalidRow("label not allowed", message + did_you_mean(part, allowed))
        return ", ".join(
            part
            if is_set and part == NO_LABEL
            else rename(part, group.names, self._options.scientific)
            for part in parts
        )

    def _names(self, key: Key) -> NameKind:
        """The kind of names of a group's labels."""
        values = dict(zip(("dataset_name", *(self._by or ())), key, strict=True))
        rules = [
            rule
            for rule in self._options.rules
            if rule.column in values and _means(rule.value, values[rule.column])
        ]
        if len({rule.kind for rule in rules}) > 1:
            raise UsageError(f"--names {rules[0]} and {rules[1]} are both true of {values}")
        self._used_rules.update(rules)
        return rules[0].kind if rules else "common"


def _sort_key(value: Value) -> tuple[int, float, str]:
    """Sorts mixed values: null, numbers, then strings."""
    if value is None:
        return 0, 0.0, ""
    return (2, 0.0, value) if isinstance(value, str) else (1, float(value), "")


def _means(text: str, value: Value) -> bool:
    """Whether a string on the command line means this value of a row: "1" means 1, 1.0 and "1"."""
    if value is None:
        return text == "null"
    if isinstance(value, str):
        return value == text
    try:
        return float(text) == float(value)
    except ValueError:
        return False


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
    if isinstance(found, str):
        return found
    if found is None:
        message = "the answer is null; a string is needed, which may be empty"
        raise InvalidRow("null answer", message)
    raise InvalidRow("wrong value", f"the answer is {found!r:.60}; a string is needed")


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
    if type(found) is int or (isinstance(found, str) and found.strip()):
        return str(found)
    raise InvalidRow("wrong value", f"id is {found!r:.60}; a string or an integer is needed")


def _prompt_of(row: Row) -> str | None:
    """The complete prompt, if the row tells, else a query in words."""
    told = (row.get("prompt"), row.get("query"))
    return next((one for one in told if isinstance(one, str) and one.strip()), None)


def _family_of(row: Row, column: str | None) -> str | None:
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
            inside = sorted(
                one
                for one in path.iterdir()
                if one.name.endswith(SUFFIXES)
                and not one.name.endswith(METRICS_SUFFIX)
                and one.is_file()
            )
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


_GZIP = b"\x1f\x8b"
_MARK = b"\xef\xbb\xbf"  # some editors begin UTF-8 with it
_WIDE = {
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
    b"{\0": "utf-16-le",
    b"\0{": "utf-16-be",
}
_KINDS: dict[type, str] = {
    list: "list",
    str: "string",
    int: "number",
    float: "number",
    bool: "truth value",
    type(None): "null",
}


def _objects(path: Path, report: Callable[[Problem], None]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Number (from 1) and object of each line; empty lines are skipped.

    What is no JSON object is reported, and so is the place where a damaged file ends.
    """
    number = 0
    try:
        with _open(path) as stream:
            for number, line in enumerate(_in_utf8(stream), start=1):
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
    except UnicodeError as error:
        message = f"is no UTF-16 from here on ({error})"
        report(Problem(str(path), number + 1, "damaged file", message))
    except OSError as error:
        message = f"cannot be read ({error.strerror or error})"
        report(Problem(str(path), None, "damaged file", message))


def _in_utf8(stream: Any) -> Iterable[bytes]:
    """The lines of a file, which may be UTF-16, such as PowerShell writes behind `>`."""
    encoding = _WIDE.get(stream.peek(2)[:2])
    if encoding is None:
        return cast(Iterable[bytes], stream)
    text = io.TextIOWrapper(stream, encoding, newline="")
    return (line.encode("utf-8", "backslashreplace") for line in text)


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
        row = parse_json(line.decode())
    except UnicodeDecodeError:
        return "is no UTF-8 text; one JSON object a line is needed"
    except json.JSONDecodeError as error:
        return f"is no JSON ({error.msg} at character {error.pos + 1}); one object a line is needed"
    except (RecursionError, ValueError) as error:  # nested too deeply, or a number too long
        return f"cannot be read as JSON ({error}); one object a line is needed"
    if isinstance(row, dict):
        return row
    return f"holds a JSON {_KINDS[type(row)]}; one object a line is needed"


def parse_rules(texts: Iterable[str]) -> tuple[NameRule, ...]:
    """Rules written as `query=1:scientific`.

    Raises UsageError for other strings, and where two rules contradict each other.
    """
    rules: dict[tuple[str, str], NameRule] = {}
    for text in texts:
        column, equals, rest = text.partition("=")
        value, colon, kind = rest.rpartition(":")
        if not (equals and colon and column.strip() and value.strip()):
            raise UsageError(f"--names {text}: write it as query=1:scientific")
        kinds = get_args(NameKind)
        if kind.strip() not in kinds:
            wanted = ", ".join(kinds)
            raise UsageError(f"--names {text}: {kind!r} is no kind of names; take {wanted}")
        rule = NameRule(column.strip(), value.strip(), cast(NameKind, kind.strip()))
        other = rules.setdefault((rule.column, rule.value), rule)
        if other != rule:
            raise UsageError(f"--names {rule} contradicts --names {other}")
    return tuple(rules.values())


def read_map(path: str | Path) -> dict[str, str]:
    """A JSON object from label to scientific name; raises UsageError for anything else."""
    try:
        content = parse_json(decoded(read_bytes(Path(path)), path, is_json=True)[0])
    except ValueError as error:
        raise UsageError(f"{path}: is no JSON ({error})") from None
    if not isinstance(content, dict) or not all(isinstance(v, str) for v in content.values()):
        raise UsageError(f"{path}: an object from label to scientific name is needed")
    return content


def read_labels(path: str | Path) -> tuple[str, ...]:
    """Labels, one a line; empty lines are skipped. Raises UsageError where there are none."""
    text, note = decoded(read_bytes(Path(path)), path)
    if note:
        logger.warning(note)
    labels = [label for line in io.StringIO(text, newline=None) if (label := clean(line))]
    if not labels:
        raise UsageError(f"{path}: holds no label; write one a line")
    return tuple(dict.fromkeys(labels))
