"""Meta-World's own scripted policies as experts."""

import warnings
from typing import cast

import numpy as np
from jaxtyping import Float32, Float64
from metaworld.policies import ENV_POLICY_MAP

from pi0.ript.demonstrations.expert import Expert, Mistake
from pi0.ript.envs import Simulation
from pi0.ript.envs.metaworld import MetaWorldSimulation

_OBJECT = slice(4, 7)
_BESIDE_METRES = 0.10


class MetaWorldExpert(Expert[Float64[np.ndarray, "39"]]):
    """A policy of `metaworld.policies`. Its state: Meta-World's own observation, goal included."""

    moving = trembling = slice(0, 3)
    mistakes = ("beside",)

    def __init__(self, task: str) -> None:
        self._policy = ENV_POLICY_MAP[task]()

    def read(self, simulation: Simulation) -> Float64[np.ndarray, "39"]:
        """Return hand, objects and goal, now and one simulator step ago."""
        return cast(MetaWorldSimulation, simulation).privileged_observation

    def misled(self, state: Float64[np.ndarray, "39"], mistake: Mistake) -> Float64[np.ndarray, "39"]:
        """Return the observation with the object 10 cm beside where it is, along x."""
        perceived = state.copy()
        perceived[_OBJECT][0] += _BESIDE_METRES
        return perceived

    def act(self, state: Float64[np.ndarray, "39"]) -> Float32[np.ndarray, "4"]:
        """Return the policy's action, clipped as the simulator clips it."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # upstream's own, that it relies on clipping
            action = self._policy.get_action(state)
        return np.clip(action, -1.0, 1.0).astype(np.float32)
