"""A benchmark in BEANS-Zero's schema from labelled clips of one's own."""

from __future__ import annotations

from NatureLM.beans.mini.build import MiniSummary, make_mini
from NatureLM.beans.mini.draw import Sizes

__all__ = ["MiniSummary", "Sizes", "make_mini"]
