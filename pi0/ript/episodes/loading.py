"""Reads a LeRobotDataset v3 into arrays: whole small data sets, ready for training windows."""

import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float32, Int64, UInt8

from pi0.ript.data.layout import COLLECTION_PATH, partial_directory
from pi0.ript.data.records import Episode, EpisodeDataError, EpisodeLabels
from pi0.ript.episodes.image_arrays import frame_bytes, image_keys, read_images
from pi0.ript.files import read_versioned_json


@dataclass(frozen=True)
class EpisodeSet:
    """All episodes of a data set, one after the other. Axes: n frame of the set, e episode."""

    images: dict[str, UInt8[np.ndarray, "n h w 3"]]
    """By camera."""
    states: Float32[np.ndarray, "n s"]
    actions: Float32[np.ndarray, "n a"]
    starts: Int64[np.ndarray, " e"]
    """First frame of each episode."""
    lengths: Int64[np.ndarray, " e"]
    labels: tuple[EpisodeLabels, ...]
    fps: int
    collection: dict[str, Any]
    """How the set was made and its `content_hash`; empty for a set made elsewhere."""

    def __len__(self) -> int:
        """Return the number of episodes."""
        return len(self.lengths)

    def __getitem__(self, index: int) -> Episode:
        """Return one episode; its arrays are views."""
        if not 0 <= index < len(self):
            raise IndexError(f"episode {index} of {len(self)}")
        rows = slice(self.starts[index], self.starts[index] + self.lengths[index])
        images = {camera: frames[rows] for camera, frames in self.images.items()}
        return Episode(images, self.states[rows], self.actions[rows], self.labels[index])

    def __iter__(self) -> Iterator[Episode]:
        """Yield the episodes in order."""
        return (self[index] for index in range(len(self)))


def load_episodes(
    directory: str | Path,
    *,
    assume_success: bool = False,
    only: Collection[int] | None = None,
    image_files: Path | None = None,
) -> EpisodeSet:
    """Return the episodes of a LeRobotDataset v3.

    Args:
        directory: The data set's root.
        assume_success: Take every episode of a set without success labels for a success, as in a
            set of curated demonstrations. Labels that are there always count.
        only: Which episodes, by number; they come in the set's order. None: all.
        image_files: A directory, of this set and these episodes, for the decoded images: they are mapped
            from there, and written if they are not there yet. None: they are held in memory.

    Raises:
        EpisodeDataError: No such set or episodes, an unfinished one, one without success labels, or one
            that is too large for memory.
    """
    root = Path(directory)
    info = _read_info(root)
    episodes = _read_tables(root, "meta/episodes").to_pylist()
    episodes.sort(key=lambda row: row["episode_index"])
    frames = _read_tables(root, "data", skipped=image_keys(info))
    if only is not None:
        if unknown := set(only) - {row["episode_index"] for row in episodes}:
            raise EpisodeDataError(f"{root}: expected episodes 0 to {len(episodes) - 1}, found {unknown}")
        episodes = [row for row in episodes if row["episode_index"] in set(only)]
        frames = frames.filter(np.isin(frames.column("episode_index").to_numpy(), list(only)))
    lengths = np.array([row["length"] for row in episodes], np.int64)
    starts = np.cumsum(lengths) - lengths
    if len(frames) != lengths.sum():
        raise _incomplete(root, lengths, frames)
    return EpisodeSet(
        images=read_images(root, info, episodes, image_files),
        states=_matrix(root, frames, "observation.state"),
        actions=_matrix(root, frames, "action"),
        starts=starts,
        lengths=lengths,
        labels=tuple(_labels(root, episodes, frames, starts, assume_success)),
        fps=int(info["fps"]),
        collection=read_collection(root),
    )


def load_labels(directory: str | Path, *, assume_success: bool = False) -> EpisodeSet:
    """Return every episode of a LeRobotDataset v3 without its content: no images, vectors of width 0.

    As fast for a large data set as for a small one; otherwise as `load_episodes`.
    """
    root = Path(directory)
    info = _read_info(root)
    episodes = _read_tables(root, "meta/episodes").to_pylist()
    episodes.sort(key=lambda row: row["episode_index"])
    frames = _read_tables(root, "data", ("episode_index", "success"))
    lengths = np.array([row["length"] for row in episodes], np.int64)
    starts = np.cumsum(lengths) - lengths
    if len(frames) != lengths.sum():
        raise _incomplete(root, lengths, frames)
    nothing = np.zeros((len(frames), 0), np.float32)
    labels = tuple(_labels(root, episodes, frames, starts, assume_success))
    return EpisodeSet({}, nothing, nothing, starts, lengths, labels, int(info["fps"]), read_collection(root))


