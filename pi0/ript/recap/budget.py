"""What a RECAP run is going to need: time, memory and disk, before it starts."""

import math
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from pi0.ript.data.frame_set import FrameSet
from pi0.ript.distributed import World
from pi0.ript.environments import get_environment
from pi0.ript.labels.sources import Source
from pi0.ript.policy_settings import TOY
from pi0.ript.recap.config import Demonstrations, RecapConfig, tried_guidances
from pi0.ript.recap.model_budget import model_budget
from pi0.ript.recap.objectives import policy_objective
from pi0.ript.recap.pace import TimeLeft, UnderWay
from pi0.ript.recap.rounds import Run
from pi0.ript.recap.snapshot_plan import SnapshotPlan
from pi0.ript.recap.stages import Kind, StageName
from pi0.ript.recording import rollout_episode
from pi0.ript.rollout import FunctionPolicy, rollout
from pi0.ript.warm_start import toy_policy


class BudgetError(RuntimeError):
    """The disk cannot hold the run."""


@dataclass(frozen=True)
class PlannedWork:
    """Upper bounds: every episode is taken to last until its deadline."""

    recorded: int
    """Episodes with an image at every step."""
    judged: int
    """Episodes of evaluations."""
    steps: int
    """Steps until the deadline of an episode."""
    policy_updates: int
    """Of SFT too."""
    sft_updates: int
    value_updates: int


@dataclass(frozen=True)
class Budget(PlannedWork):
    """The work of a run, and the room that its images take."""

    images_gb: float
    """Size of the decoded images that are trained on at once."""
    disk_gb: float
    """Size of what is recorded, as if it were not compressed."""


@dataclass(frozen=True)
class Rates:
    """Seconds that things take on this machine, in this process."""

    step_with_image: float
    step: float
    update: float


def planned_work(config: RecapConfig) -> PlannedWork:
    """Return what a configuration asks for."""
    environment = get_environment(**asdict(config.task))
    tasks = environment.suite().select(environment.tasks)
    limit = environment.max_steps
    steps = max(task.max_steps if limit is None else limit for task in tasks)
    per_round = config.rollouts.num_states * config.rollouts.per_state
    demonstrations = config.demonstrations.episodes or environment.warm_start_spec(config.seed).episodes
    demonstrated = 0 if _is_given(config.demonstrations) else demonstrations * len(tasks)
    policies = config.rounds + 1 + 2 * config.baselines + config.filtered_rounds
    tried = config.rounds * len(tried_guidances(config)) + 1  # SFT has one guidance
    trainings = config.rounds * (1 + 2 * config.baselines) + config.filtered_rounds
    recorded_rounds = config.rounds + max(config.filtered_rounds - 1, 0)  # the first is shared
    sft = 0 if config.skip_sft else config.sft.steps
    return PlannedWork(
        recorded=demonstrated + recorded_rounds * per_round,
        judged=len(tasks)
        * (config.eval.rollouts_per_task * policies + config.validation.rollouts_per_task * tried),
        steps=steps,
        policy_updates=trainings * config.finetuning.training.steps + sft,
        sft_updates=sft,
        value_updates=config.value.pretraining.steps + config.rounds * config.value.finetuning.steps,
    )


def budget(run: Run) -> Budget:
    """Return what the run's configuration asks for."""
    config, work = run.config, planned_work(run.config)
    task = run.environment.suite().select(run.environment.tasks)[0]
    gb = 3 * len(task.cameras) * task.image_size**2 * work.steps / 1e9
    root = run.demonstrations_root
    sets = run.workshop.open_sets([run.reading.settings(Path(root))]) if root else []
    per_round = config.rollouts.num_states * config.rollouts.per_state
    kept = min(config.rounds, config.rollouts.keep_rounds) * per_round
    demonstrated = work.recorded - (config.rounds + max(config.filtered_rounds - 1, 0)) * per_round
    return Budget(
        **asdict(work),
        images_gb=sum(map(_images_gb, sets)) + gb * (demonstrated + kept),
        disk_gb=gb * work.recorded,
    )


def _is_given(demonstrations: Demonstrations) -> bool:
    return demonstrations.root is not None or demonstrations.repo_id is not None


def _images_gb(frames: FrameSet) -> float:
    """Return how many GB (1e9 bytes) all images of a data set take, decoded."""
    return frames.num_frames * sum(math.prod(column.shape[1:]) for column in frames.images.values()) / 1e9


