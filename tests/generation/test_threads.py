"""Windows side by side, each on one core: the same numbers, and threads as they were."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from NatureLM.generation.threads import by_windows, one_core_each


@pytest.fixture(autouse=True)
def three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


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


def test_an_error_of_a_thread_is_raised_and_threads_are_as_before() -> None:
    def encode(wav_BS: Tensor) -> Tensor:
        if threading.current_thread() is not threading.main_thread():
            raise MemoryError("no room")
        return wav_BS

    with pytest.raises(MemoryError, match="no room"):
        by_windows(encode, torch.randn(6, 4))
    assert torch.get_num_threads() == 3


def test_blocks_within_blocks_know_how_many_there_are() -> None:
    with one_core_each() as outer:
        with one_core_each() as inner:
            assert (outer, inner, torch.get_num_threads()) == (3, 3, 1)
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 3
