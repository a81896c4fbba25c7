"""Advantages of the episodes of a group (RIPT-VLA, section 4: leave-one-out), and what is learned from them.

A group is K episodes from one initial state. Axes: n groups, g episodes in a group.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

EPSILON = 1e-6  # of a standard deviation that something is divided by


def leave_one_out(rewards: Float[np.ndarray, "n g"]) -> Float[np.ndarray, "n g"]:
    """Return each reward minus the mean of the others in its group; every group sums to zero.

    Raises:
        ValueError: A group of one has no others.
    """
    g = rewards.shape[-1]
    require_group(g)
    return rewards - (rewards.sum(-1, keepdims=True) - rewards) / (g - 1)


def require_group(size: int) -> None:
    """Raise ValueError unless a group of this many episodes has a leave-one-out baseline."""
    if size < 2:
        raise ValueError(
            f"group_size: expected at least 2 rollouts per initial state, found {size}: the leave-one-out "
            "baseline of a single rollout does not exist"
        )


def is_informative(rewards: Float[np.ndarray, "n g"]) -> Bool[np.ndarray, " n"]:
    """Return which groups have both better and worse episodes; in the others every advantage is zero."""
    return rewards.max(-1) > rewards.min(-1)


def standardised(rewards: Float[np.ndarray, "n g"]) -> Float[np.ndarray, "n g"]:
    """Return each reward minus its group's mean, in the group's standard deviations (GRPO, arXiv 2402.03300).

    Raises:
        ValueError: A group of one has nothing to be compared with.
    """
    require_group(rewards.shape[-1])
    away = rewards - rewards.mean(-1, keepdims=True)
    return away / (rewards.std(-1, keepdims=True) + EPSILON)


@dataclass(frozen=True)
class LearningRule:
    """Which episodes of a collection are learned from, and how; the defaults are RIPT's."""

    advantages: Callable[[Float[np.ndarray, "n g"]], Float[np.ndarray, "n g"]] = leave_one_out
    """Of the episodes, from the rewards of their groups."""
    is_kept: Callable[[Float[np.ndarray, "n g"]], Bool[np.ndarray, " n"]] = is_informative
    """Which groups are kept; of the others images and notes are dropped, and other states are tried."""
    by_chunk: bool = False
    """Whether a window is a chunk, with what the actor noted of it; else every observed step begins one."""


OF_RIPT = LearningRule()
