"""What continues a training, taken at one moment: as it is, or as copies that no later step changes."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pi0.ript.checkpoint.parts import PARTS, split_optimizer, write_parts
from pi0.ript.checkpoint.snapshot import (
    PROGRESS,
    TRAINED,
    TRAINER,
    trained_parameters,
    write_on_each,
    write_on_main,
    write_tensors,
)
from pi0.ript.peers import Peers


@dataclass(frozen=True)
class Contents:
    """Trained parameters, optimizer, positions by name, and plain values."""

    trained: dict[str, Tensor]
    """By name."""
    more: dict[str, Tensor]
    """Tensors of the same shapes, by name, such as averages of them."""
    _optimizer: dict[str, Tensor]
    """What of the optimizer's is in parts, by name."""
    _trainer: dict[str, Any]
    _progress: str

    def write(self, directory: Path, peers: Peers, weights: str = TRAINED) -> None:
        """Write them to a directory; all processes call this. `weights` names the file of whole ones."""
        if peers.is_sharded:
            parts = {**self.trained, **self._optimizer, **self.more}
            write_on_each(lambda: write_parts(directory / PARTS, parts, peers.group), peers)

        def write() -> None:
            if not peers.is_sharded:
                write_tensors(directory / weights, self.trained)
            torch.save(self._trainer, directory / TRAINER)
            (directory / PROGRESS).write_text(self._progress)

        write_on_main(write, peers)


def take_contents(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    states: Mapping[str, Any],
    progress: Mapping[str, Any],
    peers: Peers,
    *,
    more: Mapping[str, Tensor] | None = None,
    copies: bool = False,
) -> Contents:
    """Return what continues a training; all processes call this, and those that write nothing hold nothing.

    Args:
        model: What is trained.
        optimizer: The optimizer of its parameters.
        states: Positions, by name.
        progress: Plain values.
        peers: The processes that train together.
        more: Tensors to be kept besides.
        copies: Whether the training goes on before they are written; they are in this machine's memory then.
    """
    trained = {name: parameter.detach() for name, parameter in trained_parameters(model).items()}
    in_parts, kept = dict[str, Tensor](), dict[str, Any]()
    if peers.is_sharded:
        names = {parameter: name for name, parameter in trained_parameters(model).items()}
        in_parts, kept["optimizer"] = split_optimizer(optimizer, names)
    elif peers.rank == 0:
        kept["optimizer"] = optimizer.state_dict()
    else:
        trained, more = {}, {}
    tensors = (trained, dict(more or {}), in_parts, {**kept, **states} if peers.rank == 0 else {})
    taken: tuple[Any, Any, Any, Any] = tensors
    if copies:
        taken = _copied(tensors, peers.background or peers)
    return Contents(*taken, json.dumps(progress))


def _copied(value: Any, peers: Peers) -> Any:
    """Return a copy of nested dictionaries, lists and tuples in which tensors are copies, too."""
    if isinstance(value, Tensor):
        return peers.copied(value)
    if isinstance(value, dict):
        return {key: _copied(item, peers) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_copied(item, peers) for item in value)
    return value
