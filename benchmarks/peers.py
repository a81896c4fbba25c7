"""What pi0 is measured against, at any size: lerobot's pi0 and pi05, transformers' PI0.

All are built with the same random, non-degenerate weights, so that their losses and actions can be
compared and their speed means something. Axes: b batch, h action horizon, a action dim.
"""

import contextlib
import re
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any
from unittest import mock

import torch
import transformers
from jaxtyping import Float
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.policies.pi0 import modeling_pi0
from lerobot.policies.pi0.configuration_pi0 import PI0Config
from lerobot.policies.pi0.modeling_pi0 import PI0Policy
from lerobot.policies.pi05 import modeling_pi05
from lerobot.policies.pi05.configuration_pi05 import PI05Config
from lerobot.policies.pi05.modeling_pi05 import PI05Policy
from sizes import SIZES, GemmaSize, Inputs, Size, make_inputs
from torch import Tensor, nn
from transformers import PI0ForConditionalGeneration
from transformers.initialization import no_init_weights

from pi0.tensor_files import Deferred

__all__ = [
    "SIZES",
    "Inputs",
    "Size",
    "lerobot_actions",
    "lerobot_loss",
    "lerobot_pi0",
    "lerobot_pi05",
    "make_inputs",
    "randomize",
    "set_expert_only",
    "transformers_actions",
    "transformers_loss",
    "transformers_pi0",
]


def randomize(model: nn.Module, seed: int = 1) -> None:
    """Give every parameter a random value that keeps activations near unit size.

    Fresh models are degenerate: zero biases and norm weights (an adaRMS of zeros ignores time).
    """
    generators: dict[torch.device, torch.Generator] = {}
    with torch.no_grad():
        for name, p in sorted(model.named_parameters()):
            g = generators.setdefault(p.device, torch.Generator(p.device).manual_seed(seed))
            noise = torch.randn(p.shape, generator=g, device=p.device)
            if p.ndim == 1:
                # LayerNorm scales by w, Gemma's RMSNorm by 1 + w
                is_scale = "vision_tower" in name and "norm" in name and name.endswith("weight")
                value = 0.1 * noise + (1.0 if is_scale else 0.0)
            elif "embed_tokens" in name or "position_embedding" in name:
                value = noise * p.shape[1] ** -0.5
            else:
                value = noise * p[0].numel() ** -0.5
            p.copy_(value)


@contextlib.contextmanager
def _lerobot_built_at(size: Size, module: ModuleType) -> Iterator[None]:
    """Let lerobot's module, which hard-codes the real size, build models of this one."""
    pali_gemma, expert = (
        module.PaliGemmaForConditionalGenerationWithPiGemma,
        module.PiGemmaForCausalLM,
    )

    def sized_pali_gemma(config: Any) -> nn.Module:
        config.projection_dim = config.hidden_size = size.vlm.width
        config.text_config.vocab_size = size.vocab_size
        config.text_config.num_image_tokens = size.vision.num_patches
        config.vision_config.update(_siglip_dict(size))
        return pali_gemma(config)

    def sized_expert(config: Any) -> nn.Module:
        config.vocab_size = size.vocab_size
        return expert(config)

    with mock.patch.multiple(
        module,
        get_gemma_config=lambda name: size.vlm if name == "gemma_2b" else size.expert,
        PaliGemmaForConditionalGenerationWithPiGemma=sized_pali_gemma,
        PiGemmaForCausalLM=sized_expert,
    ):
        yield


def _siglip_dict(size: Size) -> dict[str, int]:
    vision = size.vision
    return {
        "hidden_size": vision.width,
        "intermediate_size": vision.mlp_dim,
        "num_hidden_layers": vision.depth,
        "num_attention_heads": vision.num_heads,
        "patch_size": vision.patch_size,
        "image_size": vision.image_size,
        "projection_dim": size.vlm.width,
    }


def _gemma_dict(gemma: GemmaSize, vocab_size: int) -> dict[str, Any]:
    return {
        "model_type": "gemma",
        "hidden_size": gemma.width,
        "num_hidden_layers": gemma.depth,
        "intermediate_size": gemma.mlp_dim,
        "num_attention_heads": gemma.num_heads,
        "num_key_value_heads": gemma.num_kv_heads,
        "head_dim": gemma.head_dim,
        "vocab_size": vocab_size,
    }


