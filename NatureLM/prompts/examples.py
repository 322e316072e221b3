"""Labelled examples in front of a question, as the experiments and the web app show them."""

from __future__ import annotations

from collections.abc import Iterable


def example_blocks(examples: Iterable[tuple[str, str]]) -> str:
    """(what is heard, label) as blocks with a blank line between them."""
    return "\n\n".join(f"Audio: {heard}\nLabel: {label}" for heard, label in examples)
