"""Evaluates policies that are on disk: held-out states, tables, videos, and the rollouts as a data set."""

import json
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from pi0 import PI0Policy
from pi0.ript.checkpoint.journal import EpisodeJournal
from pi0.ript.config.loading import say, say_device
from pi0.ript.config.schema import TrainConfig
from pi0.ript.distributed import World, cleanup_distributed, setup_distributed
from pi0.ript.environments import Environment
from pi0.ript.envs import BatchedEnv, InitialState
from pi0.ript.evaluate import Evaluation, episode_seed, joined
from pi0.ript.evaluation_checks import as_config_errors, require_usable, robot_of
from pi0.ript.evaluation_plan import EvaluationPace, deadlines, plan_lines
from pi0.ript.evaluation_results import EPISODES, comparison_record, open_output, write_tables
from pi0.ript.evaluation_settings import (
    EvaluationConfig,
    Trial,
    benchmark_suites,
    by_environment,
    is_as_published,
    split_of,
    trials,
)
from pi0.ript.files import write_json
from pi0.ript.kept_evaluation import episodes_key, evaluate_once, policy_hash
from pi0.ript.peers import share
from pi0.ript.progress import print_above
from pi0.ript.recording import DatasetStore, rollouts_writer
from pi0.ript.results import lock_directory, read_evaluation, write_evaluation
from pi0.ript.rollout import GuidedPolicy
from pi0.ript.starting_policy import make_policy, require_acts
from pi0.ript.suite_table import SuiteRow, suite_rows
from pi0.ript.warm_start import warm_start

_JUDGED = ("rollouts_per_task", "first_state", "n_video")
"""Settings besides those that are in `episodes_key` on which a finished evaluation depends."""
_NAMED_APART = ("benchmark_name", "task_names", "num_workers")  # of the environment, in a data set's origin


def evaluate_policy(config: EvaluationConfig) -> tuple[Evaluation, ...]:
    """Return the evaluation of the policy, and of the one to compare with; write everything to `output_dir`.

    Under torchrun the processes share the work, and each returns the whole. Writes `settings.json`, a page,
    `report.html`, and `evaluation.json` with a video; with `compare` also `compared.json`, its video and
    `comparison.json`; with `guidances` `guidance-G.json` of each in place of it, and `choice.json`. Each of
    several suites has its own `evaluation-SUITE.json` and video. For LIBERO's suites `suites.json` has what
    was published beside what was found, and a plan of memory and hours is told before and on the way.

    Raises:
        ConfigError: As `require_usable`, or a checkpoint's weights do not fit.
    """
    chosen = require_usable(config)
    names = [each.task.benchmark_name for each in by_environment(config)]
    environments = dict(zip(names, chosen, strict=True))
    if benchmark_suites(config):
        with as_config_errors():
            for line in plan_lines(config, environments):
                say(line)
    say_device(config.device, config.distributed.backend)
    world = setup_distributed(config.device, **asdict(config.distributed))
    world.require_shared(config.output_dir)
    with _said_where_it_is(world):
        world.on_main(lock_directory, Path(config.output_dir))
        work = _Work(config, environments, world)
        for name, environment in environments.items():
            with environment.make() as env:
                for trial in trials(config):
                    work.evaluate(trial, name, env)
    run_dir, evaluations = Path(config.output_dir), work.evaluations()
    if config.compare is not None:
        world.on_main(write_json, run_dir / "comparison.json", comparison_record(config, *evaluations))
    world.print(world.on_main(write_tables, run_dir, config, evaluations, work.suites()))
    world.on_main(shutil.rmtree, run_dir / EPISODES)
    world.print(f"results: {run_dir}")
    cleanup_distributed()
    return tuple(evaluations)


@contextmanager
def _said_where_it_is(world: World) -> Iterator[None]:
    """Have each process say an error of its own: the command says that of rank 0 alone."""
    try:
        yield
    except ValueError as error:
        if world.rank > 0:
            sys.stderr.write(f"pi0-eval: error: rank {world.rank}: {error}\n")
        raise


