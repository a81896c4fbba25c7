"""How far computing in bfloat16 is from float32 with the same weights: ours, and lerobot's own mode.

The weights are those that lerobot's bfloat16 mode has (vision, projector, norms and heads in float32), so
that only the computation differs. Modes are loaded one after another, and only their results are kept.
"""

import gc
import math
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from jaxtyping import Float
from ours import observation
from peers import lerobot_actions, lerobot_pi0
from sizes import Inputs, Size, make_inputs
from stand_in import example, of_depth, write_checkpoint
from torch import Tensor

from pi0 import PI0Policy
from pi0.checkpoint_names import WEIGHTS
from pi0.ript.policy_settings import PolicySettings
from pi0.ript.starting_policy import make_policy
from pi0.tensor_files import stored_tensors
from pi0.trainable import inference_dtypes

SEEDS = (5, 6)
REAL_ACTIONS = 7
"""Of the 32 dimensions of an action those that LIBERO's robot has."""

Results = list[Tensor]


def sampling_figures(directory: Path, size: Size) -> dict[str, float]:
    """Return the error of a sample in 10 steps to float32, ours and lerobot's, mean over two inputs.

    An error is the norm of the difference over that of the float32 actions.
    """
    inputs = [make_inputs(size, batch=1, seed=seed) for seed in SEEDS]
    exact, ours = (_our_actions(directory, dtype, inputs) for dtype in ("float32", "bfloat16"))
    lerobots = _lerobots_actions(directory, size, inputs)
    figures = {}
    for name, width in (("all 32 dimensions", None), ("the 7 of a robot", REAL_ACTIONS)):
        mine, peers = (_mean_error(results, exact, width) for results in (ours, lerobots))
        figures |= {f"error, {name}": mine, f"lerobot's error, {name}": peers}
        figures[f"their ratio, {name}"] = mine / peers
    return figures


def _our_actions(directory: Path, dtype: str, inputs: list[Inputs]) -> Results:
    """Return our actions; in bfloat16 in the mode of `pi0-eval` and `pi0-serve`."""
    policy = PI0Policy.from_pretrained(
        directory, changes={"dtype": dtype}, dtypes=lambda model: inference_dtypes(model, torch.bfloat16)
    )
    actions = [policy.model.sample(observation(x), noise=x.noise) for x in inputs]
    del policy
    gc.collect()
    return actions


def _lerobots_actions(directory: Path, size: Size, inputs: list[Inputs]) -> Results:
    policy = lerobot_pi0(size, dtype="bfloat16", weights=stored_tensors(directory / WEIGHTS))
    with torch.no_grad():
        actions = [lerobot_actions(policy, x).float() for x in inputs]
    del policy
    gc.collect()
    return actions


def _mean_error(results: Results, exact: Results, width: int | None) -> float:
    pairs = zip(results, exact, strict=True)
    errors = [(one - other)[..., :width].norm() / other[..., :width].norm() for one, other in pairs]
    return torch.stack(errors).mean().item()


# Gradients --------------------------------------------------------------------------------------------------


def gradient_figures(directory: Path) -> dict[str, float]:
    """Return angle and norm of the gradient in bfloat16 against float32's, part by part.

    Expert and heads are those of the whole model, in expert-only training; vision and language model have
    4 layers, and everything is trained.
    """
    figures = compared_gradients(directory, "expert_only")
    shallow = directory.with_name("depth-4")
    if not shallow.exists():
        write_checkpoint(shallow, of_depth(4))
    deep = {name for name in figures if name.startswith(("expert", "heads"))}
    return figures | {
        name: value for name, value in compared_gradients(shallow, "none").items() if name not in deep
    }


def compared_gradients(directory: Path, freeze: str) -> dict[str, float]:
    """Return for each part of a model the angle between both gradients, and how far their norms are apart."""
    exact, rounded = (_gradients(directory, freeze, dtype) for dtype in ("float32", "bfloat16"))
    figures = {}
    for part, is_in in _PARTS.items():
        names = [name for name in exact if is_in(name)]
        if not names:
            continue
        dot = sum((exact[n].double() * rounded[n].double()).sum().item() for n in names)
        norms = [math.sqrt(sum(g[n].double().square().sum().item() for n in names)) for g in (exact, rounded)]
        figures[f"{part}: angle, degrees"] = math.degrees(math.acos(min(1.0, dot / math.prod(norms))))
        figures[f"{part}: norm, relative difference"] = abs(norms[1] / norms[0] - 1)
    return figures


def _is_of(stack: str) -> Callable[[str], bool]:
    return lambda name: name.startswith(f"{stack}.")


_PARTS: Mapping[str, Callable[[str], bool]] = {
    **{stack: _is_of(stack) for stack in ("vision", "vlm", "expert")},
    "heads": lambda name: name.split(".")[0] not in ("vision", "vlm", "expert"),
}


def _gradients(directory: Path, freeze: str, dtype: str) -> dict[str, Float[Tensor, "..."]]:
    """Return the gradients of a training with float32 weights that computes in a dtype."""
    policy = make_policy(str(directory), PolicySettings(freeze=freeze, dtype=dtype), _no_toy, 0)
    _move_off_the_grid(policy)
    policy.train()
    batch = example(chunk_size=policy.config.chunk_size)
    policy.loss(batch, generator=torch.Generator().manual_seed(1)).backward()
    gradients = {n: p.grad for n, p in policy.model.named_parameters() if p.grad is not None}
    del policy
    gc.collect()
    return gradients


def _move_off_the_grid(policy: PI0Policy) -> None:
    """Move what is trained, as training does: weights that bfloat16 can hold would be rounded for nothing."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter.mul_(1 + 2**-7 * (torch.rand(parameter.shape, generator=generator) - 0.5))


def _no_toy(**changes: object) -> PI0Policy:
    raise AssertionError(changes)
