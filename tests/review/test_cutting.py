"""Clips are chosen as it was asked for, cut where it was heard, and what is missing is said."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from commands import naturelm
from hypothesis import given, settings
from hypothesis import strategies as st

from NatureLM.audio import AudioError
from NatureLM.errors import UsageError
from NatureLM.results.detections import Detection, ResultFile
from NatureLM.results.parts import PartsStore
from NatureLM.results.rows import Prediction, RunSettings, WindowRow, to_line, write_record
from NatureLM.results.thresholds import MinConfidence
from NatureLM.review.cutting import ChoiceOptions, CutOptions, choose, cut_clips, settings_of
from NatureLM.review.folder import index_path, read_segments

RATE = 8000
MADE = {"model": "m", "merging_alpha": 0.5, "weights": "w", "queries": ["What?"]}


def detection(number: int, label: str = "Owl", confidence: float | None = 0.5) -> Detection:
    return Detection(
        audio_path="/a.wav", start=number, end=number + 1, label=label, confidence=confidence
    )


def never(error: AudioError) -> None:
    raise error


@pytest.fixture
def card(tmp_path: Path) -> Path:
    """Two recorders with a file of the same name: a ramp in stereo, and one of 24 bits."""
    for name, channels, subtype in (("A", 2, "PCM_16"), ("B", 1, "PCM_24")):
        ramp = np.linspace(0, 0.9, 30 * RATE)
        samples = np.stack([ramp, -ramp / 2], axis=1)[:, :channels]
        (tmp_path / name).mkdir()
        soundfile.write(tmp_path / name / "1.wav", samples, RATE, subtype)
    return tmp_path


def answers(card: Path, rows: Sequence[tuple[str, float, str, float | None]], **more: Any) -> Path:
    path = card / "answers.jsonl"
    made = [
        WindowRow(name, start, start + 10, "What?", text, 0.5, sure, model="m", run="r")
        for name, start, text, sure in rows
    ]
    path.write_bytes(b"".join(map(to_line, made)))
    write_record(path, RunSettings({**MADE, **more}, folder=str(card)))
    return path


OWLS = [("A/1.wav", 0.0, "Owl", 0.9), ("A/1.wav", 10.0, "Owl", 0.4), ("B/1.wav", 20.0, "Owl", 0.7)]


def test_clips_are_cut_of_answers_in_parts(card: Path) -> None:
    pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    with PartsStore(card / "answers.parts") as store:
        store.begin(RunSettings(MADE), [card / name for name in ("A/1.wav", "B/1.wav")])
        for name, start, text, sure in OWLS:
            one = Prediction(str(card / name), start, start + 10, "What?", text, 0.5, sure)
            store.add(one)
    read = ResultFile(card / "answers.parts")
    for before in (0, 3):
        made = cut_clips(read, card / "clips", CutOptions(), failed=never)
        assert (made.clips, made.before) == (3, before)


@given(
    st.lists(st.floats(0, 1, allow_nan=False), max_size=40),
    st.integers(1, 12),
    st.randoms(use_true_random=False),
)
@settings(max_examples=60, deadline=None)
def test_bins_are_filled_alike_whatever_the_order(
    shares: list[float], wanted: int, order: Any
) -> None:
    heard = [detection(n, confidence=share) for n, share in enumerate(shares)]
    options = ChoiceOptions(per_species=wanted, bins=4)
    found = choose(heard, options)
    shuffled = heard.copy()
    order.shuffle(shuffled)
    assert choose(shuffled, options) == found
    if not heard:
        assert not found
        return
    (one,) = found
    assert len(one.taken) == min(wanted, len(heard)) == sum(one.by_bin)
    there = Counter(min(int(share * 4), 3) for share in shares)
    for n, taken in enumerate(one.by_bin):  # a bin is behind others only where it is empty
        assert taken == there[n] or taken >= max(one.by_bin) - 1
    assert bool(one.why(wanted)) == (len(heard) < wanted)


def test_the_surest_and_others_at_random() -> None:
    heard = [detection(n, confidence=n / 100) for n in range(100)]
    (surest,) = choose(heard, ChoiceOptions(choose="confidence", per_species=3))
    assert [one.start for one in surest.taken] == [99, 98, 97]
    chosen = [
        [one.start for one in choose(heard, ChoiceOptions(choose="random", seed=seed))[0].taken]
        for seed in (0, 0, 1)
    ]
    assert chosen[0] == chosen[1] != chosen[2]


def test_what_is_missing_is_said() -> None:
    heard = [detection(0), detection(1, confidence=0.1), detection(2, confidence=None)]
    options = ChoiceOptions(
        per_species=5, min_confidence=MinConfidence(number=0.2), species=("Owl", "Wren")
    )
    owl, wren = choose([*heard, detection(3, "Dog")], options)
    assert owl.why(5) == "3 answers (1 below the least confidence, 1 without a confidence)"
    assert wren.why(5) == "no answer names it"
    with pytest.raises(UsageError, match="no answer has a confidence"):
        choose([detection(0, confidence=None)], ChoiceOptions())
    with pytest.raises(UsageError, match="take --column group, whose answers have one"):
        choose([detection(0, confidence=None)], ChoiceOptions(), ["group"])
    (one,) = choose([detection(0, confidence=None)], ChoiceOptions(choose="random"))
    assert len(one.taken) == 1


def test_clips_hold_what_was_heard_and_some_context(card: Path) -> None:
    source = ResultFile(answers(card, OWLS))
    made = cut_clips(source, card / "clips", CutOptions(context=2.0), failed=never)
    assert (made.clips, made.before) == (3, 0)
    found = {one.clip: one for one in read_segments(card / "clips")}
    assert list(found) == [
        "Owl/0.400_A-1_10.0s_20.0s.wav",
        "Owl/0.700_B-1_20.0s_30.0s.wav",
        "Owl/0.900_A-1_0.0s_10.0s.wav",
    ]
    for one, span, subtype, full in zip(
        found.values(),
        ((8.0, 22.0), (18.0, 30.0), (0.0, 12.0)),
        ("PCM_16", "PCM_24", "PCM_16"),
        (0.25, 1.0, 0.25),  # the mean of both channels
        strict=True,
    ):
        assert (one.clip_start, one.clip_end) == span
        samples, rate = soundfile.read(card / "clips" / one.clip)
        assert (rate, samples.ndim, len(samples)) == (RATE, 1, (span[1] - span[0]) * RATE)
        assert soundfile.info(card / "clips" / one.clip).subtype == subtype
        assert samples[0] == pytest.approx(span[0] / 30 * 0.9 * full, abs=1e-3)
        assert samples[-1] == pytest.approx(span[1] / 30 * 0.9 * full, abs=1e-3)
        assert (one.weights, one.merging_alpha, one.question) == ("w", 0.5, "What?")
    assert settings_of(card / "clips")["weights"] == "w"


def test_one_channel_is_cut_where_one_was_heard(card: Path) -> None:
    source = ResultFile(answers(card, OWLS[:1], channel=2))
    cut_clips(source, card / "clips", CutOptions(), failed=never)
    (one,) = read_segments(card / "clips")
    samples, _ = soundfile.read(card / "clips" / one.clip)
    assert samples.min() < -0.1


def test_long_events_are_cut_at_their_beginning(card: Path) -> None:
    source = ResultFile(answers(card, OWLS[:1]))
    made = cut_clips(source, card / "clips", CutOptions(longest=3.0), failed=never)
    assert made.shortened == 1
    assert read_segments(card / "clips")[0].clip_end == 4.0


def test_a_stopped_call_goes_on(card: Path) -> None:
    source, folder = ResultFile(answers(card, OWLS)), card / "clips"

    def stop(count: int, _: int) -> None:
        if count == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cut_clips(source, folder, CutOptions(), failed=never, done=stop)
    with pytest.raises(UsageError, match="goes on when it is called again"):
        read_segments(folder)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.wav")}
    assert len(before) == 2
    made = cut_clips(source, folder, CutOptions(), failed=never)
    assert (made.clips, made.before) == (3, 2)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    there = [(one.clip_start, one.clip_end) for one in read_segments(folder)]
    again = card / "again"
    cut_clips(source, again, CutOptions(), failed=never)
    assert [(one.clip_start, one.clip_end) for one in read_segments(again)] == there


def test_a_folder_of_something_else_is_left_alone(card: Path) -> None:
    source = ResultFile(answers(card, OWLS))
    with pytest.raises(UsageError, match="holds other files"):
        cut_clips(source, card, CutOptions(), failed=never)
    cut_clips(source, card / "clips", CutOptions(), failed=never)
    with pytest.raises(UsageError, match=r"segments\.context: 1.* there, 3.* now"):
        cut_clips(source, card / "clips", CutOptions(context=3), failed=never)
    more = ResultFile(answers(card, OWLS[:2]))
    with pytest.raises(UsageError, match="the answers are others"):
        cut_clips(more, card / "clips", CutOptions(), failed=never)


def test_a_bad_recording_is_reported_and_the_rest_goes_on(card: Path) -> None:
    path = answers(card, [*OWLS, ("gone.wav", 0.0, "Owl", 0.8), ("gone.wav", 0.0, "Wren", 0.8)])
    folder = card / "clips"
    done = naturelm("segments", path, "--output-path", folder, "--per-species", 4)
    assert done.exit_code == 3, done.output
    assert "gone.wav" in done.output
    assert "Owl: 3 of 4 clips: 4 answers (1 of recordings that could not be read)" in done.output
    assert "Wren: 0 of 4 clips: 1 answer (1 of recordings" in done.output
    assert "3 clips of 1 species are in" in done.output
    with open(folder / "species.csv", encoding="utf-8-sig", newline="") as file:
        table = {row["species"]: row for row in csv.DictReader(file)}
    assert (table["Owl"]["clips"], table["Wren"]["clips"]) == ("3", "0")
    assert len(read_segments(folder)) == 3
    assert index_path(folder).read_bytes().startswith(b"\xef\xbb\xbf")


def test_nothing_to_cut_says_why(card: Path) -> None:
    path = answers(card, [("A/1.wav", 0.0, "None", 0.9), ("A/1.wav", 10.0, "Owl", 0.2)])
    for more, said in (
        (["--min-confidence", "0.5"], "Owl: 1 answer (1 below the least confidence)"),
        (["--species", "Wren,Dog"], "Wren: no answer names it"),
    ):
        done = naturelm("segments", path, "--output-path", card / "clips", *more)
        assert done.exit_code == 2
        assert said in done.output
    assert not (card / "clips").exists()