class _Work:
    """The evaluations of a command: one policy in memory, one environment open at a time."""

    def __init__(
        self, config: EvaluationConfig, environments: Mapping[str, Environment], world: World
    ) -> None:
        self.config, self.environments, self.world = config, environments, world
        self.run_dir = Path(config.output_dir)
        self.pace = EvaluationPace({}, partial(_say_above, world)) if benchmark_suites(config) else None
        self._parts: dict[str, dict[str, Evaluation]] = {trial.name: {} for trial in trials(config)}
        self._executed: dict[str, int] = {}
        self._loaded: tuple[str, PI0Policy] | None = None
        if self.pace is not None:
            for trial in trials(config):
                for name, environment in environments.items():
                    episodes = deadlines(environment, config)[:: world.size]
                    self.pace.left[self._part(trial, name)] = episodes

    def evaluate(self, trial: Trial, name: str, env: BatchedEnv) -> None:
        """Evaluate a policy in an environment."""
        acting, part = GuidedPolicy(self._policy(trial.path), trial.guidance), self._part(trial, name)
        run = partial(_evaluate, part, env, acting, self.config, self.world, self.pace)
        evaluation = run() if len(self.environments) == 1 else self._once(trial, name, env, acting, run)
        self._parts[trial.name][name] = evaluation
        if self.pace is not None:
            self._executed[trial.name] = acting.policy.config.n_action_steps
            self.pace.finish(part, f"{name}: {evaluation}")

    def evaluations(self) -> list[Evaluation]:
        """Return the evaluation of each trial in all environments, after writing it."""
        made = [joined(list(parts.values())) for parts in self._parts.values()]
        for trial, evaluation in zip(trials(self.config), made, strict=True):
            self.world.on_main(write_evaluation, self.run_dir / trial.file, evaluation)
        return made

    def suites(self) -> dict[str, list[SuiteRow]]:
        """Return what was found beside what was published, by the label of the policy."""
        if self.pace is None or split_of(self.config) != "heldout":
            return {}
        published, tables = {self.config.policy_path: self.config.published}, {}
        for trial in trials(self.config):
            executed = self._executed[trial.name] if is_as_published(self.config) else None
            figures = published.get(trial.path, [])
            tables[trial.label] = suite_rows(self._parts[trial.name], figures, executed)
        return tables

    def _part(self, trial: Trial, name: str) -> str:
        return trial.name if len(self.environments) == 1 else f"{trial.name}-{name}"

    def _once(
        self, trial: Trial, name: str, env: BatchedEnv, acting: GuidedPolicy, run: Callable[..., Evaluation]
    ) -> Evaluation:
        """Return the evaluation in one of several environments from its file, or make and write it."""
        world, path = self.world, self.run_dir / f"{trial.file}-{name}"
        judged = {key: value for key, value in asdict(self.config.eval).items() if key in _JUDGED}
        asked = {"episodes": world.on_main(episodes_key, env, acting), **judged}
        note = self.run_dir / EPISODES / f"{self._part(trial, name)}.json"
        if world.on_main(_says, note, asked):
            world.print(f"{name}: finished already")
            return world.on_main(read_evaluation, path.with_name(f"{path.name}.json"))
        evaluation = run(key=asked["episodes"])
        world.on_main(write_evaluation, path, evaluation)
        world.on_main(write_json, note, asked)
        return replace(evaluation, recorded=())  # the pictures of all would be too much

    def _policy(self, path: str) -> PI0Policy:
        """Return the policy, in place of the one before; the first opens the directory of the results.

        Not before it is there: what cannot be evaluated must not move an earlier evaluation aside.
        """
        if self._loaded is None or self._loaded[0] != path:
            is_first, self._loaded = self._loaded is None, None
            device, environments = self.world.device(self.config.device), list(self.environments.values())
            self._loaded = path, self.world.first(_load, environments, self.config, device, path)
            if is_first:
                self.world.on_main(open_output, self.config)
        return self._loaded[1]


