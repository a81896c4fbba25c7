"""FSDP2: every process holds a part of each parameter; whole ones are gathered for as long as they compute.

Each transformer block is a unit that is gathered before it computes and given back after; the language
model's blocks and the expert's are needed at different times, so they are units of their own. What belongs to
no block is one more unit, gathered for the whole pass.

A model that acts is gathered as a whole when it is set to evaluation mode, and given back in training mode:
processes infer different numbers of times, and could not take part in each other's gathering.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, cast
from weakref import WeakValueDictionary

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from pi0.errors import UnusableError
from pi0.prefix import PrefixModel
from pi0.ript.lost_peers import RollCall
from pi0.tensor_files import Deferred
from pi0.trainable import inference_dtypes


class Loans:
    """Rank 0 asks for whole parameters, one at a time, while the others wait for it and lend their parts."""

    def __init__(self, calls: RollCall, group: Any, mesh: DeviceMesh | None = None) -> None:
        """Lend nothing yet.

        Args:
            calls: Names who is missing.
            group: For objects, and for parts on their way.
            mesh: The processes on CPUs, which copies of parts belong to; None: nothing is copied.
        """
        self.calls, self._group, self._mesh = calls, group, mesh
        self._parameters: WeakValueDictionary[int, Tensor] = WeakValueDictionary()
        self._num_known = 0
        self._is_open = False

    def lend(self, parameter: Tensor) -> Deferred:
        """Return a parameter, in parts here, which rank 0 reads whole; all call this in the same order."""
        number, self._num_known = self._num_known, self._num_known + 1
        self._parameters[number] = parameter
        return Deferred(tuple(parameter.shape), parameter.dtype, partial(self._borrow, number))

    def copied(self, tensor: Tensor) -> Tensor:
        """Return a copy of a tensor, or of its part that is here, in the memory of this machine."""
        if not isinstance(tensor, DTensor):
            return tensor.detach().to("cpu", copy=True)
        own, form = tensor.to_local().detach(), {"shape": tensor.shape, "stride": tensor.stride()}
        copy = own.to("cpu", copy=True)
        return DTensor.from_local(copy, self._mesh, tensor.placements, run_check=False, **form)

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Let rank 0 borrow meanwhile; the others come here to lend, until it has finished."""
        if self.calls.rank > 0:
            while (number := self._told(None)) is not None:
                self._send(self._parameters[number])
            yield
            return
        self._is_open = True
        try:
            yield
        finally:
            self._is_open = False
            self._told(None)

    def _borrow(self, number: int) -> Tensor:
        if not self._is_open:
            raise RuntimeError("a parameter in parts can be read whole in World.on_main alone, on rank 0")
        self._told(number)
        return self._receive(self._parameters[number])

    def _told(self, number: int | None) -> int | None:
        """Return what rank 0 says."""
        message = [number]
        dist.broadcast_object_list(message, src=0, group=self._group)
        return message[0]

    def _send(self, parameter: Tensor) -> None:
        own = cast(DTensor, parameter).to_local().detach().cpu().contiguous()
        if len(own):
            dist.send(own, 0, group=self._group)

    def _receive(self, parameter: Tensor) -> Tensor:
        """Return it whole; only this process has more of it than before."""
        own = cast(DTensor, parameter).to_local().detach()
        whole = torch.empty(parameter.shape, dtype=own.dtype)
        parts = whole.chunk(dist.get_world_size(self._group))  # as FSDP has them
        parts[0].copy_(own)
        for rank, part in enumerate(parts[1:], 1):
            dist.recv(part, rank, group=self._group)
        return whole.to(own.device)


