"""Pieces of the definitions: n x n arrays in plain NumPy, for the few hundred tokens of a test."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["best", "best_blocks", "probabilities", "ranges", "seen"]

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


def ranges(n: int, block: int) -> list[range]:
    """The tokens of every block."""
    return [range(begin, min(begin + block, n)) for begin in range(0, n, block)]


def best_blocks(
    scores: Array,
    shape: tuple[int, int],
    block: int,
    query_block: int,
    budget: int,
    causal: bool,
    always: tuple[int, int] = (0, 1),
) -> Mask:
    """In every block of queries, the `budget` best blocks of keys by ``scores[query block, key block]``.

    Causal: the blocks in which the queries themselves stand are in before any other, with
    ``always[1] - 1`` before them; and so are the first ``always[0]`` blocks.
    """
    n_q, n_k = shape
    mask = np.zeros(shape, np.bool_)
    for number, rows in enumerate(ranges(n_q, query_block)):
        places = [row + n_k - n_q for row in rows if row + n_k - n_q >= 0]
        reached = [
            at
            for at, keys in enumerate(ranges(n_k, block))
            if not causal or (places and keys[0] <= places[-1])
        ]
        kept = {at for at in reached if at < always[0]}
        if causal and places:
            kept |= {at for at in reached if at > places[0] // block - always[1]}
        others = sorted((at for at in reached if at not in kept), key=lambda at: (-scores[number, at], at))
        for at in [*kept, *others[: max(0, budget - len(kept))]]:
            keys = range(at * block, min((at + 1) * block, n_k))
            mask[rows[0] : rows[-1] + 1, keys[0] : keys[-1] + 1] = True
    return mask & seen(n_q, n_k, causal)
