"""What a person is told about a choice of α; needs no torch."""

from __future__ import annotations

from collections.abc import Sequence


def extrapolation_note(alphas: float | Sequence[float]) -> str | None:
    """One sentence for α outside 0 to 1, which is allowed; None if there is nothing to say."""
    values = [alphas] if isinstance(alphas, (int, float)) else list(alphas)
    outside = sorted({value for value in values if not 0 <= value <= 1})
    if not outside:
        return None
    listed = ", ".join(f"{value:g}" for value in outside[:4]) + (", …" if outside[4:] else "")
    return (
        f"alpha {listed} lies outside 0 to 1: this extrapolates beyond the base (0) and the "
        "adapted model (1), where answers may fall apart"
    )
