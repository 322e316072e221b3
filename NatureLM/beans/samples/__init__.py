"""Labelled samples of a benchmark or of one's own: read without their sound, heard when needed."""

from __future__ import annotations

from NatureLM.beans.samples.clip import Clip, Heard, hear, load_window
from NatureLM.beans.samples.opening import SampleSet, open_samples
from NatureLM.beans.samples.sample import DataError, Sample

__all__ = [
    "Clip",
    "DataError",
    "Heard",
    "Sample",
    "SampleSet",
    "hear",
    "load_window",
    "open_samples",
]
