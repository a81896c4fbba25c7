"""The worker process of a batched environment: it simulates, holds no model and imports no torch."""

from collections.abc import Callable
from typing import Any

from pi0.ript.envs.base import Task, TaskSuite
from pi0.ript.envs.process import serve
from pi0.ript.envs.slots import Slots


def main() -> None:
    """Run this process as a worker."""
    serve(_prepare)


def _prepare(setup: tuple[TaskSuite, dict[str, Task]]) -> tuple[Callable[[Any], object], Callable[[], None]]:
    slots = Slots(*setup)

    def answer_to(request: tuple[str, Any]) -> object:
        """Return the answer to a request of `BatchedEnv`."""
        kind, body = request
        if kind == "initial_states":
            return slots.initial_states(body)
        return slots.turn(*body)

    return answer_to, slots.close
