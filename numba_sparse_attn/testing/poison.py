"""NaN where nothing may look: in keys that no query selects, in outputs, around arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from .problems import Problem

__all__ = ["assert_margins_untouched", "nan_filled", "poisoned", "surrounded"]

_MARGIN = 256

_Rows = npt.NDArray[np.bool_]


def poisoned(problem: Problem, value: float = np.nan) -> Problem:
    """The problem with `value` in every row that takes part in no pair; its results are the same.

    Rows of k and v that no query of any head in their group selects, and rows of q and dout whose
    query has no keys, are overwritten, in copies with the same strides. An array with a stride of zero
    stays as it is: its rows share their memory.

    Examples
    --------
    >>> import numpy as np
    >>> from numba_sparse_attn.testing import random_problem
    >>> dirty = poisoned(random_problem([[True, False], [False, False]], head_dim=2))
    >>> np.isnan(dirty.k[0, :, 0]).tolist(), np.isnan(dirty.q[0, :, 0]).tolist()
    ([False, True], [False, True])
    """
    selected = problem.selected
    asked: _Rows = np.any(selected, axis=-1)
    read: _Rows = np.any(selected, axis=-2)
    kv_lead = problem.k.shape[:-2]
    if kv_lead:
        group = selected.shape[-3] // kv_lead[-1]
        read = np.any(read.reshape(*kv_lead, group, selected.shape[-1]), axis=-2)
    rows = (asked, read, read, asked)
    return problem.with_arrays(
        *(
            _overwritten(array, np.logical_not(used), value)
            for array, used in zip(problem.arrays, rows, strict=True)
        )
    )


def _overwritten(array: npt.NDArray[Any], rows: _Rows, value: float) -> npt.NDArray[Any]:
    """A copy in the same layout, between NaN, with `value` in some rows."""
    if array.size == 0 or any(s == 0 and n > 1 for s, n in zip(array.strides, array.shape, strict=True)):
        return array
    low, high = np.lib.array_utils.byte_bounds(array)
    first = (array.__array_interface__["data"][0] - low) // array.itemsize
    buffer = nan_filled(((high - low) // array.itemsize,), array.dtype)
    copy = np.lib.stride_tricks.as_strided(buffer[first:], array.shape, array.strides)
    copy[...] = array
    copy[rows] = value
    return copy


def nan_filled(shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """An output array in which what is never written shows.

    Examples
    --------
    >>> nan_filled((2,), "float32").tolist()
    [nan, nan]
    """
    return np.full(shape, np.nan, dtype)


def surrounded(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """A contiguous copy of `array` in the middle of a buffer of NaN.

    Reading past either end gives NaN; writing past it is found by :func:`assert_margins_untouched`.

    Examples
    --------
    >>> import numpy as np
    >>> surrounded(np.arange(3.0)).tolist()
    [0.0, 1.0, 2.0]
    """
    buffer = nan_filled((array.size + 2 * _MARGIN,), array.dtype)
    view = buffer[_MARGIN : _MARGIN + array.size].reshape(array.shape)
    view[...] = array
    return view


def assert_margins_untouched(view: npt.NDArray[Any]) -> None:
    """Fail if the NaN around an array from :func:`surrounded` has been overwritten.

    Examples
    --------
    >>> import numpy as np
    >>> assert_margins_untouched(surrounded(np.zeros(3)))
    """
    buffer = view
    while isinstance(buffer.base, np.ndarray):
        buffer = buffer.base
    margins = np.concatenate((buffer[:_MARGIN], buffer[buffer.size - _MARGIN :]))
    written = np.flatnonzero(~np.isnan(margins))
    if written.size:
        raise AssertionError(f"{written.size} elements were written outside of the array")
