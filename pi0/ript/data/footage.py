"""Where the videos of a camera are, and that each episode has frames of its own there. Axis: e episode."""

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from jaxtyping import Float64, Int64

from pi0.ript.data.checks import LEAVE_OUT, Tables
from pi0.ript.data.tables import FETCH_AGAIN, Fault, reason_of
from pi0.ript.data.video import VIDEO_ERRORS, Header, Video

NOWHERE = -1
"""The file of an episode that cannot be believed."""
_HALF_A_FRAME = 0.5
_EPISODES, _FRAMES = 32, 8  # that are looked at, where the order of the videos is strange
_UNSURE = 0.005  # of the range of colours, all three together: compression and the choice of frames
_OFF_A_FRAME = 0.1  # of a frame: how far from one an interval may begin


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


@dataclass(frozen=True)
class Footage:
    """The videos of one camera."""

    files: tuple[Path, ...]
    file: Int64[np.ndarray, " e"]
    """Of each episode, in `files`; or NOWHERE."""
    first: Int64[np.ndarray, " e"]
    """Frame of the file that is the episode's first."""
    sizes: tuple[tuple[int, int], ...]
    """The heights and widths that there are; one, unless sets were merged."""


def find_footage(root: Path, tables: Tables, column: str, bad: set[int], faults: list[Fault]) -> Footage:
    """Return where the episodes' videos are; those with a fault are added to `bad`."""

    def add(new: Iterable[Fault]) -> None:
        known = [fault for fault in new if bad.isdisjoint(fault.episodes)]
        faults.extend(known)
        bad.update(episode for fault in known for episode in fault.episodes)

    found = list(_intervals(root, tables, column, bad))
    add(fault for fault in found if isinstance(fault, Fault))
    intervals = defaultdict[Path, list[Interval]](list)
    for interval in found:
        if not isinstance(interval, Fault):
            intervals[interval.path].append(interval)
    add(_overlaps(root, column, intervals))
    fps = float(tables.info["fps"])
    headers = _headers(intervals, fps)
    for path, header in headers.items():
        add(_file_faults(root, column, path, header, intervals[path], fps))
    good = [part for parts in intervals.values() for part in parts if part.episode not in bad]
    add(_exchanged(root, column, good, tables.frames.columns["index"][tables.frames.starts].tolist(), fps))
    files = tuple(intervals)
    file = np.full(len(tables.frames.episodes), NOWHERE, np.int64)
    first = np.zeros(len(file), np.int64)
    for number, parts in enumerate(intervals.values()):
        for part in parts:
            if part.episode not in bad:
                file[part.place], first[part.place] = number, part.first
    sizes = dict.fromkeys(header.size for header in headers.values() if isinstance(header, Header))
    return Footage(files, file, first, tuple(sizes))


def _intervals(root: Path, tables: Tables, column: str, bad: set[int]) -> Iterator[Interval | Fault]:
    """Yield the interval of each episode, or why it has none that is as long as itself."""
    fps, frames = float(tables.info["fps"]), tables.frames
    where = f"meta/episodes: videos/{column}"
    names = ("chunk_index", "file_index", "from_timestamp", "to_timestamp")
    for place, (episode, length) in enumerate(
        zip(frames.episodes.tolist(), frames.lengths.tolist(), strict=True)
    ):
        if episode in bad:
            continue
        stored: list[Any] = [tables.rows[episode].get(f"videos/{column}/{name}") for name in names]
        chunk, file, start, end = stored
        try:
            path = root / tables.info["video_path"].format(
                video_key=column, chunk_index=int(chunk), file_index=int(file)
            )
            first, count = float(start) * fps, (float(end) - float(start)) * fps
            nearest = round(first)
        except (KeyError, AttributeError, TypeError, ValueError, OverflowError):
            what = f"expected its file and its seconds in it, found {stored}"
            yield Fault(where, what, LEAVE_OUT, (episode,))
            continue
        if not abs(count - length) < _HALF_A_FRAME:
            what = f"expected {length / fps:.6g} s for its {length} frames, found {start:.6g} to {end:.6g}"
            yield Fault(f"{where}/from_timestamp, to_timestamp", what, LEAVE_OUT, (episode,))
        elif abs(first - nearest) > _OFF_A_FRAME or nearest < 0:
            what = f"expected the time of a frame (a multiple of 1/{fps:g} s), found {start:.6g}"
            yield Fault(f"{where}/from_timestamp", what, LEAVE_OUT, (episode,))
        else:
            yield Interval(path, place, episode, nearest, nearest + length)


def _overlaps(root: Path, column: str, intervals: Mapping[Path, Sequence[Interval]]) -> Iterator[Fault]:
    for path, parts in intervals.items():
        ordered = sorted(parts, key=lambda part: (part.first, part.end))
        for before, part in pairwise(ordered):
            if part.first < before.end:
                what = (
                    f"expected frames of their own, found frame {part.first} of {_below(root, path)} in both"
                )
                where = f"meta/episodes: videos/{column}/file_index, from_timestamp"
                yield Fault(where, what, LEAVE_OUT, (before.episode, part.episode))


def _headers(intervals: Mapping[Path, Sequence[Interval]], fps: float) -> dict[Path, Header | str]:
    """Return what each file says of itself, or why it cannot be read."""

    def read(path: Path) -> Header | str:
        if not path.is_file():
            return "no file"
        try:
            with closing(Video(path, fps)) as video:
                return video.header(max(part.end for part in intervals[path]))
        except VIDEO_ERRORS as error:
            return reason_of(error)

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return dict(zip(intervals, pool.map(read, intervals), strict=True))


def _file_faults(
    root: Path, column: str, path: Path, found: Header | str, parts: Sequence[Interval], fps: float
) -> Iterator[Fault]:
    where, episodes = _below(root, path), tuple(part.episode for part in parts)
    if isinstance(found, str):
        yield Fault(where, f"expected a video, found {found}", FETCH_AGAIN, episodes)
        return
    if found.seconds is not None and abs(found.seconds - found.num_frames / fps) > 1.01 / fps:
        rate = found.num_frames / found.seconds if found.seconds else 0.0
        what = f"expected {fps:g} frames per second as in meta/info.json, found {rate:.6g}"
        yield Fault(where, what, "correct fps, or encode the video again", episodes)
        return
    for part in parts:
        if part.end > found.num_frames:
            what = (
                f"expected its frames {part.first} to {part.end - 1}, found {found.num_frames} frames in all"
            )
            yield Fault(
                where, what, f"{FETCH_AGAIN}, or correct videos/{column} in meta/episodes", (part.episode,)
            )


def _below(root: Path, path: Path) -> str:
    return str(path.relative_to(root)) if path.is_relative_to(root) else str(path)


def _exchanged(
    root: Path, column: str, parts: Sequence[Interval], recorded: Sequence[int], fps: float
) -> list[Fault]:
    """Return the episodes that point to each other's videos; `recorded`: by it each would be in order.

    Where two episodes of one length exchange their places, every number still agrees. Recorders write videos
    in the order of the frames; where it is broken, the pictures are compared with their statistics in
    meta/episodes, once as the set points to them and once in order.
    """
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
    count = min(_FRAMES, part.end - part.first)
    frames = np.linspace(part.first, part.end - 1, count).round().astype(int).tolist()
    with closing(Video(part.path, fps)) as video:
        mean = np.mean([video.image(frame).mean((0, 1)) for frame in frames], axis=0) / 255.0
    return float(np.abs(mean - colour).sum())
