"""Several processes as one training run: torchrun, DDP or FSDP (nccl on GPUs, gloo on CPUs), shared work.

The result is that of one process on the same global batch: states are drawn in one global order, every
process holds every collected group, and an optimizer step is split among the processes.
"""

import atexit
import contextlib
import os
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.distributed as dist
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel

from pi0 import PI0Policy
from pi0.errors import UnusableError
from pi0.ript.lost_peers import RollCall, place, require_in_step
from pi0.ript.machines import end_with_launcher, require_shared
from pi0.ript.peers import ALONE, Portion, Turns, turns_alone
from pi0.ript.sharding import Loans, shard
from pi0.ript.starting_policy import weights_later
from pi0.ript.windows import batches
from pi0.tensor_files import Deferred
from pi0.weights import held_parameters


@dataclass(frozen=True)
class World:
    """One process among its peers; alone, every method is the identity."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    group: Any = None  # for objects, which travel through the host
    is_sharded: bool = False  # each process holds a part of what is trained, and writes that
    gather_dtype: str | None = None  # see `shard`
    loans: Loans | None = None
    calls: RollCall = field(default_factory=RollCall)  # names who is missing
    background: "World | None" = None  # the same processes, for a thread beside the training

    @property
    def holds_parts(self) -> bool:
        """Whether each process is to hold but a part of what it trains."""
        return self.loans is not None

    def device(self, name: str) -> str:
        """Return this process's own device: "cuda" becomes a GPU of its own on this machine."""
        if name == "auto":
            name = "cuda" if torch.cuda.is_available() else "cpu"
        return f"cuda:{self.local_rank}" if name == "cuda" else name

    def gather[T](self, items: list[T]) -> list[list[T]]:
        """Return everybody's list by rank; all processes call it from the same place of the program."""
        if self.size == 1:
            return [items]
        gathered: list[Any] = [None] * self.size
        with self.calls.clear_errors():
            dist.all_gather_object(gathered, (place(), items), group=self.group)
        require_in_step([where for where, _ in gathered])
        return [theirs for _, theirs in gathered]

    def turns(self, count: int) -> Turns:
        """Return the numbers below `count`, each for the process that asks for it first."""
        if self.size == 1:
            return turns_alone(count)
        (key,) = self.gather([uuid.uuid4().hex] if self.rank == 0 else [])[0]
        store = dist.distributed_c10d._get_default_store()  # what torchrun's processes met at

        def take(size: int) -> int:
            with self.calls.clear_errors():
                return store.add(key, size) - size

        return Turns(count, take)

    def sum(self, value: Float[Tensor, ""]) -> float:
        """Return the sum of everybody's number."""
        return float(sum(part[0] for part in self.gather([value.item()])))

    def on_main[T](self, function: Callable[..., T], *args: Any, **options: Any) -> T:
        """Return what the function returns on rank 0, where alone it runs; the others wait.

        If they hold parts of a model they lend them: what the function saves of it is whole.
        """
        with self.lending():
            results = [function(*args, **options)] if self.rank == 0 else []
        return self.gather(results)[0][0]

    @contextlib.contextmanager
    def lending(self) -> Iterator[None]:
        """Let rank 0 read whole what is in parts meanwhile; the others enter to lend, until it leaves."""
        if self.loans is None:
            yield
            return
        # On rank 0 the errors are also those of what it does meanwhile.
        with self.calls.clear_errors() if self.rank else contextlib.nullcontext(), self.loans.opened():
            yield

    def whole(self, model: nn.Module, values: Mapping[str, Tensor]) -> dict[str, Deferred]:
        """Return values of parameters, by name, each whole when rank 0 reads it in `lending`.

        Of a model in parts, also the parameters that `values` leave out.
        """
        if self.loans is None:
            return ALONE.whole(model, values)
        held = held_parameters(model) | dict(values)
        return {name: self.loans.lend(parameter) for name, parameter in held.items()}

    def copied(self, tensor: Tensor) -> Tensor:
        """Return a copy, in the memory of this machine, of what is here of a tensor."""
        return ALONE.copied(tensor) if self.loans is None else self.loans.copied(tensor)

    def first[T](self, function: Callable[..., T], *args: Any, **options: Any) -> T:
        """Call the function on rank 0 first, then on the others, and return its result here.

        So rank 0 makes the files that the others read. Where each process is to hold a part of a policy, its
        weights stay in their files until `wrap`.
        """
        if self.rank > 0:
            self.gather([])
        with weights_later(self.holds_parts):
            result = function(*args, **options)
        if self.rank == 0:
            self.gather([])
        return result

    def require_shared(self, *directories: str | Path) -> None:
        """Raise UnusableError where a directory is not one and the same for all processes."""
        require_shared(self, directories)

    def portion[T](self, items: Iterator[T]) -> Portion[T]:
        """Return this process's portion of one global order without end."""
        return Portion(items, self.rank, self.size)

    def wrap(self, learner: nn.Module) -> nn.Module:
        """Return the learner, so that gradients are averaged over the processes."""
        if self.size == 1:
            return learner
        if self.loans is not None:
            for module in learner.modules():
                if isinstance(module, PI0Policy) and module.prefixes is not None:
                    module.prefixes = None  # all processes compute together, and need not lack the same ones
                    self.print("prefixes are not kept (policy.prefix_cache_gib): distributed.strategy=fsdp")
            shard(learner, self.size, self.loans, self.gather_dtype)
            learner._compiled_call_impl = partial(
                self._call, learner
            )  # in place of what `learner(...)` calls
            return learner
        # Every parameter has a gradient in every step (held by a test), so none needs to be searched for.
        return DistributedDataParallel(learner, process_group=None, broadcast_buffers=False)

    def _call(self, learner: nn.Module, *args: Any, **options: Any) -> Any:
        """Call a learner whose pass gathers parameters, so that a process may be lost in it."""
        with self.calls.clear_errors():
            return learner._call_impl(*args, **options)

    def micro_batches(
        self, learner: nn.Module, window_ids: Int64[np.ndarray, " n"], size: int
    ) -> Iterator[Int64[np.ndarray, " b"]]:
        """Yield this process's share of an optimizer step; gradients are exchanged with the last of them.

        A process with nothing to do gets one empty batch, so that it takes part in the exchange. In shards,
        every pass gathers parameters, so all processes make as many.
        """
        mine = batches(window_ids[self.rank :: self.size], size) or [window_ids[:0]]
        if isinstance(learner, FSDPModule):
            mine += [window_ids[:0]] * (len(batches(window_ids[:: self.size], size)) - len(mine))
        for count, micro_batch in enumerate(mine, 1):
            if isinstance(learner, DistributedDataParallel):
                learner.require_backward_grad_sync = count == len(mine)
            elif isinstance(learner, FSDPModule):
                learner.set_requires_gradient_sync(count == len(mine))
            yield micro_batch

    def backward(self, loss: Float[Tensor, ""]) -> None:
        """Add this process's part of a loss to the gradients of the whole.

        DDP and FSDP average over the processes, and a sum is wanted.
        """
        with self.calls.clear_errors():
            (loss * self.size).backward()

    def require_equal(self, model: nn.Module) -> None:
        """Raise RuntimeError when the processes' parameters are not equal bit for bit."""
        if self.size > 1:
            sums = [p.detach().float().view(torch.int32).sum(dtype=torch.int64) for p in model.parameters()]
            everybody = self.gather([torch.stack(sums).cpu()])
            if not all(torch.equal(other[0], everybody[0][0]) for other in everybody):
                raise RuntimeError("the processes' parameters differ, so their gradients were not exchanged")

    def print(self, *values: object) -> None:
        """Print on rank 0."""
        if self.rank == 0:
            print(*values)  # noqa: T201


