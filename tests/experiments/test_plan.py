"""Plans: trials and their ids, prompts and the clips of their placeholders, what is tested."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from NatureLM.config import ExperimentConfig, SpeciesConfig
from NatureLM.config.schema import TableSource
from NatureLM.data.sample import Clip, Sample, open_samples
from NatureLM.data.table import DataError
from NatureLM.errors import UsageError
from NatureLM.experiments.plan import (
    FewShotPool,
    Plan,
    Renderer,
    drawn,
    make_plan,
    most_frequent,
    select,
)

QUERIES = ["What?", "Which of {species_list}?{randomize}"]


@dataclass(frozen=True)
class Nothing:
    """The place of sound that no test reads."""

    name: str

    def read(self, **_: Any) -> Any:
        raise AssertionError(f"{self.name} was read")


def make_sample(name: str, label: str = "Wolf", cluster: str = "", dataset: str = "d") -> Sample:
    """A sample without sound."""
    clip = Clip(f"{dataset}/{name}", Nothing(name))
    return Sample(name, dataset, label, clip, cluster or name)


def plan_of(samples: list[Sample], *, template: str = "<{}>", **changes: Any) -> Plan:
    species = ExperimentConfig.model_validate({"species": [{"name": "Wolf"}, {"name": "Wren"}]})
    renderer = Renderer(template, species.species or (), seed=changes.pop("seed", 0))
    settings = {"queries": QUERIES, "alphas": [0.0, 0.57, 0.58], **changes}
    return Plan(samples, settings["queries"], settings["alphas"], renderer)


def test_trials_come_by_sample_then_query_then_alpha() -> None:
    plan = plan_of([make_sample("b"), make_sample("a", label="Wren", cluster="c")])
    trials = list(plan.trials())
    assert [(one.sample_id, one.query, one.alpha) for one in trials] == [
        (name, query, alpha) for name in "ba" for query in (0, 1) for alpha in (0.0, 0.57, 0.58)
    ]
    assert len(plan) == len(trials) == 12
    assert (plan.n_queries, plan.n_encodings) == (2, 2)
    assert (trials[-1].label, trials[-1].cluster, trials[-1].dataset_name) == ("Wren", "c", "d")
    assert trials[0].prompt == "<<Audio><AudioHere></Audio> What?>"
    assert [clip.key for clip in trials[0].audios] == ["d/b"]


def test_ids_are_of_the_contents() -> None:
    one, other = make_sample("a"), make_sample("b")

    def ids(plan: Plan) -> set[str]:
        return {trial.id for trial in plan.trials()}

    base = plan_of([one, other])
    assert len(ids(base)) == len(base)
    turned = plan_of([other, one], alphas=[0.58, 0.0, 0.57], queries=QUERIES[::-1])
    assert ids(turned) == ids(base)
    assert turned.fingerprint() == base.fingerprint()
    assert ids(plan_of([one])) < ids(base)
    for changed in (
        plan_of([one, other], template="({})"),
        plan_of([make_sample("a2"), make_sample("b2")]),
        plan_of([make_sample(name, dataset="e") for name in "ab"]),
        plan_of([one, other], alphas=[0.1, 0.2, 0.3]),
        plan_of([one, other], queries=["Who?", "Where?"]),
    ):
        assert not ids(changed) & ids(base)
        assert changed.fingerprint() != base.fingerprint()


def test_ids_are_the_same_for_ever() -> None:
    """Were they others in the next version, runs could not be resumed."""
    (trial,) = plan_of([make_sample("a")], queries=["What?"], alphas=[0.4]).trials()
    assert trial.id == "ada0db0b508c992e2e325ffc1d8d0c7e"


def test_another_template() -> None:
    samples = [make_sample("a")]
    changed = plan_of(samples).with_template("({})")
    assert list(changed.trials()) == list(plan_of(samples, template="({})").trials())


def test_example_clips_count_as_encodings() -> None:
    samples = [make_sample(f"s{i}", label=("Wolf", "Wren")[i % 2]) for i in range(6)]
    species = ExperimentConfig.model_validate({"species": [{"name": "Wolf"}, {"name": "Wren"}]})
    renderer = Renderer("{}", species.species or (), FewShotPool(samples, 1, 0, "pool"))
    plan = Plan(samples[:2], ["{audio_examples} <AudioHere>"], [0.0, 1.0], renderer)
    keys = {clip.key for trial in plan.trials() for clip in trial.audios}
    assert plan.n_encodings == len(keys)
    assert all(len(trial.audios) == 3 for trial in plan.trials())
    for trial in plan.trials():
        assert trial.audios[-1].key not in {clip.key for clip in trial.audios[:-1]}


def write_table(folder: Path, rows: str) -> dict[str, str]:
    path = folder / "clips.csv"
    path.write_text(rows)
    return {"path": str(path)}


def build(data: dict[str, Any] | None, **config: Any) -> Plan:
    return make_plan(ExperimentConfig.model_validate({**config, "data": data}), "{}")


ROWS = "file,common_name,family\n" + "".join(
    f"{name}{i}.wav,{name},{name}{i // 2}\n" for name in ("Wolf", "Wren") for i in range(4)
)


def test_a_plan_from_a_table(tmp_path: Path) -> None:
    data = write_table(tmp_path, ROWS)
    config = {"queries": ["{audio_examples}\nAudio: <AudioHere>\nLabel:"], "n_examples": 2}
    plan = build(data, **config, top_k_species=2, lora_scales=[0.5])
    for trial in plan.trials():
        own = trial.audios[-1].key
        assert own == f"clips/{trial.sample_id}"
        same = {
            f"clips/{trial.label}{i}.wav"
            for i in range(4)
            if f"{trial.label}{i // 2}" == (trial.cluster)
        }
        assert own in same
        assert not same & {clip.key for clip in trial.audios[:-1]}
    with pytest.raises(UsageError, match=r"n_examples is 3, and .*clips.csv has only 2 clips of"):
        build(data, **{**config, "n_examples": 3}, top_k_species=2)
    with pytest.raises(UsageError, match=r"n_examples is 9, and .*clips.csv has only"):
        build(data, **{**config, "n_examples": 9}, top_k_species=2)


def test_support_of_its_own(tmp_path: Path) -> None:
    data = write_table(tmp_path, ROWS)
    (tmp_path / "examples.csv").write_text(
        "file,label\nx/1.wav,Wolf\nx/2.wav,Wren\nWolf0.wav,Wolf\n"
    )
    plan = build(
        data,
        queries=["{audio_examples} <AudioHere>"],
        top_k_species=2,
        support=str(tmp_path / "examples.csv"),
    )
    for trial in plan.trials():
        examples = [clip.key for clip in trial.audios[:-1]]
        assert all(key.startswith("support:examples/") for key in examples)
        if trial.sample_id == "Wolf0.wav":
            assert examples == ["support:examples/x/1.wav", "support:examples/x/2.wav"]


def test_no_question_to_ask(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"'Wolf0.wav' brings no question .*extended\.queries"):
        build(write_table(tmp_path, ROWS))


def test_its_own_question_for_each(tmp_path: Path) -> None:
    data = write_table(tmp_path, "file,label,instruction_text\na.wav,Wolf,Who?\nb.wav,Owl,What?\n")
    assert [trial.prompt for trial in build(data).trials()] == [
        "<Audio><AudioHere></Audio> Who?",
        "<Audio><AudioHere></Audio> What?",
    ]


def test_top_k_over_data_of_several_datasets(tmp_path: Path) -> None:
    data = write_table(tmp_path, "file,label,dataset_name\na.wav,Wolf,cbi\nb.wav,Owl,watkins\n")
    with pytest.raises(DataError, match=r"top_k_species is 1.*holds cbi, watkins"):
        build(data, queries=["{species_list}"], top_k_species=1)
    assert len(build(data, queries=["{species_list}"], top_k_species=1, datasets=["cbi"])) == 1


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
def test_flags_are_rendered(query: str, prompt: str) -> None:
    sample = make_sample("a")
    assert renderer().render(sample, query) == (prompt, (sample.clip,))


def test_inserted_text_is_not_rendered_again() -> None:
    species = [SpeciesConfig(name="{randomize}"), SpeciesConfig(name="{species_list}")]
    prompt, _ = renderer(species).render(make_sample("a"), "{species_list}")
    assert prompt == f"<{TAG} {{randomize}}, {{species_list}}>"


def order_of(prompt: str) -> list[str]:
    return re.findall("Wolf|Wren|Whale", prompt)


def test_randomize_leaves_nothing_and_shuffles_all_lists_alike() -> None:
    query = f"One of: {{species_list}}\n{{examples}}\nAudio: {TAG}{{randomize}}"
    for name in "abcdef":
        prompt, _ = renderer().render(make_sample(name), query)
        assert "randomize" not in prompt
        order = order_of(prompt)
        assert order[:3] == order[3:]
        assert sorted(order[:3]) == ["Whale", "Wolf", "Wren"]


def test_shuffles_go_by_seed_sample_and_query_alone() -> None:
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


def test_an_order_is_the_same_for_ever() -> None:
    """Were it another one in the next version, runs could not be resumed."""
    orders = [
        order_of(renderer(seed=7).render(make_sample(name), "{species_list}{randomize}")[0])
        for name in ("XC1", "XC2", "XC3")
    ]
    assert orders == [
        ["Wolf", "Whale", "Wren"],
        ["Whale", "Wolf", "Wren"],
        ["Wolf", "Wren", "Whale"],
    ]


@given(
    parts=st.lists(
        st.sampled_from([TAG, "{audio_examples}", "{examples}", "{species_list}", " x ", "\n"]),
        max_size=6,
    )
)
def test_the_ith_audio_belongs_to_the_ith_placeholder(parts: list[str]) -> None:
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
    places = re.findall(r"<AudioHere></Audio>(?:\nLabel: (Wolf|Wren|Whale))?", prompt)
    for label, clip in zip(places, audios, strict=True):
        assert clip.key.startswith(f"d/{label or 'tested'}")
    assert sample.clip in audios


def test_audio_examples_without_a_place_for_the_clip_itself() -> None:
    """It stands in front, so that it is heard."""
    pool = [make_sample(one.name, label=one.name) for one in SPECIES]
    sample = make_sample("tested")
    made = renderer(pool=FewShotPool(pool, 1, 0, "pool"))
    prompt, audios = made.render(sample, "{audio_examples}\nWhich?")
    assert prompt.startswith(f"<{TAG} Audio: {TAG}\nLabel: Wolf\n\nAudio: {TAG}\nLabel: Wren")
    assert [clip.key for clip in audios] == ["d/tested", "d/Wolf", "d/Wren", "d/Whale"]


def test_audio_examples_need_a_pool() -> None:
    with pytest.raises(UsageError, match="no example clips"):
        renderer().render(make_sample("a"), "{audio_examples}")


@given(
    clusters=st.lists(st.integers(0, 5), min_size=1, max_size=20),
    n=st.integers(1, 4),
    seed=st.integers(0, 3),
)
def test_never_the_clip_nor_its_recording(clusters: list[int], n: int, seed: int) -> None:
    pool = [make_sample(f"s{i}", cluster=f"c{c}") for i, c in enumerate(clusters)]
    support = FewShotPool(pool, n, seed, "pool")
    short = []
    for sample in pool:
        others = [one.clip for one in pool if one.cluster != sample.cluster]
        if len(others) < n:
            short.append(sample)
            with pytest.raises(UsageError, match=f"n_examples is {n}, and pool has only"):
                support.examples("Wolf", sample)
            continue
        found = support.examples("Wolf", sample)
        assert len(set(found)) == n
        assert set(found) <= set(others)
    if short:
        with pytest.raises(UsageError, match="n_examples"):
            support.check(["Wolf"], pool)
    else:
        support.check(["Wolf"], pool)


def test_different_recordings_come_first() -> None:
    pool = [make_sample(f"s{i}", cluster=f"c{i // 5}") for i in range(15)]
    found = FewShotPool(pool, 3, 0, "pool").examples("Wolf", make_sample("tested"))
    assert {int(clip.key[3:]) // 5 for clip in found} == {0, 1, 2}


def test_prompts_share_their_examples() -> None:
    """Which saves encodings: only samples of the same recordings see others."""
    pool = [make_sample(f"s{i}") for i in range(20)]
    support = FewShotPool(pool, 2, 0, "pool")
    usual = support.examples("Wolf", make_sample("tested"))
    others = [support.examples("Wolf", sample) for sample in pool]
    assert sum(one != usual for one in others) == 2


def test_the_seed_and_nothing_else_chooses() -> None:
    pool = [make_sample(f"s{i}") for i in range(30)]
    tested = make_sample("tested")
    chosen = [FewShotPool(pool, 3, seed, "pool").examples("Wolf", tested) for seed in range(4)]
    assert len(set(chosen)) > 1
    assert chosen[0] == FewShotPool(pool[::-1], 3, 0, "pool").examples("Wolf", tested)


def test_the_same_file_by_another_path_is_the_same_sound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the folder of another table, by an absolute path, by a link."""
    monkeypatch.chdir(tmp_path)
    for folder in ("data", "examples"):
        Path(folder).mkdir()
    (tmp_path / "linked").symlink_to(tmp_path / "data")
    tables = {
        "data/tested.csv": ["x.wav"],
        "examples/a.csv": ["../data/x.wav", f"{tmp_path}/data/x.wav", "../linked/x.wav"],
        "examples/b.csv": ["../data/y.wav"],
    }
    for name, paths in tables.items():
        Path(name).write_text("\n".join(["file,label", *(f"{path},Wolf" for path in paths)]))
    (tested,) = open_samples(TableSource(path="data/tested.csv")).samples
    same, other = (
        open_samples(TableSource(path=f"examples/{name}.csv"), key_prefix="support:").samples
        for name in "ab"
    )
    with pytest.raises(UsageError, match=r"only 0 clips of 'Wolf' beside those of the recording"):
        FewShotPool(same, 1, 0, "examples").examples("Wolf", tested)
    assert FewShotPool([*same, *other], 1, 0, "examples").examples("Wolf", tested) == (
        other[0].clip,
    )


