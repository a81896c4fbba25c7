"""The data of a RECAP run on disk: demonstrations recorded or referred to, rollouts, and both as sources."""

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from pi0.ript.data.frame_set import FrameSet
from pi0.ript.data.reader import open_set
from pi0.ript.data.records import partial_directory
from pi0.ript.data.settings import DatasetSettings
from pi0.ript.data.success_file import SUCCESS_PATH
from pi0.ript.demonstrations import DemonstrationPlan, collect_demonstrations
from pi0.ript.distributed import World
from pi0.ript.files import hash_file, hash_files, write_json
from pi0.ript.interruption import leave_if_asked
from pi0.ript.labels.settings import RewardConfig
from pi0.ript.labels.sources import AdvantageMode, Role, Source
from pi0.ript.ranges import SAME
from pi0.ript.recap.stages import DATASET, Artefact, Inputs, Kind
from pi0.ript.recap.workshop import Workshop

_REFERENCE = "reference.json"
_ROLES = {Kind.DEMONSTRATIONS: Role.DEMONSTRATIONS, Kind.ROLLOUTS: Role.ROLLOUTS}


def record_demonstrations(
    plan: DemonstrationPlan, episodes: int, num_workers: int, world: World, directory: Path
) -> Mapping[str, Any]:
    """Record DIRECTORY/dataset, or what is missing of it; return figures."""
    output = directory / DATASET

    def record() -> None:
        collect_demonstrations(
            plan, output, episodes, num_workers=num_workers, progress=lambda _: leave_if_asked()
        )

    if not world.on_main(is_published, output):
        world.on_main(record)
    return _figures(open_set(DatasetSettings(root=str(output)), cameras=()))


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
    files += root.glob(str(SUCCESS_PATH))  # which that version did not know
    meta = sorted([str(file.relative_to(root)), hash_file(file)] for file in files)
    digest = hashlib.sha256(json.dumps(meta).encode()).hexdigest()
    return {"root": str(root), "meta": digest, "data": hash_files(root / "data")}


def refer(identity: Mapping[str, Any], frames: FrameSet, directory: Path) -> Mapping[str, Any]:
    """Write where a data set is that was made elsewhere, and its hash; return figures."""
    write_json(directory / _REFERENCE, identity)
    return _figures(frames)


def _figures(frames: FrameSet) -> Mapping[str, Any]:
    lengths = frames.lengths
    return {"episodes": len(lengths), "longest": int(lengths.max()), "mean_length": float(lengths.mean())}


# Sources ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reading:
    """How demonstrations are read that do not say everything themselves."""

    root: str | None = field(metadata=SAME)  # the demonstrations' hash says what is there
    """Where they are, if they were made elsewhere."""
    assume_success: bool
    """An episode without label is a success."""
    task_ids: dict[str, str]
    """By the instructions of the tasks."""
    data_features_name_mapping: dict[str, str | None] = field(default_factory=dict)
    """What their columns are called."""

    def settings(self, recorded: Path) -> DatasetSettings:
        """Return how they are opened; `recorded`: where they are, if they were made here."""
        return DatasetSettings(
            root=self.root or str(recorded),
            assume_success=self.assume_success,
            data_features_name_mapping=self.data_features_name_mapping,
        )


def source_name(artefact: Artefact) -> str:
    """Return what a data set of the run is called in labels and lineage."""
    return f"{artefact.kind}-{artefact.round}" if artefact.round else str(artefact.kind)


def open_sources(
    inputs: Inputs,
    reading: Reading,
    workshop: Workshop,
    *,
    mode: str = "use",
    deadlines: Mapping[str, int] | None = None,
) -> list[Source]:
    """Return the data sets among the inputs of a stage as sources.

    Args:
        inputs: Of the stage.
        reading: How demonstrations are read.
        workshop: Whose data sets stay open, and whose memory keeps their images.
        mode: The indicator that demonstrations get, or leave_out; rollouts get that of their advantage.
        deadlines: Of rollouts, as `Source.deadlines`.

    Raises:
        EpisodeDataError: A data set cannot be believed.
    """
    data = [artefact for artefact in inputs.values() if artefact.kind in _ROLES]
    if mode == "leave_out":
        data = [artefact for artefact in data if artefact.kind is not Kind.DEMONSTRATIONS]
    sets = workshop.open_sets([_settings(artefact, reading) for artefact in data])
    sources = []
    for artefact, frames in zip(data, sets, strict=True):
        name, role = source_name(artefact), _ROLES[artefact.kind]
        if role is Role.ROLLOUTS:
            sources.append(Source(name, frames, role=role, deadlines=deadlines))
        else:
            advantage = cast("AdvantageMode", mode)
            sources.append(Source(name, frames, advantage, role, task_ids=reading.task_ids))
    return sources


def _settings(artefact: Artefact, reading: Reading) -> DatasetSettings:
    recorded = artefact.path / DATASET
    is_recorded = _ROLES[artefact.kind] is Role.ROLLOUTS
    return DatasetSettings(root=str(recorded)) if is_recorded else reading.settings(recorded)


def resolved_reward(
    reward: RewardConfig, demonstrations: Artefact, deadlines: Mapping[str, int]
) -> RewardConfig:
    """Return the reward with a normaliser that fits all episodes of the run; too small a one is an error."""
    return reward.resolve(max([demonstrations.figures["longest"], *deadlines.values()]))
