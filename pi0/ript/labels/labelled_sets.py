"""Labels data sets by a value function: their advantages, and the threshold for policy training."""

import json
from collections.abc import Sequence
from pathlib import Path

from pi0 import PI0Policy
from pi0.ript.config import ConfigError
from pi0.ript.data.reader import open_set
from pi0.ript.data.settings import DatasetSettings
from pi0.ript.files import hash_files
from pi0.ript.labels.calibration import predict
from pi0.ript.labels.labelling import FrameLabels, label_frames, write_labels
from pi0.ript.labels.settings import Advantage, RewardConfig
from pi0.ript.labels.sources import Source
from pi0.ript.starting_policy import require_device
from pi0.tensor_files import CheckpointError
from pi0.value import ValueFunction


def label_datasets(
    directory: Path,
    policy: Path | None,
    datasets: Sequence[DatasetSettings],
    settings: Advantage,
    *,
    embodiment: str | None = None,
    device: str = "cpu",
    batch_size: int = 256,
) -> FrameLabels:
    """Write `meta/advantages.json` into each data set; return the thresholds and what they mean.

    Args:
        directory: A value function, with the reward that it was trained on (reward.json).
        policy: The policy whose prefix it reads, in its expert form.
        datasets: LeRobotDatasets v3 with success labels, or of successes alone.
        settings: Share of ranked frames above epsilon, which are ranked, and whether each task has its own.
        embodiment: The robot that the policy acts as, if it knows several.
        device: Where it is computed.
        batch_size: Frames per forward pass.
    """
    where = require_device(device)
    sets = [open_set(dataset) for dataset in datasets]
    sources = [Source(frames.name, frames) for frames in sets]
    for frames in sets:
        frames.successes()  # an error comes before anything long
    reward = _reward(directory).resolve(max(int(frames.lengths.max()) for frames in sets))
    reads = PI0Policy.from_pretrained(policy, embodiment=embodiment, device=where) if policy else None
    value = ValueFunction.from_pretrained(directory, reads).to(where)
    values = [predict(value, frames, batch_size=batch_size) for frames in sets]
    labels = label_frames(sources, values, reward, settings)
    write_labels(labels, [Path(frames.name) for frames in sets], hash_files(directory))
    return labels


def _reward(directory: Path) -> RewardConfig:
    path = directory / "reward.json"
    if not path.exists():
        raise CheckpointError(
            f"{path} is missing: expected the directory of a value function that RECAP or pi0-train wrote"
        )
    try:
        reward = RewardConfig(**json.loads(path.read_text()))
    except (json.JSONDecodeError, TypeError) as error:
        raise CheckpointError(f"{path}: expected the reward that pi0-train wrote, found {error}") from error
    if reward.truncated != "failure":
        raise ConfigError(
            f"{path}: expected truncated='failure', found {reward.truncated!r}: a data set does not say "
            "which of its episodes only ran out of time; train a value function with 'failure', or label "
            "inside a RECAP run"
        )
    return reward
