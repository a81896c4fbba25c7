"""Under which conditions a policy was evaluated: as a sentence, and as the command that does it again."""

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from pi0.ript.guidance import Guidance, guidance_text

_KINDS = {"heldout": "held-out", "validation": "validation", "train": "training"}
_APART = ("benchmark_name", "task_names", "num_workers", "warm_start")
"""Keys of the section task that are no option of the environment."""


@dataclass(frozen=True)
class Conditions:
    """What the successes of an evaluation depend on besides the policy and the machine."""

    environments: tuple[str, ...]
    tasks: tuple[str | int, ...] | None
    """Names or numbers; None: the environment's own choice."""
    episodes: int
    """States of each task."""
    first_state: int
    states: str
    """heldout, validation or train."""
    guidance: Guidance
    seed: int
    options: Mapping[str, Any] = field(default_factory=dict)
    """Of the environment, where they are not its own."""
    plugins: tuple[str, ...] = ()
    n_action_steps: int | None = None
    """None: as the policy says."""
    embodiment: str | None = None

    def sentence(self) -> str:
        """Return which states these are, and what the policy acted with, as plain text."""
        last = self.first_state + self.episodes - 1
        return (
            f"{_KINDS[self.states]} states {self.first_state} to {last} of each task of "
            f"{', '.join(self.environments)}, one episode from each, seed {self.seed}, "
            f"guidance {guidance_text(self.guidance)}."
        )

    def commands(self, policy: str) -> list[str]:
        """Return what evaluates `policy` again: one line, or one for each task with a guidance of its own."""
        if not isinstance(self.guidance, dict):
            return [self._command(policy, self.tasks, self.guidance)]
        return [self._command(policy, (task,), guidance) for task, guidance in self.guidance.items()]

    def _command(self, policy: str, tasks: tuple[str | int, ...] | None, guidance: float) -> str:
        words = ["pi0-eval", "--policy", policy, "--env", *self.environments]
        if tasks is not None:
            words += ["--tasks", *map(str, tasks)]
        words += ["--episodes", str(self.episodes), "--first-state", str(self.first_state)]
        words += ["--states", self.states, "--guidance", f"{guidance!r}", "--seed", str(self.seed)]
        if self.n_action_steps is not None:
            words += ["--n-action-steps", str(self.n_action_steps)]
        if self.embodiment is not None:
            words += ["--embodiment", self.embodiment]
        for key, value in self.options.items():
            words += ["--env-option", f"{key}={_yaml_text(value)}"]
        for plugin in self.plugins:
            words += ["--plugins", plugin]
        return shlex.join(words)


def _yaml_text(value: Any) -> str:
    """Return a value as YAML in one line, a string without quotes where it can be."""
    if isinstance(value, str) and value.isidentifier() and yaml.safe_load(value) == value:
        return value
    return json.dumps(value)


def conditions(
    task: Mapping[str, Any],
    evaluation: Mapping[str, Any],
    seed: int,
    guidance: Guidance,
    states: str = "heldout",
    **more: Any,
) -> Conditions:
    """Return the conditions that a run's settings say.

    Args:
        task: The section of that name.
        evaluation: The section `eval`.
        seed: The seed of the noise.
        guidance: With which the policy acted.
        states: From which states.
        more: Other fields of `Conditions`, which come before those of `task`.
    """
    names = task.get("task_names")
    fields: dict[str, Any] = {
        "environments": (task["benchmark_name"],),
        "options": {key: value for key, value in task.items() if value is not None and key not in _APART},
    }
    return Conditions(
        tasks=None if names is None else tuple(names),
        episodes=evaluation["rollouts_per_task"],
        first_state=evaluation["first_state"],
        states=states,
        guidance=guidance,
        seed=seed,
        **{**fields, **more},
    )
