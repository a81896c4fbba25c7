"""Optimizer steps of a training that can be interrupted: what it stands at, on disk and in figures."""

import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pi0.ript.distributed import World
from pi0.ript.interruption import StoppedError, stop_requested
from pi0.ript.progress import progress_bar

_SAVE_SECONDS = 60.0

Row = dict[str, Any]


class NonFiniteLossError(RuntimeError):
    """A loss or its gradient is not finite."""


class TrainingSteps:
    """Counts the steps of a training, shows and logs their figures, and keeps the training on disk.

    The file is written once a minute and when the process is asked to stop; with it the same training goes on
    where it stood, bit for bit, if each of its steps is a function of the step's number alone.
    """

    def __init__(
        self,
        num_steps: int,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        description: str,
        checkpoint: Path | None = None,
        log: Callable[[Row], None] | None = None,
        world: World | None = None,
    ) -> None:
        """Load the state of an interrupted training if there is one.

        Args:
            num_steps: Of the whole training.
            model: Whose trainable parameters are trained, not wrapped.
            optimizer: Of these.
            description: For the progress bar.
            checkpoint: The file; None keeps none.
            log: Receives the figures of every step, of those before an interruption too.
            world: The processes that train together; None: this one alone.
        """
        self.num_steps, self.model, self.optimizer = num_steps, model, optimizer
        self._checkpoint, self._log, self._world = checkpoint, log, world or World()
        self._description = description
        self._rows: list[Row] = []
        self._bar: Any = progress_bar(unit="step", desc=description, disable=self._world.rank > 0)
        if checkpoint is not None and checkpoint.exists():
            self._load(checkpoint)
        if log is not None:
            for row in self._rows:
                log(row)

    def __iter__(self) -> Iterator[int]:
        """Yield the numbers of the steps that are left; `done` ends each of them.

        Raises:
            StoppedError: The process was asked to stop; the training is on disk.
        """
        first, saved = len(self._rows), time.monotonic()
        self._bar.reset(self.num_steps)
        self._bar.update(first)
        for step in range(first, self.num_steps):
            yield step
            self._bar.update()
            code = max(codes[0] for codes in self._world.gather([stop_requested()]))
            late = self._world.rank == 0 and time.monotonic() - saved > _SAVE_SECONDS
            if self._checkpoint is not None and (code or late):
                self._save(self._checkpoint)
                saved = time.monotonic()
            if code:
                raise StoppedError(code)
        self._bar.close()

    def update(self, gradient_norm_clip: float) -> None:
        """Make an optimizer step with the gradients that there are, and clear them."""
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        norm = float(torch.nn.utils.clip_grad_norm_(parameters, gradient_norm_clip))
        if not math.isfinite(norm):
            raise NonFiniteLossError(
                f"{self._description}, step {len(self._rows)}: the norm of the gradient is {norm}; lower the "
                "learning rate, or look at the data of this step"
            )
        self.optimizer.step()
        self.optimizer.zero_grad()

    def done(self, row: Row, shown: Mapping[str, str]) -> None:
        """Log a step's figures, and show some of them."""
        self._rows.append({"step": len(self._rows), **row})
        self._bar.set_postfix(shown, refresh=False)
        if self._log is not None:
            self._log(self._rows[-1])

    def _save(self, path: Path) -> None:
        if self._world.rank > 0:
            return
        trained = {n: p.detach() for n, p in self.model.named_parameters() if p.requires_grad}
        state = {"model": trained, "optimizer": self.optimizer.state_dict(), "rows": self._rows}
        partial = path.with_suffix(".partial")
        with partial.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)

    def _load(self, path: Path) -> None:
        state = torch.load(path, map_location="cpu", weights_only=True)
        parameters = dict(self.model.named_parameters())
        with torch.no_grad():
            for name, tensor in state["model"].items():
                parameters[name].copy_(tensor)
        self.optimizer.load_state_dict(state["optimizer"])
        self._rows = state["rows"]
