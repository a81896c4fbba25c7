"""A run of RECAP, and its stages one by one: what each is made from, as the configuration says.

A stage that trains is described, and `train` makes it with the script's `fit`. All others are made at once.
"""

import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

from pi0.ript.distributed import World
from pi0.ript.environments import Environment, get_environment
from pi0.ript.envs import BatchedEnv
from pi0.ript.evaluate import Evaluation
from pi0.ript.files import hash_files
from pi0.ript.labels.calibration import Calibration
from pi0.ript.recap.artefacts import (
    EvaluationRecipe,
    LabelsRecipe,
    RecordingRecipe,
    ReferenceRecipe,
    RolloutsRecipe,
    guidance_of,
    read_evaluation,
)
from pi0.ript.recap.config import RecapConfig, RolloutPlan, ValueForm
from pi0.ript.recap.data import Reading, resolved_reward, source_name
from pi0.ript.recap.gates import LabelFigures, check_gates
from pi0.ript.recap.stages import Artefact, Inputs, Kind, Stage, StageName, Stages
from pi0.ript.recap.trainings import (
    FineTuningRecipe,
    FitFunction,
    RivalRecipe,
    SupervisedRecipe,
    ValueRecipe,
    trained,
)
from pi0.ript.recap.workshop import Workshop


@dataclass(frozen=True)
class Run:
    """A run."""

    config: RecapConfig
    world: World
    stages: Stages
    environment: Environment
    workshop: Workshop

    @property
    def env(self) -> BatchedEnv:
        """Return the simulators."""
        return self.workshop.simulators(self.config.task)

    @property
    def deadlines(self) -> dict[str, int]:
        """Return the policy steps after which an episode of a task has failed."""
        tasks = self.environment.suite().select(self.environment.tasks)
        limit = self.environment.max_steps
        return {task.id: task.max_steps if limit is None else limit for task in tasks}

    @property
    def reading(self) -> Reading:
        """Return how the demonstrations are read."""
        tasks = self.environment.suite().select(self.environment.tasks)
        ids = {task.instruction: task.id for task in tasks}
        return Reading(self.config.demonstrations.assume_success, ids)

    @property
    def chunk_size(self) -> int:
        """Return the actions that a toy predicts at once."""
        return self.config.policy.chunk_size or self.environment.warm_start_spec(self.config.seed).chunk_size

    def close(self) -> None:
        """Stop the simulators; remove what is only there to be fast."""
        self.workshop.close()


def open_run(config: RecapConfig, run_dir: Path, world: World | None = None) -> Run:
    """Return the run of a configuration, whose stages are in a directory.

    Raises:
        ValueError: A batch has not a sample for each process.
    """
    world = world or World()
    _require_batches(config, world)
    limits = config.save_minutes, config.max_nonfinite_steps
    workshop = Workshop(world, world.device(config.device), run_dir / "images", *limits)
    stages = Stages(run_dir, world, cast("Any", config.on_stale))
    return Run(config, world, stages, get_environment(**asdict(config.task)), workshop)


def train(run: Run, fit: FitFunction, stage: Stage[Any]) -> Artefact:
    """Return the model of a stage: trained by `fit` now, or found."""
    return run.stages.run(stage, partial(trained, fit=fit, workshop=run.workshop))


def _make(run: Run, kind: Kind, recipe: Any, inputs: Inputs, number: int = 0, rival: str = "") -> Artefact:
    stage = Stage(StageName(kind, number, rival), recipe, inputs)
    return run.stages.run(stage, partial(type(recipe).make, workshop=run.workshop))


# Before the first round -------------------------------------------------------------------------------------


