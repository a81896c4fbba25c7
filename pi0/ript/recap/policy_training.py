"""Fine-tunes the policy on everything there is, each window with the indicator of its advantage.

Axes: n frame of a set, m frame of all sets, b window of a batch.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Float64, Int64
from torch import Tensor, nn

from pi0 import Indicator, PI0Policy
from pi0.ript.distributed import World
from pi0.ript.loss import window_draws
from pi0.ript.recap.advantages import is_positive
from pi0.ript.recap.sources import Mixture, Source
from pi0.ript.recap.training_steps import Row, TrainingSteps

_DROPOUT_STREAM = 1  # keeps the draws of the dropout apart from those of the noise


@dataclass
class PolicyTraining:
    """How the policy is fine-tuned."""

    steps: int = 200
    batch_size: int = 64  # windows per optimizer step, of all processes together
    micro_batch_size: int = 64  # windows per forward pass of a process
    learning_rate: float = 1e-3  # after a warm-up level, then down to 0
    warmup_steps: int = 20
    decay_fraction: float = 0.3  # the last part of the steps, in which the learning rate falls
    indicator_learning_rate: float = 1e-2  # of an indicator that is an embedding: it starts at zero
    weight_decay: float = 1e-4
    grad_norm_clip: float = 1.0
    num_draws: int = 2  # noise draws per window, which share the prefix
    indicator_dropout: float = 0.3  # share of windows trained without indicator, as guidance needs
    use_awr: bool = False  # weigh each window by exp(A / beta) as well
    awr_beta: float = 1.0
    awr_max_weight: float = 10.0

    def __post_init__(self) -> None:
        """Check the settings."""
        for name in ("steps", "batch_size", "micro_batch_size", "num_draws"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, found {getattr(self, name)}")
        for name in ("learning_rate", "indicator_learning_rate", "grad_norm_clip"):
            if not 0.0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name}: expected a number above 0, found {getattr(self, name)}")
        for name in ("indicator_dropout", "decay_fraction"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name}: expected a share, found {getattr(self, name)}")
        if not (self.awr_beta > 0 and self.awr_max_weight > 0):
            raise ValueError(
                f"awr_beta, awr_max_weight: expected positive numbers, found {self.awr_beta}, "
                f"{self.awr_max_weight}"
            )


def train_policy(
    policy: PI0Policy,
    sources: Sequence[Source],
    advantages: Sequence[Float64[np.ndarray, " _"]],
    epsilon: Mapping[str, float],
    settings: PolicyTraining,
    seed: Sequence[int] = (0,),
    *,
    log: Callable[[Row], None] | None = None,
    checkpoint: Path | None = None,
    world: World | None = None,
) -> PI0Policy:
    """Minimise the flow-matching loss on a mixture of sources; return the policy, which is changed.

    Windows are a function of (seed, step), noise, flow times and dropout of (seed, step, window).

    Args:
        policy: Takes an indicator; its frozen parameters stay.
        sources: Whose windows are drawn by weight. One without advantage is left out where it counts.
        advantages: Of every frame of each source; NaN where there is none.
        epsilon: Threshold of each task, see `advantages.thresholds`.
        settings: Steps, learning rate, ...
        seed: Of everything random.
        log: Receives the figures of every step.
        checkpoint: A file that an interrupted training goes on with; see `TrainingSteps`.
        world: The processes that train together; None: this one alone.
    """
    world = world or World()
    _require_indicator(policy)
    for source, found in zip(sources, advantages, strict=True):
        _require_length(source, found)
    weights = torch.from_numpy(np.concatenate([_weights(a, settings) for a in advantages]))
    usable = [~_is_missing(s, a, settings) for s, a in zip(sources, advantages, strict=True)]
    mixture = Mixture(sources, policy.config.chunk_size, usable)
    indicator = np.concatenate([indicators(s, a, epsilon) for s, a in zip(sources, advantages, strict=True)])
    optimizer = _optimizer(policy, settings)
    rates = [group["lr"] for group in optimizer.param_groups]
    learner = world.wrap(FlowLearner(policy, settings.num_draws))
    steps = TrainingSteps(
        settings.steps,
        policy,
        optimizer,
        description="policy",
        checkpoint=checkpoint,
        log=log,
        world=world,
    )
    policy.train()
    for step in steps:
        key = (*seed, step)
        drawn = mixture.draw(settings.batch_size, key)
        given = withhold_keyed(indicator[drawn], drawn, key, settings.indicator_dropout)
        total = torch.zeros((), device=policy.device)
        for part in world.micro_batches(learner, np.arange(len(drawn)), settings.micro_batch_size):
            windows = drawn[part]
            losses = learner(mixture.batch(windows), torch.from_numpy(given[part]), key)
            loss = (losses * weights[windows].to(losses)).sum() / len(drawn)
            world.backward(loss)
            total += loss.detach()
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * _factor(step, settings)
        steps.update(settings.grad_norm_clip)
        row = {
            "loss": world.sum(total),
            "positive": float((given == Indicator.POSITIVE).mean()),
            "withheld": float((given == Indicator.NONE).mean()),
        }
        steps.done(row, {"loss": f"{row['loss']:.3f}"})
    return policy.eval()


class FlowLearner(nn.Module):
    """Flow-matching losses of windows; what DDP wraps."""

    def __init__(self, policy: PI0Policy, num_draws: int) -> None:
        super().__init__()
        self.policy, self.num_draws = policy, num_draws

    def forward(
        self, batch: Mapping[str, Any], indicator: Int64[Tensor, " b"] | None, seed: Sequence[int]
    ) -> Float[Tensor, " b"]:
        """Return the loss of each window at noise and flow times of its own; None: no indicators."""
        policy = self.policy
        noise, time = window_draws(policy, batch["window"].tolist(), seed, self.num_draws)
        return policy.loss(
            batch,
            reduction="sample",
            indicator=indicator,
            noise=noise.to(policy.device),
            time=time.to(policy.device),
        )


def _factor(step: int, settings: PolicyTraining) -> float:
    """Return the factor on the learning rates."""
    decay = settings.decay_fraction * settings.steps
    left = (settings.steps - step) / decay if decay > 0 else 1.0
    return min(1.0, (step + 1) / max(settings.warmup_steps, 1), left)


def indicators(
    source: Source, advantages: Float64[np.ndarray, " n"], epsilon: Mapping[str, float]
) -> Int64[np.ndarray, " n"]:
    """Return the indicator of each frame, as the source's mode says; a missing advantage is NEGATIVE."""
    if source.advantage == "use":
        positive = is_positive(advantages, source.frame_tasks(), epsilon)
        return np.where(positive, int(Indicator.POSITIVE), int(Indicator.NEGATIVE))
    one = Indicator.POSITIVE if source.advantage == "on" else Indicator.NONE
    return np.full(source.num_frames, int(one))


