"""Which parameters are trained, in which dtypes they are held, and how fresh ones start."""

import re
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import nn

from pi0.errors import UnusableError
from pi0.layers import Linear

FREEZE_CHOICES = {
    "none": r"(?!)",  # everything is trained
    "vision": r"vision\.(?!projector)",  # lerobot's freeze_vision_encoder
    "expert_only": r"(vision|vlm)\.",  # lerobot's train_expert_only: expert and projections are trained
    "lora": r"(vision|vlm|expert)\..*(?<!lora_a)(?<!lora_b)$",  # adapters and projections are trained
}


def frozen_names(model: nn.Module, which: str) -> set[str]:
    """Return the names of the parameters to freeze.

    `which` is one of `FREEZE_CHOICES`, or a regular expression: a parameter whose name it matches from the
    start is frozen. A choice that freezes everything, and a pattern that freezes nothing, are ValueErrors.
    """
    names = [name for name, _ in model.named_parameters()]
    frozen = {name for name in names if re.match(FREEZE_CHOICES.get(which, which), name)}
    if not frozen and which != "none":
        raise UnusableError(
            f"freeze: {which!r} matches no parameter; expected one of {sorted(FREEZE_CHOICES)} or a regular "
            f"expression that matches names such as {names[0]!r}"
        )
    if len(frozen) == len(names):
        raise UnusableError(f"freeze: {which!r} matches every parameter, so nothing would be trained")
    if which == "lora" and not any("lora_" in name for name in names):
        raise UnusableError(
            "freeze: 'lora' needs adapters; set lora_rank in the configuration of vlm or expert"
        )
    return frozen


def training_dtypes(
    model: nn.Module, compute: torch.dtype, which: str, frozen_dtype: str | None = None
) -> dict[str, torch.dtype]:
    """Return the dtypes of the parameters in training, by name; what is not named is held as it is stored.

    What is trained is held in float32, because steps are smaller than a rounding of bfloat16. What `which`
    freezes is held in `frozen_dtype`, but for what a `compute` in bfloat16 keeps exact (see
    `inference_dtypes`); by default as it is stored, and in a computation in bfloat16 in that.
    """
    frozen = frozen_names(model, which)
    dtypes = {name: torch.float32 for name, _ in model.named_parameters() if name not in frozen}
    if frozen_dtype is None and compute is torch.float32:
        return dtypes
    held = inference_dtypes(model, compute if frozen_dtype is None else getattr(torch, frozen_dtype))
    return dtypes | {name: dtype for name, dtype in held.items() if name in frozen}


def inference_dtypes(model: nn.Module, compute: torch.dtype) -> dict[str, torch.dtype]:
    """Return the compute dtype for each large weight that is rounded to it anyway, by name.

    Vision, norms and the state, action and time projections are not among them: they are computed in float32.
    """
    return {
        f"{stack}.{name}.{parameter}": compute
        for stack in ("vlm", "expert")
        if hasattr(model, stack)
        for name, module in getattr(model, stack).named_modules()
        if isinstance(module, Linear | nn.Embedding) and not name.endswith(".dense")
        for parameter, _ in module.named_parameters(recurse=False)
    }


def hold(model: nn.Module, dtypes: Mapping[str, torch.dtype]) -> None:
    """Hold the parameters in these dtypes from now on, by name; they are converted one by one."""
    for name, parameter in model.named_parameters():
        if name in dtypes and dtypes[name] is not parameter.dtype:
            parameter.grad = None
            parameter.data = parameter.data.to(dtypes[name])


def require_float32(parameters: Mapping[str, Any]) -> None:
    """Raise ValueError if a parameter that is to be trained, by name, is held in less than float32."""
    for name, parameter in parameters.items():
        if parameter.dtype is not torch.float32:
            raise ValueError(
                f"{name}: expected float32 in training, found {parameter.dtype}, whose rounding is more "
                "than a step; call model.freeze(...), which also holds what is trained in float32"
            )


def initialize(model: nn.Module, seed: int, only: Collection[str] | None = None) -> None:
    """Give every parameter (or `only` some) its starting value; layers that end a branch start smaller.

    Draws come from a generator of their own, so the global random state is left alone. Biases, norms, LoRA's
    second factor, adaptive norms and the indicator start at 0.
    """
    generator = torch.Generator().manual_seed(seed)
    parts = {part: getattr(model, part, None) for part in ("vision", "vlm", "expert")}
    depth = {part: len(stack.blocks) for part, stack in parts.items() if stack is not None}
    for name, parameter in model.named_parameters():
        if only is not None and name not in only:
            continue
        if name.endswith((".bias", "lora_b")) or "indicator" in name or "norm" in name:
            is_layer_norm_weight = name.startswith("vision") and name.endswith("weight")
            nn.init.constant_(parameter, 1.0 if is_layer_norm_weight else 0.0)
            continue
        std = 0.02 if name == "vision.position" else parameter.shape[-1] ** -0.5
        if name.endswith((".o.weight", ".down.weight", ".fc2.weight")):
            std *= (2 * max(1, depth[name.split(".")[0]])) ** -0.5
        with torch.no_grad():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)
