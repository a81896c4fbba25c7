"""The environment contract: tasks, observations, one simulation, and a suite that makes them.

A suite author writes a `TaskSuite` (names tasks, checks that they can run) and a `Simulation`
(one robot, one task, exact restore). Everything batched is built on these two in `batched.py`:
slots, worker processes, action chunks, deadlines.

Axes: t environment step, n actions in a chunk, a action dim, s state dim, h w image size.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float32, Float64, UInt8

from pi0.errors import UnusableError
from pi0.registry import did_you_mean
from pi0.ript.envs.initial_state import InitialState, Split

type Images = dict[str, UInt8[np.ndarray, "h w 3"]]


@dataclass(frozen=True)
class Task:
    """What a policy must know of a task before it acts."""

    suite: str
    name: str
    instruction: str
    max_steps: int
    """Deadline in policy steps, settling excluded."""
    hz: float
    """Policy steps per simulated second."""
    action_dim: int
    state_dim: int
    cameras: tuple[str, ...]
    """Image keys, in the order in which the policy takes them."""
    image_size: int
    """Height and width of every image in pixels."""
    robot: str = ""
    """What data sets of the task call the robot; "": as the suite."""

    def __post_init__(self) -> None:
        """Name the robot."""
        object.__setattr__(self, "robot", self.robot or self.suite)

    @property
    def id(self) -> str:
        """Return "suite/name", which names the task everywhere."""
        return f"{self.suite}/{self.name}"


@dataclass(frozen=True)
class EnvObservation:
    """What the policy sees: right way up, in the configured size."""

    images: Images
    state: Float32[np.ndarray, " s"]


@dataclass(frozen=True)
class Frame:
    """An observation inside a chunk, before the action `offset` was executed."""

    offset: int
    observation: EnvObservation


@dataclass(frozen=True)
class ChunkResult:
    """What executing a chunk of actions in one slot led to."""

    observation: EnvObservation | None
    """After the last executed action; None exactly when the episode was aborted."""
    states: Float32[np.ndarray, "executed s"]
    """Low-dimensional state before each executed action: the base of its training target."""
    executed: int
    """How many actions of the chunk were executed."""
    step: int
    """Policy steps since the episode began."""
    success: bool
    truncated: bool
    """The deadline passed without success."""
    frames: tuple[Frame, ...] = field(default=(), repr=False)
    """With `render_every=k`: offsets k, 2k, ... below `executed`. Offset 0 is the observation that
    the caller acted on."""
    aborted: str | None = None
    """Why the infrastructure (not the policy) ended the episode; such an episode is no failure of
    the policy: run it again or leave it out."""

    @property
    def done(self) -> bool:
        """Return whether the episode is over, however it ended."""
        return self.success or self.truncated or self.aborted is not None


@dataclass(frozen=True)
class Answers:
    """What has come of one `BatchedEnv.send`."""

    observations: Mapping[int, EnvObservation]
    """What the policy sees first, by the slot of an episode that began."""
    results: Mapping[int, ChunkResult]
    """By the slot of a chunk; and of an episode that could not begin, which is aborted."""


class SimulationDivergedError(RuntimeError):
    """The physics became unstable, or an observation is none (NaN, another size); the episode is aborted."""


class Simulation(ABC):
    """One simulator of one task. Single-slot, in-process; what a scripted expert drives.

    Everything after `reset(state)` is a function of the state and the actions alone: not of what
    this object did before, nor of the process it lives in.
    """

    def __init__(self, task: Task) -> None:
        self.task = task

    @property
    @abstractmethod
    def raw(self) -> object:
        """The simulator's own environment: privileged, for scripted experts and tests only."""

    @abstractmethod
    def initial_state(self, split: Split, index: int) -> InitialState:
        """Return state number `index` of a split; the two splits never share a state."""

    @abstractmethod
    def snapshot(self) -> Float64[np.ndarray, " n"]:
        """Return the full simulator state, in the layout of `InitialState.vector`."""

    @abstractmethod
    def restore(self, state: InitialState) -> None:
        """Put the simulator into the state, bit for bit."""

    def settle(self) -> None:
        """Let objects come to rest, in suites whose states need it; costs no policy steps."""
        return

    @abstractmethod
    def step(self, action: Float32[np.ndarray, " a"]) -> bool:
        """Execute one policy step without rendering and return whether the task succeeded.

        Values beyond [-1, 1] are clipped by the simulator's controller.
        """

    @abstractmethod
    def proprioception(self) -> Float32[np.ndarray, " s"]:
        """Return the low-dimensional state that the policy may see."""

    @abstractmethod
    def render(self) -> Images:
        """Return one new uint8 image per camera, right way up."""

    @abstractmethod
    def close(self) -> None:
        """Free the simulator and its graphics memory."""

    def reset(self, state: InitialState) -> None:
        """Begin an episode: check, restore, settle."""
        state.require_task(self.task.id)
        self.restore(state)
        self.settle()

    def observe(self) -> EnvObservation:
        """Return what the policy sees now; renders.

        Raises:
            SimulationDivergedError: It is not what the task says, or not finite.
        """
        observation = EnvObservation(images=self.render(), state=self.proprioception())
        _require_observation(observation, self.task)
        return observation


def _require_observation(observation: EnvObservation, task: Task) -> None:
    state, size = observation.state, task.image_size
    if state.shape != (task.state_dim,) or not np.isfinite(state).all():
        raise SimulationDivergedError(
            f"{task.id}: expected a state of {task.state_dim} finite numbers, found {state.tolist()}"
        )
    images = {camera: image.shape for camera, image in observation.images.items()}
    if images != dict.fromkeys(task.cameras, (size, size, 3)):
        raise SimulationDivergedError(
            f"{task.id}: expected images of {task.cameras}, {size} x {size} pixels, found {images}"
        )


class TaskSuite(ABC):
    """A family of tasks with one set of options. Picklable: workers receive a copy."""

    max_idle: int = 2
    """Simulations that a worker keeps beyond those its slots use now (they cost memory)."""

    @abstractmethod
    def tasks(self) -> tuple[Task, ...]:
        """Return every task; loads no simulator."""

    def check(self, tasks: Sequence[Task]) -> None:
        """Raise one clear error when these tasks cannot run here, for instance missing assets."""
        return

    @abstractmethod
    def make(self, task: Task) -> Simulation:
        """Return a new simulation of the task, in the calling process."""

    def select(self, names: Iterable[str | int] | None) -> tuple[Task, ...]:
        """Return the named tasks ("name", "suite/name" or a number; None: all), in the order given.

        Raises:
            ValueError: There is no such task; the message suggests some.
        """
        tasks = self.tasks()
        if names is None:
            return tasks
        known, ids = {task.name: task for task in tasks}, {task.id: task for task in tasks}
        chosen = []
        for name in [names] if isinstance(names, str) else names:
            if not isinstance(name, int):
                chosen.append(ids.get(name) or known[did_you_mean("task", name, known)])
            elif 0 <= name < len(tasks):
                chosen.append(tasks[name])
            else:
                raise UnusableError(f"task: expected a number from 0 to {len(tasks) - 1}, found {name}")
        return tuple(chosen)
