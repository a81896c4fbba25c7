"""Arithmetic and operator calls of sampling, ours and lerobot's: counted, not timed, and without weights."""

from collections import Counter
from collections.abc import Callable
from unittest import mock

import peers
import torch
from ours import observation, pi0_config
from peers import lerobot_actions, lerobot_pi0
from sizes import Inputs, Size, make_inputs
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from pi0 import Pi0Model

_VIEWS = ("aten::_unsafe_view", "aten::_reshape_alias", "aten::detach")
_COPIES = ("aten::lift_fresh",)  # counts as a view, and brings a constant to the device


class Calls(TorchDispatchMode):
    """Counts operator calls by name meanwhile, but those that only look at memory in another way."""

    def __init__(self) -> None:
        super().__init__()
        self.by_name: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name
        if name in _COPIES or not (func.is_view or name in _VIEWS):
            self.by_name[name] += 1
        return func(*args, **(kwargs or {}))


def calls_of_a_step(sample: Callable[[int], object]) -> int:
    """Return the operator calls of one denoising step, given what samples with so many."""
    totals = []
    for num_steps in (1, 2):
        with torch.no_grad(), Calls() as calls:
            sample(num_steps)
        totals.append(calls.by_name.total())
    return totals[1] - totals[0]


def our_calls(size: Size) -> int:
    """Return the operator calls of our denoising step in float32, with a batch of 1."""
    model, inputs = Pi0Model(pi0_config(size, "float32")), make_inputs(size, batch=1)
    return calls_of_a_step(
        lambda num_steps: model.sample(observation(inputs), noise=inputs.noise, num_steps=num_steps)
    )


def lerobots_calls(size: Size) -> int:
    """Return those of lerobot's."""
    policy, inputs = lerobot_pi0(size), make_inputs(size, batch=1)
    return calls_of_a_step(lambda num_steps: lerobot_actions(policy, inputs, num_steps))


def our_teraflops(size: Size) -> float:
    """Return the arithmetic of a sample of ours in 10 steps: what is masked is left out."""
    inputs = observation(make_inputs(size, batch=1)).to("meta")
    model = Pi0Model(pi0_config(size, "float32"), seed=None, device="meta")
    return _teraflops(lambda: model.sample(inputs))


def lerobots_teraflops(size: Size) -> float:
    """Return that of lerobot's with the same inputs: all cameras and all prompt tokens are computed."""
    inputs: Inputs = make_inputs(size, batch=1).to("meta")
    is_there = mock.patch("lerobot.configs.policies.is_torch_device_available", return_value=True)
    with is_there, mock.patch.object(peers, "randomize", return_value=None):
        policy = lerobot_pi0(size, device="meta")
    return _teraflops(lambda: lerobot_actions(policy, inputs))


def _teraflops(sample: Callable[[], object]) -> float:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        sample()
    return counter.get_total_flops() / 1e12
