"""Whether values rank episodes of a task as their returns do, and whether chance would as well.

Two episodes are compared at equal times, because a policy that got faster makes the middle of a failure later
than the middle of a success: a comparison of middles would fall while the policy gets better. What knows the
time alone values both alike, and stands at one half.

Axes: e episode, t time, p permutation.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

_PERMUTATIONS = 999
_ONE_SIDED_95 = 1.645


@dataclass(frozen=True)
class Concordance:
    """How well values rank the episodes of a task by their returns."""

    concordance: float | None
    """Chance that the better of two episodes is valued above the worse one at the same time; equal values
    count half, and a comparison counts as much as the returns differ. 0.5 is chance. None: no two episodes
    of a task differ in their return."""
    upper: float | None
    """Upper end of its one-sided 95 % interval (jackknife over episodes); None: fewer than three episodes."""
    p_value: float
    """How often values that know nothing of the episodes' returns come out as high (permutation test)."""


@dataclass(frozen=True)
class _Task:
    """The episodes of one task, in pairs."""

    order: Float64[np.ndarray, "e e"]
    """Share of the common times at which the first is valued above the second, minus the opposite share."""
    returns: Float64[np.ndarray, " e"]

    def agreement(self, returns: Float64[np.ndarray, " e"]) -> Float64[np.ndarray, "e e"]:
        """Return how much the order of each pair speaks for the order of the episodes' returns."""
        return self.order * (returns[:, None] - returns)

    @property
    def weight(self) -> Float64[np.ndarray, "e e"]:
        """Return the most that each pair could agree."""
        return np.abs(self.returns[:, None] - self.returns)


def concordance(
    values: Sequence[Float64[np.ndarray, " _"]],
    returns: Sequence[Float64[np.ndarray, " _"]],
    tasks: Sequence[str],
) -> Concordance:
    """Return how well values rank episodes.

    Args:
        values: Of the frames of each episode.
        returns: Of the frames of each episode; the first ranks the episode.
        tasks: Of each episode; episodes of two tasks are not compared.
    """
    groups = [
        _Task(_order([values[i] for i in members]), np.array([returns[i][0] for i in members]))
        for members in ([i for i, task in enumerate(tasks) if task == name] for name in sorted(set(tasks)))
    ]
    weight = sum(float(group.weight.sum()) for group in groups)
    if not weight:
        return Concordance(None, None, 1.0)
    agreement = sum(float(group.agreement(group.returns).sum()) for group in groups)
    rng = np.random.default_rng(0)
    by_chance = np.zeros(_PERMUTATIONS)
    for group in groups:
        shuffled = rng.permuted(np.tile(group.returns, (_PERMUTATIONS, 1)), axis=1)
        by_chance += 2 * shuffled @ group.order.sum(1)  # the sum of `agreement`, as `order` is antisymmetric
    # What differs by rounding alone is as high.
    as_high = int((by_chance >= agreement - 1e-9 * weight).sum())
    share = 0.5 + 0.5 * agreement / weight
    return Concordance(
        share, _upper_end(groups, agreement, weight, share), (1 + as_high) / (1 + _PERMUTATIONS)
    )


def _order(values: Sequence[Float64[np.ndarray, " _"]]) -> Float64[np.ndarray, "e e"]:
    longest = max(map(len, values))
    padded = np.full((len(values), longest), np.nan)
    for row, of_episode in zip(padded, values, strict=True):
        row[: len(of_episode)] = of_episode
    return np.array([np.nanmean(np.sign(row - padded), axis=1) for row in padded])


def _upper_end(groups: Sequence[_Task], agreement: float, weight: float, share: float) -> float | None:
    """Return the upper end of the interval from the shares without each of the episodes in turn."""
    without = []
    for group in groups:
        left = weight - 2 * group.weight.sum(1)
        others = agreement - 2 * group.agreement(group.returns).sum(1)
        without += (0.5 + 0.5 * others[left > 0] / left[left > 0]).tolist()
    if len(without) < 3:
        return None
    n, spread = len(without), np.array(without) - np.mean(without)
    return share + _ONE_SIDED_95 * float(np.sqrt((n - 1) / n * (spread**2).sum()))
