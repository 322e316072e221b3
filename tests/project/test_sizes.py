"""Sizes in bytes are read and shown in the same units."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from NatureLM.errors import UsageError
from NatureLM.util import format_bytes, parse_bytes


@pytest.mark.parametrize(
    ("text", "size"),
    [("4GB", 4_000_000_000), ("1.5 MiB", 1_572_864), ("10", 10), ("2k", 2000), (7, 7)],
)
def test_sizes(text: str | int, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "much", "4 GB of it", "-1GB", "0", "1e3", 0])
def test_what_is_no_size_is_refused(text: str | int) -> None:
    with pytest.raises(UsageError, match="--max-memory is"):
        parse_bytes(text, "--max-memory")


@given(size=st.integers(1, 10**15))
def test_sizes_are_shown_as_they_are_read(size: int) -> None:
    assert abs(parse_bytes(format_bytes(size).replace("bytes", "b")) - size) <= 0.06 * size


def test_sizes_in_words() -> None:
    sizes = (5, 999, 2048, 999_960, 20_000_000, 4 * 10**9)
    shown = ["5 bytes", "999 bytes", "2 kB", "1 MB", "20 MB", "4 GB"]
    assert [format_bytes(size) for size in sizes] == shown
