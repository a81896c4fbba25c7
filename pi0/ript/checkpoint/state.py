"""Checkpoints of a run, and its continuation from them as if nothing had happened.

A run is a function of its settings; where it stands is: weights, optimizer, the sampler of states, and the
position (iteration, optimizer step in it, losses so far).
"""

import hashlib
import json
import platform
import random
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from pi0 import PI0Policy
from pi0.ript.checkpoint.files import (
    CheckpointError,
    begin,
    checkpoint_path,
    partial_path,
    prune,
    publish,
    published,
    verify,
)
from pi0.ript.checkpoint.resuming import settings
from pi0.ript.files import library_hash
from pi0.ript.monitoring import NonFiniteLossError
from pi0.ript.peers import ALONE, Peers

_WEIGHTS, _TRAINER, _PROGRESS = "trainable.safetensors", "trainer.pt", "progress.json"
_PACKAGES = ("torch", "lerobot", "mujoco", "metaworld", "hf-libero", "robosuite")
_EXPECTED = (OSError, RuntimeError, SafetensorError, ValueError)  # a full disk is one of these, by who writes


@dataclass
class Progress:
    """Where a run stands."""

    iteration: int = 0
    """The iteration that is next, or under way."""
    step: int = 0
    """Optimizer steps made in it."""
    losses: list[float] = field(default_factory=list)
    """Of those."""
    metrics: list[dict[str, Any]] = field(default_factory=list)
    """Rows of the iterations before."""
    nonfinite: int = 0
    """Optimizer steps skipped in a row."""

    def remaining[T](self, steps: Iterable[T]) -> Iterator[tuple[int, T]]:
        """Yield number and content of the iteration's optimizer steps that are not made yet."""
        yield from islice(enumerate(steps), self.step, None)

    def count(self, loss: float, is_taken: bool, limit: int) -> None:
        """Count an optimizer step; one that was not taken is skipped, and adds no loss.

        Raises:
            NonFiniteLossError: That was the `limit`-th in a row to be skipped.
        """
        position = f"iteration {self.iteration}, optimizer step {self.step}"
        self.step += 1
        if is_taken:
            self.losses.append(loss)
            self.nonfinite = 0
            return
        self.nonfinite += 1
        if self.nonfinite >= limit:
            raise NonFiniteLossError(
                f"{position}: the loss is {loss}, or its gradient is not finite; that is number "
                f"{self.nonfinite} in a row (max_nonfinite_steps={limit}). Lower algo.lr or "
                "algo.grad_norm_clip, or look at the data of this step"
            )
        print(f"{position}: skipped on all processes")  # noqa: T201

    def finish_iteration(self) -> None:
        """Move to the next iteration."""
        self.iteration, self.step, self.losses = self.iteration + 1, 0, []


