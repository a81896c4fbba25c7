"""A file of requirement 004's rollout stage, as `pi0-eval` takes it."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import cast

from pi0.registry import load_plugins
from pi0.ript.config import ConfigError, load_config_from_yaml
from pi0.ript.config.schema import NO_ENVIRONMENT, EnvironmentSettings
from pi0.ript.config.schema import EvalSettings as Section
from pi0.ript.envs.base import Split
from pi0.ript.policy_evaluation import EvalSettings
from pi0.ript.starting_policy import TOY
from pi0.ript.supervised.settings import ModelSettings


@dataclass
class RolloutSettings:
    """What pi0-eval takes of a file."""

    policy_path: str = TOY
    policy: ModelSettings = field(default_factory=ModelSettings)
    task: EnvironmentSettings = field(default_factory=lambda: EnvironmentSettings(NO_ENVIRONMENT))
    eval: Section = field(default_factory=Section)
    seed: int = 0
    device: str = "auto"
    output_dir: str = "outputs/eval"
    plugins: list[str] = field(default_factory=list)


def read_rollout_settings(path: str | Path, overrides: Sequence[str] = ()) -> EvalSettings:
    """Return what a JSON or YAML file asks to be evaluated, and perhaps recorded.

    Raises:
        ConfigError: The file or an override is wrong.
    """
    settings = load_config_from_yaml(path, overrides, schema=RolloutSettings)
    if settings.policy.type != "pi0":
        raise ConfigError(f"policy.type: expected pi0, which can act, found {settings.policy.type!r}")
    if settings.eval.states not in ("heldout", "train"):
        raise ConfigError(f"eval.states: expected heldout or train, found {settings.eval.states!r}")
    if settings.task.benchmark_name == NO_ENVIRONMENT:
        raise ConfigError(f"task.benchmark_name: expected an environment in {path}, found none")
    load_plugins(settings.plugins)
    options = asdict(settings.task)
    evaluation = settings.eval
    return EvalSettings(
        policy=settings.policy_path,
        env=str(options.pop("benchmark_name")),
        tasks=options.pop("task_names"),
        num_workers=int(options.pop("num_workers")),
        env_options={key: value for key, value in options.items() if value is not None},
        episodes=evaluation.rollouts_per_task,
        first_state=evaluation.first_state,
        states=cast("Split", evaluation.states),
        guidance=evaluation.cfg_guidance_scale,
        extra_delta_transform=settings.policy.extra_delta_transform,
        seed=settings.seed,
        videos=evaluation.n_video,
        device=settings.device,
        output=Path(settings.output_dir).expanduser(),
        recording_root=Path(evaluation.recording_root).expanduser() if evaluation.recording_root else None,
    )
