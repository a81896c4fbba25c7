"""Slots of one process: which simulation each uses, and the execution of action chunks."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32

from pi0.ript.envs.base import (
    ChunkResult,
    EnvObservation,
    Frame,
    Simulation,
    SimulationDivergedError,
    Task,
    TaskSuite,
)
from pi0.ript.envs.initial_state import InitialState, Split


@dataclass
class _Episode:
    simulation: Simulation
    step: int = 0


class Slots:
    """Runs the episodes of some slots in this process, in the caller's or in a worker's."""

    def __init__(self, suite: TaskSuite, tasks: dict[str, Task]) -> None:
        """Make no simulation yet: each is made when its task is first needed.

        Args:
            suite: Makes the simulations.
            tasks: The tasks that may come, by id, with the deadlines in force.
        """
        self._suite = suite
        self._tasks = tasks
        self._episodes: dict[int, _Episode] = {}
        self._idle: list[Simulation] = []

    def initial_states(self, wanted: list[tuple[str, Split, int]]) -> list[InitialState]:
        """Return the states named by (task id, split, index)."""
        states = []
        for task, split, index in wanted:
            simulation = self._take(task)
            states.append(simulation.initial_state(split, index))
            self._give(simulation)
        return states

    def turn(
        self,
        states: Mapping[int, InitialState],
        chunks: Mapping[int, Float32[np.ndarray, "n a"]],
        render_every: int | None,
    ) -> dict[int, EnvObservation | ChunkResult]:
        """Begin episodes in some slots and execute chunks in others; return what came of each, by slot."""
        moved = {slot: self.step_chunk(slot, chunk, render_every) for slot, chunk in chunks.items()}
        return {**moved, **{slot: self.reset(slot, state) for slot, state in states.items()}}

    def reset(self, slot: int, state: InitialState) -> EnvObservation:
        """Begin an episode in the slot and return its first observation."""
        ended = self._episodes.pop(slot, None)
        if ended is not None:
            self._give(ended.simulation)
        simulation = self._take(state.task)
        simulation.reset(state)
        self._episodes[slot] = _Episode(simulation)
        return simulation.observe()

    def step_chunk(
        self, slot: int, actions: Float32[np.ndarray, "n a"], render_every: int | None
    ) -> ChunkResult:
        """Execute the actions until success or deadline; render only what was asked for."""
        episode = self._episodes[slot]
        simulation, cap = episode.simulation, episode.simulation.task.max_steps
        states, frames, success, executed = [], [], False, 0
        try:
            for action in actions:
                if render_every and executed and executed % render_every == 0:
                    frames.append(Frame(executed, simulation.observe()))
                states.append(simulation.proprioception())
                success = simulation.step(action)
                executed += 1
                episode.step += 1
                if success or episode.step >= cap:
                    break
            observation = simulation.observe()
        except SimulationDivergedError as error:
            return aborted(f"{type(error).__name__}: {error}", episode.step)
        return ChunkResult(
            observation=observation,
            states=np.stack(states),
            executed=executed,
            step=episode.step,
            success=success,
            truncated=episode.step >= cap and not success,
            frames=tuple(frames),
        )

    def close(self) -> None:
        """Close every simulation."""
        for simulation in [*self._idle, *(e.simulation for e in self._episodes.values())]:
            simulation.close()
        self._idle, self._episodes = [], {}

    def _take(self, task: str) -> Simulation:
        for i, simulation in enumerate(self._idle):
            if simulation.task.id == task:
                return self._idle.pop(i)
        return self._suite.make(self._tasks[task])

    def _give(self, simulation: Simulation) -> None:
        """Keep the simulation for its task's next episode, the longest unused one making room."""
        self._idle.append(simulation)
        while len(self._idle) > self._suite.max_idle:
            self._idle.pop(0).close()


def aborted(reason: str, step: int) -> ChunkResult:
    """Return the result of an episode that the infrastructure ended."""
    return ChunkResult(
        observation=None,
        states=np.zeros((0, 0), np.float32),
        executed=0,
        step=step,
        success=False,
        truncated=False,
        aborted=reason,
    )
