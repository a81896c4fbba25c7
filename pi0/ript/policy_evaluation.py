"""Evaluates policies that are on disk: held-out states, tables, videos, and the rollouts as a data set."""

import contextlib
import json
import math
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from pi0 import PI0Policy
from pi0.embodiment import IDS, EmbodimentError, chosen_tag, require_chosen
from pi0.pretrained import describe, resolve
from pi0.registry import get_config
from pi0.ript.checkpoint.journal import EpisodeJournal
from pi0.ript.config.loading import say, say_device
from pi0.ript.config.schema import (
    NO_ENVIRONMENT,
    ConfigError,
    Distributed,
    EnvironmentSettings,
    EvalSettings,
    TrainConfig,
)
from pi0.ript.config.validation import attempt, moved_aside, shared_problems
from pi0.ript.distributed import World, cleanup_distributed, limit_threads, setup_distributed
from pi0.ript.environments import Environment
from pi0.ript.envs import BatchedEnv, InitialState
from pi0.ript.envs.initial_state import Split
from pi0.ript.evaluate import Evaluation, compare, episode_seed
from pi0.ript.files import flatten, plain, write_json
from pi0.ript.guidance import guidance_text, recorded_guidance, write_choice
from pi0.ript.kept_evaluation import episodes_key, evaluate_once, policy_hash
from pi0.ript.ranges import Whole
from pi0.ript.recording import DatasetStore, rollouts_writer
from pi0.ript.report import write_report
from pi0.ript.results import lock_directory, new_run_directory, write_evaluation
from pi0.ript.rollout import GuidedPolicy
from pi0.ript.starting_policy import (
    TOY,
    PolicySettings,
    make_policy,
    require_acts,
    require_fits,
    require_policy_path,
)
from pi0.ript.success_table import success_text
from pi0.ript.warm_start import warm_start

_EPISODES = "episodes"  # in the directory of the results until they are complete: the finished episodes
_MAY_CHANGE = ("eval.rollouts_per_task", "eval.first_state", "eval.n_video", "task.num_workers")
"""Settings that may have other values when an interrupted evaluation goes on."""
_NAMED_APART = ("benchmark_name", "task_names", "num_workers")  # of the environment, in a data set's origin


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
    with _as_config_error():
        suite = environment.suite()
        suite.check(suite.select(environment.tasks))
    for path in dict.fromkeys(trial.path for trial in _trials(config)):
        with _as_config_error():
            _require_policy(path, environment, config)
    _require_recordable(config)
    return environment


def evaluate_policy(config: EvaluationConfig) -> tuple[Evaluation, ...]:
    """Return the evaluation of the policy, and of the one to compare with; write everything to `output_dir`.

    Under torchrun the processes share the work, and each returns the whole. Writes `settings.json`, a page,
    `report.html`, and `evaluation.json` with a video; with `compare` also `compared.json`, its video and
    `comparison.json`; with `guidances` `guidance-G.json` of each in place of it, and `choice.json`.

    Raises:
        ConfigError: As `require_usable`, or a checkpoint's weights do not fit.
    """
    environment = require_usable(config)
    say_device(config.device, config.distributed.backend)
    world = setup_distributed(config.device, **asdict(config.distributed))
    world.on_main(lock_directory, Path(config.output_dir))
    evaluations = []
    with environment.make() as env:
        indices = range(config.eval.first_state, config.eval.first_state + config.eval.rollouts_per_task)
        states = [s for task in env.tasks for s in env.initial_states(task, _split(config), indices)]
        load = partial(world.first, _load, environment, config, world.device(config.device))
        policy = load(config.policy_path)
        # Not before: what cannot be evaluated must not move an earlier evaluation aside.
        run_dir = world.on_main(_open_output, config)
        for trial in _trials(config):
            policy = load(trial.path) if trial.name == "compare" else policy
            acting = GuidedPolicy(policy, trial.guidance)
            evaluations.append(_evaluate(trial.name, env, acting, states, config, world))
            world.on_main(write_evaluation, run_dir / trial.file, evaluations[-1])
    if config.compare is not None:
        world.on_main(write_json, run_dir / "comparison.json", _comparison(config, *evaluations))
    world.print(world.on_main(_report, run_dir, config, evaluations))
    world.on_main(shutil.rmtree, run_dir / _EPISODES)
    world.print(f"results: {run_dir}")
    cleanup_distributed()
    return tuple(evaluations)


# Checks -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Trial:
    """A policy that acts with a guidance."""

    name: str
    """Of its finished episodes."""
    label: str
    """In tables."""
    file: str
    path: str
    guidance: float


def _trials(config: EvaluationConfig) -> list[_Trial]:
    """Return what is evaluated, in order."""
    path, own = config.policy_path, config.eval.cfg_guidance_scale
    if config.guidances is not None:
        names = {f"guidance-{g:g}": g for g in config.guidances}
        return [_Trial(name, name.replace("-", " "), name, path, g) for name, g in names.items()]
    if config.compare is not None:
        other = _Trial("compare", "after", "compared", config.compare, own)
        return [_Trial("policy", "before", "evaluation", path, own), other]
    return [_Trial("policy", "policy", "evaluation", path, own)]


def _split(config: EvaluationConfig) -> Split:
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
def _as_config_error() -> Iterator[None]:
    try:
        yield
    except EmbodimentError as error:
        raise ConfigError(f"policy.{error}") from error
    except (ValueError, OSError, ModuleNotFoundError) as error:
        raise ConfigError(str(error)) from error


