"""What an evaluation of LIBERO's suites takes: told before it begins, and again as it goes on."""

import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import psutil
import torch

from pi0.needs import acting_sizes, sized_model
from pi0.ript.environments import Environment
from pi0.ript.envs import BatchedEnv, EnvObservation, InitialState, Task
from pi0.ript.episode import Chunks, Rollout, with_notes
from pi0.ript.evaluation_checks import described
from pi0.ript.evaluation_settings import EvaluationConfig, trials
from pi0.ript.policy_settings import TOY
from pi0.ript.recording import EpisodeStore
from pi0.ript.rollout import ChunkPolicy, FunctionPolicy, GuidedPolicy
from pi0.ript.starting_policy import require_device

_FIRST_SIMULATOR_GB, _SIMULATOR_GB = 2.0, 0.5  # of a process that simulates, and of each more in it


def deadlines(environment: Environment, config: EvaluationConfig) -> list[int]:
    """Return the deadline of each episode of an evaluation, in steps."""
    tasks = environment.suite().select(environment.tasks)
    return [environment.max_steps or task.max_steps for task in tasks] * config.eval.rollouts_per_task


def plan_lines(config: EvaluationConfig, environments: Mapping[str, Environment]) -> list[str]:
    """Return what is going to be done, by suite, and the memory that it needs; no weights are read."""
    lines, episodes, steps = [], 0, 0
    per_task, first = config.eval.rollouts_per_task, next(iter(environments.values()))
    for name, environment in environments.items():
        tasks = environment.suite().select(environment.tasks)
        deadline = environment.max_steps or tasks[0].max_steps
        lines.append(
            f"plan: {name}: {len(tasks)} tasks x {per_task} episodes of up to {deadline} steps, "
            f"images of {tasks[0].image_size} pixels"
        )
        episodes += len(tasks) * per_task
        steps += sum(deadlines(environment, config))
    count = len(trials(config))
    times = f" with each of {count} policies or guidances" if count > 1 else ""
    lines.append(f"plan: {episodes} episodes of up to {steps} steps{times}, {first.num_slots} at a time")
    return [*lines, _memory_line(config, first)]


def _memory_line(config: EvaluationConfig, environment: Environment) -> str:
    """Return the memory of the policy's weights, as it acts, and about what the simulators take."""
    available = psutil.virtual_memory().available / 1e9
    device = require_device(config.device)
    workers = max(environment.num_workers, 1)
    idle = environment.suite().max_idle
    simulators = (
        workers * _FIRST_SIMULATOR_GB + (environment.num_slots + workers * (idle - 1)) * _SIMULATOR_GB
    )
    weights = 0.0
    if config.policy_path != TOY:
        checkpoint, directory = described(config.policy_path, config)
        model = sized_model(replace(checkpoint.config, **config.policy.changes()), directory)
        weights = sum(acting_sizes(model).values()) / 1e9
    is_gpu = device.type == "cuda"
    needed = simulators + (0 if is_gpu else weights)
    too_much = "" if needed < available else "; that is too little: lower num_parallel_envs, num_workers"
    where = f" on {device} ({torch.cuda.mem_get_info(device)[0] / 1e9:.3g} GB free)" if is_gpu else ""
    return (
        f"plan: memory of a process: weights {weights:.3g} GB{where}, simulators up to about "
        f"{simulators:.2g} GB (num_parallel_envs={environment.num_slots}, num_workers={workers}); "
        f"{available:.3g} GB are available{too_much}"
    )


def memory_in_use() -> str:
    """Return what this process, its workers and its GPU hold now, in words."""
    process = psutil.Process()
    workers = 0
    for child in process.children(recursive=True):
        with suppress(psutil.Error):  # it has ended meanwhile
            workers += child.memory_info().rss
    gpu = f", GPU {torch.cuda.max_memory_allocated() / 1e9:.3g} GB" if torch.cuda.is_available() else ""
    own = process.memory_info().rss
    return f"this process {own / 1e9:.3g} GB, simulating ones {workers / 1e9:.3g} GB{gpu}"


def measured_round(
    env: BatchedEnv, policy: ChunkPolicy, states: Sequence[InitialState]
) -> tuple[float, float]:
    """Return the seconds that a chunk takes in all slots at once: inference, and simulation.

    What is done first is slower and does not count. Episodes that follow do not depend on it.
    """
    chosen = {slot: states[slot % len(states)] for slot in range(env.num_slots)}
    observations = env.reset(chosen)
    seconds = (0.0, 0.0)
    for _ in range(2):
        start = time.monotonic()
        chunks = [_inferred(env, policy, half, chosen, observations) for half in env.halves]
        between = time.monotonic()
        still = np.zeros_like(chunks[0][0])  # whatever the policy does now, the robot stays where it is
        results = env.step_chunk({slot: still for slot in chosen})  # noqa: C420 - fromkeys has no type
        seconds = (between - start, time.monotonic() - between)
        if any(result.done for result in results.values()):
            break
    return seconds


