"""Records demonstrations in one process: an operator and an expert in one simulation."""

import zlib
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from pi0.ript.data.records import CollectionInfo, Episode, EpisodeLabels
from pi0.ript.data.writer import EpisodeWriter
from pi0.ript.demonstrations.expert import Expert
from pi0.ript.demonstrations.experts import make_expert
from pi0.ript.demonstrations.operators import Demonstrator, Operator, get_operator
from pi0.ript.envs import (
    InitialState,
    InitialStateError,
    Simulation,
    SimulationDivergedError,
    Task,
    make_suite,
)
from pi0.ript.envs.batched import VALIDATION_FIRST

HELDOUT_CHECKED = 50
"""Held-out states per task that a demonstration is compared with by hash."""

_ATTEMPTS_PER_TASK = 1_000_000


@dataclass(frozen=True)
class DemonstrationPlan:
    """What is demonstrated and by whom; one plan gives one data set. Plain JSON values."""

    env: str
    tasks: tuple[str, ...]
    operator: str = "competent"
    quality: dict[str, float] = field(default_factory=dict)
    """Fields of the operator that differ from the one of that name (`noise`, `misled` ...)."""
    seed: int = 0
    storage: str = "image"
    options: dict[str, Any] = field(default_factory=dict)
    """Options of the environment (`image_size`, `suite` ...)."""

    def selected(self) -> tuple[Task, ...]:
        """Return the tasks; loads no simulator."""
        return make_suite(self.env, **self.options).select(self.tasks)

    def resolved_operator(self) -> Operator:
        """Return the operator with the plan's changes."""
        return replace(get_operator(self.operator), **self.quality)

    def info(self) -> CollectionInfo:
        """Return what the data set says about its making."""
        task = self.selected()[0]
        return CollectionInfo(
            fps=task.hz,
            robot_type=task.robot,
            storage=self.storage,
            origin={
                "env": self.env,
                "options": self.options,
                "tasks": list(self.tasks),
                "operator": asdict(self.resolved_operator()),
                "seed": self.seed,
            },
        )


def episode_number(task_number: int, attempt: int) -> int:
    """Return the number under which an attempt at a task is stored."""
    return task_number * _ATTEMPTS_PER_TASK + attempt


def attempt_of(number: int) -> tuple[int, int]:
    """Return task number and attempt of a stored episode."""
    return divmod(number, _ATTEMPTS_PER_TASK)


class Recorder:
    """Runs attempts in this process and stores each as an episode."""

    def __init__(self, plan: DemonstrationPlan, writer: EpisodeWriter) -> None:
        self._plan, self._writer = plan, writer
        self._suite = make_suite(plan.env, **plan.options)
        self._tasks = self._suite.select(plan.tasks)
        self._operator = plan.resolved_operator()
        self._simulation: Simulation | None = None
        self._heldout: set[str] = set()

    def record(self, task_number: int, attempt: int) -> tuple[EpisodeLabels, int]:
        """Run and store one attempt; return its labels and length.

        A function of plan, task and attempt: neither of the process nor of earlier attempts.
        """
        task = self._tasks[task_number]
        simulation = self._simulation_of(task)
        state = simulation.initial_state("train", initial_state_index(self._plan.seed, attempt))
        if state.hash in self._heldout:
            raise InitialStateError(
                f"{task.id}: training state {state.index} ({state.hash[:16]}) is also a held-out "
                "state; a demonstration of it would spoil the evaluation"
            )
        seed = attempt_seed(self._plan.seed, task, attempt)
        episode = demonstrate(simulation, make_expert(task), self._operator, state, seed)
        self._writer.add(episode_number(task_number, attempt), episode)
        return episode.labels, len(episode)

    def close(self) -> None:
        """Free the simulation."""
        if self._simulation is not None:
            self._simulation.close()
        self._simulation = None

    def _simulation_of(self, task: Task) -> Simulation:
        if self._simulation is None or self._simulation.task != task:
            self.close()
            self._simulation = self._suite.make(task)
            states = (self._simulation.initial_state("heldout", i) for i in range(HELDOUT_CHECKED))
            self._heldout = {state.hash for state in states}
        return self._simulation


def demonstrate(
    simulation: Simulation, expert: Expert, operator: Operator, state: InitialState, seed: int
) -> Episode:
    """Return one episode from the initial state, ended by success or by the operator's patience.

    Args:
        simulation: A simulation of the state's task.
        expert: A new expert, for this episode.
        operator: How well the expert's intentions are carried out.
        state: Where the episode begins.
        seed: The seed of the operator's random generator.
    """
    demonstrator = Demonstrator(operator, expert, np.random.default_rng(seed))
    simulation.reset(state)
    images: dict[str, list[np.ndarray]] = {camera: [] for camera in simulation.task.cameras}
    states, actions, success = [], [], False
    for _ in range(round(simulation.task.max_steps * operator.patience)):
        observation = simulation.observe()
        for camera, frames in images.items():
            frames.append(observation.images[camera])
        states.append(observation.state)
        actions.append(demonstrator.act(expert.read(simulation)))
        try:
            success = simulation.step(actions[-1])
        except SimulationDivergedError:
            break  # whatever the operator did to get there, it was no success
        if success:
            break
    return Episode(
        images={camera: np.stack(frames) for camera, frames in images.items()},
        states=np.stack(states),
        actions=np.stack(actions),
        labels=EpisodeLabels(
            instruction=simulation.task.instruction,
            success=success,
            task_id=simulation.task.id,
            initial_state_hash=state.hash,
            source=f"operator:{operator.name}",
            seed=seed,
        ),
    )


def initial_state_index(seed: int, attempt: int) -> int:
    """Return which training state an attempt starts from: none twice in a data set, none of validation."""
    return (seed * 10_007 + attempt) % VALIDATION_FIRST


def attempt_seed(seed: int, task: Task, attempt: int) -> int:
    """Return the seed of an attempt's operator, different for every task and attempt."""
    sequence = np.random.SeedSequence([seed, zlib.crc32(task.id.encode()), attempt])
    return int(sequence.generate_state(1, np.uint64)[0] >> np.uint64(1))
