"""What the stages of RECAP that train make: SFT, value functions, the policy of a round, and its rivals.

A recipe is all that its artefact depends on, besides the artefacts that it reads. It is prepared to what the
script's `fit` needs; `trained` calls that and keeps the model.
"""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch

from pi0 import PI0Policy
from pi0.ript.distributed import World
from pi0.ript.environments import Environment
from pi0.ript.episodes import EpisodeSet
from pi0.ript.files import plain, write_json
from pi0.ript.labels.advantages import fill_missing, read_advantages
from pi0.ript.labels.calibration import heldout_calibration, heldout_episodes
from pi0.ript.labels.frames import THRESHOLDS_FILE, read_thresholds
from pi0.ript.labels.returns import RewardConfig
from pi0.ript.labels.sources import Mixture
from pi0.ript.recap.config import RecapPolicy, ValueForm
from pi0.ript.recap.data import Reading, is_success, open_sources, resolved_reward
from pi0.ript.recap.keeping import Keeping, Training
from pi0.ript.recap.objectives import policy_objective, value_objective
from pi0.ript.recap.stages import Inputs
from pi0.ript.recap.workshop import Workshop
from pi0.ript.starting_policy import TOY, starting_policy
from pi0.ript.training.objectives import Model, Objective
from pi0.ript.training.settings import PolicyTraining, ValueTraining
from pi0.ript.training.steps import Row
from pi0.ript.warm_start import toy_policy
from pi0.value import ValueFunction
from pi0.value_config import expert_value_config, separate_value_config

FitFunction = Callable[[Objective, Mixture, Training, Sequence[int], Keeping, World], list[Row]]
"""Trains the objective's model on windows of a mixture, and returns the figures of every step: the script's
`fit`. The numbers are the key of everything random."""


_FORMER_SNAPSHOT = "checkpoint.pt"


@dataclass(frozen=True)
class Prepared:
    """What is trained, on what, and how."""

    objective: Objective
    mixture: Mixture
    settings: Training | None
    """None: the model stays as it is."""
    key: tuple[int, ...]
    """Of everything random."""
    finish: Callable[[Sequence[Row], Path], Mapping[str, Any]]
    """Judges the trained model, given the figures of every step; may write to a directory; returns figures of
    the stage."""


@runtime_checkable
class TrainingRecipe(Protocol):
    """All that a stage depends on that trains, besides what it reads."""

    def prepare(self, inputs: Inputs, workshop: Workshop) -> Prepared:
        """Return what is to be trained."""
        ...


def trained(
    recipe: TrainingRecipe, inputs: Inputs, work: Path, *, fit: FitFunction, workshop: Workshop
) -> Mapping[str, Any]:
    """Train in a stage's directory, write the model there, and return figures."""
    prepared, rows, world = recipe.prepare(inputs, workshop), [], workshop.world
    model = prepared.objective.model
    if (work / _FORMER_SNAPSHOT).exists():
        world.print(f"{work / _FORMER_SNAPSHOT} is of version 0.1.0: this training begins anew")
    if prepared.settings is not None:
        parts = prepared.objective, prepared.mixture, prepared.settings, prepared.key
        rows = fit(*parts, workshop.keeping(work), world)
    world.on_main(_save, work, model, rows)
    return prepared.finish(rows, work)


