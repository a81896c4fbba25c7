"""LIBERO's simulations on robosuite: real tasks, full-state restore, images only where they are asked for."""

# MuJoCo's bindings come without type stubs.
# pyright: reportAttributeAccessIssue=false

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from functools import cache, cached_property, partial
from typing import Any

import mujoco
import numpy as np
from jaxtyping import Float32, Float64
from PIL import Image

from pi0.ript.envs import libero_files
from pi0.ript.envs.attribute_state import numeric_attributes, pack_attributes, unpack_attributes
from pi0.ript.envs.base import Images, Simulation, Task
from pi0.ript.envs.initial_state import InitialState, Split
from pi0.ript.envs.libero_meshes import simplified_meshes
from pi0.ript.envs.libero_suite import CAMERAS, LiberoSuite
from pi0.ript.envs.mujoco_render import OffscreenRenderer, fixed_camera, shared_renderer
from pi0.ript.envs.mujoco_state import get_physics, require_size, require_stable, set_physics

SETTLE_ACTION = np.array([0, 0, 0, 0, 0, 0, -1], np.float32)
TRAIN_SEED = 10_000
"""Training states use the placement sampler's seeds from here on."""

_MOVED_BY_RESET = ("body_pos", "body_quat")  # the poses of cabinets, stoves and racks
_MAX_PLACEMENTS = 100


class LiberoSimulation(Simulation):
    """One LIBERO environment with exact restore and no renderer of its own."""

    def __init__(self, task: Task, suite: LiberoSuite) -> None:
        super().__init__(task)
        self._suite = suite
        environment_class, self._randomization_error = _import_libero()
        with _numpy_seed(0), contextlib.redirect_stdout(io.StringIO()):
            self._env: Any = environment_class(
                bddl_file_name=str(libero_files.bddl_file(suite.suite, task.name)),
                use_camera_obs=False,
                has_offscreen_renderer=False,
                ignore_done=True,  # the batched environment keeps the deadline
                hard_reset=False,  # the scene is compiled once; restore sets all that a reset does
            )
        self._robosuite = self._env.env
        self._robosuite._observables = {}  # sampled every 2 ms, and never read here
        compiled = mujoco.MjModel.from_xml_string(self._robosuite.model.get_xml())
        self._compiled_poses = {name: getattr(compiled, name).copy() for name in _MOVED_BY_RESET}
        self._sample(seed=0)
        self._controller_attributes = numeric_attributes(self._robot.controller)
        self._size = self.snapshot().size

    @property
    def raw(self) -> Any:
        """LIBERO's ControlEnv; `.env` is robosuite's environment, `.sim` its MuJoCo simulation."""
        return self._env

    def initial_state(self, split: Split, index: int) -> InitialState:
        """Return a benchmark state (held-out) or one of the placement sampler (training).

        What a benchmark state lacks, the poses of fixtures, is sampled with its index as seed.
        """
        if split == "train":
            self._sample(TRAIN_SEED + index)
            return InitialState(self.task.id, self.snapshot(), split, index, "placement")
        states = _benchmark_states(self._suite.suite, self.task.name)
        if not 0 <= index < len(states):
            raise ValueError(f"task {self.task.id!r} has {len(states)} held-out states, not {index}")
        self._sample(index)
        self._robosuite.sim.set_state_from_flattened(states[index])
        self._robosuite.sim.forward()
        return InitialState(self.task.id, self.snapshot(), split, index, "benchmark")

    def snapshot(self) -> Float64[np.ndarray, " n"]:
        """Return physics, fixtures' poses, the controller and the gripper's command.

        The controller counts: it acts on the kinematics that it read last, and its goal rotation
        lasts while the action asks for none.
        """
        physics = get_physics(*self._mujoco, _MOVED_BY_RESET)
        controller = pack_attributes(self._robot.controller, self._controller_attributes)
        return np.concatenate([physics, controller, self._robot.gripper.current_action])

    def restore(self, state: InitialState) -> None:
        """Put physics, controller and gripper into the state, bit for bit."""
        require_size(state, self._size)
        rest = set_physics(*self._mujoco, _MOVED_BY_RESET, state.vector)
        rest = unpack_attributes(self._robot.controller, self._controller_attributes, rest)
        self._robot.gripper.current_action = rest.copy()
        self._robosuite.timestep, self._robosuite.cur_time = 0, 0.0

    def settle(self) -> None:
        """Let objects fall the last millimetres."""
        for _ in range(self._suite.settle_steps):
            self.step(SETTLE_ACTION)

    def step(self, action: Float32[np.ndarray, "7"]) -> bool:
        """Execute one control step of 25 physics steps and return whether the goal holds."""
        _, _, success, _ = self._robosuite.step(action)
        require_stable(self._mujoco[1])
        return bool(success)

    def proprioception(self) -> Float32[np.ndarray, "8"]:
        """Return end-effector position, its rotation as axis-angle, and the finger positions."""
        robot, data = self._robot, self._robosuite.sim.data
        w, *xyz = data.get_body_xquat(robot.robot_model.eef_name)
        fingers = [data.qpos[i] for i in robot._ref_gripper_joint_pos_indexes]
        position = data.site_xpos[robot.eef_site_id]
        return np.concatenate([position, axis_angle(w, np.array(xyz)), fingers]).astype(np.float32)

    def render(self) -> Images:
        """Return the frames of both cameras."""
        images = {}
        for key, camera in self._cameras.items():
            frame = self._renderer.image(*self._mujoco, camera, self._option)
            # LIBERO's frames have the bottom row first; turned by 180 degrees they are upright
            # and mirrored, and that is what policies for it have been trained on.
            images[key] = resized(np.ascontiguousarray(frame[:, ::-1]), self._suite.image_size)
        return images

    def close(self) -> None:
        """Free the simulator."""
        self._env.close()

    @property
    def _robot(self) -> Any:
        return self._robosuite.robots[0]

    @property
    def _mujoco(self) -> tuple[Any, Any]:
        """MuJoCo's model and data; robosuite replaces neither, since resets are soft."""
        sim = self._robosuite.sim
        return sim.model._model, sim.data._data

    def _sample(self, seed: int) -> None:
        """Reset to a placement that depends on the seed alone."""
        self._robot.gripper.current_action = np.zeros(self._robot.gripper.dof)  # soft resets forget to
        for name, poses in self._compiled_poses.items():
            # LIBERO places objects on a fixture by the world position of one of its sites, which it
            # takes for the position in the fixture's frame: true before the fixture is first moved.
            getattr(self._mujoco[0], name)[:] = poses
        with _numpy_seed(seed):
            for _ in range(_MAX_PLACEMENTS):
                try:
                    self._robosuite.reset()
                except self._randomization_error:
                    continue
                return
        raise RuntimeError(f"{self.task.id}: no valid placement in {_MAX_PLACEMENTS} attempts")

    @cached_property
    def _cameras(self) -> dict[str, Any]:
        names = zip(self.task.cameras, CAMERAS, strict=True)
        return {key: fixed_camera(self._mujoco[0], camera) for key, camera in names}

    @cached_property
    def _option(self) -> Any:
        """Robosuite's choice of what to draw: visual geometry without collision geometry."""
        option = mujoco.MjvOption()
        option.geomgroup[0], option.geomgroup[1] = 0, 1
        return option

    @cached_property
    def _renderer(self) -> Any:
        """The renderer of the task that simulations in this process share."""
        size, quality = self._suite.render_size, self._suite.render_quality
        model = self._mujoco[0]
        upload = simplified_meshes(model) if quality == "fast" else None
        make = partial(OffscreenRenderer, model, size, quality, upload)
        return shared_renderer((self._suite, self.task.name), make)


