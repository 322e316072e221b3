"""The embedded model: its text, tables, scores, card and pictures; the recipe in short."""

from __future__ import annotations

import importlib
import json
import random
import re
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from commands import write_lines

from NatureLM.config import load_config
from NatureLM.errors import NatureLMError
from recipes.tiny import few_shot, pictures, tasks, wordings
from recipes.tiny.architecture import train_tokenizer
from recipes.tiny.data import Clip, audio_rows, read_clips, text_rows, training_clips, write_rows
from recipes.tiny.evaluate import Item, questions, score, write_card
from recipes.tiny.few_shot import FewShotResult
from recipes.tiny.pictures import OTHER, confusions, stage_curves
from recipes.tiny.recipe import Recipe, Run
from recipes.tiny.species import HEARD, SOURCES, source
from recipes.tiny.tasks import ask, joined, samples
from recipes.tiny.wordings import HELD_OUT, INSTRUCTIONS, expand, split

TAKEN = 3000


def words(text: str) -> list[str]:
    """Lower-case words; a placeholder is a gap that no run of words crosses."""
    return re.findall(r"\{\w*\}|<[^>]+>|[a-z']+", text.lower())


def fives(text: str) -> set[tuple[str, ...]]:
    found = words(text)
    runs = (tuple(found[i : i + 5]) for i in range(len(found) - 4))
    return {run for run in runs if not any(word[0] in "{<" for word in run)}


def training_wordings() -> list[str]:
    seen = [text for texts in wordings.SEEN.values() for text in texts]
    seen += [text for texts in wordings.UNSEEN.values() for text in texts]
    seen += [text for pair in INSTRUCTIONS.values() for texts in pair for text in texts]
    return seen


@pytest.mark.parametrize("family", HELD_OUT, ids=lambda family: family.name)
def test_held_out_families_share_no_five_words_with_training(family) -> None:  # type: ignore[no-untyped-def]
    seen = set().union(*(fives(text) for text in training_wordings()))
    for _, prompt, _ in islice(samples(0), TAKEN):
        seen |= fives(prompt)
    assert fives("Which of these, if any, are present?") & seen, "the check itself finds overlaps"
    assert not fives(family.query) & seen


def test_seen_and_unseen_wordings_differ() -> None:
    for family, texts in wordings.SEEN.items():
        assert not set(texts) & set(wordings.UNSEEN[family])
    for seen, unseen in INSTRUCTIONS.values():
        assert seen
        assert unseen
        assert not set(seen) & set(unseen)


def test_grammar_expands_and_tidies() -> None:
    assert expand("[|Please ]say [this|that]: {text}") == [
        "Say this: {text}",
        "Say that: {text}",
        "Please say this: {text}",
        "Please say that: {text}",
    ]
    assert expand("Name of [the |] {name} [|here]?")[-1] == "Name of {name} here?"
    seen, unseen = split(f"wording {i}" for i in range(60))
    assert len(seen) + len(unseen) == 60
    assert 3 < len(unseen) < 20


def test_text_is_a_function_of_the_seed() -> None:
    assert list(islice(samples(3), 50)) == list(islice(samples(3), 50))
    assert list(islice(samples(3), 50)) != list(islice(samples(4), 50))


def test_every_prompt_is_filled_and_answered() -> None:
    kinds = set()
    for task, prompt, answer in islice(samples(0), TAKEN):
        kinds.add(task)
        assert not set("{}") & set(prompt)
        assert answer == answer.strip() != ""
    assert kinds == {task.__name__ for task, _ in tasks.TASKS}


def test_a_listed_answer_is_in_the_prompt() -> None:
    for task, prompt, answer in islice(samples(5), TAKEN):
        if task in {"first", "last", "copy", "pick_group"}:
            assert answer in prompt


