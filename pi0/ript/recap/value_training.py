"""Trains a value function on returns, and says on held-out episodes how good it is.

Axes: n frame of a set, m frame of all sets, e episode.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool

from pi0.ript.distributed import World
from pi0.ript.labels.calibration import Calibration, heldout_calibration, heldout_episodes
from pi0.ript.labels.returns import RewardConfig
from pi0.ript.labels.sources import Mixture, Source
from pi0.ript.recap.fitting import Keeping, fit
from pi0.ript.training.objectives import ValueObjective
from pi0.ript.training.settings import ValueTraining
from pi0.ript.training.steps import Row
from pi0.value import ValueFunction


def train_value(
    value: ValueFunction,
    sources: Sequence[Source],
    reward: RewardConfig,
    settings: ValueTraining,
    seed: Sequence[int] = (0,),
    keeping: Keeping | None = None,
    world: World | None = None,
) -> tuple[list[Row], Calibration]:
    """Minimise the cross entropy of the returns' bins.

    Returns the figures of every step, and how good the values are on held-out episodes. Batches are a
    function of (seed, step); the held-out episodes of the seed's first number alone, so that a value function
    that is trained further is not judged on what it has seen. `keeping` and `world` are those of
    `train_policy`.
    """
    world = world or World()
    heldout = [heldout_episodes(source, settings.validation_fraction, seed[:1]) for source in sources]
    objective, mixture = value_objective(value, sources, reward, heldout)
    rows = fit(objective, mixture, settings, seed, "value function", keeping or Keeping(), world)
    return rows, heldout_calibration(value, sources, reward, heldout, world)


def value_objective(
    value: ValueFunction,
    sources: Sequence[Source],
    reward: RewardConfig,
    heldout: Sequence[Bool[np.ndarray, " _"]],
) -> tuple[ValueObjective, Mixture]:
    """Return what `train_value` minimises, and what it draws: frames of episodes that are not held out."""
    if value.config.num_bins != reward.number_of_bins:
        raise ValueError(
            f"number_of_bins: expected the value function's {value.config.num_bins}, found "
            f"{reward.number_of_bins}"
        )
    usable = [~np.repeat(h, s.episodes.lengths) for h, s in zip(heldout, sources, strict=True)]
    returns = np.concatenate([source.returns(reward) for source in sources])
    return ValueObjective(value, returns), Mixture(sources, 1, usable)
