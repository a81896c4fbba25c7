"""Success in simulation, during training."""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from pi0 import PI0Policy
from pi0.ript.checkpoint.resumable import EpisodesLeftError, Interruptible
from pi0.ript.environments import LIBERO_SUITES, Environment, get_environment
from pi0.ript.envs import BatchedEnv
from pi0.ript.evaluate import Evaluation, evaluate
from pi0.ript.peers import ALONE, Peers
from pi0.ript.rollout import ChunkPolicy, GuidedPolicy, Rollout, RolloutFunction, rollout
from pi0.ript.starting_policy import require_fits
from pi0.ript.supervised.settings import Env, EvalSettings


def environment_options(env: Env, evaluation: EvalSettings) -> dict[str, Any]:
    """Return the arguments of `get_environment` that the settings ask for.

    As in OpenTau's files, `task` can be the name of a LIBERO suite, of which `task_ids` are tasks.
    """
    is_suite = env.task in LIBERO_SUITES
    names = [env.task] if env.task is not None and not is_suite else env.task_ids
    options = asdict(env)
    return {
        "benchmark_name": env.task if is_suite else env.type,
        "task_names": names,
        "max_episode_length": env.episode_length,
        "num_parallel_envs": evaluation.batch_size,
        "num_workers": evaluation.num_workers,
        **{key: options[key] for key in ("image_size", "render_size", "camera_names")},
    }


def make_environment(env: Env, evaluation: EvalSettings) -> Environment:
    """Return the environment that the settings describe; a wrong name is a ValueError."""
    if env.task is not None and env.task not in LIBERO_SUITES and env.task_ids is not None:
        raise ValueError(f"task_ids: belong to a suite, and task={env.task!r} is one task; give one of them")
    return get_environment(**environment_options(env, evaluation))


def require_acts(policy: PI0Policy, environment: Environment, guidance: float) -> None:
    """Raise ValueError unless the policy can act in all tasks of the environment."""
    require_fits(policy.features, environment, "env.camera_names")
    config = policy.config
    instructions = [task.instruction for task in environment.suite().select(environment.tasks)]
    policy.tokenizer.encode(instructions, config.tokenizer_max_length, config.vocab_size)
    if guidance != 1.0 and config.indicator == "none":
        raise ValueError(
            f"eval.guidance: expected 1 for a policy without an indicator of the advantage, found {guidance}"
        )


class Simulation:
    """Evaluates the policy as it stands, each time from the same states with the same noise."""

    def __init__(self, env: Env, evaluation: EvalSettings, seed: int, peers: Peers = ALONE) -> None:
        """Start the simulators."""
        self._settings, self._seed, self._peers = evaluation, seed, peers
        self._env = make_environment(env, evaluation).make()
        indices = range(evaluation.first_state, evaluation.first_state + evaluation.n_episodes)
        self._states = [s for t in self._env.tasks for s in self._env.initial_states(t, "heldout", indices)]

    def evaluate(self, policy: PI0Policy, stop_if_asked: Callable[[], None]) -> Evaluation:
        """Return the evaluation; all peers share the work, and leave it for `stop_if_asked` at any chunk."""
        return evaluate(
            self._env,
            GuidedPolicy(policy, self._settings.guidance),
            self._states,
            self._seed,
            num_recorded=self._settings.max_episodes_rendered,
            peers=self._peers,
            run=_stoppable(stop_if_asked),
        )

    def close(self) -> None:
        """Stop the simulators."""
        self._env.close()


def _stoppable(stop_if_asked: Callable[[], None]) -> RolloutFunction:
    def run(env: BatchedEnv, policy: ChunkPolicy, *arguments: Any, **options: Any) -> list[Rollout]:
        try:
            episodes = rollout(env, Interruptible(policy), *arguments, **options)
        except EpisodesLeftError:
            episodes = []
        stop_if_asked()
        return episodes

    return run