def test_answers_about_rain_and_about_two_sources() -> None:
    rng = random.Random(0)
    rain, dog = source("Rain"), source("Dog")
    ask_about = {
        family: [ask(family, heard, HEARD, rng)[1] for heard in ([rain], [dog], [dog, rain])]
        for family in (wordings.COMMON, wordings.SCIENTIFIC, wordings.GROUP, wordings.SOUND)
    }
    assert ask_about[wordings.COMMON] == ["None", "Dog", "Dog"]
    assert ask_about[wordings.SCIENTIFIC] == ["None", "Canis familiaris", "Canis familiaris"]
    assert ask_about[wordings.GROUP] == ["none", "mammal", "mammal"]
    assert ask_about[wordings.SOUND] == ["Rain", "Dog", "Dog, Rain"]


def test_choice_lists_hold_the_answer_or_none() -> None:
    rng = random.Random(1)
    absent = 0
    for _ in range(400):
        heard = rng.sample(HEARD, 1)
        prompt, answer = ask(wordings.CHOICE, heard, HEARD, rng)
        if answer == "None":
            absent += 1
            assert not re.search(rf"\b{heard[0].name}\b(?! \w)[,.?]", prompt)
        else:
            assert answer == joined(heard)
            assert answer in prompt
    assert 20 < absent < 90


def test_names_are_unique_and_an_unknown_one_is_named() -> None:
    assert len({s.name for s in SOURCES}) == len(SOURCES)
    with pytest.raises(NatureLMError, match="Unicorn"):
        source("Unicorn")


def test_tokenizer_keeps_text_and_is_seeded() -> None:
    one, two = train_tokenizer(700, texts=500), train_tokenizer(700, texts=500)
    assert one.get_vocab() == two.get_vocab()
    for _, prompt, answer in islice(samples(8), 100):
        for text in (prompt, answer, "naïve 音"):
            assert one.decode(one(text, add_special_tokens=False).input_ids) == text
    assert one("<|eot_id|>", add_special_tokens=False).input_ids == [
        one.convert_tokens_to_ids("<|eot_id|>")
    ]


def clip(label: str, split: str, dataset: str = "animals", family: str = "f") -> Clip:
    from recipes.tiny.species import source

    heard = source(label)
    path = Path(f"{label}-{split}-{family}.flac")
    return Clip(path, label, heard.group, heard.scientific, family, split, dataset)


CLIPS = [
    clip("Dog", "train"),
    clip("Cat", "train"),
    clip("Cat", "train", family="g"),
    clip("Rain", "fold1", "esc10"),
    clip("Dog", "test"),
    clip("Monkey", "test"),
    clip("Rain", "fold4", "esc10"),
    clip("Dog", "fold5", "esc10"),
    clip("Spring Peeper", "unseen"),
]


def test_only_training_splits_are_learnt_from() -> None:
    assert {c.split for c in training_clips(CLIPS)} == {"train", "fold1"}
    assert {c.split for c in training_clips(CLIPS, "fold1")} == {"train"}


def test_audio_rows_cover_every_family_and_balance_classes() -> None:
    rows = list(audio_rows(training_clips(CLIPS), 0, balance=1.0))
    assert {row["task"] for row in rows} == set(wordings.SEEN)
    common: dict[str, float] = {}
    for row in rows:
        assert row["prompt"]
        assert len(set(row["prompt"])) == len(row["prompt"])
        if row["task"] == wordings.COMMON:
            common[row["answer"]] = common.get(row["answer"], 0) + row["weight"]
    assert common["Cat"] == pytest.approx(common["Dog"], rel=1e-4)
    assert "None" in common, "rain has no common name of an animal"
    rain = [r for r in rows if "Rain" in r["path"]]
    assert {r["answer"] for r in rain if r["task"] == wordings.SOUND} == {"Rain"}
    assert {tuple(r["labels"]) for r in rain if "labels" in r} == {("Rain",), ("None",)}
    assert rows == list(audio_rows(training_clips(CLIPS), 0, balance=1.0))


