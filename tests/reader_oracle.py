"""A slow reader of LeRobotDatasets v3 that shares nothing with the library's: row by row, every video whole.

It checks nothing. What it says of a set that does not contradict itself is what every consumer must see.
"""

import io
import json
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import pyarrow.parquet as pq
from PIL import Image


@dataclass
class Seen:
    """A frame, as the set's own numbers say."""

    episode: int
    frame: int
    state: list[float]
    action: list[float]
    instruction: str
    timestamp: float
    success: bool | None
    images: dict[str, np.ndarray]


def read(root: Path, mapping: dict[str, str] | None = None) -> list[Seen]:
    """Return all frames in the order of episode and frame; `mapping`: key -> column where they differ."""
    names = {"observation.state": "observation.state", "action": "action", **(mapping or {})}
    info = json.loads((root / "meta/info.json").read_text())
    tasks = {
        row["task_index"]: _text(row)
        for row in pq.ParquetFile(root / "meta/tasks.parquet").read().to_pylist()
    }
    episodes = {row["episode_index"]: row for path in sorted(root.glob("meta/episodes/*/*.parquet"))
                for row in pq.ParquetFile(path).read().to_pylist()}  # fmt: skip
    cameras = {column: feature["dtype"] for column, feature in info["features"].items()
               if feature["dtype"] in ("image", "video")}  # fmt: skip
    keys = {column: key for key, column in names.items()}
    films: dict[Path, list[np.ndarray]] = {}
    frames = []
    for path in sorted(root.glob("data/*/*.parquet")):
        for row in pq.ParquetFile(path).read().to_pylist():
            episode = episodes[int(row["episode_index"])]
            images = {}
            for column, kind in cameras.items():
                if kind == "image":
                    images[keys.get(column, column)] = np.array(Image.open(io.BytesIO(row[column]["bytes"])))
                    continue
                place = {key: episode[f"videos/{column}/{key}"] for key in ("chunk_index", "file_index")}
                file = root / info["video_path"].format(video_key=column, **place)
                if file not in films:
                    with av.open(str(file)) as container:
                        films[file] = [
                            frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)
                        ]
                first = round(episode[f"videos/{column}/from_timestamp"] * info["fps"])
                images[keys.get(column, column)] = films[file][first + int(row["frame_index"])]
            success = row.get("success")
            frames.append(
                Seen(
                    int(row["episode_index"]),
                    int(row["frame_index"]),
                    row[names["observation.state"]],
                    row[names["action"]],
                    tasks[int(row["task_index"])],
                    row["timestamp"],
                    episode.get("success") if success is None else success,
                    images,
                )
            )
    return sorted(frames, key=lambda frame: (frame.episode, frame.frame))


def _text(row: dict) -> str:
    return next(value for key, value in row.items() if key != "task_index")
