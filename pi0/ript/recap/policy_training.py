"""Fine-tunes the policy on everything there is, each window with the indicator of its advantage.

Axes: n frame of a set, m frame of all sets, b window of a batch.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float32, Float64

from pi0 import Indicator, PI0Policy
from pi0.ript.distributed import World
from pi0.ript.labels.indicators import awr_weights, indicators, withhold_keyed
from pi0.ript.labels.sources import Mixture, Source
from pi0.ript.training.objectives import FlowLearner
from pi0.ript.training.settings import PolicyTraining
from pi0.ript.training.steps import Row, TrainingSteps


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


def _factor(step: int, settings: PolicyTraining) -> float:
    """Return the factor on the learning rates."""
    decay = settings.decay_fraction * settings.steps
    left = (settings.steps - step) / decay if decay > 0 else 1.0
    return min(1.0, (step + 1) / max(settings.warmup_steps, 1), left)


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