def test_sounds_without_an_animal_may_be_asked_for_names_less_often() -> None:
    clips = training_clips(CLIPS)
    names = {wordings.COMMON, wordings.SCIENTIFIC}
    for plain, fewer in zip(
        audio_rows(clips, 0), audio_rows(clips, 0, no_animal=0.25), strict=True
    ):
        seldom = "Rain" in plain["path"] and plain["task"] in names
        assert fewer["weight"] == pytest.approx(plain["weight"] * (0.25 if seldom else 1), abs=1e-5)
        assert {**plain, "weight": 0} == {**fewer, "weight": 0}


def test_tables_are_written_as_lines(tmp_path: Path) -> None:
    assert write_rows(text_rows(20, 3), tmp_path / "a" / "text.jsonl") == 20
    lines = (tmp_path / "a" / "text.jsonl").read_text().splitlines()
    assert {"prompt", "answer", "task", "dataset"} == set(json.loads(lines[0]))


def test_questions_ask_about_the_right_clips() -> None:
    asked = questions(CLIPS, "test", "fold4")
    assert [item.truth for item in asked["common name"][1]] == ["Dog", "Monkey"]
    assert [item.truth for item in asked["scientific name"][1]] == ["Canis familiaris"]
    assert [item.truth for item in asked["group, unseen species"][1]] == ["frog"]
    assert [item.truth for item in asked["what makes the sound"][1]] == ["Rain"]
    assert [item.truth for item in asked["no animal in it"][1]] == ["none"]
    assert sorted(item.truth for item in asked["yes or no"][1]) == ["No", "No", "Yes", "Yes"]
    taught = {"Cat", "Dog"}
    for item in asked["choice from all names"][1]:
        assert all(name in item.query for name in taught)


def test_scores_and_card(tmp_path: Path) -> None:
    items = [Item(CLIPS[4], "?", "Dog"), Item(CLIPS[5], "?", "Monkey")]
    result = score("common name", "test", items, ["Dog", "Dog"])
    assert result.accuracy.value == 0.5
    assert result.chance == 0.5
    assert "0.500" in result.line()
    share = result.accuracy
    few_shot = [FewShotResult("2 ways, 1 example", 2, share, share, share)]
    numbers: dict[str, Any] = {"clips": 4, "minutes": 2.0, "parameters": 5_000_000, "seed": 1}
    write_card(tmp_path, [result], few_shot, command="make tiny", **numbers)
    card = (tmp_path / "README.md").read_text()
    for text in ("karolpiczak/ESC-10", "BEANS-Zero", "| common name (test) | 2 | 0.500 [", "Rain"):
        assert text in card


def test_missing_data_and_configs_are_named(tmp_path: Path) -> None:
    with pytest.raises(NatureLMError, match=r"metadata\.csv"):
        read_clips(tmp_path)
    with pytest.raises(NatureLMError, match=r"text\.yml"):
        Run(Recipe.short(), tmp_path, tmp_path / "out", tmp_path)


def test_configurations_are_those_of_training() -> None:
    text = load_config(Path("configs/tiny/text.yml"))
    assert text.run is not None
    assert text.run.task == "text"
    audio, polish = (load_config(Path(f"configs/tiny/{name}.yml")) for name in ("audio", "polish"))
    assert audio.model == polish.model
    assert audio.model.freeze_llama, "the base stays what alpha 0 is"
    assert audio.model.freeze_audio_llama_proj, "and cannot hear"


