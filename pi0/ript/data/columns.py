"""Columns of parquet files as arrays of numbers, or of answers. Axes: r row, d number of a row."""

from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Int8, Int64, Shaped

UNKNOWN = -1
"""In a column of answers: nobody knows."""


def numbers(column: pa.ChunkedArray) -> Shaped[np.ndarray, "r d"]:
    """Return a column of numbers, or of lists of equally many, row by row; NaN where there is none.

    Raises:
        ValueError: It is none; the message is what was expected and found.
    """
    cells: Any = column.combine_chunks()
    cells = getattr(cells, "storage", cells)  # of an extension type
    width = 1
    if pa.types.is_fixed_size_list(cells.type):
        width = cells.type.list_size
    elif pa.types.is_list(cells.type) or pa.types.is_large_list(cells.type):
        lengths = cells.value_lengths().drop_null().to_numpy(zero_copy_only=False)
        width = int(lengths[0]) if len(lengths) else 1
        if (lengths != width).any():
            row = int(np.flatnonzero(lengths != width)[0])
            raise ValueError(f"expected {width} numbers in every row, found {lengths[row]} in row {row}")
    is_list = pa.types.is_nested(cells.type)
    if is_list and cells.null_count:
        nothing = [None] * width
        cells = pa.array([nothing if x is None else x for x in cells.to_pylist()], cells.type)
    flat = cells.flatten() if is_list else cells
    kind = flat.type
    if pa.types.is_boolean(kind) and flat.null_count:
        flat = flat.cast(pa.int8())  # becomes floats, which can be NaN
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
        raise ValueError(f"expected numbers, found {column.type}")
    return flat.to_numpy(zero_copy_only=False).reshape(len(column), width)


def one_number(column: pa.ChunkedArray) -> Shaped[np.ndarray, " r"]:
    """Return a column with one number in every row; raise ValueError if it is none."""
    values = numbers(column)
    if values.shape[1] != 1:
        raise ValueError(f"expected one number in every row, found {values.shape[1]}")
    return values[:, 0]


def whole_numbers(column: pa.ChunkedArray) -> Int64[np.ndarray, " r"]:
    """Return a column of whole numbers, which may be stored as floats; raise ValueError if it is none."""
    values = one_number(column)
    if values.dtype.kind == "f":
        wrong = ~(np.isfinite(values) & (values == np.rint(values)))
        if wrong.any():
            row = int(np.flatnonzero(wrong)[0])
            raise ValueError(f"expected whole numbers, found {values[row]} in row {row}")
    elif values.dtype.kind not in "iu":
        raise ValueError(f"expected whole numbers, found {column.type}")
    return values.astype(np.int64)


def answers(column: pa.ChunkedArray) -> Int8[np.ndarray, " r"]:
    """Return a column of yes and no as 1, 0, or UNKNOWN where it is empty or NaN.

    Raises:
        ValueError: It holds something else than 0, 1, true and false.
    """
    values = one_number(column).astype(np.float64)
    is_known = ~np.isnan(values)
    wrong = np.flatnonzero(is_known & (values != 0) & (values != 1))
    if len(wrong):
        raise ValueError(f"expected 0, 1, true or false, found {values[wrong[0]]:g} in row {wrong[0]}")
    return np.where(is_known, values, UNKNOWN).astype(np.int8)
