"""The section `extended`: an experiment over prompts, adapter scales, species and datasets."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Annotated, Any

from pydantic import Field, ValidationInfo, field_validator, model_validator

from NatureLM.config.base import Section, TableSource, Text
from NatureLM.util import did_you_mean

SPECIES_LIST, EXAMPLES = "species_list", "examples"
AUDIO_EXAMPLES, RANDOMIZE = "audio_examples", "randomize"
FLAGS = (SPECIES_LIST, EXAMPLES, AUDIO_EXAMPLES, RANDOMIZE)
"""What may stand in braces in a query."""

_IN_BRACES = re.compile(r"\{([A-Za-z_][A-Za-z_ -]*)\}")
_AUDIO_PLACE = "<AudioHere>"


class SpeciesConfig(Section):
    """One species to choose from."""

    name: Text
    description: Text | None = None
    """What it sounds like, in words: shown for {examples}."""

    @field_validator("name", "description")
    @classmethod
    def _holds_no_audio(cls, value: str | None) -> str | None:
        if value is not None and _AUDIO_PLACE in value:
            raise ValueError(f"{_AUDIO_PLACE} stands for sound and belongs into a query")
        return value


class ExperimentConfig(Section):
    """What is asked of which samples, at which scales of the adapter."""

    datasets: Annotated[list[Text], Field(min_length=1)] | None = Field(
        default=None, examples=[["unseen-family-cmn"]]
    )
    """Names of the datasets that are tested; all that the data hold if null."""
    lora_scales: Annotated[list[float], Field(min_length=1)] = Field(
        default=[1.0], examples=[[0.0, 0.5, 1.0]]
    )
    """Scales α of the adapter: 0 is the base language model, 1 the fine-tuned one."""
    queries: Annotated[list[Text], Field(min_length=1)] | None = Field(
        default=None, examples=[["Identify the focal species.\nOne of: {species_list}"]]
    )
    """Asked instead of the dataset's own prompts; may hold {species_list}, {examples},
    {audio_examples} and {randomize}."""
    species: Annotated[list[SpeciesConfig], Field(min_length=1)] | None = Field(
        default=None, examples=[[{"name": "Wolf", "description": "[howls]"}]]
    )
    """Species to choose from; only samples of these are tested."""
    top_k_species: Annotated[int, Field(ge=1)] | None = Field(default=None, examples=[3])
    """Only samples of the k most frequent species of the one dataset are tested."""
    n_examples: int = Field(default=1, ge=1, examples=[5])
    """Clips of each species for {audio_examples}."""

    support: Text | TableSource | None = Field(default=None, examples=["examples.csv"])
    """Clips for {audio_examples}: a table, a folder, or a dataset on disk; if null, the other
    samples of the dataset."""
    data: TableSource | None = Field(
        default=None, examples=[{"path": "clips.csv", "where": {"split": "test"}}]
    )
    """What is tested: BEANS-Zero on disk or on the Hub, or a table of one's own; `--data-path`
    puts another path in."""
    samples: Annotated[list[Text], Field(min_length=1)] | None = Field(
        default=None, examples=[["XC1234", "XC1240"]]
    )
    """Ids of the samples that are tested; all if null."""
    limit: Annotated[int, Field(ge=1)] | None = Field(default=None, examples=[100])
    """So many samples at most, drawn by `seed`."""
    seed: int = Field(default=0, ge=0, examples=[7])
    """Of {randomize}, of `limit` and of the choice of example clips."""
    output_path: Text | None = Field(default=None, examples=["runs/mine"])
    """Folder of the results; `runs/` and the name of the configuration if null."""
    batch_tokens: Annotated[int, Field(ge=1)] | None = Field(default=None, examples=[8192])
    """Tokens in a batch: changes the speed, never the answers; chosen for the device if null."""

    @field_validator("lora_scales", "queries", "datasets", "samples")
    @classmethod
    def _each_once(cls, values: list[Any] | None) -> list[Any] | None:
        _refuse_twice(values or [])
        return values

    @field_validator("queries")
    @classmethod
    def _queries_are_well_formed(cls, queries: list[str] | None) -> list[str] | None:
        for query in queries or []:
            if not query.strip():
                raise ValueError("a query must hold more than spaces")
            _refuse_unknown_flags(query)
        return queries

    @field_validator("species")
    @classmethod
    def _species_fit(
        cls, species: list[SpeciesConfig] | None, info: ValidationInfo
    ) -> list[SpeciesConfig] | None:
        _refuse_twice(one.name for one in species or [])
        if _is_used(EXAMPLES, info):
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
        if _is_used(EXAMPLES, info):
            raise ValueError(
                "a query holds {examples}, which shows descriptions: name the species with their "
                "descriptions in extended.species instead"
            )
        return k

    @field_validator("n_examples", "support")
    @classmethod
    def _has_an_effect(cls, value: Any, info: ValidationInfo) -> Any:
        is_default = value is None or value == 1
        if not is_default and "queries" in info.data and not _is_used(AUDIO_EXAMPLES, info):
            raise ValueError("no query holds {audio_examples}: put it into one, or leave this out")
        return value

    @model_validator(mode="after")
    def _there_are_species_to_show(self) -> ExperimentConfig:
        for query in self.queries or []:
            for flag in (SPECIES_LIST, EXAMPLES, AUDIO_EXAMPLES):
                if f"{{{flag}}}" in query and self.species is None and self.top_k_species is None:
                    also = "" if flag == EXAMPLES else ", or set extended.top_k_species"
                    raise ValueError(
                        f"the query {query!r} shows species with {{{flag}}}, and none are named: "
                        f"name them in extended.species{also}"
                    )
        return self

    @property
    def support_table(self) -> TableSource | None:
        """The table of example clips, however it is written."""
        return TableSource(path=self.support) if isinstance(self.support, str) else self.support


def _is_used(flag: str, info: ValidationInfo) -> bool:
    return any(f"{{{flag}}}" in query for query in info.data.get("queries") or [])


def _refuse_twice(values: Iterable[Any]) -> None:
    seen: set[Any] = set()
    for value in values:
        if value in seen:
            raise ValueError(f"{value!r} is in the list twice")
        seen.add(value)


def _refuse_unknown_flags(query: str) -> None:
    for flag in _IN_BRACES.findall(query):
        if flag not in FLAGS:
            hint = did_you_mean(flag.lower().strip(), FLAGS, "{{{}}}")
            known = ", ".join(f"{{{name}}}" for name in FLAGS)
            raise ValueError(f"{{{flag}}} is no flag of a query{hint} (flags: {known})")
