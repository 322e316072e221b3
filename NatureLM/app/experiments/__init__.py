"""Experiments on the page: runs and scored folders below `--runs-dir`, as figures and tables.

`find_experiments` lists them, `open_experiment` reads one. Everything is scored and arranged by
`beans.scoring` and `reports`, as for `naturelm report`.
"""

from __future__ import annotations

from NatureLM.app.experiments.find import Found, find_experiments
from NatureLM.app.experiments.opened import Experiment, open_experiment

__all__ = ["Experiment", "Found", "find_experiments", "open_experiment"]
