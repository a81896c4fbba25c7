"""What the stages of RECAP are made with: policies, values, states and sources of one run.

Axes: n frame of a set.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Float64

from pi0 import PI0Policy
from pi0.ript.distributed import World
from pi0.ript.environments import Environment, get_environment
from pi0.ript.envs import BatchedEnv, InitialState, require_disjoint
from pi0.ript.episodes import EpisodeSet
from pi0.ript.files import plain
from pi0.ript.groups import InitialStateDataset, state_at
from pi0.ript.labels.returns import RewardConfig
from pi0.ript.labels.sources import Source
from pi0.ript.recap.config import RecapConfig
from pi0.ript.recap.data import open_source
from pi0.ript.recap.fitting import Keeping
from pi0.ript.recap.policy_training import train_policy
from pi0.ript.recap.stages import DATASET, Artefact, Stages
from pi0.ript.recap.value_training import train_value
from pi0.ript.recording import DatasetStore, record_rollouts, rollouts_writer
from pi0.ript.rollout import GuidedPolicy
from pi0.ript.starting_policy import TOY, starting_policy
from pi0.ript.training.settings import PolicyTraining, ValueTraining
from pi0.ript.training.starting_value import starting_value
from pi0.ript.training.steps import Row
from pi0.ript.warm_start import toy_policy
from pi0.value import ValueFunction

_STATE_STREAM, _NOISE_STREAM = 1, 2


class RunParts:
    """What the stages of one run are made with."""

    def __init__(self, config: RecapConfig, run_dir: Path, world: World | None = None) -> None:
        self.config, self.world = config, world or World()
        self.stages = Stages(run_dir, self.world, cast("Any", config.on_stale))
        self._images = run_dir / "images"
        self.environment: Environment = get_environment(**asdict(config.task))
        for key, size in batch_sizes(config).items():
            if size < self.world.size:
                raise ValueError(
                    f"{key}: expected a sample or more for each of {self.world.size} processes, found {size}"
                )

    @cached_property
    def env(self) -> BatchedEnv:
        """The simulators, started when a stage first needs them."""
        return self.environment.make()

    def close(self) -> None:
        """Stop the simulators, and remove the decoded images: they are in the data sets."""
        if "env" in self.__dict__:
            self.env.close()
        if self.world.rank == 0:  # and no waiting for the others, which may be gone
            shutil.rmtree(self._images, ignore_errors=True)

    # Training ---------------------------------------------------------------------------------------------

    def train_value(
        self,
        work: Path,
        value: ValueFunction,
        data: Mapping[str, Artefact],
        training: ValueTraining,
        number: int,
    ) -> Mapping[str, Any]:
        """Train a value function in a stage's directory; return figures."""
        reward, seed = self.reward(data["demonstrations"]), (self.config.seed, number)
        sources = self.sources(data)
        rows, found = train_value(value, sources, reward, training, seed, self.keeping(work), self.world)
        self.world.on_main(_save, work, value, rows)
        for name, values in (("calibration", found.to_dict()), ("reward", plain(reward))):
            self.world.on_main((work / f"{name}.json").write_text, json.dumps(values, indent=2) + "\n")
        return {"calibration": found.to_dict(), "loss": rows[-1]["loss"]}

    def train_policy(
        self,
        work: Path,
        policy: PI0Policy,
        sources: Sequence[Source],
        advantages: Sequence[Float64[np.ndarray, " _"]],
        epsilon: Mapping[str, float],
        training: PolicyTraining,
        number: int,
    ) -> Mapping[str, Any]:
        """Train a policy in a stage's directory; return figures."""
        seed, keeping = (self.config.seed, number), self.keeping(work)
        rows = train_policy(policy, sources, advantages, epsilon, training, seed, keeping, self.world)
        self.world.on_main(_save, work, policy, rows)
        last = rows[-max(1, len(rows) // 10) :]
        return {"steps": len(rows), "loss": float(np.mean([row["loss"] for row in last]))}

    def keeping(self, work: Path) -> Keeping:
        """Return what a training in a stage's directory keeps there while it is under way."""
        return Keeping(work, self.config.save_minutes, self.config.max_nonfinite_steps)

    def new_policy(self, episodes: EpisodeSet) -> PI0Policy:
        """Return the policy that SFT starts from."""
        config, settings = self.config, asdict(self.config.policy)
        indicator, _ = settings.pop("indicator"), settings.pop("chunk_size")
        device = self.world.device(config.device)
        if config.policy_path != TOY:
            return starting_policy(
                config.policy_path,
                self.environment,
                "",
                config.seed,
                device,
                indicator=indicator,
                **settings,
            )
        policy = toy_policy(episodes, self.chunk_size(), config.seed, indicator)
        policy.model.freeze(config.policy.freeze)
        return policy.to(torch.device(device))

    def load_policy(self, artefact: Artefact, trains: bool = False) -> PI0Policy:
        """Return a stage's policy, on this process's device; only one that trains has frozen parameters."""
        policy = PI0Policy.from_pretrained(artefact.path, device=self.world.device(self.config.device))
        if trains:
            policy.model.freeze(self.config.policy.freeze)
        return policy

    def new_value(self, sft: Artefact) -> ValueFunction:
        """Return an untrained value function that reads the SFT policy's prefix, or begins with its eyes."""
        settings, bins = self.config.value, self.config.reward.number_of_bins
        return starting_value(self.load_policy(sft), settings.form, settings.width, bins, self.config.seed)

    def load_value(self, artefact: Artefact, sft: Artefact) -> ValueFunction:
        """Return a stage's value function."""
        policy = self.load_policy(sft)
        return ValueFunction.from_pretrained(artefact.path, policy).to(policy.device)

    def guidance(self, policy: Artefact, guidance: float | None = None) -> float:
        """Return the guidance of a policy; SFT and its rivals know no negative, so there is none for them."""
        if not policy.stage.startswith("round-"):
            return 1.0
        return self.config.rollouts.guidance if guidance is None else guidance

    def record(self, work: Path, number: int, policy: Artefact) -> None:
        """Write the data set of a round's rollouts."""
        config = self.config
        states = [s for s in self.states_of_round(number) for _ in range(config.rollouts.per_state)]
        sequence = np.random.SeedSequence((config.seed, _NOISE_STREAM, number))
        seeds = [int(x) for x in sequence.generate_state(len(states))]
        origin = {"policy": policy.hash, "guidance": self.guidance(policy), "round": number}
        writer = self.world.first(rollouts_writer, work / DATASET, self.env, origin)
        guided = GuidedPolicy(self.load_policy(policy), self.guidance(policy))
        store = DatasetStore(writer, states, seeds, f"policy:{policy.hash[:16]}")
        record_rollouts(self.env, guided, states, seeds, store, self.world)
        self.world.on_main(writer.finalize)

    def states_of_round(self, number: int) -> list[InitialState]:
        """Return the initial states of a round's rollouts, none of which is judged on."""
        pool = InitialStateDataset(self.env, self.config.rollouts.pool_size)
        count = self.config.rollouts.num_states
        key = int(np.random.SeedSequence((self.config.seed, _STATE_STREAM)).generate_state(1)[0])
        places = range((number - 1) * count, number * count)
        states = [pool[state_at(place, len(pool), key)] for place in places]
        heldout = self.config.eval
        indices = range(heldout.first_state, heldout.first_state + heldout.rollouts_per_task)
        for task in self.env.tasks:
            require_disjoint(states, self.env.initial_states(task, "heldout", indices))
        return states

    def sources(self, data: Mapping[str, Artefact]) -> list[Source]:
        """Return data by name as sources, each with the indicator that fine-tuning gives it."""
        mode = self.config.demonstrations.advantage
        return [self.source(n, a, mode if n == "demonstrations" else "use") for n, a in data.items()]

    def source(self, name: str, artefact: Artefact, advantage: str) -> Source:
        """Return a stage's data as a source."""
        of_demonstrations: dict[str, Any] = {}
        if name == "demonstrations":
            tasks = self.environment.suite().select(self.environment.tasks)
            root = self.config.demonstrations.root
            of_demonstrations = {
                "root": None if root is None else Path(root).expanduser(),
                "assume_success": self.config.demonstrations.assume_success,
                "task_ids": {task.instruction: task.id for task in tasks},
            }
        return self.world.first(
            open_source,
            name,
            artefact.path,
            advantage,
            self._images / artefact.hash[:16],
            deadlines=None if of_demonstrations else self.deadlines(),
            **of_demonstrations,
        )

    def chunk_size(self) -> int:
        """Return the actions that a toy predicts at once."""
        return self.config.policy.chunk_size or self.environment.warm_start_spec(self.config.seed).chunk_size

    def deadlines(self) -> dict[str, int]:
        """Return the policy steps after which an episode of a task has failed."""
        tasks = self.environment.suite().select(self.environment.tasks)
        limit = self.environment.max_steps
        return {task.id: task.max_steps if limit is None else limit for task in tasks}

    def reward(self, demonstrations: Artefact) -> RewardConfig:
        """Return the reward with a normaliser that fits all episodes of the run."""
        longest = demonstrations.figures["longest"]
        return self.config.reward.resolve(max([longest, *self.deadlines().values()]))


def batch_sizes(config: RecapConfig) -> dict[str, int]:
    """Return the batch size of every training, by its key."""
    return {
        "sft.batch_size": config.sft.batch_size,
        "value.pretraining.batch_size": config.value.pretraining.batch_size,
        "value.finetuning.batch_size": config.value.finetuning.batch_size,
        "finetuning.training.batch_size": config.finetuning.training.batch_size,
    }


def _save(work: Path, model: PI0Policy | ValueFunction, rows: Sequence[Row]) -> None:
    """Write what was trained and the figures of every step; its snapshots are no longer needed."""
    model.save_pretrained(work)
    (work / "training.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for left in [*work.glob("checkpoint*"), *work.glob(".checkpoint*")]:  # half a one, after a kill
        shutil.rmtree(left) if left.is_dir() else left.unlink()
