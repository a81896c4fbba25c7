"""A file of requirement 004's rollout stage, as `pi0-eval` takes it."""

from collections.abc import Sequence
from pathlib import Path
from typing import cast

from pi0.registry import load_plugins
from pi0.ript.config import ConfigError, load_config_from_yaml
from pi0.ript.envs.base import Split
from pi0.ript.policy_evaluation import EvalSettings
from pi0.ript.starting_policy import TOY
from pi0.ript.supervised.aliases import translate
from pi0.ript.supervised.settings import RolloutSettings
from pi0.ript.supervised.simulation import environment_options


def read_rollout_settings(path: str | Path, overrides: Sequence[str] = ()) -> EvalSettings:
    """Return what a JSON or YAML file asks to be evaluated, and perhaps recorded.

    Raises:
        ConfigError: The file or an override is wrong.
    """
    settings = load_config_from_yaml(path, overrides, schema=RolloutSettings, translate=translate)
    if settings.policy.type != "pi0":
        raise ConfigError(f"policy.type: expected pi0, which can act, found {settings.policy.type!r}")
    if settings.eval.states not in ("heldout", "train"):
        raise ConfigError(f"eval.states: expected heldout or train, found {settings.eval.states!r}")
    if settings.env.type is None:
        raise ConfigError(f"env.type: expected an environment in {path}, found none")
    load_plugins(settings.plugins)
    options = environment_options(settings.env, settings.eval)
    evaluation = settings.eval
    return EvalSettings(
        policy=settings.policy.pretrained_path or TOY,
        env=str(options.pop("benchmark_name")),
        tasks=options.pop("task_names"),
        num_workers=int(options.pop("num_workers")),
        env_options={key: value for key, value in options.items() if value is not None},
        episodes=evaluation.n_episodes,
        first_state=evaluation.first_state,
        states=cast("Split", evaluation.states),
        guidance=evaluation.guidance,
        extra_delta_transform=settings.policy.extra_delta_transform,
        seed=settings.seed,
        videos=evaluation.max_episodes_rendered,
        device=settings.device,
        output=Path(settings.output_dir).expanduser(),
        recording_root=Path(evaluation.recording_root).expanduser() if evaluation.recording_root else None,
    )
