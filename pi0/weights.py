"""Puts the weights of lerobot's and openpi's checkpoints into a model, and refuses what does not fit."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial, reduce
from typing import Any, cast

import torch
from torch import Tensor, nn

from pi0.config import Pi0Config
from pi0.layers import Linear
from pi0.lerobot_names import TensorSource, canonical_keys, lerobot_sources, unused_shapes
from pi0.tensor_files import CheckpointError, Deferred
from pi0.trainable import hold


@dataclass(frozen=True)
class WeightLoader:
    """What a caller allows when weights are loaded; by default everything must fit exactly.

    Both are regular expressions on our parameter names (`new`) and on the checkpoint's keys (`extra`). A
    shape that differs is never allowed.
    """

    new: tuple[str, ...] = ()  # may be absent from the checkpoint; keep their starting values
    extra: tuple[str, ...] = ()  # may be in the checkpoint without a use; are dropped

    def load(
        self,
        model: nn.Module,
        config: Pi0Config,
        tensors: Mapping[str, Tensor | Deferred],
        file: str,
        dtypes: Mapping[str, torch.dtype] | None = None,
        later: torch.device | None = None,
    ) -> set[str]:
        """Put a lerobot or openpi checkpoint into the model; return the parameters that it does not have.

        What is on the meta device gets memory here, in the dtype that `dtypes` names, else in that of the
        file; the others keep memory and dtype. With `later` only what the checkpoint does not have gets
        memory; the model's `later` reads the rest. Raises CheckpointError before anything is changed if a key
        is missing, unexpected or mis-shaped.
        """
        tensors = canonical_keys(tensors, config)
        new = self.require_fits(model, config, tensors, file)
        parameters, sources = dict(model.named_parameters()), lerobot_sources(config)
        dtypes = stored_dtypes(config, tensors) | dict(dtypes or {})
        if later is not None:
            hold(model, dtypes)
            for name in new:
                with_memory(model, name, parameters[name].dtype)
            reads = {
                name: partial(sources[name].read_into, tensors=tensors) for name in parameters.keys() - new
            }
            cast("Any", model).later = LaterWeights(later, reads)
            return new
        # The largest first: what is read meanwhile then never adds to a model that is nearly complete.
        for name in sorted(parameters, key=lambda name: -parameters[name].numel()):
            target = with_memory(model, name, dtypes.get(name, torch.float32))
            if name not in new:
                with torch.no_grad():
                    sources[name].read_into(target, tensors)
        return new

    def require_fits(
        self, model: nn.Module, config: Pi0Config, tensors: Mapping[str, Tensor | Deferred], file: str
    ) -> set[str]:
        """Return the parameters that a checkpoint of `canonical_keys` does not have; nothing is read.

        Raises CheckpointError as `load` does.
        """
        sources = lerobot_sources(config)
        parameters = dict(model.named_parameters())
        loaded = {name for name in parameters if name in sources and sources[name].keys[0] in tensors}
        new = {name for name in parameters if name not in loaded and _matches(name, self.new)}
        problems = [
            f"  missing    {key} {list(shape)} (for {name})"
            for name in parameters
            if name not in new
            for key, shape in _stored(name, sources, parameters)
            if key not in tensors
        ]
        used = {key for name in loaded for key in sources[name].keys}
        unused = set(tensors) - used - set(unused_shapes(config))
        dropped = {key for key in unused if _matches(key, self.extra)}
        problems += [f"  unexpected {key} {list(tensors[key].shape)}" for key in sorted(unused - dropped)]
        problems += [
            f"  shape      {key}: expected {list(shape)}, found {list(tensors[key].shape)}"
            for name in sorted(loaded)
            for key, shape in zip(sources[name].keys, sources[name].shapes, strict=True)
            if key in tensors and tuple(tensors[key].shape) != shape
        ]
        if problems:
            raise CheckpointError(
                f"{file} does not fit the configuration:\n"
                + "\n".join(problems)
                + "\nTake another checkpoint; a configuration's weight_loader() names a difference that is "
                "meant (docs/extending.md)."
            )
        return new


def stored_dtypes(config: Pi0Config, tensors: Mapping[str, Tensor | Deferred]) -> dict[str, torch.dtype]:
    """Return the dtype of each parameter that a checkpoint of `canonical_keys` has."""
    return {
        name: reduce(torch.promote_types, [tensors[key].dtype for key in source.keys])
        for name, source in lerobot_sources(config).items()
        if source.keys[0] in tensors
    }


def with_memory(model: nn.Module, name: str, dtype: torch.dtype) -> nn.Parameter:
    """Return a parameter of the model; one on the meta device is given undefined values of the dtype."""
    parameter = model.get_parameter(name)
    if not parameter.is_meta:
        return parameter
    module, _, short = name.rpartition(".")
    values = torch.empty(parameter.shape, dtype=dtype, device="cpu")
    parameter = nn.Parameter(values, requires_grad=parameter.requires_grad)
    setattr(model.get_submodule(module), short, parameter)
    return parameter


def lerobot_tensors(parameters: Mapping[str, Deferred], config: Pi0Config) -> dict[str, Deferred]:
    """Return parameters, or values of their shapes, under lerobot's names (without `model.`)."""
    sources, result = lerobot_sources(config), {}
    for name, parameter in parameters.items():
        if name in sources:
            result |= sources[name].split(parameter)
    return result


