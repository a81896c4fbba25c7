"""The two environments that the ladder's scripts know by name, with the demonstrations to start from.

Both are RECAP's own case: a competent but hesitating operator under a deadline. The policy imitates the
hesitation and often misses the deadline; reinforcement learning makes it brisk.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pi0.ript.envs import BatchedEnv, make_env
from pi0.ript.envs.base import did_you_mean
from pi0.ript.warm_start import WarmStart


@dataclass(frozen=True)
class Environment:
    """An environment as the ladder uses it: tasks, deadlines, demonstrations."""

    name: str  # see pi0.ript.envs.registry
    tasks: tuple[str, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    max_steps: int | None = None  # deadline in policy steps; None: the suite's own
    num_slots: int = 32  # episodes that run at the same time; each holds a simulator
    render_every: int = 4  # images for training inside chunks, every so many steps
    warm_start: Mapping[str, Any] = field(default_factory=dict)  # settings of `WarmStart`

    def make(self, num_workers: int) -> BatchedEnv:
        """Return the environment."""
        return make_env(
            self.name,
            self.tasks,
            num_slots=self.num_slots,
            num_workers=num_workers,
            max_steps=self.max_steps,
            **self.options,
        )

    def warm_start_spec(self, seed: int) -> WarmStart:
        """Return what the policy to improve is made from."""
        return WarmStart(
            env=self.name,
            tasks=self.tasks,
            env_options=dict(self.options),
            operator="hesitating",
            seed=seed,
            **self.warm_start,
        )


def get_environment(name: str) -> Environment:
    """Return an environment by name; an unknown one is an error with a suggestion."""
    return ENVIRONMENTS[did_you_mean("environment", name, ENVIRONMENTS)]


ENVIRONMENTS = {
    "metaworld": Environment("metaworld", ("button-press-v3",)),
    "libero": Environment(
        "libero",
        ("pick_up_the_alphabet_soup_and_place_it_in_the_basket",),
        options={
            "suite": "libero_object",
            "image_size": 64,
            "render_size": 64,
            "render_quality": "fast",
        },
        max_steps=130,
        num_slots=8,
        warm_start={"chunk_size": 10, "steps": 800},
    ),
}
