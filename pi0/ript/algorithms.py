"""The names of the objectives that a policy can learn by; importing this loads no torch."""

from collections.abc import Callable
from typing import Any

from pi0.registry import did_you_mean

ALGORITHMS: dict[str, Callable[[Any, Any], Any] | None] = {"ript": None}
"""By name, what `pi0.ript.loss.register_algorithm` was given; None: the objective of that module itself."""


def require_algorithm(name: str) -> str:
    """Return the name if there is such an algorithm; else a ValueError suggests known ones."""
    return did_you_mean("algorithm", name, ALGORITHMS)
