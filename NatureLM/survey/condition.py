"""Conditions on earlier columns: `bird == "yes" and species != none`, with no code of strangers.

A condition is a small part of Python's expressions, read by its parser and checked node by node. It
has three values: where a column has no answer, whether the condition holds is not known, and what
it stands for is not asked.
"""

from __future__ import annotations

import ast
import operator
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from NatureLM.errors import UsageError
from NatureLM.generation.labels import NOTHING
from NatureLM.survey.parse import folded
from NatureLM.util import did_you_mean

if TYPE_CHECKING:
    from NatureLM.survey.questionnaire import Column

MOST_CHARACTERS = 1000
_CONSTANTS = {"true": True, "false": False, "none": None}
_ORDERED: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
_ALLOWED = (
    "a condition has columns, column.confidence, texts in quotes, numbers, true, false, none, "
    '==, !=, <, <=, >, >=, in ["a", "b"], and, or, not, and brackets'
)


@dataclass(frozen=True)
class Condition:
    """A condition that was checked.

    text: as it was written
    columns: that it depends on
    """

    text: str
    columns: frozenset[str]
    _tree: ast.expr = field(repr=False, compare=False)

    def holds(self, values: Mapping[str, Any], confidences: Mapping[str, float | None]) -> bool:
        """Whether it is known to hold.

        values: by column; of those that have an answer, None for an answer that nothing fits. A
            column that was not asked, or whose answer was not understood, is not there
        confidences: of columns that are scored
        """
        return self._truth(self._tree, values, confidences) is True

    def _truth(self, node: ast.expr, values: Mapping[str, Any], sure: Mapping[str, Any]) -> Any:
        """True, False, or None where it is not known."""
        if isinstance(node, ast.BoolOp):
            truths = [self._truth(one, values, sure) for one in node.values]
            decides = isinstance(node.op, ast.Or)
            if decides in truths:
                return decides
            return None if None in truths else not decides
        if isinstance(node, ast.UnaryOp):
            truth = self._truth(node.operand, values, sure)
            return None if truth is None else not truth
        if isinstance(node, ast.Compare):
            return self._compared(node, values, sure)
        if isinstance(node, ast.Name) and node.id not in _CONSTANTS:
            return values.get(node.id)
        return _constant(node)

    def _compared(
        self, node: ast.Compare, values: Mapping[str, Any], sure: Mapping[str, Any]
    ) -> Any:
        truths: list[bool | None] = []
        sides = [node.left, *node.comparators]
        for left, how, right in zip(sides, node.ops, sides[1:], strict=False):
            known = [self._side(one, values, sure) for one in (left, right)]
            truths.append(None if _UNKNOWN in known else _relation(how, *known))
        return False if False in truths else None if None in truths else True

    def _side(self, node: ast.expr, values: Mapping[str, Any], sure: Mapping[str, Any]) -> Any:
        """The value of a side of a comparison, in a form in which equal ones are equal."""
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            confidence = sure.get(node.value.id)
            return _UNKNOWN if confidence is None else confidence
        if isinstance(node, ast.Name) and node.id not in _CONSTANTS:
            if node.id not in values:
                return _UNKNOWN
            return _comparable(values[node.id])
        if isinstance(node, (ast.List, ast.Tuple)):
            return [_comparable(_constant(one)) for one in node.elts]
        return _comparable(_constant(node))


_UNKNOWN = object()


def _comparable(value: Any) -> Any:
    """Texts without capital letters and accents; yes and no as truth values, as YAML reads them."""
    if isinstance(value, (list, tuple)):
        return [_comparable(one) for one in value]
    if isinstance(value, dict):
        return [_comparable(one) for one in value]
    if value is None:
        return None
    if isinstance(value, str):
        text = folded(value)
        return {"yes": True, "no": False, folded(NOTHING): None}.get(text, text)
    return value


