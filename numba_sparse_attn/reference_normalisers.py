"""The oracle's rules for other normalisers than softmax: dense, in float64, by the book, with NumPy alone.

Nothing else of the package is imported here. Thresholds come from sorted scores where there is a formula
(sparsemax, 1.5-entmax) and from bisection where there is none; gradients are those of the papers, in terms of
the weights. What they share with engines is the definition alone: weights are a function of score - lse.

A row with a score that is NaN, or whose largest score is infinite, has no weights but NaN, as for softmax.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["EntmaxRule", "PlusOneRule", "SigmoidRule"]

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

#: More than there are bits in a float64's mantissa and exponent together.
_HALVINGS = 80


class _Rule:
    """What most rules have: no parameter, and pairs whose weight is 0 by rounding only."""

    sparse = False

    def of_parameter(self, weights: Array, dweights: Array, head: int) -> float:
        """No parameter, no gradient."""
        return 0.0


class PlusOneRule(_Rule):
    """exp(score) over one plus the sum of them."""

    def weights(self, scores: Array, seen: Mask, head: int) -> tuple[Array, Array]:
        """Softmax over the scores and one more, which is 0."""
        peak = np.maximum(0.0, np.max(scores, axis=1, keepdims=True, initial=-np.inf, where=seen))
        weights = np.where(seen, np.exp(scores - peak), 0.0)
        total = np.exp(-peak) + weights.sum(axis=1, keepdims=True)
        lse = np.where(seen.any(axis=1), (peak + np.log(total))[:, 0], -np.inf)
        return np.where(seen, weights / total, 0.0), lse

    def weight(self, distance: Array, head: int) -> Array:
        """exp(score - lse)."""
        return np.asarray(np.exp(distance))

    def slopes(self, weights: Array, head: int) -> Array:
        """Of an exponential: itself."""
        return weights

    def delta(self, slopes: Array, dweights: Array) -> Array:
        """As for softmax: the score that is always 0 has value 0."""
        return np.asarray(np.sum(slopes * dweights, axis=1, keepdims=True))


class SigmoidRule(_Rule):
    """1 / (1 + exp(-(score + bias))); the bias is minus the logarithm of a row's length unless given."""

    def __init__(self, bias: float | None) -> None:
        self._bias = bias

    def weights(self, scores: Array, seen: Mask, head: int) -> tuple[Array, Array]:
        """Weights, and minus the bias."""
        count = seen.sum(axis=1)
        lse = np.log(count) if self._bias is None else np.full(len(seen), -self._bias)
        lse = np.where(count > 0, lse, -np.inf)
        return np.where(seen, 1.0 / (1.0 + np.exp(lse[:, None] - scores)), 0.0), lse

    def weight(self, distance: Array, head: int) -> Array:
        """1 / (1 + exp(lse - score))."""
        return np.asarray(1.0 / (1.0 + np.exp(-distance)))

    def slopes(self, weights: Array, head: int) -> Array:
        """Of the logistic function."""
        return weights * (1.0 - weights)

    def delta(self, slopes: Array, dweights: Array) -> Array:
        """Every weight is by itself."""
        return np.zeros((len(slopes), 1))


