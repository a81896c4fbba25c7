"""One data set, frame by frame: vectors in memory, images in memory or from disk.

Axes: n loaded frame, e loaded episode, s state dim, a action dim, h w image size.
"""

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import torch
from huggingface_hub.errors import HfHubHTTPError
from jaxtyping import Bool, Float32, Int64, UInt8

from pi0.features import ACTION, STATE
from pi0.ript.data.layout import IMAGE_PREFIX
from pi0.ript.data.location import locate
from pi0.ript.data.records import EpisodeDataError
from pi0.ript.data.settings import DatasetSettings
from pi0.ript.episodes import load_episodes

type ReadImages = Callable[[int], dict[str, UInt8[np.ndarray, "_ _ 3"]]]


@dataclass(frozen=True)
class FrameSet:
    """The frames of a LeRobotDataset, episode after episode."""

    name: str
    """Its directory."""
    fps: float
    states: Float32[np.ndarray, "n s"]
    actions: Float32[np.ndarray, "n a"]
    tasks: list[str]
    task_index: Int64[np.ndarray, " n"]
    """Of the instruction of each frame, in `tasks`."""
    index: Int64[np.ndarray, " n"]
    """Number of each frame in the data set on disk, of which not all frames need be loaded."""
    episodes: Int64[np.ndarray, " e"]
    """Number of each episode in the data set on disk."""
    lengths: Int64[np.ndarray, " e"]
    selected: Bool[np.ndarray, " e"]
    """Which episodes the settings ask for."""
    total_frames: int
    """On disk."""
    image_sizes: dict[str, tuple[int, int]]
    """Height and width by camera; a camera that the set lacks is not there."""
    read_images: ReadImages
    """Images of one frame, by its place among the loaded ones and by camera."""

    @property
    def ends(self) -> Int64[np.ndarray, " n"]:
        """Return the place behind the episode of each frame."""
        return np.repeat(np.cumsum(self.lengths), self.lengths)

    def rows(self, chosen: Bool[np.ndarray, " e"]) -> Int64[np.ndarray, " _"]:
        """Return the places of all frames of some episodes."""
        return np.flatnonzero(np.repeat(chosen, self.lengths))


def open_frames(
    settings: DatasetSettings, cameras: Sequence[str] = (), in_memory_gib: float = 0.0
) -> FrameSet:
    """Return a data set, from a directory or through lerobot from the hub.

    Args:
        settings: Which set, which episodes, and how its columns are called.
        cameras: Batch keys of the images that will be read.
        in_memory_gib: Images are decoded now, all of them, if they take no more.

    Raises:
        EpisodeDataError: There is no such set, column or episode.
    """
    from lerobot.datasets.lerobot_dataset import LeRobotDataset  # takes seconds to import
    from lerobot.datasets.utils import CompatibilityError

    directory = locate(settings)
    name = settings.repo_id or str(directory)
    try:
        dataset = LeRobotDataset(
            f"local/{directory.name}" if directory else name,
            root=directory,
            revision=settings.revision,
            episodes=None if directory else settings.episodes,  # only these are downloaded
            return_uint8=True,
            video_backend=_video_backend(),
        )
    except (HfHubHTTPError, httpx.HTTPError, OSError, CompatibilityError) as error:
        raise EpisodeDataError(
            f"{name}: cannot be loaded ({type(error).__name__}: {' '.join(str(error).split())[:200]}). If it "
            "is on the hub, check name, format (v3), network and `hf auth login`; if it is here, give its "
            "directory as root"
        ) from error
    assert dataset.hf_dataset is not None
    assert dataset.meta.tasks is not None
    table = dataset.hf_dataset.data.table
    columns = _columns(settings, cameras, dataset.features, str(dataset.root))
    episodes = table.column("episode_index").to_numpy()
    cuts = np.flatnonzero(np.diff(episodes, prepend=-1))
    frames = FrameSet(
        name=str(dataset.root),
        fps=float(dataset.fps),
        states=_matrix(table, columns[STATE]),
        actions=_matrix(table, columns[ACTION]),
        tasks=[str(task) for task in dataset.meta.tasks.index],
        task_index=table.column("task_index").to_numpy(),
        index=table.column("index").to_numpy(),
        episodes=episodes[cuts],
        lengths=np.diff(cuts, append=len(episodes)),
        selected=_selected(settings, episodes[cuts], str(dataset.root)),
        total_frames=int(dataset.meta.total_frames),
        image_sizes={camera: _size(dataset.features[columns[camera]]["shape"]) for camera in columns
                     if camera in cameras},
        read_images=_OnDisk(dataset, {camera: columns[camera] for camera in cameras if camera in columns}),
    )  # fmt: skip
    return _in_memory(frames, columns, cameras) if _is_small(frames, columns, in_memory_gib) else frames