def lerobot_pi0(size: Size, **options: Any) -> PI0Policy:
    """Return lerobot's pi0; its network is ``policy.model``. Options: see `lerobot_pi05`."""
    return _lerobot(size, modeling_pi0, PI0Config, PI0Policy, **options)


def lerobot_pi05(size: Size, **options: Any) -> PI05Policy:
    """Return lerobot's pi05; its network is ``policy.model``.

    Args:
        size: Dimensions.
        options: ``cameras`` (declared input images, default ``size.cameras``), ``seed`` (of the
            weights), ``weights`` (read one by one in place of random ones, by the names of a checkpoint;
            nothing but the policy is then in memory), ``device``, and fields of lerobot's own config:
            ``dtype`` ("float32", "bfloat16"), ``train_expert_only``, ``gradient_checkpointing``, ...

    """
    return _lerobot(size, modeling_pi05, PI05Config, PI05Policy, **options)


def _lerobot(
    size: Size,
    module: ModuleType,
    config_class: Any,
    policy_class: Any,
    *,
    cameras: int | None = None,
    seed: int = 1,
    weights: Mapping[str, Deferred] | None = None,
    device: str = "cpu",
    **fields: Any,
) -> Any:
    pixels = size.vision.image_size
    image = PolicyFeature(FeatureType.VISUAL, (3, pixels, pixels))
    inputs = {f"observation.images.camera{i}": image for i in range(cameras or size.cameras)}
    inputs["observation.state"] = PolicyFeature(FeatureType.STATE, (size.max_state_dim,))
    config = config_class(
        device=device,
        input_features=inputs,
        output_features={"action": PolicyFeature(FeatureType.ACTION, (size.max_action_dim,))},
        chunk_size=size.chunk_size,
        n_action_steps=size.chunk_size,
        max_state_dim=size.max_state_dim,
        max_action_dim=size.max_action_dim,
        image_resolution=(pixels, pixels),
        tokenizer_max_length=size.max_tokens,
        **fields,
    )
    built = contextlib.nullcontext() if weights is None else no_init_weights()
    with _lerobot_built_at(size, module), torch.device(device), torch.random.fork_rng(), built:
        policy = policy_class(config)
    if weights is None:
        randomize(policy, seed)
        return policy
    with torch.no_grad():
        for name, p in policy.named_parameters():
            p.copy_(weights[name].read())
    return policy


def set_expert_only(policy: PI0Policy | PI05Policy, expert_only: bool) -> None:
    """Train the action expert alone, or everything again: lerobot's own switch, set late."""
    network = policy.model.paligemma_with_expert
    network.paligemma.requires_grad_(True)
    network.train_expert_only = policy.config.train_expert_only = expert_only
    network._set_requires_grad()
    policy.train()


def lerobot_loss(policy: PI0Policy | PI05Policy, inputs: Inputs) -> Float[Tensor, "b h a"]:
    """Return element losses of lerobot's network, which is put in training mode."""
    policy.train()
    target = [inputs.actions, inputs.noise, inputs.time]
    return policy.model(*_lerobot_observation(policy, inputs), *target)


def lerobot_actions(
    policy: PI0Policy | PI05Policy, inputs: Inputs, num_steps: int = 10
) -> Float[Tensor, "b h a"]:
    """Return actions sampled by lerobot's network, which is put in evaluation mode."""
    policy.eval()
    observation = _lerobot_observation(policy, inputs)
    return policy.model.sample_actions(*observation, noise=inputs.noise, num_steps=num_steps)


def _lerobot_observation(policy: PI0Policy | PI05Policy, inputs: Inputs) -> list[Any]:
    images, masks = list(inputs.images.unbind(1)), list(inputs.image_mask.unbind(1))
    state = [inputs.state] if isinstance(policy, PI0Policy) else []
    return [images, masks, inputs.tokens, inputs.token_mask, *state]


