"""Which episodes are for validation, and the order in which a mixture's frames are drawn.

The order is a function of seed and position alone.

An epoch has as many draws as there are frames. Each data set has its exact share of them, and goes through
all its frames before one comes again. Axes: b draw, e selected episode of a data set.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int64

from pi0.ript.data.records import EpisodeDataError

_SPLIT, _FRAMES, _SETS = 11, 13, 14  # keep these draws apart from others of the same seed


def validation_episodes(episodes: Int64[np.ndarray, " e"], ratio: float, seed: int) -> Bool[np.ndarray, " e"]:
    """Return which episodes, given by their numbers in the data set, are for validation.

    Every episode has a random rank of its own that depends on seed and number alone; those of lowest rank are
    taken: `ratio` of them, at least one unless the ratio is 0, never all. So other data sets change nothing,
    and episodes added to this one move few.
    """
    count = 0 if ratio == 0 else min(max(1, round(ratio * len(episodes))), len(episodes) - 1)
    ranks = [np.random.default_rng((seed, _SPLIT, number)).random() for number in episodes.tolist()]
    chosen = np.zeros(len(episodes), bool)
    chosen[np.argsort(ranks)[:count]] = True
    return chosen


class MixtureOrder:
    """An endless order of draws; a draw is (data set, frame, how often the frame came before)."""

    def __init__(
        self, rows: Sequence[Int64[np.ndarray, " _"]], weights: Sequence[float] | None, seed: int
    ) -> None:
        """Prepare the order.

        Args:
            rows: The usable frames of each data set.
            weights: How often each data set is drawn, relative to the others; None: as often as it has
                frames, so that each frame comes exactly once in an epoch.
            seed: Of the order.

        Raises:
            EpisodeDataError: A data set that has weight would never be drawn.
        """
        self._rows, self._seed = list(rows), seed
        lengths = np.array([len(r) for r in rows], np.int64)
        relative = lengths if weights is None else np.array(weights, np.float64)
        self.epoch_length = int(lengths[relative > 0].sum())
        """Draws in an epoch."""
        self.counts = _apportion(relative, self.epoch_length)
        """Draws from each data set in an epoch."""
        never = np.flatnonzero((relative > 0) & ((self.counts == 0) | (lengths == 0))).tolist()
        if never or not self.epoch_length:
            raise EpisodeDataError(
                f"data sets number {never or 'all'}: no frames, or a weight below one frame in an epoch of "
                f"{self.epoch_length}; raise the weight or leave the set out"
            )
        self._epoch: tuple[int, Int64[np.ndarray, "_ 3"]] | None = None

    def draws(self, start: int, stop: int) -> Int64[np.ndarray, "b 3"]:
        """Return the draws from one position to another, which can lie in different epochs."""
        parts = []
        for epoch in range(start // self.epoch_length, -(-stop // self.epoch_length)):
            first = epoch * self.epoch_length
            parts.append(self._draws_of(epoch)[max(start - first, 0) : stop - first])
        return np.concatenate(parts)

    @property
    def fingerprint(self) -> str:
        """Return what tells whether a position means the same draws elsewhere."""
        digest = hashlib.sha256(repr((self._seed, self.counts.tolist())).encode())
        for rows in self._rows:
            digest.update(rows.tobytes())
        return digest.hexdigest()[:16]

    def _draws_of(self, epoch: int) -> Int64[np.ndarray, "_ 3"]:
        if self._epoch is None or self._epoch[0] != epoch:
            parts = [self._draws_from(number, epoch) for number in np.flatnonzero(self.counts).tolist()]
            rng = np.random.default_rng((self._seed, _SETS, epoch))
            self._epoch = epoch, rng.permutation(np.concatenate(parts))
        return self._epoch[1]

    def _draws_from(self, number: int, epoch: int) -> Int64[np.ndarray, "_ 3"]:
        """Return one data set's draws of an epoch: the next part of its passes over all its frames."""
        rows, count = self._rows[number], int(self.counts[number])
        visits, places = np.divmod(np.arange(epoch * count, (epoch + 1) * count), len(rows))
        drawn = np.empty((count, 3), np.int64)
        for visit in range(int(visits[0]), int(visits[-1]) + 1):
            rng = np.random.default_rng((self._seed, _FRAMES, number, visit))
            here = visits == visit
            drawn[here, 1] = rng.permutation(rows)[places[here]]
        drawn[:, 0], drawn[:, 2] = number, visits
        return drawn


def _apportion(weights: np.ndarray, total: int) -> Int64[np.ndarray, " _"]:
    """Return whole numbers that sum to the total, each within one of its share (largest remainder)."""
    exact = weights / weights.sum() * total
    counts = np.floor(exact).astype(np.int64)
    counts[np.argsort(counts - exact, kind="stable")[: total - counts.sum()]] += 1
    return counts
