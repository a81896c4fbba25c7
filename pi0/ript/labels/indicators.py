"""The indicator of each frame that a policy is trained with, and weights by advantage.

Axes: n frame of a set, b window of a batch.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64

from pi0 import Indicator
from pi0.ript.labels.sources import Source

_DROPOUT_STREAM = 1  # keeps the draws of the dropout apart from those of the noise


def indicators(source: Source, positive: Bool[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
    """Return the indicator of each frame, as the source's mode says."""
    if source.advantage == "use":
        return np.where(positive, int(Indicator.POSITIVE), int(Indicator.NEGATIVE))
    indicator = Indicator.POSITIVE if source.advantage == "on" else Indicator.NONE
    return np.full(source.num_frames, int(indicator))


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
