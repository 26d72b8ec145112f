"""Pieces of the definitions: n x n arrays in plain NumPy, for the few hundred tokens of a test."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["best", "probabilities", "seen"]

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]


def seen(n_q: int, n_k: int, causal: bool) -> Mask:
    """Pairs that may be selected at all: j <= i + n_k - n_q where causal."""
    return np.tri(n_q, n_k, n_k - n_q, dtype=np.bool_) if causal else np.ones((n_q, n_k), np.bool_)


def best(scores: Array, allowed: Mask, budget: int) -> Mask:
    """In every row, the `budget` largest of the allowed scores; the first of equal ones."""
    chosen = np.zeros(scores.shape, np.bool_)
    for row, places in enumerate(allowed):
        candidates = np.flatnonzero(places)
        order = np.argsort(-scores[row, candidates], kind="stable")
        chosen[row, candidates[order[:budget]]] = True
    return chosen


def probabilities(scores: Array, allowed: Mask) -> Array:
    """Softmax over the allowed scores of every row; a row without any is 0."""
    powers = np.where(allowed, np.exp(scores - scores.max(axis=1, initial=0.0, keepdims=True)), 0.0)
    totals = powers.sum(axis=1, keepdims=True)
    return np.divide(powers, totals, out=np.zeros_like(powers), where=totals > 0.0)
