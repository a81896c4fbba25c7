"""Success in simulation, during training."""

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pi0 import PI0Policy
from pi0.ript.checkpoint.journal import EpisodeJournal
from pi0.ript.environments import LIBERO_SUITES, Environment, get_environment
from pi0.ript.evaluate import Evaluation
from pi0.ript.kept_evaluation import episodes_key, evaluate_once
from pi0.ript.peers import ALONE, Peers
from pi0.ript.results import write_evaluation
from pi0.ript.rollout import GuidedPolicy
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

    def evaluate(self, policy: PI0Policy, path: Path) -> Evaluation:
        """Return the evaluation and write it as PATH.json and .mp4; all peers share the work.

        Finished episodes are kept beside it until then, so that they need not run again after a kill.
        """
        acting, journal = GuidedPolicy(policy, self._settings.guidance), path.with_suffix(".episodes")
        key = self._peers.gather([episodes_key(self._env, acting) if self._peers.rank == 0 else ""])[0][0]
        evaluation = evaluate_once(
            self._env,
            acting,
            self._states,
            self._seed,
            EpisodeJournal(journal / key),
            num_recorded=self._settings.max_episodes_rendered,
            peers=self._peers,
        )
        if self._peers.rank == 0:
            path.parent.mkdir(exist_ok=True)
            write_evaluation(path, evaluation)
            shutil.rmtree(journal)
        return evaluation

    def close(self) -> None:
        """Stop the simulators."""
        self._env.close()
