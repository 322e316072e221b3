"""Free answers of a language model as values: yes or no, counts, numbers with a unit, JSON, text.

`said` takes from an answer what belongs to none: marks, lead-ins, prefixes. Each of the functions
of a type returns a value, or `Unparsed` with the answer as it was said. One that may mean two
things ("yes and no", "3 or 4", "2 to 4 kHz") is never decided.
"""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, TypeVar

from NatureLM.errors import UsageError
from NatureLM.evaluation.protocols import END_OF_TEXT, plain
from NatureLM.util import library

MOST_CHARACTERS = 20_000
"""Of an answer that is read at all; the longest answer of the model has a tenth of them."""


@dataclass(frozen=True)
class Unparsed:
    """An answer that is no value of its type, or may be more than one.

    text: as it was said
    """

    text: str


_WINDOW = re.compile(r"^#[\d.]+ ?s? ?- ?[\d.]+ ?s?#? ?: ?")  # of the reference's text output
_MARKS = re.compile(r"[*`]+|(?<!\w)_+|_+(?!\w)")
_LEAD = re.compile(
    r"\b(?:(?:final|correct|best|my|the)\s+)*(?:answer|response|prediction|label|output)"
    r"(?:\s+(?:is|would be|should be)\s*:?|\s*[:=])\s*",
    re.IGNORECASE,
)
_QUOTES = ('""', "''", "()", "[]")


def said(text: str) -> str:
    """The answer in plain letters and one line.

    NFC, plain quotes and dashes, one space for all blanks; without what follows the end of the
    text, times of a window in front, marks of Markdown, quotes around all of it.
    """
    text = plain(text[:MOST_CHARACTERS].partition(END_OF_TEXT)[0])
    return unquoted(_MARKS.sub("", _WINDOW.sub("", text)).strip())


def unquoted(text: str) -> str:
    """Without quotes or brackets around all of it, and without a full stop at the end."""
    while True:
        before, text = text, text.strip()
        if len(text) > 1 and text[-1] in ".!" and text[-2] not in ".!":
            text = text[:-1].rstrip()
        if len(text) > 1 and text[0] + text[-1] in _QUOTES and text[0] not in text[1:-1]:
            text = text[1:-1].strip()
        if text == before:
            return text


def answers_in(text: str) -> list[str]:
    """What follows each `Answer:` or `The answer is` of a text; the text itself without one.

    text: as `said` returns it. One that asks back is no answer
    """
    if text.endswith("?"):
        return []
    parts = _LEAD.split(text)
    return [unquoted(part) for part in parts[1:] if part.strip()] or [text]


def is_too_long(text: str) -> bool:
    """Whether an answer has more characters than are read."""
    return len(text) > MOST_CHARACTERS


def folded(text: str) -> str:
    """Without capital letters, accents and marks; dashes are spaces, one space for all blanks."""
    text = unicodedata.normalize("NFKD", plain(text).casefold())
    letters = (one for one in text if not unicodedata.combining(one) and one != "'")
    return " ".join("".join(one if one.isalnum() else " " for one in letters).split())


_TO_TWENTY = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
    "fifteen sixteen seventeen eighteen nineteen twenty"
)
_WORDS = {word: value for value, word in enumerate(_TO_TWENTY.split())}
_TENS = {"thirty": 30, "forty": 40, "fifty": 50, "sixty": 60, "seventy": 70}
_WORDS |= _TENS | {"eighty": 80, "ninety": 90, "single": 1, "dozen": 12}
_NUMBER_WORD = re.compile(
    r"\b(?:(twenty|thirty|forty|fifty|sixty|seventy|eighty|ninety)"
    r"[- ](one|two|three|four|five|six|seven|eight|nine)|a dozen|" + "|".join(_WORDS) + r")\b",
    re.IGNORECASE,
)


