"""The snapshots that the trainings of RECAP's stages write while they are under way."""

import shutil
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch

from pi0.ript.checkpoint.files import published
from pi0.ript.checkpoint.resuming import Advice, find_same_run
from pi0.ript.distributed import World
from pi0.ript.recap.pace import Pace
from pi0.ript.training.objectives import Model
from pi0.ript.training.settings import Training
from pi0.ript.training.snapshots import Snapshots
from pi0.ript.training.steps import Steps

_FORMER_SNAPSHOT = "checkpoint.pt"
ADVICE = Advice(
    resume="start the same command again",
    anew="remove its directory, and the stage begins again",
    weights="what policy_path names, or the stage that it starts from",
)


@dataclass(frozen=True)
class SnapshotPlan:
    """Where and how often a training writes snapshots, and how many steps in a row it may skip."""

    directory: Path | None = None
    """Directory of its snapshots; None: none are written."""
    save_minutes: float | None = None
    """Minutes between two snapshots; None: only at the end and at a stop."""
    max_nonfinite_steps: int = 3
    """Steps in a row without a finite loss that end the training."""
    pace: Pace = field(default_factory=Pace)
    """What looks at the time after every step."""

    def steps(
        self, name: str, model: Model, optimizer: torch.optim.Optimizer, settings: Training, world: World
    ) -> Steps:
        """Return the steps of a training that are left."""
        snapshots = self.directory and Snapshots(
            self.directory,
            model,
            optimizer,
            settings,
            ADVICE,
            world.on_main(_find, self.directory, settings),
            peers=world,
            save_minutes=self.save_minutes,
        )
        return Steps(
            settings.steps,
            name=name,
            world=world,
            snapshots=snapshots,
            max_nonfinite_steps=self.max_nonfinite_steps,
            after_step=partial(self.pace.after_step, name),
        )


def remove_snapshots(directory: Path) -> None:
    """Remove what a training has kept of itself in a directory, also what a kill left half written."""
    for snapshot in [*directory.glob("checkpoint-*"), *directory.glob(".checkpoint-*")]:
        shutil.rmtree(snapshot)
    (directory / _FORMER_SNAPSHOT).unlink(missing_ok=True)


def _find(directory: Path, settings: Training) -> Path | None:
    if published(directory):
        return find_same_run(directory, settings, advice=ADVICE)
    if (directory / _FORMER_SNAPSHOT).exists():
        print(  # noqa: T201
            f"{directory / _FORMER_SNAPSHOT}: version 0.1.0 stopped inside this stage, and this version does "
            "not read that file: the stage begins again; to keep its steps, let version 0.1.0 finish it"
        )
    return None
