"""Turns stored episodes into a LeRobotDataset v3; lerobot's own classes write all metadata."""

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from lerobot.configs.video import RGBEncoderConfig
from lerobot.datasets.compute_stats import compute_episode_stats, get_feature_stats
from lerobot.datasets.dataset_metadata import LeRobotDatasetMetadata
from lerobot.datasets.feature_utils import get_hf_features_from_features

from pi0.ript.data.encoding import VIDEO_ENCODER, decode_image, video_frames
from pi0.ript.data.records import (
    COLLECTION_PATH,
    IMAGE_PREFIX,
    CollectionInfo,
    EpisodeDataError,
    EpisodeLabels,
    read_columns,
    read_record,
)
from pi0.ript.files import FORMAT

_FRAMES_FOR_IMAGE_STATISTICS = 8
"""Per episode; pi0 does not normalise images by statistics, other policies of lerobot may."""


def publish_episodes(paths: Sequence[Path], root: Path, info: CollectionInfo) -> None:
    """Write the stored episodes, in the order given, as a new data set."""
    records = [read_record(path) for path in paths]
    features = _features(paths, records, info)
    meta = LeRobotDatasetMetadata.create(
        repo_id=f"local/{root.name}",
        fps=int(info.fps),
        features=features,
        root=root,
        robot_type=info.robot_type,
        use_videos=info.storage == "video",
    )
    data = _DataFiles(meta)
    for path, record in zip(paths, records, strict=True):
        _publish_episode(meta, data, path, record)
    data.close()
    meta.finalize()
    statistics = root / "meta/stats.json"  # lerobot orders its keys as a set, anew in every process
    statistics.write_text(json.dumps(json.loads(statistics.read_text()), indent=4, sort_keys=True) + "\n")
    hashes = [record["content_hash"] for record in records]
    summary = asdict(info) | {
        "format": FORMAT,
        "episodes": len(records),
        "content_hash": hashlib.sha256("\n".join(hashes).encode()).hexdigest(),
    }
    (root / COLLECTION_PATH).write_text(json.dumps(summary, indent=2) + "\n")


def _features(
    paths: Sequence[Path], records: list[dict[str, Any]], info: CollectionInfo
) -> dict[str, dict[str, Any]]:
    """Return lerobot's feature table, the same for every episode or an error."""
    tables = [
        {
            f"{IMAGE_PREFIX}{camera}": {
                "dtype": info.storage,
                "shape": tuple(shape),
                "names": ["height", "width", "channels"],
            }
            for camera, shape in record["cameras"].items()
        }
        | {
            name: {"dtype": "float32", "shape": (schema.field(name).type.list_size,), "names": None}
            for name in ("observation.state", "action")
        }
        for record, schema in ((r, pq.read_schema(p)) for r, p in zip(records, paths, strict=True))
    ]
    for path, table in zip(paths, tables, strict=True):
        if table != tables[0]:
            raise EpisodeDataError(
                f"{path.name}: expected the features of {paths[0].name}, {tables[0]}, found "
                f"{table}; a data set holds one robot with one set of cameras"
            )
    return tables[0] | {"success": {"dtype": "bool", "shape": (1,), "names": None}}


class _DataFiles:
    """The data files: tables appended one row group per episode, a new file when one is full."""

    def __init__(self, meta: LeRobotDatasetMetadata) -> None:
        self.meta = meta
        self.file = -1
        self._bytes = 0
        self._writer: pq.ParquetWriter | None = None

    def append(self, table: pa.Table) -> None:
        limit = self.meta.data_files_size_in_mb * 2**20
        if self._writer is None or self._bytes + table.nbytes > limit:
            self.close()
            self.file += 1
            self._bytes = 0
            path = self.meta.root / self.meta.data_path.format(**self.location())
            path.parent.mkdir(parents=True, exist_ok=True)
            self._writer = pq.ParquetWriter(path, table.schema, compression="snappy")
        self._writer.write_table(table)
        self._bytes += table.nbytes

    def location(self) -> dict[str, int]:
        chunk, file = divmod(self.file, self.meta.chunks_size)
        return {"chunk_index": chunk, "file_index": file}

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self._writer = None


