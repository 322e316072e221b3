"""Changes of sound are what they say; samples, order and batches are functions of the seed."""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
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
from NatureLM.prompts import AUDIO_TAG, few_shot_prompt
from NatureLM.training import samples as augment
from NatureLM.training.build import make_objective
from NatureLM.training.data import (
    ClipPool,
    SampleIndex,
    Sampler,
    SupportPool,
    as_second_turn,
    few_shot,
    load_data,
    mixture_weights,
    with_mixable_labels,
)
from NatureLM.training.objectives import apply_masks
from NatureLM.training.samples import (
    AudioCache,
    BadFiles,
    BatchLayout,
    DataLoader,
    Sample,
    SampleBuilder,
    SampleSettings,
    make_builders,
    plain_batches,
)
from NatureLM.util import derive_seed, generator

RNG = np.random.default_rng
TONE = np.sin(np.arange(16000) * 0.3).astype(np.float32)


def changed(wav: np.ndarray, samples: int, seed: int, **config: Any) -> augment.Augmenter:
    """Changes of a clip with this waveform."""
    settings = AugmentationsConfig(**config)
    return augment.Augmenter(settings, RNG(seed), lambda clip: wav, samples)


CLIP = file_clip("a.wav")


def decibel(ratio: float) -> float:
    return 10 * np.log10(ratio)


@given(st.floats(-20, 30), st.floats(0, 2))
def test_noise_has_the_asked_level(snr: float, exponent: float):
    noise = augment.coloured_noise(16000, exponent, RNG(1))
    mixed = augment.add_at_snr(TONE, noise, snr)
    added = augment.power(mixed - TONE)
    assert decibel(augment.power(TONE) / added) == pytest.approx(snr, abs=0.2)


def test_padding_does_not_count_towards_the_level():
    padded = np.concatenate([TONE, np.zeros(48000, np.float32)])
    noise = augment.coloured_noise(64000, 0, RNG(0))
    added = augment.add_at_snr(padded, noise, 10.0) - padded
    assert decibel(augment.power(TONE) / augment.power(added)) == pytest.approx(10, abs=0.2)


def test_silence_and_silent_noise_change_nothing():
    silence = np.zeros(100, np.float32)
    assert not augment.add_at_snr(silence, TONE[:100], 0).any()
    assert np.array_equal(augment.add_at_snr(TONE[:100], silence, 0), TONE[:100])


def test_brown_noise_falls_by_six_decibels_an_octave():
    spectrum = np.abs(np.fft.rfft(augment.coloured_noise(2**16, 2, RNG(0)))) ** 2
    low, high = spectrum[1000:2000].mean(), spectrum[2000:4000].mean()
    assert decibel(low / high) == pytest.approx(6, abs=0.5)


@given(st.integers(0, 3000), st.integers(1, 2000), st.integers(0, 99))
def test_windows_hold_the_clip(length: int, samples: int, seed: int):
    wav = np.arange(1, length + 1, dtype=np.float32)
    window, held = changed(wav, samples, seed, placement_prob=1.0).window(CLIP)
    assert window.shape == (samples,)
    sound = window[window != 0]
    assert len(sound) == held == min(length, samples)
    assert (np.diff(sound) == 1).all()


def test_without_random_crop_and_placement_the_beginning_stays():
    wav = np.arange(1, 101, dtype=np.float32)
    for samples in (10, 200):
        changes = changed(wav, samples, 0, random_crop=False)
        assert changes.window(CLIP)[0][:100].tolist() == wav[:samples].tolist()
        assert changes.notes == []


@pytest.mark.parametrize("factor", [0.8, 1.0, 1.25])
def test_time_scale_changes_length_and_pitch(factor: float):
    scaled = augment.time_scale(TONE, factor)
    assert len(scaled) == pytest.approx(16000 / factor, abs=2)
    peak = np.abs(np.fft.rfft(scaled)).argmax() / len(scaled)
    assert peak == pytest.approx(0.3 / (2 * np.pi) * factor, rel=0.01)


@given(st.integers(0, 100), st.floats(0, 12))
def test_colour_changes_frequencies_within_its_limits_and_nothing_else(seed: int, db: float):
    noise = RNG(seed).standard_normal(16000).astype(np.float32)
    coloured = augment.random_eq(noise, db, RNG(seed))
    assert coloured.dtype == np.float32
    before, after = np.fft.rfft(noise), np.fft.rfft(coloured)
    gains_db = 20 * np.log10(np.abs(after) / np.abs(before))
    assert np.abs(gains_db).max() <= 2 * db + 0.1
    assert np.ptp(gains_db) >= db / 20
    assert np.abs(np.angle(after / before)).max() < 0.05, "the phase stays"


def test_colour_of_nothing_is_nothing():
    assert len(augment.random_eq(np.zeros(0, np.float32), 8.0, RNG(0))) == 0
    assert not augment.random_eq(np.zeros(100, np.float32), 8.0, RNG(0)).any()


