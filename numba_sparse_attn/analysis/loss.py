"""What a pattern loses against a baseline: attention mass, divergence of the weights, error of the output.

The baseline is full attention, or any pattern: a causal model is compared with ``patterns.causal(n)``.
All of it is exact in float64 and computed query by query.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from ._inputs import AnyPattern, Call, Floats, check_whole, row_counts

__all__ = ["information_gap", "kl_divergence", "output_error", "recall", "total_variation"]


@dataclass(frozen=True, eq=False)
class Overlap:
    """Log-sums of a pattern, of its baseline, and of what both select; see ``_inputs``.

    Attributes
    ----------
    baseline, pattern, both : (..., heads, n_q)
    outside : bool (..., heads, n_q)
        Whether the pattern gives a query keys that the baseline does not.
    """

    baseline: Floats
    pattern: Floats
    both: Floats
    outside: npt.NDArray[np.bool_]

    @classmethod
    def of(cls, call: Call, pattern: Any, baseline: Any) -> Overlap:
        """With passes of the engine over the baseline, the pattern, and what they share."""
        chosen, dense = call.pattern(pattern), call.pattern(baseline)
        log_sums = call.log_sums(chosen)
        return cls.from_sums(call, chosen, dense, log_sums, call.log_sums(dense))

    @classmethod
    def from_sums(
        cls, call: Call, chosen: AnyPattern, dense: AnyPattern, log_sums: Floats, dense_log_sums: Floats
    ) -> Overlap:
        """With log-sums that are there; one more pass if the pattern leaves the baseline."""
        # Nothing is beyond all pairs, and looking for it in a pattern without structure takes its time.
        beyond = None if dense.sparsity == 0.0 else chosen - dense
        if beyond is None or not beyond.nnz:
            return cls(dense_log_sums, log_sums, log_sums, np.zeros(log_sums.shape, np.bool_))
        shared = call.log_sums(chosen & dense)
        return cls(dense_log_sums, log_sums, shared, row_counts(call, beyond) > 0)

    def _difference(self, part: Floats, whole: Floats) -> Floats:
        """``part - whole``, at most zero; -inf for an empty part, NaN without a baseline."""
        lost = np.full(part.shape, -np.inf)
        # A part may stick out of its whole by a rounding.
        np.minimum(np.subtract(part, whole, out=lost, where=~np.isneginf(part)), 0.0, out=lost)
        lost[np.isneginf(self.baseline)] = np.nan
        return lost

    @cached_property
    def recall(self) -> Floats:
        """Share of the baseline's weight on pairs of the pattern."""
        return np.exp(self._difference(self.both, self.baseline))

    @cached_property
    def total_variation(self) -> Floats:
        """Half the sum of absolute differences."""
        # On shared keys all weights differ by one factor, so that |p - q| sums to |recall - kept|, where
        # kept is the share of the pattern's own weight there; elsewhere one of the two is zero.
        of_baseline = self._difference(self.both, self.baseline)
        of_pattern = self._difference(self.both, self.pattern)
        return -np.expm1(np.minimum(of_baseline, of_pattern))

    @cached_property
    def kl(self) -> Floats:
        """Divergence of the pattern's weights from the baseline's."""
        divergence = -self._difference(self.pattern, self.baseline)
        return np.where(self.outside & ~np.isnan(divergence), np.inf, divergence)


def recall(q: Any, k: Any, pattern: Any, *, baseline: Any = None, scale: float | None = None) -> Floats:
    """Share of every query's baseline attention that falls on pairs of the pattern.

    Parameters
    ----------
    q, k
        As :func:`numba_sparse_attn.sparse_attention` takes them; computed in float64.
    pattern
        Which query sees which key.
    baseline : optional
        What it is compared with; all pairs if not given.
    scale : float, optional

    Returns
    -------
    float64 (..., heads, n_q)
        From 0 to 1; NaN for a query without keys in the baseline.

    Examples
    --------
    >>> import numpy as np, numba_sparse_attn as nsa
    >>> q = k = np.zeros((4, 8))
    >>> nsa.analysis.recall(q, k, nsa.patterns.sliding_window(4, 1)).round(6).tolist()
    [0.5, 0.75, 0.75, 0.5]
    """
    return Overlap.of(Call.of(q, k, k, scale), pattern, baseline).recall


def kl_divergence(
    q: Any, k: Any, pattern: Any, *, baseline: Any = None, scale: float | None = None
) -> Floats:
    """Divergence of the pattern's weights from the baseline's, ``sum_j q_j log(q_j / p_j)``, in nats.

    With q the weights over the pattern and p those over the baseline. It is ``-log(recall)`` for a pattern
    inside of its baseline, because dropping keys multiplies all other weights by one factor.

    Parameters
    ----------
    q, k, pattern, baseline, scale
        As in :func:`recall`.

    Returns
    -------
    float64 (..., heads, n_q)
        Infinite where the pattern has keys that the baseline has not, or none at all; NaN for a query
        without keys in the baseline.

    Examples
    --------
    >>> import numpy as np, numba_sparse_attn as nsa
    >>> q = k = np.zeros((4, 8))
    >>> kl = nsa.analysis.kl_divergence(q, k, nsa.patterns.sliding_window(4, 1))
    >>> np.exp(-kl).round(6).tolist()
    [0.5, 0.75, 0.75, 0.5]
    """
    return Overlap.of(Call.of(q, k, k, scale), pattern, baseline).kl