def _publish_episode(
    meta: LeRobotDatasetMetadata, data: _DataFiles, path: Path, record: dict[str, Any]
) -> None:
    stored = read_columns(path)
    length, first = len(stored), meta.total_frames
    episode = meta.total_episodes
    meta.save_episode_tasks([record["instruction"]])
    task_index = meta.get_task_index(record["instruction"])
    columns = {name: stored.column(name).combine_chunks() for name in stored.column_names}
    arrays = {
        "success": np.full(length, record["success"]),
        "timestamp": (np.arange(length) / meta.fps).astype(np.float32),
        "frame_index": np.arange(length),
        "episode_index": np.full(length, episode),
        "index": np.arange(first, first + length),
        "task_index": np.full(length, task_index),
    }
    schema = get_hf_features_from_features(meta.features).arrow_schema
    for name in ("observation.state", "action"):
        if not pa.types.is_nested(schema.field(name).type):  # width 1: lerobot stores scalars
            columns[name] = columns[name].flatten()
    columns |= {name: pa.array(values) for name, values in arrays.items()}
    data.append(pa.table([columns[name].cast(schema.field(name).type) for name in schema.names],
                         schema=schema))  # fmt: skip
    location = {f"data/{key}": value for key, value in data.location().items()}
    location |= {"dataset_from_index": first, "dataset_to_index": first + length}
    for key in meta.video_keys:
        location |= _place_video(meta, path, key, episode, length)
    for name in ("observation.state", "action"):
        arrays[name] = np.stack(stored.column(name).to_numpy())
    stats = compute_episode_stats(arrays, meta.features)
    for key in meta.camera_keys:
        stats[key] = _image_statistics(meta, stored, key, location)
    labels = {f.name: record[f.name] for f in fields(EpisodeLabels) if f.name != "instruction"}
    labels["content_hash"] = record["content_hash"]
    meta.save_episode(episode, length, [record["instruction"]], stats, location | labels)


def _place_video(
    meta: LeRobotDatasetMetadata, path: Path, key: str, episode: int, length: int
) -> dict[str, Any]:
    """Copy the episode's video into the data set and return where it is; one file per episode."""
    assert meta.video_path is not None
    chunk, file = divmod(episode, meta.chunks_size)
    target = meta.root / meta.video_path.format(video_key=key, chunk_index=chunk, file_index=file)
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(path.with_suffix(f".{key.removeprefix(IMAGE_PREFIX)}.mp4"), target)
    if episode == 0:
        meta.update_video_info(key, video_encoder=RGBEncoderConfig(**VIDEO_ENCODER))
    return {
        f"videos/{key}/chunk_index": chunk,
        f"videos/{key}/file_index": file,
        f"videos/{key}/from_timestamp": 0.0,
        f"videos/{key}/to_timestamp": length / meta.fps,
    }


def _image_statistics(
    meta: LeRobotDatasetMetadata, stored: pa.Table, key: str, location: dict[str, Any]
) -> dict[str, np.ndarray]:
    """Return lerobot's per-channel statistics in [0, 1] of evenly spaced frames."""
    count = min(_FRAMES_FOR_IMAGE_STATISTICS, len(stored))
    rows = np.linspace(0, len(stored) - 1, count).round().astype(int)
    if key in meta.image_keys:
        encoded = [stored.column(key)[int(row)]["bytes"].as_py() for row in rows]
        frames = np.stack([decode_image(x, key) for x in encoded])
    else:
        assert meta.video_path is not None
        place = {name: location[f"videos/{key}/{name}"] for name in ("chunk_index", "file_index")}
        video = meta.root / meta.video_path.format(video_key=key, **place)
        frames = np.stack(list(video_frames(video)))[rows]
    stats = get_feature_stats(frames.transpose(0, 3, 1, 2), axis=(0, 2, 3), keepdims=True)
    return {
        name: value if name == "count" else np.squeeze(value / 255.0, axis=0) for name, value in stats.items()
    }
