"""The names of pi0's weights in the checkpoints of lerobot and openpi.

Their checkpoints hold the same tensors under a few prefixes; the names below are those of
`lerobot.policies.pi0` without its leading `model.`. Our projections are fused, so one of our tensors can come
from several of key, stacked along the first axis.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from pi0.config import GemmaConfig, Pi0Config
from pi0.tensor_files import CheckpointError, Deferred

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


@dataclass(frozen=True)
class TensorSource:
    """Where one of our parameters stands in a lerobot checkpoint."""

    keys: tuple[str, ...]  # stacked along the first axis
    shapes: tuple[tuple[int, ...], ...]  # as stored there

    def read_into(self, parameter: Tensor, tensors: Mapping[str, Tensor | Deferred]) -> None:
        """Copy the parameter's parts into it one by one: flattened to matrices (the patch convolution)."""
        rows = 0
        for key in self.keys:
            stored = tensors[key]
            part = stored if isinstance(stored, Tensor) else stored.read()
            parameter[rows : rows + len(part)].copy_(part.flatten(1) if part.ndim > 2 else part)
            rows += len(part)

    def split(self, parameter: Deferred) -> dict[str, Deferred]:
        """Return the checkpoint's tensors for the parameter."""
        result, start = {}, 0
        for key, shape in zip(self.keys, self.shapes, strict=True):
            rows = slice(start, start := start + shape[0])
            result[key] = Deferred(shape, parameter.dtype, partial(_rows, parameter, rows, shape))
        return result


def _rows(parameter: Deferred, rows: slice, shape: tuple[int, ...]) -> Tensor:
    return parameter.read()[rows].reshape(shape)


def canonical_keys[T](tensors: Mapping[str, T], config: Pi0Config) -> dict[str, T]:
    """Return the tensors under current lerobot names without `model.`, a tied embedding in its place."""
    result: dict[str, T] = {}
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
