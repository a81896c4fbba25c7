"""Evaluates policies that are on disk: held-out states, tables, videos, and the rollouts as a data set."""

import contextlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pi0 import PI0Policy
from pi0.pretrained import describe, resolve
from pi0.ript.checkpoint.journal import EpisodeJournal
from pi0.ript.config.schema import TrainConfig
from pi0.ript.distributed import World, cleanup_distributed, limit_threads, setup_distributed
from pi0.ript.environments import Environment, get_environment
from pi0.ript.envs import BatchedEnv, InitialState
from pi0.ript.envs.base import Split
from pi0.ript.evaluate import Evaluation, compare, episode_seed
from pi0.ript.files import write_json
from pi0.ript.kept_evaluation import episodes_key, evaluate_once, policy_hash
from pi0.ript.recording import DatasetStore, rollouts_writer
from pi0.ript.report import write_report
from pi0.ript.results import lock_directory, new_run_directory, write_evaluation
from pi0.ript.rollout import GuidedPolicy
from pi0.ript.starting_policy import (
    TOY,
    require_device,
    require_fits,
    require_policy_path,
    starting_policy,
)
from pi0.ript.success_table import success_text

_EPISODES = "episodes"  # in the directory of the results until they are complete: the finished episodes
_FREE = ("episodes", "first_state", "videos", "num_workers")  # what an interrupted evaluation may go on with


class EvalError(ValueError):
    """What was asked for cannot be evaluated; the message says why and what to do."""


@dataclass(frozen=True)
class EvalSettings:
    """What is evaluated, on what, and where the results go."""

    policy: str
    """Checkpoint directory, hub repository, or "toy", which is trained here on demonstrations."""
    env: str = "metaworld"
    """One of `pi0.ript.environments.ENVIRONMENTS`."""
    compare: str | None = None
    """Another policy, for the same states."""
    tasks: Sequence[str | int] | None = None
    """Names, or numbers in the suite's order; None: the environment's own choice."""
    env_options: Mapping[str, Any] = field(default_factory=dict)
    """What else `get_environment` takes: max_episode_length, num_parallel_envs, camera_names, ..."""
    episodes: int = 20
    """Held-out states of each task, one episode from each."""
    first_state: int = 0
    states: Split = "heldout"
    """From which the episodes start: held-out ones, or "train", whose rollouts may be trained on."""
    guidance: float = 1.0
    """Towards a positive advantage; 1: the indicator is given, 0: it is withheld."""
    extra_delta_transform: bool | None = None
    """What openpi's LIBERO checkpoints leave open; see `pi0.pretrained.load`."""
    seed: int = 0
    videos: int = 1
    """Episodes of each task in the video."""
    num_workers: int = 2
    """Processes that simulate, for each process of this run."""
    device: str = "auto"
    output: Path = Path(TrainConfig.output_dir) / "eval"
    recording_root: Path | None = None
    """Where the rollouts become a LeRobotDataset v3 with success labels; None: nowhere."""


def require_usable(settings: EvalSettings) -> Environment:
    """Return the environment after checking, without loading any weights, that all can be done.

    Raises:
        EvalError: Something is missing or does not fit.
    """
    _require_numbers(settings)
    with _as_eval_error():
        require_device(settings.device)
        environment = get_environment(
            settings.env,
            task_names=settings.tasks,
            num_workers=settings.num_workers,
            **settings.env_options,
        )
        suite = environment.suite()
        suite.check(suite.select(environment.tasks))
    last, there_are = settings.first_state + settings.episodes, environment.num_heldout
    if settings.states == "heldout" and there_are is not None and last > there_are:
        raise EvalError(
            f"episodes: {settings.env} has {there_are} held-out states per task, found first_state="
            f"{settings.first_state} and episodes={settings.episodes}"
        )
    for name, path in _paths(settings).items():
        with _as_eval_error():
            _require_policy(name, path, environment, settings)
    _require_recordable(settings)
    return environment


def evaluate_policy(settings: EvalSettings) -> tuple[Evaluation, ...]:
    """Return the evaluation of the policy, and of the one to compare with; write everything to `output`.

    Under torchrun the processes share the work, and each returns the whole. Writes `evaluation.json`, a
    video, `settings.json`, and with `compare` also `compared.json`, its video and `comparison.json`; and
    `report.html`, which shows all of it.

    Raises:
        EvalError: As `require_usable`, or a checkpoint's weights do not fit.
    """
    environment = require_usable(settings)
    world = setup_distributed(settings.device)
    run_dir = world.on_main(_open_output, settings)
    evaluations = []
    with environment.make() as env:
        indices = range(settings.first_state, settings.first_state + settings.episodes)
        states = [s for task in env.tasks for s in env.initial_states(task, settings.states, indices)]
        for name, path in _paths(settings).items():
            policy = world.first(_load, path, environment, settings, world.device(settings.device))
            evaluations.append(_evaluate(name, env, policy, states, settings, world))
            file = "evaluation" if name == "policy" else "compared"
            world.on_main(write_evaluation, run_dir / file, evaluations[-1])
    if len(evaluations) == 2:
        world.on_main(write_json, run_dir / "comparison.json", _comparison(settings, *evaluations))
    world.print(world.on_main(_report, run_dir, settings, evaluations))
    world.on_main(shutil.rmtree, run_dir / _EPISODES)
    world.print(f"results: {run_dir}")
    cleanup_distributed()
    return tuple(evaluations)


# Checks -------------------------------------------------------------------------------------------------


