"""Vectors of windows, and indexes: stopped, killed, resumed, added to, the same at the end."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from builders import BuildModel
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from vector_indexes import SETTINGS

from NatureLM.audio import AudioError
from NatureLM.audio.files import Identity
from NatureLM.audio.windows import Window, iter_windows
from NatureLM.cli.search import load_embedder
from NatureLM.errors import NatureLMError, UsageError
from NatureLM.inference.windows import RecordingError
from NatureLM.models import NatureLM
from NatureLM.models.checkpoint.tensors import StoredTensor
from NatureLM.results.rows import OutputError
from NatureLM.search.build import BuildResult, Embedder, Journal, make_index
from NatureLM.search.index import (
    Block,
    IndexSettings,
    nearest,
    open_index,
    query_windows,
    same_recording,
    writer_of,
)

RATE = 16000


class Pretender:
    """Makes vectors without a model: the first samples of a window. Stops after so many batches."""

    def __init__(self, batch: int = 3, stop_after: int | None = None) -> None:
        self.batch, self._left = batch, stop_after
        self.windows = 0

    def vectors(self, windows: Sequence[Window], time_expansion: float = 1.0) -> np.ndarray:
        if self._left is not None:
            self._left -= 1
            if self._left < 0:
                raise KeyboardInterrupt
        self.windows += len(windows)
        width = SETTINGS.width
        return np.array([w.samples[:width] for w in windows], np.float32).reshape(-1, width)


def make(recordings: list[Path], output: Path, embedder: Any = None, **options: Any) -> BuildResult:
    return make_index(
        recordings,
        output,
        options.pop("settings", SETTINGS),
        embedder or Pretender(),
        **options,
    )


@pytest.mark.parametrize("layer", ["encoder", "projected"])
def test_vectors_that_are_no_numbers_are_refused(
    build_model: BuildModel, layer: str, recordings: list[Path]
) -> None:
    model = build_model()
    windows = list(iter_windows(recordings[1]))
    part = model.beats if layer == "encoder" else model.audio_llama_proj
    with torch.no_grad():
        (name, weight), *_ = part.named_parameters()
        weight.fill_(torch.nan)
    with pytest.raises(NatureLMError) as caught:
        Embedder(model, layer).vectors(windows)
    assert f"{name} holds NaN or infinity; get the checkpoint again" in str(caught.value)
    assert "there is no vector: " in str(caught.value)


def content(output: Path) -> dict[str, list[tuple[float, float, tuple[float, ...]]]]:
    found: dict[str, list[Any]] = {}
    for block in open_index(output).blocks():
        for file, start, end, vector in zip(
            block.files, block.starts, block.ends, block.vectors, strict=True
        ):
            found.setdefault(file, []).append((start, end, tuple(vector.tolist())))
    return found


def expected(recordings: list[Path]) -> dict[str, list[tuple[float, float, tuple[float, ...]]]]:
    return {
        str(path): [
            (w.start, w.end, tuple(w.samples[: SETTINGS.width].tolist()))
            for w in iter_windows(path, window_seconds=10, hop_seconds=5)
        ]
        for path in recordings
    }


@pytest.mark.parametrize("suffix", [".npz", ".parquet"])
def test_one_row_per_window_and_errors_aside(
    suffix: str, recordings: list[Path], tmp_path: Path
) -> None:
    output = tmp_path / f"x{suffix}"
    reports: dict[str, int | RecordingError] = {}
    made = make(recordings, output, report=reports.__setitem__)
    good = [path for path in recordings if path.name != "2.wav"]
    assert content(output) == expected(good)
    assert list(content(output)) == [str(path) for path in good]
    assert made.rows == made.new == sum(map(len, expected(good).values()))
    assert [error.audio_path for error in made.errors] == [str(recordings[2])]
    assert {file for file, one in reports.items() if isinstance(one, int)} == set(map(str, good))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["recordings", output.name]


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(stops=st.lists(st.integers(0, 3), max_size=4), batch=st.integers(1, 5))
@example(stops=[3, 0, 0], batch=4)  # whole at once, and then nothing is left to hear
def test_stopped_anywhere_it_ends_the_same(
    stops: list[int], batch: int, recordings: list[Path], tmp_path: Path
) -> None:
    output = tmp_path / "x.npz"
    output.unlink(missing_ok=True)
    heard = 0
    for stop in stops:
        pretender = Pretender(batch, stop)
        try:
            make(recordings, output, pretender)
        except KeyboardInterrupt:
            assert not output.exists()
        heard += pretender.windows
    last = Pretender(batch)
    make(recordings, output, last)
    wanted = expected([path for path in recordings if path.name != "2.wav"])
    assert content(output) == wanted
    assert heard + last.windows == sum(map(len, wanted.values())), "no window is heard twice"


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows_cut=st.integers(0, 600), vectors_cut=st.integers(0, 200), writes=st.integers(0, 4))
def test_a_journal_that_was_cut_anywhere_holds_a_beginning(
    rows_cut: int, vectors_cut: int, writes: int, tmp_path: Path
) -> None:
    folder = tmp_path / "x.parts"
    numbers = np.arange(8 * SETTINGS.width, dtype=np.float32).reshape(8, -1)
    journal = Journal(folder, SETTINGS, overwrite=True)
    for number in range(4):
        two = numbers[2 * number : 2 * number + 2]
        journal.add(f"{number}.wav", [0.0, 5.0], [10.0, 15.0], two, is_present=False)
        journal.finish(f"{number}.wav")
    journal.close()
    for name, cut in (("rows.jsonl", rows_cut), ("vectors.f32", vectors_cut)):
        os.truncate(folder / name, max(0, (folder / name).stat().st_size - cut))
    again = Journal(folder, SETTINGS)
    assert len(again) % 2 == 0
    for number in range(len(again) // 2, min(4, len(again) // 2 + writes)):
        assert again.windows(f"{number}.wav") == 0
        assert not again.is_done(f"{number}.wav")
        two = numbers[2 * number : 2 * number + 2]
        again.add(f"{number}.wav", [0.0, 5.0], [10.0, 15.0], two, is_present=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("NatureLM.search.build.rows_of_a_block", lambda width: 3)
        blocks: list[Block] = list(again.blocks())
    held = np.concatenate([np.empty((0, SETTINGS.width)), *(one.vectors for one in blocks)])
    assert np.array_equal(held, numbers[: len(again)])
    names = list(itertools.chain.from_iterable(block.files for block in blocks))
    assert names == [f"{row // 2}.wav" for row in range(len(again))]
    again.close()


def test_new_recordings_are_added_to_an_index(recordings: list[Path], tmp_path: Path) -> None:
    output = tmp_path / "x.npz"
    make([recordings[0]], output)
    first = Pretender()
    assert make([recordings[0]], output, first).new == 0
    assert first.windows == 0
    good = [recordings[0], recordings[1], recordings[3]]
    # Stopped while it is added to, the index that is there stays.
    with pytest.raises(KeyboardInterrupt):
        make(good, output, Pretender(3, stop_after=1))
    assert content(output) == expected([recordings[0]])
    second, begun = Pretender(), []
    made = make(good, output, second, begun=lambda *counts: begun.append(counts))
    assert begun == [(5, 1)]
    assert (made.rows, made.new) == (9, 4)  # two were there, three were made before it stopped
    assert content(output) == expected(good)
    assert second.windows == 4


@pytest.mark.parametrize("suffix", [".npz", ".parquet"])
def test_a_recording_that_breaks_off_is_tried_again(suffix: str, tmp_path: Path) -> None:
    whole, cut, other = (tmp_path / name for name in ("whole.flac", "cut.flac", "other.wav"))
    soundfile.write(whole, 0.1 * np.random.default_rng(0).normal(size=40 * RATE), RATE)
    soundfile.write(other, np.ones(RATE), RATE)
    data = whole.read_bytes()
    cut.write_bytes(data[: len(data) * 6 // 10])
    output = tmp_path / f"x{suffix}"
    for _ in range(2):
        made = make([cut], output)
        assert [error.audio_path for error in made.errors] == [str(cut)]
        assert 0 < made.rows < len(expected([whole])[str(whole)])
    assert not make([other], output).errors
    cut.write_bytes(data)
    before, pretender = len(open_index(output)), Pretender()
    made = make([cut, other], output, pretender)
    assert not made.errors
    assert made.rows - before == made.new == pretender.windows
    assert content(output)[str(cut)] == expected([cut])[str(cut)]
    assert make([cut], output).new == 0
    assert open_index(output).settings.unfinished == ()


def test_other_settings_are_not_mixed(recordings: list[Path], tmp_path: Path) -> None:
    output = tmp_path / "x.npz"
    other = IndexSettings(**{**vars(SETTINGS), "fingerprint": "f" * 16, "hop_seconds": 10.0})
    with pytest.raises(KeyboardInterrupt):
        make(recordings, output, Pretender(stop_after=1))
    for _ in range(2):  # while it is being made, and when it is there
        with pytest.raises(UsageError, match=r"hop_seconds: 5\.0 there, 10\.0 now"):
            make(recordings, output, settings=other)
        make(recordings, output)
    assert make(recordings, output, settings=other, overwrite=True).rows == 7
    # A model that is only called otherwise is the same one.
    called = IndexSettings(**{**vars(other), "model": "/elsewhere"})
    assert make(recordings[:1], output, settings=called).new == 0


def test_a_recording_that_changed_is_refused(recordings: list[Path], tmp_path: Path) -> None:
    output = tmp_path / "x.npz"
    with pytest.raises(KeyboardInterrupt):
        make(recordings, output, Pretender(1, stop_after=1))
    soundfile.write(recordings[0], np.zeros(20 * RATE), RATE)
    with pytest.raises(UsageError, match=r"have changed .*0\.wav"):
        make(recordings, output)
    make(recordings, output, overwrite=True)
    assert len(content(output)[str(recordings[0])]) == 3


@pytest.mark.parametrize("is_old", [False, True])
@pytest.mark.parametrize("suffix", [".npz", ".parquet"])
def test_a_recording_is_the_same_however_it_is_named(
    suffix: str,
    is_old: bool,
    recordings: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    named = [path.relative_to(tmp_path) for path in recordings]
    good = [named[0], named[1], named[3]]
    output = tmp_path / f"x{suffix}"
    make(good[:2], output)
    if is_old:  # an index of an earlier version
        index = open_index(output)
        index.settings = replace(index.settings, heard=())
        writer_of(output)(tmp_path / f"old{suffix}", index)
        (tmp_path / f"old{suffix}").replace(output)
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path / "sub")
    (tmp_path / "link").symlink_to(recordings[0].parent, target_is_directory=True)
    up, absolute = [Path("..") / one for one in good], [tmp_path / one for one in good]
    linked = [tmp_path / "link" / one.name for one in good]
    for names in (up[:2], absolute[:2], linked[:2]):
        assert make(names, output).new == 0
    with pytest.raises(KeyboardInterrupt):
        make(up, output, Pretender(1, stop_after=2))
    made = make(linked, output)
    assert made.rows == sum(map(len, expected(absolute).values()))
    index = open_index(output)
    assert index.files()[:2] == [str(one) for one in good[:2]]
    assert len(index.files()) == 3
    for names in (up, absolute, linked):
        assert make(names, output).new == 0
        for number, path in enumerate(names):
            own = same_recording(path, index)
            assert [own(file) for file in index.files()] == [n == number for n in range(3)]
    recordings[0].parent.rename(tmp_path / "moved")
    if not is_old:
        assert make([tmp_path / "moved" / one.name for one in good], output).new == 0
    copy = Path("copy.wav")
    shutil.copy(tmp_path / "moved" / good[2].name, copy)
    assert same_recording(copy, index)(index.files()[2])


def test_content_decides_where_times_differ(recordings: list[Path], tmp_path: Path) -> None:
    output = tmp_path / "x.npz"
    make(recordings[:1], output)
    os.utime(recordings[0], (1, 1))
    assert make(recordings[:2], output).new == 1
    data = bytearray(recordings[0].read_bytes())
    data[-1] ^= 1
    recordings[0].write_bytes(data)
    with pytest.raises(UsageError, match=r"have changed .*0\.wav"):
        make(recordings[:2], output)


def test_a_recording_in_a_bucket_goes_by_its_address(tmp_path: Path) -> None:
    """Also where another process heard it, as on a cluster."""
    journal = Journal(tmp_path / "x.npz.parts", SETTINGS)
    journal.know("s3://frogs/a.wav", Identity(7))
    journal.add("s3://frogs/a.wav", [0.0], [10.0], np.zeros((1, SETTINGS.width), np.float32))
    assert journal.heard() == (("s3://frogs/a.wav", "s3://frogs/a.wav", 7, None, None),)
    journal.close()


def test_only_one_at_a_time(recordings: list[Path], tmp_path: Path) -> None:
    output = tmp_path / "x.npz"
    journal = Journal(tmp_path / "x.npz.parts", SETTINGS)
    with pytest.raises(OutputError, match="another run is writing"):
        make(recordings, output)
    journal.close()
    make(recordings, output)


CHILD = """
import json, sys, time
from pathlib import Path
import numpy as np
from NatureLM.search.build import make_index
from NatureLM.search.index import IndexSettings

