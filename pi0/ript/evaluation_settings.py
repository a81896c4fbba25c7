"""Settings of pi0-eval, what they ask for, and what is wrong with them at first sight.

Importing this loads no torch.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pi0.registry import did_you_mean
from pi0.ript.config.schema import (
    NO_ENVIRONMENT,
    ConfigError,
    Distributed,
    EnvironmentSettings,
    EvalSettings,
)
from pi0.ript.config.validation import attempt, moved_aside, shared_problems
from pi0.ript.environments import FOUR_SUITES, LIBERO_SUITES, Environment
from pi0.ript.envs.initial_state import Split
from pi0.ript.policy_settings import TOY, PolicySettings, require_policy_path
from pi0.ript.published import PublishedSuccess
from pi0.ript.ranges import Whole


@dataclass
class EvaluationConfig:
    """Everything that can be set of pi0-eval."""

    policy_path: str = TOY  # checkpoint directory or hub repository; toy: trained here on demonstrations
    compare: str | None = None  # another policy, for the same states
    guidances: list[float] | None = (
        None  # to choose from, on validation states unless eval.states says others
    )
    suites: list[str] | None = None  # LIBERO's, as published, one after the other; [all]: the first four
    task: EnvironmentSettings = field(default_factory=lambda: EnvironmentSettings(NO_ENVIRONMENT))
    policy: PolicySettings = field(default_factory=PolicySettings)
    eval: EvalSettings = field(default_factory=EvalSettings)
    seed: Whole = 0  # of the policy's noise
    device: str = "auto"  # cpu, cuda, cuda:1, ..., or auto
    output_dir: str = "outputs/eval"  # an interrupted evaluation there goes on, another is moved aside
    plugins: list[str] = field(default_factory=list)  # packages to import: they register what they add
    distributed: Distributed = field(default_factory=Distributed)
    published: list[PublishedSuccess] = field(default_factory=list)  # shown beside what is found here
    options: dict[str, Any] = field(default_factory=dict)
    """More arguments of `get_environment`: those of a plugin's environment."""


def check_evaluation(config: EvaluationConfig) -> list[Environment]:
    """Return the environments, or raise one ConfigError that tells all that is wrong at first sight."""
    problems = _wrong_suites(config)
    looked = [] if problems else [shared_problems(each) for each in by_environment(config)]
    problems += [problem for _, wrong in looked for problem in wrong]
    problems += moved_aside(config, Path(config.output_dir))
    if config.compare is not None:
        problems += attempt(lambda: require_policy_path(str(config.compare), "compare"))[1]
    problems += _wrong_choice(config)
    if problems:
        raise ConfigError(*dict.fromkeys(problems))
    return [environment for environment, _ in looked if environment is not None]


def by_environment(config: EvaluationConfig) -> list[EvaluationConfig]:
    """Return the same settings for each environment by itself."""
    names = FOUR_SUITES if config.suites == ["all"] else config.suites
    if names is None:
        return [config]
    return [replace(config, suites=None, task=replace(config.task, benchmark_name=name)) for name in names]


def benchmark_suites(config: EvaluationConfig) -> list[str]:
    """Return the names of LIBERO's suites if it is they, as published, that are evaluated; else none."""
    names = [each.task.benchmark_name for each in by_environment(config)]
    return names if set(names) <= set(LIBERO_SUITES) else []


def is_as_published(config: EvaluationConfig) -> bool:
    """Return whether a suite is evaluated as published: all tasks, stock rendering, its images, deadlines."""
    task = config.task
    others = (task.task_names, task.max_episode_length, task.image_size, task.render_size)
    is_stock = task.render_quality in (None, "stock")
    return is_stock and not config.options and all(value is None for value in others)


def _wrong_suites(config: EvaluationConfig) -> list[str]:
    if config.suites is None:
        return []
    if config.task.benchmark_name != NO_ENVIRONMENT:
        return ["suites: they are in place of task.benchmark_name; leave out one of them"]
    if len(set(config.suites)) < len(config.suites) or not config.suites:
        return [f"suites: expected each suite once, found {config.suites}"]
    if config.suites != ["all"] and (other := [x for x in config.suites if x not in LIBERO_SUITES]):
        unknown = attempt(lambda: did_you_mean("LIBERO suite", other[0], LIBERO_SUITES), "suites: ")[1][0]
        return [f"{unknown} Other environments are evaluated one at a time"]
    if config.policy_path == TOY and len(by_environment(config)) > 1:
        return ["suites: a toy learns one suite's tasks; evaluate it on one at a time, or a checkpoint"]
    return []


@dataclass(frozen=True)
class Trial:
    """A policy that acts with a guidance."""

    name: str
    """Of its finished episodes."""
    label: str
    """In tables."""
    file: str
    path: str
    guidance: float


def trials(config: EvaluationConfig) -> list[Trial]:
    """Return what is evaluated, in order."""
    path, own = config.policy_path, config.eval.cfg_guidance_scale
    if config.guidances is not None:
        names = {f"guidance-{g:g}": g for g in config.guidances}
        return [Trial(name, name.replace("-", " "), name, path, g) for name, g in names.items()]
    if config.compare is not None:
        other = Trial("compare", "after", "compared", config.compare, own)
        return [Trial("policy", "before", "evaluation", path, own), other]
    return [Trial("policy", "policy", "evaluation", path, own)]


def split_of(config: EvaluationConfig) -> Split:
    """Return which states the episodes begin from: what is chosen is not chosen where it is reported."""
    if config.guidances is not None and config.eval.states is None:
        return "validation"
    return config.eval.split


def _wrong_choice(config: EvaluationConfig) -> list[str]:
    if config.guidances is None:
        return []
    if len(set(config.guidances)) < 2 or not all(0 <= g < math.inf for g in config.guidances):
        return [f"guidances: expected two or more numbers of 0 or more, found {config.guidances}"]
    others = {"compare": config.compare, "eval.recording_root": config.eval.recording_root}
    return [f"guidances: a choice is made for one policy alone; leave out {k}" for k in others if others[k]]


def parse_guidances(text: str) -> Sequence[float]:
    """Return the numbers of a text such as "1,2,3", each once, in order.

    Raises:
        ValueError: One is none, or negative.
    """
    try:
        numbers = list(dict.fromkeys(float(part) for part in text.split(",")))
    except ValueError:
        numbers = [-1.0]
    if not all(0 <= number < float("inf") for number in numbers):
        raise ValueError(f"expected numbers of 0 or more with commas between them, found {text!r}")
    return numbers
