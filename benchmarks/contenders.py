"""Ours and the peers behind one interface, on the same weights, and the proof that they agree."""

import copy
import dataclasses
import functools
from collections.abc import Callable, Iterable

import torch
from jaxtyping import Float
from ours import observation, pi0_config
from peers import (
    lerobot_actions,
    lerobot_loss,
    lerobot_pi0,
    set_expert_only,
    transformers_actions,
    transformers_loss,
    transformers_pi0,
)
from sizes import Inputs, Size
from torch import Tensor, nn

from pi0.model import Pi0Model
from pi0.weights import WeightLoader

# "trimmed": fed real cameras and tokens only, because transformers' own processor adds no others.
NAMES = ("ours", "lerobot", "transformers", "transformers trimmed")

# Largest errors relative to lerobot of (losses and actions, gradient norm). transformers embeds
# time in float32, where angles of 1571 rad leave an error of 1e-4.
TOLERANCES = {
    ("float32", "ours"): (1e-5, 1e-5),
    ("float32", "transformers"): (1e-3, 1e-3),
    ("bfloat16", "ours"): (0.1, 0.05),
    ("bfloat16", "transformers"): (0.1, 0.05),
}


@dataclasses.dataclass(frozen=True)
class Contender:
    """One implementation under test; all take the same `Inputs`."""

    model: nn.Module
    loss: Callable[[Inputs], Float[Tensor, "b h a"]]
    actions: Callable[[Inputs], Float[Tensor, "b h a"]]
    set_expert_only: Callable[[bool], object]
    guided_actions: Callable[[Inputs], Float[Tensor, "b h a"]] | None = None

    def train_step(self, inputs: Inputs) -> None:
        """Compute the gradients of the mean loss anew."""
        self.model.zero_grad(set_to_none=True)
        self.loss(inputs).mean().backward()

    def gradient_norm(self, inputs: Inputs) -> float:
        """Return the norm over all gradients, which does not depend on how weights are laid out."""
        self.train_step(inputs)
        norms = [p.grad.double().norm() for p in self.model.parameters() if p.grad is not None]
        self.model.zero_grad(set_to_none=True)
        return torch.stack(norms).norm().item()

    def num_bytes(self) -> int:
        """Return the size of the trained model's parameters and buffers."""
        tensors = (*self.model.parameters(), *self.model.buffers())
        return sum(t.numel() * t.element_size() for t in tensors)


def build(
    size: Size, dtype: str = "float32", device: str = "cpu", names: Iterable[str] = NAMES
) -> dict[str, Contender]:
    """Return the named contenders with equal weights."""
    policy = lerobot_pi0(size, dtype=dtype, device=device)
    weights = policy.model.state_dict()
    contenders = {}
    if "ours" in names:
        contenders["ours"] = _ours(size, weights, dtype, device)
    if "lerobot" in names:
        contenders["lerobot"] = Contender(
            model=policy,
            loss=lambda x: lerobot_loss(policy, x),
            actions=lambda x: lerobot_actions(policy, x),
            set_expert_only=lambda on: set_expert_only(policy, on),
        )
    if "transformers" in names:
        contenders["transformers"] = whole = _transformers(size, weights, dtype, device)
        if "transformers trimmed" in names:
            contenders["transformers trimmed"] = dataclasses.replace(
                whole,
                loss=lambda x: whole.loss(x.trimmed()),
                actions=lambda x: whole.actions(x.trimmed()),
            )
    return contenders


def _ours(size: Size, weights: dict[str, Tensor], dtype: str, device: str) -> Contender:
    """Return our policy; in bfloat16 it trains float32 weights and samples from a bfloat16 copy."""
    model = Pi0Model(pi0_config(size, dtype), seed=None, device=device)
    WeightLoader().load(model, model.config, weights, "the weights of lerobot's policy")

    @functools.cache  # a process that only trains pays no memory for it
    def sampler() -> Pi0Model:
        return model if dtype == "float32" else copy.deepcopy(model).to_inference()

    def loss(x: Inputs) -> Tensor:
        return model.loss(observation(x), x.actions, noise=x.noise[None], time=x.time[None])

    return Contender(
        model=model,
        loss=loss,
        actions=lambda x: sampler().sample(observation(x), noise=x.noise),
        guided_actions=lambda x: sampler().sample(observation(x), noise=x.noise, guidance=2.0),
        set_expert_only=lambda on: model.freeze("expert_only" if on else "none"),
    )


def _transformers(size: Size, weights: dict[str, Tensor], dtype: str, device: str) -> Contender:
    model = transformers_pi0(size, weights, dtype, device)
    return Contender(
        model=model,
        loss=lambda x: transformers_loss(model, x),
        actions=lambda x: transformers_actions(model, x),
        set_expert_only=lambda on: model.model.vlm.requires_grad_(not on),
    )


def check_agreement(
    contenders: dict[str, Contender], inputs: Inputs, dtype: str
) -> dict[str, dict[str, float]]:
    """Return each contender's errors relative to lerobot: losses, actions and gradient norm.

    Raises:
        RuntimeError: One is beyond `TOLERANCES`, so the contenders compute different things.

    """
    expected = _results(contenders["lerobot"], inputs)
    errors = {}
    for name, contender in contenders.items():
        if name == "lerobot":
            continue
        found = _results(contender, inputs)
        errors[name] = {
            key: ((found[key] - expected[key]).abs().max() / expected[key].abs().max()).item()
            for key in expected
        }
        element_limit, norm_limit = TOLERANCES[dtype, name.split()[0]]
        for key, error in errors[name].items():
            limit = norm_limit if key == "gradient norm" else element_limit
            if not error <= limit:
                raise RuntimeError(
                    f"{key} of {name}: expected a relative error to lerobot of at most "
                    f"{limit:g}, found {error:.2g}"
                )
    return errors


def _results(contender: Contender, inputs: Inputs) -> dict[str, Tensor]:
    with torch.no_grad():
        loss = contender.loss(inputs).float()
    return {
        "losses": loss,
        "actions": contender.actions(inputs).float(),
        "gradient norm": torch.tensor(contender.gradient_norm(inputs)),
    }
