"""The data of a RECAP run on disk: demonstrations recorded or referred to, rollouts, and both as sources."""

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from jaxtyping import Bool, Int64
from tqdm import tqdm

from pi0.ript.demonstrations import DemonstrationPlan, collect_demonstrations
from pi0.ript.demonstrations.collect import Schedule
from pi0.ript.distributed import World
from pi0.ript.episodes import load_episodes, load_labels
from pi0.ript.episodes.layout import partial_directory
from pi0.ript.files import hash_file, hash_files, write_json
from pi0.ript.interruption import StoppedError, stop_requested
from pi0.ript.labels.sources import AdvantageMode, Source
from pi0.ript.recap.stages import DATASET

_REFERENCE = "reference.json"


def record_demonstrations(
    plan: DemonstrationPlan, episodes: int, num_workers: int, world: World, directory: Path
) -> Mapping[str, Any]:
    """Record DIRECTORY/dataset, or what is missing of it; return figures."""
    output = directory / DATASET

    def record() -> None:
        with tqdm(unit="episode", desc="demonstrations", total=episodes * len(plan.tasks)) as bar:

            def show(schedule: Schedule) -> None:
                bar.n = sum(len(schedule.kept(task)) for task in range(schedule.num_tasks))
                bar.refresh()
                if code := stop_requested():
                    raise StoppedError(code)

            collect_demonstrations(plan, output, episodes, num_workers=num_workers, progress=show)

    if not world.on_main(is_published, output):
        world.on_main(record)
    return _figures(load_labels(output).lengths)


def is_published(dataset: Path) -> bool:
    """Return whether a data set is finished; what a killed process left beside it is removed."""
    if dataset.exists():
        shutil.rmtree(partial_directory(dataset), ignore_errors=True)
    return dataset.exists()


def identify(root: Path, recorded: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """Return place and hash of a data set that was made elsewhere.

    What version 0.1.0 recorded of it is returned instead if it still holds: a run of that version goes on.
    """
    if recorded is not None and recorded == _identity_in_format_0(root):
        return recorded
    return {"root": str(root), "hash": hash_files(root)}


def _identity_in_format_0(root: Path) -> dict[str, str]:
    files = [*root.glob("meta/info.json"), *root.glob("meta/episodes/*/*"), *root.glob("meta/tasks*")]
    meta = sorted([str(file.relative_to(root)), hash_file(file)] for file in files)
    digest = hashlib.sha256(json.dumps(meta).encode()).hexdigest()
    return {"root": str(root), "meta": digest, "data": hash_files(root / "data")}


def refer(described: Mapping[str, str], directory: Path) -> Mapping[str, Any]:
    """Write where a data set is that was made elsewhere, and its hash; return figures."""
    lengths = load_labels(described["root"], assume_success=True).lengths
    write_json(directory / _REFERENCE, described)
    return _figures(lengths)


def _figures(lengths: Int64[np.ndarray, " e"]) -> Mapping[str, Any]:
    return {"episodes": len(lengths), "longest": int(lengths.max()), "mean_length": float(lengths.mean())}


def open_source(
    name: str,
    directory: Path,
    advantage: str,
    image_files: Path,
    root: Path | None = None,
    assume_success: bool = False,
    deadlines: Mapping[str, int] | None = None,
    task_ids: Mapping[str, str] | None = None,
) -> Source:
    """Return the data of a stage as a source: recorded by it, or those at `root`, to which it refers.

    The images are mapped from `image_files`, see `load_episodes`. `task_ids` names by their instruction the
    tasks of episodes that do not say it themselves.
    """
    episodes = load_episodes(
        root or directory / DATASET, assume_success=assume_success, image_files=image_files
    )
    ids = task_ids or {}
    labels = [replace(x, task_id=x.task_id or ids.get(x.instruction, "")) for x in episodes.labels]
    episodes = replace(episodes, labels=tuple(labels))
    return Source(name, episodes, cast("AdvantageMode", advantage), deadlines=deadlines)


def is_success(source: Source) -> Bool[np.ndarray, " n"]:
    """Return which of a source's n frames are of episodes that succeeded."""
    return np.repeat([labels.success for labels in source.episodes.labels], source.episodes.lengths)
