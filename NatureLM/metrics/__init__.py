"""Metrics with intervals; numpy only."""

from __future__ import annotations

from NatureLM.metrics.accuracy import accuracy, macro_accuracy
from NatureLM.metrics.bootstrap import Estimate, clustered_interval

__all__ = ["Estimate", "accuracy", "clustered_interval", "macro_accuracy"]