class Slow:
    batch = 2
    def vectors(self, windows, time_expansion=1.0):
        time.sleep(0.02)
        print("made", flush=True)
        return np.array([w.samples[:5] for w in windows], np.float32).reshape(-1, 5)

paths = [Path(path) for path in sys.argv[3:]]
settings = IndexSettings(**json.loads(sys.argv[2]))
make_index(paths, Path(sys.argv[1]), settings, Slow())
assert "torch" not in sys.modules, "so that this test is quick"
"""


@pytest.mark.skipif(sys.platform == "win32", reason="kills as POSIX does")
def test_kill_9_loses_nothing_that_was_written(tmp_path: Path) -> None:
    paths = []
    for number in range(6):
        noise = np.random.default_rng(number)
        paths.append(tmp_path / f"{number}.wav")
        soundfile.write(paths[-1], 0.1 * noise.normal(size=(15 + 5 * number) * RATE), RATE)
    output = tmp_path / "x.npz"
    arguments = [str(output), json.dumps(vars(SETTINGS)), *map(str, paths)]
    rows = [0]
    for made in (2, 3):
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, *arguments], stdout=subprocess.PIPE, text=True
        )
        assert child.stdout is not None
        for _ in range(made):
            assert child.stdout.readline() == "made\n"
        time.sleep(0.01 * made)
        child.kill()
        assert child.wait() == -9
        child.stdout.close()
        assert not output.exists()
        journal = Journal(tmp_path / "x.npz.parts", SETTINGS)
        rows.append(len(journal))
        journal.close()
    assert rows == sorted(set(rows)), "every run went on from the one before"
    rest = Pretender()
    make(paths, output, rest)
    wanted = expected(paths)
    assert content(output) == wanted
    assert rest.windows == sum(map(len, wanted.values())) - rows[-1]


def windows(seconds: float = 23.0, window: float = 10.0) -> list[Window]:
    samples = 0.2 * np.random.default_rng(1).normal(size=round(seconds * 16000))
    return list(
        iter_windows(samples, input_sample_rate=16000, window_seconds=window, hop_seconds=window)
    )


def test_peaks_hang_little_on_where_a_call_is_and_how_much_of_a_window_it_fills(
    nano: NatureLM,
) -> None:
    """The same call in a short and in a long stretch of silence, begun anywhere in a patch."""
    call = np.random.default_rng(1).normal(size=24_000).astype(np.float32) * 0.2

    def heard(before: int, seconds: float) -> Window:
        samples = np.zeros(160_000, np.float32)
        samples[before : before + len(call)] = call
        return Window(0, 0.0, seconds, samples)

    windows = [heard(0, 2.0), heard(700, 8.0)]
    cosines = {}
    for layer in ("encoder", "peaks"):
        one, other = Embedder(nano, layer).vectors(windows)
        cosines[layer] = one @ other / np.linalg.norm(one) / np.linalg.norm(other)
    assert cosines["peaks"] > max(0.9, cosines["encoder"])


@pytest.mark.parametrize("layer", ["encoder", "projected"])
def test_the_mean_over_what_holds_sound(nano: NatureLM, layer: str) -> None:
    heard = windows()
    embedder = Embedder(nano, layer, batch=2)
    vectors = embedder.vectors(heard)
    assert vectors.shape == (3, embedder.width)
    assert vectors.dtype == np.float32
    wav_BS = torch.stack([torch.from_numpy(one.samples) for one in heard])
    with torch.inference_mode():
        every_BPE = nano.encode_patches(wav_BS) if layer == "encoder" else nano.encode_audio(wav_BS)
    assert vectors[0] == pytest.approx(every_BPE[0].mean(0).numpy(), abs=1e-5)
    # Three seconds of ten are sound.
    positions = int(np.ceil(0.3 * every_BPE.shape[1]))
    assert vectors[2] == pytest.approx(every_BPE[2, :positions].mean(0).numpy(), abs=1e-5)
    alone = np.concatenate([Embedder(nano, layer, batch=1).vectors([one]) for one in heard])
    assert vectors == pytest.approx(alone, abs=1e-5)
    assert embedder.vectors([]).shape == (0, embedder.width)


@pytest.mark.parametrize("layer", ["encoder", "projected"])
def test_vectors_need_nothing_of_the_language_model(
    nano: NatureLM, nano_folder: Path, monkeypatch: pytest.MonkeyPatch, layer: str
) -> None:
    read: list[str] = []
    plain = StoredTensor.read

    def spy(tensor: StoredTensor, *args: Any) -> torch.Tensor:
        read.append(tensor.name)
        return plain(tensor, *args)

    monkeypatch.setattr(StoredTensor, "read", spy)
    embedder = load_embedder(str(nano_folder / "checkpoint"), layer, "cpu", "auto")
    assert read
    assert not [name for name in read if name.startswith(("llama_", "model.", "lm_head"))]
    assert embedder.fingerprint == Embedder(nano, layer).fingerprint
    assert np.array_equal(embedder.vectors(windows()), Embedder(nano, layer).vectors(windows()))


def test_times_of_slowed_sound_are_those_of_the_recording(nano: NatureLM) -> None:
    """Three seconds of sound as it is heard are 0.3 s of a recording that is slowed ten times."""
    (window,) = windows(3.0)
    slow = Window(0, 0.0, 0.3, window.samples)
    embedder = Embedder(nano)
    assert np.array_equal(embedder.vectors([slow], 10.0), embedder.vectors([window]))


def test_less_memory_halves_the_batch(
    nano: NatureLM, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    heard = windows(30.0)
    wanted = Embedder(nano).vectors(heard)
    embedder = Embedder(nano, batch=3)
    encode = nano.encode_patches

    def small(wav_BS: torch.Tensor) -> torch.Tensor:
        if wav_BS.shape[0] > 1:
            raise torch.OutOfMemoryError("no memory")
        return encode(wav_BS)

    monkeypatch.setattr(nano, "encode_patches", small)
    assert embedder.vectors(heard) == pytest.approx(wanted, abs=1e-5)
    assert len(caplog.records) == 1
    assert embedder.batch == 1


def test_the_fingerprint_names_what_hears(nano: NatureLM) -> None:
    before = {layer: Embedder(nano, layer).fingerprint for layer in ("encoder", "projected")}
    assert len(set(before.values())) == 2
    changes = {
        "beats.encoder.layers.0.fc1.bias": {"encoder", "projected"},
        "audio_llama_proj.bias": {"projected"},
        "llama_model.base_model.model.model.layers.0.self_attn.q_proj.lora_B.default.weight": set(),
    }
    parameters = dict(nano.named_parameters())
    for name, changed in changes.items():
        parameter = parameters[name]
        old = parameter.detach().clone()
        with torch.no_grad():
            parameter.view(-1)[0] += 1e-3
        now = {layer: Embedder(nano, layer).fingerprint for layer in before}
        with torch.no_grad():
            parameter.copy_(old)
        assert {layer for layer in before if now[layer] != before[layer]} == changed
    assert Embedder(nano).fingerprint == before["encoder"]


def test_wrong_use(nano: NatureLM) -> None:
    with pytest.raises(
        UsageError, match="'middle', and it must be one of encoder, peaks, projected"
    ):
        Embedder(nano, "middle")
    with pytest.raises(UsageError, match="batch size is 0"):
        Embedder(nano, batch=0)


def test_windows_without_sound_are_found_by_no_search(
    nano: NatureLM, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    wave = 0.2 * np.random.default_rng(0).normal(size=RATE)
    parts = np.concatenate([wave, np.zeros(RATE), np.full(RATE, 0.3), wave])
    soundfile.write(tmp_path / "a.wav", parts, RATE)
    soundfile.write(tmp_path / "silent.wav", np.zeros(RATE), RATE)
    embedder = Embedder(nano)
    own = {"fingerprint": embedder.fingerprint, "width": embedder.width}
    of_a_second = {"window_seconds": 1.0, "hop_seconds": 1.0, "sample_rate": 16_000}
    like = replace(SETTINGS, **own, **of_a_second)  # type: ignore[arg-type]
    made = make_index([tmp_path / "a.wav"], tmp_path / "x.npz", like, embedder)
    assert made.rows == 4
    assert "a.wav: 2 windows hold no sound; no search finds them" in caplog.text
    index = open_index(tmp_path / "x.npz")
    looked_for = query_windows(tmp_path / "a.wav", like)
    assert [one.index for one in looked_for] == [0, 3]
    found = nearest(index, embedder.vectors(looked_for))
    assert sorted(one.start for one in found) == [0.0, 3.0]
    with pytest.raises(AudioError, match=r"silent\.wav: there is no sound to look for \(silent\)"):
        query_windows(tmp_path / "silent.wav", like)