def test_no_clip_of_a_species() -> None:
    with pytest.raises(UsageError, match=r"no clip of 'Wren' \(its labels: Wolf\)"):
        FewShotPool([make_sample("a")], 1, 0, "pool").check(["Wolf", "Wren"], [make_sample("b")])


@pytest.fixture
def samples() -> list[Sample]:
    """Labels by frequency: Wren 3, Cat and Ant 2, Wolf 1."""
    labels = ["Wren", "Cat", "Ant", "Wren", "Wolf", "Cat", "Ant", "Wren"]
    return [make_sample(f"s{i}", label=label) for i, label in enumerate(labels)]


Selection = tuple[list[Sample], list[SpeciesConfig]]


def chosen(data: list[Sample], /, **config: Any) -> Selection:
    return select(ExperimentConfig.model_validate(config), data)


def ids(selection: Selection) -> list[str]:
    return [sample.id for sample in selection[0]]


@pytest.mark.parametrize(
    ("k", "names"),
    [
        (1, ["Wren"]),
        (2, ["Wren", "Ant"]),  # a tie: the alphabetically first
        (3, ["Wren", "Ant", "Cat"]),
        (4, ["Wren", "Ant", "Cat", "Wolf"]),
        (10000000, ["Wren", "Ant", "Cat", "Wolf"]),
    ],
)
def test_top_k(k: int, names: list[str], samples: list[Sample]) -> None:
    selection = chosen(samples, top_k_species=k)
    assert [one.name for one in selection[1]] == names
    assert ids(selection) == [one.id for one in samples if one.label in names]
    assert most_frequent(samples[::-1], k) == names


