"""Answers that follow a JSON Schema: what may come next, and how an answer is closed in time.

llguidance reads the schema and says what may follow. An answer that comes near its limit of tokens
is closed by the shortest way found, so whatever is returned is valid.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from NatureLM.errors import UsageError
from NatureLM.util import library

_WRITTEN = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
_CLOSERS = ('"', '"}', '"]', "}}", "]}", "}", "]", ", ", ",", "0", "1", "true", "null")
_MOST_CHARACTERS = 20_000
_LONGEST_WAY = 512  # tokens that closing an answer may take
_MARGIN = 6  # tokens that a character may need to be whole
_SPARE = 32  # tokens besides those of two shortest answers, from which on the end is looked at
_MOST_OPENINGS = 64  # that are looked at in a step
_MOST_TRIED = 1000  # tokens that are tried in a step to see where openings lead
_MOST_PARTS = 16  # of a schema, whose shortest answers are measured
_READ_SECONDS = 1.0  # of a processor, for the schema
_STEP_SECONDS, _ANSWER_SECONDS = 0.5, 5.0  # in a step, and in all of them
_LARGEST = 2**63  # llguidance takes a larger bound for this one


class JsonSchemaGrammar:
    """The tokens that may follow the beginning of one answer.

    schema: JSON Schema
    tokenizer: of the model
    eos_ids: tokens that end an answer
    max_new_tokens: how long the answer may be, its end included

    Raises UsageError for a schema that llguidance cannot follow, and for one whose shortest answer
    is too long.
    """

    def __init__(
        self, schema: dict[str, Any], tokenizer: Any, eos_ids: Sequence[int], max_new_tokens: int
    ) -> None:
        guidance = library(
            "llguidance",
            "answers by a schema need llguidance: pip install 'naturelm-audio[serve]'",
        )
        if not isinstance(schema, dict):
            raise UsageError(f"a JSON Schema is an object here, and this is {schema!r:.80}")
        if "x-guidance" in schema:
            raise UsageError("'x-guidance' is not understood in a schema; leave it out")
        try:
            text = json.dumps(schema, allow_nan=False)
        except (ValueError, RecursionError):
            raise UsageError(
                "the schema holds a number that JSON has not, or is too deep"
            ) from None
        if len(text) > _MOST_CHARACTERS:
            raise UsageError(
                f"the schema has {len(text):,} characters, and {_MOST_CHARACTERS:,} are allowed"
            )
        _check_numbers(schema)
        self._eos_ids, self._most = tuple(eos_ids), max_new_tokens
        self._tokens = _guided_tokenizer(tokenizer, self._eos_ids)
        self._taken: list[int] = []
        self._way: list[int] = []  # to the end, once the answer has to be closed
        self._left, self._end = _ANSWER_SECONDS, 0.0
        with self._timed(_READ_SECONDS):
            self._matcher = self._read(guidance, text)
            self._check(self._matcher)
            needed = self._way_out(self._matcher)
            longest = self._longest_part(guidance, schema)
        self._near_the_end = 2 * (len(needed) + longest) + _SPARE
        if len(needed) + 1 > max_new_tokens:
            raise UsageError(
                f"the shortest answer that the schema allows has {len(needed) + 1} tokens, and "
                f"{max_new_tokens} are allowed: raise max_completion_tokens"
            )

    def allowed(self, ids: Sequence[int], room: int) -> Sequence[int] | Tensor:
        """What may follow the beginning `ids` of the answer: ids, or a mask (vocabulary,).

        room: how many tokens may still come, the end included
        """
        with self._timed(_STEP_SECONDS):
            return self._allowed(ids, room)

    @contextmanager
    def _timed(self, seconds: float) -> Iterator[None]:
        """Bound what the block takes of a processor; a fault of llguidance is one of the schema."""
        began = time.thread_time()
        self._end = began + min(seconds, self._left)
        try:
            yield
        except UsageError:
            raise
        except BaseException as error:
            if isinstance(error, (KeyboardInterrupt, SystemExit, MemoryError)):
                raise  # a panic of Rust is no Exception
            reason = (str(error) or type(error).__name__).splitlines()[0][:200]
            raise UsageError(f"the schema cannot be followed: {reason}") from None
        finally:
            self._left -= time.thread_time() - began

    def _allowed(self, ids: Sequence[int], room: int) -> Sequence[int] | Tensor:
        self._take(ids)
        if self._matcher.is_stopped():
            return self._eos_ids
        left = min(room, self._most - len(ids))
        mask = self._mask(self._matcher)
        if not self._way and left <= self._near_the_end:
            way = self._way_out(self._matcher)
            if left <= len(way) + _MARGIN:
                self._way = [*way, self._eos_ids[0]]
            else:
                self._drop_long_openings(mask, left)
                if way:  # there may be so many openings that not even this one was looked at
                    mask[way[0]] = True
        return self._way[:1] or torch.from_numpy(mask)

    def _read(self, guidance: Any, text: str) -> Any:
        grammar = guidance.LLMatcher.grammar_from_json_schema(text, overrides=_WRITTEN)
        return guidance.LLMatcher(self._tokens, grammar)

    def _longest_part(self, guidance: Any, schema: dict[str, Any]) -> int:
        """Tokens of the shortest answer to that part of the schema where it is longest.

        So many may be needed more as soon as an answer opens something.
        """
        parts, left, longest = list[dict[str, Any]](), list(schema.values()), 0
        while left:
            one = left.pop()
            if isinstance(one, dict):
                parts.append(one)
            if isinstance(one, (dict, list)):
                left += one.values() if isinstance(one, dict) else one
        shared = {name: schema[name] for name in ("$defs", "definitions") if name in schema}
        for part in sorted(parts, key=lambda one: -len(json.dumps(one)))[:_MOST_PARTS]:
            try:
                matcher = self._read(guidance, json.dumps({**part, **shared}))
            except ValueError:  # no schema by itself, such as what `properties` holds
                continue
            if not matcher.is_error():
                try:
                    longest = max(longest, len(self._way_out(matcher)))
                except UsageError:
                    longest = _LONGEST_WAY
        return longest

    def _take(self, ids: Sequence[int]) -> None:
        """Follow the answer to where it stands."""
        if list(ids[: len(self._taken)]) != self._taken:
            self._matcher.reset()
            self._taken, self._way = [], []
        for token in ids[len(self._taken) :]:
            if not self._matcher.is_stopped():
                self._matcher.consume_token(token)
            if self._way and self._way[0] == token:
                self._way.pop(0)
            self._taken.append(token)
        self._check(self._matcher)

    def _check(self, matcher: Any) -> None:
        """Raise UsageError where the schema is wrong, or takes too long."""
        if matcher.is_error():
            reason = str(matcher.get_error()).splitlines()[0][:200]
            raise UsageError(f"the schema cannot be followed: {reason}")
        if time.thread_time() > self._end:
            raise UsageError("the schema takes too long to follow: make it simpler")

    def _mask(self, matcher: Any) -> NDArray[np.bool_]:
        """Which tokens may come next (vocabulary,)."""
        bits = np.frombuffer(matcher.compute_bitmask(), np.uint8)
        self._check(matcher)
        size = self._tokens.vocab_size
        return np.unpackbits(bits, bitorder="little")[:size].astype(bool)

    def _drop_long_openings(self, mask: NDArray[np.bool_], left: int) -> None:
        """Take out tokens after which the answer could no longer be closed in time."""
        texts, opening, tried = _texts(self._tokens), 0, 0
        is_text = bool(mask[_letters(self._tokens)].all())  # within a string, commas open nothing
        marks = '"' if is_text else '"{[,'
        for token in np.flatnonzero(mask).tolist():
            if token in self._eos_ids or not any(mark in texts[token] for mark in marks):
                continue
            opening += 1
            if opening > _MOST_OPENINGS or tried > _MOST_TRIED:
                mask[token] = False
                continue
            after = self._matcher.deep_copy()
            after.consume_token(token)
            way = self._way_out(after)
            tried += len(way)
            if len(way) + _MARGIN >= left:
                mask[token] = False

    def _way_out(self, matcher: Any) -> list[int]:
        """Tokens that bring the answer to an end, few of them.

        What is forced is taken; else what closes something, else the longest piece of text, which
        gets through names of a list soonest.
        """
        matcher, way = matcher.deep_copy(), list[int]()
        lengths = _token_lengths(self._tokens)
        closers = _closers(self._tokens)
        while not (matcher.is_stopped() or matcher.is_accepting()):
            forced = matcher.compute_ff_tokens()
            if not forced:
                mask = self._mask(matcher)
                mask[list(self._eos_ids)] = False
                closing = next((one for one in closers if mask[one]), None)
                if closing is None and not mask.any():
                    break
                best = int(np.argmax(np.where(mask, lengths, -1)))
                forced = [best if closing is None else closing]
            matcher.consume_tokens(forced)
            way += forced
            self._check(matcher)
            if len(way) > _LONGEST_WAY:
                raise UsageError(
                    f"no answer of up to {_LONGEST_WAY} tokens was found that the schema allows"
                )
        self._check(matcher)
        return way


def _check_numbers(schema: Any) -> None:
    """Raise UsageError for numbers that llguidance would take for others."""
    left = [schema]
    while left:
        one = left.pop()
        if isinstance(one, (dict, list)):
            left += one.values() if isinstance(one, dict) else one
        elif isinstance(one, (int, float)) and abs(one) >= _LARGEST:
            raise UsageError(f"the schema holds a number beyond {_LARGEST}")


@lru_cache(maxsize=4)
def _guided_tokenizer(tokenizer: Any, eos_ids: tuple[int, ...]) -> Any:
    from llguidance.hf import from_tokenizer

    try:
        return from_tokenizer(tokenizer, n_vocab=len(tokenizer), eos_token=list(eos_ids))
    except ValueError as error:
        raise UsageError(f"answers by a schema do not go with this tokenizer: {error}") from None


@lru_cache(maxsize=4)
def _token_lengths(tokens: Any) -> NDArray[np.int64]:
    """Bytes of each token (vocabulary,)."""
    return np.array([len(tokens.decode_bytes([one])) for one in range(tokens.vocab_size)])


@lru_cache(maxsize=4)
def _texts(tokens: Any) -> list[str]:
    """What each token stands for."""
    return [tokens.decode_str([one]) for one in range(tokens.vocab_size)]


@lru_cache(maxsize=4)
def _letters(tokens: Any) -> list[int]:
    """Tokens of some letters, which only a string may hold next to each other."""
    return [tokens.tokenize_str(letter)[0] for letter in "qxzQXZ"]


@lru_cache(maxsize=4)
def _closers(tokens: Any) -> tuple[int, ...]:
    """Tokens that close something, the surest first."""
    found = [tokens.tokenize_str(text) for text in _CLOSERS]
    return tuple(one[0] for one in found if len(one) == 1)
