"""Labels of frames: the advantages of all sources, and the threshold that makes a share of them positive.

Where a person corrected the policy, a frame is positive whatever its advantage and however its episode ended,
as in RECAP. It is not ranked, whatever `ranked` says: the threshold tells better from worse among what the
policy did by itself, and a person, who acts better, would push the policy's own good frames below it. So
`positive_fraction` is a share of the other frames.

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
    percentiles,
    positive_frames,
    smoothed,
    thresholds,
    to_json,
    write_advantages,
)
from pi0.ript.labels.frames import FRAMES_FILE, THRESHOLDS_FILE
from pi0.ript.labels.settings import Advantage, RewardConfig
from pi0.ript.labels.sources import Role, Source


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
        only_successes = self.settings.ranked == "successes"
        return [
            positive_frames(
                x.frames, advantages, x.frame_tasks(), self.epsilon, only_successes=only_successes
            )
            if x.advantage == "use"
            else np.full(x.num_frames, x.advantage == "on")
            for x, advantages in zip(self.sources, self.advantages, strict=True)
        ]

    def figures(self) -> dict[str, Any]:
        """Return coverage and shares of positive frames as plain values."""
        positive = dict(zip((source.name for source in self.sources), self.positive(), strict=True))
        ranked = np.concatenate([positive[s.name][_is_ranked(s, self.settings)] for s in self.sources])
        return {
            "epsilon": to_json(self.epsilon),
            "coverage": coverage(np.concatenate(self.advantages)),
            "positive_fraction": float(ranked.mean()) if len(ranked) else None,
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

    A task of which no frame is ranked has no threshold (infinity): none of its frames is positive.
    """
    advantages = [
        compute_advantages(of_frames, source.frames.lengths.tolist(), source.ends, reward)
        for source, of_frames in zip(sources, values, strict=True)
    ]
    if settings.smoothing is not None:
        pairs = zip(sources, advantages, strict=True)
        advantages = [smoothed(a, source.frames.lengths.tolist(), settings.smoothing) for source, a in pairs]
    ranked = [_is_ranked(source, settings) for source in sources]
    tasks = [np.array(source.frame_tasks()) for source in sources]
    epsilon = dict.fromkeys(sorted(set(np.concatenate(tasks).tolist())), np.inf)
    if any(rows.any() for rows in ranked):
        epsilon |= thresholds(
            np.concatenate([of_frames[rows] for of_frames, rows in zip(advantages, ranked, strict=True)]),
            np.concatenate([names[rows] for names, rows in zip(tasks, ranked, strict=True)]).tolist(),
            settings.positive_fraction,
            cast("Any", settings.scope),
        )
    return FrameLabels(sources, values, advantages, epsilon, reward, settings)


def _is_ranked(source: Source, settings: Advantage) -> Bool[np.ndarray, " n"]:
    """Return which frames of a source the threshold is found among."""
    is_own = ~source.frames.is_corrected
    if settings.ranked == "all":
        return is_own
    is_ranked = is_own & (source.role is not Role.DEMONSTRATIONS)
    return is_ranked & source.is_success() if settings.ranked == "successes" else is_ranked


def write_labels(labels: FrameLabels, directories: Sequence[Path], value_hash: str) -> None:
    """Write DIRECTORY/meta/advantages.json of each source, and beside it what it was made from."""
    lineage = {
        "value": value_hash,
        "reward": plain(labels.reward),
        "epsilon": to_json(labels.epsilon),
        "positive_fraction": labels.settings.positive_fraction,
    }
    if labels.settings.ranked == "successes":
        lineage["ranked"] = "successes"  # says to whoever uses the threshold that failures are below it
    for directory, source, advantages in zip(directories, labels.sources, labels.advantages, strict=True):
        (directory / "meta").mkdir(parents=True, exist_ok=True)
        write_advantages(directory, source.frames, advantages, lineage)


def write_labelled_frames(labels: FrameLabels, directory: Path) -> None:
    """Write every figure of every frame (frames.npz), and the thresholds (thresholds.json)."""
    arrays: dict[str, Any] = {}
    parts = zip(labels.sources, labels.values, labels.advantages, labels.positive(), strict=True)
    for source, values, advantages, positive in parts:
        arrays |= {
            f"{source.name}/values": values,
            f"{source.name}/advantages": advantages,
            f"{source.name}/positive": positive,
            f"{source.name}/returns": source.returns(labels.reward),
            f"{source.name}/lengths": source.frames.lengths,
            f"{source.name}/tasks": _stored_tasks(source),
        }
    np.savez_compressed(directory / FRAMES_FILE, **arrays)
    write_json(directory / THRESHOLDS_FILE, to_json(labels.epsilon))


def _stored_tasks(source: Source) -> np.ndarray:
    """Return the task of each episode; where one has several, of each frame."""
    frames, tasks = source.frames, np.array(source.frame_tasks())
    of_episodes = tasks[frames.starts]
    return of_episodes if (np.repeat(of_episodes, frames.lengths) == tasks).all() else tasks