def transformers_pi0(
    size: Size, state_dict: dict[str, Tensor], dtype: str = "float32", device: str = "cpu"
) -> PI0ForConditionalGeneration:
    """Return transformers' pi0 with SDPA attention and the weights of lerobot's network.

    Args:
        size: Dimensions.
        state_dict: ``lerobot_pi0(size).model.state_dict()``.
        dtype: Of the parameters; buffers stay float32, as ``from_pretrained`` leaves them.
        device: Where to build it.

    Raises:
        RuntimeError: The two models' keys differ by more than the heads that neither one uses.

    """
    vision = _siglip_dict(size) | {"model_type": "siglip_vision_model", "vision_use_head": False}
    vlm = {
        "model_type": "paligemma",
        "projection_dim": size.vlm.width,
        "hidden_size": size.vlm.width,
        "image_token_id": size.vocab_size,
        "text_config": _gemma_dict(size.vlm, size.vocab_size),
        "vision_config": vision,
    }
    fields: dict[str, Any] = {
        "vlm_config": vlm,
        "dit_config": _gemma_dict(size.expert, size.vocab_size),
        "chunk_size": size.chunk_size,
        "max_state_dim": size.max_state_dim,
        "max_action_dim": size.max_action_dim,
        "loss_reduction": "none",
    }
    config = transformers.PI0Config(**fields)
    config._attn_implementation = "sdpa"
    with torch.device(device), torch.random.fork_rng():
        model = PI0ForConditionalGeneration(config)
    missing, unexpected = model.load_state_dict(_transformers_keys(state_dict), strict=False)
    if set(missing) != {"model.dit.embed_tokens.weight"} or unexpected:
        raise RuntimeError(f"weights do not fit: missing {missing}, unexpected {unexpected}")
    for p in model.parameters():
        p.data = p.data.to(getattr(torch, dtype))
    return model


def _transformers_keys(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    renames = {
        r"^paligemma_with_expert\.paligemma\.model": "model.vlm",
        r"^paligemma_with_expert\.gemma_expert\.model": "model.dit",
        r"^(state_proj|action_in_proj|action_time_mlp)": r"embed_action_time.\1",
    }

    def renamed(key: str) -> str:
        for pattern, replacement in renames.items():
            key = re.sub(pattern, replacement, key)
        return key

    return {renamed(k): v for k, v in state_dict.items() if not k.endswith("lm_head.weight")}


def transformers_loss(model: PI0ForConditionalGeneration, inputs: Inputs) -> Float[Tensor, "b h a"]:
    """Return element losses of transformers' pi0, which is put in training mode."""
    model.train()
    dtype = model.action_out_proj.weight.dtype
    return model(
        **_transformers_observation(model, inputs),
        actions=inputs.actions.to(dtype),
        noise=inputs.noise.to(dtype),
        timestep=inputs.time,
    ).loss


def transformers_actions(
    model: PI0ForConditionalGeneration, inputs: Inputs, num_steps: int = 10
) -> Float[Tensor, "b h a"]:
    """Return actions sampled by transformers' pi0, which is put in evaluation mode."""
    model.eval()
    observation = _transformers_observation(model, inputs)
    observation["noise"] = inputs.noise.to(observation["state"].dtype)
    return model.sample_actions(**observation, num_steps=num_steps)


def _transformers_observation(model: PI0ForConditionalGeneration, inputs: Inputs) -> dict[str, Any]:
    """Return keyword arguments of transformers' pi0; a missing camera is masked in attention."""
    vlm: Any = model.config.vlm_config
    patches = (vlm.vision_config.image_size // vlm.vision_config.patch_size) ** 2
    image_mask = inputs.image_mask.repeat_interleave(patches, 1)
    image_tokens = torch.full_like(image_mask, vlm.image_token_id, dtype=inputs.tokens.dtype)
    dtype = model.action_out_proj.weight.dtype
    return {
        "input_ids": torch.cat([image_tokens, inputs.tokens], 1),
        "attention_mask": torch.cat([image_mask, inputs.token_mask], 1).long(),
        "pixel_values": inputs.images.to(dtype),
        "pixel_attention_mask": torch.ones_like(inputs.image_mask),
        "state": inputs.state.to(dtype),
    }