def demonstrate(run: Run) -> Artefact:
    """Return the data that SFT learns from: recorded here, or a reference to a data set that exists."""
    settings = run.config.demonstrations
    if settings.root is not None:
        root = Path(settings.root).expanduser()
        reference = ReferenceRecipe(str(root), run.world.on_main(hash_files, root))
        return _make(run, Kind.DEMONSTRATIONS, reference, {})
    spec = run.environment.warm_start_spec(run.config.seed)
    operator, quality = settings.operator or spec.operator, spec.quality | settings.quality.given()
    plan = replace(spec.demonstrations(), operator=operator, quality=quality)
    recording = RecordingRecipe(plan, settings.episodes or spec.episodes, settings.num_workers)
    return _make(run, Kind.DEMONSTRATIONS, recording, {})


def supervised_policy(run: Run, demonstrations: Artefact) -> Stage[SupervisedRecipe]:
    """Return SFT: the policy learns from the demonstrations."""
    config = run.config
    resolved_reward(config.reward, demonstrations, run.deadlines)  # an error comes before anything long
    recipe = SupervisedRecipe(
        config.policy_path,
        run.world.on_main(_content, config.policy_path),
        run.world.on_main(_content, config.policy.norm_stats_path),
        config.policy,
        run.chunk_size,
        None if config.skip_sft else config.sft,
        config.demonstrations.sft_advantage,
        config.seed,
        run.reading,
        run.environment,
    )
    return Stage(StageName(Kind.POLICY), recipe, {"demonstrations": demonstrations})


# A round ----------------------------------------------------------------------------------------------------


def collect(run: Run, number: int, policy: Artefact) -> Artefact:
    """Return episodes of the policy from training states that no round before has used."""
    wanted = run.config.rollouts
    guidance = guidance_of(policy, wanted.guidance)
    plan = RolloutPlan(wanted.num_states, wanted.per_state, wanted.pool_size, guidance)
    recipe = RolloutsRecipe(plan, run.config.task, number, run.config.seed)
    return _make(run, Kind.ROLLOUTS, recipe, {"policy": policy}, number)


def value_function(
    run: Run, sft: Artefact, data: Sequence[Artefact], start: Artefact | None = None, number: int = 0
) -> Stage[ValueRecipe]:
    """Return a value function of all data: a new one, or in a round one that is trained further."""
    config, form = run.config, ValueForm(run.config.value.form, run.config.value.width)
    training = config.value.finetuning if start else config.value.pretraining
    reward, seed = config.reward, config.seed
    recipe = ValueRecipe(form, training, reward, run.deadlines, seed, number, run.reading)
    models = {"sft": sft, **({"start": start} if start else {})}
    return Stage(StageName(Kind.VALUE, number), recipe, models | _by_name(data))


def label(run: Run, number: int, sft: Artefact, value: Artefact, data: Sequence[Artefact]) -> Artefact:
    """Return advantages of every frame, and the thresholds that make the share asked for positive."""
    config, mode = run.config, run.config.demonstrations.advantage
    recipe = LabelsRecipe(config.reward, config.advantage, mode, run.deadlines, run.reading)
    return _make(run, Kind.ADVANTAGES, recipe, {"sft": sft, "value": value, **_by_name(data)}, number)


def require_gates(run: Run, value: Artefact, labels: Artefact) -> None:
    """Print the figures of values and labels.

    Raises:
        GateError: One is too bad to train a policy on.
    """
    figures = {key: labels.figures[key] for key in ("coverage", "positive_fraction", "target_fraction")}
    calibration = Calibration(**value.figures["calibration"])
    for line in check_gates(calibration, LabelFigures(**figures), run.config.gates):
        run.world.print(f"  {line}")


def improved_policy(
    run: Run, number: int, start: Artefact, labels: Artefact, data: Sequence[Artefact]
) -> Stage[FineTuningRecipe]:
    """Return the policy fine-tuned on all data, conditioned on the advantage."""
    config, mode = run.config, run.config.demonstrations.advantage
    training, freeze = config.finetuning.training, config.policy.freeze
    recipe = FineTuningRecipe(training, freeze, mode, config.seed, number, run.reading)
    return Stage(StageName(Kind.POLICY, number), recipe, {"start": start, "labels": labels, **_by_name(data)})


