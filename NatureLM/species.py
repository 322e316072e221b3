"""Species lists: one name a line, a table, a Raven selection table, a BirdNET list, or `a,b,c`.

`known_names` are those of a model's card and of BEANS-Zero; `hints` finds misspelt ones among them.
"""

from __future__ import annotations

import difflib
import io
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, cast

from NatureLM.audio.files import as_on_disk
from NatureLM.data.components import components
from NatureLM.data.table import clean, csv_rows, decoded, read_bytes
from NatureLM.errors import UsageError
from NatureLM.models.registry import EMBEDDED, find

Kind = Literal["common", "scientific"]

_LIKENESS = 0.8  # of 1: what two spellings of a name have at least in common
_TRIED = 20  # known names that are compared letter by letter


def hints(names: Sequence[str], known: Iterable[str]) -> Iterator[str]:
    """For each name that is not among the known ones, but close to one, a sentence that says so.

    A name that is close to none is passed over: models know names that we do not. Where no name is
    known or close to one, a sentence says that.
    """
    spellings = list(dict.fromkeys(known))
    exact = set(spellings)
    folded = {name.casefold(): name for name in reversed(spellings)}
    index: dict[str, list[str]] = defaultdict(list)
    for name in folded:
        for part in _parts(name):
            index[part].append(name)
    is_known = False
    for name in names:
        if name in exact:
            is_known = True
            continue
        meant = folded.get(name.casefold()) or _nearest(name.casefold(), folded, index)
        if meant is not None:
            is_known = True
            yield f"{name!r} is not a name that is known here; did you mean {meant!r}?"
    if names and spellings and not is_known:
        which = f"{names[0]!r} is not" if len(names) == 1 else f"none of the {len(names)} names is"
        yield f"{which} known here, nor close to one that is: check language, spelling and model"


def _nearest(name: str, folded: dict[str, str], index: dict[str, list[str]]) -> str | None:
    """The likest known name, looked for among those that share most threes of letters."""
    shared: Counter[str] = Counter()
    for part in _parts(name):
        shared.update(index.get(part, ()))
    likely = [found for found, _ in shared.most_common(_TRIED)]
    close = difflib.get_close_matches(name, likely, n=1, cutoff=_LIKENESS)
    return folded[close[0]] if close else None


def _parts(name: str) -> set[str]:
    padded = f"  {name} "
    return {padded[start : start + 3] for start in range(len(padded) - 2)}


_ANIMALS = re.compile(r"^Animals: (.+?)\.?$", re.MULTILINE)


def known_names(model: str) -> tuple[str, ...]:
    """Names that the card of a model says it knows, and all labels of BEANS-Zero.

    model: name, folder or id; of one that is not on this machine the card is not read
    """
    labels = (label for component in components().values() for label in component.labels)
    return tuple(dict.fromkeys((*names_on_card(model), *labels)))


def names_on_card(model: str) -> tuple[str, ...]:
    """The animals that the line `Animals: a, b, c.` of a model's card names, if there is one."""
    entry = find(model)
    folder = entry.folder if entry is not None else Path(model)
    card = None if folder is None else folder / "README.md"
    if card is None or not card.is_file():
        return ()
    found = _ANIMALS.search(card.read_text(encoding="utf-8", errors="replace"))
    return tuple(found[1].split(", ")) if found is not None else ()


def presets() -> dict[str, tuple[str, ...]]:
    """Lists by name: the animals that the embedded model knows, and the labels of each component
    of BEANS-Zero that has some."""
    lists = {EMBEDDED: names_on_card(EMBEDDED)}
    for name, component in components().items():
        if component.task == "classification" and len(component.labels) > 10:
            lists[name] = tuple(dict.fromkeys(component.labels))
    return {name: names for name, names in lists.items() if names}


# The wordings are those that the published model was trained and measured with.
NAME_QUESTION = "What is the {kind} name for the focal species in the audio?"
CHOICE_QUESTION = "Which of these, if any, are present in the audio recording? {names}."