@dataclass(frozen=True)
class LaterWeights:
    """The weights of a model on the meta device that are still in their files."""

    device: torch.device
    """Where they are wanted."""
    reads: Mapping[str, Callable[[Tensor], None]]
    """By the names of parameters: what reads the values of each into a tensor."""

    @torch.no_grad()
    def fill(self, model: nn.Module, module: nn.Module) -> None:
        """Read the weights of one of the model's modules, in the dtypes in which they are held."""
        wanted = {id(parameter) for parameter in module.parameters() if parameter.is_meta}
        for name, parameter in list(model.named_parameters()):
            if id(parameter) in wanted:
                self.reads[name](with_memory(model, name, parameter.dtype))
        module.to(self.device)


def held_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters by name as training holds them: where processes share a model, parts of them."""
    held = dict(model.named_parameters())
    for name, module in model.named_modules():
        shards = getattr(module, "shards", None)  # see pi0.ript.sharding
        if shards is not None:
            prefix = f"{name}." if name else ""
            held |= {f"{prefix}{own}": parameter for own, parameter in shards.held.items()}
    return held


def whole_parameters(model: nn.Module, weights: Mapping[str, Deferred] | None = None) -> dict[str, Deferred]:
    """Return name -> value of the parameters: whole when they are read, also of a model in parts.

    `weights` are values in place of the model's own.
    """
    shards = getattr(model, "shards", None)
    own = (
        {name: Deferred.of(parameter.detach()) for name, parameter in model.named_parameters()}
        if shards is None
        else shards.whole()
    )
    return own | dict(weights or {})


def merged_parameters(model: nn.Module, weights: Mapping[str, Deferred] | None = None) -> dict[str, Deferred]:
    """Return name -> value of the parameters with LoRA adapters merged into their weights.

    `weights` as in `whole_parameters`.
    """
    whole = whole_parameters(model, weights)
    merged = {name: value for name, value in whole.items() if "lora_" not in name}
    for name, module in model.named_modules():
        if isinstance(module, Linear) and module.lora_rank:
            weight, *factors = (whole[f"{name}.{part}"] for part in ("weight", "lora_a", "lora_b"))
            dtype = torch.promote_types(weight.dtype, factors[0].dtype)
            merged[f"{name}.weight"] = Deferred(
                weight.shape, dtype, partial(_merged, module, weight, *factors)
            )
    return merged


def _merged(linear: Linear, weight: Deferred, lora_a: Deferred, lora_b: Deferred) -> Tensor:
    return weight.read() + linear.lora_delta(lora_a.read(), lora_b.read())


def _stored(
    name: str, sources: Mapping[str, TensorSource], parameters: Mapping[str, Tensor]
) -> list[tuple[str, tuple[int, ...]]]:
    if name not in sources:  # a parameter that no lerobot checkpoint has
        return [(name, tuple(parameters[name].shape))]
    return list(zip(sources[name].keys, sources[name].shapes, strict=True))


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(re.search(pattern, name) for pattern in patterns)
