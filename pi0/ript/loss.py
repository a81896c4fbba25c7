"""The objective of RIPT on a flow policy: imitate what was better than its group, keep the rest in mind.

Other algorithms are registered beside it by name, and chosen with `algo.name`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from pi0 import Indicator, PI0Policy
from pi0.preprocess import samples_of
from pi0.registry import add
from pi0.ript.advantage import OF_RIPT, LearningRule
from pi0.ript.algorithms import ALGORITHMS, LearningAlgorithm, require_algorithm
from pi0.ript.groups import ActingPolicy
from pi0.ript.policy_gradient import GRPO
from pi0.ript.rollout import ChunkPolicy, GuidedPolicy


class AdvantageLoss(nn.Module):
    """`1[A > 0] L(positive) + alpha L(unconditional)` per window, summed over the batch.

    L is the flow-matching loss with the indicator positive or withheld. Both terms share the noise, the flow
    times and, where the indicator is an embedding, the prefix: an indicator in the prompt needs a prefix for
    each. The first term is computed for the windows that it counts for alone. Sums, because the caller knows
    how many windows an optimizer step has in all.
    """

    def __init__(self, policy: PI0Policy, uncond_weight: float, num_draws: int = 1) -> None:
        super().__init__()
        if policy.config.indicator == "none":
            raise ValueError(
                "indicator: this policy takes none, so an advantage has nowhere to enter; load it with "
                "changes={'indicator': 'text'} or 'embedding'"
            )
        if policy.config.indicator_dropout > 0:
            raise ValueError(
                "indicator_dropout: expected 0 (the unconditional term takes its place), found "
                f"{policy.config.indicator_dropout}"
            )
        self.policy, self.uncond_weight, self.num_draws = policy, uncond_weight, num_draws

    def forward(self, batch: Mapping[str, Any], seed: Sequence[int]) -> Float[Tensor, ""]:
        """Return the summed loss of a batch with `advantage` (b,) and the windows' numbers, `window` (b,).

        Noise and flow times of a window are a function of `seed` and of its number alone, so the sum over an
        optimizer step does not depend on how the step is cut into batches or spread over processes. The last
        number of `seed` is the step's; those before it say of which windows it is one.
        """
        policy = self.policy
        better = (torch.as_tensor(batch["advantage"]).cpu() > 0).nonzero().flatten()
        noise, time = window_draws(policy, batch["window"].tolist(), seed, self.num_draws)
        noise, time, prefix = noise.to(policy.device), time.to(policy.device), None
        if policy.prefixes is not None:
            policy.prefixes.use_for(tuple(seed[:-1]))  # other windows: those before do not come again
        if policy.config.indicator == "embedding":
            kept = None if policy.prefixes is None else policy.prefixes.of(policy, batch)
            prefix = kept or policy.model.prefix(policy.preprocess(batch))

        def loss(windows: Mapping[str, Any], indicator: Indicator, **drawn: Any) -> Float[Tensor, " n"]:
            return policy.loss(windows, indicator=indicator, reduction="sample", **drawn)

        unconditional = loss(batch, Indicator.NONE, noise=noise, time=time, prefix=prefix)
        # None is still a pass, so that all processes make the same ones: in each, shards are gathered.
        rows = better if len(better) else torch.arange(len(batch["advantage"]))[:1]
        places = rows.to(policy.device)
        conditional = loss(
            samples_of(batch, rows.tolist(), len(batch["advantage"])),
            Indicator.POSITIVE,
            noise=noise[:, places],
            time=time[:, places],
            prefix=None if prefix is None else prefix.select(places),
        )
        weight = float(len(better) > 0)
        return weight * conditional.sum() + self.uncond_weight * unconditional.sum()


def window_draws(
    policy: PI0Policy, windows: Sequence[int], seed: Sequence[int], num_draws: int
) -> tuple[Float[Tensor, "k b h a"], Float[Tensor, "k b"]]:
    """Return noise and flow times, on the host; those of a window depend on the seed and its number alone."""
    config = policy.config
    noise = torch.empty(num_draws, len(windows), config.chunk_size, config.max_action_dim)
    time = torch.empty(num_draws, len(windows))
    for i, window in enumerate(windows):
        key = int(np.random.SeedSequence((*seed, window)).generate_state(1)[0])
        generator = torch.Generator().manual_seed(key)
        noise[:, i] = torch.randn(noise[:, i].shape, generator=generator)
        time[:, i] = policy.model.sample_time((num_draws,), torch.device("cpu"), generator)
    return noise, time


@runtime_checkable
class AlgorithmSettings(Protocol):
    """What every objective is told; one of a plugin may read more."""

    name: str
    """The name of a registered objective."""
    cfg_uncond_weight: float
    """Weight of the loss with the indicator withheld."""
    num_draws: int
    """Noise draws per window."""


type LearnerFactory = Callable[[PI0Policy, Any], nn.Module]
type ActorFactory = Callable[[PI0Policy, Any, int], ChunkPolicy]


def register_algorithm(
    name: str,
    factory: LearnerFactory,
    *,
    actor: ActorFactory | None = None,
    rule: LearningRule = OF_RIPT,
) -> None:
    """Make `algo.name=name` learn by another algorithm.

    Args:
        name: Of the algorithm.
        factory: `factory(policy, algo)` returns a module that is called as `AdvantageLoss` is; its parameters
            are trained.
        actor: `actor(policy, algo, iteration)` returns who acts in rollouts; None: RIPT's guided policy.
        rule: Which episodes are learned from and how; RIPT's unless given.
    """
    add("algorithm", ALGORITHMS, name, LearningAlgorithm(factory, actor, rule))


def make_learner(policy: PI0Policy, algo: AlgorithmSettings) -> nn.Module:
    """Return what the loop calls and trains: the objective `algo.name` with the settings of `algo`."""
    return _algorithm(algo).learner(policy, algo)


def acting_policy(policy: PI0Policy, algo: AlgorithmSettings, iteration: int) -> ActingPolicy:
    """Return who acts in the rollouts of an iteration, and how they are learned from."""
    algorithm = _algorithm(algo)
    return ActingPolicy((algorithm.actor or _guided)(policy, algo, iteration), algorithm.rule)


def _algorithm(algo: AlgorithmSettings) -> LearningAlgorithm:
    return ALGORITHMS[require_algorithm(algo.name)] or _OWN[algo.name]


def _guided(policy: PI0Policy, algo: Any, iteration: int) -> GuidedPolicy:
    return GuidedPolicy(policy, algo.collection_cfg_scale if iteration > 0 else 1.0)  # at first: unguided


_OWN = {
    "ript": LearningAlgorithm(
        lambda policy, algo: AdvantageLoss(policy, algo.cfg_uncond_weight, algo.num_draws)
    ),
    "grpo": GRPO,
}
"""The algorithms of the library."""


def adamw_settings(algo: Any) -> dict[str, Any]:
    """Return the optimizer's settings among those of `algo`, as torch names them."""
    return {"lr": algo.lr, "betas": (algo.beta1, algo.beta2), "weight_decay": algo.weight_decay}
