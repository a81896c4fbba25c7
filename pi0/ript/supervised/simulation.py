"""Success in simulation, during training."""

import shutil
from dataclasses import asdict
from pathlib import Path

from pi0 import PI0Policy
from pi0.ript.checkpoint.journal import EpisodeJournal
from pi0.ript.config.schema import EnvironmentSettings, EvalSettings
from pi0.ript.environments import Environment, get_environment
from pi0.ript.evaluate import Evaluation
from pi0.ript.kept_evaluation import episodes_key, evaluate_once
from pi0.ript.peers import ALONE, Peers
from pi0.ript.results import write_evaluation
from pi0.ript.rollout import GuidedPolicy
from pi0.ript.starting_policy import require_acts


def require_evaluable(policy: PI0Policy, environment: Environment, guidance: float) -> None:
    """Raise ValueError unless the policy can act in all tasks of the environment, guided like this."""
    require_acts(policy, environment)
    if guidance != 1.0 and policy.config.indicator == "none":
        raise ValueError(
            "eval.cfg_guidance_scale: expected 1 for a policy without an indicator of the advantage, found "
            f"{guidance}"
        )


class RepeatedEvaluation:
    """Evaluates the policy as it stands, each time from the same states with the same noise."""

    def __init__(
        self, task: EnvironmentSettings, evaluation: EvalSettings, seed: int, peers: Peers = ALONE
    ) -> None:
        """Start the simulators."""
        self._settings, self._seed, self._peers = evaluation, seed, peers
        self._env = get_environment(**asdict(task)).make()
        indices = range(evaluation.first_state, evaluation.first_state + evaluation.rollouts_per_task)
        self._states = [s for t in self._env.tasks for s in self._env.initial_states(t, "heldout", indices)]

    def evaluate(self, policy: PI0Policy, path: Path) -> Evaluation:
        """Return the evaluation and write it as PATH.json and .mp4; all peers share the work.

        Finished episodes are kept beside it until then, so that they need not run again after a kill.
        """
        acting = GuidedPolicy(policy, self._settings.cfg_guidance_scale)
        journal = path.with_suffix(".episodes")
        key = self._peers.gather([episodes_key(self._env, acting) if self._peers.rank == 0 else ""])[0][0]
        evaluation = evaluate_once(
            self._env,
            acting,
            self._states,
            self._seed,
            EpisodeJournal(journal / key),
            num_recorded=self._settings.n_video,
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
