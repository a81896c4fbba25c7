"""What the stages of RECAP that train make: SFT, value functions, the policy of a round, and its rivals.

A recipe is all that its artefact depends on, besides the artefacts that it reads; `make` sees nothing else.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool

from pi0 import PI0Policy
from pi0.pretrained import describe, resolve
from pi0.registry import get_config
from pi0.ript.data.frame_set import FrameSet
from pi0.ript.data.normalised import doubts, faults, normalised_dimensions
from pi0.ript.data.records import EpisodeDataError
from pi0.ript.data.statistics import mixture_statistics
from pi0.ript.environments import Environment
from pi0.ript.files import plain, write_json
from pi0.ript.labels.advantages import fill_missing, read_advantages
from pi0.ript.labels.calibration import heldout_calibration, heldout_episodes
from pi0.ript.labels.frames import read_positive
from pi0.ript.labels.mixture import Mixture
from pi0.ript.labels.settings import RewardConfig
from pi0.ript.labels.sources import Source
from pi0.ript.policy_settings import TOY
from pi0.ript.ranges import SAME
from pi0.ript.recap.config import RecapPolicy, ValueModel
from pi0.ript.recap.data import Reading, open_sources, resolved_reward
from pi0.ript.recap.objectives import policy_objective, value_objective
from pi0.ript.recap.stages import Inputs
from pi0.ript.recap.workshop import Workshop
from pi0.ript.starting_policy import make_policy, require_fits, weights_later
from pi0.ript.training.fitted_features import with_widths_of, without_absent_cameras
from pi0.ript.training.objectives import PolicyObjective
from pi0.ript.training.settings import PolicyTraining, ValueTraining
from pi0.ript.training.starting_value import starting_value
from pi0.ript.warm_start import toy_policy
from pi0.value import ValueFunction


@dataclass(frozen=True)
class SupervisedRecipe:
    """The policy fine-tuned on the demonstrations."""

    policy_path: str
    checkpoint: str | None
    """Hash of the files there; None: the name says it all."""
    norm_stats: str | None
    policy: RecapPolicy
    chunk_size: int
    """Actions that a toy predicts at once."""
    sft: PolicyTraining | None
    """None: the checkpoint needs none."""
    advantage: str
    seed: int
    reading: Reading
    environment: Environment = field(metadata=SAME)  # the policy must fit it, no more

    def make(self, inputs: Inputs, work: Path, workshop: Workshop) -> Mapping[str, Any]:
        """Write the policy."""
        sources = open_sources(inputs, self.reading, workshop, mode=self.advantage)
        with weights_later(workshop.world.holds_parts and self.sft is not None):
            policy = self._new_policy([source.frames for source in sources], workshop.device)
        if self.policy_path != TOY:
            _look_at_statistics(policy, [source.frames for source in sources], workshop)
        if self.sft is None:
            workshop.world.on_main(workshop.save, policy, work)
            return {"steps": 0}
        no_advantages = [np.full(source.num_frames, np.nan) for source in sources]
        positive = [np.ones(source.num_frames, bool) for source in sources]
        objective = policy_objective(policy, sources, no_advantages, positive, self.sft)
        return _train_policy(*objective, self.sft, (self.seed, 0), work, workshop)

    def _new_policy(self, sets: Sequence[FrameSet], device: str) -> PI0Policy:
        toy = partial(toy_policy, sets[0], self.chunk_size, self.seed)
        changes, fitted = {"indicator": self.policy.indicator}, {}
        if self.policy.statistics == "data":
            fitted = self._fitted(sets)
        policy = make_policy(self.policy_path, self.policy, toy, self.seed, device, changes=changes, **fitted)
        require_fits(policy.features, self.environment)
        return policy

    def _fitted(self, sets: Sequence[FrameSet]) -> dict[str, Any]:
        """Return the checkpoint's conventions with the widths of the demonstrations, and their statistics."""
        settings, directory = self.policy, resolve(Path(self.policy_path).expanduser())
        named = get_config(settings.config) if settings.config else None
        said = describe(directory, named, None, None, settings.extra_delta_transform, settings.embodiment)
        names = self.reading.data_features_name_mapping
        features = with_widths_of(without_absent_cameras(said.features, [names]), sets[0])
        rows = [np.arange(frames.num_frames) for frames in sets]
        relative, chunk_size = features.relative_actions, said.config.chunk_size
        statistics = mixture_statistics(sets, rows, relative_actions=relative, chunk_size=chunk_size)
        return {"features": features, "statistics": statistics}


