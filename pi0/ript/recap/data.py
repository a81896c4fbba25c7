"""The data of a RECAP run on disk: demonstrations recorded or referred to, rollouts, and both as sources."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
from jaxtyping import Bool
from tqdm import tqdm

from pi0.ript.demonstrations import DemonstrationPlan, collect_demonstrations
from pi0.ript.demonstrations.collect import Schedule
from pi0.ript.distributed import World
from pi0.ript.episodes import load_episodes
from pi0.ript.recap.sources import AdvantageMode, Source

DATASET = "dataset"
"""The LeRobotDataset in the directory of a stage that records."""

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

            collect_demonstrations(plan, output, episodes, num_workers=num_workers, progress=show)

    if not world.on_main(output.exists):
        world.on_main(record)
    lengths = load_episodes(output).lengths
    return {"episodes": len(lengths), "longest": int(lengths.max()), "mean_length": float(lengths.mean())}


def refer(root: Path, directory: Path) -> Mapping[str, Any]:
    """Write where a data set is that was made elsewhere; return figures."""
    lengths = load_episodes(root, assume_success=True).lengths
    (directory / _REFERENCE).write_text(json.dumps({"root": str(root.resolve())}) + "\n")
    return {"episodes": len(lengths), "longest": int(lengths.max()), "mean_length": float(lengths.mean())}


def open_source(
    name: str,
    directory: Path,
    advantage: str,
    assume_success: bool = False,
    deadlines: Mapping[str, int] | None = None,
) -> Source:
    """Return the data of a stage, recorded or referred to, as a source."""
    reference = directory / _REFERENCE
    root = json.loads(reference.read_text())["root"] if reference.exists() else directory / DATASET
    episodes = load_episodes(root, assume_success=assume_success)
    return Source(name, episodes, cast("AdvantageMode", advantage), deadlines=deadlines)


def is_success(source: Source) -> Bool[np.ndarray, " n"]:
    """Return which of a source's n frames are of episodes that succeeded."""
    return np.repeat([labels.success for labels in source.episodes.labels], source.episodes.lengths)
