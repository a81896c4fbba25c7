"""What the stages of RECAP minimise, and the windows that they draw."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float64

from pi0 import PI0Policy
from pi0.ript.labels.indicators import awr_weights, indicators
from pi0.ript.labels.mixture import Mixture
from pi0.ript.labels.settings import RewardConfig
from pi0.ript.labels.sources import Source
from pi0.ript.training.objectives import AdvantageObjective, PolicyObjective, ValueObjective
from pi0.ript.training.settings import PolicyTraining
from pi0.value import ValueFunction


def policy_objective(
    policy: PI0Policy,
    sources: Sequence[Source],
    advantages: Sequence[Float64[np.ndarray, " _"]],
    positive: Sequence[Bool[np.ndarray, " _"]],
    settings: PolicyTraining,
    uncond_weight: float | None = None,
) -> tuple[PolicyObjective, Mixture]:
    """Return the loss with the indicator of each window's advantage, and the windows.

    Args:
        policy: Takes an indicator; its frozen parameters stay.
        sources: The data. A frame without advantage is left out where its advantage counts.
        advantages: The advantage of every frame of each source; NaN where there is none.
        positive: Which frames of each source are positive.
        settings: The settings of the training.
        uncond_weight: Weight of the loss without indicator, beside that of positive frames; None: each
            window has its indicator, a share of them withheld.
    """
    _require_indicator(policy)
    labelled = list(zip(sources, advantages, strict=True))
    for source, of_frames in labelled:
        if len(of_frames) != source.num_frames:
            raise ValueError(
                f"{source.name}: advantages: expected one for each of {source.num_frames} frames, found "
                f"{len(of_frames)}"
            )
    usable = [~np.isnan(x) | (source.advantage != "use" and not settings.use_awr) for source, x in labelled]
    indicator = np.concatenate([indicators(s, chosen) for s, chosen in zip(sources, positive, strict=True)])
    pixels, chunk_size = policy.config.vision.image_size, policy.config.chunk_size
    mixture = Mixture(sources, policy.features, chunk_size, usable, pixels)
    if uncond_weight is not None:
        return AdvantageObjective(policy, indicator, uncond_weight, settings.num_draws), mixture
    weights = None
    if settings.use_awr:
        weights = awr_weights(np.concatenate(advantages), settings.awr_beta, settings.awr_max_weight)
    objective = PolicyObjective(
        policy, indicator, settings.indicator_dropout, settings.num_draws, sample_weight=weights
    )
    return objective, mixture


def value_objective(
    value: ValueFunction,
    sources: Sequence[Source],
    reward: RewardConfig,
    heldout: Sequence[Bool[np.ndarray, " _"]],
) -> tuple[ValueObjective, Mixture]:
    """Return the cross entropy of the returns' bins, and the frames of episodes that are not held out.

    Args:
        value: A value function with the bins of the reward.
        sources: The data.
        reward: Says the return of each frame.
        heldout: Which episodes of each source are not drawn.
    """
    if value.config.num_bins != reward.number_of_bins:
        raise ValueError(
            f"number_of_bins: expected the value function's {value.config.num_bins}, found "
            f"{reward.number_of_bins}"
        )
    usable = [~np.repeat(h, s.frames.lengths) for h, s in zip(heldout, sources, strict=True)]
    returns = np.concatenate([source.returns(reward) for source in sources])
    pixels = (value.reads or value).config.vision.image_size
    return ValueObjective(value, returns), Mixture(sources, value.features, 1, usable, pixels)


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
