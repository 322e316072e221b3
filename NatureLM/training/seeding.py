"""Random numbers as a pure function of what they are for.

Nothing in a training run draws from a generator that lives on: every draw makes its own generator
from the run's seed and a key such as ("augment", sample, epoch). Order, batch size, number of
workers and a resumed run therefore cannot change it.
"""

from __future__ import annotations

import hashlib

import numpy as np

Key = int | str


def derive_seed(seed: int, *keys: Key) -> int:
    """A 63-bit seed for `keys` under the run's `seed`; equal on every machine and Python."""
    text = "\x1f".join(f"{type(key).__name__}:{key}" for key in (seed, *keys))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def generator(seed: int, *keys: Key) -> np.random.Generator:
    """A fresh numpy generator for `keys` under the run's `seed`."""
    return np.random.Generator(np.random.PCG64(derive_seed(seed, *keys)))
