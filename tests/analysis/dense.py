"""The measures once more, from their definitions: dense, in float64, with every weight written out."""

from __future__ import annotations

import numpy as np

__all__ = ["divergence", "entropy", "probabilities", "strongest"]


def probabilities(problem, mask):
    """Weights ``(..., heads, n_q, n_k)``; zeros in the rows of queries without keys."""
    q, k = (array.astype(np.float64) for array in (problem.q, problem.k))
    k = np.repeat(k, q.shape[-3] // k.shape[-3], axis=-3)
    scores = problem.scale * (q @ k.swapaxes(-1, -2))
    seen = np.broadcast_to(mask, scores.shape)
    peak = np.max(scores, axis=-1, keepdims=True, initial=-np.inf, where=seen)
    powers = np.where(seen, np.exp(np.where(seen, scores - np.where(peak > -np.inf, peak, 0.0), 0.0)), 0.0)
    total = powers.sum(axis=-1, keepdims=True)
    return np.divide(powers, total, out=np.zeros_like(powers), where=total > 0.0)


def entropy(weights):
    """NaN without keys."""
    logs = np.log(weights, out=np.zeros_like(weights), where=weights > 0.0)
    return np.where(weights.any(axis=-1), -(weights * logs).sum(axis=-1), np.nan)


def divergence(found, dense):
    """Of `found` from `dense`: infinite where `found` has what `dense` has not, or nothing."""
    result = np.full(found.shape[:-1], np.inf)
    for row in np.ndindex(result.shape):
        one, other = found[row], dense[row]
        if not other.any():
            result[row] = np.nan
        elif one.any() and not np.any((one > 0) & (other == 0)):
            some = one > 0
            result[row] = np.sum(one[some] * np.log(one[some] / other[some]))
    return result


def strongest(weights, seen, share):
    """Weight of the ceil(share * keys) keys that weigh most."""
    result = np.full(weights.shape[:-1], np.nan)
    counts = np.broadcast_to(seen, weights.shape).sum(axis=-1)
    for row in np.ndindex(result.shape):
        if counts[row]:
            count = int(np.ceil(np.round(share * counts[row], 9)))
            result[row] = np.sort(weights[row])[::-1][:count].sum()
    return result
