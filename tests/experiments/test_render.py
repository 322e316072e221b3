"""Queries become prompts, placeholders get their clips, and shuffles depend on nothing else."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from NatureLM.config import SpeciesConfig
from NatureLM.data.sample import Sample
from NatureLM.errors import UsageError
from NatureLM.experiments.plan import FewShotPool, Renderer

MakeSample = Callable[..., Sample]
TAG = "<Audio><AudioHere></Audio>"
SPECIES = [
    SpeciesConfig(name="Wolf", description="[howls]"),
    SpeciesConfig(name="Wren", description="[trills]"),
    SpeciesConfig(name="Whale", description="[songs]"),
]


def renderer(species: list[SpeciesConfig] = SPECIES, **more: object) -> Renderer:
    return Renderer("<{}>", species, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("query", "prompt"),
    [
        ("What is it?", f"<{TAG} What is it?>"),
        ("  What is it?\n", f"<{TAG}   What is it?>"),
        (f"{TAG} What?", f"<{TAG} What?>"),
        (f"Listen:\n{TAG}\nLabel:\n", f"<Listen:\n{TAG}\nLabel:>"),
        ("One of: {species_list}.", f"<{TAG} One of: Wolf, Wren, Whale.>"),
        (
            "{examples}\n\nAudio: " + TAG + "\nLabel:",
            "<Audio: [howls]\nLabel: Wolf\n\nAudio: [trills]\nLabel: Wren\n\n"
            f"Audio: [songs]\nLabel: Whale\n\nAudio: {TAG}\nLabel:>",
        ),
        ("{species_list}\n{species_list}", f"<{TAG} Wolf, Wren, Whale\nWolf, Wren, Whale>"),
    ],
)
def test_flags_are_rendered(query: str, prompt: str, make_sample: MakeSample) -> None:
    sample = make_sample("a")
    assert renderer().render(sample, query) == (prompt, (sample.clip,))


def test_inserted_text_is_not_rendered_again(make_sample: MakeSample) -> None:
    species = [SpeciesConfig(name="{randomize}"), SpeciesConfig(name="{species_list}")]
    prompt, _ = renderer(species).render(make_sample("a"), "{species_list}")
    assert prompt == f"<{TAG} {{randomize}}, {{species_list}}>"


def order_of(prompt: str) -> list[str]:
    return re.findall("Wolf|Wren|Whale", prompt)


def test_randomize_leaves_nothing_and_shuffles_all_lists_alike(make_sample: MakeSample) -> None:
    query = f"One of: {{species_list}}\n{{examples}}\nAudio: {TAG}{{randomize}}"
    for name in "abcdef":
        prompt, _ = renderer().render(make_sample(name), query)
        assert "randomize" not in prompt
        order = order_of(prompt)
        assert order[:3] == order[3:]
        assert sorted(order[:3]) == ["Whale", "Wolf", "Wren"]


def test_shuffles_go_by_seed_sample_and_query_alone(make_sample: MakeSample) -> None:
    def order(name: str, query: str = "{species_list}{randomize}", seed: int = 0, **more: str):
        sample = make_sample(name, **more)
        return order_of(renderer(seed=seed).render(sample, query)[0])

    assert order("a") == order("a", label="Wren", cluster="c", dataset="other")
    names = [f"s{i}" for i in range(600)]
    by_name = [order(name) for name in names]
    assert by_name != [order(name, seed=1) for name in names]
    assert by_name != [order(name, query="Of {species_list}{randomize}") for name in names]
    # All six orders, each about as often.
    counts = Counter(map(tuple, by_name))
    assert len(counts) == 6
    assert min(counts.values()) > 60


def test_an_order_is_the_same_for_ever(make_sample: MakeSample) -> None:
    """Were it another one in the next version, runs could not be gone on with."""
    orders = [
        order_of(renderer(seed=7).render(make_sample(name), "{species_list}{randomize}")[0])
        for name in ("XC1", "XC2", "XC3")
    ]
    assert orders == [
        ["Wolf", "Whale", "Wren"],
        ["Whale", "Wolf", "Wren"],
        ["Wolf", "Wren", "Whale"],
    ]


def test_species_keep_the_order_named_without_randomize(make_sample: MakeSample) -> None:
    for name in "abcdef":
        prompt, _ = renderer().render(make_sample(name), "{species_list}")
        assert order_of(prompt) == ["Wolf", "Wren", "Whale"]


@given(
    parts=st.lists(
        st.sampled_from([TAG, "{audio_examples}", "{examples}", "{species_list}", " x ", "\n"]),
        max_size=6,
    )
)
def test_the_ith_audio_belongs_to_the_ith_placeholder(
    parts: list[str], make_sample: MakeSample
) -> None:
    pool = [
        make_sample(f"{one.name}{i}", label=one.name, cluster=f"{one.name}{i}")
        for one in SPECIES
        for i in range(3)
    ]
    sample = make_sample("tested")
    made = renderer(pool=FewShotPool(pool, 2, 0, "pool"))
    query = "".join(parts)
    prompt, audios = made.render(sample, query)
    assert prompt.count("<AudioHere>") == len(audios)
    assert audios == made.audios(sample, query)
    places = re.findall(r"<AudioHere></Audio>(?:\nLabel: (Wolf|Wren|Whale))?", prompt)
    for label, clip in zip(places, audios, strict=True):
        assert clip.key.startswith(f"d/{label or 'tested'}")
    assert sample.clip in audios


def test_audio_examples_without_a_place_for_the_clip_itself(make_sample: MakeSample) -> None:
    """It stands in front, so that it is heard."""
    pool = [make_sample(one.name, label=one.name) for one in SPECIES]
    sample = make_sample("tested")
    made = renderer(pool=FewShotPool(pool, 1, 0, "pool"))
    prompt, audios = made.render(sample, "{audio_examples}\nWhich?")
    assert prompt.startswith(f"<{TAG} Audio: {TAG}\nLabel: Wolf\n\nAudio: {TAG}\nLabel: Wren")
    assert [clip.key for clip in audios] == ["d/tested", "d/Wolf", "d/Wren", "d/Whale"]


def test_audio_examples_need_a_pool(make_sample: MakeSample) -> None:
    with pytest.raises(UsageError, match="no example clips"):
        renderer().render(make_sample("a"), "{audio_examples}")
