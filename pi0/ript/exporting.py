"""A policy as a program of torch.export, or as a directory that lerobot loads; read back and compared.

Axis legend: b batch, c cameras, l prompt tokens, s state dim, h action horizon, a action dim (both padded).
"""

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from pi0 import Indicator, Observation, Pi0Model, PI0Policy
from pi0.embodiment import plain_statistics
from pi0.lerobot_format import require_lerobot_sizes
from pi0.ript.guidance import record_guidance, recorded_guidance
from pi0.ript.model_card import write_card
from pi0.ript.origin.evaluated import with_evaluation
from pi0.ript.origin.finding import read_origin
from pi0.ript.origin.record import Origin

PROGRAM, DESCRIPTION = "sampler.pt2", "sampler.json"


class ExportDiffersError(RuntimeError):
    """What was exported, read back, does not compute what the policy does."""


class Sampler(nn.Module):
    """The sampler with tensors for arguments and the number of steps fixed."""

    def __init__(self, model: Pi0Model, num_steps: int) -> None:
        super().__init__()
        self.model, self.num_steps = model, num_steps

    def forward(
        self,
        images: Float[Tensor, "b c 3 height width"],
        image_mask: Bool[Tensor, "b c"],
        tokens: Int[Tensor, "b l"],
        token_mask: Bool[Tensor, "b l"],
        state: Float[Tensor, "b s"],
        noise: Float[Tensor, "b h a"],
    ) -> Float[Tensor, "b h a"]:
        """Return normalised, padded actions; policies with an embedded indicator get a positive one."""
        indicator = None
        if self.model.config.indicator == "embedding":
            indicator = torch.full_like(tokens[:, 0], int(Indicator.POSITIVE))
        observation = Observation(images, image_mask, tokens, token_mask, state, indicator)
        return self.model.sample(observation, noise=noise, num_steps=self.num_steps)


def example_inputs(policy: PI0Policy, batch_size: int, num_cameras: int, seed: int = 0) -> dict[str, Tensor]:
    """Return random inputs of the sampler, by name; prompts have padding, and nothing else is masked."""
    spec = policy.config.inputs_spec(batch_size, num_cameras)
    generator = torch.Generator().manual_seed(seed)

    def normal(name: str) -> Tensor:
        return torch.randn(spec[name][0], generator=generator)

    shape = spec["tokens"][0]
    inputs = {
        "images": normal("images").clamp(-1, 1),
        "image_mask": torch.ones(spec["image_mask"][0], dtype=torch.bool),
        "tokens": torch.randint(0, policy.config.vocab_size, shape, generator=generator),
        "token_mask": (torch.arange(shape[1]) < max(1, shape[1] // 2)).expand(shape).contiguous(),
        "state": normal("state"),
        "noise": normal("actions"),
    }
    return {name: tensor.to(policy.device) for name, tensor in inputs.items()}


def export_torch(
    policy: PI0Policy, directory: Path, batch_size: int, num_cameras: int, num_steps: int
) -> float:
    """Write the program and its description; return the largest difference of the program to the policy.

    The program is read back and run on inputs that it was not traced with.
    """
    sampler = Sampler(policy.model, num_steps).eval()
    traced = example_inputs(policy, batch_size, num_cameras)
    with torch.no_grad():
        program = torch.export.export(sampler, tuple(traced.values()), strict=False)
    torch.export.save(program, directory / PROGRAM)
    again = torch.export.load(directory / PROGRAM).module()
    inputs = example_inputs(policy, batch_size, num_cameras, seed=1)
    inputs["token_mask"][:, -1] = True  # another padding than the traced one
    with torch.no_grad():
        difference = (again(*inputs.values()) - sampler(*inputs.values())).abs().max().item()
    (directory / DESCRIPTION).write_text(json.dumps(_description(policy, inputs, num_steps), indent=2) + "\n")
    return difference


def _description(policy: PI0Policy, inputs: dict[str, Tensor], num_steps: int) -> dict[str, Any]:
    shapes = {name: {"shape": list(x.shape), "dtype": str(x.dtype)[6:]} for name, x in inputs.items()}
    return {
        "inputs": shapes,  # in the order of the arguments
        "output": {"shape": shapes["noise"]["shape"], "dtype": "float32"},
        "num_steps": num_steps,
        "config": policy.config.to_dict(),
        **({"embodiment": policy.embodiments.chosen} if policy.embodiments.tags else {}),
        "features": policy.features.to_dict(),
        "statistics": plain_statistics(policy.statistics),
    }


def export_lerobot(
    policy: PI0Policy, directory: Path, num_steps: int, max_shard_size: int | None = None
) -> float:
    """Write lerobot's directory; return the largest difference between it, read back, and the policy."""
    policy.save_pretrained(directory, max_shard_size=max_shard_size)
    again = PI0Policy.from_pretrained(directory, device=policy.device)
    inputs = example_inputs(policy, 1, len(policy.features.present_cameras))
    first, second = (Sampler(p.model, num_steps)(**inputs) for p in (policy, again))
    return (first - second).abs().max().item()


def origin_for_card(options: argparse.Namespace) -> Origin | None:
    """Return what is known of the policy that the options name; None: what they ask for has no card.

    Raises:
        UnusableError: What the card is made from is damaged, or an evaluation is of other policies.
    """
    if options.format != "lerobot":
        return None
    origin = read_origin(options.checkpoint)
    if options.evaluation is None:
        return origin
    return with_evaluation(origin, options.checkpoint, options.evaluation)


def export(policy: PI0Policy, options: argparse.Namespace, origin: Origin | None) -> float:
    """Write what the options ask for to `options.output` once it is known to be right; return the difference.

    Args:
        policy: The policy.
        options: Those of `pi0-export`.
        origin: What is known of the policy, for a model card; None: without a card.

    Raises:
        ExportDiffersError: It is not, by more than the tolerance; nothing is left behind.
        ValueError: The policy has not so many cameras, or sizes that lerobot cannot build.
    """
    cameras = len(policy.features.image_keys)
    num_cameras = options.cameras or len(policy.features.present_cameras)
    if num_cameras > cameras:
        raise ValueError(f"--cameras: expected at most the {cameras} of the policy, found {num_cameras}")
    if options.format == "lerobot":
        require_lerobot_sizes(policy.config)
    num_steps = options.num_steps or policy.config.num_inference_steps
    partial = options.output.with_name(f"{options.output.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        if options.format == "torch":
            difference = export_torch(policy, partial, options.batch_size, num_cameras, num_steps)
        else:
            shard = options.max_shard_size and int(options.max_shard_size * 1e9)
            difference = export_lerobot(policy, partial, num_steps, shard)
        if not difference <= options.tolerance:  # also true for NaN
            raise ExportDiffersError(
                f"the exported policy differs by {difference:.3g}, more than --tolerance "
                f"{options.tolerance:g}; nothing was written"
            )
        if origin is not None:
            if policy.source is not None and (guidance := recorded_guidance(policy.source)) is not None:
                record_guidance(partial, guidance)
            write_card(partial, policy, origin, options.push_to_hub or str(options.output))
        partial.rename(options.output)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return difference