def judge(run: Run, policy: Artefact) -> Evaluation:
    """Return how the policy does on held-out states; the stage beside its own has the videos."""
    recipe = EvaluationRecipe(run.config.eval, run.config.task, run.config.rollouts.pool_size)
    number, rival = policy.stage.round, policy.stage.rival
    return read_evaluation(_make(run, Kind.EVALUATION, recipe, {"policy": policy}, number, rival))


def round_metrics(run: Run, number: int) -> dict[str, Any]:
    """Return the figures of a round that a log should have."""
    figures = run.stages.figures()
    rollouts, value, labels, policy, evaluation = (
        figures[str(StageName(kind, number))]
        for kind in (Kind.ROLLOUTS, Kind.VALUE, Kind.ADVANTAGES, Kind.POLICY, Kind.EVALUATION)
    )
    return {
        "rollout/success": rollouts["success"],
        "value/correlation": value["calibration"]["correlation"],
        "value/separation": value["calibration"]["separation"],
        "value/loss": value["loss"],
        "advantage/positive_fraction": labels["positive_fraction"],
        **{f"advantage/positive/{name}": share for name, share in labels["positive_share"].items()},
        "train/loss": policy["loss"],
        "eval/success": evaluation["success_rate"],
        "eval/steps_to_success": evaluation["mean_steps_to_success"],
    }


# After the last round ---------------------------------------------------------------------------------------


def publish_policy(run: Run, policy: Artefact) -> None:
    """Copy a policy to the run's directory, in place of what was there."""
    path = run.stages.run_dir / "policy"
    partial_copy = path.with_suffix(".partial")
    shutil.rmtree(partial_copy, ignore_errors=True)
    shutil.copytree(policy.path, partial_copy)
    shutil.rmtree(path, ignore_errors=True)
    partial_copy.rename(path)
    print(f"the improved policy: {path}")  # noqa: T201


def rivals(run: Run, sft: Artefact, data: Sequence[Artefact]) -> dict[str, Stage[RivalRecipe]]:
    """Return the honest rivals by name: SFT that goes on with what it has, and on all that succeeded."""
    config, training = run.config, run.config.finetuning.training
    training = replace(training, steps=config.rounds * training.steps, use_awr=False)
    freeze, mode = config.policy.freeze, config.demonstrations.sft_advantage

    def stage(rival: str, learned_from: Sequence[Artefact], is_of_successes: bool) -> Stage[RivalRecipe]:
        recipe = RivalRecipe(training, freeze, mode, config.seed, is_of_successes, run.reading)
        return Stage(StageName(Kind.POLICY, rival=rival), recipe, {"sft": sft, **_by_name(learned_from)})

    demonstrations = [artefact for artefact in data if artefact.kind is Kind.DEMONSTRATIONS]
    return {
        "more SFT": stage("more-sft", demonstrations, False),
        "SFT on successes": stage("successes", data, True),
    }


def _by_name(data: Sequence[Artefact]) -> dict[str, Artefact]:
    return {source_name(artefact): artefact for artefact in data}


def _content(path: str | None) -> str | None:
    """Return the hash of a local checkpoint or file, None if there is none: the name then says it all."""
    place = None if path is None else Path(path).expanduser()
    return hash_files(place) if place is not None and place.exists() else None


def _require_batches(config: RecapConfig, world: World) -> None:
    sizes = {
        "sft.batch_size": config.sft.batch_size,
        "value.pretraining.batch_size": config.value.pretraining.batch_size,
        "value.finetuning.batch_size": config.value.finetuning.batch_size,
        "finetuning.training.batch_size": config.finetuning.training.batch_size,
    }
    for key, size in sizes.items():
        if size < world.size:
            raise ValueError(
                f"{key}: expected a sample or more for each of {world.size} processes, found {size}"
            )
