"""GRPO as one of the methods that `learning.py --compare` compares: groups as RIPT's, policy gradients."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from compare_ript import Ript, RiptRecipe
from jaxtyping import Float
from torch import Tensor, nn

from pi0 import PI0Policy
from pi0.ript.groups import ActingPolicy
from pi0.ript.policy_gradient import GRPO, PolicyGradientLoss, StochasticPolicy
from pi0.ript.recap.stages import Artefact
from pi0.ript.rollout import ChunkPolicy
from pi0.ript.training.objectives import PolicyObjective
from pi0.ript.windows import Windows


class Grpo(Ript):
    """GRPO: as many rollouts, groups and updates as RIPT; it acts and is judged without guidance."""

    guidance = 1.0
    is_guided = False

    def recipe(self, number: int, policy: Artefact) -> "GrpoRecipe":
        """Return how the policy of a round is made."""
        ript = super().recipe(number, policy)
        values: dict[str, Any] = {field.name: getattr(ript, field.name) for field in fields(ript)}
        values["training"] = replace(ript.training, learning_rate=LEARNING_RATE)
        return GrpoRecipe(**values)


LEARNING_RATE = 1e-4


@dataclass(frozen=True)
class GrpoRecipe(RiptRecipe):
    """The policy of a round of GRPO, rollouts included."""

    noise_level: float = 0.7
    stochastic_steps: int = 4
    stochastic_among: int = 4
    clip_range: float = 0.02

    def acting(self, policy: PI0Policy) -> ChunkPolicy:
        """Return who acts in the rollouts."""
        steps = self.stochastic_steps, self.stochastic_among
        return ActingPolicy(StochasticPolicy(policy, self.noise_level, *steps), GRPO.rule)

    def objective(self, policy: PI0Policy, windows: Windows) -> PolicyObjective:
        """Return what is minimised."""
        return GradientObjective(policy, PolicyGradientLoss(policy, self.noise_level, self.clip_range))


class GradientObjective(PolicyObjective):
    """The loss of policy gradients on chunks with what was noted of them."""

    def __init__(self, policy: PI0Policy, loss: PolicyGradientLoss) -> None:
        super().__init__(policy, None, 0.0, 1)
        self.loss = loss

    def learner(self) -> nn.Module:
        """Return the summed loss of chunks."""
        return self.loss

    def sums(
        self, learner: nn.Module, batch: Mapping[str, Any], key: Sequence[int], *, is_training: bool
    ) -> Float[Tensor, " k"]:
        """Return the sum of the losses."""
        return learner(batch, key)[None]
