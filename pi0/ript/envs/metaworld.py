"""Meta-World's simulations: nothing to download, a few milliseconds per policy step."""

# MuJoCo's bindings come without type stubs.
# pyright: reportAttributeAccessIssue=false

import sys
import warnings
from functools import cached_property, partial
from typing import Any

import mujoco
import numpy as np
from jaxtyping import Float32, Float64

from pi0.ript.envs.attribute_state import numeric_attributes, pack_attributes, unpack_attributes
from pi0.ript.envs.base import Images, Simulation, Task
from pi0.ript.envs.initial_state import InitialState, Split
from pi0.ript.envs.metaworld_suite import CAMERA, MetaWorldSuite
from pi0.ript.envs.metaworld_tasks import GOAL_DRAWN
from pi0.ript.envs.mujoco_render import OffscreenRenderer, shared_renderer
from pi0.ript.envs.mujoco_state import get_physics, require_size, require_stable, set_physics

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # upstream's invalid escape sequences and deprecations
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS

HELDOUT_SEED = 1_000_000
"""Training states use the sampler's seeds below, held-out states those from here on."""

_MOVED_BY_RESET = ("body_pos", "site_pos")
_NOT_STATE = ("_np_random_seed",)  # how a state was made is no part of it


class MetaWorldSimulation(Simulation):
    """One Meta-World environment with exact restore."""

    def __init__(self, task: Task, suite: MetaWorldSuite) -> None:
        super().__init__(task)
        self._suite = suite
        self._camera, self._option = _front_camera(), _without_sites()
        self._env: Any = ALL_V3_ENVIRONMENTS[task.name]()
        self._env._set_task_called = True
        self._env._partially_observable = False
        self._env._freeze_rand_vec = False
        self._env.seeded_rand_vec = True
        self._env.max_path_length = sys.maxsize  # the batched environment keeps the deadline
        self._env.__dict__.pop("sawyer_observation_space", None)  # depends on the above
        if suite.hide_arm:
            _hide_arm(self._env.model)
        self._observation = self._reset_by_seed(0)
        self._attributes = numeric_attributes(self._env, exclude=_NOT_STATE)
        self._pristine = self.snapshot()

    @property
    def raw(self) -> Any:
        """The Meta-World environment."""
        return self._env

    @property
    def privileged_observation(self) -> Float64[np.ndarray, "39"]:
        """What Meta-World's scripted experts take: hand, objects and goal, now and one step ago."""
        return self._observation.copy()

    def initial_state(self, split: Split, index: int) -> InitialState:
        """Return the state that the placement sampler gives for the seed of (split, index)."""
        if not 0 <= index < HELDOUT_SEED:
            raise ValueError(f"index must be in [0, {HELDOUT_SEED}), found {index}")
        self._restore_vector(self._pristine)  # the sampler must not see the last episode
        self._observation = self._reset_by_seed(index + HELDOUT_SEED * (split == "heldout"))
        return InitialState(self.task.id, self.snapshot(), split, index)

    def snapshot(self) -> Float64[np.ndarray, " n"]:
        """Return physics, moved model arrays, observation, and the task's Python attributes."""
        physics = get_physics(self._env.model, self._env.data, _MOVED_BY_RESET)
        attributes = pack_attributes(self._env, self._attributes)
        return np.concatenate([physics, attributes, self._observation])

    def restore(self, state: InitialState) -> None:
        """Put physics and Python attributes into the state, bit for bit."""
        require_size(state, self._pristine.size)
        self._restore_vector(state.vector)

    def step(self, action: Float32[np.ndarray, "4"]) -> bool:
        """Repeat the action until the task succeeds or the policy step ends."""
        for _ in range(self._suite.action_repeat):
            self._observation, _, _, _, info = self._env.step(action)
            require_stable(self._env.data)
            if info["success"]:
                return True
        return False

    def proprioception(self) -> Float32[np.ndarray, "4"]:
        """Return hand position and gripper opening."""
        return self._observation[:4].astype(np.float32)

    def render(self) -> Images:
        """Return the front camera's image."""
        draw = None
        if self.task.name in GOAL_DRAWN:
            draw = partial(_draw_ball, position=self._env._target_pos)
        model, data = self._env.model, self._env.data
        return {CAMERA: self._renderer.image(model, data, self._camera, self._option, draw)}

    def close(self) -> None:
        """Free the simulator."""
        self._env.close()

    @cached_property
    def _renderer(self) -> OffscreenRenderer:
        """The renderer of the task that simulations in this process share."""
        size, quality = self._suite.image_size, self._suite.render_quality
        make = partial(OffscreenRenderer, self._env.model, size, quality)
        return shared_renderer((self._suite, self.task.name), make)

    def _reset_by_seed(self, seed: int) -> Float64[np.ndarray, "39"]:
        self._env.seed(seed)
        observation, _ = self._env.reset()
        mujoco.mj_forward(self._env.model, self._env.data)
        return observation

    def _restore_vector(self, vector: Float64[np.ndarray, " n"]) -> None:
        rest = set_physics(self._env.model, self._env.data, _MOVED_BY_RESET, vector)
        self._observation = unpack_attributes(self._env, self._attributes, rest).copy()


def _hide_arm(model: mujoco.MjModel) -> None:
    """Make the arm's large meshes invisible; hand and fingers stay."""
    for geom in range(model.ngeom):
        body = model.body(model.geom_bodyid[geom]).name
        if model.geom_type[geom] == mujoco.mjtGeom.mjGEOM_MESH and body.startswith(
            ("right_", "head", "pedestal")
        ):
            faces = model.mesh_facenum[model.geom_dataid[geom]]
            model.geom_rgba[geom, 3] = 0.0 if faces > 1500 else model.geom_rgba[geom, 3]


def _front_camera() -> mujoco.MjvCamera:
    """Return a free camera that looks down on the table from the robot's opposite side."""
    camera = mujoco.MjvCamera()
    camera.type = mujoco.mjtCamera.mjCAMERA_FREE
    camera.lookat[:] = (0.0, 0.72, 0.06)
    camera.distance, camera.azimuth, camera.elevation = 0.78, 90.0, -60.0
    return camera


def _without_sites() -> mujoco.MjvOption:
    """Return options that hide the scene's sites, which mark goals and grips."""
    option = mujoco.MjvOption()
    option.sitegroup[:] = 0
    return option


def _draw_ball(scene: mujoco.MjvScene, position: Float64[np.ndarray, "3"]) -> None:
    """Add a bright green ball to the scene."""
    ball = scene.geoms[scene.ngeom]
    shape, size = mujoco.mjtGeom.mjGEOM_SPHERE, np.full(3, 0.022)
    green = np.array((0, 1, 0, 1), np.float32)
    mujoco.mjv_initGeom(ball, shape, size, position.astype(float), np.eye(3).ravel(), green)
    ball.emission = 0.6
    scene.ngeom += 1
