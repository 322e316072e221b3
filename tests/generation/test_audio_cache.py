"""Embeddings are kept by content: what sounds alike is encoded once, and nothing else is mixed.

Windows side by side, each on one core, give the same numbers, and threads are as they were.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from NatureLM.generation.audio_cache import (
    AudioEncoder,
    EmbeddingCache,
    EmbeddingFiles,
    EncodedClip,
    PaddedClip,
    audio_fingerprint,
    audio_state,
    by_windows,
    cache_folder,
    make_embedding_cache,
    one_core_each,
    waveform_digest,
)
from NatureLM.memory import ByteBoundedCache
from NatureLM.models import NatureLM


class Encoder:
    """Stands in for a model: embeds a waveform as its first samples, and counts."""

    def __init__(self) -> None:
        self.encoded: list[int] = []

    def prepare(self, samples: Any, seconds: float | None = None) -> Tensor:
        return torch.as_tensor(samples)

    def encode(self, wav_BS: Tensor) -> Tensor:
        self.encoded.append(len(wav_BS))
        return wav_BS[:, :4].reshape(-1, 2, 2)


def ask(encoder: Encoder, sounds: dict[str, Any], names: list[str], **how: Any) -> dict[str, Any]:
    how.setdefault("kept", EmbeddingCache())
    with AudioEncoder(sounds.__getitem__, encoder.prepare, encoder.encode, **how) as audio:
        return audio.get(names)


@given(
    contents=st.lists(st.integers(0, 3), min_size=1, max_size=12),
    batch=st.integers(1, 4),
    most_bytes=st.sampled_from([0, 32, 1 << 20]),
)
def test_each_sound_is_encoded_once_whatever_it_is_called(
    contents: list[int], batch: int, most_bytes: int
) -> None:
    encoder = Encoder()
    sounds = {str(n): torch.full((8,), float(one)) for n, one in enumerate(contents)}
    found = ask(encoder, sounds, list(sounds), batch=batch, kept=EmbeddingCache(most_bytes))
    assert sum(encoder.encoded) == len(set(contents))
    for name, wav in sounds.items():
        assert torch.equal(found[name].audio_QD, wav[:4].reshape(2, 2))


def test_sound_of_an_earlier_run_is_not_encoded_again() -> None:
    encoder, kept = Encoder(), EmbeddingCache()
    ask(encoder, {"a": torch.ones(8)}, ["a"], kept=kept, state=lambda: "x")
    ask(
        encoder, {"b": torch.ones(8), "c": torch.zeros(8)}, ["b", "c"], kept=kept, state=lambda: "x"
    )
    assert encoder.encoded == [1, 1]
    ask(encoder, {"a": torch.ones(8)}, ["a"], kept=kept, state=lambda: "another model")
    assert encoder.encoded == [1, 1, 1]


def test_a_clip_may_come_encoded() -> None:
    encoder = Encoder()
    clip = EncodedClip("00ff", torch.ones(2, 2))
    assert ask(encoder, {"a": clip}, ["a"])["a"] is clip
    assert encoder.encoded == []


def test_windows_of_several_lengths_are_not_mixed() -> None:
    encoder = Encoder()
    sounds = {"short": PaddedClip(torch.ones(6), 3.0), "long": torch.ones(8)}
    ask(encoder, sounds, ["short", "long"])
    assert encoder.encoded == [1, 1]


@given(
    a=st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=6),
    b=st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=6),
)
def test_digests_differ_with_the_sound(a: list[float], b: list[float]) -> None:
    one, two = torch.tensor(a), torch.tensor(b)
    same = one.shape == two.shape and one.numpy().tobytes() == two.numpy().tobytes()
    assert (waveform_digest(one) == waveform_digest(two)) is same
    assert waveform_digest(one) != waveform_digest(one.double())


@given(sizes=st.lists(st.integers(1, 9), max_size=20), most=st.integers(0, 100))
def test_memory_stays_within_its_bytes(sizes: list[int], most: int) -> None:
    kept = EmbeddingCache(most)
    for number, size in enumerate(sizes):
        kept.put(str(number), torch.zeros(size, 1))
        assert kept.memory.bytes <= most
        assert (kept.get(str(number)) is not None) is (4 * size <= most)


def test_threads_share_the_memory() -> None:
    kept: ByteBoundedCache[str, int] = ByteBoundedCache(40 * 8)

    def work(seed: int) -> None:
        for number in range(300):
            key = str((seed * 7 + number) % 60)
            assert kept.get(key) in (None, int(key))
            kept.put(key, int(key), 8)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert kept.bytes == 8 * len(kept) <= 320


def test_files_give_back_what_was_put(tmp_path: Path) -> None:
    files = EmbeddingFiles(tmp_path)
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        embeddings = torch.randn(3, 5).to(dtype)
        files.put(f"key-{dtype}", embeddings)
        found = EmbeddingFiles(tmp_path).get(f"key-{dtype}")
        assert found is not None
        assert found.dtype == dtype
        assert torch.equal(found, embeddings)
    assert files.get("key") is None
    assert files.info().files == 3
    assert all(path.suffix == ".safetensors" for path in tmp_path.rglob("*.*"))


@pytest.mark.parametrize("harm", ["cut", "empty", "flip", "text"])
def test_a_damaged_file_is_encoded_again(tmp_path: Path, harm: str) -> None:
    encoder = Encoder()
    sounds = {"a": torch.linspace(0, 1, 8)}

    def once() -> Tensor:
        files = EmbeddingCache(files=EmbeddingFiles(tmp_path))
        found: Tensor = ask(encoder, sounds, ["a"], kept=files)["a"].audio_QD
        return found

    wanted = once()
    (path,) = tmp_path.rglob("*.safetensors")
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes({"cut": data[:-3], "empty": b"", "flip": data, "text": b"no tensors"}[harm])
    assert torch.equal(once(), wanted)
    assert encoder.encoded == [1, 1]
    assert torch.equal(once(), wanted)
    assert encoder.encoded == [1, 1]


def test_what_was_not_used_for_longest_leaves_first(tmp_path: Path) -> None:
    files = EmbeddingFiles(tmp_path)
    for number in range(4):
        files.put(f"key{number}", torch.zeros(10, 10))
    one = files.info().bytes // 4
    for number, age in ((0, 50), (1, 40), (2, 30), (3, 20)):
        (path,) = tmp_path.rglob(f"key{number}.safetensors")
        os.utime(path, ns=(age * 10**9, (10**9 - age) * 10**9))
    assert files.get("key0") is not None
    small = EmbeddingFiles(tmp_path, max_bytes=4 * one)
    small.put("key4", torch.zeros(10, 10))
    there = [n for n in range(5) if small.get(f"key{n}") is not None]
    assert there == [0, 3, 4]
    assert small.info().bytes <= 4 * one


def test_clearing_takes_nothing_else(tmp_path: Path) -> None:
    files = EmbeddingFiles(tmp_path)
    files.put("key", torch.zeros(2, 2))
    other = files.folder / "notes.txt"
    other.write_text("mine")
    assert files.clear().files == 1
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [other]
    files.put("key", torch.zeros(2, 2))
    assert files.info().files == 1


def test_a_folder_that_cannot_be_written_costs_one_note(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    files = EmbeddingFiles(tmp_path / "file")
    for number in range(3):
        files.put(str(number), torch.zeros(2, 2))
    assert len(caplog.messages) == 1
    assert "nothing more is kept there" in caplog.messages[0]


def test_the_folder_comes_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NATURELM_CACHE", raising=False)
    assert cache_folder() is None
    assert make_embedding_cache().files is None
    monkeypatch.setenv("NATURELM_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    assert cache_folder("other") == Path("other")
    files = make_embedding_cache().files
    assert files is not None
    assert files.folder.parent == tmp_path


def test_states_tell_models_apart(build_model: Any) -> None:
    model: NatureLM = build_model()
    first, printed = audio_state(model), audio_fingerprint(model)
    assert (audio_state(model), audio_fingerprint(model)) == (first, printed)
    with torch.no_grad():
        next(model.llama_model.parameters()).add_(1.0)
    assert (audio_state(model), audio_fingerprint(model)) == (first, printed)
    with torch.no_grad():
        model.audio_llama_proj.weight.add_(1.0)
    changed = audio_state(model), audio_fingerprint(model)
    assert changed[0] != first
    assert changed[1] != printed
    with torch.no_grad():
        model.audio_llama_proj.weight.sub_(1.0)
    assert audio_state(model) not in (first, changed[0])
    before = audio_state(model), audio_fingerprint(model)
    model.config.window_delays = [0.0, 0.1]
    assert audio_state(model) != before[0]
    assert audio_fingerprint(model) != before[1]
    model.config.window_delays = None
    assert audio_fingerprint(model.double()) != before[1]


def test_a_folder_that_is_lent_for_reading_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = EmbeddingFiles(tmp_path)
    files.put("key", torch.ones(2, 2))

    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "utime", refuse)
    found = files.get("key")
    assert found is not None
    assert torch.equal(found, torch.ones(2, 2))


def test_a_file_that_cannot_be_read_at_the_moment_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = EmbeddingFiles(tmp_path)
    files.put("key", torch.ones(2, 2))

    def fail(*_: Any, **__: Any) -> None:
        raise OSError(24, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr("NatureLM.generation.audio_cache.safe_open", fail)
        assert files.get("key") is None
    assert files.get("key") is not None


@given(most=st.integers(1, 1 << 40))
def test_the_memory_of_a_run_bounds_what_is_kept(most: int) -> None:
    kept = make_embedding_cache(max_memory=most)
    assert kept.memory.max_bytes <= most // 8
    assert EmbeddingCache().memory.max_bytes >= kept.memory.max_bytes


# -- one core each -------------------------------------------------------------------------


@pytest.fixture
def three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("three_threads")
@pytest.mark.parametrize(("windows", "pieces"), [(1, [1]), (3, [3]), (5, [3, 2]), (8, [3, 3, 2])])
def test_windows_stay_in_order_and_each_piece_has_a_core(windows: int, pieces: list[int]) -> None:
    seen: list[tuple[int, int, bool]] = []

    def encode(wav_BS: Tensor) -> Tensor:
        seen.append((len(wav_BS), torch.get_num_threads(), torch.is_inference_mode_enabled()))
        return wav_BS * 2

    wav_BS = torch.randn(windows, 100)
    with torch.inference_mode():
        out = by_windows(encode, wav_BS)
    assert torch.equal(out, wav_BS * 2)
    assert sorted(seen, reverse=True) == [(count, 1, True) for count in pieces]
    assert torch.get_num_threads() == 3


@pytest.mark.usefixtures("three_threads")
def test_an_error_of_a_thread_is_raised_and_threads_are_as_before() -> None:
    def encode(wav_BS: Tensor) -> Tensor:
        if threading.current_thread() is not threading.main_thread():
            raise MemoryError("no room")
        return wav_BS

    with pytest.raises(MemoryError, match="no room"):
        by_windows(encode, torch.randn(6, 4))
    assert torch.get_num_threads() == 3


@pytest.mark.usefixtures("three_threads")
def test_blocks_within_blocks_know_how_many_there_are() -> None:
    with one_core_each() as outer:
        with one_core_each() as inner:
            assert (outer, inner, torch.get_num_threads()) == (3, 3, 1)
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 3
