"""What the tests of known failures share: masks, layouts, comparisons."""

from __future__ import annotations

import numpy as np

from numba_sparse_attn import HeadPatterns

__all__ = ["LAYOUTS", "MALFORMED", "causal_window", "mask_of", "ragged", "relaid", "same_bits"]


def mask_of(pattern):
    """(n_q, n_k), or (heads, n_q, n_k) where the heads differ."""
    if isinstance(pattern, HeadPatterns):
        return np.stack([member.toarray() for member in pattern])
    return pattern.toarray()


def ragged(n_q, n_k, seed=0):
    """Random pairs, with rows that have no key, all keys, and a key that nobody has."""
    mask = np.random.default_rng(seed).random((n_q, n_k)) < 0.3
    mask[[0, n_q // 3]] = False
    mask[n_q // 2] = True
    mask[:, 1] = False
    return mask


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
