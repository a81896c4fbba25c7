"""The methods that `learning.py --compare` compares: what each makes of the newest policy in a round.

All start from one SFT policy, make their own rollouts, and take as many updates in a round.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from compare_grpo import Grpo
from compare_ript import Ript
from compare_stages import Method, Round

from pi0.ript.labels.advantages import fill_missing, read_advantages
from pi0.ript.recap import rounds as recap
from pi0.ript.recap.data import Reading, open_sources
from pi0.ript.recap.objectives import policy_objective
from pi0.ript.recap.stages import Artefact, Inputs, Kind, StageName
from pi0.ript.recap.workshop import Workshop
from pi0.ript.training.settings import PolicyTraining


class MoreSft(Method):
    """SFT goes on with the demonstrations; it makes no rollouts."""

    guidance = 1.0

    def improve(self, number: int, policy: Artefact) -> Round:
        """Return what a round makes of a policy."""
        seed = int(np.random.SeedSequence((self.draws, number)).generate_state(1)[0])
        made = recap.imitate(self.run, StageName(Kind.POLICY, number), policy, self.demonstrations, seed)
        return Round(made, 0, 0, None)


class Filtered(Method):
    """Filtered imitation, iterated: the newest rollouts that succeeded are imitated.

    If none did there is nothing to imitate, and the policy stays.
    """

    guidance = 1.0

    def improve(self, number: int, policy: Artefact) -> Round:
        """Return what a round makes of a policy."""
        rollouts = recap.collect(self.run, number, policy)
        episodes, success = rollouts.figures["episodes"], rollouts.figures["success"]
        name = StageName(Kind.POLICY, number)
        made = recap.imitate_successes(self.run, name, policy, rollouts, self.draws)
        return Round(made, episodes, round(episodes * success), success)


class Recap(Method):
    """RECAP as the final script runs it, with its gates."""

    is_guided = True
    has_gates: ClassVar[bool] = True

    def improve(self, number: int, policy: Artefact) -> Round:
        """Return what a round makes of a policy."""
        run, config = self.training_run, self.run.config
        if number == 1:
            self.value = self.pretrained = recap.fit_value(run, self.sft, [self.demonstrations])
            self.rollouts: list[Artefact] = []
        self.rollouts.append(recap.collect(self.run, number, policy))
        data = [self.demonstrations, *self.rollouts[-config.rollouts.keep_rounds :]]
        start = self.pretrained if config.value.start_from == "pretrained" else self.value
        self.value = recap.fit_value(run, self.sft, data, start, number)
        labels = self._label(number, data)
        if self.has_gates:
            recap.require_gates(run, self.value, labels, self.rollouts)
        start = self.sft if config.finetuning.start_from == "sft" else policy
        made, figures = self._fit(number, start, labels, data), self.rollouts[-1].figures
        return Round(made, figures["episodes"], figures["episodes"], figures["success"])

    def _label(self, number: int, data: Sequence[Artefact]) -> Artefact:
        return recap.label(self.training_run, number, self.sft, self.value, data)

    def _fit(self, number: int, start: Artefact, labels: Artefact, data: Sequence[Artefact]) -> Artefact:
        return recap.fit_labels(self.training_run, number, start, labels, data)


class Awr(Recap):
    """Advantage-weighted regression: as RECAP, but with a weight in place of an indicator."""

    guidance = 1.0
    is_guided = False
    has_gates = False

    def _fit(self, number: int, start: Artefact, labels: Artefact, data: Sequence[Artefact]) -> Artefact:
        config = self.training_run.config
        training = replace(config.finetuning.training, use_awr=True)
        recipe = AwrRecipe(training, config.policy.freeze, config.seed, number, self.run.reading)
        name = StageName(Kind.POLICY, number)
        return self.run.make(name, recipe, start=start, labels=labels, rollouts=data[-1])


@dataclass(frozen=True)
class AwrRecipe:
    """A policy trained on the newest rollouts, each window by the exponential of its advantage."""

    training: PolicyTraining
    """`awr_beta` is in standard deviations of the advantages, whose unit is that of normalised returns."""
    freeze: str | None
    seed: int
    round: int
    reading: Reading

    def make(self, inputs: Inputs, work: Path, workshop: Workshop) -> Mapping[str, Any]:
        """Write the policy."""
        (source,) = (replace(s, advantage="on") for s in open_sources(inputs, self.reading, workshop))
        place = inputs["labels"].path / source.name
        advantages = fill_missing(read_advantages(place, source.frames), "error", place)
        unit = float(np.std(advantages)) or 1.0
        training = replace(self.training, awr_beta=self.training.awr_beta * unit)
        policy = workshop.load_policy(inputs["start"])
        policy.model.freeze(self.freeze)
        positive = [np.ones(source.num_frames, bool)]
        objective = policy_objective(policy, [source], [advantages], positive, training)
        rows = workshop.train(*objective, training, (self.seed, self.round), work)
        return {"steps": len(rows), "awr_beta": training.awr_beta}


METHODS: dict[str, type[Method]] = {
    "recap": Recap,
    "ript": Ript,
    "grpo": Grpo,
    "filtered": Filtered,
    "awr": Awr,
    "sft": MoreSft,
}
