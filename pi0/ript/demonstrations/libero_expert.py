"""A pick-and-place expert for LIBERO: grasp by collision boxes, carry, lower, let go."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
from jaxtyping import Float32, Float64
from scipy.spatial.transform import Rotation

from pi0.ript.demonstrations.expert import Expert, Mistake
from pi0.ript.demonstrations.libero_scene import Scene, SceneReader
from pi0.ript.envs import Simulation
from pi0.ript.envs.libero import LiberoSimulation

_METRES_PER_ACTION, _RADIANS_PER_ACTION = 0.05, 0.5
_WIDEST_GRASP = 0.064
_BESIDE, _SHORT_METRES = np.array([0.0, 0.05, 0.0]), 0.17
_OPEN, _CLOSE = -1.0, 1.0
_PATIENCE = 80
"""Steps after which a motion that does not arrive, blocked by something, is given up."""


@dataclass(frozen=True)
class Grasp:
    """Where the fingertips close, and the gripper's rotation there."""

    position: Float64[np.ndarray, "3"]
    rotation: Float64[np.ndarray, "3 3"]
    hover: float
    """Height from which the gripper descends."""
    underside: float
    """How far below the fingertips the object ends."""
    centre: Float64[np.ndarray, "2"]
    """Vector from the fingertips to the object's centre."""


class PickAndPlaceExpert(Expert[Scene]):
    """Picks the object of the task's goal and places it on or in the goal's target.

    A grasp that fails is tried again.
    """

    moving, trembling, precision = slice(0, 6), slice(0, 3), 0.5
    mistakes = ("beside", "short")

    def __init__(self) -> None:
        self._reader: SceneReader | None = None
        self._grasp: Grasp | None = None
        self._phase, self._steps, self._still = "above", 0, 0
        self._last_position = np.full(3, np.inf)
        self._short: np.ndarray | None = None

    def read(self, simulation: Simulation) -> Scene:
        """Return gripper, object, obstacles and target."""
        if self._reader is None:
            self._reader = SceneReader(cast(LiberoSimulation, simulation).raw)
        return self._reader.read()

    def misled(self, state: Scene, mistake: Mistake) -> Scene:
        """Return the scene with the object 5 cm to its left, or the target 17 cm too near."""
        if mistake == "beside":
            return replace(state, object_corners=state.object_corners + _BESIDE)
        if self._short is None:
            way = _middle(state.object_corners)[:2] - state.target
            self._short = way / np.linalg.norm(way) * _SHORT_METRES
        return replace(state, target=state.target + self._short)

    def act(self, state: Scene) -> Float32[np.ndarray, "7"]:
        """Return the next action."""
        if self._grasp is None:
            self._grasp = plan_grasp(state)
        moved = np.linalg.norm(state.gripper - self._last_position)
        self._still = self._still + 1 if moved < 0.0008 else 0
        self._last_position = state.gripper
        while (following := self._next_phase(state, self._grasp)) is not None:
            self._phase, self._steps, self._still = following, 0, 0
            if following == "above":
                self._grasp = plan_grasp(state)
        self._steps += 1
        return self._action(state, self._grasp)

    def _next_phase(self, state: Scene, grasp: Grasp) -> str | None:
        """Return the phase to change to, or None to stay."""
        error = self._goal(state, grasp) - state.gripper
        turned = float(np.linalg.norm(_turn(state, grasp)))
        sideways, height = float(np.linalg.norm(error[:2])), abs(float(error[2]))
        match self._phase:
            case "above" if sideways < 0.006 and height < 0.03 and turned < 0.08:
                return "down"
            case "down" if height < 0.006 or self._still > 6:
                return "close"
            case "close" if self._steps > (14 if state.by_rim else 9):
                return "lift"
            case "lift" if height < 0.015:
                return "carry" if _held(state, grasp) else "open"
            case "carry" if sideways < 0.015:
                return "lower"
            case "lower" if height < 0.008 or self._steps > 30 or self._still > 8:
                return "open"
            case "open" if self._steps > 6:
                return "retreat"
            case "retreat" if self._steps > 25:
                return "above"
        blocked = self._phase in ("above", "down", "lift", "carry") and self._steps > _PATIENCE
        return "open" if blocked else None

    def _goal(self, state: Scene, grasp: Grasp) -> Float64[np.ndarray, "3"]:
        """Return where the fingertips should be."""
        above_underside = grasp.underside
        offset = -grasp.centre
        if _held(state, grasp):
            above_underside = state.gripper[2] - state.object_corners[:, 2].min()
            offset = state.gripper[:2] - _middle(state.object_corners)[:2]
        match self._phase:
            case "above":
                return np.array([*grasp.position[:2], grasp.hover])
            case "down" | "close":
                return grasp.position
            case "lift":
                return np.array([*grasp.position[:2], state.clearance + grasp.underside + 0.03])
            case "carry":
                height = state.clearance + above_underside + 0.02
                return np.array([*(state.target + offset), height])
            case "lower":
                height = state.release + above_underside + 0.004
                return np.array([*(state.target + offset), height])
            case "retreat":
                return state.gripper + np.array([0.0, 0.0, 0.05])
        return state.gripper

    def _action(self, state: Scene, grasp: Grasp) -> Float32[np.ndarray, "7"]:
        error = self._goal(state, grasp) - state.gripper
        # The controller covers about a fifth of a displacement in one step, so ask for more.
        gain = 3.0 if np.linalg.norm(error) < 0.03 else 2.0
        holding = self._phase in ("close", "lift", "carry", "lower")
        speed = 0.5 if state.by_rim and holding else 1.0  # a pinched rim slips
        move = speed * np.clip(gain * error / _METRES_PER_ACTION, -1, 1)
        turn = np.clip(2.0 * _turn(state, grasp) / _RADIANS_PER_ACTION, -1, 1)
        return np.concatenate([move, turn, [_CLOSE if holding else _OPEN]]).astype(np.float32)


