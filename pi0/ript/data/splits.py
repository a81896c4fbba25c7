"""Which episodes are for validation. Axis: e selected episode of a data set."""

import numpy as np
from jaxtyping import Bool, Int64

_STREAM = 11  # keeps these draws apart from others of the same seed


def validation_episodes(episodes: Int64[np.ndarray, " e"], ratio: float, seed: int) -> Bool[np.ndarray, " e"]:
    """Return which episodes, given by their numbers in the data set, are for validation.

    Every episode has a random rank of its own that depends on seed and number alone; those of lowest rank are
    taken: `ratio` of them, at least one unless the ratio is 0, never all. So other data sets change nothing,
    and episodes added to this one move few.
    """
    count = 0 if ratio == 0 else min(max(1, round(ratio * len(episodes))), len(episodes) - 1)
    ranks = [np.random.default_rng((seed, _STREAM, number)).random() for number in episodes.tolist()]
    chosen = np.zeros(len(episodes), bool)
    chosen[np.argsort(ranks)[:count]] = True
    return chosen
