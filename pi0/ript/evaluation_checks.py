"""Can an evaluation be done? Looks into the checkpoints, without loading any weights."""

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from pi0 import openpi_format
from pi0.embodiment import IDS, EmbodimentError, chosen_tag, require_chosen
from pi0.features import ACTION, STATE
from pi0.lerobot_format import split_embedded_statistics
from pi0.normalize import MissingStatisticsError, Normalizer
from pi0.pretrained import Checkpoint, describe, resolve
from pi0.registry import get_config
from pi0.ript.config.loadable import wrong_device, wrong_weights
from pi0.ript.config.loading import say
from pi0.ript.config.schema import ConfigError
from pi0.ript.environments import Environment
from pi0.ript.evaluation_settings import EvaluationConfig, by_environment, check_evaluation, trials
from pi0.ript.guidance import guidance_text, recorded_guidance
from pi0.ript.policy_settings import TOY
from pi0.ript.starting_policy import require_fits
from pi0.tensor_files import stored_weights


def require_usable(config: EvaluationConfig) -> list[Environment]:
    """Return the environments after checking, without loading any weights, that all can be done.

    Raises:
        ConfigError: Something is missing or does not fit.
    """
    environments = check_evaluation(config)
    if problems := [*wrong_device(config), *wrong_weights(config)]:
        raise ConfigError(*problems)
    for environment in environments:
        with as_config_errors():
            environment.check()
    for path in dict.fromkeys(trial.path for trial in trials(config)):
        with as_config_errors():
            environments = _require_policy(path, environments, config)
    _require_recordable(config)
    return environments


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
