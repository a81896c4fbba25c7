"""Snapshots of a training: all that it needs to go on exactly, written completely or not at all.

A snapshot is a directory as in `files`: the trained weights (safetensors), trainer.pt (optimizer, and
positions in data by name), progress.json (plain values), the random states of each process, and the model as
users load it. Rung 13, the stages of RECAP and pi0-train write theirs here.
"""

import json
import random
import shutil
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pi0.ript.checkpoint.files import SnapshotError, begin, partial_path, prune, publish, published, verify
from pi0.ript.checkpoint.resuming import RUNG_13, Advice, require_same_run
from pi0.ript.peers import Peers

TRAINED = "trained.safetensors"
TRAINER = "trainer.pt"
PROGRESS = "progress.json"
_EXPECTED = (OSError, RuntimeError, SafetensorError, ValueError)  # a full disk is one of these, by who writes


@runtime_checkable
class Stateful(Protocol):
    """Something whose position a snapshot keeps."""

    def state_dict(self) -> dict[str, Any]:
        """Return the position."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue there."""
        ...


class Clock:
    """Tells when the last snapshot is so many minutes old, by the clock of rank 0; None: never."""

    def __init__(self, minutes: float | None, peers: Peers) -> None:
        self._minutes, self._peers = minutes, peers
        self.restart()

    def restart(self) -> None:
        """Note that a snapshot was written just now."""
        self._start = time.monotonic()

    def is_late(self) -> bool:
        """Return whether it is time for another one, on all processes alike."""
        if self._minutes is None:
            return False
        return self._peers.gather([time.monotonic() - self._start > 60 * self._minutes])[0][0]


def write_snapshot(
    path: Path,
    write: Callable[[Path], object],
    facts: Mapping[str, Any],
    *,
    peers: Peers,
    remedy: str,
    keep_last: int | None = None,
    outside: Collection[Path] = (),
    with_random_states: bool = True,
) -> None:
    """Make a directory that is there completely or not at all; all processes call this.

    A write that fails leaves the snapshots before as they were. On more than one machine the parent of `path`
    must be shared.

    Args:
        path: What it will be called.
        write: Fills the directory that it is given, on rank 0.
        facts: What the manifest says besides the files.
        peers: The processes that train together; each adds its random states.
        remedy: How the user goes on after a write that failed.
        keep_last: Snapshots to keep, with this one; None: all.
        outside: Files beside `path` without which the snapshot is of no use.
        with_random_states: False where nothing goes on from it.

    Raises:
        SnapshotError: It could not be written; on all processes.
    """
    partial, is_main = partial_path(path), peers.rank == 0
    random_states = rng_state()

    def fill() -> None:
        if with_random_states:
            torch.save(random_states, partial / rng_file(peers.rank))
        if is_main:
            write(partial)

    def finish() -> None:
        publish(partial, path, facts, outside)
        if keep_last is not None:
            prune(path, keep_last)

    try:
        for is_mine, part in ((is_main, lambda: begin(path)), (True, fill), (is_main, finish)):
            _together(part if is_mine else lambda: None, peers)
    except _EXPECTED as error:
        if is_main:
            shutil.rmtree(partial, ignore_errors=True)
        others = [other.name for other in published(path.parent)]
        raise SnapshotError(
            f"checkpoint {path} could not be written ({type(error).__name__}: {error}). If the disk is full "
            f"make room, then {remedy}; as before there are {others}"
        ) from error
    set_rng_state(random_states)  # of which writing uses some


def write_training(
    directory: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    states: Mapping[str, Any],
    progress: Mapping[str, Any],
    weights: str = TRAINED,
) -> None:
    """Write trained parameters, optimizer, positions by name, and plain values; `weights` names the file."""
    write_tensors(directory / weights, trained_parameters(model))
    torch.save({"optimizer": optimizer.state_dict(), **states}, directory / TRAINER)
    (directory / PROGRESS).write_text(json.dumps(progress))


def read_training(
    path: Path,
    facts: Mapping[str, Any],
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None,
    states: Mapping[str, Stateful],
    peers: Peers,
    advice: Advice = RUNG_13,
    weights: str = TRAINED,
) -> dict[str, Any]:
    """Put model, optimizer and positions, in place, where `write_training` found them.

    Args:
        path: A snapshot whose files are whole.
        facts: `run_facts` of the run that goes on.
        model: On any device.
        optimizer: None: only the weights are read.
        states: What has a position, by name.
        peers: The processes that train together.
        advice: What to do with a snapshot of another run.
        weights: Name of the file.

    Returns the plain values.

    Raises:
        SnapshotError: The model's parameters, frozen weights or data are others; nothing has changed.
    """
    trained = trained_parameters(model)
    _require_same_parameters(path, trained, weights)
    require_same_run(path, verify(path, hashes=False), facts, peers, advice)
    if optimizer is not None:
        trainer = torch.load(path / TRAINER, map_location="cpu", weights_only=True)
        for name, state in states.items():
            state.load_state_dict(trainer[name])
        optimizer.load_state_dict(trainer["optimizer"])
    copy_tensors(trained, load_file(path / weights))
    return read_progress(path)


def _require_same_parameters(path: Path, trained: Mapping[str, Tensor], weights: str) -> None:
    with safe_open(path / weights, "pt") as file:
        saved = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    here = {name: tuple(parameter.shape) for name, parameter in trained.items()}
    differ = sorted(name for name in saved.keys() | here.keys() if saved.get(name) != here.get(name))
    if differ:
        name = differ[0]
        raise SnapshotError(
            f"{path} is of another model: {len(differ)} trained parameters differ, the first {name!r}, saved "
            f"with shape {saved.get(name)}, here {here.get(name)}; start from the model of the run"
        )


def read_progress(path: Path) -> dict[str, Any]:
    """Return the plain values of a snapshot: where the training stood."""
    return json.loads((path / PROGRESS).read_text())


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return what is trained, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def write_tensors(file: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors of any device as safetensors."""
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, file)


def copy_tensors(targets: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    """Give tensors other values, by name and in place."""
    with torch.no_grad():
        for name, value in values.items():
            targets[name].copy_(value)


def _together(function: Callable[[], object], peers: Peers) -> None:
    """Run a function on each process; an error on one of them is raised on all."""
    error = None
    try:
        function()
    except _EXPECTED as raised:
        error = raised
    for (raised,) in peers.gather([error]):
        if raised is not None:
            raise raised


# Random states ----------------------------------------------------------------------------------------------


def restore_rng_state(path: Path, rank: int) -> None:
    """Put the random states of a process where they were, if the snapshot has those of as many processes."""
    own = path / rng_file(rank)
    if own.exists():
        set_rng_state(torch.load(own, weights_only=True))


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