def _relation(how: ast.cmpop, left: Any, right: Any) -> bool | None:
    if isinstance(how, (ast.Eq, ast.NotEq)):
        if [] in (left, right):
            left, right = left or None, right or None
        return _equal(left, right) == isinstance(how, ast.Eq)
    if isinstance(how, (ast.In, ast.NotIn)):
        if isinstance(right, str):
            found = isinstance(left, str) and left in right
        else:
            found = any(_equal(left, one) for one in right or ())
        return found == isinstance(how, ast.In)
    if any(isinstance(one, bool) or not isinstance(one, (int, float)) for one in (left, right)):
        return None
    return _ORDERED[type(how)](left, right)


def _equal(left: Any, right: Any) -> bool:
    """Whether values are equal; yes is not 1."""
    return bool(left == right) and isinstance(left, bool) == isinstance(right, bool)


def _constant(node: ast.expr) -> Any:
    if isinstance(node, ast.UnaryOp):  # a number with a sign
        return -_constant(node.operand)
    return _CONSTANTS[node.id] if isinstance(node, ast.Name) else getattr(node, "value", None)


# -- reading ----------------------------------------------------------------------------------


def read_condition(text: str, earlier: Mapping[str, Column]) -> Condition:
    """The condition of a text.

    earlier: the columns that stand before it, by name

    Raises UsageError, which says what is wrong with it and what is allowed.
    """
    if len(text) > MOST_CHARACTERS:
        raise UsageError(f"it has more than {MOST_CHARACTERS} characters")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about Python, which this is none
            tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        hint = "; compare with ==" if re.search(r"[^=!<>]=[^=]", text) else ""
        reason = getattr(error, "msg", None) or "it is nested too deep"
        raise UsageError(f"it cannot be read ({reason}){hint}; {_ALLOWED}") from None
    reader = _Reader(earlier)
    try:
        reader.check(tree)
    except RecursionError:
        raise UsageError(f"it is nested too deep; {_ALLOWED}") from None
    if not reader.columns:
        raise UsageError("it names no column, so it is always the same; leave it out")
    return Condition(text.strip(), frozenset(reader.columns), tree)


