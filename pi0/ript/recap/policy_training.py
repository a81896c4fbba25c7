"""Fine-tunes the policy on everything there is, each window with the indicator of its advantage.

Axes: n frame of a set, m frame of all sets, b window of a batch.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float64

from pi0 import PI0Policy
from pi0.ript.distributed import World
from pi0.ript.labels.indicators import awr_weights, indicators
from pi0.ript.labels.sources import Mixture, Source
from pi0.ript.recap.fitting import Keeping, fit
from pi0.ript.training.objectives import PolicyObjective
from pi0.ript.training.settings import PolicyTraining
from pi0.ript.training.steps import Row


def train_policy(
    policy: PI0Policy,
    sources: Sequence[Source],
    advantages: Sequence[Float64[np.ndarray, " _"]],
    epsilon: Mapping[str, float],
    settings: PolicyTraining,
    seed: Sequence[int] = (0,),
    keeping: Keeping | None = None,
    world: World | None = None,
) -> list[Row]:
    """Minimise the flow-matching loss on a mixture of sources; return the figures of every step.

    Windows are a function of (seed, step), noise, flow times and dropout of (seed, step, window).

    Args:
        policy: Is changed. Takes an indicator; its frozen parameters stay.
        sources: Whose windows are drawn by weight. One without advantage is left out where it counts.
        advantages: Of every frame of each source; NaN where there is none.
        epsilon: Threshold of each task, see `advantages.thresholds`.
        settings: Steps, learning rate, ...
        seed: Of everything random.
        keeping: Where snapshots of it are kept; None: nowhere.
        world: The processes that train together; None: this one alone.
    """
    objective, mixture = policy_objective(policy, sources, advantages, epsilon, settings)
    return fit(objective, mixture, settings, seed, "policy", keeping or Keeping(), world or World())


def policy_objective(
    policy: PI0Policy,
    sources: Sequence[Source],
    advantages: Sequence[Float64[np.ndarray, " _"]],
    epsilon: Mapping[str, float],
    settings: PolicyTraining,
) -> tuple[PolicyObjective, Mixture]:
    """Return what `train_policy` minimises, and the windows that it draws."""
    _require_indicator(policy)
    for source, found in zip(sources, advantages, strict=True):
        _require_length(source, found)
    usable = [~_is_missing(s, a, settings) for s, a in zip(sources, advantages, strict=True)]
    mixture = Mixture(sources, policy.config.chunk_size, usable)
    indicator = np.concatenate([indicators(s, a, epsilon) for s, a in zip(sources, advantages, strict=True)])
    weights = None
    if settings.use_awr:
        weights = awr_weights(np.concatenate(advantages), settings.awr_beta, settings.awr_max_weight)
    objective = PolicyObjective(
        policy, indicator, settings.indicator_dropout, settings.num_draws, sample_weight=weights
    )
    return objective, mixture


def _is_missing(
    source: Source, advantages: Float64[np.ndarray, " n"], settings: PolicyTraining
) -> Bool[np.ndarray, " n"]:
    """Return which frames lack an advantage that something asks for."""
    return np.isnan(advantages) & (source.advantage == "use" or settings.use_awr)


def _require_length(source: Source, advantages: Float64[np.ndarray, " n"]) -> None:
    if len(advantages) != source.num_frames:
        raise ValueError(
            f"{source.name}: advantages: expected one for each of {source.num_frames} frames, found "
            f"{len(advantages)}"
        )


def _require_indicator(policy: PI0Policy) -> None:
    if policy.config.indicator == "none":
        raise ValueError(
            "indicator: this policy takes none, so an advantage has nowhere to enter; load it with "
            "changes={'indicator': 'text'} or 'embedding'"
        )
    if policy.config.indicator_dropout > 0:
        raise ValueError(
            "indicator_dropout: expected 0 in the policy (PolicyTraining has its own), found "
            f"{policy.config.indicator_dropout}"
        )
