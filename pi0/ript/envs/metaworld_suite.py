"""Meta-World's tasks: the embedded default. Importing this loads no simulator, which `make` does."""

from collections.abc import Sequence
from dataclasses import dataclass

from pi0.errors import UnusableError
from pi0.ript.envs.base import Simulation, Task, TaskSuite
from pi0.ript.envs.metaworld_tasks import DEADLINES, INSTRUCTIONS
from pi0.ript.envs.rendering import require_egl_device, require_render_quality

CAMERA = "front"
_SIMULATOR_HZ = 80
_DEADLINE_REPEAT = 2  # the action repeat that DEADLINES counts with


@dataclass(frozen=True)
class MetaWorldSuite(TaskSuite):
    """All 50 Meta-World v3 tasks.

    State (4): hand position x y z in metres and gripper opening in [0, 1]; where the objects are,
    only the image shows. Action (4): hand displacement in cm and gripper effort, in [-1, 1].
    """

    image_size: int = 64
    action_repeat: int = 2
    """Simulator steps (80 Hz) per policy step."""
    render_quality: str = "fast"
    """"fast": no multisampling, shadows or reflections; "stock": all of them."""
    hide_arm: bool = True
    """Leave out the arm's large meshes: they are most of the cost of an image and stand between
    the camera and what the hand does. Hand and fingers stay visible."""

    max_idle = 64

    def __post_init__(self) -> None:
        """Check the options."""
        require_render_quality(self.render_quality)
        if self.image_size < 1 or self.action_repeat < 1:
            raise UnusableError(
                "image_size and action_repeat must be positive, found "
                f"{self.image_size} and {self.action_repeat}"
            )

    def tasks(self) -> tuple[Task, ...]:
        """Return the 50 tasks."""
        return tuple(
            Task(
                suite="metaworld",
                name=name,
                instruction=instruction,
                max_steps=-(-DEADLINES.get(name, 250) * _DEADLINE_REPEAT // self.action_repeat),
                hz=_SIMULATOR_HZ / self.action_repeat,
                action_dim=4,
                state_dim=4,
                cameras=(CAMERA,),
                image_size=self.image_size,
                robot="sawyer",
            )
            for name, instruction in INSTRUCTIONS.items()
        )

    def check(self, tasks: Sequence[Task]) -> None:
        """Raise ValueError if images cannot be rendered on the device that is named."""
        require_egl_device()

    def make(self, task: Task) -> Simulation:
        """Return a new simulation of the task."""
        from pi0.ript.envs.metaworld import MetaWorldSimulation

        return MetaWorldSimulation(task, self)
