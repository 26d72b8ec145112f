"""Keys or values of a stretch of tokens as one: their mean, with its gradient."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from .. import arrays
from ..errors import ShapeError
from ..patterns._arguments import check_int

__all__ = ["compress", "compress_backward", "compressed_length"]

Array = npt.NDArray[Any]


def compressed_length(n: int, length: int, stride: int) -> int:
    """How many whole stretches of `length` tokens begin at multiples of `stride`.

    Examples
    --------
    >>> compressed_length(64, 32, 16), compressed_length(31, 32, 16)
    (3, 0)
    """
    return max(0, (n - length) // stride + 1)


def compress(x: Any, length: int, stride: int) -> Any:
    """Means of overlapping stretches: token c is the mean of ``x[c * stride : c * stride + length]``.

    The simplest of the maps that native sparse attention compresses keys and values with, and the one that
    has no parameters. Another map has to keep the layout: a token for every whole stretch.

    Parameters
    ----------
    x : array (..., n, d)
        Keys or values, in host or GPU memory.
    length, stride : int
        At least 1. Tokens at the end that fill no stretch are left out.

    Returns
    -------
    array (..., (n - length) // stride + 1, d)
        In the type of `x`; computed in float32, or float64 for float64. In GPU memory an array of the library
        that `x` is one of.

    Examples
    --------
    >>> import numpy as np, numba_sparse_attn as nsa
    >>> nsa.dynamic.compress(np.arange(10.0)[:, None], 4, 2)[:, 0].tolist()
    [1.5, 3.5, 5.5, 7.5]
    """
    if arrays.in_device_memory(x):
        from ..cuda.interchange import device_view
        from ..cuda.selection import compress_view

        view = device_view(x, "x")
        if view is not None:
            sizes = _checked_sizes(view, "x", length, stride)
            return compress_view(view, *sizes, compressed_length(view.shape[-2], *sizes))
    x, length, stride = _checked(x, "x", length, stride)
    count = compressed_length(x.shape[-2], length, stride)
    if not count:
        return np.zeros((*x.shape[:-2], 0, x.shape[-1]), x.dtype)
    # Every `stride`-th of the windows, as a view: the mean reads each token length / stride times.
    windows = np.lib.stride_tricks.sliding_window_view(x, length, axis=-2)[..., ::stride, :, :]
    return np.asarray(windows.mean(axis=-1, dtype=_wide(x)).astype(x.dtype, copy=False))


def compress_backward(dout: Any, n: int, length: int, stride: int) -> Array:
    """Gradient of :func:`compress` with respect to its `n` tokens.

    Parameters
    ----------
    dout : array (..., (n - length) // stride + 1, d)
        Gradient of a scalar with respect to the compressed tokens.
    n : int
        Tokens before compression.
    length, stride : int
        As in the forward call.

    Returns
    -------
    array (..., n, d)
        In the type of `dout`.

    Examples
    --------
    >>> import numpy as np, numba_sparse_attn as nsa
    >>> nsa.dynamic.compress_backward(np.ones((2, 1)), 7, 4, 2)[:, 0].tolist()
    [0.25, 0.25, 0.5, 0.5, 0.25, 0.25, 0.0]
    """
    dout, length, stride = _checked(dout, "dout", length, stride)
    n = check_int("n", n)
    count = compressed_length(n, length, stride)
    if dout.shape[-2] != count:
        raise ShapeError(
            f"dout with shape {dout.shape} for {n} tokens in stretches of {length} every {stride}",
            f"a gradient for each of {count} stretches",
            "pass the numbers of the forward call",
        )
    dx = np.zeros((*dout.shape[:-2], n, dout.shape[-1]), _wide(dout))
    share = dout / dx.dtype.type(length)
    for place in range(length if count else 0):
        dx[..., place : place + (count - 1) * stride + 1 : stride, :] += share
    return dx.astype(dout.dtype, copy=False)


def _checked(array: Any, name: str, length: Any, stride: Any) -> tuple[Array, int, int]:
    made = arrays.host_array(array, name)
    return made, *_checked_sizes(made, name, length, stride)


def _checked_sizes(array: arrays.ArrayLike, name: str, length: Any, stride: Any) -> tuple[int, int]:
    arrays.check_dtype(array.dtype, name)
    if array.ndim < 2:
        raise ShapeError(f"{name} with shape {array.shape}", f"{name} (..., n, d)", "add the missing axes")
    return check_int("length", length, low=1), check_int("stride", stride, low=1)


def _wide(array: Array) -> type[np.float32] | type[np.float64]:
    return np.float64 if array.dtype == np.float64 else np.float32
