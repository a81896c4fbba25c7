"""What is minimised: a policy's flow-matching loss, or the cross entropy of a value function.

Axes: b sample of a batch, k figure of the objective, the loss first; m frame of all data sets.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64, Int64
from torch import Tensor, nn

from pi0 import Indicator, PI0Policy
from pi0.features import ACTION, STATE
from pi0.ript.labels.indicators import withhold_keyed
from pi0.ript.loss import AdvantageLoss, window_draws
from pi0.value import ValueFunction

Batch = Mapping[str, Any]
Model = PI0Policy | ValueFunction


def prefixed(model: Model) -> PI0Policy | None:
    """Return the policy whose prefix a model reads: itself, or a value function's; None: its own one."""
    return model.reads if isinstance(model, ValueFunction) else model


class FlowLearner(nn.Module):
    """Flow-matching losses of windows; what DDP wraps."""

    def __init__(self, policy: PI0Policy, num_draws: int) -> None:
        super().__init__()
        self.policy, self.num_draws = policy, num_draws

    def forward(
        self, batch: Mapping[str, Any], indicator: Int64[Tensor, " b"] | None, seed: Sequence[int]
    ) -> Float[Tensor, " b"]:
        """Return the loss of each window at noise and flow times of its own; None: no indicators."""
        policy, (batch, factor) = self.policy, _without_damage(batch)
        noise, time = window_draws(policy, batch["window"].tolist(), seed, self.num_draws)
        losses = policy.loss(
            batch,
            reduction="sample",
            indicator=indicator,
            noise=noise.to(policy.device),
            time=time.to(policy.device),
        )
        return losses if factor is None else losses * factor.to(losses)


class ValueLearner(nn.Module):
    """The figures of a batch; what DDP wraps."""

    def __init__(self, value: ValueFunction) -> None:
        super().__init__()
        self.value = value

    def forward(self, batch: Batch, returns: Float64[Tensor, " b"]) -> Float[Tensor, "3"]:
        """Return cross entropy, accuracy and error, each a mean over the batch."""
        batch, factor = _without_damage(batch)
        figures = torch.stack(list(self.value.loss(batch, returns)))
        return figures if factor is None else figures * factor.mean().to(figures)


def _without_damage(batch: Batch) -> tuple[Batch, Float[Tensor, " b"] | None]:
    """Return the batch, with zeros for numbers that are not finite, and a factor for the loss of each sample.

    The factor is NaN for each sample with such numbers, so that all processes skip the step: an error on one
    of them would leave the others waiting for its gradients. It is None if all numbers are finite.
    """
    numbers = {name: batch[name] for name in (STATE, ACTION) if name in batch}
    damaged = {name: ~x.isfinite().flatten(1).all(1) for name, x in numbers.items()}
    damaged = {name: rows for name, rows in damaged.items() if rows.any()}
    if not damaged:
        return batch, None
    factor = torch.ones(len(batch["window"]))
    for name, rows in damaged.items():
        print(f"{name}: NaN or infinity in frames {batch['window'][rows].tolist()} of the data")  # noqa: T201
        factor[rows] = torch.nan
    return {**batch, **{name: numbers[name].nan_to_num(0.0, 0.0, 0.0) for name in damaged}}, factor


