"""Trains a value function on returns, and says on held-out episodes how good it is.

Axes: n frame of a set, m frame of all sets, e episode.
"""

import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor, nn
from tqdm import tqdm

from pi0.ript.distributed import World
from pi0.ript.episodes import EpisodeSet
from pi0.ript.peers import ALONE, Peers, gather_shares, share
from pi0.ript.recap.returns import Outcome, RewardConfig
from pi0.ript.recap.sources import Mixture, Source, frame_windows
from pi0.ript.recap.training_steps import Row, TrainingSteps
from pi0.ript.windows import batches
from pi0.value import ValueFunction

_CALIBRATION_BINS = 10


@dataclass
class ValueTraining:
    """How a value function is trained."""

    steps: int = 300
    batch_size: int = 64  # frames per optimizer step, of all processes together
    micro_batch_size: int = 64  # frames per forward pass of a process
    learning_rate: float = 1e-3  # level, then down to 0 over the last 30%
    weight_decay: float = 1e-3
    grad_norm_clip: float = 1.0
    validation_fraction: float = 0.2  # of the episodes of each source

    def __post_init__(self) -> None:
        """Check the settings."""
        for name in ("steps", "batch_size", "micro_batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, found {getattr(self, name)}")
        for name in ("learning_rate", "grad_norm_clip"):
            if not 0.0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name}: expected a number above 0, found {getattr(self, name)}")
        if not 0.0 < self.validation_fraction < 1.0:
            raise ValueError(
                f"validation_fraction: expected a share between 0 and 1 (the values are judged on these "
                f"episodes), found {self.validation_fraction}"
            )


