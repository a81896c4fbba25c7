"""LIBERO's suites and tasks. Importing this loads no simulator, which `make` does."""

from collections.abc import Sequence
from dataclasses import dataclass

from pi0.errors import UnusableError
from pi0.registry import did_you_mean
from pi0.ript.envs import libero_files
from pi0.ript.envs.base import Simulation, Task, TaskSuite
from pi0.ript.envs.rendering import require_egl_device, require_render_quality

CAMERAS = ("agentview", "robot0_eye_in_hand")
"""LIBERO's names of its cameras: third person and wrist."""

_HZ = 20.0  # robosuite's default control frequency


@dataclass(frozen=True)
class LiberoSuite(TaskSuite):
    """One LIBERO suite.

    State (8): end-effector position and axis-angle, two finger positions. Action (7): end-effector
    displacement and rotation (OSC deltas) and gripper (-1 open, 1 close), in [-1, 1].
    Images are what LIBERO's policies are trained on: its frames turned by 180 degrees.

    Held-out states are the benchmark's own 50 per task, training states come from the placement
    sampler, which the benchmark's were drawn from too.
    """

    suite: str = "libero_object"
    image_size: int = 224
    render_size: int = 256
    """Frames are rendered in this size, then resized (bilinear) to image_size. 256 and 224 is what
    openpi trained on; equal sizes save the resize, small ones most of the rendering too."""
    render_quality: str = "stock"
    """"stock": LIBERO's own pixels. "fast", for CPUs, 5 times cheaper or more: no multisampling,
    no reflections, visual meshes with a tenth of the faces; the scene is the same, pixels differ
    by 1 to 3 of 255 on average. Physics is bit for bit the same."""
    settle_steps: int = 10
    """Steps with the gripper opening and the arm still, before an episode's first observation."""
    camera_names: Sequence[str] = ("agentview", "wrist")
    """What the images of the two cameras are called; a policy takes them by these names."""

    max_idle = 2

    def __post_init__(self) -> None:
        """Check the options; a list of names, as files have it, becomes a tuple."""
        object.__setattr__(self, "camera_names", tuple(self.camera_names))  # renderers are kept by suite
        did_you_mean("LIBERO suite", self.suite, libero_files.SUITES)
        require_render_quality(self.render_quality)
        if not 0 < self.image_size <= self.render_size:
            raise UnusableError(
                "expected 0 < image_size <= render_size, found "
                f"image_size={self.image_size}, render_size={self.render_size}"
            )
        if len(set(self.camera_names)) != len(CAMERAS):
            raise UnusableError(f"camera_names: expected two different names, found {self.camera_names}")
        if self.settle_steps < 0:
            raise UnusableError(f"settle_steps must not be negative, found {self.settle_steps}")

    def tasks(self) -> tuple[Task, ...]:
        """Return the suite's tasks in the benchmark's order."""
        return tuple(
            Task(
                suite=self.suite,
                name=name,
                instruction=libero_files.instruction(self.suite, name),
                max_steps=libero_files.SUITES[self.suite],
                hz=_HZ,
                action_dim=7,
                state_dim=8,
                cameras=tuple(self.camera_names),
                image_size=self.image_size,
                robot="panda",
            )
            for name in libero_files.task_names(self.suite)
        )

    def check(self, tasks: Sequence[Task]) -> None:
        """Raise MissingAssetsError when assets that these tasks need are missing.

        A ValueError says that no image can be rendered on the device that is named, or that LIBERO's
        configuration is none.
        """
        require_egl_device()
        assets = libero_files.assets_folder()
        for task in tasks:
            missing = libero_files.missing_assets(assets, self.suite, task.name)
            if missing:
                raise libero_files.MissingAssetsError(
                    f"task {task.id!r} needs {len(missing)} asset files that {assets}"
                    f"{libero_files.naming(assets)} lacks, the first: {missing[0]}; fetch them with: "
                    f"{libero_files.FETCH_ASSETS}"
                )

    def make(self, task: Task) -> Simulation:
        """Return a new simulation of the task."""
        from pi0.ript.envs.libero import LiberoSimulation

        return LiberoSimulation(task, self)
