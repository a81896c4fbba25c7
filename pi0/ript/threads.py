"""How many threads torch computes with: what a model can use, and the cores have room for."""

import os

import torch
from torch import nn

from pi0.errors import UnusableError
from pi0.ript.cores import whole_cores

_SMALL = 20_000_000  # parameters; such a model gains nothing from a second thread


def use_threads(model: nn.Module, asked: int = 0, beside: int = 0) -> int:
    """Have torch compute with as many threads as suit a model, and return their number.

    A small model gets one. A large one gets the cores that are left by what runs at the same time: the run's
    other processes on this machine, each of which takes as many, and its own helpers. Simulators do not
    count: threads change the rounding, and an episode must not depend on how many processes simulate.

    Args:
        model: What computes.
        asked: The setting `threads`: as many, whatever the model; 0: see above.
        beside: Processes of this one's own that work while it computes: those that read data ahead.

    Raises:
        UnusableError: More are asked for than there is room for.
    """
    cores, processes = whole_cores(), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    room = max(1, cores // processes - beside)
    if asked > room:
        raise UnusableError(
            f"threads: expected at most {room} ({cores} cores for {processes} processes of the run, each "
            f"with {beside} that read data), found {asked}; 0 takes what suits the model"
        )
    is_small = sum(parameter.numel() for parameter in model.parameters()) < _SMALL
    threads = asked or (1 if is_small else room)
    torch.set_num_threads(threads)
    return threads
