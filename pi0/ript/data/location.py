"""Where a data set is, and that it is whole: lerobot would look for missing files on the hub."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from pi0.ript.data.layout import partial_directory
from pi0.ript.data.records import EpisodeDataError
from pi0.ript.data.settings import DatasetSettings


def locate(settings: DatasetSettings) -> Path | None:
    """Return the directory of a data set, or None if it is on the hub.

    Raises:
        EpisodeDataError: There is none, or it is unfinished, incomplete or of another format.
    """
    name = settings.repo_id or ""
    places = [Path(name)] if settings.root is None else [Path(settings.root), Path(settings.root) / name]
    for place in places:
        if (place / "meta/info.json").is_file():
            _require_complete(place)
            return place
        if str(place) != "." and partial_directory(place).exists():
            raise EpisodeDataError(
                f"{place} is not finished: its collection was interrupted; run its command again"
            )
    is_hub_name = name.count("/") == 1 and not name.startswith((".", "/", "~")) and not Path(name).exists()
    if settings.root is None and is_hub_name:
        return None
    looked = " and ".join(str(place) for place in places)
    fetch = f": hf download --repo-type dataset {name} --local-dir {settings.root}" if is_hub_name else ""
    raise EpisodeDataError(
        f"no LeRobotDataset: expected meta/info.json in {looked}, found none. Correct repo_id or root, or "
        f"fetch or record the set first{fetch}"
    )


def _require_complete(directory: Path) -> None:
    info = json.loads((directory / "meta/info.json").read_text())
    if not str(info.get("codebase_version", "")).startswith("v3."):
        raise EpisodeDataError(
            f"{directory}: expected a LeRobotDataset v3.x, found {info.get('codebase_version')}; convert it: "
            "python -m lerobot.scripts.convert_dataset_v21_to_v30"
        )
    rows = sum(pq.read_metadata(path).num_rows for path in directory.glob("data/*/*.parquet"))
    if rows != info["total_frames"]:
        raise EpisodeDataError(
            f"{directory}: expected {info['total_frames']} frames in data/, found {rows}; the copy is "
            "incomplete, fetch or make it again"
        )
    missing = [path for path in _videos(directory, info) if not path.is_file()]
    if missing:
        raise EpisodeDataError(
            f"{directory}: expected {missing[0]}, found no file ({len(missing)} videos missing); the copy "
            "is incomplete, fetch or make it again"
        )


def _videos(directory: Path, info: dict[str, Any]) -> list[Path]:
    """Return the video files that the episodes name."""
    found: dict[Path, None] = {}
    for key in (key for key, feature in info["features"].items() if feature["dtype"] == "video"):
        columns = [f"videos/{key}/chunk_index", f"videos/{key}/file_index"]
        for path in sorted(directory.glob("meta/episodes/*/*.parquet")):
            places = pq.read_table(path, columns=columns)
            for chunk, file in zip(*(places.column(name).to_pylist() for name in columns), strict=True):
                name = info["video_path"].format(video_key=key, chunk_index=chunk, file_index=file)
                found[directory / name] = None
    return list(found)
