"""Reads and writes pi0 weights under the names that lerobot and openpi use, and refuses what does not fit.

Their checkpoints hold the same tensors under a few prefixes; the names below are those of
`lerobot.policies.pi0` without its leading `model.`. Our projections are fused, so one of our tensors can come
from several of key, stacked along the first axis.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from pi0.config import GemmaConfig, Pi0Config
from pi0.errors import UnusableError
from pi0.layers import Linear

_PALIGEMMA = "paligemma_with_expert.paligemma."
_VISION = _PALIGEMMA + "model.vision_tower.vision_model."
_LANGUAGE = _PALIGEMMA + "model.language_model."
_EXPERT = "paligemma_with_expert.gemma_expert.model."
EMBEDDING = _LANGUAGE + "embed_tokens.weight"
LM_HEAD = _PALIGEMMA + "lm_head.weight"

# Names of earlier lerobot releases (before transformers 4.52), and of wrappers that training tools leave
# behind.
_RENAMES = [
    (r"^(_orig_mod\.|module\.)+", ""),
    (r"^model\.", ""),
    (r"\._orig_mod\.", "."),
    (r"^paligemma_with_expert\.paligemma\.language_model\.lm_head\.", _PALIGEMMA + "lm_head."),
    (r"^paligemma_with_expert\.paligemma\.language_model\.model\.", _LANGUAGE),
    (
        r"^paligemma_with_expert\.paligemma\.(vision_tower|multi_modal_projector)\.",
        _PALIGEMMA + r"model.\1.",
    ),
]


class CheckpointError(UnusableError):
    """A checkpoint that does not fit: lists every missing, unexpected and mis-shaped key, and the file."""


def read_tensors(file: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file; anything else is a CheckpointError with the file."""
    try:
        return load_file(file)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file}: not a readable safetensors file ({error})") from error


def read_json(file: Path) -> dict[str, Any]:
    """Return a JSON object; what is not one is a CheckpointError with the file."""
    try:
        values = json.loads(file.read_text())
    except json.JSONDecodeError as error:
        raise CheckpointError(f"{file}: not valid JSON ({error})") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{file}: expected a JSON object, found {type(values).__name__}")
    return values


