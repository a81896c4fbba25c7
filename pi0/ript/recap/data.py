"""The data of a RECAP run on disk: demonstrations recorded or referred to, rollouts, and both as sources."""

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
from pi0.ript.interruption import StoppedError, stop_requested
from pi0.ript.labels.sources import AdvantageMode, Role, Source
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


def refer(described: Mapping[str, str], directory: Path) -> Mapping[str, Any]:
    """Write where a data set is that was made elsewhere, and its hash; return figures."""
    root = Path(described["root"]).resolve()
    lengths = load_labels(root, assume_success=True).lengths
    (directory / _REFERENCE).write_text(json.dumps({**described, "root": str(root)}) + "\n")
    return _figures(lengths)


def _figures(lengths: Int64[np.ndarray, " e"]) -> Mapping[str, Any]:
    return {"episodes": len(lengths), "longest": int(lengths.max()), "mean_length": float(lengths.mean())}


def open_source(
    name: str,
    directory: Path,
    advantage: str,
    image_files: Path,
    assume_success: bool = False,
    deadlines: Mapping[str, int] | None = None,
    task_ids: Mapping[str, str] | None = None,
) -> Source:
    """Return the data of a stage, recorded or referred to, as a source.

    The images are mapped from `image_files`, see `load_episodes`. `task_ids` names by their instruction the
    tasks of episodes that do not say it themselves.
    """
    reference = directory / _REFERENCE
    root = json.loads(reference.read_text())["root"] if reference.exists() else directory / DATASET
    episodes = load_episodes(root, assume_success=assume_success, image_files=image_files)
    ids = task_ids or {}
    labels = [replace(x, task_id=x.task_id or ids.get(x.instruction, "")) for x in episodes.labels]
    episodes = replace(episodes, labels=tuple(labels))
    role = Role.ROLLOUTS if deadlines else Role.DEMONSTRATIONS
    return Source(name, episodes, cast("AdvantageMode", advantage), role, deadlines=deadlines)


def is_success(source: Source) -> Bool[np.ndarray, " n"]:
    """Return which of a source's n frames are of episodes that succeeded."""
    return np.repeat([labels.success for labels in source.episodes.labels], source.episodes.lengths)
