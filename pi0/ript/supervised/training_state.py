"""Where a supervised training stands, on disk: the model as users load it, and what continues it exactly."""

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from pi0.ript.checkpoint import CheckpointError
from pi0.ript.checkpoint.files import begin, partial_path, prune, publish
from pi0.ript.checkpoint.resuming import settings
from pi0.ript.checkpoint.state import rng_file, rng_state, set_rng_state, together
from pi0.ript.data import TrainingBatches
from pi0.ript.distributed import World
from pi0.ript.supervised.run_layout import copy_descriptions
from pi0.ript.supervised.settings import SupervisedSettings
from pi0.ript.training.objectives import Model
from pi0.ript.training.optimization import WeightAverage, copy_parameters

_WEIGHTS, _AVERAGE = "trained.safetensors", "average.safetensors"
_TRAINER, _PROGRESS = "trainer.pt", "progress.json"
_LOWER_IS_BETTER = {"val_loss": True, "success": False}


@dataclass
class Progress:
    """What a training stands at, besides weights and data."""

    step: int = 0
    """Optimizer steps made."""
    recent: list[dict[str, float]] = field(default_factory=list)
    """Figures of those since the last log row."""
    best: dict[str, float] = field(default_factory=dict)
    """By metric."""


class TrainingState:
    """A training that can be stopped anywhere and continued. All processes call every method alike."""

    def __init__(
        self,
        run_dir: Path,
        config: SupervisedSettings,
        model: Model,
        optimizer: torch.optim.Optimizer,
        data: TrainingBatches,
        world: World,
    ) -> None:
        """Change nothing yet; `resume` continues from a checkpoint."""
        self.run_dir, self.config, self.model = run_dir, config, model
        self.optimizer, self.data, self.world = optimizer, data, world
        self.average = WeightAverage(model, config.ema_decay) if config.ema_decay else None
        self.progress = Progress()
        self._saved: int | None = None

    def resume(self, checkpoint: Path) -> None:
        """Put everything where it was.

        Raises:
            CheckpointError: It is a checkpoint of another model.
            ValueError: It stands in other data.
        """
        weights = load_file(checkpoint / _WEIGHTS)
        trained = _trained(self.model)
        shapes = {name: p.shape for name, p in trained.items()}
        if shapes != {name: tensor.shape for name, tensor in weights.items()}:
            raise CheckpointError(
                f"{checkpoint} is of another model; what policy.pretrained_path names has changed since"
            )
        trainer = torch.load(checkpoint / _TRAINER, map_location="cpu", weights_only=True)
        self.data.load_state_dict(trainer["data"])
        copy_parameters(trained, weights)
        self.optimizer.load_state_dict(trainer["optimizer"])
        if self.average is not None:
            with torch.no_grad():
                for name, tensor in load_file(checkpoint / _AVERAGE).items():
                    self.average.average[name].copy_(tensor)
        self.progress = Progress(**json.loads((checkpoint / _PROGRESS).read_text()))
        self._saved = self.progress.step
        own = checkpoint / rng_file(self.world.rank)
        if own.exists():
            set_rng_state(torch.load(own, weights_only=True))

    def save(self) -> None:
        """Write checkpoint-{step}, unless it is there, and delete old ones."""
        step = self.progress.step
        if self._saved == step:
            return
        path = self.run_dir / f"checkpoint-{step}"
        random_states = rng_state()
        partial = partial_path(path)

        def write() -> None:
            torch.save(random_states, partial / rng_file(self.world.rank))
            if self.world.rank == 0:
                self._write_trainer(partial)
                self.write_model(partial)
                copy_descriptions(self.run_dir, partial)

        self._publish(path, write, {"position": [step, 0], "config": settings(self.config)})
        if self.world.rank == 0:
            prune(path, self.config.save_total_limit)
        set_rng_state(random_states)  # of which writing uses some
        self._saved = step

    def keep_if_best(self, metric: str, value: float) -> bool:
        """Return whether a metric is better than ever; then the model is kept in place of the best before."""
        best, sign = self.progress.best.get(metric), 1 if _LOWER_IS_BETTER[metric] else -1
        if not math.isfinite(value) or (best is not None and sign * value >= sign * best):
            return False
        self.progress.best[metric] = value
        path = self.run_dir / f"checkpoint-{self.progress.step}-best-{metric}_{value:.4f}"
        partial = partial_path(path)

        def write() -> None:
            if self.world.rank == 0:
                self.write_model(partial)
                copy_descriptions(self.run_dir, partial)

        self._publish(path, write, {"metric": metric, "value": value, "step": self.progress.step})
        if self.world.rank == 0:
            for older in self.run_dir.glob(f"checkpoint-*-best-{metric}_*"):
                if older != path:
                    gone = older.with_name(f".{older.name}.deleted")
                    older.rename(gone)
                    shutil.rmtree(gone)
        return True

    def write_model(self, directory: Path) -> None:
        """Write the model as users load it; with a moving average, that one."""
        if self.average is None:
            self.model.save_pretrained(directory)
        else:
            with self.average.applied():
                self.model.save_pretrained(directory)

    def _write_trainer(self, partial: Path) -> None:
        trained = {name: p.detach().cpu().contiguous() for name, p in _trained(self.model).items()}
        save_file(trained, partial / _WEIGHTS)
        if self.average is not None:
            average = {name: x.cpu().contiguous() for name, x in self.average.average.items()}
            save_file(average, partial / _AVERAGE)
        state = {"optimizer": self.optimizer.state_dict(), "data": self.data.state_dict()}
        torch.save(state, partial / _TRAINER)
        (partial / _PROGRESS).write_text(json.dumps(asdict(self.progress)))

    def _publish(self, path: Path, write: Callable[[], None], facts: dict[str, Any]) -> None:
        is_main = self.world.rank == 0
        partial = partial_path(path)
        try:
            for is_mine, part in (
                (is_main, lambda: begin(path)),
                (True, write),
                (is_main, lambda: publish(partial, path, facts)),
            ):
                together(part if is_mine else lambda: None, self.world)
        except (OSError, RuntimeError) as error:  # a full disk is one of these, by who writes
            if is_main:
                shutil.rmtree(partial, ignore_errors=True)
            raise CheckpointError(
                f"{path} could not be written ({type(error).__name__}: {error}); if the disk is full make "
                "room, then start the same command again; the checkpoints before are as they were"
            ) from error


def _trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}
