"""Operators: how well a demonstrator carries out what the expert knows.

Demonstrations of mixed quality are what RL improves on: a policy trained on a hesitating operator
can become brisk, one trained on a sloppy operator can drop the bad habit.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float32

from pi0.registry import did_you_mean
from pi0.ript.demonstrations.expert import Expert, Mistake

type Keep = Literal["all", "successes"]


@dataclass(frozen=True)
class Operator:
    """The quality of one demonstrator; all randomness comes from the episode's own generator."""

    name: str
    noise: float
    """Standard deviation of Gaussian noise on the action, in action units, where the expert's task
    forgives as much as Meta-World's do."""
    hesitation: float = 0.0
    """Fraction of the time spent hesitating."""
    hesitation_speed: float = 0.15
    """Factor on the moving part of the action while hesitating."""
    hesitation_steps: tuple[int, int] = (4, 10)
    """Shortest and longest spell, in policy steps; each spell hesitates or not."""
    misled: float = 0.0
    """Fraction of the episodes in which the operator makes a mistake, from the first step on."""
    patience: float = 1.0
    """The recording's deadline, in deadlines of the task."""
    keep: Keep = "successes"
    """Which episodes a data set keeps unless asked otherwise."""


OPERATORS = {
    operator.name: operator
    for operator in (
        Operator("competent", noise=0.1),
        Operator("hesitating", noise=0.1, hesitation=0.5, patience=2.0),
        Operator("sloppy", noise=0.3, misled=0.55, keep="all"),
    )
}


def get_operator(name: str) -> Operator:
    """Return an operator by name; an unknown name is an error with a suggestion."""
    return OPERATORS[did_you_mean("operator", name, OPERATORS)]


class Demonstrator:
    """An operator carrying out an expert's intentions in one episode."""

    def __init__(self, operator: Operator, expert: Expert, generator: np.random.Generator) -> None:
        """Decide at once whether, and into what, this episode's operator is misled."""
        self._operator, self._expert, self._generator = operator, expert, generator
        misled = generator.random() < operator.misled
        mistake = expert.mistakes[generator.integers(len(expert.mistakes))]
        self.mistake: Mistake | None = mistake if misled else None
        self._hesitates, self._steps_left = False, 0

    def act(self, state: Any) -> Float32[np.ndarray, " a"]:
        """Return the action that the operator takes in the (true) privileged state."""
        if self.mistake is not None:
            state = self._expert.misled(state, self.mistake)
        action = self._expert.act(state).copy()
        if self._hesitates_now():
            action[self._expert.moving] *= self._operator.hesitation_speed
        trembling = action[self._expert.trembling]
        noise = self._operator.noise * self._expert.precision
        trembling += noise * self._generator.standard_normal(trembling.shape)
        return np.clip(action, -1.0, 1.0).astype(np.float32)

    def _hesitates_now(self) -> bool:
        if not self._steps_left:
            shortest, longest = self._operator.hesitation_steps
            self._hesitates = self._generator.random() < self._operator.hesitation
            self._steps_left = int(self._generator.integers(shortest, longest + 1))
        self._steps_left -= 1
        return self._hesitates
