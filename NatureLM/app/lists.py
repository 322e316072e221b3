"""Lists of species that visitors paste, drop or pick."""

from __future__ import annotations

import secrets
from pathlib import Path

from NatureLM.app.files import shown_name
from NatureLM.app.limits import LimitError, Limits
from NatureLM.errors import UsageError
from NatureLM.sizes import show_bytes
from NatureLM.species import SpeciesList, hints, presets, read_species_list


def list_of(
    pasted: str, file: str | None, preset: str | None, folder: Path, limits: Limits
) -> SpeciesList:
    """The list that a visitor gave: a file goes before pasted names, these before a preset.

    What is pasted is text and never taken for the name of a file. Raises UsageError or LimitError.
    """
    if file:
        return _read(Path(file), shown_name(file), limits)
    if pasted.strip():
        names = pasted if "\n" in pasted.strip() else pasted.replace(",", "\n")
        path = folder / f"{secrets.token_urlsafe(8)}.txt"
        path.write_text(names, encoding="utf-8")
        try:
            return _read(path, "The list", limits)
        finally:
            path.unlink()
    if preset:
        return read_species_list(preset, presets=presets())
    raise UsageError("There is no list yet: paste names, drop a file, or pick a ready-made one.")


def unknown_names(names: SpeciesList, known: tuple[str, ...]) -> list[str]:
    """Sentences on names that may be misspelt."""
    return list(hints(names.names, known))


def _read(path: Path, name: str, limits: Limits) -> SpeciesList:
    size = path.stat().st_size
    if size > limits.list_bytes:
        raise LimitError(
            f"{name} has {show_bytes(size)}, and a list may have {show_bytes(limits.list_bytes)}."
        )
    try:
        found = read_species_list(path)
    except UsageError as error:
        raise UsageError(str(error).replace(str(path), name)) from None
    if len(found.names) > limits.labels:
        raise LimitError(
            f"{name} has {len(found.names)} names, and a list may have {limits.labels}."
        )
    notes = tuple(note.replace(str(path), name) for note in found.notes)
    return SpeciesList(found.names, found.kind, name, notes)