def total_variation(
    q: Any, k: Any, pattern: Any, *, baseline: Any = None, scale: float | None = None
) -> Floats:
    """Distance of the pattern's weights from the baseline's, ``sum_j |q_j - p_j| / 2``.

    It is ``1 - recall`` for a pattern inside of its baseline.

    Parameters
    ----------
    q, k, pattern, baseline, scale
        As in :func:`recall`.

    Returns
    -------
    float64 (..., heads, n_q)
        From 0 to 1; 1 where the pattern has no keys; NaN for a query without keys in the baseline.

    Examples
    --------
    >>> import numpy as np, numba_sparse_attn as nsa
    >>> q = k = np.zeros((4, 8))
    >>> window = nsa.patterns.sliding_window(4, 1)
    >>> nsa.analysis.total_variation(q, k, window, baseline=nsa.patterns.causal(4)).round(6).tolist()
    [0.5, 0.333333, 0.333333, 0.5]
    """
    return Overlap.of(Call.of(q, k, k, scale), pattern, baseline).total_variation


def information_gap(
    q: Any, k: Any, pattern: Any, *, baseline: Any = None, scale: float | None = None
) -> Floats:
    """Entropy of the baseline's weights less entropy of the pattern's, in nats.

    How many nats of choice among the keys the pattern takes from a query. Negative where it drops a key
    that stood out, and what is left is an even choice among others.

    Parameters
    ----------
    q, k, pattern, baseline, scale
        As in :func:`recall`.

    Returns
    -------
    float64 (..., heads, n_q)
        NaN for a query without keys in either.

    Examples
    --------
    >>> import numpy as np, numba_sparse_attn as nsa
    >>> q = k = np.zeros((4, 8))
    >>> gap = nsa.analysis.information_gap(q, k, nsa.patterns.block_local(4, 2))
    >>> np.exp(gap).round(6).tolist()  # two keys out of four
    [2.0, 2.0, 2.0, 2.0]
    """
    call = Call.of(q, k, k, scale)
    dense, chosen = call.moments(call.pattern(baseline)), call.moments(call.pattern(pattern))
    return dense.entropy - chosen.entropy


def output_error(
    q: Any,
    k: Any,
    v: Any,
    pattern: Any,
    *,
    baseline: Any = None,
    scale: float | None = None,
    block: int | None = 128,
) -> Floats:
    """Relative error of the output, block of queries by block: ``|out - dense| / |dense|`` in the 2-norm.

    Parameters
    ----------
    q, k, v
        As :func:`numba_sparse_attn.sparse_attention` takes them; computed in float64.
    pattern, baseline, scale
        As in :func:`recall`.
    block : int or None
        Queries a block; None for all of a head in one.

    Returns
    -------
    float64 (..., heads, blocks), or (..., heads) for None
        0 where both are zero, infinite where only the baseline's output is.

    Examples
    --------
    >>> import numpy as np, numba_sparse_attn as nsa
    >>> q, k, v = np.zeros((4, 8)), np.zeros((4, 8)), np.array([[1.0], [3.0], [3.0], [5.0]])
    >>> nsa.analysis.output_error(q, k, v, nsa.patterns.block_local(4, 2), block=1).round(6).tolist()
    [0.333333, 0.333333, 0.333333, 0.333333]
    """
    call = Call.of(q, k, v, scale)
    rows = max(call.sizes.n_q, 1) if block is None else check_whole("block", block, low=1)
    dense, chosen = call.outputs(call.pattern(baseline)), call.outputs(call.pattern(pattern))
    errors = relative_errors(chosen, dense, rows)
    return errors if block is not None else errors[..., 0]


def relative_errors(out: Floats, exact: Floats, block: int) -> Floats:
    """2-norms of ``out - exact`` over those of `exact`, for every `block` rows."""
    starts = np.arange(0, max(out.shape[-2], 1), block)

    def norms(array: Floats) -> Floats:
        squares = np.square(array).sum(axis=-1)
        if not squares.shape[-1]:
            return np.zeros((*squares.shape[:-1], 1))
        return np.sqrt(np.add.reduceat(squares, starts, axis=-1))

    wrong, size = norms(out - exact), norms(exact)
    ratio = np.where(wrong > 0.0, np.inf, 0.0)
    np.divide(wrong, size, out=ratio, where=size > 0.0)
    return ratio