def print_budget(run: Run) -> None:
    """Print what the run needs, and for a toy how long it will take at the rates measured now.

    How much time is left is told from then on, see `Pace`.

    Raises:
        BudgetError: The disk is too small.
    """
    needs, run_dir = budget(run), run.stages.run_dir
    kept = min(needs.images_gb, run.config.cache_gib * 2**30 / 1e9)
    memory, free = psutil.virtual_memory().available / 1e9, shutil.disk_usage(run_dir).free / 1e9
    disk = free + sum(file.stat().st_size for file in run_dir.rglob("*") if file.is_file()) / 1e9
    print(  # noqa: T201
        f"budget: {needs.recorded} episodes to record and {needs.judged} to judge, of up to {needs.steps} "
        f"steps; {needs.policy_updates} updates of the policy, {needs.value_updates} of the value function\n"
        f"budget: up to {needs.images_gb:.2g} GB of images in use, of which {kept:.2g} GB stay in memory "
        f"once decoded (cache_gib); recordings at most {needs.disk_gb:.2g} GB on disk ({disk:.3g} GB free or "
        "its own)"
    )
    if kept > memory:
        print(f"budget: cache_gib is more than the {memory:.3g} GB of memory available; lower it")  # noqa: T201
    elif needs.images_gb > kept:
        print("budget: the others are decoded again and again: slow, so raise cache_gib if you can")  # noqa: T201
    models = None if run.config.policy_path == TOY else model_budget(run)
    if models is not None:
        print(models)  # noqa: T201
        if models.memory / 1e9 > memory:
            print(f"budget: that is more than the {memory:.3g} GB of memory available")  # noqa: T201
    if needs.disk_gb + (models.kept + models.snapshot if models else 0) / 1e9 > disk:
        raise BudgetError(
            "the disk is too small for this run: lower rollouts.num_states, rollouts.per_state or "
            "task.image_size, or choose another output_dir"
        )
    if run.config.policy_path == TOY and run.stages.recorded_settings(StageName(Kind.POLICY)) is None:
        minutes = _seconds(needs, measure(run)) / 60
        print(f"budget: about {minutes:.0f} minutes, at the speed that this machine has just now")  # noqa: T201
    run.workshop.plan.pace.watch(partial(time_left, run, needs))


def time_left(run: Run, needs: Budget, under_way: UnderWay | None = None) -> TimeLeft:
    """Return how long the rest of the run takes at the speed of the stages that are finished or under way."""
    records = [run.stages.record(name) for name in dict.fromkeys(run.stages.names) if run.stages.has(name)]
    planned = {
        "updates of the policy": needs.policy_updates,
        "updates of the value function": needs.value_updates,
        "episodes to record": needs.recorded,
        "episodes to judge": needs.judged,
    }
    seconds, unknown = 0.0, []
    for kind, total in planned.items():
        units = [(_units(kind, record), record["seconds"]) for record in records]
        done = sum(count for count, _ in units)
        spent = sum(taken for count, taken in units if count)
        if under_way is not None and kind == f"updates of the {under_way.name}":
            done, spent = done + under_way.steps, spent + under_way.steps * under_way.seconds_per_step
        if done:
            seconds += max(0, total - done) * spent / done
        elif total:
            unknown.append(kind)
    return TimeLeft(seconds, tuple(unknown))


def _units(kind: str, record: Mapping[str, Any]) -> int:
    """Return how many units of a kind a stage has made."""
    figures, settings = record["figures"], record["settings"]
    if kind == "updates of the policy":
        return figures.get("steps", 0)
    if kind == "updates of the value function":
        return settings["training"]["steps"] if "calibration" in figures else 0
    if kind == "episodes to judge":
        return figures.get("num_episodes", 0)
    return figures.get("episodes", 0) if "root" not in settings else 0


def measure(run: Run) -> Rates:
    """Return how fast this machine is, from a few seconds of simulation and of training a toy."""
    env, config = run.workshop.simulators(run.config.task), run.config
    task = next(iter(env.tasks))
    states = env.initial_states(task, "train", range(min(env.num_slots, 8)))
    no_motion = np.zeros((env.num_slots, 8, env.tasks[task].action_dim), np.float32)
    idle, seeds = FunctionPolicy(lambda *_: no_motion), list(range(len(states)))
    rollout(env, idle, states[:2], seeds[:2])  # loads the simulators
    start = time.monotonic()
    rollouts = rollout(env, idle, states, seeds, render_every=1)
    with_image = (time.monotonic() - start) / sum(map(len, rollouts))
    start = time.monotonic()
    rollout(env, idle, states, seeds)
    without_image = (time.monotonic() - start) / sum(map(len, rollouts))
    recorded = [rollout_episode(episode, "nobody") for episode in rollouts]
    source = Source("budget", FrameSet.in_memory(recorded, env.tasks[task].hz), "on")
    settings = replace(config.sft, steps=4)
    policy, nothing = toy_policy(source.frames, run.chunk_size, 0), np.zeros(source.num_frames)
    parts = policy_objective(policy, [source], [nothing], [nothing > 0], settings)
    seconds = []
    for _ in range(2):  # the first time is slower
        start = time.monotonic()
        run.workshop.fit(*parts, settings, (0,), SnapshotPlan(), World())
        seconds.append((time.monotonic() - start) / settings.steps)
    return Rates(with_image, without_image, min(seconds))


def _seconds(needs: Budget, rates: Rates) -> float:
    # Inference adds to a simulator's step; a value update takes half of one of the policy.
    return (
        needs.steps * (needs.recorded * rates.step_with_image + needs.judged * rates.step)
        + (needs.policy_updates + 0.5 * needs.value_updates) * rates.update
    )