def with_digits(text: str) -> str:
    """Numbers in words up to ninety-nine, and a dozen, in digits."""

    def digits(found: re.Match[str]) -> str:
        tens, ones = found[1], found[2]
        if tens:
            return str(_WORDS[tens.lower()] + _WORDS[ones.lower()])
        return str(_WORDS[found[0].lower().removeprefix("a ")])

    return _NUMBER_WORD.sub(digits, text)


Value = TypeVar("Value")

# -- yes or no --------------------------------------------------------------------------------

_YES = r"(?:yes|yeah|yep|true|present)"
_NO = r"(?:no|nope|false|absent|not present)"
_FIRST = re.compile(rf"^(?:(?P<yes>{_YES}|y)|(?P<no>{_NO}|n))\b(?![-'/.]\w)")
_CONTRARY = {
    True: re.compile(r"\b(?:no(?! doubt)|nope|none|false|absent)\b"),
    False: re.compile(r"\b(?:yes|yeah|true)\b"),
}
_UNSURE = re.compile(
    r"\b(?:maybe|perhaps|possibly|unsure|uncertain|unclear|unknown|not sure|not certain|"
    r"can ?not|can't|could not|couldn't|unable|don't know|do not know|hard to|difficult to|"
    r"impossible to|depends?)\b"
)
_NO_ANSWER = re.compile(r"no (?:doubt|question|idea|answer|information|comment|problem|one|\d)")
_NOT_ALL = re.compile(r"\b(?:but|however|only|except|although|though|besides|other)\b")
_NO_THING = re.compile(r"^(?:there (?:is|are|was|were) )?no [\w-]+")


def yes_no(text: str) -> bool | Unparsed:
    """True for yes, False for no.

    "Yes.", "yes, there is one", "Answer: no", "No birds", "There are no birds"; not "yes and no",
    "I cannot tell", "None" or a sentence that says neither.
    """
    return _decided(text, lambda part: _verdict(part.casefold()))


def _decided(text: str, read: Callable[[str], Value | None]) -> Value | Unparsed:
    """What every answer in a text is read as, if it is the same; None is no value."""
    found = set() if is_too_long(text) else {read(part) for part in answers_in(said(text))}
    value = found.pop() if len(found) == 1 else None
    return Unparsed(text) if value is None else value


def _verdict(text: str) -> bool | None:
    if _UNSURE.search(text) or _NO_ANSWER.match(text):
        return None
    first = _FIRST.match(text)
    rest = text if first is None else text[first.end() :]
    if first is None or (first["no"] and re.match(r" \w", rest)):
        # "No birds" says no birds at all; "no birds, but a frog" may answer another question.
        is_no = bool(_NO_THING.match(text)) and not _NOT_ALL.search(text)
        return None if not is_no or _CONTRARY[False].search(text) else False
    if first[0] in ("y", "n", "present", "absent") and rest.strip():
        return None
    verdict = first["yes"] is not None
    return None if _CONTRARY[verdict].search(rest) else verdict


# -- counts -----------------------------------------------------------------------------------

_NOTHING = re.compile(
    r"^(?:there (?:is|are) )?(?:none|nothing|no (?!more|less|fewer)[^\W\d]+|nobody|0)\b\D*$", re.I
)
_LISTED = re.compile(r"^(\d{1,9})(?: [a-z]+){0,2} ?: ?(\D.*)$", re.IGNORECASE)
_ONE_COUNT = re.compile(r"(?<![\w.,+-])(\d{1,3}(?:,\d{3}){1,2}|\d{1,9})(?![\w.,]*\d)(?![\w%°])")
_BEFORE = re.compile(
    r"(?:^|[:=(~≈]|\b(?:is|are|was|were|be|hear|heard|count|counted|detect|detected|has|have|had|"
    r"contains?|find|found|of|total|exactly|about|approximately|around|roughly|only|just|circa|"
    r"probably|likely|there's|identified|a|an|the))\W*$",
    re.IGNORECASE,
)
_BOUND = re.compile(
    r"\b(?:at (?:least|most)|more|less|fewer|over|under|above|below|up to|than|or|between|several|"
    r"many|plus|to \d|minus|not?|none|nothing|neither|\d+ of|times as|"
    r"and (?:a|an|another|some|several|more|possibly|maybe))\b"
    r"|\d ?\+|[<>≥≤]",
    re.IGNORECASE,
)
_UNITS_BEHIND = re.compile(
    r"^[ -]?(?:s|secs?|seconds?|ms|mins?|minutes?|h|hours?|[km]?hz|db|m|km|percent)\b",
    re.IGNORECASE,
)


