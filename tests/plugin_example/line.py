"""An environment: a point on a line that has to get far enough to the right."""

from dataclasses import dataclass

import numpy as np

from pi0.ript.envs import InitialState, Simulation, Task, TaskSuite


@dataclass(frozen=True)
class LineSuite(TaskSuite):
    """One task; a suite has one per thing that can be asked for."""

    def tasks(self):
        return (
            Task(
                suite="line",
                name="right",
                instruction="move right",
                max_steps=8,
                hz=10.0,
                action_dim=1,
                state_dim=2,
                cameras=("front",),
                image_size=8,
            ),
        )

    def make(self, task):
        return Line(task)


class Line(Simulation):
    """Position and speed; an action pushes."""

    raw = None

    def __init__(self, task):
        super().__init__(task)
        self.at = np.zeros(2)

    def initial_state(self, split, index):
        rng = np.random.default_rng((index, split == "train"))
        return InitialState(self.task.id, rng.normal(scale=0.02, size=2), split, index)

    def snapshot(self):
        return self.at.copy()

    def restore(self, state):
        self.at = state.vector.copy()

    def step(self, action):
        self.at[1] += 0.1 * np.clip(action[0], -1, 1)
        self.at[0] += self.at[1]
        return bool(self.at[0] > 0.3)

    def proprioception(self):
        return self.at.astype(np.float32)

    def render(self):
        image = np.zeros((8, 8, 3), np.uint8)
        image[:, int(np.clip(4 + 4 * self.at[0], 0, 7))] = 255
        return {"front": image}

    def close(self):
        pass
