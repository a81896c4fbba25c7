"""Evaluates policies that are on disk: held-out states, tables, videos, and the rollouts as a data set."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from pi0 import PI0Policy
from pi0.ript.checkpoint.journal import EpisodeJournal
from pi0.ript.config.loading import say_device
from pi0.ript.config.schema import (
    TrainConfig,
)
from pi0.ript.distributed import World, cleanup_distributed, limit_threads, setup_distributed
from pi0.ript.environments import Environment
from pi0.ript.envs import BatchedEnv, InitialState
from pi0.ript.evaluate import Evaluation, compare, episode_seed
from pi0.ript.evaluation_settings import (
    EvaluationConfig,
    as_config_errors,
    require_usable,
    robot_of,
    split_of,
    trials,
)
from pi0.ript.files import flatten, plain, write_json
from pi0.ript.guidance import write_choice
from pi0.ript.kept_evaluation import episodes_key, evaluate_once, policy_hash
from pi0.ript.recording import DatasetStore, rollouts_writer
from pi0.ript.report import write_report
from pi0.ript.results import lock_directory, new_run_directory, write_evaluation
from pi0.ript.rollout import GuidedPolicy
from pi0.ript.starting_policy import (
    make_policy,
    require_acts,
)
from pi0.ript.success_table import success_text
from pi0.ript.warm_start import warm_start

_EPISODES = "episodes"  # in the directory of the results until they are complete: the finished episodes
_MAY_CHANGE = ("eval.rollouts_per_task", "eval.first_state", "eval.n_video", "task.num_workers")
"""Settings that may have other values when an interrupted evaluation goes on."""
_NAMED_APART = ("benchmark_name", "task_names", "num_workers")  # of the environment, in a data set's origin


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
        states = [s for task in env.tasks for s in env.initial_states(task, split_of(config), indices)]
        load = partial(world.first, _load, environment, config, world.device(config.device))
        policy = load(config.policy_path)
        # Not before: what cannot be evaluated must not move an earlier evaluation aside.
        run_dir = world.on_main(_open_output, config)
        for trial in trials(config):
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

    with as_config_errors():
        settings = replace(config.policy, embodiment=robot_of(config, path))
        policy = make_policy(path, settings, toy, config.seed, device, only_acts=True)
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
    with as_config_errors():
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
    acted = trials(config)
    names = [trial.label for trial in acted]
    meaning = [f"{trial.label}: {trial.path}" for trial in acted]
    kinds = {"heldout": "held-out", "validation": "validation", "train": "training"}
    states = f"{kinds[split_of(config)]} states"
    legend, advice = "; ".join([*meaning, states]), ""
    if config.guidances is not None:
        legend = f"{config.policy_path} acts with each guidance; {states}"
        tried = {trial.guidance: e for trial, e in zip(acted, evaluations, strict=True)}
        advice = write_choice(run_dir / "choice.json", config.policy_path, split_of(config), tried)
    files = {trial.label: trial.file for trial in acted}
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
