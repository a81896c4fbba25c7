"""Sources of training data: sets of episodes. Axis: n frame of a set."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float64

from pi0.ript.data.frame_set import FrameSet
from pi0.ript.labels.returns import Outcome, frame_returns, outcomes
from pi0.ript.labels.settings import RewardConfig

AdvantageMode = Literal["on", "use", "ignore"]
"""OpenTau's names. on: always positive; use: as the advantage says; ignore: no indicator."""


class Role(StrEnum):
    """What the episodes of a source are."""

    DEMONSTRATIONS = "demonstrations"
    ROLLOUTS = "rollouts"


@dataclass(frozen=True)
class Source:
    """The episodes of one data set, as training uses them."""

    name: str
    frames: FrameSet
    advantage: AdvantageMode = "use"
    role: Role | None = None
    """None: nobody knows."""
    deadlines: Mapping[str, int] | None = None
    """Task id -> steps after which an episode without success counts as truncated; None: none does."""
    task_ids: Mapping[str, str] | None = None
    """By instruction, for episodes that do not say theirs."""

    @property
    def num_frames(self) -> int:
        """Return the number of frames of all episodes."""
        return self.frames.num_frames

    @property
    def ends(self) -> tuple[Outcome, ...]:
        """Return how each episode ended."""
        return outcomes(self.frames, self.deadlines)

    def returns(self, reward: RewardConfig) -> Float64[np.ndarray, " n"]:
        """Return the return of each frame."""
        return frame_returns(self.frames.lengths.tolist(), self.ends, reward)

    def is_success(self) -> Bool[np.ndarray, " n"]:
        """Return which frames are of episodes that succeeded."""
        return np.repeat(self.frames.successes(), self.frames.lengths)

    def frame_tasks(self) -> list[str]:
        """Return the task of each frame, as thresholds name it."""
        return self.frames.frame_tasks(self.task_ids)
