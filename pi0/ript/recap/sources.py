"""Sources of training data: sets of episodes, how often each is drawn, and the windows drawn from it.

Axes: n frame (window) of a set, e episode, w drawn window, h action horizon.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float64, Int64

from pi0.ript.episodes import EpisodeDataError, EpisodeSet
from pi0.ript.windows import Windows

AdvantageMode = Literal["on", "use", "ignore"]
"""OpenTau's names. on: always positive; use: as the advantage says; ignore: no indicator."""


@dataclass(frozen=True)
class Source:
    """The episodes of one data set, as training uses them."""

    name: str
    episodes: EpisodeSet
    advantage: AdvantageMode = "use"
    weight: float | None = None
    """Relative frequency of its windows; None: as many as it has frames."""

    def __post_init__(self) -> None:
        """Check the settings."""
        if self.advantage not in ("on", "use", "ignore"):
            raise ValueError(
                f"{self.name}: advantage: expected 'on', 'use' or 'ignore', found {self.advantage!r}"
            )
        if self.weight is not None and not self.weight >= 0:
            raise ValueError(f"{self.name}: weight: expected at least 0, found {self.weight}")
        if not len(self.episodes):
            raise EpisodeDataError(f"{self.name}: holds no episode")

    @property
    def num_frames(self) -> int:
        """Return the number of frames of all episodes."""
        return int(self.episodes.lengths.sum())

    def frame_tasks(self) -> list[str]:
        """Return the task of each frame: its id, or in a set made elsewhere its instruction."""
        names = [labels.task_id or labels.instruction for labels in self.episodes.labels]
        return [
            n for n, length in zip(names, self.episodes.lengths.tolist(), strict=True) for _ in range(length)
        ]


def frame_windows(episodes: EpisodeSet, horizon: int) -> Windows:
    """Return a window at every frame of every episode; images and states are not copied."""
    ends = np.repeat(episodes.starts + episodes.lengths, episodes.lengths)
    steps = np.arange(len(ends))[:, None] + np.arange(horizon)
    return Windows(
        images=episodes.images,
        states=episodes.states,
        actions=episodes.actions[np.minimum(steps, ends[:, None] - 1)],
        is_pad=steps >= ends[:, None],
        instructions=[
            labels.instruction
            for labels, length in zip(episodes.labels, episodes.lengths.tolist(), strict=True)
            for _ in range(length)
        ],
        advantages=np.zeros(len(ends), np.float32),
    )


def episode_of_frame(episodes: EpisodeSet) -> Int64[np.ndarray, " n"]:
    """Return the number of the episode that each frame belongs to."""
    return np.repeat(np.arange(len(episodes)), episodes.lengths)


class Mixture:
    """Draws windows of several sources: first the source by its weight, then one of its windows, uniformly.

    A drawn window is its place among the windows of all sources, one source after the other.
    """

    def __init__(
        self, sources: Sequence[Source], usable: Sequence[Bool[np.ndarray, " n"]] | None = None
    ) -> None:
        """Prepare to draw; windows that are not `usable` (one array per source) are never drawn.

        Raises:
            EpisodeDataError: A source with weight has no usable window.
        """
        if not sources:
            raise EpisodeDataError("sources: expected at least one set of episodes, found none")
        masks = usable or [np.ones(source.num_frames, bool) for source in sources]
        self.offsets = np.cumsum([0, *(source.num_frames for source in sources)])
        self._rows = [np.flatnonzero(mask) + first for mask, first in zip(masks, self.offsets, strict=False)]
        weights = [
            len(rows) if source.weight is None else source.weight
            for source, rows in zip(sources, self._rows, strict=True)
        ]
        empty = [
            s.name for s, w, rows in zip(sources, weights, self._rows, strict=True) if w and not len(rows)
        ]
        if empty or not sum(weights):
            raise EpisodeDataError(
                f"nothing to train on in {empty or 'any source: all weights are 0'}; give it labels or "
                "weight, or leave it out"
            )
        self._shares: Float64[np.ndarray, " s"] = np.array(weights, float) / sum(weights)

    def draw(self, count: int, seed: Sequence[int]) -> Int64[np.ndarray, " w"]:
        """Return windows, with replacement: a function of the seed alone."""
        rng = np.random.default_rng(tuple(seed))
        sources = rng.choice(len(self._rows), size=count, p=self._shares)
        places = rng.random(count)
        return np.array(
            [self._rows[s][int(p * len(self._rows[s]))] for s, p in zip(sources, places, strict=True)]
        )
