"""Checkpoints of a run of rung 13, and its continuation from them as if nothing had happened.

A run is a function of its settings; where it stands is: weights, optimizer, the sampler of states, and the
position (iteration, optimizer step in it, losses so far).
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pi0 import PI0Policy
from pi0.ript.checkpoint import background
from pi0.ript.checkpoint.contents import take_contents
from pi0.ript.checkpoint.files import UNTRAINED, checkpoint_path, verify
from pi0.ript.checkpoint.random_states import restore_rng_state
from pi0.ript.checkpoint.resuming import RUNG_13, run_facts
from pi0.ript.checkpoint.snapshot import (
    Stateful,
    read_training,
    write_on_main,
    write_snapshot,
)
from pi0.ript.monitoring import count_skipped
from pi0.ript.peers import ALONE, Peers
from pi0.tensor_files import Deferred

_WEIGHTS = "trainable.safetensors"
_REMEDY = "Lower algo.lr or algo.grad_norm_clip, or look at the data of this step"


@dataclass
class Progress:
    """Where a run stands."""

    iteration: int = 0
    """The iteration that is next, or under way."""
    step: int = 0
    """Optimizer steps made in it."""
    losses: list[float] = field(default_factory=list)
    """The losses of these steps."""
    metrics: list[dict[str, Any]] = field(default_factory=list)
    """The rows of metrics of the iterations before."""
    nonfinite: int = 0
    """Optimizer steps skipped in a row."""

    @property
    def position(self) -> tuple[int, int]:
        """Return iteration and step."""
        return self.iteration, self.step

    def remaining[T](self, steps: Iterable[T]) -> Iterator[tuple[int, T]]:
        """Yield number and content of the iteration's optimizer steps that are not made yet."""
        yield from islice(enumerate(steps), self.step, None)

    def count(self, loss: float, is_taken: bool, limit: int) -> None:
        """Count an optimizer step; one that was not taken is skipped, and adds no loss.

        Raises:
            NonFiniteLossError: That was the `limit`-th in a row to be skipped.
        """
        where = f"iteration {self.iteration}, optimizer step {self.step}"
        self.step += 1
        if is_taken:
            self.losses.append(loss)
            self.nonfinite = 0
        else:
            self.nonfinite = count_skipped(self.nonfinite, limit, where, lambda: _REMEDY)

    def finish_iteration(self) -> None:
        """Move to the next iteration."""
        self.iteration, self.step, self.losses = self.iteration + 1, 0, []


def save_checkpoint(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    step: int,
    config: Any,
    output_dir: str | Path,
    *,
    progress: Progress | None = None,
    sampler_state: dict[str, Any] | None = None,
    episodes: Collection[Path] = (),
    peers: Peers = ALONE,
    keep_last: int = 3,
    after: Callable[[], object] | None = None,
    in_background: bool = False,
) -> Path:
    """Write a checkpoint that is there completely or not at all, and return it; all processes call this.

    Its `policy` is what `PI0Policy.from_pretrained` loads, and lerobot if all of it is trained: other weights
    are stored once, beside the checkpoints. A write that fails leaves the checkpoints before as they were. On
    more than one machine `output_dir` must be shared.

    Args:
        model: The policy, or a learner that has it as `policy`, not wrapped.
        optimizer: The optimizer of its parameters.
        step: Iterations made.
        config: Settings (a dataclass, or a mapping).
        output_dir: The run's directory.
        progress: Where the run stands; default: before iteration `step`.
        sampler_state: Position of the sampler at the start of the iteration.
        episodes: Files in `output_dir` without which the checkpoint cannot be continued.
        peers: The processes that train together.
        keep_last: Checkpoints to keep, with this one.
        after: Called on rank 0 when it is written.
        in_background: Return before it is, if the peers have a `background`.

    Raises:
        SnapshotError: It could not be written, or the one before in the background; on all processes.
    """
    progress, policy = progress or Progress(iteration=step), _policy(model)
    path = checkpoint_path(Path(output_dir), *progress.position)

    background.wait()
    copies, states = in_background and peers.background is not None, {"sampler": sampler_state}
    contents = take_contents(policy, optimizer, states, asdict(progress), peers, copies=copies)

    def write(directory: Path, peers: Peers) -> None:
        contents.write(directory, peers, _WEIGHTS)
        weights = peers.whole(policy, contents.trained)
        write_on_main(partial(_save_policy, policy, directory, weights), peers)

    facts = {"position": list(progress.position), **run_facts(config, policy, peers)}
    write_snapshot(
        path,
        write,
        facts,
        peers=peers,
        remedy=RUNG_13.resume,
        keep_last=keep_last,
        outside=episodes,
        after=after,
        in_background=in_background,
    )
    return path


def _save_policy(policy: PI0Policy, directory: Path, weights: Mapping[str, Deferred]) -> None:
    untrained = directory.parent / UNTRAINED
    policy.save_pretrained(directory / "policy", untrained=untrained, weights=weights)


def load_checkpoint(
    path: str | Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None = None,
    sampler: Stateful | None = None,
    *,
    peers: Peers = ALONE,
    is_verified: bool = False,
) -> Progress:
    """Put model, optimizer, sampler and random states, in place, where they were; return where the run stood.

    Args:
        path: The checkpoint.
        model: The policy that the run started from, or a learner that has it as `policy`; on any device.
        optimizer: None leaves the optimizer and the random states.
        sampler: The sampler of initial states.
        peers: Each process gets its own random states.
        is_verified: The files have just been checked.

    Raises:
        SnapshotError: A file is damaged, or it is a checkpoint of another model; nothing has changed.
    """
    path, policy = Path(path), _policy(model)
    verify(path, hashes=not is_verified)
    facts, states = run_facts({}, policy, peers), {} if sampler is None else {"sampler": sampler}
    progress = Progress(**read_training(path, facts, policy, optimizer, states, peers, weights=_WEIGHTS))
    if optimizer is not None:
        restore_rng_state(path, peers.rank)
    return progress


def _policy(model: nn.Module) -> PI0Policy:
    policy = model if isinstance(model, PI0Policy) else getattr(model, "policy", None)
    if not isinstance(policy, PI0Policy):
        raise TypeError(f"model: expected a PI0Policy or a learner with one, found {type(model).__name__}")
    return policy
