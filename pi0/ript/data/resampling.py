"""Chunks of actions at another rate than the data set's, by OpenTau's rules.

Axes: n frame of a set, b window, h action horizon, a action dim.
"""

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64


def chunk_offsets(chunk_size: int, fps: float, action_freq: float | None) -> Float64[np.ndarray, " h"]:
    """Return where the actions of a chunk lie after its first frame, in frames of the data set."""
    steps = np.arange(chunk_size, dtype=np.float64)
    return steps if action_freq is None else steps / action_freq * fps


def action_chunks(
    actions: Float32[np.ndarray, "n a"],
    ends: Int64[np.ndarray, " n"],
    rows: Int64[np.ndarray, " b"],
    offsets: Float64[np.ndarray, " h"],
    strategy: str,
) -> tuple[Float32[np.ndarray, "b h a"], Bool[np.ndarray, "b h"]]:
    """Return the actions from some frames on, and where they lie beyond the episode (its last is repeated).

    Args:
        actions: Of all frames.
        ends: The frame behind the episode of each frame.
        rows: Where the chunks begin.
        offsets: See `chunk_offsets`.
        strategy: "nearest": the action at the rounded place, halves to the even frame; "linear": between the
            actions before and behind it.
    """
    places = rows[:, None] + offsets
    inside = np.minimum(places, ends[rows][:, None] - 1)
    if strategy == "nearest":
        return actions[np.round(inside).astype(np.int64)], places >= ends[rows][:, None]
    before = np.floor(inside).astype(np.int64)
    share = (inside - before).astype(np.float32)[..., None]
    behind = np.ceil(inside).astype(np.int64)
    return (1 - share) * actions[before] + share * actions[behind], places >= ends[rows][:, None]
