"""The study of merging and the page on confidence: questions, numbers, tables and figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from commands import rows

from NatureLM.data.sample import Clip as Sound
from NatureLM.data.sample import Sample
from NatureLM.errors import NatureLMError
from NatureLM.experiments.tune import Scored, fit_calibration, measure
from NatureLM.generation.labels import LabelScores
from recipes.tiny import study
from recipes.tiny.data import Clip
from recipes.tiny.reliability import BEGIN, END, known_or_unseen, rewrite
from recipes.tiny.species import HEARD
from recipes.tiny.study import (
    SEEN_FAMILIES,
    Asker,
    StudyConfig,
    compare,
    describe,
    families,
    in_form,
    points,
    summarise,
    write_report,
)
from recipes.tiny.wordings import HELD_OUT

ANIMALS = [s for s in HEARD if s.is_animal]
CLIPS = [
    Clip(Path(f"{s.name}-{split}.flac"), s.name, s.group, s.scientific, f"{s.name}-{split}", split,
         "animals")
    for s in ANIMALS
    for split in ("train", "test")
]  # fmt: skip
TESTED = [clip for clip in CLIPS if clip.split == "test"]


@pytest.mark.parametrize("family", HELD_OUT, ids=lambda f: f.name)
def test_questions_never_seen_are_as_they_were_fixed(family) -> None:  # type: ignore[no-untyped-def]
    items = Asker(CLIPS, 0).items(family.name, TESTED)
    with_latin = sum(bool(clip.scientific) for clip in TESTED)
    colon = family.answer == "scientific : common"
    assert len(items) == (with_latin if colon else len(TESTED))
    names = {clip.label for clip in CLIPS}
    for item in items:
        assert "{" not in item.query
        assert item.truth.endswith(item.clip.label)
        assert (" : " in item.truth) is colon
        if not family.list_length:
            continue
        line = next(line for line in item.query.splitlines() if line.count(", ") >= 1)
        listed = line.partition(": ")[2].split(", ")
        wanted = family.list_length
        assert item.clip.label in listed
        assert set(listed) <= names
        assert len(set(listed)) == len(listed)
        if wanted != -1:
            assert len(listed) == wanted
        if family.order == "alphabetical":
            assert listed == sorted(listed)
        if family.order == "reversed":
            assert listed == sorted(listed, reverse=True)
        if family.examples:
            assert item.query.count("\nLabel: ") == family.examples
            assert f"\nLabel: {item.clip.label}" in item.query


def test_questions_depend_on_the_clip_and_the_seed_only() -> None:
    for family in families(StudyConfig()):
        whole = Asker(CLIPS, 0).items(family, TESTED)
        last = Asker(CLIPS, 0).items(family, TESTED[-1:])
        assert [item for item in whole if item.clip == TESTED[-1]] == last
    one, two = (Asker(CLIPS, seed).items("list of twelve", TESTED) for seed in (0, 1))
    assert one != two
    assert all(item.query.count(", ") >= 11 for item in one)


def test_an_unknown_family_is_named() -> None:
    with pytest.raises(NatureLMError, match="'songs'; there are common name"):
        families(StudyConfig(families=["songs"]))


def row(split: str, alpha: float, family: str, number: int, right: bool) -> dict[str, Any]:
    return {
        "prediction": "Dog" if right else "Cat",
        "label": "Dog",
        "id": str(number),
        "dataset_name": split,
        "prompt": "?",
        "lora_scale": alpha,
        "query": 0,
        "family": family,
        "seen": family in SEEN_FAMILIES,
        "cluster": str(number // 2),
    }


# Of ten clips, so many are right: unseen questions best at 0.5, seen ones at 1.
RIGHT = {("common name", 0.0): 1, ("common name", 0.5): 6, ("common name", 1.0): 9,
         ("new_wording", 0.0): 2, ("new_wording", 0.5): 8, ("new_wording", 1.0): 5}  # fmt: skip
ROWS = [
    row(split, alpha, family, number, number < right)
    for split in ("valid", "test")
    for (family, alpha), right in RIGHT.items()
    for number in range(10)
]


def test_points_and_comparison() -> None:
    values = {(p.split, p.family, p.alpha): p.accuracy.value for p in points(ROWS)}
    for (family, alpha), right in RIGHT.items():
        assert values["test", family, alpha] == right / 10
    assert values["test", "never seen", 0.5] == 0.8
    found = compare(ROWS, "valid", "test")
    assert found is not None
    assert found.chosen == 0.5
    assert found.difference.value == pytest.approx(0.3)
    assert found.difference.low <= 0.3 <= found.difference.high
    assert describe("never seen", found).startswith("never seen, test: 0.800 [")
    assert summarise(ROWS, "valid", "test").splitlines()[1].startswith("new_wording, test: 0.800 [")
    assert compare([r for r in ROWS if r["lora_scale"] != 1.0], "valid", "test") is None


@pytest.mark.parametrize(
    ("family", "label", "prompt", "answer", "expected"),
    [
        ("yes or no", "Yes", "", "No", True),
        ("yes or no", "Yes", "", "Dog", False),
        ("group", "bird", "", "frog", True),
        ("common name", "Dog", "", "Cat, Rain", True),
        ("common name", "Dog", "", "a dog, I think", False),
        ("scientific_colon_common", "A b : Dog", "", "Felis catus : Cat", True),
        ("scientific_colon_common", "A b : Dog", "", "Dog", False),
        ("exactly_one_of_two", "Dog", "Output: Dog, Cat", "Cat", True),
        ("exactly_one_of_two", "Dog", "Output: Dog, Cat", "Cow", False),
    ],
)
def test_form(family: str, label: str, prompt: str, answer: str, expected: bool) -> None:
    made = {"family": family, "label": label, "prompt": prompt, "prediction": answer}
    assert in_form(made) is expected


def test_files(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    write_report(ROWS, tmp_path)
    table = (tmp_path / "table.md").read_text()
    assert "| new wording | 0.20 | **0.80** | 0.50 |" in table
    first = (tmp_path / "curves.svg").read_bytes()
    assert "new wording" in (tmp_path / "curves.svg").read_text()
    write_report(ROWS, tmp_path)
    assert (tmp_path / "curves.svg").read_bytes() == first
    assert len((tmp_path / "table.csv").read_text().splitlines()) == 1 + 2 * 4 * 3


@pytest.mark.shared
def test_the_embedded_model_is_asked(
    tmp_path: Path, shared_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "study.yml"
    config.write_text("lora_scales: [0.0, 1.0]\nsplits: [valid]\nfamilies: [common name]\n")
    arguments = ["--cfg-path", str(config), "--data-path", str(shared_dir / "data")]
    assert study.main([*arguments, "--output-path", str(tmp_path / "out")]) == 0
    answers = rows(tmp_path / "out" / study.ANSWERS)
    assert len(answers) == 2 * 92
    hits = {
        alpha: sum(r["prediction"] == r["label"] for r in answers if r["lora_scale"] == alpha)
        for alpha in (0.0, 1.0)
    }
    assert hits[1.0] > hits[0.0]


def test_a_wrong_configuration_is_explained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "study.yml"
    config.write_text("lora_scale: [0.0]\n")
    arguments = ["--cfg-path", str(config), "--data-path", ".", "--output-path", str(tmp_path)]
    assert study.main(arguments) == 1
    assert "lora_scale" in capsys.readouterr().err
    assert study.main(["--cfg-path", str(tmp_path / "no.yml"), *arguments[2:]]) == 2
    assert "there is no such configuration file" in capsys.readouterr().err


ROOT = Path(__file__).resolve().parents[2]


def scored(label: str, scores: tuple[float, ...], cluster: str = "") -> Scored:
    source: Any = None
    sample = Sample(label + cluster, "d", label, Sound("c", source), cluster or label)
    return Scored(sample, LabelScores(("Dog", "Owl", "None"), scores, scores))


def test_known_species_are_told_from_unseen_ones_by_their_confidence() -> None:
    known = [scored("Dog", (0.0, -5.0, -5.0), str(n)) for n in range(6)]
    unseen = [scored("Wolf", (-1.0, -1.2, -0.5), str(n)) for n in range(6, 12)]
    found = known_or_unseen(known, unseen, 1.0)
    assert found["auroc"]["value"] == 1.0
    assert found["none_known"] == 0
    assert found["none_unseen"] == 1
    assert known_or_unseen(known, known, 1.0)["auroc"]["value"] == 0.5


def test_a_measure_counts_right_answers_and_how_sure_they_were() -> None:
    samples = [
        scored("Dog", (0.0, -1.0, -9.0), "a"),
        scored("Owl", (0.0, -1.0, -9.0), "b"),
        scored("Wolf", (0.0, -1.0, -9.0), "c"),
    ]
    found = measure(samples, 1.0, repeats=50)
    sure = samples[0].confidence(1.0)
    assert found.accuracy.value == pytest.approx(1 / 3)
    assert found.error.value == pytest.approx(sure - 1 / 3)
    assert (found.error.samples, found.error.clusters) == (3, 3)
    assert json.loads(json.dumps(found.plain()))["bins"][0]["samples"] == 3
    flat = measure(samples, 100.0, repeats=50)
    assert flat.accuracy.value == found.accuracy.value
    assert flat.bins != found.bins


def test_a_calibration_needs_labels_of_the_list() -> None:
    model: Any = type("Model", (), {"fingerprint": "abc", "revisions": {}})()
    samples = [scored("Dog", (0.0, -1.0, -9.0), "a"), scored("Owl", (0.0, -1.0, -9.0), "b")]
    found = fit_calibration(model, [*samples, scored("Wolf", (0.0, -1.0, -9.0))], "What?")
    assert (found.samples, found.clusters, found.labels) == (2, 2, 3)
    with pytest.raises(NatureLMError, match="has a label that is in the list"):
        fit_calibration(model, [scored("Wolf", (0.0, -1.0, -9.0))], "What?")


def test_the_page_holds_the_numbers_of_its_file(tmp_path: Path) -> None:
    """What stands between the marks is made from reliability.json and nothing else."""
    numbers = json.loads((ROOT / "docs/explanation/tiny-model/reliability.json").read_text())
    text = (ROOT / "docs/explanation/confidence.md").read_text(encoding="utf-8")
    page = tmp_path / "page.md"
    page.write_text(text, encoding="utf-8")
    rewrite(page, numbers)
    assert page.read_text(encoding="utf-8") == text
    page.write_text(text.replace(BEGIN, "").replace(END, ""), encoding="utf-8")
    with pytest.raises(NatureLMError, match="between which the numbers go"):
        rewrite(page, numbers)