class _Reader:
    """Checks the nodes of a condition and notes the columns that they name."""

    def __init__(self, earlier: Mapping[str, Column]) -> None:
        self._earlier = earlier
        self.columns: set[str] = set()

    def check(self, node: ast.expr) -> None:
        """Raise UsageError for what is no condition that holds or does not."""
        if isinstance(node, ast.BoolOp):
            for one in node.values:
                self.check(one)
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            self.check(node.operand)
        elif isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            for left, how, right in zip(sides, node.ops, sides[1:], strict=False):
                self._check_comparison(left, how, right)
        elif isinstance(node, ast.Name):
            column = self._column(node)
            if column is None and node.id != "none":
                return
            if column is None or column.type != "yes_no":
                what = f"{node.id} is no yes or no by itself"
                raise UsageError(f'{what}; compare it, such as {node.id} == "..."')
        else:
            raise self._not_allowed(node)

    def _check_comparison(self, left: ast.expr, how: ast.cmpop, right: ast.expr) -> None:
        is_in, is_ordered = isinstance(how, (ast.In, ast.NotIn)), type(how) in _ORDERED
        if not (is_in or is_ordered or isinstance(how, (ast.Eq, ast.NotEq))):
            raise UsageError(f"`is` is not allowed; {_ALLOWED}")
        columns = [
            self._operand(one, is_list_allowed=is_in and one is right) for one in (left, right)
        ]
        for column, node, other in zip(columns, (left, right), (right, left), strict=True):
            if column is None:
                continue
            if is_ordered and column.type not in ("count", "number"):
                raise UsageError(f"{column.name} is no number, so nothing is above or below it")
            self._check_sides(column, other, is_in=is_in, is_right=node is right)
        if is_in and columns[1] is None and not isinstance(right, (ast.List, ast.Tuple)):
            raise UsageError(
                'behind `in` stands a list, such as ["a", "b"], or a column of several'
            )
        if is_ordered:
            for node, column in ((left, columns[0]), (right, columns[1])):
                if column is None and not _is_number(node):
                    raise UsageError("what is above or below something is a number")

    def _check_sides(self, column: Column, other: ast.expr, *, is_in: bool, is_right: bool) -> None:
        """Raise UsageError where a column is compared with what it can never be."""
        is_many = column.several or column.type in ("names", "counts")
        if is_in and is_right:
            if not is_many and column.type != "text":
                raise UsageError(f"{column.name} has one answer; compare it with ==")
        elif is_many and not (isinstance(other, ast.Name) and other.id == "none"):
            raise UsageError(
                f'{column.name} may have several answers: write "..." in {column.name}, or compare '
                "it with none"
            )
        elements = other.elts if isinstance(other, (ast.List, ast.Tuple)) else [other]
        for one in elements:
            if self._is_constant(one):
                _check_value(column, _constant(one))

    def _operand(self, node: ast.expr, *, is_list_allowed: bool) -> Column | None:
        """The column that a side of a comparison is, None for a value."""
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            column = self._column(node.value)
            if column is None or node.attr != "confidence":
                raise self._not_allowed(node)
            if not column.is_scored:
                raise UsageError(f"{column.name} has no confidence; mode: score gives it one")
            return None
        if isinstance(node, ast.Name):
            return self._column(node)
        is_list = isinstance(node, (ast.List, ast.Tuple)) and is_list_allowed
        elements = node.elts if is_list else [node]  # type: ignore[attr-defined]
        if not all(map(self._is_constant, elements)):
            raise self._not_allowed(node)
        return None

    def _is_constant(self, node: ast.expr) -> bool:
        if isinstance(node, ast.Name):
            return node.id in _CONSTANTS
        return _is_number(node) or (isinstance(node, ast.Constant) and isinstance(node.value, str))

    def _column(self, node: ast.Name) -> Column | None:
        if node.id in _CONSTANTS:
            return None
        column = self._earlier.get(node.id)
        if column is None:
            known = ", ".join(self._earlier) or "none"
            hint = did_you_mean(node.id, [*self._earlier, *_CONSTANTS], "{}")
            raise UsageError(
                f"{node.id} is no column that stands before this one{hint} (before it: {known}); "
                "texts stand in quotes"
            )
        if column.type == "json":
            raise UsageError(f"{node.id} is JSON, which no condition looks into")
        self.columns.add(column.name)
        return column

    @staticmethod
    def _not_allowed(node: ast.AST) -> UsageError:
        try:
            what = ast.unparse(node)
        except (RecursionError, ValueError):
            what = "this"
        return UsageError(f"{what:.60} is not allowed; {_ALLOWED}")


def _is_number(node: ast.expr) -> bool:
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        node = node.operand
    if isinstance(node, ast.Attribute):
        return node.attr == "confidence"
    return isinstance(node, ast.Constant) and type(node.value) in (int, float)


def _check_value(column: Column, value: Any) -> None:
    """Raise UsageError for a value that the column never has."""
    if column.type == "yes_no":
        if isinstance(_comparable(value), bool):
            return
        raise UsageError(f'{column.name} is "yes" or "no", and is never {value!r}')
    if column.type in ("count", "number"):
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return
        raise UsageError(f"{column.name} is a number, and is never {value!r}")
    if _comparable(value) is None:
        return
    if not isinstance(value, str):
        raise UsageError(f"{column.name} is a text, and is never {value!r}")
    if column.type == "choice" and folded(value) not in map(folded, column.labels):
        hint = did_you_mean(value, column.labels)
        raise UsageError(f"{value!r} is no label of {column.name}{hint}")


def waves(conditions: Mapping[str, Condition | None]) -> tuple[tuple[str, ...], ...]:
    """Columns by what they wait for: the conditions of a wave depend on earlier waves only."""
    place: dict[str, int] = {}
    for name, condition in conditions.items():
        waited = condition.columns if condition is not None else frozenset[str]()
        place[name] = 1 + max((place[one] for one in waited), default=-1)
    last = max(place.values(), default=-1)
    return tuple(
        tuple(name for name, wave in place.items() if wave == number) for number in range(last + 1)
    )
