"""The environments that the scripts know by name, with the demonstrations that a toy policy starts from.

"metaworld" and "libero" are toy-sized and RECAP's own case: a competent but hesitating operator under a
deadline. The policy imitates the hesitation and often misses the deadline; reinforcement learning makes it
brisk. LIBERO's suites by their own names are the benchmark as published: all tasks, its images and deadlines.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pi0.registry import did_you_mean
from pi0.ript.data.encoding import default_storage
from pi0.ript.demonstrations import DemonstrationPlan
from pi0.ript.envs import BatchedEnv, TaskSuite, make_env, make_suite
from pi0.ript.envs.registry import suite_names


@dataclass(frozen=True)
class WarmStart:
    """What is demonstrated, by whom, and how long the toy policy is trained on it."""

    env: str
    tasks: tuple[str, ...]
    operator: str
    quality: dict[str, float] = field(default_factory=dict)  # fields of the operator that differ
    env_options: dict[str, Any] = field(default_factory=dict)
    episodes: int = 40  # per task
    steps: int = 500  # of the optimizer
    batch_size: int = 64
    learning_rate: float = 1e-3
    num_draws: int = 2  # noise draws per window, which share the prefix
    chunk_size: int = 8
    num_workers: int = 2  # processes that record demonstrations
    seed: int = 0

    def demonstrations(self) -> DemonstrationPlan:
        """Return the plan of the demonstrations."""
        task = make_suite(self.env, **self.env_options).select(self.tasks)[0]
        return DemonstrationPlan(
            env=self.env,
            tasks=self.tasks,
            operator=self.operator,
            quality=self.quality,
            seed=self.seed,
            storage=default_storage(task.image_size),
            options=self.env_options,
        )


@dataclass(frozen=True)
class Environment:
    """An environment as the ladder uses it: tasks, deadlines, demonstrations."""

    name: str  # see pi0.ript.envs.registry
    tasks: tuple[str, ...] | None  # None: all of the suite
    options: Mapping[str, Any] = field(default_factory=dict)
    max_steps: int | None = None  # deadline in policy steps; None: the suite's own
    num_slots: int = 32  # episodes that run at the same time; each holds a simulator
    num_workers: int = 2  # processes that simulate; the result does not depend on it
    warm_start: Mapping[str, Any] = field(default_factory=dict)  # settings of `WarmStart`

    def suite(self) -> TaskSuite:
        """Return the family of tasks; loads no simulator."""
        return make_suite(self.name, **self.options)

    @property
    def num_heldout(self) -> int | None:
        """Return how many held-out states each task has; None: there is no end to them."""
        return 50 if self.name == "libero" else None

    def check(self) -> None:
        """Raise one clear error where its tasks cannot run here; loads no simulator."""
        suite = self.suite()
        suite.check(suite.select(self.tasks))

    def make(self) -> BatchedEnv:
        """Return the environment."""
        return make_env(
            self.name,
            self.tasks,
            num_slots=self.num_slots,
            num_workers=min(self.num_workers, self.num_slots),
            max_steps=self.max_steps,
            **self.options,
        )

    def warm_start_spec(self, seed: int) -> WarmStart:
        """Return what the toy policy to improve is made from."""
        tasks = self.tasks or tuple(task.name for task in self.suite().tasks())
        settings = {"operator": "hesitating", **self.warm_start}
        return WarmStart(env=self.name, tasks=tasks, env_options=dict(self.options), seed=seed, **settings)


def get_environment(
    benchmark_name: str,
    *,
    task_names: Sequence[str | int] | None = None,
    max_episode_length: int | None = None,
    num_parallel_envs: int | None = None,
    num_workers: int | None = None,
    warm_start: Mapping[str, Any] | None = None,
    **options: Any,
) -> Environment:
    """Return an environment by name; what is not None replaces its settings.

    Args:
        benchmark_name: One of `ENVIRONMENTS`, or an environment that a plugin registered.
        task_names: Names, or numbers in the suite's order.
        max_episode_length: Deadline in policy steps.
        num_parallel_envs: Episodes that run at the same time in this process's workers.
        num_workers: Processes that simulate.
        warm_start: Settings of `WarmStart`.
        options: Options of the suite: `image_size`, `render_quality`, ...

    Raises:
        ValueError: A name is unknown; the message suggests known ones.
    """
    known = {name: Environment(name, None) for name in suite_names()} | ENVIRONMENTS
    chosen = known[did_you_mean("benchmark_name", benchmark_name, known)]
    options = {**chosen.options, **_without_none(options)}
    sizes = {"num_slots": num_parallel_envs, "num_workers": num_workers}
    changes: dict[str, Any] = {"max_steps": max_episode_length, **sizes}
    if task_names is not None:
        if benchmark_name == "libero" and (suite := _other_suite(options, task_names)):
            chosen, options = replace(chosen, max_steps=None), {**options, "suite": suite}
        tasks = make_suite(chosen.name, **options).select(task_names)
        changes["tasks"] = tuple(task.name for task in tasks)
    warm_start = {**chosen.warm_start, **_without_none(warm_start or {})}
    return replace(chosen, options=options, warm_start=warm_start, **_without_none(changes))


def _without_none(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if value is not None}


def _other_suite(options: Mapping[str, Any], task_names: Sequence[str | int]) -> str | None:
    """Return the LIBERO suite that has all the tasks, if the one of the options does not."""
    for suite in (options["suite"], *LIBERO_SUITES):
        if set(task_names) <= {task.name for task in make_suite("libero", suite=suite).tasks()}:
            return None if suite == options["suite"] else suite
    return None


LIBERO_SUITES = ("libero_spatial", "libero_object", "libero_goal", "libero_10", "libero_90")
FOUR_SUITES = LIBERO_SUITES[:4]
"""What published policies are evaluated on; "all" stands for them."""

# Noise shows the policy how to recover; short chunks keep it from adding up.
_LIBERO_WARM_START = {"quality": {"hesitation": 0.3, "noise": 0.5}, "chunk_size": 5, "steps": 1500}

ENVIRONMENTS = {
    "metaworld": Environment("metaworld", ("button-press-v3",)),
    "libero": Environment(
        "libero",
        ("pick_up_the_salad_dressing_and_place_it_in_the_basket",),
        options={"suite": "libero_object", "image_size": 64, "render_size": 64, "render_quality": "fast"},
        max_steps=140,
        num_slots=8,
        warm_start=_LIBERO_WARM_START,
    ),
    **{
        suite: Environment(
            "libero",
            None,
            # The names that lerobot's checkpoints have for the cameras.
            options={"suite": suite, "camera_names": ("image", "image2")},
            num_slots=8,
            warm_start=_LIBERO_WARM_START,
        )
        for suite in LIBERO_SUITES
    },
}
