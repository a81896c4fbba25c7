"""Settings of pi0-eval, what they ask for, and whether it can be done."""

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pi0.embodiment import IDS, EmbodimentError, chosen_tag, require_chosen
from pi0.pretrained import describe, resolve
from pi0.registry import get_config
from pi0.ript.config.loading import say
from pi0.ript.config.schema import (
    NO_ENVIRONMENT,
    ConfigError,
    Distributed,
    EnvironmentSettings,
    EvalSettings,
)
from pi0.ript.config.validation import attempt, moved_aside, shared_problems
from pi0.ript.environments import Environment
from pi0.ript.envs.initial_state import Split
from pi0.ript.guidance import guidance_text, recorded_guidance
from pi0.ript.ranges import Whole
from pi0.ript.starting_policy import TOY, PolicySettings, require_fits, require_policy_path


@dataclass
class EvaluationConfig:
    """Everything that can be set of pi0-eval."""

    policy_path: str = TOY  # checkpoint directory or hub repository; toy: trained here on demonstrations
    compare: str | None = None  # another policy, for the same states
    guidances: list[float] | None = (
        None  # to choose from, on validation states unless eval.states says others
    )
    task: EnvironmentSettings = field(default_factory=lambda: EnvironmentSettings(NO_ENVIRONMENT))
    policy: PolicySettings = field(default_factory=PolicySettings)
    eval: EvalSettings = field(default_factory=EvalSettings)
    seed: Whole = 0  # of the policy's noise
    device: str = "auto"  # cpu, cuda, cuda:1, ..., or auto
    output_dir: str = "outputs/eval"  # an interrupted evaluation there goes on, another is moved aside
    plugins: list[str] = field(default_factory=list)  # packages to import: they register what they add
    distributed: Distributed = field(default_factory=Distributed)
    options: dict[str, Any] = field(default_factory=dict)
    """More arguments of `get_environment`: those of a plugin's environment."""


def require_usable(config: EvaluationConfig) -> Environment:
    """Return the environment after checking, without loading any weights, that all can be done.

    Raises:
        ConfigError: Something is missing or does not fit.
    """
    environment, problems = shared_problems(config)
    problems += moved_aside(config, Path(config.output_dir))
    if config.compare is not None:
        problems += attempt(lambda: require_policy_path(str(config.compare), "compare"))[1]
    problems += _wrong_choice(config)
    if environment is None or problems:
        raise ConfigError(*problems)
    with as_config_errors():
        suite = environment.suite()
        suite.check(suite.select(environment.tasks))
    for path in dict.fromkeys(trial.path for trial in trials(config)):
        with as_config_errors():
            _require_policy(path, environment, config)
    _require_recordable(config)
    return environment


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


@contextlib.contextmanager
def as_config_errors() -> Iterator[None]:
    """Turn what is wrong with a checkpoint or a file into a ConfigError."""
    try:
        yield
    except EmbodimentError as error:
        raise ConfigError(f"policy.{error}") from error
    except (ValueError, OSError, ModuleNotFoundError) as error:
        raise ConfigError(str(error)) from error


def robot_of(config: EvaluationConfig, path: str) -> str | None:
    """Return the robot of a policy; of two, one without tags can be the base of the other."""
    paths = (trial.path for trial in trials(config) if trial.path != TOY)
    named = [place for place in paths if (resolve(Path(place).expanduser()) / IDS).is_file()]
    return config.policy.embodiment if path in named or not named else None


def _require_policy(path: str, environment: Environment, config: EvaluationConfig) -> None:
    robot = robot_of(config, path)
    if path == TOY:
        chosen_tag([], robot)
        return
    named = get_config(config.policy.config) if config.policy.config else None
    directory = resolve(Path(path).expanduser())
    checkpoint = describe(directory, named, None, None, config.policy.extra_delta_transform, robot)
    require_chosen(list(checkpoint.embodiments), checkpoint.embodiment)
    require_fits(checkpoint.features, environment)
    guided = [trial.guidance for trial in trials(config) if trial.guidance != 1.0]
    if guided and checkpoint.config.indicator == "none":
        raise ConfigError(
            f"eval.cfg_guidance_scale: expected 1 for {path}, a policy without an indicator of the "
            f"advantage, found {guided[0]:g}; there is nothing to guide by"
        )
    recorded = recorded_guidance(directory)
    if recorded is not None and config.guidances is None and recorded != config.eval.cfg_guidance_scale:
        acts = f"{path} says that it acts with guidance {guidance_text(recorded)}; evaluated here is"
        say(f"{acts} {config.eval.cfg_guidance_scale:g} (eval.cfg_guidance_scale, --guidance)")


def _require_recordable(config: EvaluationConfig) -> None:
    if config.eval.recording_root is None:
        return
    root = Path(config.eval.recording_root).expanduser()
    if config.compare is not None:
        raise ConfigError("eval.recording_root: one policy's rollouts make a data set; leave out compare")
    if root.exists() and not (root.is_dir() and not any(root.iterdir())):
        raise ConfigError(
            f"eval.recording_root: {root} exists already; choose another directory, or remove it"
        )