@cache
def _video_backend() -> str:
    """Return lerobot's choice; its own function prints a page of tracebacks if torchcodec does not load."""
    try:
        importlib.import_module("torchcodec")
    except (ImportError, OSError, RuntimeError):
        return "pyav"
    return "torchcodec"


def _columns(
    settings: DatasetSettings, cameras: Sequence[str], features: Mapping[str, Any], name: str
) -> dict[str, str]:
    """Return the column of each batch key that the set has."""
    mapping = settings.data_features_name_mapping
    unknown = sorted(set(mapping) - {*cameras, STATE, ACTION}) if cameras else []
    if unknown:
        raise EpisodeDataError(
            f"{name}: data_features_name_mapping: expected keys from {[*cameras, STATE, ACTION]}, found "
            f"{unknown}"
        )
    wanted = {key: mapping.get(key, key) for key in (*cameras, STATE, ACTION)}
    columns = {key: column for key, column in wanted.items() if column is not None}
    missing = {key: column for key, column in columns.items() if column not in features}
    if missing or not {STATE, ACTION} <= columns.keys():
        raise EpisodeDataError(
            f"{name}: expected columns {list(wanted.values())}, found {sorted(features)}. Say what its "
            f"columns are called in data_features_name_mapping, as {{{STATE}: state}}; null for a camera "
            "that it lacks"
        )
    return columns


def _selected(
    settings: DatasetSettings, episodes: Int64[np.ndarray, " e"], name: str
) -> Bool[np.ndarray, " e"]:
    for key in ("episodes", "excluded_episodes"):
        unknown = sorted(set(getattr(settings, key) or ()) - set(episodes.tolist()))
        if unknown and not (key == "excluded_episodes" and settings.episodes is not None):
            raise EpisodeDataError(
                f"{name}: {key}: expected numbers of its episodes, {episodes.min()} to {episodes.max()}, "
                f"found {unknown[:5]}"
            )
    chosen = np.isin(episodes, settings.episodes) if settings.episodes is not None else episodes >= 0
    chosen = chosen & ~np.isin(episodes, settings.excluded_episodes or [])
    if not chosen.any():
        raise EpisodeDataError(f"{name}: episodes, excluded_episodes: leave none of {len(episodes)} episodes")
    return chosen


def _matrix(table: pa.Table, column: str) -> Float32[np.ndarray, "n d"]:
    cells = table.column(column).combine_chunks()
    values = cells.flatten() if pa.types.is_nested(cells.type) else cells  # lerobot stores width 1 as scalars
    return values.to_numpy(zero_copy_only=False).astype(np.float32).reshape(len(table), -1)


def _size(shape: Sequence[int]) -> tuple[int, int]:
    height, width = shape[:2] if shape[-1] == 3 else shape[1:]
    return int(height), int(width)


# Images -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _OnDisk:
    """Reads through lerobot, which decodes one frame of a video, or one stored image, per camera."""

    dataset: Any
    columns: dict[str, str]

    def __call__(self, row: int) -> dict[str, UInt8[np.ndarray, "_ _ 3"]]:
        item = self.dataset[row]
        return {camera: _bytes(item[column]) for camera, column in self.columns.items()}


@dataclass(frozen=True)
class _InMemory:
    images: dict[str, UInt8[np.ndarray, "n _ _ 3"]]

    def __call__(self, row: int) -> dict[str, UInt8[np.ndarray, "_ _ 3"]]:
        return {camera: frames[row] for camera, frames in self.images.items()}


def _bytes(image: torch.Tensor) -> UInt8[np.ndarray, "_ _ 3"]:
    """Return an image of lerobot, (3, h, w), bytes (video) or bytes over 255 (stored image)."""
    x = image if image.dtype == torch.uint8 else (image * 255.0).round().to(torch.uint8)
    return x.permute(1, 2, 0).contiguous().numpy()


def _is_small(frames: FrameSet, columns: Mapping[str, str], gib: float) -> bool:
    """Return whether all images can be held; `load_episodes` reads whole sets under lerobot's names."""
    is_readable = (columns[STATE], columns[ACTION]) == (STATE, ACTION) and all(
        columns[camera].startswith(IMAGE_PREFIX) for camera in frames.image_sizes
    )
    pixels = sum(height * width for height, width in frames.image_sizes.values())
    size = 3 * pixels * frames.total_frames / 2**30
    return 0 < size <= gib and is_readable and len(frames.index) == frames.total_frames


def _in_memory(frames: FrameSet, columns: Mapping[str, str], cameras: Sequence[str]) -> FrameSet:
    loaded = load_episodes(frames.name, assume_success=True).images  # labels are not read here
    images = {c: loaded[columns[c].removeprefix(IMAGE_PREFIX)] for c in cameras if c in columns}
    return replace(frames, read_images=_InMemory(images))
