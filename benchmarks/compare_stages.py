"""What the methods of a comparison have in common: a start, stages of their own, and rounds."""

import copy
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path
from typing import Any, ClassVar

from pi0.ript.guidance import Guidance
from pi0.ript.recap import rounds as recap
from pi0.ript.recap.stages import Artefact, Inputs, StageName, Stages


class TimedStages(Stages):
    """Stages whose figures say what each took: `cpu_s`, of the process that finished it."""

    def run(self, name: StageName, recipe: Any, inputs: Inputs, make: Any) -> Artefact:
        """Return the stage's artefact, see `Stages.run`."""

        def timed(*arguments: Any) -> Mapping[str, Any]:
            start = time.process_time()
            return {**make(*arguments), "cpu_s": round(time.process_time() - start, 1)}

        return super().run(name, recipe, inputs, timed)


@dataclass(frozen=True)
class Round:
    """What a method made in a round."""

    policy: Artefact
    """That of the round before, if nothing could be learned."""
    episodes: int
    """Rollouts that were made."""
    learned_from: int
    """How many of them the policy was trained on."""
    success: float | None
    """Share of all of them that succeeded; None: none were made."""


class Method:
    """A method in one training run."""

    guidance: ClassVar[float | None] = None
    """With which it acts, None: as the configuration says; 1 for a method that knows no guidance."""
    is_guided: ClassVar[bool] = False
    """Whether its guidance can be chosen."""
    changes: ClassVar[Mapping[str, Any]] = {}
    """Settings that it has otherwise, by key."""

    def __init__(self, start: recap.Run, directory: Path, draws: int, sft: Artefact, data: Artefact) -> None:
        """Prepare the first round.

        Args:
            start: The run that made the SFT policy; its seed says the states and the noise of rollouts.
            directory: For the method's own stages.
            draws: Seed of all that is random in training.
            sft: The policy that all methods start from.
            data: The demonstrations.
        """
        config = copy.deepcopy(start.config)
        for key, value in self.changes.items():
            *sections, name = key.split(".")
            setattr(reduce(getattr, sections, config), name, value)
        if not self.is_guided:
            config.validation.guidances = None
        if self.guidance is not None:
            config.eval.cfg_guidance_scale = config.rollouts.guidance = self.guidance
        self.stages = TimedStages(directory, start.world)
        self.stages_apart: list[Stages] = []
        self.run = replace(start, config=config, stages=self.stages)
        self.training_run = replace(self.run, config=replace(config, seed=draws))
        self.sft, self.demonstrations, self.draws = sft, data, draws

    def improve(self, number: int, policy: Artefact) -> Round:
        """Return what a round makes of a policy."""
        raise NotImplementedError

    def judging_apart(self, guidance: Guidance) -> recap.Run:
        """Return the run that judges with another guidance, in a directory of its own."""
        name = (
            "-".join(f"{g:g}" for g in guidance.values()) if isinstance(guidance, dict) else f"{guidance:g}"
        )
        place = self.stages.run_dir / f"guidance-{name}"
        return replace(self.run, stages=TimedStages(place, self.run.world))