def test_gain():
    changes = changed(TONE, len(TONE), 0, gain_prob=1.0, gain_db=20.0)
    louder, _ = changes.window(CLIP)
    assert changes.notes == ["gain -18.4 dB"]
    assert decibel(augment.power(louder) / augment.power(TONE)) == pytest.approx(-18.4, abs=0.05)


@given(st.lists(st.floats(-6, 6), min_size=1, max_size=3))
def test_a_mix_holds_all_at_their_levels_and_does_not_clip(gains: list[float]):
    others = [np.sin(np.arange(16000) * (0.7 + i)).astype(np.float32) for i in range(len(gains))]
    mixed = augment.mix(TONE, others, gains)
    assert np.abs(mixed).max() <= 1.0
    levels = [np.abs(np.dot(mixed, wave)) for wave in (TONE, *others)]
    assert min(levels) > 100
    assert augment.mix(np.zeros(4, np.float32), [np.ones(4, np.float32)], [0.0]).tolist() == [1] * 4


@given(st.integers(0, 200))
def test_masks_are_within_bounds_and_set_to_the_mean(seed: int):
    shares = {"frequency_mask_share": 0.3, "time_mask_share": 0.2}
    masks = changed(TONE, 0, seed, frequency_masks=2, time_masks=1, **shares).masks()
    assert [mask.axis for mask in masks] == ["frequency", "frequency", "time"]
    fbank = torch.ones(2, 50, 40)
    masked = apply_masks(fbank, [masks, ()])
    assert torch.equal(masked[1], fbank[1])
    assert (masked[0] == 0).all(dim=1).sum() <= 10 + 1
    assert (masked[0] == 0).all(dim=0).sum() <= 24 + 2
    assert (fbank == 1).all()


def test_the_same_generator_gives_the_same_changes():
    one, two, other = (
        changed(TONE, 20000, seed, time_scale_prob=1, gain_prob=1).window(CLIP)
        for seed in (5, 5, 6)
    )
    assert np.array_equal(one[0], two[0])
    assert one[1] != other[1]


CHAT = "<user>{}<|eot_id|><assistant>"


def row(number: int, answer: str, *, task: str = "name", group: str = "") -> Example:
    return Example(
        id=f"t/{number}",
        clips=(file_clip(f"{number}.wav"),),
        prompts=(f"{AUDIO_TAG} Which?",),
        answer=answer,
        task=task,
        group=group,
        labels=(answer,),
    )


ROWS = [row(n, "ABC"[n % 3], group=f"g{n // 2}") for n in range(18)]


def test_clips_stand_in_the_order_of_their_places():
    made = few_shot(ROWS[0], [ROWS[4], ROWS[5]])
    assert [clip.source.name for clip in made.clips] == ["4.wav", "5.wav", "0.wav"]
    assert made.prompts[0] == few_shot_prompt("Which?", ["B", "C"])
    assert made.answer == "A"
    assert made.labels == ()


def test_the_recording_that_is_asked_about_is_no_example():
    with pytest.raises(ValueError, match="is of the recording"):
        few_shot(ROWS[0], [ROWS[0]])
    with pytest.raises(ValueError, match="is of the recording"):
        few_shot(ROWS[0], [ROWS[1]])  # another clip of the same group
    spelt = replace(ROWS[5], clips=(file_clip("sub/../0.wav"),))
    with pytest.raises(ValueError, match="is of the recording"):
        few_shot(ROWS[0], [spelt])


@given(st.integers(0, 17), st.integers(0, 500), st.integers(1, 10), st.integers(1, 4))
def test_drawn_examples(place: int, seed: int, most: int, labels: int):
    config = FewShotConfig(prob=1.0, min_examples=1, max_examples=most, max_labels=labels)
    query = ROWS[place]
    support = SupportPool(ROWS).draw(query, config, np.random.default_rng(seed))
    assert 1 <= len(support) <= most
    assert query.answer in {example.answer for example in support}
    assert len({example.answer for example in support}) <= labels
    assert len({example.id for example in support}) == len(support)
    few_shot(query, support)  # refuses leaks


def test_no_examples_without_another_recording_of_the_answer():
    alone = row(99, "D")
    rng = np.random.default_rng(0)
    assert SupportPool([*ROWS, alone]).draw(alone, FewShotConfig(), rng) == []


def test_a_conversation_is_about_one_clip():
    asked = Example(id="a", clips=(file_clip("1.wav"),), prompts=("P",), answer="Wren")
    query = Example(
        id="b",
        clips=(file_clip("1.wav"),),
        prompts=(f"{AUDIO_TAG} Q",),
        answer="yes",
        labels=("yes",),
    )
    other = Example(id="c", clips=(file_clip("2.wav"),), prompts=("R",), answer="no")
    rng = np.random.default_rng(0)
    pool = ClipPool([asked, query, other])
    assert pool.draw_earlier(query, rng) is asked
    assert pool.draw_earlier(other, rng) is None
    made = as_second_turn(CHAT, asked, query, rng)
    assert made.rendered
    assert made.prompts[0] == (
        f"<user>{AUDIO_TAG} P<|eot_id|><assistant>Wren<|eot_id|><user>Q<|eot_id|><assistant>"
    )
    assert made.answer == "yes"


