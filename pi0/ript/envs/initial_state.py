"""Initial states: full simulator states, hashed, saved to one file and checked when read back."""

import hashlib
import os
import struct
import zlib
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal
from zipfile import BadZipFile

import numpy as np
from jaxtyping import Float64

from pi0.errors import UnusableError

Split = Literal["train", "validation", "heldout"]
"""Simulations know the first and the last: validation states are training states that are set apart."""

UNREADABLE = (BadZipFile, zlib.error, struct.error, OSError, EOFError, KeyError, ValueError, RuntimeError)
"""What reading a damaged .npz raises, depending on where the damage is."""

_FORMAT = "pi0-ript initial states 1"


class InitialStateError(UnusableError):
    """An initial state, or a file of them, cannot be used; the message says why and what to do."""


@dataclass(frozen=True, eq=False)
class InitialState:
    """A full simulator state from which any number of bit-identical episodes can start.

    Two states are equal when task and vector are: how they were made does not matter.
    """

    task: str
    """Task id, "suite/name"."""
    vector: Float64[np.ndarray, " n"] = field(repr=False)
    """Everything that the simulator needs, in the layout of the task's simulation; read-only."""
    split: Split
    index: int
    """Number of the state within its split: the seed, or the position in the benchmark's list."""
    source: str = "placement"
    """Where it comes from: "placement" (sampler), "benchmark" or "demonstration"."""

    def __post_init__(self) -> None:
        """Freeze a private copy of the vector."""
        vector = np.array(self.vector, dtype=np.float64)
        if vector.ndim != 1 or not vector.size:
            raise InitialStateError(
                f"initial state of {self.task!r}: expected a vector, found shape {vector.shape}"
            )
        vector.flags.writeable = False
        object.__setattr__(self, "vector", vector)

    @cached_property
    def hash(self) -> str:
        """SHA-256 (hex) of task and vector."""
        digest = hashlib.sha256(self.task.encode() + b"\0")
        digest.update(self.vector.astype("<f8").tobytes())
        return digest.hexdigest()

    def __eq__(self, other: object) -> bool:
        """Return whether both are the same state of the same task."""
        return isinstance(other, InitialState) and self.hash == other.hash

    def __hash__(self) -> int:
        """Return a hash consistent with equality."""
        return hash(self.hash)

    def require_task(self, task: str) -> None:
        """Raise InitialStateError unless this is a state of `task` ("suite/name")."""
        if self.task != task:
            raise InitialStateError(f"expected a state of task {task!r}, found one of {self.task!r}")


def pool_hash(states: Iterable[InitialState]) -> str:
    """Return the SHA-256 (hex) of a sequence of states: content and order."""
    return hashlib.sha256("\n".join(state.hash for state in states).encode()).hexdigest()


def require_disjoint(train: Iterable[InitialState], heldout: Iterable[InitialState]) -> None:
    """Raise InitialStateError when a state is in both pools."""
    shared = set(train) & set(heldout)
    if shared:
        first = min(shared, key=lambda state: state.hash)
        raise InitialStateError(
            f"training and held-out states must be disjoint, {len(shared)} are in both, "
            f"the first of task {first.task!r}: {first.hash[:16]}"
        )


def save_initial_states(path: str | Path, states: Sequence[InitialState]) -> str:
    """Write the states to one .npz file (no pickle) and return their pool hash."""
    if not states:
        raise InitialStateError(f"{path}: there are no states to save")
    digest = pool_hash(states)
    temporary = Path(path).with_suffix(f".{os.getpid()}.partial.npz")  # two runs can make the same file
    temporary.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(
        temporary,
        format=np.array(_FORMAT),
        hash=np.array(digest),
        task=np.array([state.task for state in states]),
        split=np.array([state.split for state in states]),
        index=np.array([state.index for state in states], dtype=np.int64),
        source=np.array([state.source for state in states]),
        size=np.array([state.vector.size for state in states], dtype=np.int64),
        vector=np.concatenate([state.vector for state in states]),
    )
    temporary.replace(path)
    return digest


def load_initial_states(path: str | Path, tasks: Collection[str] | None = None) -> list[InitialState]:
    """Return the states of a file written by `save_initial_states`, in order.

    Args:
        path: The .npz file.
        tasks: Task ids that the caller can run; a state of another task is an error.

    Raises:
        InitialStateError: The file is corrupt, not such a file, or holds a state of another task.
    """
    remedy = "make the pool of states again"
    try:
        with np.load(path, allow_pickle=False) as file:
            if "format" not in file or str(file["format"]) != _FORMAT:
                raise InitialStateError(f"{path} is not a file of initial states; {remedy}")
            columns = {name: file[name] for name in file.files}
            vectors = np.split(columns["vector"], np.cumsum(columns["size"])[:-1])
            states = [
                InitialState(str(task), vector, str(split), int(index), str(source))  # pyright: ignore[reportArgumentType]
                for task, vector, split, index, source in zip(
                    columns["task"],
                    vectors,
                    columns["split"],
                    columns["index"],
                    columns["source"],
                    strict=True,
                )
            ]
    except (FileNotFoundError, InitialStateError):
        raise
    except UNREADABLE as error:
        raise InitialStateError(f"{path} is corrupt ({error}); {remedy}") from error
    content, expected = pool_hash(states), str(columns["hash"])
    if content != expected:
        raise InitialStateError(
            f"{path} is corrupt: content hash {content[:16]}, expected {expected[:16]}; {remedy}"
        )
    for state in states:
        if tasks is not None and state.task not in tasks:
            raise InitialStateError(
                f"{path} holds a state of task {state.task!r}; expected one of {sorted(tasks)}"
            )
    return states