def _say_above(world: World, line: str) -> None:
    if world.rank == 0:
        print_above(line)


def _says(note: Path, asked: Mapping[str, Any]) -> bool:
    return note.exists() and json.loads(note.read_text()) == asked


def _evaluate(
    part: str,
    env: BatchedEnv,
    acting: GuidedPolicy,
    config: EvaluationConfig,
    world: World,
    pace: EvaluationPace | None,
    *,
    key: str | None = None,
) -> Evaluation:
    """Return the evaluation in one environment; episodes that are finished already are not run again.

    `key` is their `episodes_key`, if it is known.
    """
    indices = range(config.eval.first_state, config.eval.first_state + config.eval.rollouts_per_task)
    states = [s for task in env.tasks for s in env.initial_states(task, split_of(config), indices)]
    if config.eval.recording_root is not None:
        return _recorded(env, acting, states, config, world)
    key = key or world.on_main(episodes_key, env, acting)
    journal = world.on_main(_journal, Path(config.output_dir) / EPISODES, part, key)
    run = partial(evaluate_once, env, num_recorded=config.eval.n_video, peers=world)
    missing = [s for s in share(states, world) if not journal.has(s, episode_seed(config.seed, s))]
    if pace is None or not missing:
        return run(acting, states, config.seed, journal)
    pace.begin(part, env, acting, missing)
    return run(pace.timed(acting), states, config.seed, pace.noting(journal, part))


def _load(environments: Sequence[Environment], config: EvaluationConfig, device: str, path: str) -> PI0Policy:
    """Return the policy as checkpoint and settings have it; it can read the environments' instructions."""

    def toy(**changes: Any) -> PI0Policy:
        spec = environments[0].warm_start_spec(config.seed)
        return warm_start(spec, Path(TrainConfig.warm_start_dir), indicator="embedding", **changes)

    with as_config_errors():
        settings = replace(config.policy, embodiment=robot_of(config, path))
        policy = make_policy(path, settings, toy, config.seed, device, only_acts=True)
        for environment in environments:
            require_acts(policy, environment)
    return policy


def _recorded(
    env: BatchedEnv,
    acting: GuidedPolicy,
    states: Sequence[InitialState],
    config: EvaluationConfig,
    world: World,
) -> Evaluation:
    """Return the evaluation; its rollouts become a data set."""
    root, videos, seed = config.eval.recording_root, config.eval.n_video, config.seed
    options = {k: v for k, v in asdict(config.task).items() if v is not None and k not in _NAMED_APART}
    origin = {
        "env": by_environment(config)[0].task.benchmark_name,
        "env_options": {**options, **config.options},
        "policy": config.policy_path,
        "source": f"policy:{world.on_main(policy_hash, acting.policy)}",
        "guidance": config.eval.cfg_guidance_scale,
        "seed": seed,
        "states": [state.hash for state in states],
        "states_of": config.eval.split,
    }
    with as_config_errors():
        writer = world.first(rollouts_writer, Path(str(root)).expanduser(), env, origin)
    store = DatasetStore(writer, states, [episode_seed(seed, state) for state in states], origin["source"])
    evaluation = evaluate_once(env, acting, states, seed, store, num_recorded=videos, peers=world)
    world.on_main(writer.finalize)
    return evaluation


def _journal(directory: Path, name: str, key: str) -> EpisodeJournal:
    """Return the journal of a policy's episodes; those of other weights under its name are removed."""
    path = directory / f"{name}-{key}"
    for other in set(directory.glob(f"{name}-*/")) - {path}:
        print(f"{name}: its finished episodes are of other weights or another version; beginning anew")  # noqa: T201
        shutil.rmtree(other)
    return EpisodeJournal(path)
