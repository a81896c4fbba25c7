"""What the stages of RECAP that train nothing make: demonstrations, rollouts, labels, evaluations.

A recipe is all that its artefact depends on, besides the artefacts that it reads; `make` sees nothing else.
"""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64

from pi0.ript.checkpoint.journal import EpisodeJournal
from pi0.ript.config.schema import EnvironmentSettings, Eval
from pi0.ript.data.reader import open_set
from pi0.ript.data.settings import DatasetSettings
from pi0.ript.demonstrations import DemonstrationPlan
from pi0.ript.envs import BatchedEnv, InitialState
from pi0.ript.envs.initial_state import Split
from pi0.ript.evaluate import Evaluation, joined
from pi0.ript.groups import InitialStateDataset, state_at, states_outside
from pi0.ript.kept_evaluation import evaluate_once
from pi0.ript.labels.calibration import predict
from pi0.ript.labels.labelling import label_frames, write_labelled_frames, write_labels
from pi0.ript.labels.settings import Advantage, RewardConfig
from pi0.ript.labels.sources import Source
from pi0.ript.ranges import SAME
from pi0.ript.recap.config import RolloutPlan
from pi0.ript.recap.data import (
    Reading,
    is_published,
    open_sources,
    record_demonstrations,
    refer,
    resolved_reward,
)
from pi0.ript.recap.stages import DATASET, Artefact, Inputs, recorded
from pi0.ript.recap.workshop import Workshop
from pi0.ript.recording import DatasetStore, record_rollouts, rollouts_writer
from pi0.ript.results import write_evaluation
from pi0.ript.rollout import GuidedPolicy

_STATE_STREAM, _NOISE_STREAM = 1, 2


@dataclass(frozen=True)
class ReferenceRecipe:
    """Demonstrations that were made elsewhere."""

    root: str
    hash: str | None = None
    meta: str | None = None
    """A hash as version 0.1.0 had it, and so had `data`."""
    data: str | None = None
    reading: Reading = field(kw_only=True, metadata=SAME)

    def make(self, inputs: Inputs, work: Path, workshop: Workshop) -> Mapping[str, Any]:
        """Write where they are."""
        (frames,) = workshop.open_sets([self.reading.settings(work)])
        return workshop.world.on_main(refer, recorded(self), frames, work)


@dataclass(frozen=True)
class RecordingRecipe:
    """Demonstrations by a scripted operator."""

    plan: DemonstrationPlan
    episodes: int
    num_workers: int = field(metadata=SAME)

    def make(self, inputs: Inputs, work: Path, workshop: Workshop) -> Mapping[str, Any]:
        """Record a data set."""
        return record_demonstrations(self.plan, self.episodes, self.num_workers, workshop.world, work)


@dataclass(frozen=True)
class RolloutsRecipe:
    """What a policy does from training states that no round before has used."""

    rollouts: RolloutPlan
    task: EnvironmentSettings
    round: int
    seed: int

    def make(self, inputs: Inputs, work: Path, workshop: Workshop) -> Mapping[str, Any]:
        """Record a data set."""
        if not workshop.world.on_main(is_published, work / DATASET):
            self._record(work / DATASET, inputs["policy"], workshop)
        successes = open_set(DatasetSettings(root=str(work / DATASET)), cameras=()).successes()
        return {"episodes": len(successes), "success": float(np.mean(successes))}

    def _record(self, directory: Path, policy: Artefact, workshop: Workshop) -> None:
        env, world, guidance = workshop.simulators(self.task), workshop.world, self.rollouts.guidance
        states = round_states(env, self.rollouts.pool_size, self.rollouts.num_states, self.round, self.seed)
        states = [state for state in states for _ in range(self.rollouts.per_state)]
        sequence = np.random.SeedSequence((self.seed, _NOISE_STREAM, self.round))
        seeds = [int(x) for x in sequence.generate_state(len(states))]
        origin = {"policy": policy.hash, "guidance": guidance, "round": self.round}
        writer = world.first(rollouts_writer, directory, env, origin)
        store = DatasetStore(writer, states, seeds, f"policy:{policy.hash[:16]}")
        guided = GuidedPolicy(workshop.load_policy(policy), guidance)
        record_rollouts(env, guided, states, seeds, store, world)
        world.on_main(writer.finalize)


