"""Labels of frames: the advantages of all sources, and the threshold that makes a share of them positive.

Axes: n frame of a source.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from jaxtyping import Bool, Float64

from pi0.ript.files import plain, write_json
from pi0.ript.labels.advantages import (
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


@dataclass
class Advantage:
    """How frames are labelled."""

    positive_fraction: float = 0.3  # share of the ranked frames that is positive
    scope: str = "per_task"  # one threshold per_task, or global
    ranked: str = "rollouts"  # frames among which the threshold is found: rollouts, or all


@dataclass(frozen=True)
class LabelledSource:
    """A source with what the value function says of each of its frames."""

    source: Source
    values: Float64[np.ndarray, " n"]
    advantages: Float64[np.ndarray, " n"]
    positive: Bool[np.ndarray, " n"]
    """Which ones the policy is told are better than expected."""
    is_ranked: bool
    """Whether the threshold was found among its frames."""


@dataclass(frozen=True)
class Labels:
    """The labels of all sources."""

    sources: tuple[LabelledSource, ...]
    epsilon: dict[str, float]
    """The threshold of each task."""
    reward: RewardConfig
    settings: Advantage

    @property
    def advantages(self) -> Float64[np.ndarray, " n"]:
        """Return the advantages of all sources, one after the other."""
        return np.concatenate([labelled.advantages for labelled in self.sources])

    def __str__(self) -> str:
        """Return percentiles and thresholds, as OpenTau's script prints them."""
        lines = [f"epsilon of {task}: {value:.6f}" for task, value in self.epsilon.items()]
        return "\n".join([percentiles(self.advantages), *lines])

    def figures(self) -> dict[str, Any]:
        """Return the figures as plain values: coverage, and shares of positive frames."""
        ranked = np.concatenate([labelled.positive for labelled in self.sources if labelled.is_ranked])
        return {
            "epsilon": self.epsilon,
            "coverage": coverage(self.advantages),
            "positive_fraction": float(ranked.mean()),
            "target_fraction": self.settings.positive_fraction,
            "positive_share": {x.source.name: float(x.positive.mean()) for x in self.sources},
        }


def label_frames(
    sources: Sequence[Source],
    values: Sequence[Float64[np.ndarray, " _"]],
    reward: RewardConfig,
    settings: Advantage,
) -> Labels:
    """Return the advantage of every frame of the sources, given its value, and whether it is positive.

    Raises:
        ValueError: No ranked frame is of the task of another frame.
    """
    is_ranked = [settings.ranked == "all" or source.role is not Role.DEMONSTRATIONS for source in sources]
    advantages = [
        compute_advantages(of_frames, source.episodes.lengths.tolist(), source.ends, reward)
        for source, of_frames in zip(sources, values, strict=True)
    ]
    ranked = [i for i, is_among_them in enumerate(is_ranked) if is_among_them]
    epsilon = thresholds(
        np.concatenate([advantages[i] for i in ranked]),
        [task for i in ranked for task in sources[i].frame_tasks()],
        settings.positive_fraction,
        cast("Any", settings.scope),
    )
    parts = zip(sources, values, advantages, is_ranked, strict=True)
    labelled = tuple(LabelledSource(s, v, a, _is_positive(s, a, epsilon), r) for s, v, a, r in parts)
    return Labels(labelled, epsilon, reward, settings)


def write_labels(labels: Labels, directories: Sequence[Path], value_hash: str) -> None:
    """Write DIRECTORY/meta/advantages.json of each source, and beside it what it was made from."""
    lineage = {
        "value": value_hash,
        "reward": plain(labels.reward),
        "epsilon": labels.epsilon,
        "positive_fraction": labels.settings.positive_fraction,
    }
    for directory, labelled in zip(directories, labels.sources, strict=True):
        (directory / "meta").mkdir(parents=True, exist_ok=True)
        write_advantages(directory, labelled.source.episodes, labelled.advantages, lineage)


def write_labelled_frames(labels: Labels, directory: Path) -> None:
    """Write every figure of every frame (frames.npz), and the thresholds (thresholds.json)."""
    arrays: dict[str, Any] = {}
    for labelled in labels.sources:
        source = labelled.source
        arrays |= {
            f"{source.name}/values": labelled.values,
            f"{source.name}/advantages": labelled.advantages,
            f"{source.name}/returns": source.returns(labels.reward),
            f"{source.name}/lengths": source.episodes.lengths,
            f"{source.name}/tasks": np.array(source.episode_tasks()),
        }
    np.savez_compressed(directory / FRAMES_FILE, **arrays)
    write_json(directory / THRESHOLDS_FILE, labels.epsilon)


def _is_positive(
    source: Source, advantages: Float64[np.ndarray, " n"], epsilon: dict[str, float]
) -> Bool[np.ndarray, " n"]:
    if source.advantage != "use":
        return np.full(source.num_frames, source.advantage == "on")
    return is_positive(advantages, source.frame_tasks(), epsilon)
