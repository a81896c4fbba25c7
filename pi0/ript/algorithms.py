"""The algorithms that a policy can learn by, by name; importing this loads no torch.

An algorithm says what the loop leaves open: who acts in rollouts and what is noted of their chunks, which
episodes are learned from and how, and what the loss of a batch of windows is.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pi0.registry import did_you_mean
from pi0.ript.advantage import OF_RIPT, LearningRule


@dataclass(frozen=True)
class LearningAlgorithm:
    """What an algorithm says; see docs/extending.md."""

    learner: Callable[[Any, Any], Any]
    """`learner(policy, algo)` returns the module that the loop calls and trains, as `AdvantageLoss` is."""
    actor: Callable[[Any, Any, int], Any] | None = None
    """`actor(policy, algo, iteration)` returns the `ChunkPolicy` of the rollouts; None: RIPT's, guided."""
    rule: LearningRule = OF_RIPT
    """Which episodes are learned from, with which advantages, and by which windows."""


ALGORITHMS: dict[str, LearningAlgorithm | None] = {"ript": None, "grpo": None}
"""What was registered, by name; None: one of the library, which `pi0.ript.loss` knows."""


def require_algorithm(name: str) -> str:
    """Return the name if there is such an algorithm; else a ValueError suggests known ones."""
    return did_you_mean("algorithm", name, ALGORITHMS)
