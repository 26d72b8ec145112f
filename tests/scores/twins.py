"""Changes of scores beside the oracle's twins of them, for a mask and a number of heads."""

from __future__ import annotations

import math

import numpy as np
from scipy import sparse

from numba_sparse_attn import scores
from numba_sparse_attn.reference_scores import (
    DenseAlibi,
    DenseBias,
    DenseFunction,
    DenseRelative,
    DenseSoftCap,
)


def tilted(score, head, i, j):
    """Depends on everything that it is given, and bends."""
    if j > i:
        return 0.5 * score + 0.1 * head
    return math.tanh(score) + 0.01 * score * score - 0.02 * (i - j)


def tilted_slope(score, head, i, j):
    return 0.5 if j > i else 1.0 - math.tanh(score) ** 2 + 0.02 * score


def bias_by_head(mask, heads, rng):
    """As plain numbers, in the order of the pattern."""
    dense = rng.standard_normal((1, heads, *mask.shape[-2:])).astype(np.float32)
    seen = np.broadcast_to(mask, (heads, *mask.shape[-2:]))
    if mask.ndim > 2:
        return scores.bias(
            [matrix[chosen] for matrix, chosen in zip(dense[0], seen, strict=True)]
        ), DenseBias(dense)
    return scores.bias(np.stack([matrix[mask] for matrix in dense[0]])), DenseBias(dense)


def bias_for_all(mask, heads, rng):
    """As a SciPy array that stores more pairs than are selected, and not all of these."""
    dense = np.where(rng.random(mask.shape[-2:]) < 0.8, rng.standard_normal(mask.shape[-2:]), 0.0)
    return scores.bias(sparse.csr_array(dense.astype(np.float32))), DenseBias(
        dense.astype(np.float32)[None, None]
    )


def alibi(mask, heads, rng):
    n_q, n_k = mask.shape[-2:]
    slopes = (10.0 / n_k * rng.random(heads)).astype(np.float32)
    return scores.alibi(slopes, learnable=True), DenseAlibi(slopes, n_k - n_q)


def softcap(mask, heads, rng):
    return scores.softcap(0.7), DenseSoftCap(0.7)


def relative(mask, heads, rng):
    """On a line, shorter than the differences that occur."""
    n_q, n_k = mask.shape[-2:]
    table = rng.standard_normal((heads, 9)).astype(np.float32)
    difference = np.arange(n_q)[:, None] + (n_k - n_q) - np.arange(n_k)
    return scores.relative(table), DenseRelative(table, np.clip(difference + 4, 0, 8))


def modify(mask, heads, rng):
    return scores.modify(tilted), DenseFunction(tilted, tilted_slope)


EVERY = {
    "bias by head": bias_by_head,
    "bias for all": bias_for_all,
    "alibi": alibi,
    "softcap": softcap,
    "relative": relative,
    "modify": modify,
}
