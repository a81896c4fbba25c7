"""Sparse reward and returns: -1 per step until success, and C_neg where an episode fails (requirement 004).

Normalised to [-1, 0]. The formulas are those of OpenTau's policies/value/reward.py, which neither clamps nor
checks the normaliser, so that its failures leave the bins.

Axes: t frame of an episode, e episode, n frame of all episodes.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Annotated

import numpy as np
from jaxtyping import Bool, Float64

from pi0.ript.data.frame_set import FrameSet
from pi0.ript.ranges import Count, Expected, one_of, wrong_values


class Outcome(StrEnum):
    """How an episode ended."""

    SUCCESS = "success"
    FAILURE = "failure"
    TRUNCATED = "truncated"  # by a deadline, without success


NumberOfBins = Annotated[int, Expected("at least 2", lambda value: value >= 2)]
Penalty = Annotated[float | int, Expected("at most 0", lambda value: value <= 0)]
RewardNormalizer = Annotated[
    float | int | str,
    Expected("'auto' or a positive number", lambda x: x == "auto" if isinstance(x, str) else x > 0),
]
TruncatedAs = Annotated[str, one_of("failure", "unpenalised")]


@dataclass
class RewardConfig:
    """The reward."""

    number_of_bins: NumberOfBins = 201  # of the value function's distribution
    C_neg: Penalty = -1000.0  # added to the return of every frame of a failed episode
    reward_normalizer: RewardNormalizer = "auto"  # auto: the least that keeps every return in [-1, 0]
    N_steps_look_ahead: Count = 50  # steps of reward in an advantage
    truncated: TruncatedAs = "failure"  # what an episode is that only ran out of time: failure or unpenalised

    def __post_init__(self) -> None:
        """Check the values, which can also come from a reward.json."""
        if problems := [*wrong_values(self)]:
            raise ValueError("; ".join(problems))

    @property
    def normalizer(self) -> float:
        """Return the number; "auto" must have been resolved before."""
        if isinstance(self.reward_normalizer, str):
            raise ValueError("reward_normalizer: 'auto' needs episodes; call RewardConfig.resolve first")
        return float(self.reward_normalizer)

    def resolve(self, longest: int) -> "RewardConfig":
        """Return the configuration with a normaliser for episodes of up to `longest` frames.

        Raises:
            ValueError: The configured one would push returns below -1.
        """
        needed = longest - 1 - self.C_neg
        if self.reward_normalizer == "auto":
            return replace(self, reward_normalizer=max(needed, 1.0))
        if self.normalizer < needed:
            raise ValueError(
                f"reward_normalizer: expected at least {needed:g} (longest episode {longest} frames - 1, "
                f"plus |C_neg| {-self.C_neg:g}), found {self.normalizer:g}: returns would leave [-1, 0] and "
                "their bins; raise it, or set 'auto'"
            )
        return self


def outcomes(frames: FrameSet, deadlines: Mapping[str, int] | None = None) -> tuple[Outcome, ...]:
    """Return how the episodes of a set ended.

    `deadlines` (task id -> steps): an episode without success that lasted so long was truncated.

    Raises:
        EpisodeDataError: Nobody knows how an episode ended; a failure taken for a success would be imitated.
    """
    limits = [(deadlines or {}).get(labels.task_id, math.inf) for labels in frames.labels]
    return tuple(
        Outcome.SUCCESS if success else Outcome.TRUNCATED if length >= limit else Outcome.FAILURE
        for success, length, limit in zip(frames.successes(), frames.lengths, limits, strict=True)
    )


def returns(length: int, outcome: Outcome, config: RewardConfig) -> Float64[np.ndarray, " t"]:
    """Return `(t - (length - 1) [+ C_neg]) / normalizer` of each frame, clamped to [-1, 0]."""
    steps = np.arange(length, dtype=np.float64) - length + 1
    total = steps + config.C_neg if _is_penalised(outcome, config) else steps
    return np.clip(total / config.normalizer, -1.0, 0.0)


def n_step_rewards(length: int, outcome: Outcome, config: RewardConfig) -> Float64[np.ndarray, " t"]:
    """Return the reward of the next N steps of each frame, fewer at the end; not clamped."""
    n = config.N_steps_look_ahead
    t = np.arange(length)
    rewards = np.maximum(t - length + 1, -n).astype(np.float64)
    if _is_penalised(outcome, config):
        rewards += config.C_neg * reaches_end(length, n)
    return rewards / config.normalizer


def reaches_end(length: int, n: int) -> Bool[np.ndarray, " t"]:
    """Return from which frames N steps lead beyond the last frame."""
    return np.arange(length) + n >= length


def frame_returns(
    lengths: Sequence[int], ends: Sequence[Outcome], config: RewardConfig
) -> Float64[np.ndarray, " n"]:
    """Return the returns of all frames of some episodes, one episode after the other."""
    parts = [returns(length, end, config) for length, end in zip(lengths, ends, strict=True)]
    return np.concatenate(parts)


def _is_penalised(outcome: Outcome, config: RewardConfig) -> bool:
    return outcome is Outcome.FAILURE or (outcome is Outcome.TRUNCATED and config.truncated == "failure")
