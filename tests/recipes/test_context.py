"""The stage `context`: views of clips, tasks that only examples can tell, and what learns them."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import soundfile
import torch

from recipes.tiny import context, few_shot
from recipes.tiny.context import ContextSettings, Questions, Reader, RowMaker, train_context
from recipes.tiny.context_data import (
    SHAPES,
    Kinds,
    Shape,
    Views,
    ViewSettings,
    invented_labels,
    joined,
    make_views,
    noise_views,
)
from recipes.tiny.data import Clip
from recipes.tiny.few_shot import Setting, Task, draw_tasks

if TYPE_CHECKING:
    from NatureLM.models import NatureLM

LABELS = ("Dog", "Cat", "Bird", "Frog", "Cow", "Rain")


def clip(label: str, number: int, family: str = "", split: str = "train") -> Clip:
    path = Path(f"{label}{number}.flac")
    group = {"Bird": "bird", "Frog": "frog", "Rain": "none"}.get(label, "mammal")
    return Clip(path, label, group, "", family or f"{label}{number}", split, "animals")


CLIPS = [clip(label, number) for label in LABELS for number in range(4)]


@pytest.fixture(scope="module")
def model() -> NatureLM:
    from NatureLM.models import NatureLM

    return NatureLM.from_pretrained("naturelm-tiny")


@pytest.fixture(scope="module")
def some_views() -> Views:
    """Six views of each clip, of which two are of another voice; views of a clip are alike."""
    generator = torch.Generator().manual_seed(0)
    of_clip = torch.randn(len(CLIPS), 1, 10, 192, generator=generator)
    vectors = of_clip + 0.1 * torch.randn(len(CLIPS), 6, 10, 192, generator=generator)
    numbers = np.repeat(np.arange(len(CLIPS), dtype=np.int32), 6)
    voices = np.tile(np.array([0, 0, 0, 0, 1, 1], np.int32), len(CLIPS))
    return Views(vectors.flatten(0, 1).half(), numbers, voices)


@pytest.mark.parametrize("shape", [shape for shape, _ in SHAPES], ids=str)
def test_a_task_is_answered_by_its_examples_alone(shape: Shape, some_views: Views) -> None:
    kinds = Kinds(some_views, CLIPS, LABELS)
    rng = random.Random(1)
    answers = []
    for _ in range(60):
        task = kinds.task(shape, rng)
        assert len(task.views) == shape.sounds == task.query.count("<AudioHere>")
        assert len(task.others) == len(task.shares)
        assert len(task.others) in (0, shape.sounds)
        assert task.query.endswith("Label:")
        for label in task.choices:
            shown = task.query.count(f"Label: {label}\n")
            assert shown == (0 if label == "None" else shape.shots)
        assert task.answer in task.choices
        answers.append(task.answer)
    assert ("None" in answers) == shape.may_be_none
    assert len(set(answers)) > 20 * (not shape.may_be_none), "labels mean nothing outside a task"


def test_tasks_leave_out_other_classes_and_splits(some_views: Views) -> None:
    clips = [replace(one, split="valid") if one.path.stem == "Dog0" else one for one in CLIPS]
    kinds = Kinds(some_views, clips, ["Dog", "Cat", "Cow"])
    rng = random.Random(2)
    heard = {view for _ in range(200) for view in kinds.task(Shape(2, 2), rng).views}
    assert {clips[some_views.clip_N[view]].label for view in heard} == {"Dog", "Cat", "Cow"}
    assert all(clips[some_views.clip_N[view]].split == "train" for view in heard)


def test_labels_are_drawn_without_repeats() -> None:
    rng = random.Random(3)
    drawn = [invented_labels(4, rng) for _ in range(50)]
    assert all(len(set(labels)) == 4 for labels in drawn)
    assert ["A", "B", "C", "D"] in drawn


def test_rows_say_where_sound_is_and_what_is_to_be_told(model: Any, some_views: Views) -> None:
    kinds, maker = Kinds(some_views, CLIPS, LABELS), RowMaker(model, 10)
    rng = random.Random(4)
    tasks = [kinds.task(Shape(3, 4), rng) for _ in range(3)]
    rows = maker.rows(tasks)
    for at, task in enumerate(tasks):
        sound = rows.sound_RL[at]
        assert sound[sound >= 0].tolist() == [10 * v + q for v in task.views for q in range(10)]
        answer = rows.targets_RL[at]
        text = model.tokenizer.decode(answer[answer >= 0])
        assert text == task.answer + model.config.end_sym
        told = rows.told_RL[at]
        (places,) = (told >= 0).nonzero(as_tuple=True)
        assert (rows.ids_RL[at, places + 1] == told[places]).all()
        # Of three kinds with four clips each, nine labels come again, and then the answer.
        assert int((rows.asked_RL[at] >= 0).sum()) == 10
        assert int((rows.shown_RL[at] >= 0).sum()) == 12
    seen = model.input_embeddings(
        [model.processor.render(tasks[0].query)], [_audios(model, some_views, tasks[0])]
    )
    plain = maker.rows([replace(tasks[0], others=(), shares=())])
    ours = Reader(model, some_views, CLIPS).embeddings(plain)[0]
    torch.testing.assert_close(ours[: len(seen[0])], seen[0])


def _audios(model: Any, some: Views, task: Any) -> list[torch.Tensor]:
    vectors = some.vectors_NQW[list(task.views)].float()
    return list(model.audio_llama_proj(vectors))


def test_questions_are_those_of_before(some_views: Views) -> None:
    questions = Questions(some_views, CLIPS, ContextSettings(unsure=0.3))
    drawn = questions.draw(300, random.Random(5))
    other = {view for view, voice in enumerate(some_views.voice_N) if voice}
    about_other = [one for one in drawn if one.views[0] in other]
    assert 40 < len(about_other) < 120
    assert not any(one.kept for one in about_other)
    assert all(one.kept for one in drawn if one.views[0] not in other)


def test_noises_are_no_animal(model: Any, some_views: Views) -> None:
    noises = noise_views(model, 2)
    assert noises.shape == (2, *some_views.vectors_NQW.shape[1:])
    assert not torch.equal(noises[0], noises[1])
    first = len(some_views.clip_N)
    questions = Questions(some_views, CLIPS, ContextSettings(noisy=0.5), noises=2)
    about = [one for one in questions.draw(60, random.Random(5)) if one.views[0] >= first]
    assert 15 < len(about) < 45
    assert {one.views[0] for one in about} == {first, first + 1}
    assert {one.answer for one in about} <= {"None", "none"}
    sound = Reader(model, some_views, CLIPS, noises)
    rows = RowMaker(model, noises.shape[1]).rows(about[:3])
    assert torch.isfinite(sound.embeddings(rows)).all()


def test_a_few_updates_change_lora_and_nothing_else(
    model: Any, some_views: Views, tmp_path: Path
) -> None:
    import copy

    learns = copy.deepcopy(model)
    before = {name: tensor.clone() for name, tensor in learns.state_dict().items()}
    settings = ContextSettings(aims=1, steps=1, sounds=6, questions=2, noises=2)
    train_context(learns, some_views, CLIPS, settings, tmp_path)
    after = learns.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if "lora_" in name}
    (first,) = [json.loads(line) for line in (tmp_path / "context.jsonl").read_text().splitlines()]
    assert first["matched"] > 0
    assert (tmp_path / context.LORA).is_file()


def test_views_are_encoded_as_the_model_encodes_clips(model: Any, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    clips = []
    for number, label in enumerate(("Dog", "Rain")):
        wav = 0.2 * rng.standard_normal(160000) * (np.arange(160000) % 16000 < 8000)
        path = tmp_path / f"{label}.wav"
        soundfile.write(path, wav, 16000)
        clips.append(replace(clip(label, number), path=path))
    made = make_views(model, clips, ViewSettings(own=1, voices=1, each=1))
    assert made.clip_N.tolist() == [0] * 3 + [1] * 3
    assert made.voice_N.tolist() == [0, 0, 1] * 2
    with torch.no_grad():
        wav, _ = soundfile.read(clips[1].path, dtype="float32")
        right = model.encode_audio(torch.from_numpy(wav)[None])[0]
        ours = model.audio_llama_proj(made.vectors_NQW[3].float())
    assert float((ours - right).abs().mean()) < 0.02 * float(right.abs().mean())
    made.save(tmp_path / "views.npz")
    again = joined([Views.load(tmp_path / "views.npz"), made])
    assert again.clip_N.tolist() == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3
    chosen = ViewSettings(per_class=1, per_sound=0).chosen(clips)
    assert [one.label for one in chosen] == ["Dog"]


def test_few_shot_tasks_keep_recordings_apart() -> None:
    clips = [clip("Dog", n, f"Dog{n // 3}") for n in range(6)]
    clips += [clip("Cat", n, "Cat") for n in range(4)] + [clip("Cow", 0)]
    for setting, species in (
        (Setting(2, 3), {"Dog", "Cat"}),
        (Setting(2, 3, recordings=True), {"Dog"}),
    ):
        tasks = draw_tasks(clips, setting, 50, 0)
        assert {task.asked.label for task in tasks} == species
        for task in tasks:
            own = [one for number, one in task.examples if number == task.right]
            assert len(own) == 3
            assert {one.label for one in own} == {task.asked.label}
            assert task.asked not in own
            assert not (setting.recordings and task.asked.family in {one.family for one in own})
    assert draw_tasks(clips, Setting(4, 1), 5, 0) == []
    assert draw_tasks(clips, Setting(2, 1), 5, 0) == draw_tasks(clips, Setting(2, 1), 5, 0)


def test_an_answerer_that_matches_is_right_and_follows_its_labels() -> None:
    class Matching(few_shot.FewShotAnswerer):
        def __init__(self) -> None:
            """No model: the answer is the example of the same name."""

        def answers(self, tasks: Any, passed_on: int = 0) -> list[int]:
            return [task.right for task in tasks]

        def neighbours(self, tasks: Any) -> list[int]:
            return [1 - task.right for task in tasks]

    tasks = [Task(("A", "B"), ((0, one), (1, other)), one, 0) for one, other in pairwise(CLIPS[:6])]
    found = few_shot.measure(Matching(), Setting(2, 1, letters=True), tasks)
    assert (found.accuracy.value, found.follows.value, found.neighbours.value) == (1.0, 1.0, 0.0)
    assert found.line().startswith("2 ways, 1 example, lettered")
