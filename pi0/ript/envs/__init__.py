"""Simulated environments behind one batched contract; importing this loads no simulator.

On Linux MuJoCo renders through EGL unless MUJOCO_GL says otherwise: it needs no display. MuJoCo
reads the variable when it is first imported.
"""

import os
import sys

from pi0.ript.envs.base import (
    ChunkResult,
    EnvObservation,
    Simulation,
    SimulationDivergedError,
    Task,
    TaskSuite,
)
from pi0.ript.envs.batched import BatchedEnv
from pi0.ript.envs.initial_state import (
    InitialState,
    InitialStateError,
    load_initial_states,
    pool_hash,
    require_disjoint,
    save_initial_states,
)
from pi0.ript.envs.registry import make_env, make_suite, register_env

__all__ = [
    "BatchedEnv",
    "ChunkResult",
    "EnvObservation",
    "InitialState",
    "InitialStateError",
    "Simulation",
    "SimulationDivergedError",
    "Task",
    "TaskSuite",
    "load_initial_states",
    "make_env",
    "make_suite",
    "pool_hash",
    "register_env",
    "require_disjoint",
    "save_initial_states",
]

if sys.platform == "linux":
    os.environ.setdefault("MUJOCO_GL", "egl")
