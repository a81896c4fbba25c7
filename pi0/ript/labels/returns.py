"""Sparse reward and returns: -1 per step until success, and C_neg where an episode fails (requirement 004).

Normalised to [-1, 0]. The formulas are those of OpenTau's policies/value/reward.py, which neither clamps nor
checks the normaliser, so that its failures leave the bins.

Axes: t frame of an episode, e episode, n frame of all episodes.
"""

import math
from collections.abc import Mapping, Sequence
from enum import StrEnum

import numpy as np
from jaxtyping import Bool, Float64

from pi0.ript.data.frame_set import FrameSet
from pi0.ript.labels.settings import RewardConfig


class Outcome(StrEnum):
    """How an episode ended."""

    SUCCESS = "success"
    FAILURE = "failure"
    TRUNCATED = "truncated"  # by a deadline, without success


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
