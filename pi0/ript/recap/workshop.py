"""What the stages of a run are made with."""

import json
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path

from pi0 import PI0Policy
from pi0.ript.config.schema import EnvironmentSettings
from pi0.ript.distributed import World
from pi0.ript.environments import get_environment
from pi0.ript.envs import BatchedEnv
from pi0.ript.recap.keeping import Keeping
from pi0.ript.recap.stages import Artefact
from pi0.value import ValueFunction


@dataclass(frozen=True)
class Workshop:
    """What stages are made with, and what changes no result: that is a function of the stage's recipe."""

    world: World
    device: str
    """Of this process."""
    images: Path
    """Directory of decoded images."""
    save_minutes: float | None = None
    """Between snapshots of a training."""
    max_nonfinite_steps: int = 3
    """Optimizer steps in a row without a finite loss before a training ends."""
    _simulators: dict[str, BatchedEnv] = field(default_factory=dict)

    def simulators(self, task: EnvironmentSettings) -> BatchedEnv:
        """Return the simulators of a task, started when a stage first needs them."""
        key = json.dumps(asdict(task), sort_keys=True)
        if key not in self._simulators:
            self._simulators[key] = get_environment(**asdict(task)).make()
        return self._simulators[key]

    def load_policy(self, artefact: Artefact) -> PI0Policy:
        """Return a stage's policy on this process's device."""
        return PI0Policy.from_pretrained(artefact.path, device=self.device)

    def load_value(self, artefact: Artefact, sft: Artefact) -> ValueFunction:
        """Return a stage's value function, which may read the prefix of the SFT policy."""
        policy = self.load_policy(sft)
        return ValueFunction.from_pretrained(artefact.path, policy).to(policy.device)

    def keeping(self, directory: Path) -> Keeping:
        """Return how a training keeps itself on disk while it is under way."""
        return Keeping(directory, self.save_minutes, self.max_nonfinite_steps)

    def close(self) -> None:
        """Stop the simulators, and remove the decoded images: they are in the data sets."""
        for env in self._simulators.values():
            env.close()
        if self.world.rank == 0:  # and no waiting for the others, which may be gone
            shutil.rmtree(self.images, ignore_errors=True)
