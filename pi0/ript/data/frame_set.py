"""The frames of a data set, as everything that learns from them or shows them gets them.

Axes: n frame of the set, e episode, s state dim, a action dim, h w image size.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64

from pi0.ript.data.cache import ImageCache
from pi0.ript.data.images import ImageColumn
from pi0.ript.data.records import Episode, EpisodeDataError, EpisodeLabels


@dataclass(frozen=True)
class FrameSet:
    """Frames, episode after episode, from disk or in memory.

    A frame is known by its row: its place in the order of episode and frame, whatever numbers the set stores.
    """

    name: str
    """The set's directory, or what it is called."""
    fps: float
    states: Float32[np.ndarray, "n s"]
    actions: Float32[np.ndarray, "n a"]
    instructions: tuple[str, ...]
    """All that there are, each once."""
    instruction_of: Int64[np.ndarray, " n"]
    """Of each frame, in `instructions`."""
    timestamps: Float64[np.ndarray, " n"]
    """As the set stores them, in seconds."""
    episodes: Int64[np.ndarray, " e"]
    """Number of each episode in the set's files, ascending."""
    lengths: Int64[np.ndarray, " e"]
    labels: tuple[EpisodeLabels, ...]
    """Of each episode; the instruction is that of its first frame."""
    images: Mapping[str, ImageColumn | np.ndarray]
    """By camera, as a batch names it: arrays (n, h, w, 3), or what is indexed like them and decodes."""
    selected: Bool[np.ndarray, " e"]
    """Which episodes were asked for; only these are known to be without fault."""
    collection: Mapping[str, Any] = field(default_factory=dict)
    """How the set was made, and its `content_hash`; empty for one made elsewhere."""

    @property
    def num_frames(self) -> int:
        """Return the number of frames."""
        return len(self.states)

    @property
    def starts(self) -> Int64[np.ndarray, " e"]:
        """Return the first row of each episode."""
        return np.cumsum(self.lengths) - self.lengths

    @property
    def ends(self) -> Int64[np.ndarray, " n"]:
        """Return the row behind the episode of each frame."""
        return np.repeat(np.cumsum(self.lengths), self.lengths)

    def image_sizes(self, camera: str) -> tuple[tuple[int, int], ...]:
        """Return the heights and widths of a camera's images; () if the set lacks it."""
        column = self.images.get(camera)
        if column is None:
            return ()
        return column.sizes if isinstance(column, ImageColumn) else (column.shape[1:3],)

    def rows(self, chosen: Bool[np.ndarray, " e"]) -> Int64[np.ndarray, " _"]:
        """Return the rows of all frames of some episodes."""
        return np.flatnonzero(np.repeat(chosen, self.lengths))

    def frame_instructions(self) -> list[str]:
        """Return the instruction of each frame."""
        return [self.instructions[i] for i in self.instruction_of.tolist()]

    def episode(self, place: int) -> Episode:
        """Return an episode by its place among all, with its images decoded."""
        first = int(self.starts[place])
        rows = slice(first, first + int(self.lengths[place]))
        images = {camera: column[rows] for camera, column in self.images.items()}
        return Episode(images, self.states[rows], self.actions[rows], self.labels[place])

    def __iter__(self) -> Iterator[Episode]:
        """Yield the episodes in order."""
        return (self.episode(place) for place in range(len(self.lengths)))

    def keep_images(self, cache: ImageCache, rows: Int64[np.ndarray, " _"] | None = None) -> int:
        """Keep the images of as many frames as the cache has room for, once decoded; return how many.

        `rows`: the frames that are worth it, None: those of the selected episodes.
        """
        columns = [column for column in self.images.values() if isinstance(column, ImageColumn)]
        wanted = self.rows(self.selected) if rows is None else rows
        kept = cache.reserve([column.sizes[0] for column in columns], self.num_frames, wanted)
        for column, room in zip(columns, kept, strict=False):
            column.kept = room
        return kept[0].num_kept if kept else 0

    def require_success(self) -> None:
        """Raise EpisodeDataError unless it is known of every selected episode whether it succeeded."""
        unknown = [number for number, labels, is_selected
                   in zip(self.episodes.tolist(), self.labels, self.selected.tolist(), strict=True)
                   if is_selected and labels.success is None]  # fmt: skip
        if unknown:
            raise EpisodeDataError(
                f"{self.name}: expected success labels (column 'success' of its frames or of meta/episodes), "
                f"found none for {len(unknown)} of {len(self.episodes)} episodes, the first is {unknown[0]}; "
                "record it with pi0-demos, or if every episode is known to succeed say so: assume_success"
            )
