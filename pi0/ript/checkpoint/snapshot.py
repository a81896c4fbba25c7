"""Snapshots of a training: all that it needs to go on exactly, written completely or not at all.

A snapshot is a directory as in `files`: the trained weights (safetensors), trainer.pt (optimizer, and
positions in data by name), progress.json (plain values), the random states of each process, and the model as
users load it. Where each process holds a part of what is trained, weights and optimizer are in `parts`, in
place of the first. Rung 13, the stages of RECAP and pi0-train write theirs here.
"""

import json
import shutil
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pi0.ript.checkpoint import background
from pi0.ript.checkpoint.files import SnapshotError, begin, partial_path, prune, publish, published, verify
from pi0.ript.checkpoint.parts import PARTS, join_optimizer, read_parts, shapes
from pi0.ript.checkpoint.random_states import rng_file, rng_state, set_rng_state
from pi0.ript.checkpoint.resuming import RUNG_13, Advice, require_same_run
from pi0.ript.peers import Peers
from pi0.weights import held_parameters

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
    write: Callable[[Path, Peers], object],
    facts: Mapping[str, Any],
    *,
    peers: Peers,
    remedy: str,
    keep_last: int | None = None,
    outside: Collection[Path] = (),
    with_random_states: bool = True,
    after: Callable[[], object] | None = None,
    in_background: bool = False,
) -> None:
    """Make a directory that is there completely or not at all; all processes call this.

    A write that fails leaves the snapshots before as they were. One that is under way in the background is
    waited for first. On more than one machine the parent of `path` must be shared.

    Args:
        path: What it will be called.
        write: Fills the directory that it is given; all processes call it, with the processes to do it with,
            and what one of them alone does is by `write_on_main`.
        facts: What the manifest says besides the files.
        peers: The processes that train together; each adds its random states.
        remedy: How the user goes on after a write that failed.
        keep_last: Snapshots to keep, with this one; None: all.
        outside: Files beside `path` without which the snapshot is of no use.
        with_random_states: False where nothing goes on from it.
        after: Called on rank 0 when it is in its place and old ones are gone.
        in_background: Return before it is written, by `peers.background`; what `write` reads must not change.

    Raises:
        SnapshotError: It could not be written, or the one before in the background; on all processes.
    """
    random_states = rng_state()

    def make(peers: Peers) -> None:
        directory = partial_path(path)

        def keep_random_states() -> None:
            if with_random_states:
                torch.save(random_states, directory / rng_file(peers.rank))

        def finish() -> None:
            publish(directory, path, facts, outside)
            if keep_last is not None:
                prune(path, keep_last)
            if after is not None:
                after()

        try:
            write_on_main(lambda: begin(path), peers)
            write_on_each(keep_random_states, peers)
            write(directory, peers)
            write_on_main(finish, peers)
        except _EXPECTED as error:
            if peers.rank == 0:
                shutil.rmtree(directory, ignore_errors=True)
            others = [other.name for other in published(path.parent)]
            raise SnapshotError(
                f"checkpoint {path} could not be written ({type(error).__name__}: {error}). If the disk is "
                f"full make room, then {remedy}; as before there are {others}"
            ) from error

    background.wait()
    if in_background and peers.background is not None:
        background.start(partial(make, peers.background))
    else:
        make(peers)
        set_rng_state(random_states)  # of which writing uses some


def write_on_main(function: Callable[[], object], peers: Peers) -> None:
    """Run a function on rank 0, to which the others lend their parts; its error is raised on all."""
    error = None
    with peers.lending():
        if peers.rank == 0:
            try:
                function()
            except _EXPECTED as raised:
                error = raised
    _agree(error, peers)


def write_on_each(function: Callable[[], object], peers: Peers) -> None:
    """Run a function on each process; an error on one of them is raised on all."""
    error = None
    try:
        function()
    except _EXPECTED as raised:
        error = raised
    _agree(error, peers)


def read_training(
    path: Path,
    facts: Mapping[str, Any],
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None,
    states: Mapping[str, Stateful],
    peers: Peers,
    advice: Advice = RUNG_13,
    weights: str = TRAINED,
    more: Mapping[str, Tensor] | None = None,
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
        more: What else was written in parts.

    Returns the plain values.

    Raises:
        SnapshotError: The model's parameters, frozen weights or data are others, or it was trained by another
            strategy; nothing has changed.
    """
    trained = trained_parameters(model)
    _require_same_strategy(path, peers, advice)
    _require_same_parameters(path, trained, weights)
    require_same_run(path, verify(path, hashes=False), facts, peers, advice)
    trainer = {}
    if optimizer is not None:
        trainer = torch.load(path / TRAINER, map_location="cpu", weights_only=True)
        for name, state in states.items():
            state.load_state_dict(trainer[name])
    with changed_weights(model):
        if peers.is_sharded:
            targets: dict[str, Tensor] = {**trained, **(more or {})}
            if optimizer is not None:
                names = {parameter: name for name, parameter in trained.items()}
                targets |= join_optimizer(optimizer, names, trainer["optimizer"], shapes(path / PARTS))
            read_parts(path / PARTS, {name: target.detach() for name, target in targets.items()})
        else:
            if optimizer is not None:
                optimizer.load_state_dict(trainer["optimizer"])
            copy_tensors(trained, load_file(path / weights))
    return read_progress(path)


@contextmanager
def changed_weights(model: nn.Module) -> Iterator[None]:
    """Have trained parameters changed meanwhile; whole ones that were gathered from parts are made anew."""
    is_training = model.training
    model.train()
    try:
        yield
    finally:
        model.train(is_training)


def _require_same_strategy(path: Path, peers: Peers, advice: Advice) -> None:
    before, now = (
        "fsdp" if is_sharded else "ddp" for is_sharded in ((path / PARTS).exists(), peers.is_sharded)
    )
    if before != now:
        policies = [place for place in (path / "policy", path) if (place / "config.json").exists()]
        weights = f"; its weights alone can begin a new run, by policy_path={policies[0]}" if policies else ""
        raise SnapshotError(
            f"{path} was written with distributed.strategy={before}, this run has {now}: set it back, or "
            f"{advice.anew}{weights}"
        )


def _require_same_parameters(path: Path, trained: Mapping[str, Tensor], weights: str) -> None:
    if (path / PARTS).exists():
        kinds = ("optimizer.", "average.")
        saved = {name: shape for name, shape in shapes(path / PARTS).items() if not name.startswith(kinds)}
    else:
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
    """Return what is trained, by name: of a model that processes share, the parts that are here."""
    return {name: parameter for name, parameter in held_parameters(model).items() if parameter.requires_grad}


def write_tensors(file: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors of any device as safetensors."""
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, file)


def copy_tensors(targets: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    """Give tensors other values, by name and in place."""
    with torch.no_grad():
        for name, value in values.items():
            targets[name].copy_(value)


def _agree(error: Exception | None, peers: Peers) -> None:
    """Raise on all processes what one of them raised."""
    for (raised,) in peers.gather([error]):
        if raised is not None:
            raise raised
