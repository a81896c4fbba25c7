"""Where a data set is: a directory, or the copy of one that the hub has."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError

from pi0.ript.data.records import EpisodeDataError, partial_directory
from pi0.ript.data.settings import DatasetSettings
from pi0.ript.data.tables import Fault, fault_lines, read_episodes, read_info, reason_of

_FORMAT = "v3.0"


@dataclass(frozen=True)
class Place:
    """Where a data set is."""

    root: Path
    fetched: frozenset[int] | None = None
    """The episodes whose files are there; None: all."""


def locate(settings: DatasetSettings) -> Place:
    """Return where a data set is; one that the hub has is fetched, of which only the episodes asked for.

    `root`, a path, and the name of something that is here are never asked for on the hub.

    Raises:
        EpisodeDataError: There is no such set, it is not finished, or it cannot be fetched.
    """
    name = settings.repo_id or ""
    if settings.root is None:
        places = [Path(name).expanduser()]
    else:
        root = Path(settings.root).expanduser()
        places = [root, root / name] if name else [root]
    for place in places:
        if (place / "meta").is_dir():
            return Place(place)
        if place.name and partial_directory(place).exists():
            raise EpisodeDataError(
                f"{place} is not finished: its collection was interrupted; run its command again"
            )
    is_hub_name = name.count("/") == 1 and not name.startswith((".", "/", "~"))
    if settings.root is None and is_hub_name and not places[0].exists():
        return _fetch(name, settings)
    looked = " and ".join(str(place) for place in places)
    fetch = f": hf download --repo-type dataset {name} --local-dir {settings.root}" if is_hub_name else ""
    raise EpisodeDataError(
        f"no LeRobotDataset: expected meta/info.json in {looked}, found none. Correct repo_id or root, or "
        f"fetch or record the set first{fetch}"
    )


def _fetch(name: str, settings: DatasetSettings) -> Place:
    from lerobot.datasets.utils import CompatibilityError, get_safe_version  # takes seconds to import
    from lerobot.utils.constants import HF_LEROBOT_HOME, HF_LEROBOT_HUB_CACHE

    if settings.revision is None and (HF_LEROBOT_HOME / name / "meta").is_dir():
        return Place(HF_LEROBOT_HOME / name)
    only = None if settings.episodes is None else frozenset(settings.episodes)
    try:
        revision = settings.revision or get_safe_version(name, _FORMAT)

        def download(patterns: list[str] | None) -> Path:
            place = {"repo_type": "dataset", "revision": revision, "cache_dir": HF_LEROBOT_HUB_CACHE}
            return Path(snapshot_download(name, allow_patterns=patterns, **place))

        if only is None:
            return Place(download(None))
        root = download(["meta/*"])
        return Place(download(["meta/*", *_files_of(root, only)]), only)
    except (HfHubHTTPError, httpx.HTTPError, OSError, RuntimeError, CompatibilityError) as error:
        raise EpisodeDataError(
            f"{name}: cannot be loaded ({type(error).__name__}: {reason_of(error)}). If it is on the hub, "
            "check name, format (v3), network and `hf auth login`; if it is here, give its directory as root"
        ) from error


def _files_of(root: Path, only: Collection[int]) -> list[str]:
    """Return the files below the set's root that hold some of its episodes."""
    faults: list[Fault] = []
    info, rows = read_info(root, faults), read_episodes(root, faults)
    if info is None or rows is None:
        raise EpisodeDataError("\n".join(fault_lines(root, faults)))
    chosen = [row for row in rows if row["episode_index"] in only]
    return list(dict.fromkeys(path for row in chosen for path in _paths(info, row)))


def _paths(info: Mapping[str, Any], row: Mapping[str, Any]) -> Iterator[str]:
    yield info["data_path"].format(chunk_index=row["data/chunk_index"], file_index=row["data/file_index"])
    for key in (key for key, feature in info["features"].items() if feature.get("dtype") == "video"):
        chunk, file = row[f"videos/{key}/chunk_index"], row[f"videos/{key}/file_index"]
        yield info["video_path"].format(video_key=key, chunk_index=chunk, file_index=file)
