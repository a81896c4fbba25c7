"""Checks of a RECAP configuration before any work: all that need no simulator and no weights."""

from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

from pi0.ript.config.schema import ConfigError
from pi0.ript.config.validation import attempt, shared_problems
from pi0.ript.demonstrations import tasks_with_expert
from pi0.ript.environments import Environment
from pi0.ript.files import flatten
from pi0.ript.recap.config import RecapConfig
from pi0.ript.recording import require_training_states
from pi0.ript.starting_policy import TOY

_CHECKPOINTS_ONLY = (  # with the values that ask for nothing
    *(("config", None), ("dtype", None), ("gradient_checkpointing", False), ("n_action_steps", None)),
    *(("extra_delta_transform", None), ("norm_stats_path", None)),
)
_RECORDING_ONLY = ("operator", "episodes")


def validate_recap(config: RecapConfig) -> None:
    """Raise one ConfigError that tells everything that is wrong with the configuration, if anything is."""
    problems = [*_values(config)]
    environment, wrong = shared_problems(config)
    problems += wrong
    if environment is not None:
        problems += [*_data(config, environment), *_pool(config, environment)]
    if problems:
        raise ConfigError(*problems)


def _values(config: RecapConfig) -> Iterator[str]:
    values = flatten(asdict(config))
    if config.sft.use_awr:
        yield "sft.use_awr: there are no advantages yet to weigh by; use sft.use_awr=false"
    if config.policy_path == TOY and config.skip_sft:
        yield "skip_sft: a toy policy is made by SFT; use skip_sft=false, or a checkpoint as policy_path"
    ignored = [key for key, nothing in _CHECKPOINTS_ONLY if values[f"policy.{key}"] != nothing]
    for key in ignored if config.policy_path == TOY else ():
        yield f"policy.{key}: belongs to checkpoints, and policy_path is 'toy'; leave the key out"
    if config.policy_path != TOY and config.policy.chunk_size is not None:
        yield "policy.chunk_size: is that of the checkpoint; use policy.chunk_size=null"


def _data(config: RecapConfig, environment: Environment) -> Iterator[str]:
    settings = config.demonstrations
    if settings.root is not None:
        if not (Path(settings.root).expanduser() / "meta/info.json").exists():
            yield (
                f"demonstrations.root: no LeRobotDataset at {settings.root!r} (meta/info.json is missing); "
                "null records demonstrations of a scripted operator"
            )
        elif not settings.allow_heldout:
            check = partial(require_training_states, settings.root, "demonstrations.allow_heldout=true")
            yield from attempt(check, "demonstrations.root: ")[1]
        given = [key for key in _RECORDING_ONLY if getattr(settings, key) is not None]
        for key in [*given, *(f"quality.{name}" for name in settings.quality.given())]:
            yield f"demonstrations.{key}: nothing is recorded, as demonstrations.root is given; leave it out"
        return
    if settings.assume_success:
        yield "demonstrations.assume_success: what is recorded here has labels; use false, or give a root"
    spec = environment.warm_start_spec(0)
    plan = replace(spec.demonstrations(), operator=settings.operator or spec.operator)
    yield from attempt(plan.resolved_operator, "demonstrations: ")[1]
    tasks = environment.suite().select(plan.tasks)
    able = tasks_with_expert(tasks)
    if missing := [task.name for task in tasks if task not in able]:
        yield (
            f"demonstrations.root: nobody can demonstrate {', '.join(missing)} here; give a data set, or "
            "other task.task_names"
        )


def _pool(config: RecapConfig, environment: Environment) -> Iterator[str]:
    there_are = config.rollouts.pool_size * len(environment.suite().select(environment.tasks))
    needed = config.rounds * config.rollouts.num_states
    if needed > there_are:
        yield (
            f"rollouts.pool_size: {config.rounds} rounds of {config.rollouts.num_states} states need "
            f"{needed} different ones, there are {there_are}; raise it"
        )
