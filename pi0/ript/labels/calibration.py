"""Values of frames, and how well they foretell returns on episodes that were not trained on.

Axes: n frame of a set, e episode.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int64

from pi0.ript.data.frame_set import FrameSet
from pi0.ript.data.windows import MixtureWindows
from pi0.ript.interruption import leave_if_asked, until_stopped
from pi0.ript.labels.returns import Outcome, RewardConfig
from pi0.ript.labels.sources import Source
from pi0.ript.peers import ALONE, Peers, gather_shares, share
from pi0.ript.progress import progress_bar
from pi0.ript.windows import batches
from pi0.value import ValueFunction

_CALIBRATION_BINS = 10


@dataclass(frozen=True)
class Calibration:
    """How well values foretell returns, on episodes that were not trained on."""

    num_episodes: int
    num_frames: int
    correlation: float | None
    """Correlation of value and return over all frames; None if one of them is constant."""
    calibration_error: float
    """Mean distance of value and mean return, over tenths of the range of values, weighted by frames."""
    error: float
    """Mean absolute difference of value and return."""
    separation: float | None
    """Chance that a success is valued above a failure, both in the middle of their episode (AUC); None if all
    episodes ended alike."""


def heldout_episodes(source: Source, fraction: float, seed: Sequence[int] = (0,)) -> Bool[np.ndarray, " e"]:
    """Return which episodes of a source are kept from training: the same ones whatever the other sources.

    Every source keeps at least one to train on, and one to judge by if it has two.
    """
    n = source.frames.num_episodes
    count = min(max(1, round(fraction * n)), n - 1)
    rng = np.random.default_rng((*seed, zlib.crc32(source.name.encode())))
    return np.isin(np.arange(n), rng.permutation(n)[:count])


def predict(
    value: ValueFunction,
    frames: FrameSet,
    rows: Int64[np.ndarray, " k"] | None = None,
    peers: Peers = ALONE,
    batch_size: int = 256,
) -> Float64[np.ndarray, " k"]:
    """Return the values of some frames of a set, None: of all; peers share the work and get them all.

    Raises:
        StoppedError: A process was asked to stop.
    """
    windows = MixtureWindows([frames], value.features, 1)
    parts = batches(np.arange(frames.num_frames) if rows is None else rows, batch_size)
    bar = progress_bar(share(parts, peers), unit="batch", desc="values", leave=False, disable=peers.rank > 0)
    values = [value.values(windows.batch(part)).double().cpu().numpy() for part in until_stopped(bar, peers)]
    leave_if_asked(peers)
    return np.concatenate(gather_shares(values, peers))


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
        rows = source.frames.rows(chosen)
        values.append(predict(value, source.frames, rows, peers))
        returns.append(source.returns(reward)[rows])
        lengths += source.frames.lengths[chosen].tolist()
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
