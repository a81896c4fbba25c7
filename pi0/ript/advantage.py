"""Advantages of the episodes of a group (RIPT-VLA, section 4: leave-one-out).

A group is K episodes from one initial state. Axes: n groups, g episodes in a group.
"""

import numpy as np
from jaxtyping import Bool, Float


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
