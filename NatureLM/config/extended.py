"""The section `extended`: an experiment over prompts, adapter scales, species and datasets."""

from __future__ import annotations

import difflib
import re
from typing import Annotated

from pydantic import Field, ValidationInfo, field_validator

from NatureLM.config.section import Section, Text

FLAGS = ("species_list", "examples", "audio_examples", "randomize")
"""What may stand in braces in a query."""

_IN_BRACES = re.compile(r"\{([A-Za-z_]+)\}")


class SpeciesConfig(Section):
    """One species to choose from."""

    name: Text
    description: Text | None = None
    """What it sounds like, in words: shown for {examples}."""


class ExtendedConfig(Section):
    """What is asked of which samples, at which scales of the adapter."""

    datasets: Annotated[list[Text], Field(min_length=1)] | None = None
    lora_scales: Annotated[list[float], Field(min_length=1)] = Field(default=[1.0])
    queries: Annotated[list[Text], Field(min_length=1)] | None = None
    """Asked instead of the dataset's own prompts; may hold {species_list}, {examples},
    {audio_examples} and {randomize}."""
    species: Annotated[list[SpeciesConfig], Field(min_length=1)] | None = None
    """Only samples of these species are tested."""
    top_k_species: Annotated[int, Field(ge=1)] | None = None
    """Only samples of the k most frequent species of the dataset are tested."""
    n_examples: int = Field(default=1, ge=1)
    """Clips of each species for {audio_examples}."""

    @field_validator("lora_scales", "queries", "datasets")
    @classmethod
    def _each_once(cls, values: list[object] | None) -> list[object] | None:
        twice = [value for i, value in enumerate(values or []) if value in (values or [])[:i]]
        if twice:
            raise ValueError(f"{twice[0]!r} is in the list twice")
        return values

    @field_validator("queries")
    @classmethod
    def _known_flags(cls, queries: list[str] | None) -> list[str] | None:
        for query in queries or []:
            for flag in _IN_BRACES.findall(query):
                if flag not in FLAGS:
                    near = difflib.get_close_matches(flag, FLAGS, n=1)
                    hint = f"; did you mean {{{near[0]}}}?" if near else ""
                    known = ", ".join(f"{{{name}}}" for name in FLAGS)
                    raise ValueError(f"{{{flag}}} is no flag of a query{hint} (flags: {known})")
        return queries

    @field_validator("species")
    @classmethod
    def _species_fit(
        cls, species: list[SpeciesConfig] | None, info: ValidationInfo
    ) -> list[SpeciesConfig] | None:
        names = [one.name for one in species or []]
        for i, name in enumerate(names):
            if name in names[:i]:
                raise ValueError(f"{name!r} is in the list twice")
        if any("{examples}" in query for query in info.data.get("queries") or []):
            for one in species or []:
                if one.description is None:
                    raise ValueError(
                        f"{one.name!r} has no description, and a query with {{examples}} shows it"
                    )
        return species

    @field_validator("top_k_species")
    @classmethod
    def _one_way_to_choose_species(cls, k: int | None, info: ValidationInfo) -> int | None:
        if k is None:
            return k
        if info.data.get("species") is not None:
            raise ValueError("species and top_k_species exclude each other: keep one of them")
        datasets = info.data.get("datasets") or []
        if len(datasets) > 1:
            raise ValueError(
                f"it works with one dataset, and extended.datasets names {len(datasets)}"
            )
        return k
