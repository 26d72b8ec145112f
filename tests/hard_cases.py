"""What the tests of known failures share: masks, layouts, comparisons."""

from __future__ import annotations

import numpy as np

__all__ = ["LAYOUTS", "MALFORMED", "causal_window", "relaid", "same_bits"]


def same_bits(one, other):
    for name in one:
        assert one[name].tobytes() == other[name].tobytes(), f"{name} differs"


def causal_window(n_q, n_k, reach=37):
    behind = np.arange(n_q)[:, None] + (n_k - n_q) - np.arange(n_k)
    return (0 <= behind) & (behind <= reach)


def relaid(array, layout):
    """An array with other strides, equal to the given one except where the layout repeats rows."""
    if layout == "transposed":
        return np.ascontiguousarray(array.swapaxes(-1, -2)).swapaxes(-1, -2)
    if layout == "heads last":
        return np.ascontiguousarray(array.swapaxes(-2, -3)).swapaxes(-2, -3)
    if layout == "every second":
        wide = np.full((*array.shape[:-1], 2 * array.shape[-1]), np.nan, array.dtype)
        wide[..., ::2] = array
        return wide[..., ::2]
    if layout == "backwards":
        return np.ascontiguousarray(array[..., ::-1, ::-1])[..., ::-1, ::-1]
    if layout == "one head":
        return np.broadcast_to(array[..., :1, :, :], array.shape)
    return np.broadcast_to(array[..., :1, :], array.shape)  # one token


LAYOUTS = ("transposed", "heads last", "every second", "backwards", "one head")

#: (indptr, indices) of three rows over three keys that no engine may see.
MALFORMED = (
    ([0, 2, 1, 3], [0, 1, 2]),
    ([0, 1, 2, 9], [0, 1, 2]),
    ([1, 1, 2, 3], [0, 1, 2]),
    ([0, 1, 3], [0, 1, 2]),
    ([0, 1, 2, 3], [0, 1, 3]),
    ([0, 1, 2, 3], [0, -1, 2]),
    ([0, 1, 2, 3], [0, 2**31 - 1, 2]),
)
