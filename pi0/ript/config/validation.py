"""Checks of a configuration at first sight: all that need no simulator, no weights and no torch.

`loadable` has those that look into the files of a policy, or for a GPU. It is imported once nothing is wrong
here, so that a mistake in a setting is told in a second.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pi0.registry import get_config
from pi0.ript.algorithms import require_algorithm
from pi0.ript.config.schema import NO_ENVIRONMENT, ConfigError, TrainConfig
from pi0.ript.demonstrations.experts import tasks_with_expert
from pi0.ript.demonstrations.operators import get_operator
from pi0.ript.environments import Environment, get_environment
from pi0.ript.files import flatten
from pi0.ript.policy_settings import TOY, require_device_name, require_policy_path
from pi0.ript.ranges import wrong_values

_READ = ("policy_path", "compare", "reads", "statistics_path", "root", "repo_id")
"""Last names of the keys of files and directories that a command reads."""


def validate_config(config: TrainConfig) -> None:
    """Raise one ConfigError that tells everything that is wrong with the configuration, if anything is.

    What needs torch to tell is looked at once nothing else is wrong.
    """
    check_config(config)
    from pi0.ript.config.loadable import validate_policy  # torch comes with it

    validate_policy(config)


def check_config(config: TrainConfig) -> None:
    """Raise one ConfigError that tells everything that is wrong at first sight, if anything is."""
    problems = [*_algorithm(config), *_resume(config)]
    if config.resume is None:
        problems += moved_aside(config, Path(config.output_dir) / config.exp_name)
    environment, shared = shared_problems(config)
    problems += shared
    if environment is not None:
        problems += _toy(config, environment)
    if problems:
        raise ConfigError(*problems)


def shared_problems(config: Any) -> tuple[Environment | None, list[str]]:
    """Return the environment, if it can be had, and what is wrong with the settings of any algorithm.

    These are exp_name, directories, device, distributed, logging, policy_path, policy, task and eval; and
    each value where its field says what is expected.
    """
    problems = [*wrong_values(config), *wrong_places(config)]
    problems += attempt(lambda: require_device_name(config.device))[1]
    problems += wrong_policy(config)
    environment, wrong = simulated(config)
    problems += wrong
    if environment is not None:
        problems += _evaluation(config, environment)
    return environment, problems


def _algorithm(config: TrainConfig) -> Iterator[str]:
    algo = config.algo
    yield from attempt(lambda: require_algorithm(algo.name), "algo.name: ")[1]
    if algo.rloo_batch_size < 2:
        yield (
            "algo.rloo_batch_size: expected at least 2, because an advantage compares the rollouts from one "
            f"state, found {algo.rloo_batch_size}; use algo.rloo_batch_size=8, and fewer groups "
            "(algo.data_batch_size) if that takes too long"
        )
    if algo.stochastic_steps > algo.stochastic_among:
        yield (
            f"algo.stochastic_steps: expected at most algo.stochastic_among={algo.stochastic_among}, which "
            f"they are drawn from, found {algo.stochastic_steps}; raise algo.stochastic_among"
        )
    if algo.max_sampling_attempts < algo.data_batch_size:
        yield (
            f"algo.max_sampling_attempts: expected at least algo.data_batch_size={algo.data_batch_size}, "
            f"because a group takes an attempt, found {algo.max_sampling_attempts}; use "
            f"algo.max_sampling_attempts={2 * algo.data_batch_size}"
        )


def wrong_places(config: Any) -> Iterator[str]:
    """Yield what is wrong with the name of a run, and with its directories."""
    name = getattr(config, "exp_name", None)
    if name is not None and not re.fullmatch(r"\w[\w.=,+-]*(/\w[\w.=,+-]*)*", name):
        yield f"exp_name: expected a name for a directory (letters, digits, _ . - /), found {name!r}"
    for key in (key for key in ("output_dir", "warm_start_dir") if hasattr(config, key)):
        place = Path(getattr(config, key)).expanduser()
        file = next((path for path in (place, *place.parents) if path.exists() and not path.is_dir()), None)
        if not place.name or file:
            yield f"{key}: expected a directory, found {str(file or place)!r}"


def moved_aside(config: Any, run_dir: Path) -> Iterator[str]:
    """Yield the settings that name something in a run's directory, which would be moved away from them."""
    for key, value in flatten(asdict(config), into_lists=True).items():
        if value is None or key.rpartition(".")[2] not in _READ:
            continue
        path = Path(value).expanduser()
        if path.exists() and path.resolve().is_relative_to(run_dir.expanduser().resolve()):
            yield (
                f"{key}: {value} is in {run_dir}, which this command would move aside before it reads it; "
                "choose another exp_name or output_dir"
            )


