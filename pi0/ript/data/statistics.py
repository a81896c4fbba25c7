"""Normalisation statistics of states and actions over a mixture of data sets.

Axes: n frame (or action of a window) of a set, d feature dim.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from pi0.embodiment import plain_statistics
from pi0.features import ACTION, STATE
from pi0.normalize import Statistics
from pi0.ript.data.frame_set import FrameSet
from pi0.ript.data.settings import MixtureSettings
from pi0.ript.data.windows import action_chunks, chunk_offsets
from pi0.ript.files import write_json
from pi0.ript.progress import progress_bar

FILE_NAME = "processor/statistics.json"
"""Where a run keeps them, below its directory."""
_MOST_WINDOWS = 20_000
"""Of a data set, evenly spaced: enough for relative actions, of which there are chunk_size per window."""


def pooled_statistics(
    values: Sequence[Float[np.ndarray, "_ d"]], weights: Sequence[float] | None = None
) -> dict[str, Tensor]:
    """Return mean, std, min, max, q01, q99 and count of data sets that are drawn by weight, in float32.

    The moments are GR00T's and OpenTau's: mean `sum w m`, variance `sum w (s^2 + m^2) - mean^2`. Quantiles
    are those of the weighted samples, not bounds made of the sets' own; if weights are the shares of the
    samples (None), all are those of the sets joined.
    """
    parts = [np.asarray(x, np.float64) for x in values]
    lengths = np.array([len(x) for x in parts], np.float64)
    shares = lengths if weights is None else np.where(lengths > 0, np.array(weights, np.float64), 0.0)
    if not shares.sum() > 0:
        raise ValueError(
            f"weights: expected samples in a set that has weight, found {lengths} samples, {weights}"
        )
    used = [(x, w / shares.sum()) for x, w in zip(parts, shares, strict=True) if w > 0]
    mean = sum(w * x.mean(0) for x, w in used)
    variance = sum(w * (x.var(0) + (x.mean(0) - mean) ** 2) for x, w in used)  # the same, and never negative
    samples = np.concatenate([x for x, _ in used])
    sample_weights = np.concatenate([np.full(len(x), w / len(x)) for x, w in used])
    quantiles = [_weighted_quantiles(column, sample_weights, (0.01, 0.99)) for column in samples.T]
    q01, q99 = np.array(quantiles).T
    numbers = {
        "mean": mean,
        "std": np.sqrt(variance),
        "min": samples.min(0),
        "max": samples.max(0),
        "q01": q01,
        "q99": q99,
        "count": np.array([len(samples)]),
    }
    return {name: torch.as_tensor(np.asarray(value), dtype=torch.float32) for name, value in numbers.items()}


def mixture_statistics(
    sets: Sequence[FrameSet],
    rows: Sequence[Int64[np.ndarray, " _"]],
    weights: Sequence[float] | None = None,
    *,
    relative_actions: Sequence[bool] = (),
    chunk_size: int = 1,
    settings: MixtureSettings | None = None,
) -> dict[str, dict[str, Tensor]]:
    """Return the statistics of states and actions, as `PI0Policy` takes them; shows a progress bar.

    Args:
        sets: The data sets.
        rows: The frames of each set that count.
        weights: Of the sets; None: their numbers of frames.
        relative_actions: As in `FeatureConfig`; if any is, actions are those of whole windows less the state
            at their start, as the policy sees them. Where the set is large, of evenly spaced windows.
        chunk_size: Actions of a window; matters for relative actions alone.
        settings: How windows are resampled; default: not at all.
    """
    states, actions = [], []
    for frames, chosen in progress_bar(
        list(zip(sets, rows, strict=True)), unit="data set", desc="statistics"
    ):
        states.append(frames.states[chosen])
        actions.append(policy_actions(frames, chosen, relative_actions, chunk_size, settings))
    shares = [float(len(x)) for x in states] if weights is None else weights
    return {STATE: pooled_statistics(states, shares), ACTION: pooled_statistics(actions, shares)}


def save_statistics(path: Path, statistics: Statistics, made_from: dict[str, Any]) -> None:
    """Write statistics, and how they were made, as JSON, in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {"statistics": plain_statistics(statistics), "made_from": made_from})


def policy_actions(
    frames: FrameSet,
    rows: Int64[np.ndarray, " _"],
    relative_actions: Sequence[bool] = (),
    chunk_size: int = 1,
    settings: MixtureSettings | None = None,
) -> Float[np.ndarray, "_ d"]:
    """Return the actions at some frames as a policy sees them; arguments as in `mixture_statistics`."""
    if not any(relative_actions):
        return frames.actions[rows]
    settings = settings or MixtureSettings()
    rows = rows[:: -(-len(rows) // _MOST_WINDOWS)] if len(rows) else rows
    offsets = chunk_offsets(chunk_size, frames.fps, settings.action_freq)
    chunks, is_pad = action_chunks(
        frames.actions, frames.ends, rows, offsets, settings.vector_resample_strategy
    )
    width = len(relative_actions)
    base = np.zeros((len(rows), 1, frames.actions.shape[1]), np.float32)
    base[:, 0, :width] = frames.states[rows, :width] * np.array(relative_actions, np.float32)
    return (chunks - base)[~is_pad]


def _weighted_quantiles(
    values: Float64[np.ndarray, " n"], weights: Float64[np.ndarray, " n"], levels: Sequence[float]
) -> list[float]:
    """Return quantiles, linear between samples; for equal weights those of `np.quantile`."""
    order = np.argsort(values, kind="stable")
    w = weights[order]
    # At the i-th sample (from 0) of n equal ones the level is i / (n - 1).
    before = np.cumsum(w) - w
    places = before / np.maximum(w.sum() - w, np.finfo(np.float64).tiny)
    return [float(np.interp(level, places, values[order])) for level in levels]
