"""Batches of windows that are drawn from several sources.

A window starts at every frame. Axis: b drawn window.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Int64

from pi0.features import FeatureConfig
from pi0.ript.data.records import EpisodeDataError
from pi0.ript.data.settings import MixtureSettings
from pi0.ript.data.windows import MixtureWindows
from pi0.ript.labels.sources import Source


class Mixture:
    """Draws windows of several sources uniformly: first the source, then one of its windows.

    Windows are numbered through all sources, one source after the other.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        features: FeatureConfig,
        chunk_size: int,
        usable: Sequence[Bool[np.ndarray, " _"]] | None = None,
        image_size: int | None = None,
    ) -> None:
        """Prepare to draw.

        Args:
            sources: The sources.
            features: Of the model: cameras and widths.
            chunk_size: Actions of a window.
            usable: Which windows of each source may be drawn; None: all.
            image_size: Pixels of the model's square images: those of sources are brought to it if they are
                of several sizes, as published demonstrations and rollouts are; None: they may not be.

        Raises:
            EpisodeDataError: A source does not fit the model, or has no usable window.
        """
        if not sources:
            raise EpisodeDataError("sources: expected at least one set of episodes, found none")
        masks = [np.ones(source.num_frames, bool) for source in sources] if usable is None else usable
        sets = [source.frames for source in sources]
        sizes = {size for x in sets for camera in features.present_cameras for size in x.image_sizes(camera)}
        settings = MixtureSettings(image_size=image_size if len(sizes) > 1 else None)
        self._windows = MixtureWindows(sets, features, chunk_size, settings)
        firsts = np.cumsum([0, *(source.num_frames for source in sources[:-1])])
        self._usable = [np.flatnonzero(m) + i for m, i in zip(masks, firsts, strict=True)]
        empty = [source.name for source, rows in zip(sources, self._usable, strict=True) if not len(rows)]
        if empty:
            raise EpisodeDataError(f"nothing to train on in {empty}; give it labels, or leave it out")
        lengths = np.array([len(rows) for rows in self._usable], float)
        self._shares = lengths / lengths.sum()

    @property
    def num_windows(self) -> int:
        """The different windows that can be drawn."""
        return sum(map(len, self._usable))

    def draw(self, count: int, seed: Sequence[int]) -> Int64[np.ndarray, " b"]:
        """Return the numbers of windows drawn with replacement, in order: a function of the seed alone."""
        rng = np.random.default_rng(tuple(seed))
        sources = rng.choice(len(self._usable), size=count, p=self._shares).tolist()
        places = rng.random(count).tolist()
        drawn = [self._usable[s][int(p * len(self._usable[s]))] for s, p in zip(sources, places, strict=True)]
        return np.sort(np.array(drawn, np.int64))

    def batch(self, windows: Int64[np.ndarray, " b"]) -> dict[str, Any]:
        """Return windows as a batch for a policy or a value function."""
        return self._windows.batch(windows)
