"""Which parameters are trained, and how fresh ones start."""

import re
from collections.abc import Collection

import torch
from torch import nn

from pi0.errors import UnusableError

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
