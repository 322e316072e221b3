"""From files of answers to groups of answers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from NatureLM.beans.components import Task, components
from NatureLM.beans.scoring.answers import (
    DEFAULT_BY,
    Answers,
    Group,
    Key,
    Reading,
    Vocabulary,
    parts,
    settle,
    sort_key,
)
from NatureLM.beans.scoring.names import Kind, NameRule, near, refuse_idle_rules, renamed, same
from NatureLM.beans.scoring.problems import Problem, Problems, Unusable
from NatureLM.beans.scoring.protocols import NO_LABEL
from NatureLM.beans.scoring.reading import read_objects
from NatureLM.beans.scoring.rows import (
    answer_of,
    cluster_of,
    has,
    identity_of,
    prompt_of,
    text_of,
    value_of,
)
from NatureLM.errors import UsageError


def read_answers(paths: Sequence[Path], reading: Reading, problems: Problems) -> Answers:
    """Read all files into groups; lines that cannot be scored become problems.

    Raises ScoringError at the first problem if problems end the work, and UsageError where no
    row is left or a rule for names fits none.
    """
    gatherer = _Gatherer(reading, problems)
    for path in paths:
        gatherer.read(path)
    return gatherer.answers()


def gather_rows(
    rows: Iterable[Mapping[str, Any]], reading: Reading, problems: Problems, name: str = "answers"
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

    def __init__(self, reading: Reading, problems: Problems) -> None:
        self._reading = reading
        self._problems = problems
        self._by: tuple[str, ...] | None = reading.by
        self._texts, self._labels = Vocabulary(), Vocabulary()
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
            except Unusable as bad:
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
            settle(group, self._reading.cluster)
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
            raise Unusable("duplicate id", message)
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
            raise Unusable(
                "unknown dataset",
                f"{dataset!r} is no component of BEANS-Zero{near(dataset, components())}; for data "
                f"of your own say --task, or give rows a key `task` ({', '.join(get_args(Task))})",
            )
        found: Task = task
        return found

    def _check_task(self, row: Mapping[str, Any], group: Group) -> None:
        """Raise Unusable for a row whose task is another than that of its group."""
        task = row.get("task") or group.task
        if task == group.task or self._reading.task or group.key[0] in components():
            return
        raise Unusable(
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
                    raise Unusable("label not allowed", message + near(part, self._allowed))
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
