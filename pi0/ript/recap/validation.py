"""Checks of a RECAP configuration at first sight: all that need no simulator, no weights and no torch."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from math import inf

from pi0.ript.config.loading import say
from pi0.ript.config.schema import ConfigError
from pi0.ript.config.validation import attempt, shared_problems
from pi0.ript.data.hub import locate
from pi0.ript.data.records import require_training_states
from pi0.ript.data.settings import DatasetSettings
from pi0.ript.demonstrations import tasks_with_expert
from pi0.ript.environments import Environment
from pi0.ript.policy_settings import TOY
from pi0.ript.recap.config import RecapConfig, RecapPolicy

_MODEL_KEYS = ("config", "dtype", "frozen_dtype", "gradient_checkpointing", "n_action_steps")
_CHECKPOINTS_ONLY = (*_MODEL_KEYS, "extra_delta_transform", "statistics", "statistics_path", "embodiment")
_RECORDING_ONLY = ("operator", "episodes")


def validate_recap(config: RecapConfig) -> None:
    """Raise one ConfigError that tells everything that is wrong with the configuration, if anything is.

    What needs torch to tell is looked at once nothing else is wrong.
    """
    check_recap(config)
    from pi0.ript.config.loadable import validate_policy  # torch comes with it

    validate_policy(config)


def check_recap(config: RecapConfig) -> None:
    """Raise one ConfigError that tells everything that is wrong at first sight, if anything is."""
    problems = [*_values(config)]
    environment, wrong = shared_problems(config)
    problems += wrong
    if environment is not None:
        problems += [*_data(config, environment), *_pool(config, environment)]
    if problems:
        raise ConfigError(*problems)


def _values(config: RecapConfig) -> Iterator[str]:
    if config.sft.use_awr:
        yield "sft.use_awr: there are no advantages yet to weigh by; use sft.use_awr=false"
    if config.finetuning.training.use_awr and config.finetuning.objective == "ript":
        yield (
            "finetuning.training.use_awr: belongs to finetuning.objective=indicator, found 'ript', which "
            "weighs no window; change one of them"
        )
    if config.policy_path == TOY and config.skip_sft:
        yield "skip_sft: a toy policy is made by SFT; use skip_sft=false, or a checkpoint as policy_path"
    defaults = RecapPolicy()
    ignored = [key for key in _CHECKPOINTS_ONLY if getattr(config.policy, key) != getattr(defaults, key)]
    for key in ignored if config.policy_path == TOY else ():
        yield f"policy.{key}: belongs to checkpoints, and policy_path is 'toy'; leave the key out"
    if config.validation.guidances and not config.validation.rollouts_per_task:
        yield "validation.guidances: are chosen by validation.rollouts_per_task, found 0; set both or none"
    if wrong := [x for x in config.validation.guidances or [] if not 0 <= x < inf]:
        yield f"validation.guidances: expected numbers of 0 or more, found {wrong}"
    if config.filtered_rounds > config.rounds:
        yield (
            f"filtered_rounds: expected at most the {config.rounds} rounds that it is compared with, found "
            f"{config.filtered_rounds}"
        )
    if config.policy.statistics == "data" and config.policy.statistics_path:
        yield "policy.statistics: 'data' and policy.statistics_path name two sources; leave one of them out"
    if config.policy_path != TOY and config.policy.chunk_size is not None:
        yield "policy.chunk_size: is that of the checkpoint; use policy.chunk_size=null"


def _data(config: RecapConfig, environment: Environment) -> Iterator[str]:
    settings = config.demonstrations
    if settings.root is not None or settings.repo_id is not None:
        if settings.root is not None:
            local = DatasetSettings(repo_id=settings.repo_id, root=settings.root)
            place, wrong = attempt(partial(locate, local), "demonstrations.root: ")
            yield from wrong
            if place is not None and not settings.allow_heldout:
                check = partial(require_training_states, place.root, "demonstrations.allow_heldout=true")
                doubt, wrong = attempt(check, "demonstrations.root: ")
                yield from wrong
                if doubt is not None:
                    say(doubt)
        keys = [key for key in _RECORDING_ONLY if getattr(settings, key) is not None]
        for key in [*keys, *(f"quality.{name}" for name in settings.quality.changes())]:
            yield f"demonstrations.{key}: nothing is recorded, as a data set is given; leave it out"
        return
    for key in ("assume_success", "data_features_name_mapping"):
        if getattr(settings, key):
            yield f"demonstrations.{key}: what is recorded here needs none; leave it out, or give a root"
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
    available = config.rollouts.pool_size * len(environment.suite().select(environment.tasks))
    needed = config.rounds * config.rollouts.num_states
    if needed > available:
        yield (
            f"rollouts.pool_size: {config.rounds} rounds of {config.rollouts.num_states} states need "
            f"{needed} different ones, there are {available}; raise it"
        )
