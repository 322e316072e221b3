"""The options of `naturelm infer` about species lists, and what they come to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from NatureLM.errors import UsageError

if TYPE_CHECKING:
    from NatureLM.infer.choosing import Choosing
    from NatureLM.species import SpeciesList

_PANEL = "Species lists and confidence"
_MOST_HINTS = 10
_LIST_PLACE = "{species_list}"

SpeciesListOption = Annotated[
    str | None,
    typer.Option(
        "--species-list",
        metavar="FILE|NAMES|PRESET",
        help="Species that may be answered: a file, names separated by commas, or a preset such as "
        "naturelm-tiny or cbi.",
        show_default=False,
        rich_help_panel=_PANEL,
    ),
]
ModeOption = Annotated[
    str | None,
    typer.Option(
        "--mode",
        metavar="generate|constrained|score",
        help="Say anything, say nothing but the list, or score every species of the list.",
        show_default="score with a species list, else generate",
        rich_help_panel=_PANEL,
    ),
]
SpeciesNames = Annotated[
    str,
    typer.Option(
        "--species-names",
        metavar="common|scientific",
        help="The names to take where a list has both.",
        rich_help_panel=_PANEL,
    ),
]
Several = Annotated[
    bool,
    typer.Option(
        "--several",
        help="With --mode constrained: an answer may be several species, separated by commas.",
        rich_help_panel=_PANEL,
    ),
]
TopK = Annotated[
    int,
    typer.Option(
        "--top-k",
        help="Species that are named, the answer included.",
        rich_help_panel=_PANEL,
    ),
]
MinConfidence = Annotated[
    float,
    typer.Option(
        "--min-confidence",
        help="Below it the answer is None.",
        rich_help_panel=_PANEL,
    ),
]


@dataclass(frozen=True)
class ListOptions:
    """What was given on the command line."""

    species_list: str | None = None
    mode: str | None = None
    names: str = "common"
    several: bool = False
    top_k: int = 3
    min_confidence: float = 0.0


def choose(
    given: ListOptions, queries: Sequence[str], model: str, note: Callable[[str], None]
) -> tuple[Choosing, list[str]]:
    """How answers are chosen, and the questions, with one of ours where none was asked.

    note: told what there is to say about the list

    Raises UsageError that names the option, its value and what is allowed.
    """
    from NatureLM.infer.choosing import MODES, make_choosing

    mode: Any = given.mode or ("generate" if given.species_list is None else "score")
    if mode not in MODES:
        raise UsageError(f"--mode is {mode!r}, and it must be one of {', '.join(MODES)}")
    if given.species_list is None:
        return _without_list(given, mode, queries)
    _check(given, mode)
    species = _read(given, model, note)
    asked = [query.replace(_LIST_PLACE, ", ".join(species.names)) for query in queries]
    if not asked:
        asked = [_question(species, mode, given.several)]
        note(f"asking: {_shortened(asked[0])}")
    if mode == "generate":
        if not all(_LIST_PLACE in query for query in queries):
            raise UsageError(
                "--mode generate says anything, so the question has to name the list: write "
                f"{_LIST_PLACE} into --query where it goes, or leave --query out"
            )
        return make_choosing("generate", None, several=False, top_k=1, min_confidence=0.0), asked
    choosing = make_choosing(
        mode,
        species.names,
        several=given.several,
        top_k=given.top_k,
        min_confidence=given.min_confidence,
    )
    return choosing, asked


def _without_list(
    given: ListOptions, mode: Any, queries: Sequence[str]
) -> tuple[Choosing, list[str]]:
    from NatureLM.infer.choosing import Choosing

    if mode != "generate":
        raise UsageError(f"--mode {mode} needs species to choose from: give --species-list")
    _check(given, mode)
    return Choosing(), list(queries)


def _check(given: ListOptions, mode: str) -> None:
    from NatureLM.infer.choosing import check_options

    if given.names not in ("common", "scientific"):
        raise UsageError(
            f"--species-names is {given.names!r}, and it must be one of common, scientific"
        )
    check_options(mode, given.several, given.top_k, given.min_confidence, _option)


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _read(given: ListOptions, model: str, note: Callable[[str], None]) -> SpeciesList:
    from NatureLM.species import hints, known_names, presets, read_species_list

    kind: Any = given.names
    species = read_species_list(given.species_list or "", prefer=kind, presets=presets())
    for text in species.notes:
        note(text)
    found = list(hints(species.names, known_names(model)))
    for text in found[:_MOST_HINTS]:
        note(text)
    if len(found) > _MOST_HINTS:
        note(f"and {len(found) - _MOST_HINTS} more names that are close to known ones")
    return species


def _question(species: SpeciesList, mode: str, several: bool) -> str:
    from NatureLM.species import default_question

    return default_question(species.names, species.kind, lists_names=several or mode == "generate")


def _shortened(text: str) -> str:
    return text if len(text) <= 120 else f"{text[:117]}..."