def withhold_keyed(
    indicator: Int64[np.ndarray, " b"],
    windows: Int64[np.ndarray, " b"],
    seed: Sequence[int],
    dropout: float,
) -> Int64[np.ndarray, " b"]:
    """Return the indicators with a share of them NONE; which ones depends on seed and window alone."""
    draws = [np.random.default_rng((*seed, window, _DROPOUT_STREAM)).random() for window in windows.tolist()]
    return np.where(np.array(draws) < dropout, int(Indicator.NONE), indicator)


def awr_weights(
    advantages: Float64[np.ndarray, " n"], beta: float, largest: float
) -> Float32[np.ndarray, " n"]:
    """Return `min(exp(A / beta), largest)`; NaN stays NaN."""
    return np.exp(np.minimum(advantages / beta, np.log(largest))).astype(np.float32)


def _optimizer(policy: PI0Policy, settings: PolicyTraining) -> torch.optim.AdamW:
    """Return the optimizer; an embedded indicator has a learning rate of its own."""
    named = [(n, p) for n, p in policy.named_parameters() if p.requires_grad]
    indicator = [p for n, p in named if "indicator_embedding" in n]
    others = [p for n, p in named if "indicator_embedding" not in n]
    groups = [
        {"params": others, "lr": settings.learning_rate, "weight_decay": settings.weight_decay},
        {"params": indicator, "lr": settings.indicator_learning_rate, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, betas=(0.9, 0.95))


def _weights(advantages: Float64[np.ndarray, " n"], settings: PolicyTraining) -> Float32[np.ndarray, " n"]:
    if not settings.use_awr:
        return np.ones(len(advantages), np.float32)
    return awr_weights(advantages, settings.awr_beta, settings.awr_max_weight)


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
