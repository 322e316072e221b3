"""Names that are known here: what a model's card lists, and the labels of BEANS-Zero."""

from __future__ import annotations

import re
from pathlib import Path

from NatureLM.beans.components import components
from NatureLM.models.registry import EMBEDDED, find

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
