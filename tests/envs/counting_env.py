"""An environment that counts, and whose worker dies, hangs or raises on command."""

import os
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pi0.ript.envs import InitialState, Simulation, SimulationDivergedError, Task, TaskSuite

DIE, HANG, RAISE, DIVERGE, SLOW = 99.0, 98.0, 97.0, 96.0, 95.0
SLOW_S = 1.0


@dataclass(frozen=True)
class CountingSuite(TaskSuite):
    """Two tasks; the count starts at the state and every action adds to it; success at 10."""

    max_idle = 1
    dies_in: str = ""
    """While this path exists, restoring a state kills the process; a file is deleted first."""

    def tasks(self):
        return tuple(
            Task("counting", name, f"count {name}", 6, 10.0, 2, 3, ("front",), 2) for name in ("up", "down")
        )

    def make(self, task):
        return CountingSimulation(task, self.dies_in)


class CountingSimulation(Simulation):
    def __init__(self, task, dies_in):
        super().__init__(task)
        self.count, self.steps, self.renders, self._dies_in = 0.0, 0, 0, dies_in

    @property
    def raw(self):
        return self

    def initial_state(self, split, index):
        return InitialState(self.task.id, np.array([index / 10]), split, index)

    def snapshot(self):
        return np.array([self.count])

    def restore(self, state):
        bomb = Path(self._dies_in)
        if self._dies_in and bomb.exists() and (bomb.is_dir() or _removed(bomb)):
            os._exit(4)
        self.count, self.steps, self.renders = float(state.vector[0]), 0, 0

    def step(self, action):
        if action[1] == DIE:
            os._exit(3)
        if action[1] == HANG:
            time.sleep(1e6)
        if action[1] == SLOW:
            time.sleep(SLOW_S)
        if action[1] == RAISE:
            raise KeyError("the simulator is broken")
        if action[1] == DIVERGE:
            raise SimulationDivergedError("NaN")
        self.count += float(action[0])
        self.steps += 1
        return self.count >= 10

    def proprioception(self):
        return np.array([self.count, self.steps, os.getpid() == 0], np.float32)

    def render(self):
        self.renders += 1
        return {"front": np.full((2, 2, 3), self.renders, np.uint8)}

    def close(self):
        pass


def _removed(file: Path) -> bool:
    """Remove a file and return whether it was here: of two workers that see it, one is the first."""
    try:
        file.unlink()
    except FileNotFoundError:
        return False
    return True