def axis_angle(w: float, xyz: Float64[np.ndarray, "3"]) -> Float64[np.ndarray, "3"]:
    """Return a unit quaternion as axis times angle (rad), zero where the axis is undefined."""
    w = min(max(float(w), -1.0), 1.0)
    sine = np.sqrt(1.0 - w * w)
    return np.zeros(3) if np.isclose(sine, 0.0) else xyz * (2.0 * np.arccos(w) / sine)


def resized(image: np.ndarray, size: int) -> np.ndarray:
    """Return a square uint8 image in the given size, bilinear as in openpi."""
    if image.shape[0] == size:
        return image
    return np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR))


@cache
def _import_libero() -> tuple[Any, type[Exception]]:
    """Return LIBERO's environment class and the error of its placement sampler."""
    libero_files.prepare_import(libero_files.assets_folder())
    logging.getLogger("robosuite_logs").setLevel(logging.ERROR)  # "no private macro file"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # upstream's invalid escape sequences
        from libero.libero.envs.env_wrapper import ControlEnv
        from robosuite.utils.errors import RandomizationError
    return ControlEnv, RandomizationError


@cache
def _benchmark_states(suite: str, task: str) -> Float64[np.ndarray, "k n"]:
    return libero_files.benchmark_states(suite, task)


@contextlib.contextmanager
def _numpy_seed(seed: int) -> Iterator[None]:
    """Seed numpy's global generator, which LIBERO samples from; restore the caller's afterwards."""
    before = np.random.get_state()
    np.random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(before)
