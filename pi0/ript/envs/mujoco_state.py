"""A MuJoCo simulation's full state as one flat vector, and the detection of unstable physics."""

# MuJoCo's bindings come without type stubs.
# pyright: reportAttributeAccessIssue=false

from collections.abc import Iterable

import mujoco
import numpy as np
from jaxtyping import Float64

from pi0.ript.envs.base import SimulationDivergedError
from pi0.ript.envs.initial_state import InitialState, InitialStateError

_INTEGRATION = int(mujoco.mjtState.mjSTATE_INTEGRATION)
_INSTABILITIES = (
    mujoco.mjtWarning.mjWARN_BADQPOS,
    mujoco.mjtWarning.mjWARN_BADQVEL,
    mujoco.mjtWarning.mjWARN_BADQACC,
)


def get_physics(
    model: mujoco.MjModel, data: mujoco.MjData, model_arrays: Iterable[str]
) -> Float64[np.ndarray, " n"]:
    """Return the integration state followed by the model arrays that a reset moves."""
    state = np.empty(mujoco.mj_stateSize(model, _INTEGRATION))
    mujoco.mj_getState(model, data, state, _INTEGRATION)
    return np.concatenate([state, *(getattr(model, name).ravel() for name in model_arrays)])


def set_physics(
    model: mujoco.MjModel,
    data: mujoco.MjData,
    model_arrays: Iterable[str],
    vector: Float64[np.ndarray, " n"],
) -> Float64[np.ndarray, " rest"]:
    """Restore what `get_physics` returned and return what follows it in the vector.

    The derived quantities are recomputed; that changes the solver's warm start, which is therefore
    set again. Nothing remains of what the simulation did before.
    """
    mujoco.mj_resetData(model, data)
    at = mujoco.mj_stateSize(model, _INTEGRATION)
    state = vector[:at]
    for name in model_arrays:
        array = getattr(model, name)
        array[:] = vector[at : at + array.size].reshape(array.shape)
        at += array.size
    mujoco.mj_setState(model, data, state, _INTEGRATION)
    mujoco.mj_forward(model, data)
    mujoco.mj_setState(model, data, state, _INTEGRATION)
    return vector[at:]


def require_size(state: InitialState, size: int) -> None:
    """Raise InitialStateError unless the state has the simulation's size."""
    if state.vector.size != size:
        raise InitialStateError(
            f"state of task {state.task!r} has {state.vector.size} numbers, the simulation {size}: "
            "it was made with another version of the simulator; make the pool of states again"
        )


def require_stable(data: mujoco.MjData) -> None:
    """Raise SimulationDivergedError when MuJoCo has met NaN or huge values since the restore.

    MuJoCo itself only warns, and goes on from its default pose.
    """
    for warning in _INSTABILITIES:
        if data.warning[warning].number:
            raise SimulationDivergedError(f"{warning.name} at simulated time {data.time:.3f} s")