def _inferred(
    env: BatchedEnv,
    policy: ChunkPolicy,
    half: range,
    chosen: Mapping[int, InitialState],
    observations: Mapping[int, EnvObservation],
) -> np.ndarray:
    """Return the policy's chunks for one half of the slots, at the batch that rollouts have."""
    slots = [*half, *half][: len(env.halves[0])]
    chunks = policy.chunks(
        [observations[slot] for slot in slots],
        [env.tasks[chosen[slot].task] for slot in slots],
        [torch.Generator().manual_seed(slot) for slot in slots],
        env.tasks.values(),
    )
    return with_notes(chunks).actions


@dataclass
class EvaluationPace:
    """How fast a process gets on, and what that says of the time that is left."""

    left: dict[str, list[int]]
    """Deadlines of its unfinished episodes, by evaluation."""
    say: Callable[[str], None]
    _rounds: list[float] = field(default_factory=list)
    """Seconds between two inferences, each of which is for one half of the slots."""
    _round_seconds: float = 0.0
    """Of a chunk in all slots."""
    _chunk: int = 1
    _num_slots: int = 1
    _num_halves: int = 1
    _steps: int = 0
    _most_steps: int = 0
    _finished: int = 0

    def begin(
        self, name: str, env: BatchedEnv, acting: GuidedPolicy, missing: Sequence[InitialState]
    ) -> None:
        """Begin an evaluation's missing episodes; before the very first ones, measure and say the plan."""
        self.left[name] = [env.tasks[state.task].max_steps for state in missing]
        executed = acting.policy.config.n_action_steps
        self._chunk, self._num_slots, self._num_halves = executed, env.num_slots, len(env.halves)
        if self._round_seconds:
            return
        inference, simulation = measured_round(env, acting, missing)
        self._round_seconds = inference + simulation
        most = _duration(self._hours()[1])
        self.say(
            f"plan: at most about {most}: {executed} actions in {env.num_slots} episodes take "
            f"{inference:.2g} s of inference and {simulation:.2g} s of simulation here; {memory_in_use()}"
        )

    def finish(self, name: str, what: str) -> None:
        """Say how an evaluation ended, and how long the others take, if there are any."""
        self.left[name] = []
        self.say(f"{what}{self._remaining()}" if any(self.left.values()) else what)

    def timed(self, policy: ChunkPolicy) -> ChunkPolicy:
        """Return the policy; from its second action on, the time between two is taken."""
        last: list[float] = []

        def chunks(
            observations: Any, tasks: Sequence[Task], generators: Any, among: Collection[Task]
        ) -> Chunks:
            now = time.monotonic()
            if last:
                self._rounds.append(now - last.pop())
            last.append(now)
            return policy.chunks(observations, tasks, generators, among)

        return FunctionPolicy(chunks)

    def noting(self, store: EpisodeStore, name: str) -> EpisodeStore:
        """Return the store; episodes of an evaluation that are added to it count as finished."""
        return _NotingStore(store, partial(self._note, name))

    def _note(self, name: str, episode: Rollout) -> None:
        left = self.left[name]  # of this process's share; it may get an episode more than that, or fewer
        if episode.task.max_steps in left:
            left.remove(episode.task.max_steps)
        self._steps += len(episode)
        self._most_steps += episode.task.max_steps
        self._finished += 1
        if self._finished == self._num_slots:
            self.say(f"after {self._finished} episodes{self._remaining()}; {memory_in_use()}")

    def _remaining(self) -> str:
        if self._rounds:
            self._round_seconds = self._num_halves * sum(self._rounds) / len(self._rounds)
        likely, most = self._hours()
        left = f"about {_duration(likely)} left, at most about {_duration(most)}"
        return f"; {left}" if self._round_seconds else ""

    def _hours(self) -> tuple[float, float]:
        """Return the hours left if episodes last as long as those so far, and if all reach the deadline."""
        rounds = 0.0
        for chunks in ([math.ceil(steps / self._chunk) for steps in left] for left in self.left.values()):
            longest = max(chunks, default=0)  # at the end slots are idle while it lasts
            rounds += (sum(chunks) + longest * (self._num_slots - 1)) / self._num_slots
        most = rounds * self._round_seconds / 3600
        return most * (self._steps / self._most_steps if self._most_steps else 1.0), most


def _duration(hours: float) -> str:
    return f"{hours:.1f} h" if hours >= 1 else f"{60 * hours:.1f} min"


class _NotingStore:
    def __init__(self, store: EpisodeStore, note: Callable[[Rollout], None]) -> None:
        self._store, self._note = store, note

    @property
    def needs_images(self) -> bool:
        return self._store.needs_images

    def has(self, state: InitialState, seed: int) -> bool:
        return self._store.has(state, seed)

    def read(self, task: Task, state: InitialState, seed: int, with_images: bool) -> Rollout | None:
        return self._store.read(task, state, seed, with_images)

    def write(self, episode: Rollout) -> None:
        self._store.write(episode)
        self._note(episode)
