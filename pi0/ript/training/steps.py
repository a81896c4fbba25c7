"""Optimizer steps of a supervised training: counted, guarded, shown, kept on disk, stopped and resumed."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from jaxtyping import Float
from torch import Tensor

from pi0.ript.distributed import World
from pi0.ript.interruption import StoppedError, asked_to_stop
from pi0.ript.monitoring import count_skipped, is_finite
from pi0.ript.progress import progress_bar
from pi0.ript.training.snapshots import Snapshots

Row = dict[str, Any]
"""Figures of an optimizer step by name, among them its number as "step", and "loss"."""


class Steps:
    """The steps that are left of a training; whoever iterates makes them.

        for step in Steps(...):
            ...the step's batch, loss and gradients, all functions of the number `step`...
            if steps.accept({"loss": ...}, norm):
                optimizer.step()
            optimizer.zero_grad()

    Between two steps a snapshot is written if one is due. When the process is asked to stop, there or in
    `stop_if_asked`, one is written and all processes leave. All processes call every method alike.
    """

    def __init__(
        self,
        num_steps: int,
        *,
        name: str,
        world: World | None = None,
        snapshots: Snapshots | None = None,
        max_nonfinite_steps: int = 3,
        after_step: Callable[[int], object] | None = None,
    ) -> None:
        """Continue from the newest snapshot, if there is one.

        Args:
            num_steps: The steps of the whole training.
            name: For the progress bar and for messages.
            world: The processes that train together; None: this one alone.
            snapshots: The snapshots of the training; None: none are written.
            max_nonfinite_steps: Steps in a row without a finite loss or gradient at which the training ends.
            after_step: Called with the number of steps behind us after each.

        Raises:
            ChangedSettingsError, SnapshotError: The snapshot is of another training; see `Snapshots.restore`.
        """
        self.num_steps, self.name = num_steps, name
        self.max_nonfinite_steps, self._after_step = max_nonfinite_steps, after_step
        self._world, self._snapshots = world or World(), snapshots
        kept = snapshots.restore() if snapshots is not None else {}
        self.step: int = kept.pop("step", 0)
        """Steps behind us."""
        self.rows: list[Row] = kept.pop("recent", [])
        """Figures of the steps that were made, since the caller last cleared them."""
        self.nonfinite: int = kept.pop("nonfinite", 0)
        """Steps skipped in a row."""
        self.kept: dict[str, Any] = kept
        """Plain values of the caller's that snapshots keep as well."""

    def __iter__(self) -> Iterator[int]:
        """Yield the number of each step that is left.

        Raises:
            StoppedError: A process was asked to stop; the training is on disk.
            SnapshotError: A snapshot could not be written; those before are as they were.
        """
        options = {"unit": "step", "desc": self.name, "disable": self._world.rank > 0}
        with progress_bar(total=self.num_steps, initial=self.step, **options) as bar:
            while self.step < self.num_steps:
                yield self.step
                self.step += 1
                if self.rows:
                    bar.set_postfix(loss=f"{self.rows[-1]['loss']:.3f}", refresh=False)
                bar.update()
                if self._after_step is not None:
                    self._after_step(self.step)
                self._save_or_stop()

    def accept(self, row: Row, gradient_norm: Float[Tensor, ""]) -> bool:
        """Return whether the optimizer may make the step: its loss and its gradient are finite.

        If they are, the row is kept; if not, the step is counted as skipped.

        Args:
            row: Figures of the step, over all processes, among them its "loss".
            gradient_norm: The norm of the gradients, which all processes share.

        Raises:
            NonFiniteLossError: That many steps in a row may not be made. A snapshot has the weights before.
        """
        if not is_finite(row["loss"], float(gradient_norm)):
            where, limit = f"{self.name}, optimizer step {self.step}", self.max_nonfinite_steps
            self.nonfinite = count_skipped(self.nonfinite, limit, where, self._give_up)
            return False
        self.nonfinite = 0
        self.rows.append({"step": self.step, **row})
        return True

    def stop_if_asked(self) -> None:
        """Write a snapshot and leave if a process was asked to; for work between steps, such as a validation.

        Raises:
            StoppedError: The training is over for now, on all processes.
        """
        if code := asked_to_stop(self._world):
            self.save()
            self._leave(code)

    def save(self, *, in_background: bool = False) -> str:
        """Write a snapshot of the present position, unless there is one; return where, in words."""
        if self._snapshots is None:
            return "nothing on disk"
        progress: Mapping[str, Any] = {"recent": self.rows, "nonfinite": self.nonfinite, **self.kept}
        return str(self._snapshots.write(self.step, progress, in_background=in_background))

    def _save_or_stop(self) -> None:
        is_due = self._snapshots is not None and (
            self.step == self.num_steps or self._snapshots.is_due(self.step)
        )
        code = asked_to_stop(self._world)
        if code or is_due:
            self.save(in_background=not code and self.step < self.num_steps)
            code = asked_to_stop(self._world)  # saving takes time, and another step would take more
        if code:
            self._leave(code)

    def _leave(self, code: int) -> None:
        self.save()  # which waits for what is being written
        remedy = "" if self._snapshots is None else f"; to go on from there, {self._snapshots.advice.resume}"
        self._world.print(f"{self.name}: stopped after step {self.step}{remedy}")
        raise StoppedError(code)

    def _give_up(self) -> str:
        """Keep the weights, which are those before the steps that were skipped, and say where."""
        self.step, self.nonfinite = self.step + 1, self.nonfinite + 1
        return (
            f"The weights before them are kept ({self.save()}). Look at the data of these steps, or lower "
            "the learning rate; continued, the run tries the step after them"
        )
