"""Configuration: settings and defaults, YAML files, profiles, overrides and checks before any work."""

from pi0.ript.config.command_line import Algorithm, parse_config
from pi0.ript.config.loading import load_config_from_yaml, save_config
from pi0.ript.config.schema import ConfigError, TrainConfig
from pi0.ript.config.validation import validate_config

__all__ = [
    "Algorithm",
    "ConfigError",
    "TrainConfig",
    "load_config_from_yaml",
    "parse_config",
    "save_config",
    "validate_config",
]
