"""The stages of RECAP: what each of them makes, and from what (pi*0.6: SFT, then rounds of offline RL).

Axes: n frame of a set.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Float64

from pi0 import PI0Policy
from pi0.ript.checkpoint.journal import EpisodeJournal
from pi0.ript.distributed import World
from pi0.ript.environments import Environment, get_environment
from pi0.ript.envs import BatchedEnv, InitialState, require_disjoint
from pi0.ript.episodes import CollectionInfo, EpisodeSet, EpisodeWriter
from pi0.ript.evaluate import Evaluation, evaluate
from pi0.ript.groups import InitialStateDataset, heldout_states, state_at
from pi0.ript.recap.advantages import compute_advantages, read_advantages
from pi0.ript.recap.config import RecapConfig
from pi0.ript.recap.data import DATASET, is_success, open_source, record_demonstrations, refer
from pi0.ript.recap.gates import LabelFigures, check_gates
from pi0.ript.recap.labels import LabelledSource, write_labels
from pi0.ript.recap.policy_training import PolicyTraining, train_policy
from pi0.ript.recap.recording import journaled_rollout, record_rollouts
from pi0.ript.recap.returns import RewardConfig
from pi0.ript.recap.sources import Source
from pi0.ript.recap.stages import Artefact, Stages, hash_files, plain
from pi0.ript.recap.training_steps import Row
from pi0.ript.recap.value_training import Calibration, ValueTraining, predict, train_value
from pi0.ript.results import write_evaluation
from pi0.ript.rollout import GuidedPolicy
from pi0.ript.starting_policy import TOY, starting_policy
from pi0.ript.warm_start import toy_policy
from pi0.value import ValueFunction
from pi0.value_config import expert_value_config, separate_value_config

_STATE_STREAM, _NOISE_STREAM = 1, 2
_CHECKPOINT = "checkpoint.pt"


class Recap:
    """The stages of one run; each method returns an artefact, made now or found."""

    def __init__(self, config: RecapConfig, run_dir: Path, world: World | None = None) -> None:
        self.config, self.world = config, world or World()
        self.stages = Stages(run_dir, self.world, cast("Any", config.on_stale))
        self.environment: Environment = get_environment(**asdict(config.task))

    @cached_property
    def env(self) -> BatchedEnv:
        """The simulators, started when a stage first needs them."""
        return self.environment.make()

    def close(self) -> None:
        """Stop the simulators."""
        if "env" in self.__dict__:
            self.env.close()

    # Supervised ---------------------------------------------------------------------------------------------

    def demonstrations(self) -> Artefact:
        """Return the data that SFT learns from: recorded here, or a reference to a data set that exists."""
        settings = self.config.demonstrations
        if settings.root is not None:
            root = Path(settings.root).expanduser()
            described = {"root": str(root), "meta": hash_files(root / "meta")}
            make = partial(refer, root)
            return self.stages.run("demonstrations", make, settings=described, inputs={})
        spec = self.environment.warm_start_spec(self.config.seed)
        plan = replace(
            spec.demonstrations(),
            operator=settings.operator or spec.operator,
            quality=spec.quality | settings.quality.given(),
        )
        episodes = settings.episodes or spec.episodes
        described = {"plan": asdict(plan), "episodes": episodes}
        make = partial(record_demonstrations, plan, episodes, settings.num_workers, self.world)
        return self.stages.run("demonstrations", make, settings=described, inputs={})

    def supervised(self, demonstrations: Artefact) -> Artefact:
        """Return the policy fine-tuned on the demonstrations."""
        config = self.config

        def make(work: Path) -> Mapping[str, Any]:
            data = self._source("demonstrations", demonstrations, config.demonstrations.sft_advantage)
            policy = self._untrained(data.episodes)
            if config.skip_sft:
                self.world.on_main(policy.save_pretrained, work)
                return {"steps": 0}
            return self._train_policy(
                work, policy, [data], [np.full(data.num_frames, np.nan)], {}, config.sft, 0
            )

        settings = {
            "policy_path": config.policy_path,
            "policy": plain(config.policy),
            "sft": None if config.skip_sft else plain(config.sft),
            "advantage": config.demonstrations.sft_advantage,
            "seed": config.seed,
        }
        return self.stages.run("sft", make, settings=settings, inputs={"demonstrations": demonstrations})

    def pretrained_value(self, sft: Artefact, demonstrations: Artefact) -> Artefact:
        """Return a value function of the demonstrations."""
        return self._value("value", sft, None, {"demonstrations": demonstrations}, 0)

    # A round ------------------------------------------------------------------------------------------------

    def rollouts(self, number: int, policy: Artefact) -> Artefact:
        """Return episodes of the policy from training states that no round before has used."""
        config = self.config

        def make(work: Path) -> Mapping[str, Any]:
            if not (work / DATASET).exists():
                self._record(work, number, policy)
            labels = open_source("rollouts", work, "use").episodes.labels
            return {"episodes": len(labels), "success": float(np.mean([one.success for one in labels]))}

        described = {
            "rollouts": plain(config.rollouts) | {"keep_rounds": None, "guidance": self._guidance(policy)},
            "task": plain(config.task) | {"num_workers": None},
            "round": number,
            "seed": config.seed,
        }
        return self.stages.run(
            f"round-{number}/rollouts", make, settings=described, inputs={"policy": policy}
        )

    def value(self, number: int, sft: Artefact, start: Artefact, data: Mapping[str, Artefact]) -> Artefact:
        """Return the value function fine-tuned on all data: by name, "demonstrations" and rollouts."""
        return self._value(f"round-{number}/value", sft, start, data, number)

    def advantages(
        self, number: int, sft: Artefact, value: Artefact, data: Mapping[str, Artefact]
    ) -> Artefact:
        """Return advantages of every frame, and the thresholds that make the share asked for positive."""
        config = self.config

        def make(work: Path) -> Mapping[str, Any]:
            sources = self._sources(data)
            reward = self._reward(data["demonstrations"])
            function = self._load_value(value, sft)
            labelled = []
            for source in sources:
                values = predict(function, source.episodes, peers=self.world)
                lengths = source.episodes.lengths.tolist()
                advantages = compute_advantages(values, lengths, source.ends, reward)
                is_ranked = source.name != "demonstrations" or config.advantage.ranked == "all"
                labelled.append(LabelledSource(source, values, advantages, is_ranked))
            made_from = {"value": value.hash}
            return self.world.on_main(write_labels, work, labelled, reward, config.advantage, made_from)

        settings = {
            "reward": plain(config.reward),
            "advantage": plain(config.advantage),
            "mode": config.demonstrations.advantage,
            "deadlines": self.deadlines(),
        }
        inputs = {"sft": sft, "value": value, **data}
        return self.stages.run(f"round-{number}/advantages", make, settings=settings, inputs=inputs)

    def require_gates(self, value: Artefact, labels: Artefact) -> None:
        """Print the figures of values and labels.

        Raises:
            GateError: One is too bad to train a policy on.
        """
        figures = {key: labels.figures[key] for key in ("coverage", "positive_fraction", "target_fraction")}
        found = Calibration(**value.figures["calibration"])
        for line in check_gates(found, LabelFigures(**figures), self.config.gates):
            self.world.print(f"  {line}")

    def policy(
        self, number: int, start: Artefact, labels: Artefact, data: Mapping[str, Artefact]
    ) -> Artefact:
        """Return the policy fine-tuned on all data, conditioned on the advantage."""
        training = self.config.finetuning.training

        def make(work: Path) -> Mapping[str, Any]:
            sources = self._sources(data)
            advantages = [read_advantages(labels.path / s.name, s.episodes) for s in sources]
            epsilon = json.loads((labels.path / "thresholds.json").read_text())
            policy = self._load_policy(start, trains=True)
            return self._train_policy(work, policy, sources, advantages, epsilon, training, number)

        settings = {
            "training": plain(training),
            "freeze": self.config.policy.freeze,
            "mode": self.config.demonstrations.advantage,
            "seed": self.config.seed,
        }
        inputs = {"start": start, "labels": labels, **data}
        return self.stages.run(f"round-{number}/policy", make, settings=settings, inputs=inputs)

    # Judging ------------------------------------------------------------------------------------------------

    def evaluation(self, name: str, policy: Artefact) -> Evaluation:
        """Return how the policy does on held-out states; the artefact of that name has the videos."""
        settings = self.config.eval

        def make(work: Path) -> Mapping[str, Any]:
            pool = InitialStateDataset(self.env, self.config.rollouts.pool_size)
            states = heldout_states(self.env, settings.first_state, settings.rollouts_per_task, train=pool)
            found = evaluate(
                self.env,
                GuidedPolicy(self._load_policy(policy), self._guidance(policy, settings.cfg_guidance_scale)),
                states,
                num_recorded=settings.n_video,
                peers=self.world,
                run=journaled_rollout(EpisodeJournal(work / "episodes")),
            )
            self.world.on_main(_write_evaluation, work, found)
            return {key: v for key, v in found.to_dict().items() if key not in ("episodes", "tasks")}

        described = {
            "eval": plain(settings),
            "task": plain(self.config.task) | {"num_workers": None},
            "pool_size": self.config.rollouts.pool_size,
        }
        made = self.stages.run(name, make, settings=described, inputs={"policy": policy})
        return Evaluation.from_dict(json.loads((made.path / "evaluation.json").read_text()))

    def metrics(self, number: int) -> dict[str, Any]:
        """Return the figures of a round that a log should have."""
        prefix = f"round-{number}"
        found = self.stages.figures()
        calibration = found[f"{prefix}/value"]["calibration"]
        labels, judged = found[f"{prefix}/advantages"], found[f"{prefix}/evaluation"]
        return {
            "rollout/success": found[f"{prefix}/rollouts"]["success"],
            "value/correlation": calibration["correlation"],
            "value/separation": calibration["separation"],
            "value/loss": found[f"{prefix}/value"]["loss"],
            "advantage/positive_fraction": labels["positive_fraction"],
            **{f"advantage/positive/{name}": share for name, share in labels["positive_share"].items()},
            "train/loss": found[f"{prefix}/policy"]["loss"],
            "eval/success": judged["success_rate"],
            "eval/steps_to_success": judged["mean_steps_to_success"],
        }

    def publish(self, policy: Artefact) -> Path:
        """Copy a policy to the run's directory, in place of what was there, and return where it is."""
        path = self.stages.run_dir / "policy"
        partial_copy = path.with_suffix(".partial")
        shutil.rmtree(partial_copy, ignore_errors=True)
        shutil.copytree(policy.path, partial_copy)
        shutil.rmtree(path, ignore_errors=True)
        partial_copy.rename(path)
        print(f"the improved policy: {path}")  # noqa: T201
        return path

    def more_supervised(self, sft: Artefact, demonstrations: Artefact) -> Artefact:
        """Return the honest rival: as many more SFT steps on the demonstrations as all rounds take."""
        steps = self.config.rounds * self.config.finetuning.training.steps
        data = {"demonstrations": demonstrations}
        return self._baseline("baseline-more-sft/policy", sft, data, steps)

    def successes_only(self, sft: Artefact, data: Mapping[str, Artefact]) -> Artefact:
        """Return the other rival: SFT on the demonstrations and on the successes of the rollouts."""
        steps = self.config.rounds * self.config.finetuning.training.steps
        return self._baseline("baseline-successes/policy", sft, data, steps)

    def _baseline(self, name: str, sft: Artefact, data: Mapping[str, Artefact], steps: int) -> Artefact:
        training = replace(self.config.finetuning.training, steps=steps, use_awr=False)

        def make(work: Path) -> Mapping[str, Any]:
            sources = [replace(s, advantage="use") for s in self._sources(data) if is_success(s).any()]
            # A success is better than any threshold; a failure has no advantage, and is left out.
            labels = [np.where(is_success(source), np.inf, np.nan) for source in sources]
            epsilon = dict.fromkeys({task for source in sources for task in source.frame_tasks()}, 0.0)
            policy = self._load_policy(sft, trains=True)
            return self._train_policy(work, policy, sources, labels, epsilon, training, 0)

        settings = {
            "training": plain(training),
            "freeze": self.config.policy.freeze,
            "seed": self.config.seed,
        }
        return self.stages.run(name, make, settings=settings, inputs={"sft": sft, **data})

    # Parts --------------------------------------------------------------------------------------------------

    def _value(
        self, name: str, sft: Artefact, start: Artefact | None, data: Mapping[str, Artefact], number: int
    ) -> Artefact:
        config, value = self.config, self.config.value
        training = value.finetuning if start else value.pretraining

        def make(work: Path) -> Mapping[str, Any]:
            function = self._load_value(start, sft) if start else self._new_value(sft)
            return self._train_value(work, function, data, training, number)

        settings = {
            "value": {"form": value.form, "width": value.width},
            "training": plain(training),
            "reward": plain(config.reward),
            "deadlines": self.deadlines(),
            "seed": config.seed,
        }
        inputs = {"sft": sft, **({"start": start} if start else {}), **data}
        return self.stages.run(name, make, settings=settings, inputs=inputs)

    def _train_value(
        self,
        work: Path,
        value: ValueFunction,
        data: Mapping[str, Artefact],
        training: ValueTraining,
        number: int,
    ) -> Mapping[str, Any]:
        rows: list[Row] = []
        reward = self._reward(data["demonstrations"])
        found = train_value(
            value,
            self._sources(data),
            reward,
            training,
            (self.config.seed, number),
            log=rows.append,
            checkpoint=work / _CHECKPOINT,
            world=self.world,
        )
        self.world.on_main(_save, work, value, rows)
        for name, values in (("calibration", found.to_dict()), ("reward", plain(reward))):
            self.world.on_main((work / f"{name}.json").write_text, json.dumps(values, indent=2) + "\n")
        return {"calibration": found.to_dict(), "loss": rows[-1]["loss"]}

    def _train_policy(
        self,
        work: Path,
        policy: PI0Policy,
        sources: Sequence[Source],
        advantages: Sequence[Float64[np.ndarray, " _"]],
        epsilon: Mapping[str, float],
        training: PolicyTraining,
        number: int,
    ) -> Mapping[str, Any]:
        rows: list[Row] = []
        train_policy(
            policy,
            sources,
            advantages,
            epsilon,
            training,
            (self.config.seed, number),
            log=rows.append,
            checkpoint=work / _CHECKPOINT,
            world=self.world,
        )
        self.world.on_main(_save, work, policy, rows)
        last = rows[-max(1, len(rows) // 10) :]
        return {"steps": len(rows), "loss": float(np.mean([row["loss"] for row in last]))}

    def _untrained(self, episodes: EpisodeSet) -> PI0Policy:
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

    def _load_policy(self, artefact: Artefact, trains: bool = False) -> PI0Policy:
        policy = PI0Policy.from_pretrained(artefact.path, device=self.world.device(self.config.device))
        if trains:
            policy.model.freeze(self.config.policy.freeze)
        return policy

    def _new_value(self, sft: Artefact) -> ValueFunction:
        policy, settings = self._load_policy(sft), self.config.value
        bins = {"num_bins": self.config.reward.number_of_bins}
        if settings.form == "expert":
            sizes = expert_value_config(policy, settings.width, **bins)
        else:
            sizes = separate_value_config(policy, **bins)
        return ValueFunction(sizes, policy, seed=self.config.seed).to(policy.device)

    def _load_value(self, artefact: Artefact, sft: Artefact) -> ValueFunction:
        policy = self._load_policy(sft)
        return ValueFunction.from_pretrained(artefact.path, policy).to(policy.device)

    def _guidance(self, policy: Artefact, guidance: float | None = None) -> float:
        """Return the guidance of a policy; SFT and its rivals know no negative, so there is none for them."""
        if not policy.stage.startswith("round-"):
            return 1.0
        return self.config.rollouts.guidance if guidance is None else guidance

    def _record(self, work: Path, number: int, policy: Artefact) -> None:
        """Write the data set of a round's rollouts."""
        config, tasks = self.config, self.env.tasks
        states = [s for s in self._states_of_round(number) for _ in range(config.rollouts.per_state)]
        sequence = np.random.SeedSequence((config.seed, _NOISE_STREAM, number))
        seeds = [int(x) for x in sequence.generate_state(len(states))]
        origin = {"policy": policy.hash, "guidance": self._guidance(policy), "round": number}
        rate = next(iter(tasks.values())).hz
        info = CollectionInfo(rate, self.environment.name, "image", origin)
        writer = self.world.first(EpisodeWriter, work / DATASET, info)
        guided = GuidedPolicy(self._load_policy(policy), self._guidance(policy))
        record_rollouts(self.env, guided, states, seeds, writer, f"policy:{policy.hash[:16]}", self.world)
        self.world.gather([])
        self.world.on_main(writer.finalize)

    def _states_of_round(self, number: int) -> list[InitialState]:
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

    def _sources(self, data: Mapping[str, Artefact]) -> list[Source]:
        mode = self.config.demonstrations.advantage
        return [self._source(n, a, mode if n == "demonstrations" else "use") for n, a in data.items()]

    def _source(self, name: str, artefact: Artefact, advantage: str) -> Source:
        if name == "demonstrations":
            return open_source(name, artefact.path, advantage, self.config.demonstrations.assume_success)
        return open_source(name, artefact.path, advantage, deadlines=self.deadlines())

    def chunk_size(self) -> int:
        """Return the actions that a toy predicts at once."""
        return self.config.policy.chunk_size or self.environment.warm_start_spec(self.config.seed).chunk_size

    def deadlines(self) -> dict[str, int]:
        """Return the policy steps after which an episode of a task has failed."""
        tasks = self.environment.suite().select(self.environment.tasks)
        limit = self.environment.max_steps
        return {task.id: task.max_steps if limit is None else limit for task in tasks}

    def _reward(self, demonstrations: Artefact) -> RewardConfig:
        """Return the reward with a normaliser that fits all episodes of the run."""
        longest = demonstrations.figures["longest"]
        return self.config.reward.resolve(max([longest, *self.deadlines().values()]))


def _save(work: Path, model: PI0Policy | ValueFunction, rows: Sequence[Row]) -> None:
    """Write what was trained and the figures of every step; the state of the training is no longer needed."""
    model.save_pretrained(work)
    (work / "training.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (work / _CHECKPOINT).unlink(missing_ok=True)


def _write_evaluation(work: Path, evaluation: Evaluation) -> None:
    write_evaluation(work / "evaluation", evaluation)
    shutil.rmtree(work / "episodes")
