"""RECAP with one part of its recipe changed: `learning.py --ablation`, or `--compare recap --change loss`.

Not built: leave-one-out combined with the value; a state has two rollouts here, and RIPT's groups have eight.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from compare_methods import Recap
from compare_stages import TimedStages
from jaxtyping import Float64

from pi0.ript.labels.sources import Source
from pi0.ript.recap import rounds as recap
from pi0.ript.recap.artefacts import LabelsRecipe
from pi0.ript.recap.stages import Artefact, Inputs, Kind, StageName
from pi0.ript.recap.workshop import Workshop

SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "loss": {"finetuning.objective": "indicator"},
    "success_gate": {"advantage.ranked": "rollouts"},
    "demonstrations": {"demonstrations.advantage": "use"},
    "share_0.4": {"advantage.positive_fraction": 0.4},
    "share_0.8": {"advantage.positive_fraction": 0.8},
    "smooth": {"advantage.smoothing": 0.95},
}
"""What each change sets."""


class SmallestOfThree(Recap):
    """RECAP with the smallest value of three value functions, which differ in what is random in training.

    The gates judge the first of them.
    """

    num_more = 2

    def _label(self, number: int, data: Sequence[Artefact]) -> Artefact:
        if number == 1:
            self.members = [self._member(place) for place in range(1, self.num_more + 1)]
        for place, (run, pretrained, value) in enumerate(self.members):
            start = pretrained if run.config.value.start_from == "pretrained" else value
            self.members[place] = (run, pretrained, recap.fit_value(run, self.sft, data, start, number))
        run, mode = self.training_run, self.run.config.demonstrations.advantage
        recipe = SmallestLabels(run.config.reward, run.config.advantage, mode, run.deadlines, run.reading)
        inputs = {recap.source_name(artefact): artefact for artefact in data}
        inputs |= {f"value-{place}": value for place, (_, _, value) in enumerate(self.members)}
        name = StageName(Kind.ADVANTAGES, number)
        return run.make(name, recipe, sft=self.sft, value=self.value, **inputs)

    def _member(self, place: int) -> tuple[recap.Run, Artefact, Artefact]:
        """Return the run that trains another value function, and that function before the first round."""
        draws = int(np.random.SeedSequence((self.draws, place)).generate_state(1)[0])
        stages = TimedStages(self.stages.run_dir / f"value-{place}", self.run.world)
        self.stages_apart.append(stages)
        run = replace(self.run, stages=stages, config=replace(self.run.config, seed=draws))
        value = recap.fit_value(run, self.sft, [self.demonstrations])
        return run, value, value


@dataclass(frozen=True)
class SmallestLabels(LabelsRecipe):
    """Labels by the smallest of several values of each frame."""

    def values(
        self, inputs: Inputs, sources: Sequence[Source], workshop: Workshop
    ) -> list[Float64[np.ndarray, " _"]]:
        """Return the value of every frame of each source."""
        members = [artefact for artefact in inputs.values() if artefact.kind is Kind.VALUE]
        each = [
            super(SmallestLabels, self).values({**inputs, "value": one}, sources, workshop) for one in members
        ]
        return [np.minimum.reduce(values) for values in zip(*each, strict=True)]


CHANGES: dict[str, type[Recap]] = {
    **{name: type(name, (Recap,), {"changes": settings}) for name, settings in SETTINGS.items()},
    "ensemble3": SmallestOfThree,
}
"""The parts that can be changed, one at a time; `recap_NAME` is the method."""
