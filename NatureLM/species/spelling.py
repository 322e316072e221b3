"""Names that may have been meant."""

from __future__ import annotations

import difflib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence

_LIKENESS = 0.8  # of 1: what two spellings of a name have at least in common
_TRIED = 20  # known names that are compared letter by letter


def hints(names: Sequence[str], known: Iterable[str]) -> Iterator[str]:
    """For each name that is not among the known ones, but close to one, a sentence that says so.

    A name that is close to none is passed over: models know names that we do not.
    """
    spellings = list(dict.fromkeys(known))
    exact = set(spellings)
    folded = {name.casefold(): name for name in reversed(spellings)}
    index: dict[str, list[str]] = defaultdict(list)
    for name in folded:
        for part in _parts(name):
            index[part].append(name)
    for name in names:
        if name in exact:
            continue
        meant = folded.get(name.casefold()) or _nearest(name.casefold(), folded, index)
        if meant is not None:
            yield f"{name!r} is not a name that is known here; did you mean {meant!r}?"


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
