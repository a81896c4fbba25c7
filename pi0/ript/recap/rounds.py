"""A run of RECAP, and its stages one by one: what each is made from, as the configuration says."""

import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np

from pi0.ript.checkpoint.files import UNTRAINED
from pi0.ript.data.cache import ImageCache
from pi0.ript.data.hub import locate
from pi0.ript.data.settings import DatasetSettings
from pi0.ript.distributed import World
from pi0.ript.environments import Environment, get_environment
from pi0.ript.files import hash_files
from pi0.ript.labels.calibration import Calibration
from pi0.ript.machines import require_same_files
from pi0.ript.recap.artefacts import (
    LabelsRecipe,
    RecordingRecipe,
    ReferenceRecipe,
    RolloutsRecipe,
    guidance_of,
)
from pi0.ript.recap.config import Demonstrations, RecapConfig, RolloutPlan, ValueModel
from pi0.ript.recap.data import Reading, identify, resolved_reward, source_name
from pi0.ript.recap.gates import LabelFigures, check_gates
from pi0.ript.recap.snapshot_plan import SnapshotPlan
from pi0.ript.recap.stages import Artefact, Kind, StageName, Stages
from pi0.ript.recap.trainings import FineTuningRecipe, RivalRecipe, SupervisedRecipe, ValueRecipe
from pi0.ript.recap.workshop import FitFunction, Workshop

FILTERED = "filtered"
"""The rival that imitates the successes among its own rollouts, in rounds like RECAP's."""


@dataclass(frozen=True)
class Run:
    """A run: what was asked for, what is there, and what the rest is made with."""

    config: RecapConfig
    world: World
    stages: Stages
    environment: Environment
    workshop: Workshop
    demonstrations_root: str | None
    """Where the demonstrations are, if they were made elsewhere."""

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
        settings, ids = self.config.demonstrations, {task.instruction: task.id for task in tasks}
        names = dict(settings.data_features_name_mapping)
        return Reading(self.demonstrations_root, settings.assume_success, ids, names)

    @property
    def chunk_size(self) -> int:
        """Return the actions that a toy predicts at once."""
        return self.config.policy.chunk_size or self.environment.warm_start_spec(self.config.seed).chunk_size

    def make(self, name: StageName, recipe: Any, **inputs: Artefact) -> Artefact:
        """Return what a recipe makes, now or before."""
        num_made = self.stages.num_made
        made = self.stages.run(name, recipe, inputs, partial(type(recipe).make, workshop=self.workshop))
        if self.stages.num_made > num_made:
            self.workshop.plan.pace.after_stage()
        return made

    def close(self) -> None:
        """Stop the simulators; remove what is only there to be fast."""
        self.workshop.close()


def start_run(config: RecapConfig, run_dir: Path, world: World, fit: FitFunction) -> Run:
    """Return the run of a configuration, whose stages are in a directory and whose models `fit` trains.

    Raises:
        ValueError: A batch has not a sample for each process, or the demonstrations are not there.
    """
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
    plan = SnapshotPlan(None, config.save_minutes, config.max_nonfinite_steps)
    cache = ImageCache(config.cache_gib, world)
    device = world.device(config.device)
    workshop = Workshop(world, device, cache, fit, run_dir / UNTRAINED, plan, config.policy)
    stages = Stages(run_dir, world, cast("Any", config.on_stale))
    environment = get_environment(**asdict(config.task))
    environment.check()
    root = world.on_main(_root_of, config.demonstrations)
    require_same_files(world, [root] if root else [])
    world.on_main(shutil.rmtree, run_dir / "images", ignore_errors=True)  # version 0.1.0's, decoded
    return Run(config, world, stages, environment, workshop, root)


# Before the first round -------------------------------------------------------------------------------------


def obtain_demonstrations(run: Run) -> Artefact:
    """Return the data that SFT learns from: recorded here, or a reference to a data set that exists."""
    name, settings = StageName(Kind.DEMONSTRATIONS), run.config.demonstrations
    if run.demonstrations_root is not None:
        recorded = run.stages.recorded_settings(name)
        identity = run.world.on_main(identify, Path(run.demonstrations_root), recorded)
        return run.make(name, ReferenceRecipe(**identity, reading=run.reading))
    spec = run.environment.warm_start_spec(run.config.seed)
    operator, quality = settings.operator or spec.operator, spec.quality | settings.quality.changes()
    plan = replace(spec.demonstrations(), operator=operator, quality=quality)
    return run.make(name, RecordingRecipe(plan, settings.episodes or spec.episodes, settings.num_workers))


