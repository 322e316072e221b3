"""Configuration: YAML files and `key=value` overrides, checked at the edge into typed objects."""

from __future__ import annotations

from NatureLM.config.load import dump_config, json_schema, load_config
from NatureLM.config.schema import (
    AugmentationsConfig,
    Config,
    DatasetsConfig,
    ExperimentConfig,
    GenerateConfig,
    ModelConfig,
    OptimsConfig,
    RunConfig,
    SpeciesConfig,
)

__all__ = [
    "AugmentationsConfig",
    "Config",
    "DatasetsConfig",
    "ExperimentConfig",
    "GenerateConfig",
    "ModelConfig",
    "OptimsConfig",
    "RunConfig",
    "SpeciesConfig",
    "dump_config",
    "json_schema",
    "load_config",
]
