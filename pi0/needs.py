"""What a model takes in memory, on disk and in arithmetic, counted before any weights are read."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks

from pi0.config import Pi0Config
from pi0.lerobot_format import split_embedded_statistics
from pi0.lerobot_names import LM_HEAD, canonical_keys, unused_shapes
from pi0.model import Pi0Model
from pi0.observation import Observation
from pi0.tensor_files import stored_weights
from pi0.trainable import hold, inference_dtypes
from pi0.weights import merged_parameters, stored_dtypes, with_memory


@dataclass(frozen=True)
class MemoryNeeds:
    """What a training of a model takes, in bytes."""

    weights: int
    gradients: int
    moments: int
    """The optimizer's averages."""
    activations: int
    """What a forward pass keeps for the backward pass, copies of weights in the compute dtype included."""
    accumulates: bool = False
    """Whether gradients of the micro-batches before are there while the next one computes."""
    exchanged: int = 0
    """What processes hold besides to train together: copies of gradients, or whole blocks."""
    acting: int = 0
    """Whole weights that are gathered to act, when there are neither gradients nor activations."""

    @property
    def peak(self) -> int:
        """Return the most at once: activations are gone when all gradients are there."""
        together = self.gradients + self.activations
        training = together if self.accumulates else max(self.gradients, self.activations)
        return self.weights + self.moments + max(training + self.exchanged, self.acting)


@dataclass(frozen=True)
class DiskNeeds:
    """What the files of a policy take, in bytes."""

    untrained: int
    """What is stored once in a run."""
    trained: int
    """What each policy of the run has for itself."""
    complete: int
    """A policy that refers to nothing."""
    snapshot: int
    """What continues its training: trained parameters and the optimizer's averages."""


def sized_model(config: Pi0Config, directory: Path) -> Pi0Model:
    """Return a model without memory whose parameters have the dtypes of a checkpoint's."""
    _, tensors = split_embedded_statistics(stored_weights(directory))
    model = config.create(seed=None, device="meta")
    hold(model, stored_dtypes(config, canonical_keys(tensors, config)))
    return model


def training_memory(model: Pi0Model, batch_size: int, num_cameras: int, *, num_draws: int = 1) -> MemoryNeeds:
    """Return what a step of training takes for a frozen model of `sized_model`, with the longest prompts."""
    gradients = _num_bytes(p for p in model.parameters() if p.requires_grad)
    weights = _num_bytes(model.parameters())
    config = model.config

    def loss(twin: Pi0Model) -> Tensor:
        observation = example_observation(config, batch_size, num_cameras, config.tokenizer_max_length)
        shape = (batch_size, config.chunk_size, config.max_action_dim)
        return twin.loss(observation, torch.zeros(shape), num_draws=num_draws)

    return MemoryNeeds(weights, gradients, 2 * gradients, _saved_bytes(model, loss))


def process_memory(
    needs: MemoryNeeds, model: Pi0Model, strategy: str, num_processes: int, *, accumulates: bool
) -> MemoryNeeds:
    """Return what each of the processes that train a model together takes.

    Args:
        needs: `training_memory` of one process with the whole model.
        model: The model.
        strategy: "ddp": everything, and the gradients once more, as they are sent; or "fsdp": parts of
            everything, and two whole blocks. Accumulated gradients are whole there too.
        num_processes: Alone, a process has everything whatever the strategy.
        accumulates: Whether a step has several micro-batches for a process.
    """
    needs = replace(needs, accumulates=accumulates)
    if num_processes == 1:
        return needs
    if strategy == "ddp":
        return replace(needs, exchanged=needs.gradients)
    sizes = acting_sizes(model)
    part = math.ceil(needs.gradients / num_processes)
    return replace(
        needs,
        weights=math.ceil(needs.weights / num_processes),
        gradients=part + (needs.gradients if accumulates else 0),
        moments=math.ceil(needs.moments / num_processes),
        exchanged=2 * sum(size for name, size in sizes.items() if name.startswith("vlm.blocks.0.")),
        acting=sum(sizes.values()),
    )


def acting_sizes(model: Pi0Model) -> dict[str, int]:
    """Return the bytes of each parameter, by name, as a model is held that acts."""
    held = inference_dtypes(model, model.dtype)
    return {name: p.numel() * held.get(name, p.dtype).itemsize for name, p in model.named_parameters()}


def example_observation(
    config: Pi0Config, batch_size: int = 1, num_cameras: int = 2, num_tokens: int = 20
) -> Observation:
    """Return an observation in which nothing is masked; its values mean nothing."""
    size = config.vision.image_size
    return Observation(
        images=torch.zeros(batch_size, num_cameras, 3, size, size),
        image_mask=torch.ones(batch_size, num_cameras, dtype=torch.bool),
        tokens=torch.zeros(batch_size, num_tokens, dtype=torch.long),
        token_mask=torch.ones(batch_size, num_tokens, dtype=torch.bool),
        state=torch.zeros(batch_size, config.max_state_dim),
        is_dense=True,
    )


def without_memory[T](model: Pi0Model, function: Callable[[Pi0Model], T]) -> T:
    """Return what a function makes of a model of `sized_model`, where tensors have shapes alone."""
    twin = model.config.create(seed=None, device="meta")
    with FakeTensorMode(allow_non_fake_inputs=True):
        for name, parameter in model.named_parameters():
            with_memory(twin, name, parameter.dtype).requires_grad_(parameter.requires_grad)
        return function(twin)


def _saved_bytes(model: Pi0Model, loss: Callable[[Pi0Model], Tensor]) -> int:
    def count(model: Pi0Model) -> int:
        own = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
        saved: dict[int, Any] = {}

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage._cdata not in own:
                saved[storage._cdata] = storage  # which keeps its address from being used again
            return tensor

        with saved_tensors_hooks(pack, lambda tensor: tensor):
            loss(model)
        return sum(storage.nbytes() for storage in saved.values())

    return without_memory(model, count)


def disk_needs(model: Pi0Model) -> DiskNeeds:
    """Return what the files of a frozen model of `sized_model` take."""
    config, sizes = model.config, {name: x.num_bytes for name, x in merged_parameters(model).items()}
    trained = [p for p in model.parameters() if p.requires_grad]
    frozen = [p for p in model.parameters() if not p.requires_grad]
    embedding = model.get_parameter("vlm.embed.weight").dtype.itemsize
    unused = {key: torch.Size(shape).numel() for key, shape in unused_shapes(config).items()}
    dead = sum(size for key, size in unused.items() if key != LM_HEAD) * embedding
    complete = sum(sizes.values()) + dead + sizes["vlm.embed.weight"]
    snapshot = 3 * 4 * sum(parameter.numel() for parameter in trained)
    if not frozen:
        return DiskNeeds(0, complete, complete, snapshot)
    return DiskNeeds(_num_bytes(frozen) + dead, _num_bytes(trained), complete, snapshot)


def _num_bytes(parameters: Iterable[Tensor]) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in parameters)
