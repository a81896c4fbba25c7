"""The global random states of each process, in a file of its own in a snapshot."""

import random
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch


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
