"""What a scripted expert promises, and which task has one."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Literal

import numpy as np
from jaxtyping import Float32

from pi0.ript.demonstrations.libero_tasks import PICK_AND_PLACE
from pi0.ript.envs import Simulation, Task

type Mistake = Literal["beside", "short"]
"""What a misled expert does: grasp or push beside the object, or let go short of the target."""


class Expert[State](ABC):
    """Solves one task from privileged simulator state. One object acts in one episode."""

    moving: slice
    """The action dimensions that move the arm; the others work the gripper."""
    trembling: slice
    """The moving dimensions that an operator's noise is added to."""
    precision: float = 1.0
    """Factor on that noise: what a task forgives differs."""
    mistakes: tuple[Mistake, ...]
    """The mistakes that it can be misled into."""

    @abstractmethod
    def read(self, simulation: Simulation) -> State:
        """Return the simulator state that the expert looks at, as plain numbers."""

    @abstractmethod
    def misled(self, state: State, mistake: Mistake) -> State:
        """Return the state as an expert perceives it that is about to make the mistake."""

    @abstractmethod
    def act(self, state: State) -> Float32[np.ndarray, " a"]:
        """Return the next action, in [-1, 1]; a function of the states of this episode alone."""


def make_expert(task: Task) -> Expert:
    """Return a new expert for one episode of the task.

    Raises:
        ValueError: The task has no expert; the message lists the tasks of its suite that have.
    """
    require_expert(task)
    if task.suite == "metaworld":
        from pi0.ript.demonstrations.metaworld_expert import MetaWorldExpert

        return MetaWorldExpert(task.name)
    from pi0.ript.demonstrations.libero_expert import PickAndPlaceExpert

    return PickAndPlaceExpert()


def tasks_with_expert(tasks: Iterable[Task]) -> tuple[Task, ...]:
    """Return those of the tasks that have an expert, in order."""
    return tuple(task for task in tasks if _has_expert(task))


def require_expert(task: Task) -> None:
    """Raise ValueError unless the task has an expert."""
    if _has_expert(task):
        return
    if task.suite not in PICK_AND_PLACE:
        suites = ", ".join(["metaworld", *PICK_AND_PLACE])
        raise ValueError(f"no task of {task.suite!r} has a scripted expert; suites that do: {suites}")
    listed = "\n  ".join(PICK_AND_PLACE[task.suite])
    raise ValueError(
        f"task {task.name!r} has no scripted expert; tasks of {task.suite!r} that do:\n  {listed}"
    )


def _has_expert(task: Task) -> bool:
    return task.suite == "metaworld" or task.name in PICK_AND_PLACE.get(task.suite, ())