def setup_distributed(
    device: str,
    backend: str = "auto",
    timeout_seconds: int = 1800,
    strategy: str = "ddp",
    gather_dtype: str | None = None,
    background_checkpoints: bool = False,
    *,
    num_groups: int | None = None,
) -> World:
    """Return the world that torchrun's environment describes, after joining it; alone without torchrun.

    Args:
        device: "cpu", "cuda" (a GPU for each process), or "auto" for GPUs if there are any.
        backend: For GPUs "gloo", "nccl", or "auto", which is nccl; CPUs have gloo.
        timeout_seconds: How long to wait for another process; the slowest one's rollouts must fit.
        strategy: "ddp": every process holds the whole model; "fsdp": each holds a part of what is trained.
        gather_dtype: See `pi0.ript.sharding.shard`.
        background_checkpoints: Whether the world has a `background`.
        num_groups: Groups that are shared out in an iteration; None where no groups are.

    Raises:
        ValueError: There are fewer GPUs or groups than processes; or FSDP would have gloo serve GPUs.
    """
    size, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    local_rank, is_sharded = int(os.environ.get("LOCAL_RANK", "0")), strategy == "fsdp"
    if "TORCHELASTIC_RUN_ID" in os.environ:
        end_with_launcher()
    if size == 1:
        alone = World(is_sharded=is_sharded)
        return replace(alone, background=alone) if background_checkpoints else alone
    on_gpu = World(rank, size, local_rank).device(device).startswith("cuda")
    if num_groups is not None and num_groups < size:
        raise UnusableError(
            f"algo.data_batch_size: expected a group or more for each of the {size} processes, found "
            f"{num_groups}; start fewer (torchrun --nproc_per_node) or raise it"
        )
    if on_gpu:
        _require_gpus(device, size)
    if backend == "auto" or not on_gpu:
        backend = "nccl" if on_gpu else "gloo"
    if on_gpu:
        torch.cuda.set_device(local_rank)
        if is_sharded and backend == "gloo":
            raise UnusableError("distributed.strategy=fsdp: expected backend nccl for GPUs, found gloo")
    timeout = timedelta(seconds=timeout_seconds)
    dist.init_process_group(backend, timeout=timeout)
    atexit.register(cleanup_distributed)  # a process that leaves its group open is aborted by it
    group = dist.new_group(backend="gloo", timeout=timeout)
    calls = RollCall(rank, size, dist.distributed_c10d._get_default_store())
    loans = Loans(calls, group) if is_sharded else None
    world = World(rank, size, local_rank, group, is_sharded, gather_dtype, loans, calls)
    if not background_checkpoints:
        return world
    beside: Any = dist.new_group(backend="gloo", timeout=timeout)  # two threads must not talk in one
    mesh = DeviceMesh.from_group(beside, "cpu", mesh_dim_names=("background",))
    own = replace(world, group=beside, loans=Loans(calls, beside, mesh) if is_sharded else None)
    return replace(world, background=own)


def cleanup_distributed() -> None:
    """Leave the process group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def get_model_from_ddp[M: nn.Module](model: M | DistributedDataParallel) -> M:
    """Return the module that DDP wraps, or the module itself."""
    return cast("M", model.module) if isinstance(model, DistributedDataParallel) else model


def _require_gpus(device: str, size: int) -> None:
    local_size = int(os.environ.get("LOCAL_WORLD_SIZE", size))
    if torch.cuda.device_count() < local_size:
        raise UnusableError(
            f"device: expected a GPU for each of the {local_size} processes on this machine, found "
            f"{torch.cuda.device_count()}; start fewer (torchrun --nproc_per_node) or use device=cpu"
        )
    if ":" in device:
        raise UnusableError(
            f"device: {device!r} would put {size} processes on one GPU; use device=cuda, which gives "
            "each its own"
        )