class EntmaxRule(_Rule):
    """alpha-entmax, with an alpha for every head."""

    sparse = True

    def __init__(self, alphas: npt.ArrayLike) -> None:
        self._alphas = np.asarray(alphas, np.float64)

    def weights(self, scores: Array, seen: Mask, head: int) -> tuple[Array, Array]:
        """``max(0, (alpha - 1) score - tau) ** (1 / (alpha - 1))``, and (tau + 1) / (alpha - 1)."""
        step = self._alphas[head] - 1.0
        some = seen.any(axis=1)
        peak = np.where(some, np.max(scores, axis=1, initial=-np.inf, where=seen), 0.0)
        lost = (np.isnan(scores) & seen).any(axis=1) | ~np.isfinite(peak)
        # Sorted out here, so that thresholds are looked for among numbers only.
        usual = seen & ~lost[:, None]
        shifted = np.where(usual, step * (scores - np.where(lost, 0.0, peak)[:, None]), -np.inf)
        find = {1.0: _sparsemax_threshold, 0.5: _entmax15_threshold}.get(step, _threshold)
        tau = find(shifted, step)
        above = np.where(usual, np.maximum(shifted - tau[:, None], 0.0), 0.0)
        weights = np.where(seen & lost[:, None], np.nan, above ** (1.0 / step))
        lse = np.where(lost, np.nan, peak + (tau + 1.0) / step)
        return weights, np.where(some, lse, -np.inf)

    def weight(self, distance: Array, head: int) -> Array:
        """max(0, 1 + (alpha - 1) (score - lse)) ** (1 / (alpha - 1))."""
        step = self._alphas[head] - 1.0
        return np.asarray(np.maximum(0.0, 1.0 + step * distance) ** (1.0 / step))

    def slopes(self, weights: Array, head: int) -> Array:
        """weight ** (2 - alpha) on the support."""
        support = (weights > 0.0) | np.isnan(weights)
        slopes = np.where(support, np.where(support, weights, 1.0) ** (2.0 - self._alphas[head]), 0.0)
        return np.where(np.isnan(weights), np.nan, slopes)  # NaN ** 0 is 1

    def delta(self, slopes: Array, dweights: Array) -> Array:
        """Mean of the incoming gradients, weighted with the slopes (Peters et al., proposition 2)."""
        total = slopes.sum(axis=1, keepdims=True)
        return np.asarray(
            np.sum(slopes * dweights, axis=1, keepdims=True) / np.where(total == 0.0, 1.0, total)
        )

    def of_parameter(self, weights: Array, dweights: Array, head: int) -> float:
        """Correia et al., proposition 1."""
        step = self._alphas[head] - 1.0
        support = (weights > 0.0) | np.isnan(weights)
        slopes = self.slopes(weights, head)
        total = slopes.sum(axis=1, keepdims=True)
        share = slopes / np.where(total == 0.0, 1.0, total)
        base = np.where(support, weights, 1.0)
        entropies = np.where(support, -base * np.log(base), 0.0)
        entropy = entropies.sum(axis=1, keepdims=True)
        derivatives = (weights - share) / step**2 + (entropies - share * entropy) / step
        return float(np.sum(derivatives * np.where(support, dweights, 0.0)))


def _sparsemax_threshold(scores: Array, step: float) -> Array:
    """Of every row, by sorting (Martins and Astudillo, algorithm 1); rows without finite scores give -1."""
    ordered, count, finite = _ordered(scores)
    sums = np.cumsum(ordered, axis=1)
    support = np.sum(finite & (1.0 + count * ordered > sums), axis=1)
    return (_at(sums, support) - 1.0) / np.maximum(support, 1)


def _entmax15_threshold(scores: Array, step: float) -> Array:
    """Of every row, by sorting (Peters et al., algorithm 2); the scores are already halved."""
    ordered, count, finite = _ordered(scores)
    mean = np.cumsum(ordered, axis=1) / count
    spread = np.cumsum(ordered**2, axis=1) - count * mean**2
    tau = mean - np.sqrt(np.maximum(0.0, (1.0 - spread) / count))
    # What a candidate for the support says of itself: its smallest member is above its threshold.
    support = np.sum(finite & (spread <= 1.0) & (tau <= ordered), axis=1)
    return np.where(support > 0, _at(tau, support), -1.0)


def _threshold(scores: Array, step: float) -> Array:
    """Of every row, by halving the interval that it must lie in."""
    count = np.maximum(1, np.isfinite(scores).sum(axis=1))
    low, high = np.full(len(scores), -1.0), -(count ** -float(step))
    for _ in range(_HALVINGS):
        middle = 0.5 * (low + high)
        total = np.sum(np.maximum(scores - middle[:, None], 0.0) ** (1.0 / step), axis=1)
        low, high = np.where(total >= 1.0, middle, low), np.where(total >= 1.0, high, middle)
    return np.where(np.isfinite(scores).any(axis=1), 0.5 * (low + high), -1.0)


def _ordered(scores: Array) -> tuple[Array, Array, Mask]:
    """Scores of every row, falling, 0 in place of -inf; places counted from 1; where there is a score."""
    ordered = -np.sort(-scores, axis=1)
    finite = np.isfinite(ordered)
    return np.where(finite, ordered, 0.0), np.arange(1, scores.shape[1] + 1)[None, :].astype(float), finite


def _at(values: Array, place: npt.NDArray[np.int64]) -> Array:
    """The element of every row at a place, counted from 1; 0 for place 0."""
    if not values.shape[1]:
        return np.zeros(len(values))
    return np.where(place > 0, values[np.arange(len(values)), np.maximum(place, 1) - 1], 0.0)
