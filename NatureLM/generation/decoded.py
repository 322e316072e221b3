"""What decoding one prompt gives."""

from __future__ import annotations

from typing import NamedTuple


class Decoded(NamedTuple):
    """Token ids, the end of the text included if one came, and how likely the model found them.

    log_probability: sum over the tokens, natural logarithm. Of beams it is what they were ranked
        by, so a repetition penalty counts; of greedy and sampled tokens it is the model's own. NaN
        where the model's numbers overflowed; the ids mean nothing then
    """

    ids: list[int]
    log_probability: float

    @property
    def mean_log_probability(self) -> float:
        """Of a token."""
        return self.log_probability / max(1, len(self.ids))


class Choice(NamedTuple):
    """How a batch goes on after a step: these of its rows, in this order, each with a token."""

    rows: list[int]
    tokens: list[int]
