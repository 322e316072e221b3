"""Order, changes and batches are pure functions of the seed; bad files are counted."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from labelled_sound import file_clip

from NatureLM.audio import AudioError
from NatureLM.config.schema import (
    AugmentationsConfig,
    DatasetsConfig,
    FewShotConfig,
    TableConfig,
)
from NatureLM.data.sample import Clip, Example, load_examples
from NatureLM.errors import NatureLMError
from NatureLM.training.data import SampleIndex, Sampler, mixture_weights, with_mixable_labels
from NatureLM.training.samples import (
    AudioCache,
    BadFiles,
    BatchLayout,
    DataLoader,
    Sample,
    SampleBuilder,
    SampleSettings,
    plain_batches,
)
from NatureLM.util import derive_seed, generator

TEMPLATE = "<user>{}<|eot_id|>"
ALL_CHANGES = AugmentationsConfig(
    use_augmentation=True,
    mixup_prob=0.5,
    mask_audio_prob=0.1,
    synthetic_noise_prob=0.5,
    gain_prob=0.5,
    time_scale_prob=0.5,
    placement_prob=0.5,
    frequency_masks=1,
)


@pytest.fixture
def rows(table: Path) -> list[Example]:
    return with_mixable_labels(load_examples(TableConfig(path=str(table))), ["name"])


def builder(rows: list[Example], **settings: Any) -> SampleBuilder:
    changes = settings.pop("augmentations", ALL_CHANGES)
    values = SampleSettings(TEMPLATE, 16000, 16000, DatasetsConfig(**settings), changes)
    return SampleBuilder(rows, values, AudioCache(16000, 2**24))


def stream(rows: list[Example], layout: BatchLayout, bad: BadFiles | None = None, **settings: Any):
    order = Sampler(
        mixture_weights([[row.weight for row in rows]], [1.0]), [len(rows)], len(rows), 7
    )
    bad = bad or BadFiles(1.0, 100)
    return DataLoader(builder(rows), order, layout, bad, **settings)


def same(one: Sample, other: Sample) -> bool:
    rest = [replace(sample, audios=()) for sample in (one, other)]
    return rest[0] == rest[1] and all(map(np.array_equal, one.audios, other.audios))


def test_workers_and_start_do_not_matter(rows):
    layout = BatchLayout(4, 2)
    inline = list(stream(rows, layout).steps(0, 5))
    threaded = list(stream(rows, layout, workers=3).steps(0, 5))
    later = list(stream(rows, layout, workers=1).steps(3, 5))
    for steps in (threaded[3:], later):
        for batches, expected in zip(steps, inline[3:], strict=True):
            for batch, expected_batch in zip(batches, expected, strict=True):
                assert all(map(same, batch, expected_batch))
    assert len(threaded) == 5


def test_processes_share_a_step(rows):
    whole = stream(rows, BatchLayout(8)).positions(2)
    shares = [stream(rows, BatchLayout(2, 2, 2), process=p).positions(2) for p in (0, 1)]
    assert sorted(at for batches in shares for batch in batches for at in batch) == sorted(whole[0])


def test_samples_of_a_step_are_sorted_by_length(rows):
    lengths = [len(row.answer) for row in rows]
    one = stream(rows, BatchLayout(4, 3), lengths=lengths)
    drawn = [lengths[draw.row] for batch in one.positions(0) for _, draw in batch]
    assert drawn == sorted(drawn)


def test_each_epoch_and_copy_differs_but_is_repeatable(rows):
    one = builder(rows)
    first, again, copy, epoch = (
        one.build(SampleIndex(0, *at)) for at in ((0, 0), (0, 0), (0, 1), (1, 0))
    )
    assert same(first, again)
    assert not same(first, copy)
    assert not same(first, epoch)


def test_windows_are_what_the_model_takes(rows):
    for place in range(len(rows)):
        sample = builder(rows).build(SampleIndex(place, 3, 0))
        (wav,) = sample.audios
        assert wav.dtype == np.float32
        assert wav.shape == (16000,)
        assert np.abs(wav).max() <= 1
        assert sample.prompt.startswith("<user><Audio><AudioHere></Audio> ")


def test_mixes_have_merged_labels(rows):
    changes = AugmentationsConfig(use_augmentation=True, mixup_prob=1.0, mixup_count=2)
    made = [
        builder(rows, augmentations=changes).build(SampleIndex(i, 0, 0)) for i in range(len(rows))
    ]
    answers = {sample.answer for sample in made if sample.task == "name"}
    assert any(", " in answer for answer in answers)
    assert all(answer.split(", ") == sorted(set(answer.split(", "))) for answer in answers)
    assert {sample.answer for sample in made if sample.task == "yes-no"} == {"True", "False"}


def test_noise_alone_is_none(rows):
    changes = AugmentationsConfig(use_augmentation=True, mask_audio_prob=1.0)
    one = builder(rows, augmentations=changes)
    assert one.build(SampleIndex(0, 0, 0)).answer == "None"
    assert one.build(SampleIndex(len(rows) - 1, 0, 0)).answer in ("True", "False")


def test_few_shot_and_conversations(rows):
    few = builder(rows, few_shot=FewShotConfig(prob=1.0, tasks=["name"]))
    sample = few.build(SampleIndex(0, 0, 0))
    assert sample.prompt.count("<AudioHere>") == len(sample.audios) > 1
    talk = builder(rows, conversation_prob=1.0).build(SampleIndex(0, 0, 0))
    assert talk.prompt.count("<user>") == 2
    assert len(talk.audios) == 1


def test_text_rows_have_no_audio_tag():
    row = Example(id="t", prompts=("Say yes.",), answer="yes")
    sample = builder([row]).build(SampleIndex(0, 0, 0))
    assert (sample.prompt, sample.audios) == ("<user>Say yes.<|eot_id|>", ())


def test_evaluation_changes_nothing(rows):
    one = builder(rows, few_shot=FewShotConfig(prob=1.0), conversation_prob=1.0)
    bad = BadFiles(0.0, 10)
    samples = [s for batch in plain_batches(one, 5, bad) for s in batch]
    assert [s.id for s in samples] == [row.id for row in rows]
    assert all(s.notes == () and "What is it?" in s.prompt for s in samples[:12])
    halves = [
        [s.id for b in plain_batches(one, 5, bad, process=p, processes=2) for s in b]
        for p in (0, 1)
    ]
    assert sorted(halves[0] + halves[1]) == sorted(s.id for s in samples)


def broken(rows: list[Example], count: int, tmp_path: Path) -> list[Example]:
    """The rows, the first `count` of them with files that are no audio."""
    path = tmp_path / "broken.wav"
    path.write_text("not audio")
    files = [path, *(tmp_path / f"gone{i}.wav" for i in range(count))]
    return [
        replace(row, clips=(file_clip(str(files[i])),)) if i < count else row
        for i, row in enumerate(rows)
    ]


def test_a_bad_file_is_skipped_counted_and_named(rows, tmp_path: Path):
    bad = BadFiles(0.2, 12)
    one = stream(broken(rows, 2, tmp_path), BatchLayout(8), bad)
    batches = list(one.steps(0, 3))
    assert all(len(batch) == 8 for step in batches for batch in step)
    assert set(bad.reasons) == {str(tmp_path / "broken.wav"), str(tmp_path / "gone0.wav")}
    again = list(stream(broken(rows, 2, tmp_path), BatchLayout(8), workers=2).steps(0, 3))
    assert all(map(same, batches[2][0], again[2][0]))


def test_too_many_bad_files_stop_the_run(rows, tmp_path: Path):
    one = stream(broken(rows, 6, tmp_path), BatchLayout(8), BadFiles(0.2, 12))
    with pytest.raises(NatureLMError, match=r"3 of the 12 audio files .* 0\.2 allows") as e:
        list(one.steps(0, 9))
    assert "broken.wav" in str(e.value) or "gone" in str(e.value)


def test_a_disk_that_is_not_there_is_noticed(rows, tmp_path: Path):
    one = stream(broken(rows, len(rows), tmp_path), BatchLayout(8), BadFiles(1.0, 1000))
    with pytest.raises(NatureLMError, match="20 draws in a row"):
        list(one.steps(0, 1))


def test_many_bad_files_among_very_many_are_noticed_early():
    bad = BadFiles(0.01, 1_000_000)
    bad.tried(file_clip(str(i)) for i in range(1000))
    for i in range(19):
        bad.add(AudioError(str(i), "broken"))
    with pytest.raises(NatureLMError, match="20 of the first 1000"):
        bad.add(AudioError("19", "broken"))


def test_the_cache_reads_once_and_keeps_to_its_limit():
    read: list[str] = []

    @dataclass(frozen=True)
    class Silence:
        name: str

        def read(self, **_: Any) -> np.ndarray:
            read.append(self.name)
            return np.zeros(1000, np.float32)

    cache = AudioCache(16000, max_bytes=8000)
    for name in ("a", "a", "b", "c", "a", "c"):
        cache.read(Clip.of(Silence(name)))
    assert read == ["a", "b", "c", "a"]
    with pytest.raises(ValueError, match="read-only"):
        cache.read(Clip.of(Silence("c")))[0] = 1


weights = st.lists(st.floats(0.1, 10), min_size=1, max_size=30)


def order(rows: list[list[float]], size: int, seed: int = 0, temperature: float = 1.0):
    probabilities = mixture_weights(rows, [1.0] * len(rows), temperature)
    return Sampler(probabilities, [len(r) for r in rows], size, seed)


@given(weights, st.integers(1, 60), st.integers(0, 5))
def test_every_row_comes_as_often_as_its_weight_says(rows: list[float], size: int, epoch: int):
    drawn = Counter(order([rows], size).epoch(epoch)[0].tolist())
    for row, weight in enumerate(rows):
        expected = size * weight / sum(rows)
        assert expected - 1 - 1e-6 <= drawn[row] <= expected + 1 + 1e-6


def test_equal_weights_give_every_row_once_in_another_order_each_epoch():
    one = order([[1.0] * 20], 20)
    first, second = (one.epoch(e)[0].tolist() for e in (0, 1))
    assert sorted(first) == sorted(second) == list(range(20))
    assert first != second
    assert order([[1.0] * 20], 20, seed=1).epoch(0)[0].tolist() != first


@given(st.integers(0, 100), st.integers(1, 40))
def test_draws_depend_on_the_position_only(first: int, count: int):
    rows = [[1.0, 2.0, 3.0], [1.0] * 4]
    stretch = order(rows, 9).draws(first, count)
    assert stretch == order(rows, 9).draws(0, first + count)[first:]


def test_copies_within_an_epoch_are_told_apart():
    draws = order([[5.0, 1.0]], 12).draws(0, 12)
    assert len({(d.row, d.copy) for d in draws}) == 12
    assert Counter(d.row for d in draws) == {0: 10, 1: 2}


@pytest.mark.parametrize(("temperature", "share"), [(1.0, 0.9), (2.0, 0.75), (1e9, 0.5)])
def test_temperature_favours_small_datasets(temperature: float, share: float):
    probabilities = mixture_weights([[1.0] * 90, [1.0] * 10], [1.0, 1.0], temperature)
    assert probabilities[:90].sum() == pytest.approx(share)
    assert probabilities.sum() == pytest.approx(1.0)


def test_datasets_and_rows_of_weight_zero_are_never_drawn():
    probabilities = mixture_weights([[1.0, 0.0], [1.0]], [1.0, 0.0])
    assert probabilities.tolist() == [1.0, 0.0, 0.0]
    drawn = Sampler(probabilities, [2, 1], 50, 3).epoch(0)[0]
    assert set(drawn.tolist()) == {0}
    with pytest.raises(ValueError, match="weight 0"):
        mixture_weights([[0.0]], [1.0])


def test_seeds_are_the_same_everywhere_and_differ_by_key():
    assert derive_seed(0, "a", 1) == 4489593995922410626
    assert derive_seed(0, "a", 1) != derive_seed(0, "a", "1")
    assert derive_seed(0, "ab") != derive_seed(0, "a", "b")
    assert np.array_equal(generator(1, "x").random(3), generator(1, "x").random(3))
