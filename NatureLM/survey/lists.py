"""Free answers as labels of a list, letters of options, names, and counts of names.

A label is found in an answer where it stands there as a whole, whatever its capital letters,
accents, hyphens and plurals. Nothing is taken for the label that it looks like most.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from NatureLM.generation.labels import NOTHING
from NatureLM.survey.parse import Unparsed, answers_in, folded, is_too_long, said, unquoted

LETTERS = string.ascii_uppercase

_NOTHING = re.compile(
    r"(?:none|nothing|nobody|no one)(?: (?:of (?:these|them|those|the above|the options?"
    r"|the (?:given |listed )?(?:options|labels|species|animals))|(?:is |are )?(?:present|heard|"
    r"audible|detected)|can be heard|at all))*"
    r"|(?:there (?:is|are) )?no (?:\w+ ){0,2}(?:species|animals?|birds?|frogs?|sounds?|calls?|"
    r"vocali[sz]ations?|labels?|names?|options?)(?: (?:is |are |can be )?(?:present|heard|audible|"
    r"detected|in (?:this|the) (?:audio|recording|clip)(?: recording)?))*"
)
_DENIED = re.compile(
    r"\b(?:no|not|none|neither|nor|without|or|either|instead|rather|unlike|except|but|"
    r"absent|missing|lacks?|lacking|isnt|arent|wasnt|doesnt|dont|cannot|cant|couldnt|unsure|uncertain|unclear|unknown|maybe|perhaps|"
    r"possibly|could|might|may)\b"
)
_FILLING = (
    "a an the and also i we can hear heard there is are it this that sound sounds like of in audio "
    "recording clip present focal species vocalizing vocalising calling singing detected following "
    "list contains contain with plus both be to common name names animal animals call calls"
)
_FILLER = frozenset(_FILLING.split())
_IRREGULAR = {"mice": "mouse", "geese": "goose", "wolves": "wolf", "calves": "calf", "oxen": "ox"}


def singular(words: str) -> str:
    """The words with the last one in the singular; made to compare, not to be read."""
    before, blank, last = words.rpartition(" ")
    if last in _IRREGULAR:
        last = _IRREGULAR[last]
    elif len(last) > 4 and last.endswith("ies"):
        last = last[:-3] + "y"
    elif len(last) > 4 and last.endswith(("ches", "shes", "xes", "sses", "zes")):
        last = last[:-2]
    elif len(last) > 3 and last.endswith("s") and not last.endswith(("ss", "us", "is")):
        last = last[:-1]
    return before + blank + last


class ClosedList:
    """The labels that may be answered, and how they are found in an answer.

    labels: as they are returned; `none` in any spelling is no label, but the answer that none fits
    synonyms: other names of labels, such as scientific ones: from name to label
    with_letters: whether the question shows the labels as options A, B, ... (`options_text`)
    """

    def __init__(
        self,
        labels: Sequence[str],
        synonyms: Mapping[str, str] | None = None,
        *,
        with_letters: bool = False,
    ) -> None:
        self.labels = tuple(label for label in labels if folded(label) != folded(NOTHING))
        self._letters = dict(zip(LETTERS, self.labels, strict=False)) if with_letters else {}
        names = [(label, label) for label in self.labels]
        names += [(name, label) for name, label in (synonyms or {}).items()]
        self._by_key: dict[str, str] = {}
        for make in (folded, lambda name: singular(folded(name))):  # exact spellings come first
            keys = [(make(name), label) for name, label in names]
            owners = Counter(key for key, _ in set(keys))
            for key, label in keys:
                if key and owners[key] == 1:
                    self._by_key.setdefault(key, label)
        squeezed = {(key.replace(" ", ""), label) for key, label in self._by_key.items()}
        owners = Counter(key for key, _ in squeezed)
        self._squeezed = {key: label for key, label in squeezed if owners[key] == 1}
        self._longest = max((len(key.split()) for key in self._by_key), default=0) + 1

    def one(self, text: str) -> str | Unparsed | None:
        """The one label that an answer names, None for the answer that none fits.

        "Wren", "It is a wren.", "b) Wren" and "B" where the question has letters; not two labels,
        "not a wren", "a wren or a robin", or a name that is not in the list.
        """
        if is_too_long(text):
            return Unparsed(text)
        found = {self._one(part) for part in answers_in(said(text))}
        label = found.pop() if len(found) == 1 else ""
        return Unparsed(text) if label == "" else label

    def several(self, text: str) -> list[str] | Unparsed:
        """All labels that an answer names, in its order; none for the answer that none fits.

        An answer that names anything else besides is not parsed: nothing of it is left out.
        """
        parts = [] if is_too_long(text) else answers_in(said(text))
        labels = self._several(parts[0]) if len(parts) == 1 else None
        return Unparsed(text) if labels is None else labels

    def _one(self, text: str) -> str | None:
        """The label, None for nothing, an empty string where it cannot be told."""
        words = folded(text)
        whole = self._whole(words)
        if whole is None and _NOTHING.fullmatch(words):
            return None
        by_letter = {self._letters.get(one, "") for one in option_letters(text, self._letters)}
        if len(by_letter) == 1:
            label = by_letter.pop()
            return label if set(self._mentioned(words)) <= {label} else ""
        if by_letter:
            return ""
        if whole is not None:
            return whole
        mentioned = set(self._mentioned(words))
        if len(mentioned) != 1 or _DENIED.search(self._without_labels(words)):
            return ""
        return mentioned.pop()

    def _whole(self, words: str) -> str | None:
        """The label that a text is, but for an article."""
        return self._label(words) or self._label(re.sub(r"^(?:a|an|the) ", "", words))

    def _label(self, words: str) -> str | None:
        """The label of these words: as they are, in the singular, or however they are parted."""
        for key in (words, singular(words)):
            label = self._by_key.get(key) or self._squeezed.get(key.replace(" ", ""))
            if label is not None:
                return label
        return None

    def _several(self, text: str) -> list[str] | None:
        if self._whole(folded(text)) is None and _NOTHING.fullmatch(folded(text)):
            return []
        letters = option_letters(text, self._letters)
        if letters and not self._mentioned(folded(text)):
            return (
                [self._letters[one] for one in letters]
                if self._letters.keys() >= {*letters}
                else None
            )
        counted = _COUNTED.match(text)
        rest = folded(counted[2] if counted else text)
        found = list(dict.fromkeys(self._mentioned(rest)))
        left = [one for one in self._without_labels(rest).split() if not one.isdecimal()]
        if [self._letters.get(one.upper()) for one in left] == found:  # "a) Wren, c) Robin"
            left = []
        if not found or not set(left) <= _FILLER:
            return None
        return found if counted is None or int(counted[1]) == len(found) else None

    def _mentioned(self, words: str) -> list[str]:
        """The labels in a text, the longest that fits at each place."""
        return [label for _, _, label in self._places(words.split())]

    def _without_labels(self, words: str) -> str:
        tokens = words.split()
        for start, end, _ in reversed(list(self._places(tokens))):
            del tokens[start:end]
        return " ".join(tokens)

    def _places(self, tokens: Sequence[str]) -> Iterator[tuple[int, int, str]]:
        start = 0
        while start < len(tokens):
            for end in range(min(len(tokens), start + self._longest), start, -1):
                label = self._label(" ".join(tokens[start:end]))
                if label is not None:
                    yield start, end, label
                    start = end
                    break
            else:
                start += 1


# -- options with letters ---------------------------------------------------------------------


def options_text(labels: Sequence[str]) -> str:
    """The labels as options of a question, one a line: `A: Wren`."""
    return "\n".join(f"{letter}: {label}" for letter, label in zip(LETTERS, labels, strict=False))


_ALONE = re.compile(r"[(\[<]?([A-Za-z])[)\]>]?[.:,;]?")
_FIRST = re.compile(r"[(\[]?([A-Za-z])(?:[)\]]|[.:](?= )| -) ?\S")
_NAMED = re.compile(
    r"\b(?:[Oo]ption|[Cc]hoice|[Dd]escription|[Aa]nswer|[Ll]etter) \(?([A-Z]|[b-z])\b\)?(?!')"
)
_LIST = re.compile(r"[(\[]?[A-Za-z][)\]]?(?:(?: ?[,;/&] ?| and | or )[(\[]?[A-Za-z][)\]]?)+")


def option_letters(text: str, known: Mapping[str, object]) -> list[str]:
    """The letters of options that an answer names, capital, each once, in its order.

    text: as `said` returns it. "B", "(b)", "b) Wren", "Option B", "B and C"; not the article of "A
        wren is singing". A letter that no option has comes back, too
    """
    if not known:
        return []
    alone, first = _ALONE.fullmatch(text), _FIRST.match(text)
    if alone is not None:
        found = [alone[1]]
    elif re.fullmatch(r"[A-Za-z] ?- ?[A-Za-z]", text):  # from one to the other, or neither
        found = ["?"]
    elif _LIST.fullmatch(text):
        found = re.findall(r"\b[A-Za-z]\b", text)
    else:
        found = [first[1]] if first is not None else []
        found += _NAMED.findall(text)
    return list(dict.fromkeys(one.upper() for one in found))


# -- names, and counts of them ----------------------------------------------------------------

_COUNTED = re.compile(r"^(\d{1,4})(?: [a-z]+){0,2} ?: ?(\D.*)$", re.IGNORECASE)
_OTHER_WORDS = (
    "i we you is are was were there here hear heard can cannot could this that these those in on "
    "recording audio clip sounds sound it its not no none nothing unknown unclear unsure maybe "
    "perhaps possibly probably likely or either many several some singing calling vocalizing calls"
)
_NO_NAME = frozenset(_OTHER_WORDS.split())
_MOST_WORDS = 6  # of a name


def names(text: str) -> list[str] | Unparsed:
    """Names that are listed, each once: "Robin, Wren", "2: Robin, Wren", "1. Robin 2. Wren".

    None for the answer `None`. A sentence is no list; nor is one with another number in front than
    it has names.
    """
    part = _one_answer(text)
    if part is None:
        return Unparsed(text)
    if _NOTHING.fullmatch(folded(part)):
        return []
    counted = _COUNTED.match(part)
    listed = [_bare(one) for one in _split(counted[2] if counted else part)]
    found = list(dict.fromkeys(one for one in listed if one))
    is_right = bool(found) and all(map(_is_name, found))
    return found if is_right and (not counted or int(counted[1]) == len(found)) else Unparsed(text)


def _one_answer(text: str) -> str | None:
    """What a list says, in one line; None where it says several things or too much."""
    parts = answers_in(said(text.replace("\n", "; "))) if not is_too_long(text) else []
    return parts[0] if len(parts) == 1 else None


def _split(text: str) -> list[str]:
    return re.split(r"[,;/]|(?<=\s)\d{1,3}[.)](?= )|\band\b|&", text)


def _bare(name: str) -> str:
    """A name without the bullet, number or article in front and marks around."""
    name = unquoted(re.sub(r"^\s*(?:[-•]|\d{1,3}[.)])\s*", "", name))
    return re.sub(r"^(?:an?|the) ", "", name, flags=re.IGNORECASE)


def _is_name(text: str) -> bool:
    words = folded(text).split()
    has_letters = any(one.isalpha() for one in text) and not any(one.isdigit() for one in text)
    return has_letters and len(words) <= _MOST_WORDS and not _NO_NAME & set(words)


_NAME_COUNT = re.compile(
    r"^(?P<name>[^:()=\d]+?) ?(?:[:=] ?(?P<count>\d{1,6})|\((?P<inner>\d{1,6})\))"
    r"(?: ?(?:calls?|vocali[sz]ations?|songs?|times|individuals?))?"
    r"(?:, ?[\d.,]{1,12} ?(?:k?hz ?)?(?:-|to) ?[\d.,]{1,12} ?k?hz)?$",
    re.IGNORECASE,
)


def counts(text: str) -> dict[str, int] | Unparsed:
    """How many of each name: "Robin: 6; Wren: 5", "Robin (6), Wren (5)", an object of JSON.

    An empty one for the answer `None`. Ranges of frequencies behind a count are passed over.
    """
    part = _one_answer(text)
    if part is None:
        return Unparsed(text)
    body = part.removeprefix("{").removesuffix("}").replace('"', "")
    if _NOTHING.fullmatch(folded(body)):
        return {}
    split = r";" if ";" in body else r",(?! ?[\d.,]{1,12} ?(?:k?[Hh]z ?)?(?:-|to))"
    found = [_NAME_COUNT.match(_bare(one)) for one in re.split(split, body) if one.strip(" .")]
    pairs = [(one["name"].strip(), int(one["count"] or one["inner"])) for one in found if one]
    made = dict(pairs)
    is_right = bool(made) and len(made) == len(found) and all(map(_is_name, made))
    return made if is_right else Unparsed(text)
