"""Settings of pi0-eval, what they ask for, and whether it can be done."""

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pi0 import openpi_format
from pi0.embodiment import IDS, EmbodimentError, chosen_tag, require_chosen
from pi0.features import ACTION, STATE
from pi0.lerobot_format import split_embedded_statistics
from pi0.normalize import MissingStatisticsError, Normalizer
from pi0.pretrained import Checkpoint, describe, resolve
from pi0.registry import did_you_mean, get_config
from pi0.ript.config.loading import say
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
from pi0.ript.guidance import guidance_text, recorded_guidance
from pi0.ript.published import PublishedSuccess
from pi0.ript.ranges import Whole
from pi0.ript.starting_policy import TOY, PolicySettings, require_fits, require_policy_path
from pi0.tensor_files import stored_weights


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


def require_usable(config: EvaluationConfig) -> list[Environment]:
    """Return the environments after checking, without loading any weights, that all can be done.

    Raises:
        ConfigError: Something is missing or does not fit.
    """
    problems = _wrong_suites(config)
    found = [] if problems else [shared_problems(each) for each in by_environment(config)]
    problems += [problem for _, wrong in found for problem in wrong]
    problems += moved_aside(config, Path(config.output_dir))
    if config.compare is not None:
        problems += attempt(lambda: require_policy_path(str(config.compare), "compare"))[1]
    problems += _wrong_choice(config)
    if problems:
        raise ConfigError(*dict.fromkeys(problems))
    environments = [environment for environment, _ in found if environment is not None]
    for environment in environments:
        with as_config_errors():
            environment.check()
    for path in dict.fromkeys(trial.path for trial in trials(config)):
        with as_config_errors():
            environments = _require_policy(path, environments, config)
    _require_recordable(config)
    return environments


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


def described(path: str, config: EvaluationConfig) -> tuple[Checkpoint, Path]:
    """Return what a checkpoint says, as the settings have it, and its directory; no weights are read."""
    named = get_config(config.policy.config) if config.policy.config else None
    directory = resolve(Path(path).expanduser())
    transform, robot = config.policy.extra_delta_transform, robot_of(config, path)
    return describe(directory, named, None, None, transform, robot), directory


def _require_policy(
    path: str, environments: list[Environment], config: EvaluationConfig
) -> list[Environment]:
    """Return the environments, which show what the policy takes."""
    if path == TOY:
        chosen_tag([], robot_of(config, path))
        return environments
    checkpoint, directory = described(path, config)
    require_chosen(list(checkpoint.embodiments), checkpoint.embodiment)
    if config.task.camera_names is None:
        environments = [_with_cameras(environment, checkpoint) for environment in environments]
    for environment in environments:
        require_fits(checkpoint.features, environment)
    _require_statistics(checkpoint, directory, config)
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
    return environments


def _require_statistics(checkpoint: Checkpoint, directory: Path, config: EvaluationConfig) -> None:
    if config.policy.statistics_path is not None:
        return
    features = checkpoint.features
    statistics = checkpoint.statistics or split_embedded_statistics(stored_weights(directory))[0]
    try:
        Normalizer(STATE, features.state_dim, features.state_normalization, statistics)
        Normalizer(ACTION, features.action_dim, features.action_normalization, statistics)
    except MissingStatisticsError as error:
        raise ConfigError(
            f"policy.statistics_path: {directory} lacks statistics that its policy normalises by; name a "
            "file of them: openpi's norm_stats.json, or one that pi0-stats makes of its training data"
        ) from error


def _with_cameras(environment: Environment, checkpoint: Checkpoint) -> Environment:
    """Return LIBERO with the names that openpi has for its two cameras, if the policy takes them by these."""
    cameras = checkpoint.features.present_cameras
    if environment.name != "libero" or cameras != openpi_format.CAMERAS[:2]:
        return environment
    names = tuple(key.removeprefix("observation.images.") for key in cameras)
    return replace(environment, options={**environment.options, "camera_names": names})


def _require_recordable(config: EvaluationConfig) -> None:
    if config.eval.recording_root is None:
        return
    if len(by_environment(config)) > 1:
        raise ConfigError("eval.recording_root: a data set is of one suite; record one at a time")
    root = Path(config.eval.recording_root).expanduser()
    if config.compare is not None:
        raise ConfigError("eval.recording_root: one policy's rollouts make a data set; leave out compare")
    if root.exists() and not (root.is_dir() and not any(root.iterdir())):
        raise ConfigError(
            f"eval.recording_root: {root} exists already; choose another directory, or remove it"
        )