def test_species_filter_and_keep_their_order(samples: list[Sample]) -> None:
    selection = chosen(samples, species=[{"name": "Wolf"}, {"name": "Ant"}])
    assert ids(selection) == ["s2", "s4", "s6"]
    assert [one.name for one in selection[1]] == ["Wolf", "Ant"]


def test_with_species_to_choose_from_the_task_is_known(samples: list[Sample]) -> None:
    """So that answers can be scored; what the data say themselves stays."""
    said = [replace(samples[0], task="detection"), *samples[1:]]
    for config in ({"species": [{"name": "Wren"}]}, {"top_k_species": 1}):
        tasks = [one.task for one in chosen(said, **config)[0]]
        assert tasks == ["detection", "classification", "classification"]
    assert {one.task for one in chosen(samples)[0]} == {""}


def test_a_species_without_samples_is_noted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It may be there to distract, or be misspelt."""
    (tmp_path / "x.csv").write_text("file,label\na.wav,Wolf\nb.wav,Ant\n")
    config = {"species": [{"name": "Wolfe"}, {"name": "Ant"}], "queries": ["{species_list}"]}
    data = {"path": str(tmp_path / "x.csv")}
    make_plan(ExperimentConfig.model_validate({**config, "data": data}), "{}")
    assert caplog.messages == [
        "extended.species: no sample has the label 'Wolfe'; the nearest label is 'Wolf'"
    ]


def test_no_species_at_all_is_an_error_that_says_how(samples: list[Sample]) -> None:
    with pytest.raises(DataError) as error:
        chosen(samples, species=[{"name": "Emu", "description": "[booms]"}, {"name": "Owl"}])
    text = str(error.value)
    assert "'Emu', 'Owl', and none of the 8 samples has such a label" in text
    assert "Wren, Ant, Cat, Wolf" in text
    assert (
        "extended.species=[{name: Wren, description: ...}, {name: Ant, description: ...}]" in text
    )


def test_named_samples(samples: list[Sample]) -> None:
    assert ids(chosen(samples, samples=["s7", "s1"])) == ["s1", "s7"]
    with pytest.raises(DataError, match=r"'s71' is no id of a sample .*; did you mean 's7'\?"):
        chosen(samples, samples=["s71"])


def test_a_limit_draws_by_seed_and_grows(samples: list[Sample]) -> None:
    small, large = ids(chosen(samples, limit=3)), ids(chosen(samples, limit=5))
    assert len(small) == 3
    assert set(small) < set(large)
    assert small == sorted(small)
    assert ids(chosen(samples, limit=100)) == [one.id for one in samples]
    others = [ids(chosen(samples, limit=3, seed=seed)) for seed in range(1, 5)]
    assert any(one != small for one in others)
    assert drawn(samples[::-1], 3, 0) == chosen(samples, limit=3)[0][::-1]
