"""Normally distributed numbers that are the same on every machine and with every version of NumPy."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from scipy import special

from ..patterns._random import words

__all__ = ["normals"]


def normals(seed: int, shape: tuple[int, ...]) -> npt.NDArray[np.float64]:
    """Draws of the stream that starts at `seed`, in C order: splitmix64 through the normal distribution.

    Examples
    --------
    >>> normals(0, (2, 2)).round(3).tolist()
    [[1.192, -0.172], [-1.936, 1.894]]
    """
    count = math.prod(shape)
    drawn = words(np.full(count, seed, np.uint64), np.arange(count, dtype=np.int64))
    # The middle of one of 2**53 equal intervals: neither 0 nor 1, both of which are infinitely far out.
    uniform = ((drawn >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    return np.asarray(special.ndtri(uniform)).reshape(shape)