class Shards(nn.Module):
    """The parts of a model's parameters that are here; a child of the model, so that it hears of its mode."""

    def __init__(self, model: nn.Module, units: list[FSDPModule], loans: Loans) -> None:
        super().__init__()
        self.held = dict(model.named_parameters())
        """The parameters in parts, by name: what is trained, whatever the modules have in their place."""
        self._units, self._hooks = units, list[tuple[Mapping[int, Any], Mapping[int, Any]]]()
        self._calls = loans.calls
        self._lent = {name: loans.lend(parameter) for name, parameter in self.held.items()}

    def whole(self) -> dict[str, Deferred]:
        """Return the parameters by name; each is whole when rank 0 reads it in `World.on_main`."""
        return dict(self._lent)

    def train(self, mode: bool = True) -> "Shards":
        """Gather the model for evaluation mode, and give it back for training; all processes together."""
        is_gathered = bool(self._hooks)
        if mode and is_gathered:
            self._give_back()
        elif not mode and not is_gathered:
            self._gather()
        return super().train(mode)

    def _gather(self) -> None:
        with self._calls.clear_errors():
            for unit in self._units:
                unit.unshard()
        # Without its hooks, FSDP neither gives the parameters back after a pass nor notes passes for a
        # backward pass that will not come.
        modules = [cast(nn.Module, unit) for unit in self._units]
        self._hooks = [(dict(m._forward_pre_hooks), dict(m._forward_hooks)) for m in modules]
        for module in modules:
            module._forward_pre_hooks.clear()
            module._forward_hooks.clear()

    def _give_back(self) -> None:
        for unit, (before, after) in zip(self._units, self._hooks, strict=True):
            module = cast(nn.Module, unit)
            module._forward_pre_hooks.update(before)
            module._forward_hooks.update(after)
            unit.reshard()
        self._hooks = []


def shard(learner: nn.Module, size: int, loans: Loans, gathered: str | None) -> None:
    """Have each of `size` processes hold a part of a learner's parameters, in place, in training mode.

    Args:
        learner: A module with one model of this library in it; its `forward` computes a loss.
        size: How many there are.
        loans: How rank 0 reads whole parameters.
        gathered: Name of the dtype in which the large weights of language model and expert travel and
            compute; None: that of the computation. What a computation in bfloat16 keeps exact stays so.

    Raises:
        UnusableError: Weights would be rounded that the computation does not round.
    """
    models = [module for module in learner.modules() if isinstance(module, PrefixModel)]
    if len(models) != 1:
        raise UnusableError(
            f"distributed.strategy=fsdp: expected one model in {type(learner).__name__}, found {len(models)}"
        )
    model = models[0]
    dtype = model.dtype if gathered is None else getattr(torch, gathered)
    if dtype is torch.bfloat16 and model.dtype is torch.float32:
        raise UnusableError(
            "distributed.gather_dtype: bfloat16 would round what policy.dtype=float32 computes exactly; "
            "leave it out, or set policy.dtype=bfloat16"
        )
    rounded = MixedPrecisionPolicy(
        param_dtype=None if dtype is torch.float32 else dtype,
        reduce_dtype=torch.float32,
        cast_forward_inputs=False,
    )
    large = {name.rpartition(".")[0] for name in inference_dtypes(model, dtype)}
    names = {module: name for name, module in model.named_modules()}
    later, model.later = model.later, None
    device = next(model.parameters()).device if later is None else later.device
    mesh = init_device_mesh(device.type, (size,))
    units = list[FSDPModule]()

    def add(module: nn.Module, policy: MixedPrecisionPolicy) -> None:
        if later is not None:  # so that no process has more of the whole model than this at once
            later.fill(model, module)
        unit = fully_shard(module, mesh=mesh, mp_policy=policy)
        if device.type == "cpu":  # gloo has no average
            unit.set_force_sum_reduction_for_comms(True)
        units.append(unit)

    exact = MixedPrecisionPolicy(cast_forward_inputs=False)
    for module in _parts(model):
        layers = [part for part in module.modules() if any(True for _ in part.parameters(recurse=False))]
        kept = [layer for layer in layers if names[layer] not in large]
        is_rounded = rounded.param_dtype is not None and len(kept) < len(layers)
        for layer in kept if is_rounded else ():  # a unit travels in one dtype
            add(layer, exact)
        add(module, rounded if is_rounded else exact)
    add(learner, exact)
    model.add_module("shards", Shards(model, units, loans))
    learner.train()


def _parts(model: PrefixModel) -> list[nn.Module]:
    """Return what is gathered for itself: blocks, and the embedding, which is large and needed once."""
    stacks = [getattr(model, name) for name in ("vision", "vlm", "expert") if hasattr(model, name)]
    parts = [block for stack in stacks for block in stack.blocks]
    return [*parts, model.vlm.last, model.vlm.embed] if hasattr(model, "vlm") else parts