def _paths(settings: EvalSettings) -> dict[str, str]:
    paths = {"policy": settings.policy, "compare": settings.compare}
    return {name: path for name, path in paths.items() if path is not None}


@contextlib.contextmanager
def _as_eval_error() -> Iterator[None]:
    try:
        yield
    except (ValueError, OSError, ModuleNotFoundError) as error:
        raise EvalError(str(error)) from error


def _require_numbers(settings: EvalSettings) -> None:
    for name, least in {"episodes": 1, "first_state": 0, "videos": 0, "num_workers": 0, "seed": 0}.items():
        if getattr(settings, name) < least:
            raise EvalError(f"{name}: expected at least {least}, found {getattr(settings, name)}")
    if taken := {"benchmark_name", "task_names", "num_workers"} & set(settings.env_options):
        raise EvalError(
            f"env_options: {', '.join(taken)} have settings of their own (env, tasks, num_workers)"
        )
    if settings.tasks is not None and not settings.tasks:
        raise EvalError("tasks: expected names or numbers, found none; leave it out for the usual ones")


def _require_policy(name: str, path: str, environment: Environment, settings: EvalSettings) -> None:
    require_policy_path(path, name)
    if path == TOY:
        return
    directory = resolve(_expanded(path))
    found = describe(directory, None, None, None, settings.extra_delta_transform)
    require_fits(found.features, environment, "--env-option camera_names=[name,name]")
    if settings.guidance != 1.0 and found.config.indicator == "none":
        raise EvalError(
            f"guidance: expected 1 for {path}, a policy without an indicator of the advantage, found "
            f"{settings.guidance:g}; there is nothing to guide by"
        )


def _require_recordable(settings: EvalSettings) -> None:
    root = settings.recording_root
    if root is None:
        return
    if settings.compare is not None:
        raise EvalError("recording_root: one policy's rollouts make a data set; leave out compare")
    if root.exists() and not (root.is_dir() and not any(root.iterdir())):
        raise EvalError(f"recording_root: {root} exists already; choose another directory, or remove it")


# The work -----------------------------------------------------------------------------------------------


def _open_output(settings: EvalSettings) -> Path:
    """Return the directory of the results: that of this evaluation if it was interrupted, or a new one."""
    path, chosen = settings.output, json.loads(json.dumps(asdict(settings), default=str))
    lock_directory(path)
    file = path / "settings.json"
    earlier = json.loads(file.read_text()) if file.exists() and (path / _EPISODES).exists() else {}
    if any(earlier.get(key, chosen) != value for key, value in chosen.items() if key not in _FREE):
        new_run_directory(path)
        (path / _EPISODES).mkdir()
    write_json(file, chosen)
    return path


def _load(path: str, environment: Environment, settings: EvalSettings, device: str) -> PI0Policy:
    """Return the policy as its checkpoint has it, ready for the environment's instructions."""
    with _as_eval_error():
        if path == TOY:
            policy = starting_policy(path, environment, TrainConfig.warm_start_dir, settings.seed, device)
        else:
            delta = settings.extra_delta_transform
            policy = PI0Policy.from_pretrained(_expanded(path), extra_delta_transform=delta, device=device)
        instructions = [task.instruction for task in environment.suite().select(environment.tasks)]
        config = policy.config
        policy.tokenizer.encode(instructions, config.tokenizer_max_length, config.vocab_size)
    limit_threads(policy)
    return policy


def _expanded(path: str) -> str:
    return str(Path(path).expanduser())


def _evaluate(
    name: str,
    env: BatchedEnv,
    policy: PI0Policy,
    states: Sequence[InitialState],
    settings: EvalSettings,
    world: World,
) -> Evaluation:
    acting, root = GuidedPolicy(policy, settings.guidance), settings.recording_root
    videos, seed = settings.videos, settings.seed
    if root is None:
        journal = world.on_main(_journal, settings.output / _EPISODES, name, env, acting)
        return evaluate_once(env, acting, states, seed, journal, num_recorded=videos, peers=world)
    origin = {
        **{"env": settings.env, "env_options": dict(settings.env_options), "policy": settings.policy},
        **{"source": f"policy:{world.on_main(policy_hash, policy)}", "guidance": settings.guidance},
        **{"seed": seed, "states": [state.hash for state in states]},
    }
    with _as_eval_error():
        writer = world.first(rollouts_writer, root, env, origin)
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


def _report(run_dir: Path, settings: EvalSettings, evaluations: Sequence[Evaluation]) -> str:
    """Write the page of what is in the directory, and return the table with what its names mean."""
    names = ("policy",) if len(evaluations) == 1 else ("before", "after")
    meaning = [f"{name}: {path}" for name, path in zip(names, _paths(settings).values(), strict=True)]
    legend = "; ".join([*meaning, "held-out states" if settings.states == "heldout" else "training states"])
    write_report(run_dir, dict(zip(names, ("evaluation", "compared"), strict=False)), legend)
    return f"{legend}\n{success_text(dict(zip(names, evaluations, strict=True)))}"


def _comparison(settings: EvalSettings, before: Evaluation, after: Evaluation) -> dict[str, Any]:
    tasks = {task: compare(part, after.by_task()[task]) for task, part in before.by_task().items()}
    return {
        "before": {"policy": settings.policy, **before.to_dict()},
        "after": {"policy": settings.compare, **after.to_dict()},
        "comparison": compare(before, after).to_dict(),
        "tasks": {task: one.to_dict() for task, one in tasks.items()},
    }