@dataclass(frozen=True)
class TensorSource:
    """Where one of our parameters stands in a lerobot checkpoint."""

    keys: tuple[str, ...]  # stacked along the first axis
    shapes: tuple[tuple[int, ...], ...]  # as stored there

    def read(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return the parameter: flattened to matrices (the patch convolution) and stacked."""
        parts = [tensors[key] for key in self.keys]
        return torch.cat([part.flatten(1) if part.ndim > 2 else part for part in parts])

    def write(self, parameter: Tensor) -> dict[str, Tensor]:
        """Return the checkpoint's tensors for the parameter."""
        parts = parameter.split([shape[0] for shape in self.shapes])
        stored = zip(self.keys, parts, self.shapes, strict=True)
        return {key: part.reshape(shape).contiguous() for key, part, shape in stored}


@dataclass(frozen=True)
class WeightLoader:
    """What a caller allows when weights are loaded; by default everything must fit exactly.

    Both are regular expressions on our parameter names (`new`) and on the checkpoint's keys (`extra`). A
    shape that differs is never allowed.
    """

    new: tuple[str, ...] = ()  # may be absent from the checkpoint; keep their starting values
    extra: tuple[str, ...] = ()  # may be in the checkpoint without a use; are dropped

    def load(self, model: nn.Module, config: Pi0Config, tensors: Mapping[str, Tensor], file: str) -> set[str]:
        """Copy a lerobot or openpi checkpoint into the model; return the parameters that it does not have.

        Raises CheckpointError before anything is changed if a key is missing, unexpected or mis-shaped.
        """
        tensors = canonical_keys(tensors, config)
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
        with torch.no_grad():
            for name in loaded:
                parameters[name].copy_(sources[name].read(tensors))
        return new


def canonical_keys(tensors: Mapping[str, Tensor], config: Pi0Config) -> dict[str, Tensor]:
    """Return the tensors under current lerobot names without `model.`, a tied embedding in its place."""
    result: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        name = key
        for pattern, replacement in _RENAMES:
            name = re.sub(pattern, replacement, name)
        if not config.pi05:  # some converted pi0 checkpoints carry pi05's name for the same layer
            name = re.sub(r"^time_mlp_(in|out)\.", r"action_time_mlp_\1.", name)
        if name in result:
            raise CheckpointError(f"two keys of the checkpoint stand for {name}; one of them is {key}")
        result[name] = tensor
    # openpi's converter keeps only one of two tied tensors. After fine-tuning in lerobot they are no longer
    # tied and lm_head is stale, so the embedding wins if it is there.
    if EMBEDDING not in result and LM_HEAD in result:
        result[EMBEDDING] = result[LM_HEAD]
    return result


def lerobot_state_dict(
    model: nn.Module, config: Pi0Config, values: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """Return the model's tensors, adapters merged, under lerobot's names (without `model.`).

    `values` replaces the parameters' values by others of the same shapes, such as gradients.
    """
    parameters = merged_parameters(model) if values is None else dict(values)
    sources = lerobot_sources(config)
    result: dict[str, Tensor] = {}
    for name, tensor in parameters.items():
        if name in sources:
            result.update(sources[name].write(tensor.detach()))
    return result


def merged_parameters(model: nn.Module) -> dict[str, Tensor]:
    """Return name -> value of the parameters with LoRA adapters merged into their weights."""
    merged = {name: p.detach() for name, p in model.named_parameters() if "lora_" not in name}
    for name, module in model.named_modules():
        if isinstance(module, Linear) and module.lora_rank:
            merged[f"{name}.weight"] = module.weight.detach() + module.lora_delta().detach()
    return merged


def lerobot_sources(config: Pi0Config) -> dict[str, TensorSource]:
    """Return our parameter name -> its place in a lerobot checkpoint; indicator and adapters have none."""
    sources = _vision_sources(config)
    sources["vlm.embed.weight"] = TensorSource((EMBEDDING,), ((config.vocab_size, config.vlm.width),))
    for i in range(config.vlm.depth - 1):
        sources.update(
            _block_sources(f"vlm.blocks.{i}.", f"{_LANGUAGE}layers.{i}.", config.vlm, adaptive=False)
        )
    last = f"{_LANGUAGE}layers.{config.vlm.depth - 1}."
    head, width = config.vlm.head_dim, config.vlm.width
    sources["vlm.last.norm1.weight"] = TensorSource((f"{last}input_layernorm.weight",), ((width,),))
    keys = (f"{last}self_attn.k_proj.weight", f"{last}self_attn.v_proj.weight")
    sources["vlm.last.kv.weight"] = TensorSource(keys, ((head, width),) * 2)
    for i in range(config.expert.depth):
        prefix = f"{_EXPERT}layers.{i}."
        sources.update(_block_sources(f"expert.blocks.{i}.", prefix, config.expert, adaptive=config.pi05))
    sources.update(_norm_sources("expert.norm", f"{_EXPERT}norm", config.expert.width, adaptive=config.pi05))
    sources.update(_projection_sources(config))
    return sources


def unused_shapes(config: Pi0Config) -> dict[str, tuple[int, ...]]:
    """Return the keys that lerobot's model has but pi0 never computes with, and their shapes.

    They are the language heads, and in the language model's last layer all that comes after its keys and
    values: nothing reads them. lerobot refuses a checkpoint without them.
    """
    vlm, last = config.vlm, f"{_LANGUAGE}layers.{config.vlm.depth - 1}."
    q = vlm.num_heads * vlm.head_dim
    return {
        LM_HEAD: (config.vocab_size, vlm.width),
        "paligemma_with_expert.gemma_expert.lm_head.weight": (
            config.vocab_size,
            config.expert.width,
        ),
        f"{_LANGUAGE}norm.weight": (vlm.width,),
        f"{last}self_attn.q_proj.weight": (q, vlm.width),
        f"{last}self_attn.o_proj.weight": (vlm.width, q),
        f"{last}mlp.gate_proj.weight": (vlm.mlp_dim, vlm.width),
        f"{last}mlp.up_proj.weight": (vlm.mlp_dim, vlm.width),
        f"{last}mlp.down_proj.weight": (vlm.width, vlm.mlp_dim),
        f"{last}post_attention_layernorm.weight": (vlm.width,),
    }


def _vision_sources(config: Pi0Config) -> dict[str, TensorSource]:
    v, d = config.vision, config.vision.width
    sources = {
        "vision.patch.weight": TensorSource(
            (f"{_VISION}embeddings.patch_embedding.weight",), ((d, 3, v.patch_size, v.patch_size),)
        ),
        "vision.patch.bias": TensorSource((f"{_VISION}embeddings.patch_embedding.bias",), ((d,),)),
        "vision.position": TensorSource(
            (f"{_VISION}embeddings.position_embedding.weight",), ((v.num_patches, d),)
        ),
    }
    sources.update(_linear_sources("vision.norm", (f"{_VISION}post_layernorm",), ((d,),)))
    projector = f"{_PALIGEMMA}model.multi_modal_projector.linear"
    sources.update(_linear_sources("vision.projector", (projector,), ((config.vlm.width, d),)))
    for i in range(v.depth):
        layer = f"{_VISION}encoder.layers.{i}."
        attention = tuple(f"{layer}self_attn.{x}_proj" for x in "qkv")
        layers = {
            "norm1": ((f"{layer}layer_norm1",), ((d,),)),
            "norm2": ((f"{layer}layer_norm2",), ((d,),)),
            "qkv": (attention, ((d, d),) * 3),
            "o": ((f"{layer}self_attn.out_proj",), ((d, d),)),
            "fc1": ((f"{layer}mlp.fc1",), ((v.mlp_dim, d),)),
            "fc2": ((f"{layer}mlp.fc2",), ((d, v.mlp_dim),)),
        }
        for name, (keys, shapes) in layers.items():
            sources.update(_linear_sources(f"vision.blocks.{i}.{name}", keys, shapes))
    return sources


def _block_sources(name: str, key: str, config: GemmaConfig, *, adaptive: bool) -> dict[str, TensorSource]:
    d, m, e = config.width, config.mlp_dim, config.head_dim
    q = config.num_heads * e
    sources = {
        f"{name}qkv.weight": TensorSource(
            tuple(f"{key}self_attn.{x}_proj.weight" for x in "qkv"), ((q, d), (e, d), (e, d))
        ),
        f"{name}o.weight": TensorSource((f"{key}self_attn.o_proj.weight",), ((d, q),)),
        f"{name}gate_up.weight": TensorSource(
            (f"{key}mlp.gate_proj.weight", f"{key}mlp.up_proj.weight"), ((m, d), (m, d))
        ),
        f"{name}down.weight": TensorSource((f"{key}mlp.down_proj.weight",), ((d, m),)),
    }
    sources.update(_norm_sources(f"{name}norm1", f"{key}input_layernorm", d, adaptive=adaptive))
    sources.update(_norm_sources(f"{name}norm2", f"{key}post_attention_layernorm", d, adaptive=adaptive))
    return sources


def _projection_sources(config: Pi0Config) -> dict[str, TensorSource]:
    d = config.expert.width
    time = "time_mlp" if config.pi05 else "action_time_mlp"
    layers = {
        "action_in_proj": ("action_in_proj", (d, config.max_action_dim)),
        "action_out_proj": ("action_out_proj", (config.max_action_dim, d)),
        "time_mlp_in": (f"{time}_in", (d, d if config.pi05 else 2 * d)),
        "time_mlp_out": (f"{time}_out", (d, d)),
    }
    if not config.pi05:
        layers["state_proj"] = ("state_proj", (d, config.max_state_dim))
    sources: dict[str, TensorSource] = {}
    for name, (key, shape) in layers.items():
        sources.update(_linear_sources(name, (key,), (shape,)))
    return sources


def _norm_sources(name: str, key: str, width: int, *, adaptive: bool) -> dict[str, TensorSource]:
    if adaptive:
        return _linear_sources(f"{name}.dense", (f"{key}.dense",), ((3 * width, width),))
    return {f"{name}.weight": TensorSource((f"{key}.weight",), ((width,),))}


def _linear_sources(
    name: str, keys: tuple[str, ...], shapes: tuple[tuple[int, ...], ...]
) -> dict[str, TensorSource]:
    """Return weight and bias of a layer, or scale and shift of a norm (weights of one axis)."""
    return {
        f"{name}.weight": TensorSource(tuple(f"{key}.weight" for key in keys), shapes),
        f"{name}.bias": TensorSource(
            tuple(f"{key}.bias" for key in keys), tuple(shape[:1] for shape in shapes)
        ),
    }


def _stored(
    name: str, sources: Mapping[str, TensorSource], parameters: Mapping[str, Tensor]
) -> list[tuple[str, tuple[int, ...]]]:
    if name not in sources:  # a parameter that no lerobot checkpoint has
        return [(name, tuple(parameters[name].shape))]
    return list(zip(sources[name].keys, sources[name].shapes, strict=True))


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(re.search(pattern, name) for pattern in patterns)
