"""Checks of a configuration that look into the files of a policy, or for a GPU, before any work.

Torch comes with them, so they are made once nothing is wrong at first sight (`validation`).
"""

from pathlib import Path
from typing import Any

import torch

from pi0 import toy_config
from pi0.embodiment import IDS
from pi0.model import Pi0Model
from pi0.ript.config.schema import ConfigError
from pi0.ript.config.validation import attempt
from pi0.ript.policy_settings import TOY
from pi0.ript.starting_policy import require_device, require_robot
from pi0.statistics_file import read_statistics_file
from pi0.trainable import frozen_names


def validate_policy(config: Any) -> None:
    """Raise one ConfigError that tells all that is wrong with device, policy and robot, if anything is."""
    if problems := [*wrong_device(config), *wrong_weights(config), *wrong_robot(config)]:
        raise ConfigError(*problems)


def wrong_device(config: Any) -> list[str]:
    """Return what is wrong with the device: it is not there."""
    return attempt(lambda: require_device(config.device))[1]


def wrong_weights(config: Any) -> list[str]:
    """Return what is wrong with the statistics of the policy to start from, and with what is frozen of it."""
    policy, problems = config.policy, []
    if policy.statistics_path is not None:
        path = Path(policy.statistics_path).expanduser()
        problems += attempt(lambda: read_statistics_file(path), "policy.statistics_path: ")[1]
    if policy.freeze is not None and config.policy_path == TOY:
        with torch.device("meta"):  # the toy's sizes do not change its parameters' names
            toy = Pi0Model(toy_config(8), seed=None)
        problems += attempt(lambda: frozen_names(toy, policy.freeze), "policy.")[1]
    return problems


def wrong_robot(config: Any) -> list[str]:
    """Return what is wrong with the robot that the policy of a checkpoint is to act as."""
    path, robot = Path(config.policy_path).expanduser(), config.policy.embodiment
    if config.policy_path == TOY or not ((path / IDS).is_file() or robot is not None):
        return []
    return attempt(lambda: require_robot(path, robot), "policy.")[1]
