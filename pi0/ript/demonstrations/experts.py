"""Which task has a scripted expert."""

from collections.abc import Iterable

from pi0.errors import UnusableError
from pi0.ript.demonstrations.expert import Expert
from pi0.ript.demonstrations.libero_tasks import PICK_AND_PLACE
from pi0.ript.envs import Task


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
        raise UnusableError(f"no task of {task.suite!r} has a scripted expert; suites that do: {suites}")
    listed = "\n  ".join(PICK_AND_PLACE[task.suite])
    raise UnusableError(
        f"task {task.name!r} has no scripted expert; tasks of {task.suite!r} that do:\n  {listed}"
    )


def _has_expert(task: Task) -> bool:
    return task.suite == "metaworld" or task.name in PICK_AND_PLACE.get(task.suite, ())
