"""Sources of training data: sets of episodes, how often each is drawn, and batches of windows from them.

A window starts at every frame. Axes: n frame (window) of a set, b drawn window, h action horizon.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int64

from pi0.ript.data.records import EpisodeDataError
from pi0.ript.episodes import EpisodeSet
from pi0.ript.labels.returns import Outcome, RewardConfig, frame_returns, set_outcomes
from pi0.ript.windows import Windows

AdvantageMode = Literal["on", "use", "ignore"]
"""OpenTau's names. on: always positive; use: as the advantage says; ignore: no indicator."""


class Role(StrEnum):
    """What the episodes of a source are."""

    DEMONSTRATIONS = "demonstrations"
    ROLLOUTS = "rollouts"


@dataclass(frozen=True)
class Source:
    """The episodes of one data set, as training uses them."""

    name: str
    episodes: EpisodeSet
    advantage: AdvantageMode = "use"
    role: Role | None = None
    """None: nobody knows."""
    weight: float | None = None
    """Relative frequency of its windows; None: as many as it has frames."""
    deadlines: Mapping[str, int] | None = None
    """Task id -> steps after which an episode without success counts as truncated; None: none does."""

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

    @property
    def ends(self) -> tuple[Outcome, ...]:
        """Return how each episode ended."""
        return set_outcomes(self.episodes, self.deadlines)

    def returns(self, reward: RewardConfig) -> Float64[np.ndarray, " n"]:
        """Return the return of each frame."""
        return frame_returns(self.episodes.lengths.tolist(), self.ends, reward)

    def episode_tasks(self) -> list[str]:
        """Return the task of each episode: its id, or in a set made elsewhere its instruction."""
        return [labels.task_id or labels.instruction for labels in self.episodes.labels]

    def frame_tasks(self) -> list[str]:
        """Return the task of each frame."""
        return _by_frame(self.episodes, self.episode_tasks())


def frame_windows(episodes: EpisodeSet, horizon: int) -> Windows:
    """Return a window at every frame of every episode; images and states are not copied."""
    ends = np.repeat(episodes.starts + episodes.lengths, episodes.lengths)[:, None]
    steps = np.arange(len(ends))[:, None] + np.arange(horizon)
    return Windows(
        images=episodes.images,
        states=episodes.states,
        actions=episodes.actions[np.minimum(steps, ends - 1)],
        is_pad=steps >= ends,
        instructions=_by_frame(episodes, [labels.instruction for labels in episodes.labels]),
        advantages=np.zeros(len(ends), np.float32),
    )


class Mixture:
    """Draws windows of several sources: first the source by its weight, then one of its windows, uniformly.

    Windows are numbered through all sources, one source after the other.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        horizon: int,
        usable: Sequence[Bool[np.ndarray, " _"]] | None = None,
    ) -> None:
        """Prepare to draw; windows that are not `usable` (one array per source) are never drawn.

        Raises:
            EpisodeDataError: A source has no usable window and its weight is not 0.
        """
        if not sources:
            raise EpisodeDataError("sources: expected at least one set of episodes, found none")
        masks = [np.ones(source.num_frames, bool) for source in sources] if usable is None else usable
        self._windows = [frame_windows(source.episodes, horizon) for source in sources]
        self._firsts = np.cumsum([0, *(source.num_frames for source in sources)])
        self._usable = [np.flatnonzero(m) + i for m, i in zip(masks, self._firsts[:-1], strict=True)]
        weights = [
            len(windows) if source.weight is None else source.weight
            for source, windows in zip(sources, self._usable, strict=True)
        ]
        found = zip(sources, self._usable, strict=True)
        empty = [source.name for source, windows in found if source.weight != 0 and not len(windows)]
        if empty or not sum(weights):
            raise EpisodeDataError(
                f"nothing to train on in {empty or 'any source: all weights are 0'}; give it labels or "
                "weight, or leave it out"
            )
        self._shares = np.array(weights, float) / sum(weights)

    def draw(self, count: int, seed: Sequence[int]) -> Int64[np.ndarray, " b"]:
        """Return the numbers of windows drawn with replacement, in order: a function of the seed alone."""
        rng = np.random.default_rng(tuple(seed))
        sources = rng.choice(len(self._usable), size=count, p=self._shares).tolist()
        places = rng.random(count).tolist()
        drawn = [self._usable[s][int(p * len(self._usable[s]))] for s, p in zip(sources, places, strict=True)]
        return np.sort(np.array(drawn, np.int64))

    def batch(self, windows: Int64[np.ndarray, " b"]) -> dict[str, Any]:
        """Return windows, given in order of their numbers, as a batch for a policy or a value function."""
        cuts = np.searchsorted(windows, self._firsts)
        parts = [
            w.batch(windows[i:j] - first)
            for w, first, i, j in zip(self._windows, self._firsts, cuts[:-1], cuts[1:], strict=False)
            if j > i
        ]
        joined: dict[str, Any] = {k: torch.cat([p[k] for p in parts]) for k in parts[0] if k != "task"}
        return {**joined, "task": [t for p in parts for t in p["task"]], "window": torch.from_numpy(windows)}


def _by_frame(episodes: EpisodeSet, values: Sequence[str]) -> list[str]:
    return [v for v, length in zip(values, episodes.lengths.tolist(), strict=True) for _ in range(length)]
