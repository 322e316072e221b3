"""What can be wrong with a checkpoint, said in one report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from NatureLM.errors import NatureLMError

_SHOWN = 12


class CheckpointError(NatureLMError):
    """A checkpoint cannot be found, read, or does not fit its configuration."""


@dataclass
class FitReport:
    """Tensors that a model needs and a checkpoint lacks, holds too many of, or in another shape."""

    source: str
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    misshapen: list[str] = field(default_factory=list)

    def raise_if_bad(self) -> None:
        """Refuse the load when anything is listed; nothing is ever loaded short."""
        if not (self.missing or self.unexpected or self.misshapen):
            return
        sections = (
            ("missing", self.missing),
            ("unexpected", self.unexpected),
            ("of another shape", self.misshapen),
        )
        lines = [f"{self.source} does not fit its configuration; nothing was loaded."]
        lines += [
            f"  {len(names)} tensors {title}: {_listed(names)}"
            for title, names in sections
            if names
        ]
        raise CheckpointError("\n".join(lines))


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(sorted(names)[:_SHOWN])
    more = len(names) - _SHOWN
    return shown + (f", and {more} more" if more > 0 else "")
