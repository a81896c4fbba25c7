"""Collects finished episodes so that each survives a kill, then publishes them as a data set."""

import json
import shutil
from collections.abc import Collection
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pi0.ript.data.encoding import decode_image, encode_png, encode_video, video_frames
from pi0.ript.data.records import (
    IMAGE_PREFIX,
    CollectionInfo,
    Episode,
    EpisodeDataError,
    EpisodeLabels,
    naming_damage,
    partial_directory,
    read_columns,
    read_record,
    record_metadata,
)
from pi0.ript.files import write_bytes


class EpisodeWriter:
    """Collects finished episodes in `DIR.partial/`, then publishes them as `DIR/`."""

    def __init__(self, directory: str | Path, info: CollectionInfo) -> None:
        """Begin a collection, or continue one that was interrupted.

        Raises:
            EpisodeDataError: The directory holds something, or the interrupted collection was made
                with other settings.
        """
        self.directory = Path(directory)
        self.partial = partial_directory(self.directory)
        self.info = info
        if self.directory.exists() and any(self.directory.iterdir()):
            raise EpisodeDataError(f"{self.directory} exists already; choose another output or remove it")
        spec = json.loads(json.dumps(asdict(info)))
        path = self.partial / "collection.json"
        if path.exists():
            _require_equal(self.partial, json.loads(path.read_text()), spec)
        else:
            self.partial.mkdir(parents=True, exist_ok=True)
            write_bytes(path, json.dumps(spec, indent=2).encode())

    def add(self, number: int, episode: Episode) -> None:
        """Store a finished episode; once this returns it survives a kill.

        Args:
            number: Its place among the episodes; numbers need not be consecutive.
            episode: An episode whose frames were recorded at the control rate.
        """
        columns: dict[str, Any] = {}
        for camera, frames in episode.images.items():
            if self.info.storage == "video":
                encode_video(self._path(number, f".{camera}.mp4"), frames, int(self.info.fps))
            else:
                images = [{"bytes": png, "path": None} for png in encode_png(frames)]
                columns[IMAGE_PREFIX + camera] = pa.array(
                    images, pa.struct({"bytes": pa.binary(), "path": pa.string()})
                )
        for name, values in (("observation.state", episode.states), ("action", episode.actions)):
            flat = pa.array(np.ascontiguousarray(values).ravel())
            columns[name] = pa.FixedSizeListArray.from_arrays(flat, values.shape[1])
        record = asdict(episode.labels) | {
            "length": len(episode),
            "content_hash": episode.content_hash(),
            "cameras": {name: list(frames.shape[1:]) for name, frames in episode.images.items()},
        }
        table = pa.table(columns, metadata=record_metadata(record))
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, write_page_checksum=True)
        write_bytes(self._path(number, ".parquet"), sink.getvalue().to_pybytes())

    def has(self, number: int) -> bool:
        """Return whether an episode is stored."""
        return self._path(number, ".parquet").exists()

    def read(self, number: int, with_images: bool = True) -> Episode | None:
        """Return an episode as it is stored, None if it is not there; images of a video are not exact."""
        if not self.has(number):
            return None
        path = self._path(number, ".parquet")
        with naming_damage(path):
            return self._read(number, path, with_images)

    def _read(self, number: int, path: Path, with_images: bool) -> Episode:
        record, table = read_record(path), read_columns(path)
        images = {}
        for camera in record["cameras"] if with_images else ():
            if self.info.storage == "video":
                images[camera] = np.stack(list(video_frames(self._path(number, f".{camera}.mp4"))))
            else:
                column = table.column(IMAGE_PREFIX + camera).combine_chunks()
                encoded = column.field("bytes").to_pylist()
                images[camera] = np.stack([decode_image(x, str(path)) for x in encoded])
        states, actions = (
            table.column(name).combine_chunks().flatten().to_numpy().reshape(len(table), -1)
            for name in ("observation.state", "action")
        )
        return Episode(images, states, actions, _labels(record))

    def finished(self) -> dict[int, tuple[EpisodeLabels, int]]:
        """Return labels and length of the episodes stored so far, by number, in order."""
        records = {
            int(path.stem.split("-")[1]): read_record(path)
            for path in sorted(self.partial.glob("episode-*.parquet"))
        }
        return {number: (_labels(record), record["length"]) for number, record in records.items()}

    def finalize(self, keep: Collection[int] | None = None) -> Path:
        """Publish the episodes (those numbered in `keep`; None: all) and return the directory.

        Safe to kill and repeat: the data set appears in one step, complete.
        """
        from pi0.ript.data.publishing import publish_episodes  # lerobot takes seconds to import

        numbers = list(self.finished()) if keep is None else sorted(keep)
        if not numbers:
            raise EpisodeDataError(f"{self.partial} holds no episode to publish")
        missing = [n for n in numbers if not self.has(n)]
        if missing:
            raise EpisodeDataError(f"{self.partial}: episodes {missing[:5]} are not finished")
        staged = self.partial / "dataset"
        shutil.rmtree(staged, ignore_errors=True)
        publish_episodes([self._path(n, ".parquet") for n in numbers], staged, self.info)
        self.directory.parent.mkdir(parents=True, exist_ok=True)
        staged.replace(self.directory)
        shutil.rmtree(self.partial)
        return self.directory

    def _path(self, number: int, suffix: str) -> Path:
        if not 0 <= number < 10**9:
            raise EpisodeDataError(f"number: expected 0 to 999999999, found {number}")
        return self.partial / f"episode-{number:09d}{suffix}"


def _labels(record: dict[str, Any]) -> EpisodeLabels:
    return EpisodeLabels(**{field.name: record[field.name] for field in fields(EpisodeLabels)})


def _require_equal(partial: Path, found: dict[str, Any], expected: dict[str, Any]) -> None:
    old, new = found | found.pop("origin", {}), expected | expected.pop("origin", {})
    for key in sorted(old.keys() | new.keys()):
        if old.get(key) != new.get(key):
            raise EpisodeDataError(
                f"{partial} holds an interrupted collection with {key}={old.get(key)!r}, now "
                f"{key}={new.get(key)!r}; repeat its settings to continue it, or remove it"
            )
