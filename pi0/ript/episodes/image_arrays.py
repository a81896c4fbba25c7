"""Decodes the images of a data set into one array per camera, in memory or in files that processes share.

Axes: n frame of the set.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from jaxtyping import UInt8

from pi0.ript.data.encoding import decode_png, video_frames
from pi0.ript.data.layout import IMAGE_PREFIX
from pi0.ript.data.records import EpisodeDataError
from pi0.ript.progress import progress_bar

_LARGEST_GIB = 16.0
_ROWS_AT_ONCE = 64


def read_images(
    root: Path, info: Mapping[str, Any], episodes: Sequence[Mapping[str, Any]], directory: Path | None
) -> dict[str, UInt8[np.ndarray, "n h w 3"]]:
    """Return the images of some episodes by camera.

    Args:
        root: The data set.
        info: Its `meta/info.json`.
        episodes: Their rows of `meta/episodes`, in order.
        directory: Where the decoded images are kept, as arrays that are mapped and not read; those that are
            there are taken as they are, so it must be of this data set and these episodes. None: in memory.

    Raises:
        EpisodeDataError: The set is damaged, or too large for memory.
    """
    count = sum(row["length"] for row in episodes)
    found = {}
    for key in image_keys(info):
        file = None if directory is None else directory / f"{key.removeprefix(IMAGE_PREFIX)}.npy"
        if file is not None and file.exists():
            array = np.load(file, mmap_mode="r")
        else:
            if file is None:
                _require_memory(root, info, count)
            if info["features"][key]["dtype"] == "image":
                frames = _stored_frames(root, key, {row["episode_index"] for row in episodes})
            else:
                frames = _filmed_frames(root, info, key, episodes)
            array = _fill(root, frames, count, file)
        found[key.removeprefix(IMAGE_PREFIX)] = array
    return found


def image_keys(info: Mapping[str, Any]) -> list[str]:
    """Return the features of a data set that are images."""
    return [key for key in info["features"] if key.startswith(IMAGE_PREFIX)]


def frame_bytes(info: Mapping[str, Any]) -> int:
    """Return what the images of one frame of a data set take, decoded."""
    return sum(int(np.prod(info["features"][key]["shape"])) for key in image_keys(info))


def _require_memory(root: Path, info: Mapping[str, Any], count: int) -> None:
    gib = count * frame_bytes(info) / 2**30
    if gib > _LARGEST_GIB:
        raise EpisodeDataError(
            f"{root}: its images take {gib:.0f} GiB in memory, more than {_LARGEST_GIB:.0f}; choose fewer "
            "episodes, or read it frame by frame with lerobot's LeRobotDataset"
        )


def _fill(
    root: Path, frames: Iterator[UInt8[np.ndarray, "h w 3"]], count: int, file: Path | None
) -> UInt8[np.ndarray, "n h w 3"]:
    """Return the frames as one array; a file gets its name when it is complete."""
    partial = None if file is None else file.with_suffix(".partial")
    bar = progress_bar(frames, total=count, unit="frame", desc="images", leave=False, delay=5)
    array = np.empty((0, 1, 1, 3), np.uint8)
    filled = 0
    for filled, frame in enumerate(bar, 1):
        if filled == 1:
            array = _new_array((count, *frame.shape), partial)
        if filled > count or frame.shape != array.shape[1:]:
            raise EpisodeDataError(
                f"{root}: expected {count} images of {array.shape[1:]}, found one of {frame.shape} as number "
                f"{filled}; record the set again, at one size"
            )
        array[filled - 1] = frame
    if filled < count:
        raise EpisodeDataError(
            f"{root}: expected {count} images, found {filled}; the copy is incomplete, fetch or make it again"
        )
    if isinstance(array, np.memmap) and partial is not None and file is not None:
        array.flush()
        partial.replace(file)
    return array


def _new_array(shape: tuple[int, ...], file: Path | None) -> UInt8[np.ndarray, "n h w 3"]:
    if file is None:
        return np.empty(shape, np.uint8)
    file.parent.mkdir(parents=True, exist_ok=True)
    return np.lib.format.open_memmap(file, "w+", np.dtype(np.uint8), shape)


def _stored_frames(root: Path, key: str, wanted: Collection[int]) -> Iterator[UInt8[np.ndarray, "h w 3"]]:
    for path in sorted((root / "data").glob("*/*.parquet")):
        for rows in pq.ParquetFile(path).iter_batches(_ROWS_AT_ONCE, columns=["episode_index", key]):
            numbers, cells = rows.column("episode_index").to_pylist(), rows.column(key)
            encoded = [cells[i]["bytes"].as_py() for i, number in enumerate(numbers) if number in wanted]
            yield from decode_png(encoded) if encoded else ()


def _filmed_frames(
    root: Path, info: Mapping[str, Any], key: str, episodes: Sequence[Mapping[str, Any]]
) -> Iterator[UInt8[np.ndarray, "h w 3"]]:
    """Yield the frames of the episodes; a file may hold several of them one after the other."""
    path, position, film = None, 0, iter(())
    for row in episodes:
        place = {name: row[f"videos/{key}/{name}"] for name in ("chunk_index", "file_index")}
        wanted = root / info["video_path"].format(video_key=key, **place)
        first = round(row[f"videos/{key}/from_timestamp"] * info["fps"])
        if wanted != path or first < position:
            path, position, film = wanted, 0, video_frames(wanted)
        last = first + row["length"]
        for frame in film:
            position += 1
            if position > first:
                yield frame
            if position == last:
                break
        if position < last:
            raise EpisodeDataError(
                f"{path}: expected {row['length']} frames from frame {first} on, it has {position}; the copy "
                "is incomplete, fetch or make it again"
            )
