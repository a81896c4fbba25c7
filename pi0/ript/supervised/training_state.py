"""What only pi0-train's checkpoints have: the model as users load it, its moving average, the best models."""

import math
import shutil
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from pi0.ript.checkpoint.contents import Contents
from pi0.ript.checkpoint.files import UNTRAINED
from pi0.ript.checkpoint.snapshot import (
    copy_tensors,
    trained_parameters,
    write_on_main,
    write_snapshot,
    write_tensors,
)
from pi0.ript.data.frame_set import hash_arrays
from pi0.ript.distributed import World
from pi0.ript.peers import Peers
from pi0.ript.supervised.parts import Parts
from pi0.ript.supervised.run_layout import ADVICE, copy_descriptions
from pi0.ript.supervised.settings import SupervisedSettings
from pi0.ript.training.objectives import PolicyObjective
from pi0.ript.training.optimization import WeightAverage

_AVERAGE = "average.safetensors"
_LOWER_IS_BETTER = {"val_loss": True, "success": False}


class ModelFiles:
    """The model of a run on disk; with a moving average of the weights, that. All processes call it alike."""

    def __init__(self, run_dir: Path, config: SupervisedSettings, parts: Parts, world: World) -> None:
        """Write nothing yet; the average begins at the present weights."""
        self.run_dir, self.model, self.world = run_dir, parts.objective.model, world
        self.average = WeightAverage(self.model, config.ema_decay) if config.ema_decay else None

    def published_weights(self) -> AbstractContextManager[None]:
        """Give the model, meanwhile, the weights that are saved."""
        return nullcontext() if self.average is None else self.average.applied()

    def update_average(self) -> None:
        """Move the average towards the present weights."""
        if self.average is not None:
            self.average.update()

    def tensors(self) -> dict[str, Tensor]:
        """Return the average, by names that begin with `average.`."""
        average = {} if self.average is None else self.average.average
        return {f"average.{name}": value for name, value in average.items()}

    def write(self, directory: Path, contents: Contents, peers: Peers) -> None:
        """Write what a checkpoint has besides what continues the training."""
        average = {name.removeprefix("average."): value for name, value in contents.more.items()}
        if self.average is not None and not peers.is_sharded:
            write_on_main(lambda: write_tensors(directory / _AVERAGE, average), peers)
        self._write_model(directory, average or contents.trained, peers)

    def read(self, checkpoint: Path) -> None:
        """Put the average where it was, if it was not in parts."""
        if self.average is not None and not self.world.is_sharded:
            copy_tensors(self.average.average, load_file(checkpoint / _AVERAGE))

    def keep_if_best(self, metric: str, value: float, step: int, best: dict[str, float]) -> None:
        """Keep the model in place of the best before if a metric is better than ever; note that in `best`."""
        before, sign = best.get(metric), 1 if _LOWER_IS_BETTER[metric] else -1
        if not math.isfinite(value) or (before is not None and sign * value >= sign * before):
            return
        best[metric] = value
        path = self.run_dir / f"checkpoint-{step}-best-{metric}_{value:.4f}"
        facts = {"metric": metric, "value": value, "step": step}
        weights = trained_parameters(self.model) if self.average is None else self.average.average
        write_snapshot(
            path,
            lambda directory, peers: self._write_model(directory, weights, peers),
            facts,
            peers=self.world,
            remedy=ADVICE.resume,
            with_random_states=False,
        )
        if self.world.rank == 0:
            for older in self.run_dir.glob(f"checkpoint-*-best-{metric}_*"):
                if older != path:
                    hidden = older.with_name(f".{older.name}.deleted")
                    older.rename(hidden)
                    shutil.rmtree(hidden)

    def _write_model(self, directory: Path, trained: Mapping[str, Tensor], peers: Peers) -> None:
        weights = peers.whole(self.model, trained)

        def write() -> None:
            self.model.save_pretrained(directory, untrained=self.run_dir / UNTRAINED, weights=weights)
            copy_descriptions(self.run_dir, directory)

        write_on_main(write, peers)


def data_hashes(parts: Parts) -> dict[str, str]:
    """Return hashes of what is learned from, by name: frames of each data set without images, and labels."""
    objective = parts.objective
    labels = (
        [objective.indicator, objective.sample_weight]
        if isinstance(objective, PolicyObjective)
        else [objective.returns.numpy()]
    )
    hashes = {"advantages or returns": hash_arrays([array for array in labels if array is not None])}
    for number, frames in enumerate(parts.data.sets):
        hashes[f"datasets.{number} ({frames.name})"] = frames.frames_hash()
    return hashes
