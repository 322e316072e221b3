"""Questionnaires: many questions about every window, and a typed column for each."""

from __future__ import annotations

from pathlib import Path


def preset_folder() -> Path:
    """Where the presets are: within an installed package, or `configs/surveys` of a checkout."""
    shipped = Path(__file__).parent / "presets"
    return shipped if shipped.is_dir() else Path(__file__).parents[2] / "configs" / "surveys"


def preset_names() -> tuple[str, ...]:
    """Names of the questionnaires that come with the program."""
    return tuple(sorted(path.stem for path in preset_folder().glob("*.yml")))