class PolicyObjective:
    """The flow-matching loss, each sample with the indicator of its advantage."""

    name = "policy"
    figures = ("loss",)

    def __init__(
        self,
        policy: PI0Policy,
        indicator: Int64[np.ndarray, " m"] | None,
        dropout: float,
        num_draws: int,
        weight: float = 1.0,
        sample_weight: Float32[np.ndarray, " m"] | None = None,
    ) -> None:
        """Take the indicator of each frame, None: the policy is given none; and the weight of its loss."""
        self.model, self.indicator, self.sample_weight = policy, indicator, sample_weight
        self.dropout, self.num_draws, self.weight = dropout, num_draws, weight

    def learner(self) -> nn.Module:
        """Return the losses of samples."""
        return FlowLearner(self.model, self.num_draws)

    def sums(
        self, learner: nn.Module, batch: Batch, key: Sequence[int], *, is_training: bool
    ) -> Float[Tensor, " k"]:
        """Return the sum of the losses; indicators are withheld in training alone."""
        windows, indicator = batch["window"].numpy(), None
        if self.indicator is not None:
            shown = self._shown(self.indicator, windows, key) if is_training else self.indicator[windows]
            indicator = torch.from_numpy(shown)
        losses = learner(batch, indicator, key)
        if self.sample_weight is not None:
            losses = losses * torch.from_numpy(self.sample_weight[windows]).to(losses.device)
        return self.weight * losses.sum()[None]

    def shares(self, windows: Int64[np.ndarray, " b"], key: Sequence[int]) -> dict[str, float]:
        """Return the shares of windows that are trained on as positive and without an indicator."""
        if self.indicator is None:
            return {"positive": 0.0, "withheld": 1.0}
        shown = self._shown(self.indicator, windows, key)
        return {
            "positive": float((shown == Indicator.POSITIVE).mean()),
            "withheld": float((shown == Indicator.NONE).mean()),
        }

    def _shown(
        self, indicator: Int64[np.ndarray, " m"], windows: Int64[np.ndarray, " b"], key: Sequence[int]
    ) -> Int64[np.ndarray, " b"]:
        return withhold_keyed(indicator[windows], windows, key, self.dropout)

    @property
    def positive_share(self) -> float | None:
        """Share of the frames with a positive indicator."""
        return None if self.indicator is None else float((self.indicator == Indicator.POSITIVE).mean())


class AdvantageObjective(PolicyObjective):
    """RIPT's loss: what is positive is imitated as positive, and everything a little without an indicator."""

    def __init__(
        self, policy: PI0Policy, indicator: Int64[np.ndarray, " m"], uncond_weight: float, num_draws: int
    ) -> None:
        """Take the indicator of each frame, and the weight of the loss with the indicator withheld."""
        super().__init__(policy, indicator, 0.0, num_draws)
        self.is_positive = indicator == Indicator.POSITIVE
        self.uncond_weight = uncond_weight

    def learner(self) -> nn.Module:
        """Return the sum of the losses of windows with an `advantage`."""
        return AdvantageLoss(self.model, self.uncond_weight, self.num_draws)

    def sums(
        self, learner: nn.Module, batch: Batch, key: Sequence[int], *, is_training: bool
    ) -> Float[Tensor, " k"]:
        """Return the sum of the losses."""
        batch, factor = _without_damage(batch)
        advantage = np.where(self.is_positive[batch["window"].numpy()], 1.0, -1.0)
        loss = learner({**batch, "advantage": torch.from_numpy(advantage)}, key)[None]
        return loss if factor is None else loss * factor.mean().to(loss)


class ValueObjective:
    """The cross entropy of the bins of returns."""

    name = "value function"
    figures = ("loss", "train_accuracy", "error")

    def __init__(self, value: ValueFunction, returns: Float64[np.ndarray, " m"], weight: float = 1.0) -> None:
        self.model, self.returns = value, torch.from_numpy(returns)
        self.scale = torch.tensor([weight, 1.0, 1.0], device=value.device)

    def learner(self) -> nn.Module:
        """Return the figures of a batch."""
        return ValueLearner(self.model)

    def sums(
        self, learner: nn.Module, batch: Batch, key: Sequence[int], *, is_training: bool
    ) -> Float[Tensor, " k"]:
        """Return cross entropy, number of right bins and absolute error."""
        return self.scale * learner(batch, self.returns[batch["window"]]) * len(batch["window"])

    def shares(self, windows: Int64[np.ndarray, " b"], key: Sequence[int]) -> dict[str, float]:
        """Return nothing: every frame has a return."""
        return {}


Objective = PolicyObjective | ValueObjective
"""`sums` returns those of `figures`, the loss first; what is random depends on key and sample alone."""
