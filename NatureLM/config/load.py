"""Load, change and write configurations: the only way from a file to a `Config`."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from NatureLM.config import tree
from NatureLM.config.overrides import apply_overrides
from NatureLM.config.problems import explain
from NatureLM.config.schema import Config
from NatureLM.config.source import KeyPath, Source, read_yaml

json_schema = tree.json_schema


def load_config(
    path: str | Path | None = None,
    options: Sequence[str] = (),
    *,
    warn: Callable[[str], None] | None = None,
) -> Config:
    """The checked configuration of a YAML file with overrides.

    path: a YAML file; None for the built-in defaults (the published settings)
    options: overrides such as `generate.num_beams=4`, the last one wins
    warn: takes the one warning about keys that have no effect here; Python's warnings if None

    Raises ConfigError with all problems: file, key, line, value and what is allowed.
    """
    source = Source("built-in defaults", {}) if path is None else read_yaml(Path(path))
    source, overridden = apply_overrides(source, options)
    # A section whose keys are all commented out is null in YAML.
    data = {key: value for key, value in source.data.items() if not _is_empty_section(key, value)}
    try:
        config = Config.model_validate(data)
    except ValidationError as error:
        raise explain(error, source, overridden) from None
    without_effect = list(_ignored(config))
    if without_effect:
        message = f"{source.name}: accepted, but without effect here: {'; '.join(without_effect)}"
        if warn is None:
            warnings.warn(message, stacklevel=2)
        else:
            warn(message)
    return config


def dump_config(config: Config) -> str:
    """The configuration as YAML that `load_config` reads back to an equal one."""
    data = _without_unset(config)
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=100)


def _is_empty_section(key: Any, value: Any) -> bool:
    return value is None and key in Config.model_fields


def _without_unset(section: BaseModel) -> dict[str, Any]:
    """Plain data of a section; sections and keys without effect that are not set are left out."""
    data: dict[str, Any] = {}
    for key, field in type(section).model_fields.items():
        value = getattr(section, key)
        if isinstance(value, BaseModel):
            data[key] = _without_unset(value)
        elif value is not None or (key not in Config.model_fields and not _reason(field)):
            data[key] = section.model_dump(mode="json", include={key})[key]
    return data


def _reason(field: FieldInfo) -> str | None:
    """Why a key has no effect here, or None for a key that has one."""
    extra = field.json_schema_extra
    return str(extra["ignored"]) if isinstance(extra, dict) and "ignored" in extra else None


def _ignored(section: BaseModel, path: KeyPath = ()) -> Iterator[str]:
    """The keys that are set and have no effect, each with the reason."""
    reasons: dict[str, list[str]] = {}
    for key in section.model_fields_set:
        value = getattr(section, key)
        here = (*path, key)
        reason = _reason(type(section).model_fields[key])
        if isinstance(value, BaseModel):
            yield from _ignored(value, here)
        elif reason is not None and value not in (None, ""):
            reasons.setdefault(reason, []).append(tree.dotted(here))
    for reason, keys in sorted(reasons.items(), key=lambda item: sorted(item[1])):
        yield f"{', '.join(sorted(keys))} ({reason})"