def fit_demonstrations(run: Run, demonstrations: Artefact) -> Artefact:
    """Return the policy fine-tuned on the demonstrations (SFT)."""
    config, on_main = run.config, run.world.on_main
    resolved_reward(config.reward, demonstrations, run.deadlines)  # an error comes before anything long
    recipe = SupervisedRecipe(
        policy_path=config.policy_path,
        checkpoint=on_main(_content, config.policy_path),
        norm_stats=on_main(_content, config.policy.statistics_path),
        policy=config.policy,
        chunk_size=run.chunk_size,
        sft=None if config.skip_sft else config.sft,
        advantage=config.demonstrations.sft_advantage,
        seed=config.seed,
        reading=run.reading,
        environment=run.environment,
    )
    return run.make(StageName(Kind.POLICY), recipe, demonstrations=demonstrations)


# A round ----------------------------------------------------------------------------------------------------


def collect(run: Run, number: int, policy: Artefact, rival: str = "") -> Artefact:
    """Return episodes of the policy from training states that no round before has used.

    A rival's rounds begin from the states, and with the noise, of RECAP's.
    """
    settings = run.config.rollouts
    guidance = guidance_of(policy, settings.guidance)
    plan = RolloutPlan(settings.num_states, settings.per_state, settings.pool_size, guidance)
    recipe = RolloutsRecipe(plan, run.config.task, number, run.config.seed)
    return run.make(StageName(Kind.ROLLOUTS, number, rival), recipe, policy=policy)


def fit_value(
    run: Run, sft: Artefact, data: Sequence[Artefact], start: Artefact | None = None, number: int = 0
) -> Artefact:
    """Return a value function of all data: a new one, or in a round one that is trained further."""
    config, form = run.config, ValueModel(run.config.value.form, run.config.value.width)
    training = config.value.finetuning if start else config.value.pretraining
    common = run.deadlines, config.seed, number, run.reading
    models = {"sft": sft, **({"start": start} if start else {})}
    recipe = ValueRecipe(form, training, config.reward, *common)
    return run.make(StageName(Kind.VALUE, number), recipe, **models, **_by_name(data))


def label(run: Run, number: int, sft: Artefact, value: Artefact, data: Sequence[Artefact]) -> Artefact:
    """Return advantages of every frame, and the thresholds that make the share asked for positive."""
    config, mode = run.config, run.config.demonstrations.advantage
    recipe = LabelsRecipe(config.reward, config.advantage, mode, run.deadlines, run.reading)
    return run.make(StageName(Kind.ADVANTAGES, number), recipe, sft=sft, value=value, **_by_name(data))


def require_gates(run: Run, value: Artefact, labels: Artefact, rollouts: Sequence[Artefact]) -> None:
    """Print the figures of values and labels; rollouts of all rounds say whether the policy is improving.

    Raises:
        GateError: One is too bad to train a policy on.
    """
    figures = {key: labels.figures[key] for key in ("coverage", "positive_fraction", "target_fraction")}
    calibration = Calibration.from_dict(value.figures["calibration"])
    success = [r.figures["success"] for r in rollouts]
    is_improving = len(success) > 1 and success[-1] > success[-2]
    gates = run.config.gates
    for line in check_gates(calibration, LabelFigures(**figures), gates, is_improving=is_improving):
        run.world.print(f"  {line}")


def fit_labels(
    run: Run, number: int, start: Artefact, labels: Artefact, data: Sequence[Artefact]
) -> Artefact:
    """Return the policy fine-tuned on all data, conditioned on the advantage."""
    config, mode = run.config, run.config.demonstrations.advantage
    training, freeze = config.finetuning.training, config.policy.freeze
    objective, uncond_weight = config.finetuning.objective, config.finetuning.uncond_weight
    loss = (objective, uncond_weight if objective == "ript" else None)
    recipe = FineTuningRecipe(training, freeze, mode, config.seed, number, run.reading, *loss)
    return run.make(StageName(Kind.POLICY, number), recipe, start=start, labels=labels, **_by_name(data))