@dataclass(frozen=True)
class Calibration:
    """How well values foretell returns, on episodes that were not trained on."""

    num_episodes: int
    num_frames: int
    correlation: float | None
    """Of value and return over frames; None if either is constant."""
    calibration_error: float
    """Mean distance of value and mean return, over tenths of the range of values, weighted by frames."""
    error: float
    """Mean absolute difference of value and return."""
    separation: float | None
    """Chance that a success is valued above a failure, both in the middle of their episode (AUC); None if all
    episodes ended alike."""

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as plain values for JSON."""
        return asdict(self)


def train_value(
    value: ValueFunction,
    sources: Sequence[Source],
    reward: RewardConfig,
    settings: ValueTraining,
    seed: Sequence[int] = (0,),
    *,
    log: Callable[[Row], None] | None = None,
    checkpoint: Path | None = None,
    world: World | None = None,
) -> Calibration:
    """Minimise the cross entropy of the returns' bins; return how good the values are on held-out episodes.

    Batches are a function of (seed, step); the held-out episodes of the seed's first number alone, so that a
    value function that is trained further is not judged on what it has seen. `log`, `checkpoint` and `world`
    are those of `train_policy`.
    """
    world = world or World()
    if value.config.num_bins != reward.number_of_bins:
        raise ValueError(
            f"number_of_bins: expected the value function's {value.config.num_bins}, found "
            f"{reward.number_of_bins}"
        )
    heldout = [heldout_episodes(source, settings, seed[:1]) for source in sources]
    usable = [~np.repeat(h, s.episodes.lengths) for h, s in zip(heldout, sources, strict=True)]
    mixture = Mixture(sources, 1, usable)
    returns = torch.from_numpy(np.concatenate([source.returns(reward) for source in sources]))
    optimizer = torch.optim.AdamW(
        value.parameters(),
        lr=settings.learning_rate,
        betas=(0.9, 0.95),
        weight_decay=settings.weight_decay,
    )
    learner = world.wrap(ValueLearner(value))
    steps = TrainingSteps(
        settings.steps,
        value,
        optimizer,
        description="value function",
        checkpoint=checkpoint,
        log=log,
        world=world,
    )
    value.train()
    for step in steps:
        drawn = mixture.draw(settings.batch_size, (*seed, step))
        sums = torch.zeros(3, device=value.device)
        for windows in world.micro_batches(learner, drawn, settings.micro_batch_size):
            found = learner(mixture.batch(windows), returns[windows]) * (len(windows) / len(drawn))
            world.backward(found[0])
            sums += found.detach()
        optimizer.param_groups[0]["lr"] = settings.learning_rate * min(
            1.0, (settings.steps - step) / (0.3 * settings.steps)
        )
        steps.update(settings.grad_norm_clip)
        loss, accuracy, error = (world.sum(one) for one in sums)
        shown = {"loss": f"{loss:.3f}", "train_accuracy": f"{accuracy:.2f}"}
        steps.done({"loss": loss, "train_accuracy": accuracy, "error": error}, shown)
    value.eval()
    return heldout_calibration(value, sources, reward, heldout, world)


class ValueLearner(nn.Module):
    """The figures of a batch; what DDP wraps."""

    def __init__(self, value: ValueFunction) -> None:
        super().__init__()
        self.value = value

    def forward(self, batch: dict[str, Any], returns: Float64[Tensor, " b"]) -> Float[Tensor, "3"]:
        """Return cross entropy, accuracy and error, each a mean over the batch."""
        return torch.stack(list(self.value.loss(batch, returns)))


def heldout_episodes(
    source: Source, settings: ValueTraining, seed: Sequence[int] = (0,)
) -> Bool[np.ndarray, " e"]:
    """Return which episodes of a source are kept from training: the same ones whatever the other sources.

    Every source keeps at least one to train on, and one to judge by if it has two.
    """
    n = len(source.episodes)
    count = min(max(1, round(settings.validation_fraction * n)), n - 1)
    rng = np.random.default_rng((*seed, zlib.crc32(source.name.encode())))
    return np.isin(np.arange(n), rng.permutation(n)[:count])


def predict(
    value: ValueFunction,
    episodes: EpisodeSet,
    frames: Int64[np.ndarray, " k"] | None = None,
    peers: Peers = ALONE,
    batch_size: int = 256,
) -> Float64[np.ndarray, " k"]:
    """Return the values of some frames of a set, None: of all; peers share the work and get them all."""
    windows = frame_windows(episodes, 1)
    parts = batches(np.arange(len(windows)) if frames is None else frames, batch_size)
    bar = tqdm(share(parts, peers), unit="batch", desc="values", leave=False, disable=peers.rank > 0)
    found = [value.values(windows.batch(part)).double().cpu().numpy() for part in bar]
    return np.concatenate(gather_shares(found, peers))


def heldout_calibration(
    value: ValueFunction,
    sources: Sequence[Source],
    reward: RewardConfig,
    heldout: Sequence[Bool[np.ndarray, " _"]],
    peers: Peers = ALONE,
) -> Calibration:
    """Return the calibration on the held-out episodes of all sources together."""
    values, returns, lengths, ends = [], [], [], []
    for source, chosen in zip(sources, heldout, strict=True):
        if not chosen.any():
            continue
        frames = np.flatnonzero(np.repeat(chosen, source.episodes.lengths))
        values.append(predict(value, source.episodes, frames, peers))
        returns.append(source.returns(reward)[frames])
        lengths += source.episodes.lengths[chosen].tolist()
        ends += [end for end, is_heldout in zip(source.ends, chosen, strict=True) if is_heldout]
    if not values:
        raise ValueError("no episode is held out (a source needs two), so the value cannot be judged")
    return calibration(np.concatenate(values), np.concatenate(returns), lengths, ends)


def calibration(
    values: Float64[np.ndarray, " n"],
    returns: Float64[np.ndarray, " n"],
    lengths: Sequence[int],
    ends: Sequence[Outcome],
) -> Calibration:
    """Return how well the values of all frames of some episodes foretell their returns."""
    is_constant = values.std() == 0 or returns.std() == 0
    tenths = np.clip(((values + 1) * _CALIBRATION_BINS).astype(int), 0, _CALIBRATION_BINS - 1)
    gaps = [abs((values - returns)[tenths == i].sum()) for i in np.unique(tenths)]
    middles = np.cumsum(lengths) - np.array(lengths) + np.array(lengths) // 2
    succeeded = np.array([end is Outcome.SUCCESS for end in ends])
    return Calibration(
        num_episodes=len(lengths),
        num_frames=len(values),
        correlation=None if is_constant else float(np.corrcoef(values, returns)[0, 1]),
        calibration_error=float(sum(gaps) / len(values)),
        error=float(np.abs(values - returns).mean()),
        separation=_area_under_curve(values[middles][succeeded], values[middles][~succeeded]),
    )


def _area_under_curve(higher: Float64[np.ndarray, " p"], lower: Float64[np.ndarray, " q"]) -> float | None:
    """Return the chance that one of `higher` is above one of `lower`, equal ones counted half."""
    if not len(higher) or not len(lower):
        return None
    difference = higher[:, None] - lower
    return float((difference > 0).mean() + 0.5 * (difference == 0).mean())
