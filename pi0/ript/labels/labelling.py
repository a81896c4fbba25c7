"""Labels of frames: the advantages of all sources, and the threshold that makes a share of them positive.

Axes: n frame of a source.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, cast, get_args

import numpy as np
from jaxtyping import Bool, Float64

from pi0.ript.files import plain, write_json
from pi0.ript.labels.advantages import (
    Scope,
    compute_advantages,
    coverage,
    is_positive,
    percentiles,
    thresholds,
    write_advantages,
)
from pi0.ript.labels.frames import FRAMES_FILE, THRESHOLDS_FILE
from pi0.ript.labels.returns import RewardConfig
from pi0.ript.labels.sources import Role, Source
from pi0.ript.ranges import ProperShare, one_of


@dataclass
class Advantage:
    """How frames are labelled."""

    positive_fraction: ProperShare = 0.3  # share of the ranked frames that is positive
    scope: Annotated[str, one_of(*get_args(Scope))] = "per_task"  # one threshold per_task, or global
    ranked: Annotated[str, one_of("rollouts", "all")] = (
        "rollouts"  # frames among which the threshold is found: rollouts, or all
    )


@dataclass(frozen=True)
class FrameLabels:
    """What a value function says of the frames of some sources, and the threshold of each task."""

    sources: Sequence[Source]
    values: Sequence[Float64[np.ndarray, " _"]]
    advantages: Sequence[Float64[np.ndarray, " _"]]
    epsilon: dict[str, float]
    reward: RewardConfig
    settings: Advantage

    def __str__(self) -> str:
        """Return percentiles, as OpenTau's script prints them, and thresholds."""
        lines = [f"epsilon of {task}: {value:.6f}" for task, value in self.epsilon.items()]
        return "\n".join([percentiles(np.concatenate(self.advantages)), *lines])

    def positive(self) -> list[Bool[np.ndarray, " _"]]:
        """Return which frames of each source the policy will be told are positive."""
        return [
            is_positive(advantages, source.frame_tasks(), self.epsilon)
            if source.advantage == "use"
            else np.full(source.num_frames, source.advantage == "on")
            for source, advantages in zip(self.sources, self.advantages, strict=True)
        ]

    def figures(self) -> dict[str, Any]:
        """Return coverage and shares of positive frames as plain values."""
        positive = dict(zip((source.name for source in self.sources), self.positive(), strict=True))
        ranked = [positive[source.name] for source in self.sources if _is_ranked(source, self.settings)]
        return {
            "epsilon": self.epsilon,
            "coverage": coverage(np.concatenate(self.advantages)),
            "positive_fraction": float(np.concatenate(ranked).mean()),
            "target_fraction": self.settings.positive_fraction,
            "positive_share": {name: float(is_better.mean()) for name, is_better in positive.items()},
        }


def label_frames(
    sources: Sequence[Source],
    values: Sequence[Float64[np.ndarray, " _"]],
    reward: RewardConfig,
    settings: Advantage,
) -> FrameLabels:
    """Return the labels of the frames of some sources, given the value of each frame.

    Raises:
        ValueError: No ranked frame is of the task of another frame.
    """
    advantages = [
        compute_advantages(of_frames, source.frames.lengths.tolist(), source.ends, reward)
        for source, of_frames in zip(sources, values, strict=True)
    ]
    ranked = [i for i, source in enumerate(sources) if _is_ranked(source, settings)]
    epsilon = thresholds(
        np.concatenate([advantages[i] for i in ranked]),
        [task for i in ranked for task in sources[i].frame_tasks()],
        settings.positive_fraction,
        cast("Any", settings.scope),
    )
    return FrameLabels(sources, values, advantages, epsilon, reward, settings)


def _is_ranked(source: Source, settings: Advantage) -> bool:
    """Return whether the threshold is found among the frames of a source."""
    return settings.ranked == "all" or source.role is not Role.DEMONSTRATIONS


def write_labels(labels: FrameLabels, directories: Sequence[Path], value_hash: str) -> None:
    """Write DIRECTORY/meta/advantages.json of each source, and beside it what it was made from."""
    lineage = {
        "value": value_hash,
        "reward": plain(labels.reward),
        "epsilon": labels.epsilon,
        "positive_fraction": labels.settings.positive_fraction,
    }
    for directory, source, advantages in zip(directories, labels.sources, labels.advantages, strict=True):
        (directory / "meta").mkdir(parents=True, exist_ok=True)
        write_advantages(directory, source.frames, advantages, lineage)


def write_labelled_frames(labels: FrameLabels, directory: Path) -> None:
    """Write every figure of every frame (frames.npz), and the thresholds (thresholds.json)."""
    arrays: dict[str, Any] = {}
    for source, values, advantages in zip(labels.sources, labels.values, labels.advantages, strict=True):
        arrays |= {
            f"{source.name}/values": values,
            f"{source.name}/advantages": advantages,
            f"{source.name}/returns": source.returns(labels.reward),
            f"{source.name}/lengths": source.frames.lengths,
            f"{source.name}/tasks": _stored_tasks(source),
        }
    np.savez_compressed(directory / FRAMES_FILE, **arrays)
    write_json(directory / THRESHOLDS_FILE, labels.epsilon)


def _stored_tasks(source: Source) -> np.ndarray:
    """Return the task of each episode; where one has several, of each frame."""
    frames, tasks = source.frames, np.array(source.frame_tasks())
    of_episodes = tasks[frames.starts]
    return of_episodes if (np.repeat(of_episodes, frames.lengths) == tasks).all() else tasks
