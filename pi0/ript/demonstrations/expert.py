"""What a scripted expert promises."""

from abc import ABC, abstractmethod
from typing import Literal

import numpy as np
from jaxtyping import Float32

from pi0.ript.envs import Simulation

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
