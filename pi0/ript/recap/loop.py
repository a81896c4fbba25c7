"""The stages of RECAP: what each of them makes, and from what (pi*0.6: SFT, then rounds of offline RL).

Axes: n frame of a set.
"""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pi0.ript.checkpoint.journal import EpisodeJournal
from pi0.ript.episodes import load_labels
from pi0.ript.evaluate import Evaluation
from pi0.ript.files import hash_files, plain, read_versioned_json
from pi0.ript.groups import InitialStateDataset, heldout_states
from pi0.ript.kept_evaluation import evaluate_once
from pi0.ript.labels.advantages import compute_advantages, read_advantages
from pi0.ript.labels.calibration import Calibration, predict
from pi0.ript.labels.labelling import LabelledSource, write_labels
from pi0.ript.labels.sources import Source
from pi0.ript.recap.data import identify, is_published, is_success, record_demonstrations, refer
from pi0.ript.recap.gates import LabelFigures, check_gates
from pi0.ript.recap.parts import RunParts
from pi0.ript.recap.stages import DATASET, Artefact
from pi0.ript.results import write_evaluation
from pi0.ript.rollout import GuidedPolicy


class Recap(RunParts):
    """The stages of one run; each method returns an artefact, made now or found."""

    # Supervised ---------------------------------------------------------------------------------------------

    def demonstrations(self) -> Artefact:
        """Return the data that SFT learns from: recorded here, or a reference to a data set that exists."""
        settings = self.config.demonstrations
        if settings.root is not None:
            root = Path(settings.root).expanduser()
            described = self.world.on_main(identify, root, self.stages.recorded_settings("demonstrations"))

            def refer_to(work: Path) -> Mapping[str, Any]:
                return self.world.on_main(refer, described, work)

            return self.stages.run("demonstrations", refer_to, settings=described, inputs={})
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
        self.reward(demonstrations)  # a normaliser that is too small is found before anything long

        def make(work: Path) -> Mapping[str, Any]:
            data = self.source("demonstrations", demonstrations, config.demonstrations.sft_advantage)
            policy = self.new_policy(data.episodes)
            if config.skip_sft:
                self.world.on_main(policy.save_pretrained, work)
                return {"steps": 0}
            return self.train_policy(
                work, policy, [data], [np.full(data.num_frames, np.nan)], {}, config.sft, 0
            )

        settings = {
            "policy_path": config.policy_path,
            "checkpoint": self.world.on_main(_content, config.policy_path),
            "norm_stats": self.world.on_main(_content, config.policy.norm_stats_path),
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
            if not self.world.on_main(is_published, work / DATASET):
                self.record(work, number, policy)
            labels = load_labels(work / DATASET).labels
            return {"episodes": len(labels), "success": float(np.mean([one.success for one in labels]))}

        described = {
            "rollouts": plain(config.rollouts) | {"keep_rounds": None, "guidance": self.guidance(policy)},
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
            sources = self.sources(data)
            reward = self.reward(data["demonstrations"])
            function = self.load_value(value, sft)
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
            sources = self.sources(data)
            advantages = [read_advantages(labels.path / s.name, s.episodes) for s in sources]
            epsilon = json.loads((labels.path / "thresholds.json").read_text())
            policy = self.load_policy(start, trains=True)
            return self.train_policy(work, policy, sources, advantages, epsilon, training, number)

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
            found = evaluate_once(
                self.env,
                GuidedPolicy(self.load_policy(policy), self.guidance(policy, settings.cfg_guidance_scale)),
                states,
                0,
                EpisodeJournal(work / "episodes"),
                num_recorded=settings.n_video,
                peers=self.world,
            )
            self.world.on_main(_write_evaluation, work, found)
            return {key: v for key, v in found.to_dict().items() if key not in ("episodes", "tasks")}

        described = {
            "eval": plain(settings),
            "task": plain(self.config.task) | {"num_workers": None},
            "pool_size": self.config.rollouts.pool_size,
        }
        made = self.stages.run(name, make, settings=described, inputs={"policy": policy})
        return Evaluation.from_dict(read_versioned_json(made.path / "evaluation.json"))

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
        """Return the honest rival: as many more steps of SFT as all rounds take together."""
        mode = self.config.demonstrations.sft_advantage

        def sources() -> list[Source]:
            return [self.source("demonstrations", demonstrations, mode)]

        return self._rival("baseline-more-sft/policy", sft, {"demonstrations": demonstrations}, sources)

    def successes_only(self, sft: Artefact, data: Mapping[str, Artefact]) -> Artefact:
        """Return the other rival: SFT on the successes among the demonstrations and the rollouts."""

        def sources() -> list[Source]:
            return [replace(s, advantage="use") for s in self.sources(data) if is_success(s).any()]

        return self._rival("baseline-successes/policy", sft, data, sources)

    def _rival(
        self, name: str, sft: Artefact, data: Mapping[str, Artefact], sources: Callable[[], list[Source]]
    ) -> Artefact:
        steps = self.config.rounds * self.config.finetuning.training.steps
        training = replace(self.config.finetuning.training, steps=steps, use_awr=False)

        def make(work: Path) -> Mapping[str, Any]:
            made = sources()
            # In "use", a success is better than any threshold; a failure has no advantage: it is left out.
            labels = [np.where(is_success(source), np.inf, np.nan) for source in made]
            epsilon = dict.fromkeys({task for source in made for task in source.frame_tasks()}, 0.0)
            policy = self.load_policy(sft, trains=True)
            return self.train_policy(work, policy, made, labels, epsilon, training, 0)

        settings = {
            "training": plain(training),
            "freeze": self.config.policy.freeze,
            "sft_advantage": self.config.demonstrations.sft_advantage,
            "seed": self.config.seed,
        }
        return self.stages.run(name, make, settings=settings, inputs={"sft": sft, **data})

    def _value(
        self, name: str, sft: Artefact, start: Artefact | None, data: Mapping[str, Artefact], number: int
    ) -> Artefact:
        config, value = self.config, self.config.value
        training = value.finetuning if start else value.pretraining

        def make(work: Path) -> Mapping[str, Any]:
            function = self.load_value(start, sft) if start else self.new_value(sft)
            return self.train_value(work, function, data, training, number)

        settings = {
            "value": {"form": value.form, "width": value.width},
            "training": plain(training),
            "reward": plain(config.reward),
            "deadlines": self.deadlines(),
            "seed": config.seed,
        }
        inputs = {"sft": sft, **({"start": start} if start else {}), **data}
        return self.stages.run(name, make, settings=settings, inputs=inputs)


def _content(path: str | None) -> str | None:
    """Return the hash of a local checkpoint or file, None if there is none: the name then says it all."""
    place = None if path is None else Path(path).expanduser()
    return hash_files(place) if place is not None and place.exists() else None


def _write_evaluation(work: Path, evaluation: Evaluation) -> None:
    write_evaluation(work / "evaluation", evaluation)
    shutil.rmtree(work / "episodes")