def default_question(names: Sequence[str], kind: Kind, *, lists_names: bool = False) -> str:
    """The question to ask.

    lists_names: whether it names the list, which a free answer and one of several names need
    """
    if lists_names:
        return CHOICE_QUESTION.format(names=", ".join(names))
    return NAME_QUESTION.format(kind=kind)


_MOST_BYTES = 16_000_000
_PRESET_LIKENESS = 0.8  # of 1: from here on a string is the name of a preset with a slip in it
_COLUMNS: dict[Kind | None, tuple[str, ...]] = {
    "common": ("commonname", "common", "vernacularname", "englishname"),
    "scientific": ("scientificname", "scientific", "latinname", "binomial"),
    None: ("species", "label", "annotation", "name", "specieslabel", "taxon"),  # of either kind
}
_ALL_COLUMNS = {name for names in _COLUMNS.values() for name in names}
_LATIN = re.compile(r"([A-Z][a-zë-]+)( \([A-Z][a-z-]+\))?((?: [a-zë×][a-zë-]*\.?)+)(?=[ ,]|$)")
_AUTHOR = re.compile(r",? \(?[A-Z].*")
_AUTHOR_AND_YEAR = re.compile(r",? \(?[A-Z]\D*\d{4}\)?")
_BINOMIAL = re.compile(r"[A-Z][a-z-]{2,}( [a-z-]{3,}){1,2}")
_LATIN_END = re.compile(r"(us|um|a|is|i|ae|ns|ix|ax|ops|es|or|ys)$")


@dataclass(frozen=True)
class SpeciesList:
    """Names in the order of their source, each once.

    kind: whether they are common or scientific names
    source: what the list was read from
    notes: what there is to say about how it was read
    scientific: from common to scientific name, of the names for which the source has both
    """

    names: tuple[str, ...]
    kind: Kind
    source: str
    notes: tuple[str, ...] = ()
    scientific: Mapping[str, str] = field(default_factory=dict, hash=False)


def read_species_list(
    source: str | Path,
    *,
    prefer: Kind = "common",
    presets: Mapping[str, Sequence[str]] | None = None,
) -> SpeciesList:
    """The species that `source` names.

    source: a file, the name of one of `presets`, or the names themselves, separated by commas
    prefer: the kind of names to take where the list has both

    A file has one name a line (`#` begins a comment), among them BirdNET's
    (`Scientific name_Common name`), or is a table with a header that names a column common_name,
    scientific_name, species or label, such as a selection table of Raven. Raises UsageError for a
    file that is not there or cannot be understood, and for a list without names.
    """
    text = str(source)
    if isinstance(source, Path) or _is_file(text):
        return _read_file(as_on_disk(Path(source)), prefer)
    if presets is not None and text in presets:
        return _made(presets[text], None, text)
    if "," not in text:
        _refuse_paths(text)
    meant = difflib.get_close_matches(text.lower(), presets or (), 1, _PRESET_LIKENESS)
    if meant:
        raise UsageError(f"there is no list {text!r}; did you mean {meant[0]!r}?")
    return _read(text.split(","), prefer, "the names given")


def _is_file(text: str) -> bool:
    try:
        return as_on_disk(Path(text)).is_file()
    except (OSError, ValueError):  # longer than the name of a file can be
        return False


def _refuse_paths(text: str) -> None:
    """Raise UsageError for what can only be meant as a file."""
    if re.search(r"[/\\]|\.\w+$", text):
        raise UsageError(f"the species list {text} does not exist")
    if text and os.path.isdir(text):
        raise UsageError(
            f"{text} is a folder: name a file, or write {text!r} with a comma behind it if it is a "
            "species"
        )