def count(text: str) -> int | Unparsed:
    """A whole number of things, 0 or more.

    "3", "three", "about 3", "3 birds", "There are two owls", "a pair of ducks", "2: Robin, Wren"
    (where the number is that of the names), "None" and "No birds" for 0; not "3 or 4", "at least
    3", "several", "2 robins and a wren".
    """
    return _decided(text, _count)


def _count(text: str) -> int | None:
    if _UNSURE.search(text.casefold()):
        return None
    listed = _LISTED.match(text)
    if listed is not None and not _UNITS_BEHIND.match(text[listed.end(1) :]):
        if re.search(r"\d", listed[2]):
            return None
        names = [one for one in re.split(r"[,;]| and ", listed[2]) if one.strip()]
        return int(listed[1]) if len(names) == int(listed[1]) else None
    text = re.sub(r"\b(?:a|one) pair(?: of)?\b", "2", text, flags=re.IGNORECASE)
    text = _without_restated(with_digits(text))
    if _NOTHING.match(text) and not _NOT_ALL.search(text.casefold()):
        return 0
    places = list(re.finditer(r"\d+(?:[.,]\d+)*", text))
    found = _ONE_COUNT.search(text)
    if len(places) != 1 or found is None or _BOUND.search(text):
        return None
    is_said = _BEFORE.search(text[: found.start()]) and not _UNITS_BEHIND.match(text[found.end() :])
    return int(found[1].replace(",", "")) if is_said else None


def _without_restated(text: str) -> str:
    """`3 (3)`, as "three (3)" becomes in digits, is said once."""
    return re.sub(r"\b(\d+) ?\(\1\)", r"\1", text)


# -- numbers with a unit ----------------------------------------------------------------------

_SCALES: dict[str, dict[str, str]] = {
    "Hz": {"hz": "1", "hertz": "1", "khz": "1e3", "kilohertz": "1e3", "mhz": "1e6", "ghz": "1e9"},
    "s": {
        **dict.fromkeys(("s", "sec", "secs", "second", "seconds"), "1"),
        **dict.fromkeys(("ms", "msec", "msecs", "millisecond", "milliseconds"), "1e-3"),
        **dict.fromkeys(("µs", "μs", "us", "microsecond", "microseconds"), "1e-6"),
        **dict.fromkeys(("min", "mins", "minute", "minutes"), "60"),
        **dict.fromkeys(("h", "hr", "hrs", "hour", "hours"), "3600"),
    },
    "m": {
        **dict.fromkeys(("m", "metre", "metres", "meter", "meters"), "1"),
        **dict.fromkeys(("km", "kilometre", "kilometres", "kilometer", "kilometers"), "1e3"),
        **dict.fromkeys(("cm", "centimetre", "centimetres", "centimeter", "centimeters"), "1e-2"),
        **dict.fromkeys(("mm", "millimetre", "millimetres", "millimeter", "millimeters"), "1e-3"),
    },
    "dB": dict.fromkeys(("db", "decibel", "decibels"), "1"),
    "%": dict.fromkeys(("%", "percent"), "1"),
}
_KNOWN = {
    name: (base, Decimal(one)) for base, all_ in _SCALES.items() for name, one in all_.items()
}

