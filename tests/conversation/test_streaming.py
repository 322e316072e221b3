"""Pieces of text are whole characters, and together the whole text."""

from __future__ import annotations

import threading
import time

from hypothesis import given
from hypothesis import strategies as st

from NatureLM.inference.conversation import FairLock, TextStream, lock_of
from NatureLM.models import NatureLM


def byte_tokens(nano: NatureLM, data: bytes) -> list[int]:
    """Every byte as a token of its own."""
    shown = [byte for byte in range(256) if chr(byte).isprintable() and byte not in (32, 160)]
    hidden = [byte for byte in range(256) if byte not in shown]  # these are written as U+0100 on
    names = {byte: chr(byte) for byte in shown} | {
        byte: chr(256 + place) for place, byte in enumerate(hidden)
    }
    ids: list[int] = nano.tokenizer.convert_tokens_to_ids([names[byte] for byte in data])
    assert None not in ids
    return ids


@given(text=st.text(st.sampled_from("aé🐦中\u0301 \n\ufffd"), max_size=12), cut=st.integers(0, 3))
def test_no_character_is_broken(nano: NatureLM, text: str, cut: int) -> None:
    data = text.encode()
    ids = byte_tokens(nano, data[: len(data) - cut])
    stream = TextStream(nano.tokenizer)
    pieces = [stream.push(token) for token in ids]
    for end in range(1, len(pieces) + 1):
        said = "".join(pieces[:end])
        assert text.startswith(said), "only what will stay is given out"
    pieces.append(stream.finish())
    assert "".join(pieces) == nano.tokenizer.decode(ids, skip_special_tokens=True) == stream.text


@given(ids=st.lists(st.integers(0, 604), max_size=20))
def test_any_tokens_give_the_decoded_whole(nano: NatureLM, ids: list[int]) -> None:
    stream = TextStream(nano.tokenizer)
    pieces = [stream.push(token) for token in ids]
    assert "".join([*pieces, stream.finish()]) == nano.tokenizer.decode(
        ids, skip_special_tokens=True
    )


def test_turns_are_taken_in_the_order_of_asking(nano: NatureLM) -> None:
    lock = FairLock()
    order: list[int] = []

    def take(number: int) -> None:
        with lock:
            order.append(number)

    threads = [threading.Thread(target=take, args=(number,)) for number in range(5)]
    with lock:
        for number, thread in enumerate(threads):
            thread.start()
            while len(lock._waiting) <= number:
                time.sleep(0.001)
        with_first_done = list(order)
    for thread in threads:
        thread.join()
    assert with_first_done == []
    assert order == list(range(5))
    assert lock_of(nano) is lock_of(nano)