def round_states(env: BatchedEnv, pool_size: int, count: int, number: int, seed: int) -> list[InitialState]:
    """Return the training states of a round, so many of a pool of some per task; no other round has them."""
    pool = InitialStateDataset(env, pool_size)
    key = int(np.random.SeedSequence((seed, _STATE_STREAM)).generate_state(1)[0])
    return [pool[state_at(place, len(pool), key)] for place in range((number - 1) * count, number * count)]


@dataclass(frozen=True)
class LabelsRecipe:
    """Advantages of every frame, and the thresholds that make the share asked for positive."""

    reward: RewardConfig
    advantage: Advantage
    mode: str
    """How the advantage of demonstrations is used, see `AdvantageMode`."""
    deadlines: dict[str, int]
    reading: Reading

    def make(self, inputs: Inputs, work: Path, workshop: Workshop) -> Mapping[str, Any]:
        """Write the labels of each source, and every figure of every frame."""
        world = workshop.world
        options = {"mode": self.mode, "deadlines": self.deadlines}
        sources = open_sources(inputs, self.reading, workshop, **options)
        values = self.values(inputs, sources, workshop)
        reward = resolved_reward(self.reward, inputs["demonstrations"], self.deadlines)
        labels = label_frames(sources, values, reward, self.advantage)
        world.print(labels)
        world.on_main(write_labels, labels, [work / source.name for source in sources], inputs["value"].hash)
        world.on_main(write_labelled_frames, labels, work)
        return labels.figures()

    def values(
        self, inputs: Inputs, sources: Sequence[Source], workshop: Workshop
    ) -> list[Float64[np.ndarray, " _"]]:
        """Return the value of every frame of each source."""
        function = workshop.load_value(inputs["value"], inputs["sft"])
        return [predict(function, source.frames, peers=workshop.world) for source in sources]


@dataclass(frozen=True)
class EvaluationRecipe:
    """How a policy does on states that are not trained on."""

    eval: Eval
    task: EnvironmentSettings
    pool_size: int
    """How many training states there are per task; none of them may be among the states of the evaluation."""
    states: Split = field(default="heldout", metadata={"absent": "heldout"})
    """heldout, or validation."""
    guidance: dict[str, float] | None = field(default=None, metadata={"absent": None})
    """By task, where tasks have different ones; None: that of `eval` for all."""

    def make(self, inputs: Inputs, work: Path, workshop: Workshop) -> Mapping[str, Any]:
        """Write the evaluation and its videos."""
        env, policy, settings = workshop.simulators(self.task), inputs["policy"], self.eval
        pool, model = InitialStateDataset(env, self.pool_size), workshop.load_policy(policy)
        states = states_outside(pool, env, self.states, settings.first_state, settings.rollouts_per_task)
        groups = [(guidance_of(policy, settings.cfg_guidance_scale), states)]
        if self.guidance is not None:
            groups = [(g, [s for s in states if s.task == task]) for task, g in self.guidance.items()]
        parts = [
            evaluate_once(
                env,
                GuidedPolicy(model, guidance),
                group,
                0,
                EpisodeJournal(work / "episodes"),
                num_recorded=settings.n_video,
                peers=workshop.world,
            )
            for guidance, group in groups
        ]
        evaluation = joined(parts)
        workshop.world.on_main(_write_evaluation, work, evaluation)
        figures = evaluation.to_dict()
        return {key: value for key, value in figures.items() if key not in ("episodes", "tasks")}


def guidance_of(policy: Artefact, guidance: float) -> float:
    """Return the guidance of a policy, of which SFT and its rivals have none: they know no negative."""
    return guidance if policy.round and not policy.stage.rival else 1.0


def _write_evaluation(work: Path, evaluation: Evaluation) -> None:
    write_evaluation(work / "evaluation", evaluation)
    shutil.rmtree(work / "episodes")