_QUANTITY = re.compile(
    r"(?<![\w.,])(?P<sign>[+-] ?)?(?P<digits>\d{1,30}(?:[.,\u00a0 ]\d{3})*(?:[.,]\d{1,30})?"
    r"|\d{1,30}|[.,]\d{1,30})(?P<exponent>[eE][+-]?\d{1,3})?(?![.,]?\d)"
    r"(?P<unit>[ -]?[^\W\d_]+(?:/[a-z]+)?| ?[%°])?"
)
_RANGE = re.compile(r"\d ?(?:[a-zµ%]+ ?)?(?:-|\.\.+|to|and|or) ?-?[\d.,]+", re.IGNORECASE)
_LIMIT = re.compile(
    r"\b(?:at (?:least|most)|more than|less than|over|under|above|below|up to|between|from|"
    r"or|maximum|minimum|max|not?|\w+n't)\b|[<>≥≤]|\d ?\+(?! ?/)",
    re.IGNORECASE,
)


def check_unit(unit: str | None) -> None:
    """Raise ValueError for a unit that nothing could be read in."""
    if unit is not None and not re.fullmatch(r"[^\W\d_]+(?:/[^\W\d_]+)?|[%°]", unit):
        raise ValueError("a unit is one word, such as Hz, kHz, s, ms, dB, m, % or calls/min")


def number(text: str, unit: str | None = None) -> float | Unparsed:
    """A number, in the column's unit.

    "4.5 kHz" is 4500 in Hz; "2,5 s", "1,654.75", "about 3100 Hz", "The pitch is 3100 Hz". A number
    without a unit is in the column's; of several units those of another kind do not count. Not "2
    to 4 kHz", "above 4 kHz", or a unit that cannot be converted. A comma with three digits behind
    it is one of thousands, as in English.
    """
    return _decided(text, lambda part: _number(part, unit))


def _number(text: str, unit: str | None) -> float | None:
    text = re.sub(r" ?(?:±|\+/-) ?[\d.,]+", "", with_digits(text))
    if _RANGE.search(text) or _LIMIT.search(text) or _UNSURE.search(text.casefold()):
        return None
    found = list(_quantities(text))
    said_units = [one for one in found if one[1]]
    fitting = {value for one in said_units if (value := _converted(*one, unit)) is not None}
    if not said_units and len(found) == 1:
        fitting = {found[0][0]}
    if len(fitting) != 1:
        return None
    converted = float(fitting.pop())
    return converted if math.isfinite(converted) else None


def _quantities(text: str) -> Iterator[tuple[Decimal, str]]:
    """Each number of a text with its unit, or the word behind it; empty where there is none."""
    for found in _QUANTITY.finditer(text):
        digits = _plain_digits(found["digits"].replace("\u00a0", " "))
        sign = (found["sign"] or "").strip()
        yield Decimal(f"{sign}{digits}{found['exponent'] or ''}"), (found["unit"] or "").strip(" -")


def _plain_digits(digits: str) -> str:
    """Digits with a point before the decimals and nothing between thousands."""
    digits = digits.replace(" ", "")
    point, comma = digits.rfind("."), digits.rfind(",")
    if point >= 0 and comma >= 0:  # the last of them is before the decimals
        thousands, decimal = (",", ".") if point > comma else (".", ",")
        return digits.replace(thousands, "").replace(decimal, ".")
    if comma >= 0:
        is_thousands = re.fullmatch(r"[1-9]\d{0,2}(?:,\d{3})+", digits)
        return digits.replace(",", "") if is_thousands else digits.replace(",", ".", 1)
    return digits.replace(".", "") if digits.count(".") > 1 else digits


def _converted(value: Decimal, said_unit: str, unit: str | None) -> Decimal | None:
    """The value in the column's unit, None where its own is of another kind."""
    if unit is None:
        return None
    if said_unit.casefold() == unit.casefold():
        return value
    base, scale = _KNOWN.get(said_unit.casefold(), ("", Decimal(1)))
    wanted, wanted_scale = _KNOWN.get(unit.casefold(), (None, Decimal(1)))
    return value * scale / wanted_scale if base == wanted else None