def _read_file(path: Path, prefer: Kind) -> SpeciesList:
    text, note = _text(path)
    notes = [note] if note else []
    # Comments leave their line, so that messages count lines as the file does.
    text = "\n".join("" if line.startswith("#") else line for line in _lines(text))
    lines = [line for line in text.split("\n") if line.strip()]
    if not lines:
        raise UsageError(f"{path}: holds no name; write one a line")
    delimiter = _delimiter(lines)
    if delimiter is not None:
        return _from_table(path, text, delimiter, prefer, notes)
    lines = [re.sub(r"\s#.*", "", line) for line in lines]
    if len(lines) == 1 and "," in lines[0] and "_" not in lines[0]:
        lines = lines[0].split(",")
    return _read(lines, prefer, str(path), notes)


def _text(path: Path) -> tuple[str, str]:
    """The text of a file, and a note where its encoding is a guess."""
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise UsageError(f"{path}: is too large for a list of species")
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from None
    return decoded(read_bytes(path), path)


def _lines(text: str) -> list[str]:
    return [line.rstrip("\r\n") for line in io.StringIO(text, newline=None)]


def _delimiter(lines: Sequence[str]) -> str | None:
    """What separates the columns, if it is a table: every line has as many of it."""
    for mark in "\t;,":
        counts = {line.count(mark) for line in lines}
        if mark in lines[0] and _ALL_COLUMNS & {_plain(cell) for cell in lines[0].split(mark)}:
            return mark
        is_list = any(_pair(line) or _without_author(line) for line in lines)
        if len(lines) > 1 and len(counts) == 1 and counts != {0} and not is_list:
            return mark
    return "\t" if _plain(lines[0]) in _ALL_COLUMNS else None  # its names may have commas


def _from_table(
    path: Path, text: str, delimiter: str, prefer: Kind, notes: list[str]
) -> SpeciesList:
    columns, numbered = csv_rows(text, path, delimiter)
    rows = [row for _, row in numbered]
    header = [_plain(cell) for cell in columns]
    other: Kind = "scientific" if prefer == "common" else "common"
    for kind in (prefer, other, None):
        place = next((header.index(name) for name in _COLUMNS[kind] if name in header), None)
        if place is None:
            continue
        names = _without_blanks([row[place] for row in rows])
        if kind == other:
            notes.append(f"{path}: has no {prefer} names, so the {kind} ones are taken")
        if not names:
            raise UsageError(f"{path}: the column {columns[place]!r} is empty")
        # A table of detections names a species for each of them; that is no mistake.
        made = _read(list(dict.fromkeys(names)), prefer, str(path), notes)
        pairs = {**made.scientific, **_pairs_of_columns(header, rows)}
        return replace(made, kind=kind or made.kind, scientific=pairs)
    raise UsageError(
        f"{path}: is a table with the columns {', '.join(columns)}, and "
        "none of them is known to hold species: name one common_name, scientific_name or species"
    )


def _pairs_of_columns(header: Sequence[str], rows: Sequence[Sequence[str]]) -> dict[str, str]:
    """Common and scientific name of each row that has both, from the columns that hold them."""
    places = [
        next((header.index(name) for name in _COLUMNS[kind] if name in header), None)
        for kind in ("common", "scientific")
    ]
    if None in places:
        return {}
    common, scientific = cast(list[int], places)
    cells = (
        tuple(" ".join(clean(row[one]).split()) for one in (common, scientific)) for row in rows
    )
    return _agreed((left, right) for left, right in cells if left and right)


