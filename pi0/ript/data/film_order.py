"""Whether episodes point to each other's videos, which nothing but the pictures themselves can tell.

Where two episodes of one length exchange their places in the videos, every number still agrees. Recorders
write videos in the order of the frames; where that order is broken, the pictures are compared with their
statistics in meta/episodes, once as the set points to them and once in order.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from jaxtyping import Float64

from pi0.ript.data.tables import Fault
from pi0.ript.data.video import Video

_EPISODES, _FRAMES = 32, 8  # that are looked at
_UNSURE = 0.005  # of the range of colours, all three together: compression and the choice of frames


@dataclass(frozen=True)
class Interval:
    """An episode's part of a video file."""

    path: Path
    place: int
    """Of the episode, among all."""
    episode: int
    first: int
    end: int
    """Frame behind its last."""


def exchanged(
    root: Path, column: str, parts: Sequence[Interval], recorded: Sequence[int], fps: float
) -> list[Fault]:
    """Return the episodes that point to each other's videos; `recorded`: by it each would be in order."""
    in_order = sorted(parts, key=lambda part: (part.path, part.first))
    owners = sorted(parts, key=lambda part: recorded[part.place])
    moved = [(owner, place) for owner, place in zip(owners, in_order, strict=True) if owner != place]
    if any(owner.end - owner.first != place.end - place.first for owner, place in moved):
        return []  # in order they would not fit
    told = _told(root, column) if moved else {}
    moved = [(owner, place) for owner, place in moved if owner.episode in told][:_EPISODES]
    as_pointed = sum(_distance(owner, told[owner.episode], fps) for owner, _ in moved)
    as_ordered = sum(_distance(place, told[owner.episode], fps) for owner, place in moved)
    if as_ordered > as_pointed / 2 or as_pointed - as_ordered <= _UNSURE * len(moved):
        return []
    where, remedy = f"meta/episodes: videos/{column}/file_index", "let every episode point to its own video"
    what = "expected pictures in the colours of its statistics, found another's in"
    return [
        Fault(where, f"{what} {owner.path.name} from frame {owner.first} on", remedy, (owner.episode,))
        for owner, _ in moved
    ]


def _told(root: Path, column: str) -> dict[int, Float64[np.ndarray, " 3"]]:
    """Return the mean colour, from 0 to 1, that meta/episodes tells of the pictures of each episode."""
    told: dict[int, Float64[np.ndarray, " 3"]] = {}
    key = f"stats/{column}/mean"
    for path in sorted(root.glob("meta/episodes/*/*.parquet")):
        file = pq.ParquetFile(path)
        if key in file.schema_arrow.names:
            table = file.read(["episode_index", key])
            numbers, means = table.column("episode_index").to_pylist(), table.column(key).to_pylist()
            colours = [np.zeros(0) if mean is None else np.array(mean, np.float64).ravel() for mean in means]
            told |= {n: colour for n, colour in zip(numbers, colours, strict=True) if colour.shape == (3,)}
    return told


def _distance(part: Interval, colour: Float64[np.ndarray, " 3"], fps: float) -> float:
    """Return how far the mean colour of the pictures in an interval is from another."""
    video, count = Video(part.path, fps), min(_FRAMES, part.end - part.first)
    frames = np.linspace(part.first, part.end - 1, count).round().astype(int).tolist()
    mean = np.mean([video.image(frame).mean((0, 1)) for frame in frames], axis=0) / 255.0
    return float(np.abs(mean - colour).sum())
