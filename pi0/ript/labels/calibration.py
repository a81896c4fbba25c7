"""Values of frames, and how well they foretell returns on episodes that were not trained on.

Axes: n frame of a set, e episode.
"""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, Int64

from pi0.ript.data.frame_set import FrameSet
from pi0.ript.data.windows import MixtureWindows
from pi0.ript.interruption import leave_if_asked, until_stopped
from pi0.ript.labels.concordance import Concordance, concordance
from pi0.ript.labels.settings import RewardConfig
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
    order: Concordance | None = None
    """How well values rank the episodes; None: it was not asked, by version 0.1.0."""

    @classmethod
    def from_dict(cls, figures: Mapping[str, Any]) -> "Calibration":
        """Return what `asdict` gave; other figures, as version 0.1.0 wrote, are left out."""
        known = {f.name: figures[f.name] for f in fields(cls) if f.name in figures}
        order = known.pop("order", None)
        return cls(**known, order=None if order is None else Concordance(**order))


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
    values, returns, lengths, tasks = [], [], [], []
    for source, chosen in zip(sources, heldout, strict=True):
        if not chosen.any():
            continue
        rows = source.frames.rows(chosen)
        values.append(predict(value, source.frames, rows, peers))
        returns.append(source.returns(reward)[rows])
        lengths += source.frames.lengths[chosen].tolist()
        names = np.array(source.frame_tasks())[source.frames.starts]
        tasks += names[chosen].tolist()
    if not values:
        raise ValueError("no episode is held out (a source needs two), so the value cannot be judged")
    return calibration(np.concatenate(values), np.concatenate(returns), lengths, tasks)


def calibration(
    values: Float64[np.ndarray, " n"],
    returns: Float64[np.ndarray, " n"],
    lengths: Sequence[int],
    tasks: Sequence[str],
) -> Calibration:
    """Return how well the values of all frames of some episodes foretell their returns."""
    is_constant = values.std() == 0 or returns.std() == 0
    tenths = np.clip(((values + 1) * _CALIBRATION_BINS).astype(int), 0, _CALIBRATION_BINS - 1)
    gaps = [abs((values - returns)[tenths == i].sum()) for i in np.unique(tenths)]
    starts = np.cumsum(lengths)[:-1]
    return Calibration(
        num_episodes=len(lengths),
        num_frames=len(values),
        correlation=None if is_constant else float(np.corrcoef(values, returns)[0, 1]),
        calibration_error=float(sum(gaps) / len(values)),
        error=float(np.abs(values - returns).mean()),
        order=concordance(np.split(values, starts), np.split(returns, starts), tasks),
    )