def _resume(config: TrainConfig) -> Iterator[str]:
    if config.resume not in (None, "auto") and not Path(config.resume).exists():
        yield f"resume: nothing at {config.resume!r}; expected a checkpoint's path, auto, or null"


def simulated(config: Any) -> tuple[Environment | None, list[str]]:
    """Return the environment of a configuration's section `task`, if it can be had, and what is wrong."""
    if config.task.benchmark_name == NO_ENVIRONMENT:
        return None, ["task.benchmark_name: expected an environment, such as metaworld, found none"]
    if config.task.task_names == []:
        return None, ["task.task_names: expected names or numbers, found an empty list; null: all tasks"]
    options = getattr(config, "options", {})
    environment, wrong = attempt(lambda: get_environment(**asdict(config.task), **options), "task: ")
    if environment is not None:
        wrong = attempt(environment.suite, "task: ")[1]
    return None if wrong else environment, wrong


def _evaluation(config: Any, environment: Environment) -> Iterator[str]:
    if getattr(config.eval, "split", "heldout") != "heldout":
        return
    last = config.eval.first_state + config.eval.rollouts_per_task
    available = environment.num_heldout
    if available is not None and last > available:
        yield (
            f"eval.rollouts_per_task: {environment.name} has {available} held-out states per task, found "
            f"first_state={config.eval.first_state} and rollouts_per_task={config.eval.rollouts_per_task}"
            + ("; eval.states=train has as many as you like" if hasattr(config.eval, "states") else "")
        )


def wrong_policy(config: Any) -> list[str]:
    """Return what is wrong with the policy to start from, `policy_path` and the section `policy`."""
    policy, problems = config.policy, attempt(lambda: require_policy_path(config.policy_path))[1]
    if policy.statistics_path is not None:
        path = Path(policy.statistics_path).expanduser()
        if not path.is_file():
            problems.append(f"policy.statistics_path: no file at {str(path)!r}; null takes the checkpoint's")
    if policy.config is not None:
        problems += attempt(lambda: get_config(policy.config), "policy.config: ")[1]
    if policy.freeze is not None:
        wrong = f"policy.freeze: {policy.freeze!r} is no regular expression: "
        problems += attempt(lambda: re.compile(policy.freeze), wrong)[1]
    return problems


def _toy(config: TrainConfig, environment: Environment) -> Iterator[str]:
    if config.policy_path != TOY:
        return
    for key in ("config", "statistics_path", "extra_delta_transform", "embodiment"):
        if getattr(config.policy, key) is not None:
            yield f"policy.{key}: belongs to checkpoints, and policy_path is 'toy'; use policy.{key}=null"
    spec = environment.warm_start_spec(seed=0)
    yield from attempt(lambda: get_operator(spec.operator), "task.warm_start.operator: ")[1]
    tasks = environment.suite().select(spec.tasks)
    if missing := [task.name for task in tasks if task not in tasks_with_expert(tasks)]:
        known = [task.name for task in tasks_with_expert(environment.suite().tasks())]
        yield (
            f"policy_path: 'toy' learns from demonstrations, nobody can demonstrate {', '.join(missing)}; "
            f"use a checkpoint, or task.task_names of {', '.join(known) or 'another benchmark'}"
        )
    if (config.policy.n_action_steps or 1) > spec.chunk_size:
        yield (
            f"policy.n_action_steps: expected at most the toy's {spec.chunk_size} actions "
            f"(task.warm_start.chunk_size), found {config.policy.n_action_steps}"
        )


def attempt[T](check: Callable[[], T], prefix: str = "") -> tuple[T | None, list[str]]:
    """Return the result of a check, or None and what it found wrong."""
    try:
        return check(), []
    except (ValueError, re.error) as error:
        return None, [f"{prefix}{error}"]