@dataclass(frozen=True)
class ValueRecipe:
    """A value function, new or trained further."""

    value: ValueModel
    training: ValueTraining
    reward: RewardConfig
    deadlines: dict[str, int]
    seed: int
    round: int
    reading: Reading

    def make(self, inputs: Inputs, work: Path, workshop: Workshop) -> Mapping[str, Any]:
        """Write the value function, its reward, and how good it is on episodes that it was not trained on."""
        value, world = self._value(inputs, workshop), workshop.world
        sources = open_sources(inputs, self.reading, workshop, deadlines=self.deadlines)
        reward = resolved_reward(self.reward, inputs["demonstrations"], self.deadlines)
        # The same episodes in each round, so that none is judged on what it has seen.
        heldout = [heldout_episodes(s, self.training.validation_fraction, (self.seed,)) for s in sources]
        objective = value_objective(value, sources, reward, heldout)
        rows = workshop.train(*objective, self.training, (self.seed, self.round), work)
        calibration = asdict(heldout_calibration(value, sources, reward, heldout, world))
        world.on_main(write_json, work / "calibration.json", calibration)
        world.on_main(write_json, work / "reward.json", plain(reward))
        return {"calibration": calibration, "loss": rows[-1]["loss"]}

    def _value(self, inputs: Inputs, workshop: Workshop) -> ValueFunction:
        if "start" in inputs:
            return workshop.load_value(inputs["start"], inputs["sft"])
        policy, bins = workshop.load_policy(inputs["sft"]), self.reward.number_of_bins
        return starting_value(policy, self.value.form, self.value.width, bins, self.seed)


@dataclass(frozen=True)
class FineTuningRecipe:
    """The policy of a round: fine-tuned on all data, conditioned on the advantage."""

    training: PolicyTraining
    freeze: str | None
    mode: str
    """How the advantage of demonstrations is used, see `AdvantageMode`."""
    seed: int
    round: int
    reading: Reading
    objective: str = field(default="indicator", metadata={"absent": "indicator"})
    uncond_weight: float | None = field(default=None, metadata={"absent": None})
    """Of the objective ript, see `policy_objective`."""

    def make(self, inputs: Inputs, work: Path, workshop: Workshop) -> Mapping[str, Any]:
        """Write the policy."""
        sources = open_sources(inputs, self.reading, workshop, mode=self.mode)
        labels, advantages = inputs["labels"].path, []
        for source in sources:
            place = labels / source.name
            advantages.append(fill_missing(read_advantages(place, source.frames), "error", place))
        positive = read_positive(labels, sources)
        policy = workshop.load_policy(inputs["start"], to_train=True)
        policy.model.freeze(self.freeze)
        objective = policy_objective(policy, sources, advantages, positive, self.training, self.uncond_weight)
        return _train_policy(*objective, self.training, (self.seed, self.round), work, workshop)


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

    def make(self, inputs: Inputs, work: Path, workshop: Workshop) -> Mapping[str, Any]:
        """Write the policy."""
        sources = open_sources(inputs, self.reading, workshop, mode=self.sft_advantage)
        if self.is_of_successes:
            sources = [replace(s, advantage="use") for s in sources if _is_imitated(s).any()]
        # In mode "use", a frame without advantage is left out.
        advantages = [np.where(_is_imitated(source), 0.0, np.nan) for source in sources]
        positive = [_is_imitated(source) for source in sources]
        policy = workshop.load_policy(inputs["sft"], to_train=True)
        policy.model.freeze(self.freeze)
        objective = policy_objective(policy, sources, advantages, positive, self.training)
        return _train_policy(*objective, self.training, (self.seed, 0), work, workshop)


def _is_imitated(source: Source) -> Bool[np.ndarray, " n"]:
    """Return which frames of a source are of a success, or of a person who corrected."""
    return source.is_success() | source.frames.is_corrected


def _look_at_statistics(policy: PI0Policy, sets: Sequence[FrameSet], workshop: Workshop) -> None:
    """Raise EpisodeDataError if a checkpoint's statistics are those of other values than the data's."""
    rows = [np.arange(frames.num_frames) for frames in sets]
    features, statistics, size = policy.features, policy.statistics, policy.config.chunk_size
    dimensions = normalised_dimensions(features, statistics, sets, rows, chunk_size=size)
    if wrong := faults(dimensions, features, statistics):
        remedy = "take theirs (policy.statistics=data), or a file of pi0-stats (policy.statistics_path=FILE)"
        raise EpisodeDataError("\n".join([*wrong[:-1], f"{wrong[-1]}; {remedy}"]))
    for line in doubts(dimensions, features, statistics):
        workshop.world.print(f"statistics: {line}")


def _train_policy(
    objective: PolicyObjective,
    mixture: Mixture,
    settings: PolicyTraining,
    key: Sequence[int],
    work: Path,
    workshop: Workshop,
) -> Mapping[str, Any]:
    rows = workshop.train(objective, mixture, settings, key, work)
    last = rows[-max(1, len(rows) // 10) :]
    return {"steps": len(rows), "loss": float(np.mean([row["loss"] for row in last]))}
