"""What the stages of a run are made with."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from pi0 import PI0Policy
from pi0.ript.config.schema import EnvironmentSettings
from pi0.ript.data.cache import ImageCache
from pi0.ript.data.frame_set import FrameSet
from pi0.ript.data.reader import open_set
from pi0.ript.data.settings import DatasetSettings
from pi0.ript.distributed import World
from pi0.ript.environments import get_environment
from pi0.ript.envs import BatchedEnv
from pi0.ript.kept_prefixes import keep_prefixes
from pi0.ript.labels.mixture import Mixture
from pi0.ript.policy_settings import PolicySettings
from pi0.ript.recap.snapshot_plan import SnapshotPlan
from pi0.ript.recap.stages import Artefact
from pi0.ript.threads import use_threads
from pi0.ript.training.objectives import Model, Objective, prefixed
from pi0.ript.training.settings import Training
from pi0.ript.training.steps import Row
from pi0.value import ValueFunction

FitFunction = Callable[[Objective, Mixture, Training, Sequence[int], SnapshotPlan, World], list[Row]]
"""Trains the objective's model on windows of a mixture, and returns the figures of every step: the script's
`fit`. The numbers are the key of everything random."""


@dataclass(frozen=True)
class Workshop:
    """What stages are made with, and what changes no result: that is a function of the stage's recipe."""

    world: World
    device: str
    """The device of this process."""
    cache: ImageCache
    """Decoded images, while their data sets are open."""
    fit: FitFunction
    untrained: Path
    """Where weights are that the run does not train; stages refer to it."""
    plan: SnapshotPlan
    """How often trainings write snapshots; each stage has a directory of its own for them."""
    settings: PolicySettings = field(default_factory=PolicySettings)
    """Say with how many threads models compute, and whether prefixes are kept."""
    _simulators: dict[str, BatchedEnv] = field(default_factory=dict)
    _sets: dict[str, FrameSet] = field(default_factory=dict)
    """The open ones, by their directories."""

    def simulators(self, task: EnvironmentSettings) -> BatchedEnv:
        """Return the simulators of a task, started when a stage first needs them."""
        key = json.dumps(asdict(task), sort_keys=True)
        if key not in self._simulators:
            self._simulators[key] = get_environment(**asdict(task)).make()
        return self._simulators[key]

    def open_sets(self, wanted: Sequence[DatasetSettings]) -> list[FrameSet]:
        """Return data sets; those stay open that the next call wants too, the others close."""
        roots = {str(settings.root): settings for settings in wanted}
        for root in self._sets.keys() - roots.keys():
            self._sets.pop(root).forget_images(self.cache)
        for root, settings in roots.items():
            if root not in self._sets:
                self._sets[root] = open_set(settings)
                self._sets[root].keep_images(self.cache)
        return [self._sets[str(settings.root)] for settings in wanted]

    def load_policy(self, artefact: Artefact, *, to_train: bool = False) -> PI0Policy:
        """Return a stage's policy on this process's device; `to_train`: processes may share its weights."""
        later = to_train and self.world.holds_parts
        policy = PI0Policy.from_pretrained(artefact.path, device=self.device, later=later)
        use_threads(policy, self.settings.threads)
        return policy

    def load_value(self, artefact: Artefact, sft: Artefact) -> ValueFunction:
        """Return a stage's value function, which may read the prefix of the SFT policy."""
        policy = self.load_policy(sft)
        return ValueFunction.from_pretrained(artefact.path, policy).to(policy.device)

    def train(
        self, objective: Objective, mixture: Mixture, settings: Training, key: Sequence[int], work: Path
    ) -> list[Row]:
        """Train in a stage's directory, write the model there, and return the figures of every step."""
        plan = replace(self.plan, directory=work)
        use_threads(objective.model, self.settings.threads)
        if (policy := prefixed(objective.model)) is not None:
            is_trained, say = policy is objective.model, self.world.print
            keep_prefixes(policy, self.settings, say, mixture.num_windows, is_trained=is_trained)
        rows = self.fit(objective, mixture, settings, key, plan, self.world)
        self.world.on_main(self.save, objective.model, work)
        text = "".join(json.dumps(row) + "\n" for row in rows)
        self.world.on_main((work / "training.jsonl").write_text, text)
        return rows

    def save(self, model: Model, work: Path) -> None:
        """Write a model to a stage's directory, but what the run does not train: that is written once."""
        model.save_pretrained(work, untrained=self.untrained)

    def close(self) -> None:
        """Stop the simulators."""
        for env in self._simulators.values():
            env.close()
