"""RIPT as one of the methods that `learning.py --compare` compares: groups of rollouts from one state."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
from compare_stages import Method, Round
from jaxtyping import Int64

from pi0 import Indicator, PI0Policy
from pi0.ript.checkpoint.journal import EpisodeJournal
from pi0.ript.config import ConfigError
from pi0.ript.config.schema import EnvironmentSettings
from pi0.ript.groups import collect_groups
from pi0.ript.interruption import leave_if_asked
from pi0.ript.labels.mixture import Mixture
from pi0.ript.recap import RecapConfig
from pi0.ript.recap.artefacts import guidance_of, round_states
from pi0.ript.recap.stages import Artefact, Inputs, Kind, StageName
from pi0.ript.recap.workshop import Workshop
from pi0.ript.recording import remembering
from pi0.ript.rollout import ChunkPolicy, GuidedPolicy
from pi0.ript.training.objectives import AdvantageObjective, PolicyObjective
from pi0.ript.training.settings import PolicyTraining
from pi0.ript.windows import Windows, shuffled_batches


class Ript(Method):
    """RIPT: groups of rollouts from one state; those of mixed outcome are learned from, the others counted.

    The learning rate falls from the first update on, the indicator's is no larger, and every window is seen
    as often, as at rung 8.
    """

    guidance = 2.0
    is_guided = True
    group_size: ClassVar[int] = 8

    def improve(self, number: int, policy: Artefact) -> Round:
        """Return what a round makes of a policy."""
        made = self.run.make(StageName(Kind.POLICY, number), self.recipe(number, policy), start=policy)
        figures = made.figures
        return Round(made, figures["episodes"], figures["learned_from"], figures["success"])

    def recipe(self, number: int, policy: Artefact) -> "RiptRecipe":
        """Return how the policy of a round is made."""
        config = self.run.config
        training = config.finetuning.training
        return RiptRecipe(
            num_groups=groups_in(config),
            group_size=self.group_size,
            pool_size=config.rollouts.pool_size,
            guidance=guidance_of(policy, config.rollouts.guidance),
            task=config.task,
            training=replace(
                training,
                warmup_steps=0,
                decay_fraction=1.0,
                indicator_learning_rate=training.learning_rate,
            ),
            freeze=config.policy.freeze,
            round=number,
            seed=config.seed,
            draws=self.draws,
        )


def groups_in(config: RecapConfig) -> int:
    """Return how many groups RIPT tries in a round, so that it makes as many rollouts as the others.

    Raises:
        ConfigError: The others' number is no multiple of a group.
    """
    episodes, size = config.rollouts.num_states * config.rollouts.per_state, Ript.group_size
    if episodes % size:
        raise ConfigError(
            f"rollouts.num_states: {config.rollouts.num_states} states x {config.rollouts.per_state} are "
            f"{episodes} rollouts; expected a multiple of {size}, RIPT's group, so that all make as many"
        )
    return episodes // size


@dataclass(frozen=True)
class RiptRecipe:
    """The policy of a round of RIPT, rollouts included."""

    num_groups: int
    """All are tried once, none is tried again: the rollouts are counted."""
    group_size: int
    pool_size: int
    guidance: float
    task: EnvironmentSettings
    training: PolicyTraining
    freeze: str | None
    round: int
    seed: int
    draws: int
    uncond_weight: float = 0.1
    window_stride: int = 5

    def make(self, inputs: Inputs, work: Path, workshop: Workshop) -> Mapping[str, Any]:
        """Write the policy; finished episodes and optimizer steps survive a kill."""
        env, policy = workshop.simulators(self.task), workshop.load_policy(inputs["start"])
        policy.model.freeze(self.freeze)
        journal = EpisodeJournal(work / "episodes")
        collection = collect_groups(
            env,
            self.acting(policy),
            iter(round_states(env, self.pool_size, self.num_groups, self.round, self.seed)),
            num_groups=self.num_groups,
            group_size=self.group_size,
            max_attempts=self.num_groups,
            seed=(self.seed, self.round),
            render_every=self.window_stride,
            run=remembering(journal, partial(leave_if_asked, workshop.world)),
        )
        windows = collection.windows(policy.config.chunk_size)
        steps = self._train(policy, windows, work, workshop)
        shutil.rmtree(journal.directory)
        return {
            "episodes": sum(len(group.rollouts) for group in collection.tried),
            "learned_from": sum(len(group.rollouts) for group in collection.kept),
            "groups": len(collection.tried),
            "mixed": len(collection.kept),
            "success": collection.success_rate,
            "steps": steps,
        }

    def acting(self, policy: PI0Policy) -> ChunkPolicy:
        """Return who acts in the rollouts."""
        return GuidedPolicy(policy, self.guidance)

    def objective(self, policy: PI0Policy, windows: Windows) -> PolicyObjective:
        """Return what is minimised."""
        indicator = np.where(windows.advantages > 0, int(Indicator.POSITIVE), int(Indicator.NEGATIVE))
        return AdvantageObjective(policy, indicator, self.uncond_weight, self.training.num_draws)

    def _train(self, policy: PI0Policy, windows: Windows, work: Path, workshop: Workshop) -> int:
        if not len(windows):  # no group was mixed, so that the policy stays
            policy.save_pretrained(work)
            return 0
        key = (self.draws, self.round)
        objective = self.objective(policy, windows)
        passes = WindowPasses(windows, self.training, key)
        return len(workshop.train(objective, cast("Mixture", passes), self.training, key, work))


class WindowPasses:
    """The windows of groups, drawn as rung 8 draws them: passes over all, each in an order of its own."""

    def __init__(self, windows: Windows, training: PolicyTraining, key: Sequence[int]) -> None:
        size = training.batch_size
        passes = -(-training.steps // -(-len(windows) // size))
        self._windows, self._steps = windows, shuffled_batches(len(windows), size, passes, key)

    @property
    def num_windows(self) -> int:
        """The different windows."""
        return len(self._windows)

    def draw(self, count: int, seed: Sequence[int]) -> Int64[np.ndarray, " b"]:
        """Return the windows of an optimizer step, whose number is the last of the seed."""
        return np.sort(self._steps[seed[-1]])

    def batch(self, windows: Int64[np.ndarray, " b"]) -> dict[str, Any]:
        """Return windows as a batch for a policy."""
        return self._windows.batch(windows)