def plan_grasp(scene: Scene) -> Grasp:
    """Return the cheapest grasp from above: narrow, little turning, room for fingers and hand."""
    low, high = scene.object_corners.min(0), scene.object_corners.max(0)
    middle = (low + high) / 2
    height = float(high[2] - 0.024) if scene.by_rim else _body_height(scene)
    candidates = _rim_grasps(scene) if scene.by_rim else _body_grasps(scene)
    best, best_cost = None, np.inf
    for position, angle, cost in candidates:
        total = cost + 2.0 * _collisions(scene, position, angle, height)
        if total < best_cost:
            best, best_cost = (position, angle), total
    assert best is not None
    position, angle = np.array([*best[0], height]), best[1]
    current = np.arctan2(scene.closing[1], scene.closing[0])
    turn = Rotation.from_rotvec([0, 0, _folded(angle - current)]).as_matrix()
    return Grasp(
        position=position,
        rotation=turn @ _pointing_down(scene.rotation),
        hover=max(high[2], height) + 0.06,
        underside=height - low[2],
        centre=middle[:2] - position[:2],
    )


type _Candidate = tuple[Float64[np.ndarray, "2"], float, float]


def _body_grasps(scene: Scene) -> Iterator[_Candidate]:
    """Yield position, closing angle and cost of grasps around the object's middle."""
    current = np.arctan2(scene.closing[1], scene.closing[0])
    for turn in np.radians(np.arange(-90, 91, 5)):
        direction = np.array([np.cos(current + turn), np.sin(current + turn)])
        width = np.ptp(scene.object_corners[:, :2] @ direction)
        cost = 60 * max(width - _WIDEST_GRASP, 0) + 3 * width + 0.3 * abs(turn)
        yield _middle(scene.object_corners)[:2], float(current + turn), float(cost)


def _rim_grasps(scene: Scene) -> Iterator[_Candidate]:
    """Yield grasps of a bowl's rim, one finger inside."""
    current = np.arctan2(scene.closing[1], scene.closing[0])
    radius = np.ptp(scene.object_corners[:, :2], axis=0).mean() / 2 - 0.006
    for angle in np.radians(np.arange(0, 360, 15)):
        direction = np.array([np.cos(angle), np.sin(angle)])
        position = _middle(scene.object_corners)[:2] + radius * direction
        yield position, float(angle), 0.3 * abs(_folded(angle - current))


def _body_height(scene: Scene) -> float:
    """Return the fingertips' height: about the middle; the palm is 4 cm above them."""
    low, high = scene.object_corners[:, 2].min(), scene.object_corners[:, 2].max()
    size = high - low
    height = (low + high) / 2
    if size > 0.03:
        height = min(height + (0.01 if size > 0.06 else 0.0), high - 0.02)
    return float(max(height, low + 0.01, high - 0.036))


def _collisions(scene: Scene, position: Float64[np.ndarray, "2"], angle: float, height: float) -> int:
    """Return how many obstacles are where the fingers, or the hand above them, would be."""
    along = np.array([np.cos(angle), np.sin(angle)])
    across = np.array([-along[1], along[0]])
    inner = 0.025 if scene.by_rim else 0.032
    count = 0
    for corners in scene.obstacles:
        u, v = (corners[:, :2] - position) @ along, (corners[:, :2] - position) @ across
        top = corners[:, 2].max()

        def hits(first: float, last: float, half: float, u=u, v=v) -> bool:
            return bool(u.min() < last and u.max() > first and v.min() < half and v.max() > -half)

        if top > height - 0.005:
            count += hits(inner, 0.062, 0.018) or hits(-0.062, -inner, 0.018)
        if top > height + 0.035:
            count += hits(-0.11, 0.11, 0.04)
    return count


def _held(scene: Scene, grasp: Grasp) -> bool:
    """Return whether the object is where a held one would be."""
    expected = scene.gripper + np.array([*grasp.centre, -grasp.underside])
    position = np.array([*_middle(scene.object_corners)[:2], scene.object_corners[:, 2].min()])
    return bool(np.linalg.norm(position - expected) < 0.05)


def _turn(scene: Scene, grasp: Grasp) -> Float64[np.ndarray, "3"]:
    """Return the rotation that is missing, as a rotation vector in world axes."""
    return Rotation.from_matrix(grasp.rotation @ scene.rotation.T).as_rotvec()


def _pointing_down(rotation: Float64[np.ndarray, "3 3"]) -> Float64[np.ndarray, "3 3"]:
    """Return the nearest rotation whose third axis points exactly down."""
    down = np.array([0.0, 0.0, -1.0])
    second = rotation[:, 1] - down * (rotation[:, 1] @ down)
    second /= np.linalg.norm(second)
    return np.stack([np.cross(second, down), second, down], axis=1)


def _folded(angle: float) -> float:
    """Return the angle modulo half a turn, in [-pi/2, pi/2): fingers are interchangeable."""
    return float((angle + np.pi / 2) % np.pi - np.pi / 2)


def _middle(corners: Float64[np.ndarray, "n 3"]) -> Float64[np.ndarray, "3"]:
    return (corners.min(0) + corners.max(0)) / 2
