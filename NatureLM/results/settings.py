"""The settings of a run that change its answers, their fingerprint, and how two runs differ."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from NatureLM.results.rows import OutputError
from NatureLM.util import atomic_write, digest


@dataclass(frozen=True)
class RunSettings:
    """Everything that changes answers, as plain JSON values: model, weights, windows, queries, ...

    What does not change them stays out: batch size, device, format, which recordings are asked.

    asked: what a run asks for; it is stored with the settings and is none of them, because a run
        that asks for more may be resumed
    """

    values: Mapping[str, Any]
    asked: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # What is compared later went through JSON: tuples are lists, keys are strings.
        for name in ("values", "asked"):
            object.__setattr__(self, name, json.loads(_canonical(getattr(self, name))))

    @property
    def run(self) -> str:
        """Fingerprint: the same for equal settings, on every machine and day."""
        return digest(_canonical(self.values), size=8).hex()


def _canonical(values: Mapping[str, Any]) -> str:
    return json.dumps(values, sort_keys=True, allow_nan=False)


def differences(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    """What differs, one line for each value; keys that `now` does not have are not compared."""
    lines: list[str] = []
    for key, value in now.items():
        name = f"{prefix}{key}"
        if key not in before:
            lines.append(f"{name}: not set there, {_show(value)} now")
        elif isinstance(value, dict) and isinstance(before[key], dict):
            lines += differences(before[key], value, f"{name}.")
        elif before[key] != value:
            lines.append(f"{name}: {_show(before[key])} there, {_show(value)} now")
    return lines


def left_out(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What was set before and is not set any more, one line for each value."""
    return [
        f"{key}: {_show(value)} there, not set now"
        for key, value in before.items()
        if key not in now
    ]


def bullets(lines: Sequence[str]) -> str:
    """Lines of a message, indented; of more than ten the first ten, and how many more."""
    more = [f"and {len(lines) - 10} more"] if len(lines) > 10 else []
    return "\n".join(f"  - {line}" for line in [*lines[:10], *more])


def _show(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 100 else text[:97] + "..."


def record_path(output: Path) -> Path:
    """The file beside a result file that holds the settings it was made with."""
    return output.with_name(output.name + ".run.json")


def write_record(output: Path, settings: RunSettings) -> None:
    """Write the settings beside the result file, whole or not at all."""
    record = {"schema_version": 1, "run": settings.run, "settings": settings.values}
    if settings.asked:
        record["asked"] = settings.asked
    text = json.dumps(record, indent=2, ensure_ascii=False)
    target = record_path(output)
    try:
        with atomic_write(target) as unfinished:
            unfinished.write_text(text + "\n", encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise OutputError(f"{target}: cannot be written: {error.strerror}") from None


def read_record(output: Path) -> RunSettings | None:
    """The settings beside the result file; None where they are lost or damaged."""
    try:
        data = json.loads(record_path(output).read_text(encoding="utf-8"))
        settings = RunSettings(data["settings"], data.get("asked", {}))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return settings if settings.run == data.get("run") else None
