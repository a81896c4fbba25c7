"""The frames of a data set, as everything that learns from them or shows them gets them.

Axes: n frame of the set, e episode, s state dim, a action dim, h w image size.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64

from pi0.ript.data.cache import ImageCache
from pi0.ript.data.images import ImageColumn
from pi0.ript.data.records import IMAGE_PREFIX, Episode, EpisodeDataError, EpisodeLabels


def hash_arrays(arrays: Iterable[np.ndarray]) -> str:
    """Return the first 16 digits of the SHA-256 of arrays: their types, shapes and contents."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()[:16]


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
    is_corrected: Bool[np.ndarray, " n"]
    """In which frames a person acted in place of the policy (column `INTERVENTION`)."""
    dimension_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """What the set calls the numbers of a state and of an action, where it says so."""
    collection: Mapping[str, Any] = field(default_factory=dict)
    """How the set was made, and its `content_hash`; empty for one made elsewhere."""

    def frames_hash(self) -> str:
        """Return a hash of what the frames hold besides images, computed from them."""
        text = np.frombuffer("\n".join(self.frame_instructions()).encode(), np.uint8)
        return hash_arrays([self.states, self.actions, self.lengths, text])

    @classmethod
    def in_memory(
        cls, episodes: Sequence[Episode], fps: float | int, name: str = "episodes in memory"
    ) -> "FrameSet":
        """Return episodes as a set, with the content hash that they would have on disk."""
        labels, lengths = tuple(x.labels for x in episodes), [len(x) for x in episodes]
        instructions = tuple(dict.fromkeys(x.instruction for x in labels))
        hashes = "\n".join(x.content_hash() for x in episodes)
        return cls(
            name=name,
            fps=float(fps),
            states=np.concatenate([x.states for x in episodes]),
            actions=np.concatenate([x.actions for x in episodes]),
            instructions=instructions,
            instruction_of=np.repeat([instructions.index(x.instruction) for x in labels], lengths),
            timestamps=np.concatenate([np.arange(length) for length in lengths]) / fps,
            episodes=np.arange(len(episodes)),
            lengths=np.array(lengths, np.int64),
            labels=labels,
            images={
                IMAGE_PREFIX + camera: np.concatenate([x.images[camera] for x in episodes])
                for camera in episodes[0].images
            },
            selected=np.ones(len(episodes), bool),
            is_corrected=np.zeros(sum(lengths), bool),
            collection={"content_hash": hashlib.sha256(hashes.encode()).hexdigest()},
        )

    @property
    def num_frames(self) -> int:
        """Return the number of frames."""
        return len(self.states)

    @property
    def num_episodes(self) -> int:
        """Return the number of episodes."""
        return len(self.lengths)

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

    def instruction(self, row: int) -> str:
        """Return the instruction of a frame."""
        return self.instructions[self.instruction_of[row]]

    def frame_instructions(self) -> list[str]:
        """Return the instruction of each frame."""
        return [self.instructions[i] for i in self.instruction_of.tolist()]

    def frame_tasks(self, task_ids: Mapping[str, str] | None = None) -> list[str]:
        """Return the task of each frame: its episode's id, or its instruction's in `task_ids`, or that."""
        own = np.repeat(np.array([x.task_id for x in self.labels], object), self.lengths)
        return [x or (task_ids or {}).get(text, text)
                for x, text in zip(own, self.frame_instructions(), strict=True)]  # fmt: skip

    def episode(self, place: int) -> Episode:
        """Return an episode by its place among all, with its images decoded."""
        first = int(self.starts[place])
        rows = slice(first, first + int(self.lengths[place]))
        images = {camera.removeprefix(IMAGE_PREFIX): column[rows] for camera, column in self.images.items()}
        return Episode(images, self.states[rows], self.actions[rows], self.labels[place])

    def __iter__(self) -> Iterator[Episode]:
        """Yield the episodes in order."""
        return (self.episode(place) for place in range(self.num_episodes))

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

    def forget_images(self, cache: ImageCache) -> None:
        """Give the room of the images that are kept back to the cache."""
        for column in self.images.values():
            if isinstance(column, ImageColumn) and column.kept is not None:
                cache.release(column.kept)
                column.kept = None

    def successes(self) -> Bool[np.ndarray, " e"]:
        """Return which episodes succeeded; False for those that nobody knows it of and that are not selected.

        Raises:
            EpisodeDataError: Nobody knows it of a selected episode.
        """
        unknown = [number for number, labels, is_selected
                   in zip(self.episodes.tolist(), self.labels, self.selected.tolist(), strict=True)
                   if is_selected and labels.success is None]  # fmt: skip
        if unknown:
            raise EpisodeDataError(
                f"{self.name}: expected success labels (column 'success' of its frames or of meta/episodes), "
                f"found none for {len(unknown)} of {self.num_episodes} episodes, the first is {unknown[0]}; "
                "label it with pi0-label, or if every episode is known to succeed set assume_success"
            )
        return np.array([labels.success is True for labels in self.labels])