@runtime_checkable
class Stateful(Protocol):
    """Something whose position a checkpoint keeps."""

    def state_dict(self) -> dict[str, Any]:
        """Return the position."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue there."""
        ...


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
) -> Path:
    """Write a checkpoint that is there completely or not at all, and return it; all processes call this.

    Its `policy` is what `PI0Policy.from_pretrained` and lerobot load. A write that fails leaves the
    checkpoints before as they were. On more than one machine `output_dir` must be shared.

    Args:
        model: The policy, or a learner that has it as `policy`, not wrapped.
        optimizer: Of its parameters.
        step: Iterations made.
        config: Settings (a dataclass, or a mapping).
        output_dir: The run's directory.
        progress: Where the run stands; default: before iteration `step`.
        sampler_state: Position of the sampler at the start of the iteration.
        episodes: Files in `output_dir` without which the checkpoint cannot be continued.
        peers: The processes that train together.
        keep_last: Checkpoints to keep, with this one.

    Raises:
        CheckpointError: It could not be written; on all processes.
    """
    progress = progress or Progress(iteration=step)
    path = checkpoint_path(Path(output_dir), progress.iteration, progress.step)
    partial, policy, is_main = partial_path(path), _policy(model), peers.rank == 0
    random_states = rng_state()

    def write_state() -> None:
        torch.save(random_states, partial / rng_file(peers.rank))
        if is_main:
            trained = {n: p.detach().cpu().contiguous() for n, p in _trained(policy).items()}
            save_file(trained, partial / _WEIGHTS)
            torch.save({"optimizer": optimizer.state_dict(), "sampler": sampler_state}, partial / _TRAINER)
            (partial / _PROGRESS).write_text(json.dumps(asdict(progress)))
            policy.save_pretrained(partial / "policy")

    def finish() -> None:
        facts = {
            "position": [progress.iteration, progress.step],
            "config": settings(config),
            "num_processes": peers.size,
            "untrained": _fingerprint(policy),
            "versions": _versions(),
        }
        publish(partial, path, facts, episodes)
        prune(path, keep_last)

    try:
        for is_mine, part in ((is_main, lambda: begin(path)), (True, write_state), (is_main, finish)):
            together(part if is_mine else lambda: None, peers)
    except _EXPECTED as error:
        if is_main:
            shutil.rmtree(partial, ignore_errors=True)
        raise CheckpointError(
            f"checkpoint {path} could not be written ({type(error).__name__}: {error}). "
            "If the disk is full make room, then continue with --resume; "
            f"as before there are {[other.name for other in published(path.parent)]}"
        ) from error
    set_rng_state(random_states)  # of which writing uses some
    return path


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
        sampler: Of states.
        peers: Each process gets its own random states.
        is_verified: The files have just been checked.

    Raises:
        CheckpointError: A file is damaged, or it is a checkpoint of another model; nothing has changed.
    """
    path = Path(path)
    manifest = verify(path, hashes=not is_verified)
    policy = _policy(model)
    trained, saved = _trained(policy), load_file(path / _WEIGHTS)
    _require_same_model(path, trained, saved, manifest["untrained"], _fingerprint(policy))
    with torch.no_grad():
        for name, parameter in trained.items():
            parameter.copy_(saved[name])
    if optimizer is not None:
        trainer = torch.load(path / _TRAINER, map_location="cpu", weights_only=True)
        optimizer.load_state_dict(trainer["optimizer"])
        if sampler is not None:
            sampler.load_state_dict(trainer["sampler"])
    if peers.rank == 0:
        _say_what_changed(manifest, peers.size)
    progress, own = read_progress(path), path / rng_file(peers.rank)
    if optimizer is not None and own.exists():
        set_rng_state(torch.load(own, weights_only=True))
    return progress


def read_progress(path: Path) -> Progress:
    """Return where the run stood."""
    return Progress(**json.loads((path / _PROGRESS).read_text()))


def together[T](function: Callable[[], T], peers: Peers) -> list[T]:
    """Return what the function returns on each process; an error on one of them is raised on all."""
    error, result = None, None
    try:
        result = function()
    except _EXPECTED as raised:
        error = raised
    parts = [part[0] for part in peers.gather([(error, result)])]
    for raised, _ in parts:
        if raised is not None:
            raise raised
    return [cast("T", result) for _, result in parts]


def _policy(model: nn.Module) -> PI0Policy:
    policy = model if isinstance(model, PI0Policy) else getattr(model, "policy", None)
    if not isinstance(policy, PI0Policy):
        raise TypeError(f"model: expected a PI0Policy or a learner with one, found {type(model).__name__}")
    return policy


def _trained(policy: PI0Policy) -> dict[str, nn.Parameter]:
    return {name: p for name, p in policy.named_parameters() if p.requires_grad}


def _fingerprint(policy: PI0Policy) -> str:
    """Return a hash of what is not trained; sums of bits, because hashing gigabytes would take seconds."""
    trained = _trained(policy)
    kinds = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    sums = {
        name: int(value.detach().contiguous().view(kinds[value.element_size()]).sum(dtype=torch.int64))
        for name, value in policy.state_dict().items()
        if name not in trained
    }
    return hashlib.sha256(json.dumps(sums, sort_keys=True).encode()).hexdigest()


def _require_same_model(
    path: Path, trained: dict[str, Any], saved: dict[str, Any], fingerprint: str, found: str
) -> None:
    differ = {
        name: [tuple(side[name].shape) if name in side else None for side in (saved, trained)]
        for name in trained.keys() | saved.keys()
    }
    differ = {name: shapes for name, shapes in differ.items() if shapes[0] != shapes[1]}
    if differ:
        name = min(differ)
        raise CheckpointError(
            f"{path} is of another model: {len(differ)} trained parameters differ, the first {name!r}, saved "
            f"with shape {differ[name][0]}, here {differ[name][1]}; start from the policy of the run"
        )
    if fingerprint != found:
        raise CheckpointError(
            f"{path}: the weights that are not trained differ from those of the run; the files at "
            "policy_path or the statistics are others than when it started"
        )


def _versions() -> dict[str, str]:
    return {
        "python": platform.python_version(),
        "code": library_hash(),
        **{name: version(name) for name in _PACKAGES},
    }


def _say_what_changed(manifest: dict[str, Any], num_processes: int) -> None:
    now = _versions()
    changes = [f"{k} {old} -> {now.get(k)}" for k, old in manifest["versions"].items() if old != now.get(k)]
    if manifest["num_processes"] != num_processes:
        changes.append(f"processes {manifest['num_processes']} -> {num_processes}")
    if changes:
        print(f"resume: {', '.join(changes)}; the results are equal up to rounding at best")  # noqa: T201


def rng_file(rank: int) -> str:
    """Return the name of the file with a process's random states."""
    return f"rng_rank{rank}.pt"


def rng_state() -> dict[str, Any]:
    """Return the global random states of this process, in types that load without pickle."""
    kind, keys, *rest = np.random.get_state(legacy=True)
    numpy_state = (kind, cast("np.ndarray", keys).tolist(), *rest)
    state = {"python": random.getstate(), "numpy": numpy_state, "torch": torch.get_rng_state()}
    return state | ({"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else {})


def set_rng_state(state: dict[str, Any]) -> None:
    """Put the global random states where `rng_state` found them."""
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
