"""An object's numeric attributes as one flat vector: what simulators keep outside of MuJoCo."""

from collections.abc import Container
from typing import Any

import numpy as np
from jaxtyping import Float64


def numeric_attributes(owner: Any, exclude: Container[str] = ()) -> dict[str, Any]:
    """Return the attributes that are numbers, arrays of numbers or None, sorted by name.

    Their values are the templates that `pack_attributes` and `unpack_attributes` take types and shapes from.
    Arrays that are windows into MuJoCo's own data are left out: they follow the physics.
    """
    return {
        name: value
        for name, value in sorted(vars(owner).items())
        if name not in exclude
        and (
            value is None
            or isinstance(value, bool | int | float | np.number | np.bool_)
            or (isinstance(value, np.ndarray) and _owns_memory(value))
        )
    }


def pack_attributes(owner: Any, templates: dict[str, Any]) -> Float64[np.ndarray, " n"]:
    """Return the attributes' present values; None, in attributes set lazily, becomes NaN."""
    values = [vars(owner)[name] for name in templates]
    return np.concatenate([np.ravel(np.nan if v is None else v).astype(np.float64) for v in values])


def unpack_attributes(
    owner: Any, templates: dict[str, Any], vector: Float64[np.ndarray, " n"]
) -> Float64[np.ndarray, " rest"]:
    """Set the attributes from what `pack_attributes` returned and return what follows it in the vector."""
    at = 0
    for name, template in templates.items():
        size = np.size(template) if template is not None else 1
        vars(owner)[name] = _typed(vector[at : at + size], template)
        at += size
    return vector[at:]


def _owns_memory(array: np.ndarray) -> bool:
    """Return whether the memory is numpy's, not MuJoCo's."""
    owner: object = array
    while isinstance(owner, np.ndarray) and owner.base is not None:
        owner = owner.base
    return isinstance(owner, np.ndarray) and owner.dtype != object


def _typed(numbers: Float64[np.ndarray, " n"], template: Any) -> Any:
    """Return numbers in the template's type and shape."""
    if isinstance(template, np.ndarray):
        array = np.empty_like(template)  # memory order too: it decides how products round
        array[...] = numbers.reshape(template.shape)
        return array
    if template is None:
        return None if np.isnan(numbers[0]) else float(numbers[0])
    return type(template)(numbers[0])
