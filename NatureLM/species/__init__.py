"""Lists of species: read from files of many kinds, with hints at names that may have been meant."""

from NatureLM.species.known import known_names, presets
from NatureLM.species.lists import SpeciesList, read_species_list
from NatureLM.species.questions import CHOICE_QUESTION, default_question
from NatureLM.species.spelling import hints

__all__ = [
    "CHOICE_QUESTION",
    "SpeciesList",
    "default_question",
    "hints",
    "known_names",
    "presets",
    "read_species_list",
]