@pytest.mark.shared
@pytest.mark.slow
def test_short_recipe_makes_a_model_and_reuses_its_stages(
    tmp_path: Path, shared_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from NatureLM.inference.pipeline import Pipeline

    def run() -> Path:
        return Run(Recipe.short(), shared_dir / "data", tmp_path, Path("configs/tiny")).run()

    folder = run()
    size = sum(file.stat().st_size for file in folder.iterdir())
    assert size < 20e6
    assert str(tmp_path) not in (folder / "config.json").read_text()
    sample = sorted(Path("assets").glob("*.flac"))[0]
    (answer,) = Pipeline(folder)([sample], "What makes the sound in the audio?")
    assert answer.startswith("#0.00s")
    capsys.readouterr()
    run()
    assert capsys.readouterr().out.count("reused") == 5  # text prints from its own process


ANSWERS = [
    {"question": "common name", "truth": truth, "answer": answer}
    for truth, answer in (("Dog", "Dog"), ("Dog", "Cat"), ("Cat", "Cat"), ("Cat", "a cat?"))
]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    for path, accuracies in (
        ("teachers/teacher_0", [0.6]),
        ("teachers/teacher_1", [0.5]),
        ("encoder/listener", [0.4, 0.7]),
    ):
        found: list[dict[str, object]] = [{"kind": "train", "step": 100, "loss": 2.0}]
        found += [
            {"kind": "valid", "step": 100 * step, "accuracy": value}
            for step, value in enumerate(accuracies, start=1)
        ]
        write_lines(tmp_path / path / "log.jsonl", found)
    training: list[dict[str, object]] = [
        {"kind": "train", "step": 10, "loss": 3.0},
        {"kind": "train", "step": 20, "loss": 1.0},
        {"kind": "valid", "step": 20, "loss": 1.5},
    ]
    for stage in ("text", "audio", "polish"):
        write_lines(tmp_path / stage / "run" / "log.jsonl", training)
    return tmp_path


def test_curves(run: Path) -> None:
    text, hearing, audio, polish = stage_curves(run).values()
    assert text["training"] == ([10, 20], [3.0, 1.0])
    assert text["unseen wordings"] == ([20], [1.5])
    assert audio["valid, unseen wordings"] == ([20], [1.5])
    assert polish["training"] == ([10, 20], [3.0, 1.0])
    assert hearing["teacher 1"] == ([100], [0.5])
    assert hearing["encoder"] == ([100, 200], [0.4, 0.7])


def test_confusions() -> None:
    columns, counts = confusions(ANSWERS, "common name")
    assert columns == ["Cat", "Dog", OTHER]
    assert counts == [[1, 0, 1], [1, 1, 0]]
    with pytest.raises(NatureLMError, match="none to the question 'group'"):
        confusions(ANSWERS, "group")


def test_both_pictures_are_written_and_repeatable(run: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    write_lines(run / "answers.jsonl", ANSWERS)
    out = tmp_path / "out"
    arguments = ["--run", str(run), "--answers", str(run / "answers.jsonl")]
    assert pictures.main([*arguments, "--output-path", str(out)]) == 0
    first = {path.name: path.read_bytes() for path in out.iterdir()}
    assert set(first) == {"tiny-learning-curves.svg", "tiny-confusions.svg"}
    assert b"teacher 1" in first["tiny-learning-curves.svg"]
    assert pictures.main([*arguments, "--output-path", str(out)]) == 0
    assert {path.name: path.read_bytes() for path in out.iterdir()} == first


@pytest.mark.parametrize("module", ["context", "evaluate", "few_shot", "reliability", "teach_bars"])
def test_programs_say_what_is_wrong(
    module: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    program = importlib.import_module(f"recipes.tiny.{module}")
    arguments = ["--data-path", str(tmp_path / "data"), "--model", str(tmp_path / "model")]
    if module == "context":
        arguments += ["--output-path", str(tmp_path / "out")]
    assert program.main(arguments) in (1, 2)
    assert capsys.readouterr().err.startswith("Error: ")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--split", "night"], "--split is 'night'; there are test, train"),
        (["--tasks", "0"], "--tasks is 0"),
        (["--json", "no/such/folder/\0"], "--json no/such/folder/"),
    ],
)
def test_few_shot_tasks_are_of_a_split_that_is_there(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = {
        "animals": [
            "file,common_name,group,scientific_name,family,split",
            "a.wav,Cat,mammal,Felis catus,1,train",
            "b.wav,Cat,mammal,Felis catus,2,test",
        ],
        "esc10": ["file,label,freesound_id,fold"],
    }
    for name, lines in rows.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "metadata.csv").write_text("\n".join(lines) + "\n")
    assert few_shot.main(["--data-path", str(tmp_path), *arguments]) == 2
    assert said in capsys.readouterr().err