def _save(work: Path, model: Model, rows: Sequence[Row]) -> None:
    """Write what was trained and the figures of every step; its snapshots are no longer needed."""
    model.save_pretrained(work)
    if rows:
        (work / "training.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for left in [*work.glob("checkpoint*"), *work.glob(".checkpoint*")]:  # half a one, after a kill
        shutil.rmtree(left) if left.is_dir() else left.unlink()


def _policy_figures(rows: Sequence[Row], work: Path) -> Mapping[str, Any]:
    last = [row["loss"] for row in rows[-max(1, len(rows) // 10) :]]
    return {"steps": len(rows), **({"loss": float(np.mean(last))} if last else {})}


@dataclass(frozen=True)
class SupervisedRecipe:
    """The policy fine-tuned on the demonstrations."""

    policy_path: str
    checkpoint: str | None
    """Hash of the files there; None: the name says it all."""
    norm_stats: str | None
    policy: RecapPolicy
    chunk_size: int
    """Of a toy."""
    sft: PolicyTraining | None
    """None: the checkpoint needs none."""
    advantage: str
    seed: int
    reading: Reading
    environment: Environment = field(metadata={"result": "same"})  # the policy must fit it, no more

    def prepare(self, inputs: Inputs, workshop: Workshop) -> Prepared:
        """Return the training of a new policy."""
        sources = open_sources(inputs, self.reading, workshop, mode=self.advantage)
        policy, settings = self._new_policy(sources[0].episodes, workshop), self.sft or PolicyTraining()
        nothing = [np.full(source.num_frames, np.nan) for source in sources]
        parts = policy_objective(policy, sources, nothing, {}, settings)
        return Prepared(*parts, self.sft, (self.seed, 0), _policy_figures)

    def _new_policy(self, episodes: EpisodeSet, workshop: Workshop) -> PI0Policy:
        options = asdict(self.policy)
        indicator, _ = options.pop("indicator"), options.pop("chunk_size")
        if self.policy_path != TOY:
            return starting_policy(
                self.policy_path,
                self.environment,
                "",
                self.seed,
                workshop.device,
                indicator=indicator,
                **options,
            )
        policy = toy_policy(episodes, self.chunk_size, self.seed, indicator)
        policy.model.freeze(self.policy.freeze)
        return policy.to(torch.device(workshop.device))


@dataclass(frozen=True)
class ValueRecipe:
    """A value function, new or trained further."""

    value: ValueForm
    training: ValueTraining
    reward: RewardConfig
    deadlines: dict[str, int]
    seed: int
    round: int
    reading: Reading

    def prepare(self, inputs: Inputs, workshop: Workshop) -> Prepared:
        """Return the training on the frames of all data, but those of held-out episodes."""
        value = self._value(inputs, workshop)
        sources = open_sources(inputs, self.reading, workshop, deadlines=self.deadlines)
        reward = resolved_reward(self.reward, inputs["demonstrations"], self.deadlines)
        # The same episodes in each round, so that none is judged on what it has seen.
        heldout = [heldout_episodes(s, self.training.validation_fraction, (self.seed,)) for s in sources]
        parts = value_objective(value, sources, reward, heldout)

        def finish(rows: Sequence[Row], work: Path) -> Mapping[str, Any]:
            calibration = heldout_calibration(value, sources, reward, heldout, workshop.world).to_dict()
            workshop.world.on_main(write_json, work / "calibration.json", calibration)
            workshop.world.on_main(write_json, work / "reward.json", plain(reward))
            return {"calibration": calibration, "loss": rows[-1]["loss"]}

        return Prepared(*parts, self.training, (self.seed, self.round), finish)

    def _value(self, inputs: Inputs, workshop: Workshop) -> ValueFunction:
        if "start" in inputs:
            return workshop.load_value(inputs["start"], inputs["sft"])
        policy, bins = workshop.load_policy(inputs["sft"]), {"num_bins": self.reward.number_of_bins}
        if self.value.form == "expert":
            sizes = expert_value_config(policy, self.value.width, **bins)
        else:
            sizes = separate_value_config(policy, **bins)
        return ValueFunction(sizes, policy, seed=self.seed).to(policy.device)


@dataclass(frozen=True)
class FineTuningRecipe:
    """The policy of a round: fine-tuned on all data, conditioned on the advantage."""

    training: PolicyTraining
    freeze: str | None
    mode: str
    """Of demonstrations."""
    seed: int
    round: int
    reading: Reading

    def prepare(self, inputs: Inputs, workshop: Workshop) -> Prepared:
        """Return the training with the labels of the round."""
        sources = open_sources(inputs, self.reading, workshop, mode=self.mode)
        labels = {source.name: inputs["labels"].path / source.name for source in sources}
        advantages = [
            fill_missing(read_advantages(labels[s.name], s.episodes), "error", labels[s.name])
            for s in sources
        ]
        epsilon = read_thresholds(inputs["labels"].path / THRESHOLDS_FILE)
        policy = workshop.load_policy(inputs["start"])
        policy.model.freeze(self.freeze)
        parts = policy_objective(policy, sources, advantages, epsilon, self.training)
        return Prepared(*parts, self.training, (self.seed, self.round), _policy_figures)


@dataclass(frozen=True)
class RivalRecipe:
    """A policy to compare with: SFT goes on, for as many steps as all rounds take together."""

    training: PolicyTraining
    freeze: str | None
    sft_advantage: str
    seed: int
    is_of_successes: bool
    """Whether it learns from nothing but episodes that succeeded."""
    reading: Reading

    def prepare(self, inputs: Inputs, workshop: Workshop) -> Prepared:
        """Return the training of the SFT policy on the data among the inputs."""
        sources = open_sources(inputs, self.reading, workshop, mode=self.sft_advantage)
        if self.is_of_successes:
            sources = [replace(s, advantage="use") for s in sources if is_success(s).any()]
        # In mode "use", a success is better than any threshold; a failure has no advantage: it is left out.
        advantages = [np.where(is_success(source), np.inf, np.nan) for source in sources]
        epsilon = dict.fromkeys({task for source in sources for task in source.frame_tasks()}, 0.0)
        policy = workshop.load_policy(inputs["sft"])
        policy.model.freeze(self.freeze)
        parts = policy_objective(policy, sources, advantages, epsilon, self.training)
        return Prepared(*parts, self.training, (self.seed, 0), _policy_figures)
