"""The snapshots of one supervised training: when they are due, what is in them, and the way back."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from pi0.ript.checkpoint import background
from pi0.ript.checkpoint.contents import Contents, take_contents
from pi0.ript.checkpoint.files import checkpoint_path
from pi0.ript.checkpoint.random_states import restore_rng_state
from pi0.ript.checkpoint.resuming import Advice, run_facts
from pi0.ript.checkpoint.snapshot import (
    Clock,
    Stateful,
    read_training,
    write_snapshot,
)
from pi0.ript.peers import ALONE, Peers
from pi0.value import ValueFunction


@runtime_checkable
class ExtraFiles(Protocol):
    """What a snapshot has besides what continues the training: the model as users load it, and more."""

    def tensors(self) -> dict[str, Tensor]:
        """Return tensors of the shapes of what is trained; they are kept in parts where that is in parts."""
        ...

    def write(self, directory: Path, contents: Contents, peers: Peers) -> None:
        """Write the rest to a snapshot's directory; all processes call it.

        Weights and `tensors` are those of the contents, whatever they are now.
        """
        ...

    def read(self, checkpoint: Path) -> None:
        """Put back what only these files hold."""
        ...


@dataclass
class Snapshots:
    """Checkpoint-{step} directories of one training. All processes call every method alike."""

    directory: Path
    """Where they are; it belongs to this training."""
    model: nn.Module
    """The model whose trained parameters are kept, not wrapped by DDP."""
    optimizer: torch.optim.Optimizer
    config: Any
    """All settings that the result depends on, a dataclass; each snapshot says them."""
    advice: Advice
    newest: Path | None = None
    """The snapshot to continue from, see `find_same_run`; its files are whole."""
    peers: Peers = ALONE
    save_freq: int | None = None
    """Optimizer steps between two; None: by the clock alone."""
    save_minutes: float | None = None
    """Minutes between two; None: by the steps alone."""
    keep_last: int = 1
    states: Mapping[str, Stateful] = field(default_factory=dict)
    """What has a position of its own, by name, such as the data."""
    data: Mapping[str, str] = field(default_factory=dict)
    """Hashes of what is learned from, by name."""
    extra: ExtraFiles | None = None
    after_write: Callable[[], object] | None = None
    """Called on rank 0 when a snapshot is in its place and old ones are gone."""

    def __post_init__(self) -> None:
        """Start the clock; describe the weights that are not trained, which takes a second at real size."""
        reads = self.model.reads if isinstance(self.model, ValueFunction) else None
        self._facts = run_facts(self.config, self.model, self.peers, reads, self.data)
        self._last_step: int | None = None
        self._clock = Clock(self.save_minutes, self.peers)

    def restore(self) -> dict[str, Any]:
        """Continue from the newest snapshot, if there is one; return the plain values that it kept.

        Raises:
            SnapshotError: Data, or weights that are not trained, are others than when it was written.
        """
        path, peers = self.newest, self.peers
        if path is None:
            return {}
        more = self._tensors()
        progress = read_training(
            path, self._facts, self.model, self.optimizer, self.states, peers, self.advice, more=more
        )
        if self.extra is not None:
            self.extra.read(path)
        self._last_step = progress["step"]
        restore_rng_state(path, peers.rank)
        return progress

    def is_due(self, step: int) -> bool:
        """Return whether it is time for a snapshot after so many steps, by rank 0's clock."""
        return (self.save_freq is not None and step % self.save_freq == 0) or self._clock.is_late()

    def write(self, step: int, progress: Mapping[str, Any], *, in_background: bool = False) -> Path:
        """Write checkpoint-{step}, unless it is there, delete old ones, and return it.

        `in_background`: return before it is written, if the peers have a `background`.

        Raises:
            SnapshotError: It could not be written, or the one before in the background, on all processes;
                those before are as they were.
        """
        background.wait()
        path = checkpoint_path(self.directory, step)
        if self._last_step != step:
            states = {name: state.state_dict() for name, state in self.states.items()}

            contents = take_contents(
                self.model,
                self.optimizer,
                states,
                {"step": step, **progress},
                self.peers,
                more=self._tensors(),
                copies=in_background and self.peers.background is not None,
            )

            def write(directory: Path, peers: Peers) -> None:
                contents.write(directory, peers)
                if self.extra is not None:
                    self.extra.write(directory, contents, peers)

            write_snapshot(
                path,
                write,
                {"position": [step, 0], **self._facts},
                peers=self.peers,
                remedy=self.advice.resume,
                keep_last=self.keep_last,
                after=self.after_write,
                in_background=in_background,
            )
            self._last_step = step
            self._clock.restart()
        return path

    def _tensors(self) -> dict[str, Tensor]:
        return {} if self.extra is None else self.extra.tensors()