def round_metrics(run: Run, number: int) -> dict[str, Any]:
    """Return the figures of a round that a log should have."""
    figures = run.stages.figures()
    rollouts, value, labels, policy, evaluation = (
        figures[str(StageName(kind, number))]
        for kind in (Kind.ROLLOUTS, Kind.VALUE, Kind.ADVANTAGES, Kind.POLICY, Kind.EVALUATION)
    )
    validation = figures.get(str(StageName(Kind.VALIDATION, number)))
    return {
        "rollout/success": rollouts["success"],
        "value/correlation": value["calibration"]["correlation"],
        "value/concordance": (value["calibration"].get("order") or {}).get("concordance"),
        "value/loss": value["loss"],
        "advantage/positive_fraction": labels["positive_fraction"],
        **{f"advantage/positive/{name}": share for name, share in labels["positive_share"].items()},
        "train/loss": policy["loss"],
        "eval/success": evaluation["success_rate"],
        "eval/steps_to_success": evaluation["mean_steps_to_success"],
        **({"validation/success": validation["success_rate"]} if validation else {}),
    }


# After the last round ---------------------------------------------------------------------------------------


def fit_rivals(run: Run, sft: Artefact, data: Sequence[Artefact], first: Artefact) -> dict[str, Artefact]:
    """Return the rivals by name: SFT that goes on with what it has, or what succeeded; filtered imitation.

    Args:
        run: Says which are asked for.
        sft: What all of them start from.
        data: What the last round of RECAP learned from, the demonstrations too.
        first: The rollouts of SFT's policy: every method's first ones.
    """
    config, rivals = run.config, {}
    if config.baselines:
        steps, seed = config.rounds * config.finetuning.training.steps, config.seed
        demonstrations = [artefact for artefact in data if artefact.kind is Kind.DEMONSTRATIONS]
        name = StageName(Kind.POLICY, rival="more-sft")
        rivals["more SFT"] = imitate(run, name, sft, demonstrations, seed, steps=steps)
        name = StageName(Kind.POLICY, rival="successes")
        rivals["SFT on successes"] = imitate(run, name, sft, data, seed, steps=steps, is_of_successes=True)
    policy = sft
    for number in range(1, config.filtered_rounds + 1):
        rollouts = first if number == 1 else collect(run, number, policy, FILTERED)
        policy = imitate_successes(
            run, StageName(Kind.POLICY, number, FILTERED), policy, rollouts, config.seed
        )
        rivals[f"{FILTERED}, round {number}"] = policy
    return rivals


def imitate_successes(
    run: Run, name: StageName, policy: Artefact, rollouts: Artefact, draws: int
) -> Artefact:
    """Return the policy of a round of filtered imitation: trained on all that succeeded among its rollouts.

    If nothing did there is nothing to imitate, and the policy stays. `draws`: seed of the training.
    """
    if not rollouts.figures["success"]:
        return policy
    seed = int(np.random.SeedSequence((draws, name.round)).generate_state(1)[0])
    return imitate(run, name, policy, rollouts, seed, is_of_successes=True)


def imitate(
    run: Run,
    name: StageName,
    policy: Artefact,
    data: Artefact | Sequence[Artefact],
    seed: int,
    *,
    steps: int | None = None,
    is_of_successes: bool = False,
) -> Artefact:
    """Return a policy trained further on data, all of it positive, without value function.

    Args:
        run: Says how it is trained.
        name: Of its stage.
        policy: What it starts from.
        data: A set, or several by their names.
        seed: Of the training.
        steps: How many; None: those of a round.
        is_of_successes: Leave out what failed.
    """
    config = run.config
    training = replace(config.finetuning.training, use_awr=False)
    training = training if steps is None else replace(training, steps=steps)
    mode = config.demonstrations.sft_advantage
    recipe = RivalRecipe(training, config.policy.freeze, mode, seed, is_of_successes, run.reading)
    inputs = {"data": data} if isinstance(data, Artefact) else _by_name(data)
    return run.make(name, recipe, sft=policy, **inputs)


def _by_name(data: Sequence[Artefact]) -> dict[str, Artefact]:
    return {source_name(artefact): artefact for artefact in data}


def _root_of(settings: Demonstrations) -> str | None:
    """Return where the demonstrations are, those of the hub after they were fetched; None: nowhere yet."""
    if settings.root is None and settings.repo_id is None:
        return None
    return str(locate(DatasetSettings(repo_id=settings.repo_id, root=settings.root)).root)


def _content(path: str | None) -> str | None:
    """Return the hash of a local checkpoint or file, None if there is none: the name then says it all."""
    place = Path(path or "").expanduser()
    return hash_files(place) if path and place.exists() else None