WINDOW = 16000


def question(number: int, clip: str, weight: float = 1.0, labels: tuple[str, ...] = ()) -> Example:
    return Example(
        id=f"{clip}/{number}",
        clips=(file_clip(clip),),
        prompts=(f"Question {number}?",),
        answer=f"answer {number}",
        task="name",
        labels=labels,
        weight=weight,
    )


class Tones:
    """Every file is its own tone."""

    def read(self, clip: Clip) -> np.ndarray:
        pitch = 200 + 100 * (sum(clip.source.name.encode()) % 7)
        return np.sin(np.arange(WINDOW) * pitch / WINDOW * 6.28).astype(np.float32) * 0.3


def test_rows_about_the_clip_are_drawn_by_weight_and_once():
    rows = [
        question(0, "a"),
        question(1, "a", weight=0.0),
        question(2, "a", weight=9.0),
        question(3, "a"),
        question(4, "b"),
    ]
    pool = ClipPool(rows)
    rng = np.random.default_rng(0)
    drawn = [pool.draw_further(rows[0], 1, rng)[0].id for _ in range(300)]
    assert set(drawn) == {"a/2", "a/3"}, "neither itself, nor weight 0, nor another clip's"
    assert 0.8 < drawn.count("a/2") / 300 < 0.97
    assert {e.id for e in pool.draw_further(rows[0], 5, rng)} == {"a/2", "a/3"}
    assert pool.draw_further(rows[4], 3, rng) == []


def asked_several(rows: list[Example], **changes: float) -> SampleBuilder:
    settings = SampleSettings(
        template="<u>{}<a>",
        window_samples=WINDOW,
        datasets=DatasetsConfig(questions_per_clip=3),
        augmentations=AugmentationsConfig(use_augmentation=True, **changes),  # type: ignore[arg-type]
    )
    return SampleBuilder(rows, settings, Tones())  # type: ignore[arg-type]


def test_further_questions_are_rendered_and_seeded():
    rows = [question(n, "a") for n in range(4)]
    sample = asked_several(rows).build(SampleIndex(0, 0, 0))
    assert len(sample.further) == 2
    for asked in sample.further:
        number = asked.answer.removeprefix("answer ")
        assert number != "0"
        assert asked.prompt == f"<u><Audio><AudioHere></Audio> Question {number}?<a>"
    assert asked_several(rows).build(SampleIndex(0, 0, 0)).further == sample.further
    assert asked_several(rows).plain(rows[0]).further == (), "evaluation asks each row alone"


def test_a_mixed_window_is_asked_about_once():
    rows = [question(0, "a", labels=("Dog",)), question(1, "a"), question(2, "b", labels=("Cat",))]
    mixed = asked_several(rows, mixup_prob=1.0).build(SampleIndex(0, 0, 0))
    while mixed.labels == ("Dog",):  # mixed with itself
        mixed = asked_several(rows, mixup_prob=1.0).build(
            SampleIndex(0, 0, mixed.notes.count("x") + 1)
        )
    assert mixed.further == (), "the other rows know of one of its sounds only"


def test_one_encoding_serves_all_questions(make_config, monkeypatch: pytest.MonkeyPatch):
    config = make_config(datasets={"questions_per_clip": 2})
    data = load_data(config.datasets, config.run)
    objective = make_objective(config, data.train)
    train, *_ = make_builders(
        data, config.datasets, config.run, template=objective.template,
        sample_rate=objective.sample_rate, window_samples=objective.window_samples,
    )  # fmt: skip
    samples = [train.build(SampleIndex(0, 0, 0)), train.build(SampleIndex(1, 0, 0))]
    assert all(len(sample.further) == 1 for sample in samples)
    batch = objective.collate(samples)
    assert len(batch["prompts"]) == len(batch["audios"]) == len(batch["answers"]) == 4
    assert len(batch["masks"]) == 2

    encoded = []
    original = objective.model.encode_audio
    monkeypatch.setattr(
        objective.model, "encode_audio", lambda wav: encoded.append(len(wav)) or original(wav)
    )
    objective.eval()
    with torch.no_grad():
        # A card gets a copy of everything: what belongs together there is told by numbers.
        together = objective(copy.deepcopy(batch))
        assert encoded == [2]
        alone = [
            objective(
                {
                    **{key: batch[key][i : i + 1] for key in ("prompts", "audios", "answers")},
                    "windows": batch["windows"],
                    "masks": [],
                }
            )
            for i in range(4)
        ]
    assert float(together.loss) == pytest.approx(sum(float(out.loss) for out in alone), rel=1e-5)
    assert int(together.total) == sum(int(out.total) for out in alone)


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