def _agreed(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """From common to scientific name; a name with two partners has none."""
    made = dict.fromkeys(pairs)
    commons, scientific = Counter(one for one, _ in made), Counter(one for _, one in made)
    return {one: two for one, two in made if commons[one] == scientific[two] == 1}


def _read(
    lines: Sequence[str], prefer: Kind, source: str, notes: Sequence[str] = ()
) -> SpeciesList:
    """The names of lines, each of which is read by itself."""
    texts = _without_blanks([" ".join(clean(line).split()) for line in lines])
    pairs = [_pair(text) for text in texts]
    names, others = [], []
    for text, pair in zip(texts, pairs, strict=True):
        name = pair[1 if prefer == "common" else 0] if pair else _alone(text, any(pairs), prefer)
        names.append(name)
        as_written = name in text.split("_") if pair else name == text and not any(pairs)
        if not as_written:
            others.append(f"{text!r} as {'it stands' if name == text else repr(name)}")
    if others:
        shown = ", ".join(others[:3]) + (f" and {len(others) - 3} more" if others[3:] else "")
        form = "no name alone" if not any(pairs) else "not `Scientific name_Common name`"
        count = f"{len(others)} of {len(texts)} lines {'is' if len(others) == 1 else 'are'}"
        notes = [*notes, f"{source}: {count} {form}, read {shown}"]
    made = _made(names, prefer if any(pairs) else None, source, notes)
    return replace(made, scientific=_agreed((two, one) for one, two in filter(None, pairs)))


def _pair(text: str) -> tuple[str, str] | None:
    """Scientific and common name of a line of BirdNET's, also where there are no blanks in it."""
    left, mark, right = text.partition("_")
    if mark and left.strip().casefold() == right.strip().casefold() and left.strip():
        return left.strip(), right.strip()  # such as Dog_Dog
    for place in (match.start() for match in re.finditer("_", text)):
        left, right = _spaced(text[:place]), _spaced(text[place + 1 :])
        latin = _LATIN.match(left)
        if latin is None or not right or ("_" in text[:place] and not right[0].isupper()):
            continue
        if latin.end() == len(left) or _AUTHOR.fullmatch(left, latin.end()):
            return latin[1] + latin[3], right
    return None


def _alone(text: str, among_pairs: bool, prefer: Kind) -> str:
    """The name of a line that is no certain pair; it is never asked about with an underscore,
    unless a component of BEANS-Zero calls it so."""
    if "_" in text:
        if any(text in component.labels for component in components().values()):
            return text
        if among_pairs and text.count("_") == 1:
            left, right = (_spaced(part) for part in text.split("_"))
            return (right if prefer == "common" else left) or left or right
        return _spaced(text)
    if len(text) > 1 and text[0] == text[-1] == '"':
        return text[1:-1].replace('""', '"').strip()
    return _without_author(text) or text


def _without_author(text: str) -> str | None:
    """Genus and species of a line that has a subgenus, or author and year, besides; else None."""
    latin = _LATIN.match(text)
    if latin is None or not (latin[2] or latin.end() < len(text)):
        return None
    is_whole = latin.end() == len(text) or _AUTHOR_AND_YEAR.fullmatch(text, latin.end())
    return latin[1] + latin[3] if is_whole else None


def _spaced(text: str) -> str:
    return " ".join(text.replace("_", " ").split())


def _made(
    names: Sequence[str], kind: Kind | None, source: str, notes: Sequence[str] = ()
) -> SpeciesList:
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        named = ", ".join(repr(name) for name in twice[:3])
        named += f" and {len(twice) - 3} others" if len(twice) > 3 else ""
        are = "is" if len(twice) == 1 else "are"
        notes = [*notes, f"{source}: {named} {are} more than once in the list, and taken once"]
    if not names:
        raise UsageError(f"{source}: holds no name of a species")
    unique = tuple(dict.fromkeys(names))
    return SpeciesList(unique, kind or kind_of(unique), source, tuple(notes))


def kind_of(names: Sequence[str]) -> Kind:
    """Scientific if most names look like genus and species, with Latin endings."""
    latin = [
        name
        for name in names
        if _BINOMIAL.fullmatch(name) and _LATIN_END.search(name.split(" ")[1])
    ]
    return "scientific" if len(latin) > len(names) / 2 else "common"


def _without_blanks(names: Sequence[str]) -> list[str]:
    return [name.strip() for name in names if name.strip()]


def _plain(cell: str) -> str:
    """The name of a column without what spellings differ in."""
    return re.sub(r"[^a-z]", "", cell.lower())