def images_gb(directory: str | Path) -> float:
    """Return how many GB (1e9 bytes) all images of a data set take, decoded."""
    info = _read_info(Path(directory).expanduser())
    return info["total_frames"] * frame_bytes(info) / 1e9


def read_collection(directory: str | Path) -> dict[str, Any]:
    """Return how a data set was made and its `content_hash`; empty for a set made elsewhere."""
    path = Path(directory) / COLLECTION_PATH
    return read_versioned_json(path) if path.exists() else {}


def _read_info(root: Path) -> dict[str, Any]:
    path = root / "meta/info.json"
    if not path.exists():
        if partial_directory(root).exists():
            raise EpisodeDataError(
                f"{root} is not finished: its collection was interrupted; run the command that began it again"
            )
        raise EpisodeDataError(f"{root} is not a LeRobotDataset: {path} is missing")
    info = json.loads(path.read_text())
    if not str(info.get("codebase_version", "")).startswith("v3."):
        raise EpisodeDataError(
            f"{root}: expected a LeRobotDataset v3.x, found {info.get('codebase_version')}; "
            "convert it: python -m lerobot.scripts.convert_dataset_v21_to_v30"
        )
    return info


def _incomplete(root: Path, lengths: Int64[np.ndarray, " e"], frames: pa.Table) -> EpisodeDataError:
    return EpisodeDataError(
        f"{root}: expected {lengths.sum()} frames by meta/episodes, found {len(frames)}; the copy is "
        "incomplete, fetch or make it again"
    )


def _read_tables(
    root: Path, folder: str, only: Collection[str] | None = None, skipped: Collection[str] = ()
) -> pa.Table:
    """Return a table of all files of a folder; `only` some columns, where they are there."""
    paths = sorted((root / folder).glob("*/*.parquet"))
    if not paths:
        raise EpisodeDataError(f"{root} holds no {folder}/*/*.parquet; it is empty or incomplete")
    columns = [
        name
        for name in pq.read_schema(paths[0]).names
        if not name.startswith("stats/") and name not in skipped and (only is None or name in only)
    ]
    # Not pq.read_table: it imports pandas, which takes a second.
    tables = [pq.ParquetFile(path).read(columns) for path in paths]
    return pa.concat_tables(tables, promote_options="permissive")


def _matrix(root: Path, frames: pa.Table, name: str) -> Float32[np.ndarray, "n d"]:
    if name not in frames.column_names:
        raise EpisodeDataError(
            f"{root}: no column {name!r} in its frames, there are {', '.join(frames.column_names)}; rename "
            "the data set's columns to lerobot's names"
        )
    column = frames.column(name).combine_chunks()
    values = column.flatten() if pa.types.is_nested(column.type) else column  # width 1: lerobot has scalars
    return values.to_numpy().astype(np.float32, copy=False).reshape(len(frames), -1)


def _labels(
    root: Path,
    episodes: list[dict[str, Any]],
    frames: pa.Table,
    starts: Int64[np.ndarray, " e"],
    assume_success: bool,
) -> Iterator[EpisodeLabels]:
    names = [f.name for f in fields(EpisodeLabels) if f.name not in ("instruction", "success")]
    for row, start in zip(episodes, starts.tolist(), strict=True):
        if "success" in frames.column_names:
            success = any(frames.column("success").slice(start, row["length"]).to_pylist())
        elif "success" in row:
            success = row["success"]
        elif assume_success:
            success = True
        else:
            raise EpisodeDataError(
                f"{root} has no success labels: no column 'success' in its frames or in "
                "meta/episodes. Record it with pi0-demos or EpisodeWriter; if every episode is "
                "known to succeed, load it with assume_success=True"
            )
        extra = {name: row[name] for name in names if row.get(name) is not None}
        yield EpisodeLabels(instruction=row["tasks"][0], success=bool(success), **extra)
