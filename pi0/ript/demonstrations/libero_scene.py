"""What a pick-and-place expert looks at in LIBERO: gripper, object, obstacles and target."""

# MuJoCo's bindings come without type stubs.
# pyright: reportAttributeAccessIssue=false

from dataclasses import dataclass
from typing import Any

import mujoco
import numpy as np
from jaxtyping import Float64, Int64

_CORNERS = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], float)


@dataclass(frozen=True)
class Scene:
    """Privileged state, in metres and world axes (z up). Corners are those of collision boxes."""

    gripper: Float64[np.ndarray, "3"]
    """The point between the fingertips."""
    rotation: Float64[np.ndarray, "3 3"]
    """Rotation of the gripper; the third column points out of the hand."""
    closing: Float64[np.ndarray, "3"]
    """Unit vector along which the fingers close."""
    object_corners: Float64[np.ndarray, "n 3"]
    obstacles: tuple[Float64[np.ndarray, "_ 3"], ...]
    """Corners of everything else on the table, per object."""
    target: Float64[np.ndarray, "2"]
    """Where the object's centre belongs."""
    clearance: float
    """Height that the object's underside must pass on the way to the target."""
    release: float
    """Height at which the object's underside is let go."""
    by_rim: bool
    """Whether the object is a bowl, which is pinched at its rim."""


class SceneReader:
    """Reads the scene of one simulation; finds names and geometries once."""

    def __init__(self, raw: Any) -> None:
        """Find the task's object and target in LIBERO's environment."""
        environment = raw.env
        self._model, self._data = raw.sim.model._model, raw.sim.data._data
        _, self._object, self._target = environment.parsed_problem["goal_state"][0]
        names = [*environment.objects_dict, *environment.fixtures_dict]
        bodies = environment.obj_body_id
        self._boxes = {name: self._boxes_under(bodies[name]) for name in names if name in bodies}
        self._site = self._id(mujoco.mjtObj.mjOBJ_SITE, "gripper0_grip_site")
        self._fingers = [
            self._id(mujoco.mjtObj.mjOBJ_BODY, f"gripper0_{side}finger") for side in ("left", "right")
        ]

    def read(self) -> Scene:
        """Return the scene now."""
        left, right = (self._data.xpos[finger] for finger in self._fingers)
        target, clearance, release = self._place()
        return Scene(
            gripper=self._data.site_xpos[self._site].copy(),
            rotation=self._data.site_xmat[self._site].reshape(3, 3).copy(),
            closing=(left - right) / np.linalg.norm(left - right),
            object_corners=self._corners(self._object),
            obstacles=tuple(
                self._corners(name)
                for name, boxes in self._boxes.items()
                if name != self._object and boxes.size
            ),
            target=target[:2],
            clearance=clearance,
            release=release,
            by_rim="bowl" in self._object,
        )

    def _place(self) -> tuple[Float64[np.ndarray, "3"], float, float]:
        """Return centre, clearance and release height of the target."""
        if self._target in self._boxes:  # on another object
            corners = self._corners(self._target)
            centre, top = (corners.min(0) + corners.max(0)) / 2, corners[:, 2].max()
            return centre, top + 0.04, top
        site = self._id(mujoco.mjtObj.mjOBJ_SITE, self._target)
        centre = self._data.site_xpos[site].copy()
        container = self._target.removesuffix("_contain_region")
        if container in self._boxes and container != self._target:  # inside a basket
            rim = self._corners(container)[:, 2].max()
            return centre, rim, rim - 0.03
        return centre, centre[2] + 0.04, centre[2]  # on a region of a fixture

    def _corners(self, name: str) -> Float64[np.ndarray, "n 3"]:
        boxes = self._boxes[name]
        rotations = self._data.geom_xmat[boxes].reshape(-1, 3, 3)
        local = _CORNERS[None] * self._model.geom_size[boxes][:, None]
        corners = np.einsum("bij,bcj->bci", rotations, local)
        return (corners + self._data.geom_xpos[boxes][:, None]).reshape(-1, 3)

    def _boxes_under(self, body: int) -> Int64[np.ndarray, " b"]:
        """Return the collision boxes of a body and all that hangs on it."""
        bodies = {body}
        for child in range(body + 1, self._model.nbody):
            if self._model.body_parentid[child] in bodies:
                bodies.add(child)
        model = self._model
        return np.array(
            [
                geom
                for geom in range(model.ngeom)
                if model.geom_bodyid[geom] in bodies
                and model.geom_contype[geom] > 0
                and model.geom_type[geom] == mujoco.mjtGeom.mjGEOM_BOX
            ],
            np.int64,
        )

    def _id(self, kind: Any, name: str) -> int:
        number = mujoco.mj_name2id(self._model, kind, name)
        if number < 0:
            raise ValueError(f"the scene has no {name!r}: is the task one of pick and place?")
        return number