# -- text and JSON ----------------------------------------------------------------------------


def text(answer: str) -> str | Unparsed:
    """The text itself, up to where the model ended it; an empty one is no answer."""
    cleaned = answer.partition(END_OF_TEXT)[0].strip()
    return cleaned or Unparsed(answer)


_FENCED = re.compile(r"```(?:json)?\s*\n?(.*?)```", re.DOTALL | re.IGNORECASE)
_MISSING = "JSON columns need jsonschema: pip install 'naturelm-audio[survey]'"


def json_checker(schema: Mapping[str, Any]) -> Callable[[Any], bool]:
    """What says whether a value follows a JSON Schema (draft 2020-12, or the one that it names).

    Raises UsageError for what is no schema, and for one that refers to what is not in it.
    """
    validators = library("jsonschema.validators", _MISSING)
    exceptions = library("jsonschema.exceptions", _MISSING)
    _check_references(schema)
    kind = validators.validator_for(schema, default=validators.Draft202012Validator)
    try:
        kind.check_schema(schema)
    except exceptions.SchemaError as error:
        raise UsageError(f"this is no JSON Schema: {error.message}") from None
    validator = kind(schema)

    def follows(value: Any) -> bool:
        try:
            return bool(validator.is_valid(value))
        except (RecursionError, re.error):
            return False

    return follows


def _check_references(schema: Mapping[str, Any]) -> None:
    """Raise UsageError for a reference that leads out of the schema, so that nothing is fetched."""
    left: list[Any] = [schema]
    while left:
        one = left.pop()
        if isinstance(one, dict):
            reference = one.get("$ref", one.get("$dynamicRef", "#"))
            if isinstance(reference, str) and not _leads_somewhere(schema, reference):
                raise UsageError(
                    f"the schema refers to {reference!r}, which is not in it: write #/$defs/NAME"
                )
        if isinstance(one, (dict, list)):
            left += one.values() if isinstance(one, dict) else one


def _leads_somewhere(schema: Any, reference: str) -> bool:
    if not re.fullmatch(r"#(/.*)?", reference):
        return False
    for part in reference.split("/")[1:]:
        key = part.replace("~1", "/").replace("~0", "~")
        if isinstance(schema, list):
            schema = dict(enumerate(schema)).get(int(key)) if key.isdecimal() else None
        else:
            schema = schema.get(key) if isinstance(schema, dict) else None
    return isinstance(schema, (dict, bool))


def json_value(answer: str, follows: Callable[[Any], bool]) -> Any:
    """The one JSON value of an answer that follows the schema.

    It may be all of the answer, stand in a code fence, or be an object or a list in a text. A key
    that stands twice, NaN, and two values that differ are not decided.
    """
    if is_too_long(answer):
        return Unparsed(answer)
    body = answer.partition(END_OF_TEXT)[0].strip()
    fenced = [one.strip() for one in _FENCED.findall(body)]
    found: list[Any] = []
    for part in fenced or [body]:
        try:
            found.append(_loads(part))
        except ValueError:
            found += _inside(part)
    if not found or any(one != found[0] for one in found) or not follows(found[0]):
        return Unparsed(answer)
    return found[0]


def _loads(text: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_once, parse_constant=_no_number)
    except RecursionError:
        raise ValueError("nested too deep") from None


def _inside(text: str) -> Iterator[Any]:
    """Objects and lists in a text, outermost ones."""
    decoder = json.JSONDecoder(object_pairs_hook=_once, parse_constant=_no_number)
    place, tried = 0, 0
    while (found := re.compile(r"[{\[]").search(text, place)) and tried < 50:
        tried += 1
        try:
            value, place = decoder.raw_decode(text, found.start())
        except (ValueError, RecursionError):
            place = found.start() + 1
        else:
            yield value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        raise ValueError("a key stands twice")
    return made


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")
