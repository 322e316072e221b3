"""What an index was made with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from NatureLM.embeddings.errors import VectorIndexError

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class IndexSettings:
    """What decides the vectors of a window.

    model: as it was named
    fingerprint: of the weights and settings that the vectors come from
    layer: `encoder` or `projected`
    width: numbers of a vector
    sample_rate: Hz, of the sound as the model hears it
    window_seconds, hop_seconds: in heard time
    unfinished: recordings that could not be heard to their end; tried again by the next run
    """

    model: str
    fingerprint: str
    layer: str
    width: int
    sample_rate: int
    window_seconds: float
    hop_seconds: float
    channel: str | int = "mean"
    time_expansion: float = 1.0
    schema_version: int = SCHEMA_VERSION
    unfinished: tuple[str, ...] = ()

    @property
    def model_id(self) -> str:
        """What rows call the model."""
        return f"{self.model}@{self.fingerprint}/{self.layer}"

    @property
    def deciding(self) -> dict[str, Any]:
        """What two sets of vectors must share to stand in one index; names do not matter."""
        values = asdict(self)
        del values["model"], values["unfinished"]
        return values

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str | bytes, name: str | Path) -> IndexSettings:
        """Read `to_json`; `name` is what messages call the file it stood in."""
        try:
            values: Mapping[str, Any] = json.loads(text)
            if values["schema_version"] > SCHEMA_VERSION:
                raise VectorIndexError(
                    f"{name}: was made by a newer version of this program (schema version "
                    f"{values['schema_version']}, this one reads {SCHEMA_VERSION})"
                )
            unfinished = tuple(map(str, values.get("unfinished", ())))  # older ones lack it
            names = [one.name for one in fields(cls) if one.name != "unfinished"]
            return cls(**{name: values[name] for name in names}, unfinished=unfinished)
        except (ValueError, KeyError, TypeError):
            raise VectorIndexError(
                f"{name}: its settings cannot be read; was it made by `naturelm embed`?"
            ) from None
