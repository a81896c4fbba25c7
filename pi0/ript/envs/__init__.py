"""Simulated environments behind one batched contract; importing this loads no simulator."""

from pi0.ript.envs.base import (
    ChunkResult,
    EnvObservation,
    Frame,
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
    "Frame",
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
