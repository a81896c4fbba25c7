"""Trains a value function on returns, and says on held-out episodes how good it is.

Axes: n frame of a set, m frame of all sets, e episode.
"""

import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int64
from tqdm import tqdm

from pi0.ript.episodes import EpisodeSet
from pi0.ript.recap.returns import Outcome, RewardConfig
from pi0.ript.recap.sources import Mixture, Source, frame_windows
from pi0.ript.windows import batches
from pi0.value import ValueFunction

_CALIBRATION_BINS = 10
_PREDICTION_BATCH = 256


@dataclass(frozen=True)
class ValueTraining:
    """How a value function is trained."""

    steps: int = 300
    batch_size: int = 64
    learning_rate: float = 1e-3  # level, then down to 0 over the last 30%
    weight_decay: float = 1e-3
    validation_fraction: float = 0.2  # of the episodes of each source
    seed: int = 0


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
    log: Callable[[dict[str, Any]], None] | None = None,
) -> Calibration:
    """Minimise the cross entropy of the returns' bins; return how good the values are on held-out episodes.

    Batches are a function of (seed, step). `log` receives the figures of every step.
    """
    if value.config.num_bins != reward.number_of_bins:
        raise ValueError(
            f"number_of_bins: expected the value function's {value.config.num_bins}, found "
            f"{reward.number_of_bins}"
        )
    heldout = [heldout_episodes(source, settings) for source in sources]
    usable = [~np.repeat(h, s.episodes.lengths) for h, s in zip(heldout, sources, strict=True)]
    mixture = Mixture(sources, 1, usable)
    returns = torch.from_numpy(np.concatenate([source.returns(reward) for source in sources]))
    optimizer = torch.optim.AdamW(
        value.parameters(),
        lr=settings.learning_rate,
        betas=(0.9, 0.95),
        weight_decay=settings.weight_decay,
    )
    value.train()
    with tqdm(range(settings.steps), unit="step", desc="value function") as bar:
        for step in bar:
            windows = mixture.draw(settings.batch_size, (settings.seed, step))
            loss = value.loss(mixture.batch(windows), returns[windows])
            optimizer.param_groups[0]["lr"] = settings.learning_rate * min(
                1.0, (settings.steps - step) / (0.3 * settings.steps)
            )
            optimizer.zero_grad()
            loss.cross_entropy.backward()
            torch.nn.utils.clip_grad_norm_(value.parameters(), 1.0)
            optimizer.step()
            row = {
                "step": step,
                "loss": loss.cross_entropy.item(),
                "train_accuracy": loss.accuracy.item(),
                "error": loss.error.item(),
            }
            bar.set_postfix(loss=f"{row['loss']:.3f}", train_accuracy=f"{row['train_accuracy']:.2f}")
            if log is not None:
                log(row)
    value.eval()
    return heldout_calibration(value, sources, reward, heldout)


def heldout_episodes(source: Source, settings: ValueTraining) -> Bool[np.ndarray, " e"]:
    """Return which episodes of a source are kept from training: the same ones whatever the other sources.

    Every source keeps at least one to train on, and one to judge by if it has two.
    """
    n = len(source.episodes)
    count = min(max(1, round(settings.validation_fraction * n)), n - 1) if settings.validation_fraction else 0
    rng = np.random.default_rng((settings.seed, zlib.crc32(source.name.encode())))
    return np.isin(np.arange(n), rng.permutation(n)[:count])


def predict(
    value: ValueFunction, episodes: EpisodeSet, frames: Int64[np.ndarray, " k"] | None = None
) -> Float64[np.ndarray, " k"]:
    """Return the values of some frames of a set; None: of all."""
    windows = frame_windows(episodes, 1)
    parts = batches(np.arange(len(windows)) if frames is None else frames, _PREDICTION_BATCH)
    found = [
        value.values(windows.batch(part)) for part in tqdm(parts, unit="batch", desc="values", leave=False)
    ]
    return torch.cat(found).double().cpu().numpy()


def heldout_calibration(
    value: ValueFunction,
    sources: Sequence[Source],
    reward: RewardConfig,
    heldout: Sequence[Bool[np.ndarray, " _"]],
) -> Calibration:
    """Return the calibration on the held-out episodes of all sources together."""
    values, returns, lengths, ends = [], [], [], []
    for source, chosen in zip(sources, heldout, strict=True):
        if not chosen.any():
            continue
        frames = np.flatnonzero(np.repeat(chosen, source.episodes.lengths))
        values.append(predict(value, source.episodes, frames))
        returns.append(source.returns(reward)[frames])
        lengths += source.episodes.lengths[chosen].tolist()
        ends += [end for end, is_heldout in zip(source.ends, chosen, strict=True) if is_heldout]
    if not values:
        raise ValueError("validation_fraction: no episode is held out, so the value cannot be judged")
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
