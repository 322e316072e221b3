"""Endless instruction text: seeded, the same on every machine."""

from __future__ import annotations

import random
from collections.abc import Iterator

from recipes.tiny.text.tasks import TASKS


def samples(seed: int, *, unseen: bool = False) -> Iterator[tuple[str, str, str]]:
    """Yield (task, prompt, answer) without end; `unseen` takes wordings kept out of training."""
    rng = random.Random(f"tiny-text {seed} {unseen}")
    tasks = [task for task, _ in TASKS]
    weights = [weight for _, weight in TASKS]
    while True:
        task = rng.choices(tasks, weights)[0]
        prompt, answer = task(rng, unseen)
        yield task.__name__, prompt, answer
