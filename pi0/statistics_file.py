"""Reads files of statistics: those of `pi0-stats` and of a run's processor/, and openpi's norm_stats.json."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from pi0 import openpi_format
from pi0.features import ACTION, STATE
from pi0.normalize import Statistics
from pi0.tensor_files import CheckpointError, read_json


@dataclass(frozen=True)
class StatisticsFile:
    """The content of a file of statistics."""

    path: Path
    statistics: Statistics
    relative_actions: tuple[bool, ...] | None
    """As in `FeatureConfig`; None: the file does not tell."""

    def require_relative_actions(self, expected: Sequence[bool]) -> None:
        """Raise CheckpointError if the actions are relative in other dimensions than a policy's."""
        found = self.relative_actions
        if found is None or not (any(found) or any(expected)) or found == tuple(expected):
            return
        words = " ".join(str(int(is_relative)) for is_relative in expected)
        remedy = f"--relative-actions {words}" if words else "no --relative-actions"
        raise CheckpointError(
            f"{self.path}: expected statistics with the policy's relative_actions={list(expected)}, "
            f"found {list(found)}; make it: pi0-stats DATASET --output {self.path}, with {remedy}"
        )


def read_statistics_file(path: Path) -> StatisticsFile:
    """Return the statistics of a file.

    Raises:
        CheckpointError: It is no such file.
    """
    if not path.is_file():
        raise CheckpointError(
            f"{path}: expected statistics, found no file; make it: pi0-stats DATASET --output {path}"
        )
    content = read_json(path)
    if "norm_stats" in content:
        return StatisticsFile(path, openpi_format.read_statistics(path), None)
    if not {"statistics", "made_from"} <= content.keys():
        raise CheckpointError(
            f"{path}: expected 'statistics' and 'made_from' of pi0-stats, or 'norm_stats' of openpi, "
            f"found {sorted(content)[:8]}; make it: pi0-stats DATASET --output {path}"
        )
    if not {STATE, ACTION} & content["statistics"].keys():
        raise CheckpointError(
            f"{path}: expected statistics of one robot, found those of {', '.join(content['statistics'])}, "
            "which the run's policy brings with it; make a file: pi0-stats DATASET --output FILE"
        )
    statistics = {
        feature: {name: torch.tensor(value) for name, value in numbers.items()}
        for feature, numbers in content["statistics"].items()
    }
    return StatisticsFile(
        path, statistics, tuple(map(bool, content["made_from"].get("relative_actions", ())))
    )