def _embodiment(config: EvaluationConfig, path: str) -> str | None:
    """Return the robot of a policy; of two, one without tags can be the base of the other."""
    paths = (trial.path for trial in _trials(config) if trial.path != TOY)
    named = [place for place in paths if (resolve(Path(place).expanduser()) / IDS).is_file()]
    return config.policy.embodiment if path in named or not named else None


def _require_policy(path: str, environment: Environment, config: EvaluationConfig) -> None:
    robot = _embodiment(config, path)
    if path == TOY:
        chosen_tag([], robot)
        return
    named = get_config(config.policy.config) if config.policy.config else None
    directory = resolve(Path(path).expanduser())
    checkpoint = describe(directory, named, None, None, config.policy.extra_delta_transform, robot)
    require_chosen(list(checkpoint.embodiments), checkpoint.embodiment)
    require_fits(checkpoint.features, environment)
    guided = [trial.guidance for trial in _trials(config) if trial.guidance != 1.0]
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


# The work -----------------------------------------------------------------------------------------------


def _open_output(config: EvaluationConfig) -> Path:
    """Return the directory of the results: that of this evaluation if it was interrupted, or a new one."""
    path, chosen = Path(config.output_dir), plain(config)
    lock_directory(path)
    file = path / "settings.json"
    earlier = flatten(json.loads(file.read_text())) if file.exists() and (path / _EPISODES).exists() else {}
    now = flatten(chosen)
    if any(earlier.get(key, chosen) != value for key, value in now.items() if key not in _MAY_CHANGE):
        new_run_directory(path)
        (path / _EPISODES).mkdir()
    write_json(file, chosen)
    return path


def _load(environment: Environment, config: EvaluationConfig, device: str, path: str) -> PI0Policy:
    """Return the policy as checkpoint and settings have it; it can read the environment's instructions."""

    def toy(**changes: Any) -> PI0Policy:
        spec = environment.warm_start_spec(config.seed)
        return warm_start(spec, Path(TrainConfig.warm_start_dir), indicator="embedding", **changes)

    with _as_config_error():
        settings = replace(config.policy, embodiment=_embodiment(config, path))
        policy = make_policy(path, settings, toy, config.seed, device)
        require_acts(policy, environment)
    limit_threads(policy)
    return policy


def _evaluate(
    name: str,
    env: BatchedEnv,
    acting: GuidedPolicy,
    states: Sequence[InitialState],
    config: EvaluationConfig,
    world: World,
) -> Evaluation:
    root, videos, seed = config.eval.recording_root, config.eval.n_video, config.seed
    if root is None:
        journal = world.on_main(_journal, Path(config.output_dir) / _EPISODES, name, env, acting)
        return evaluate_once(env, acting, states, seed, journal, num_recorded=videos, peers=world)
    options = {k: v for k, v in asdict(config.task).items() if v is not None and k not in _NAMED_APART}
    origin = {
        "env": config.task.benchmark_name,
        "env_options": {**options, **config.options},
        "policy": config.policy_path,
        "source": f"policy:{world.on_main(policy_hash, acting.policy)}",
        "guidance": config.eval.cfg_guidance_scale,
        "seed": seed,
        "states": [state.hash for state in states],
        "states_of": config.eval.split,
    }
    with _as_config_error():
        writer = world.first(rollouts_writer, Path(root).expanduser(), env, origin)
    store = DatasetStore(writer, states, [episode_seed(seed, state) for state in states], origin["source"])
    evaluation = evaluate_once(env, acting, states, seed, store, num_recorded=videos, peers=world)
    world.on_main(writer.finalize)
    return evaluation


def _journal(directory: Path, name: str, env: BatchedEnv, policy: GuidedPolicy) -> EpisodeJournal:
    """Return the journal of a policy's episodes; those of other weights under its name are removed."""
    path = directory / f"{name}-{episodes_key(env, policy)}"
    for other in set(directory.glob(f"{name}-*")) - {path}:
        print(f"{name}: its finished episodes are of other weights or another version; beginning anew")  # noqa: T201
        shutil.rmtree(other)
    return EpisodeJournal(path)


# Results ------------------------------------------------------------------------------------------------


def _report(run_dir: Path, config: EvaluationConfig, evaluations: Sequence[Evaluation]) -> str:
    """Write the page of what is in the directory, and return the table with what its names mean."""
    trials = _trials(config)
    names = [trial.label for trial in trials]
    meaning = [f"{trial.label}: {trial.path}" for trial in trials]
    kinds = {"heldout": "held-out", "validation": "validation", "train": "training"}
    states = f"{kinds[_split(config)]} states"
    legend, advice = "; ".join([*meaning, states]), ""
    if config.guidances is not None:
        legend = f"{config.policy_path} acts with each guidance; {states}"
        tried = {trial.guidance: e for trial, e in zip(trials, evaluations, strict=True)}
        advice = write_choice(run_dir / "choice.json", config.policy_path, _split(config), tried)
    files = {trial.label: trial.file for trial in trials}
    write_report(run_dir, files, "; ".join(filter(None, [legend, advice])))
    table = success_text(dict(zip(names, evaluations, strict=True)))
    return "\n".join(filter(None, [legend, table, advice]))


def _comparison(config: EvaluationConfig, before: Evaluation, after: Evaluation) -> dict[str, Any]:
    tasks = {task: compare(part, after.by_task()[task]) for task, part in before.by_task().items()}
    return {
        "before": {"policy": config.policy_path, **before.to_dict()},
        "after": {"policy": config.compare, **after.to_dict()},
        "comparison": asdict(compare(before, after)),
        "tasks": {task: asdict(comparison) for task, comparison in tasks.items()},
    }
