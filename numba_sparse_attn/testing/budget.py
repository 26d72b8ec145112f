"""How wrong a result may be, without a tolerance that anyone chose.

The rule: against the float64 oracle, the error of a result is at most *twice the error of an
independent low-precision computation* of the same problem, beyond *the rounding of the output format*.
It has to hold for the largest error, for the norm of the error, and for both of these in every block
of rows of every head: a result of the right size in the wrong place fails.

The independent computation, :func:`low_precision_attention`, is dense NumPy and does what hardware does:
inputs in their format, sums in the accumulator's, probabilities and score gradients rounded to a 16-bit
format before they are multiplied, base-2 exponentials, the backward pass from the rounded out and lse.

Rounding errors are draws of chance: one may happen to be next to nothing just where the result is most
sensitive, above all in small problems. So that computation is drawn several times, and each time every
intermediate result goes up or down by one unit in its last place, or stays, at random. What counts is the
worst of the draws.

For float64 the oracle has no digits to spare (long double is float64 on some platforms). The low-precision
computation then is one in float64 that sums in another order than the oracle, whose own rounding errors
are on both sides of the comparison.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from .. import reference
from ..normalisers import Normaliser, SoftmaxPlusOne
from ..reference_engine import rule_of
from .low_precision_rules import Rounding, normalised_heads
from .problems import Problem

__all__ = ["Budget", "assert_within_budget", "budget_for", "low_precision_attention"]

Array = npt.NDArray[Any]

#: Rows that are judged together.
BLOCK_ROWS = 64
#: Draws of a problem. Rounding errors are nearly normal: twice the worst of 64 is beyond 4 deviations.
_DRAWS = 64
#: Scores over all draws beyond which fewer are made, because a large problem has many errors in every
#: block anyway, and how few.
_DRAWN_SCORES = 1 << 20
_FEWEST_DRAWS = 8
#: Scores that low_precision_attention holds at a time.
_CHUNK_ELEMENTS = 1 << 22
#: Rows and columns from which BLAS sums every element in a chain, as engines do. It sums a product with
#: fewer of them in several parts at a time: measured errors are less than half of a chain's.
_CHAINED_BY_BLAS = 16
#: By how many units in the last place an intermediate result may be off.
_STEPS = np.array([-1, 0, 0, 1], np.int8)
_LOG2_E = math.log2(math.e)
_LN_2 = math.log(2.0)


def assert_within_budget(
    actual: npt.ArrayLike,
    expected: npt.ArrayLike,
    low_error: npt.ArrayLike,
    dtype: npt.DTypeLike,
    *,
    name: str = "result",
) -> None:
    """Fail unless `actual` is as close to `expected` as the rule of this module asks.

    Parameters
    ----------
    actual : dtype (..., rows, channels)
    expected : float64, same shape
        From the oracle.
    low_error : same shape, or with one more leading axis
        What a low-precision computation got wrong; along the extra axis, one draw after another.
    dtype : dtype
        Output format: `actual` must have it, and its rounding is free.
    name : str
        For the message.

    Examples
    --------
    >>> import numpy as np
    >>> expected = np.array([[1.0, 2.0]])
    >>> assert_within_budget(expected.astype("f4"), expected, np.full((1, 2), 1e-7), np.float32)
    >>> assert_within_budget(expected[:, ::-1].astype("f4"), expected, np.full((1, 2), 1e-7), np.float32)
    Traceback (most recent call last):
    AssertionError: result: largest error 1 at (0, 0), allowed 2e-07
    """
    result, exact = np.asarray(actual), np.asarray(expected, np.float64)
    if result.dtype != np.dtype(dtype):
        raise AssertionError(f"{name}: {result.dtype} instead of {np.dtype(dtype)}")
    if result.shape != exact.shape:
        raise AssertionError(f"{name}: shape {result.shape} instead of {exact.shape}")
    if exact.size == 0:
        return
    draws = np.abs(np.asarray(low_error, np.float64)).reshape(-1, *exact.shape)
    excess = _excess(result, exact, np.dtype(dtype), name)
    # Where the low-precision computation left its range it says nothing about the error.
    judged = np.isfinite(draws).all(axis=0)
    excess, draws = np.where(judged, excess, 0.0), np.where(judged, draws, 0.0)
    _judge(excess, draws, name)


@dataclass(frozen=True, eq=False)
class Budget:
    """What a problem's results should be, and how far from it they may lie.

    Attributes
    ----------
    problem : Problem
    expected : name -> float64 array
        From the oracle, for "out", "lse", "dq", "dk" and "dv", and "dalpha" where alpha is learned.
    low_error : name -> float64 array with one more leading axis
        Errors of the low-precision computation, draw by draw.
    """

    problem: Problem
    expected: Mapping[str, Array]
    low_error: Mapping[str, Array]

    def check(self, **results: npt.ArrayLike) -> None:
        """Fail unless every result, given by name, is within the budget.

        Examples
        --------
        >>> import numpy as np
        >>> from numba_sparse_attn.testing import budget_for, random_problem
        >>> problem = random_problem(np.tri(9, dtype=bool), head_dim=4)
        >>> budget = budget_for(problem)
        >>> budget.check(out=budget.expected["out"].astype(np.float32))
        """
        for name, actual in results.items():
            column = (..., None) if name == "lse" or self.expected[name].ndim == 1 else (...,)
            dtype = self.problem.dtype if name in ("out", "dq", "dk", "dv") else np.asarray(actual).dtype
            if name in ("lse", "dalpha"):
                dtype = self.problem.accumulator
            assert_within_budget(
                np.asarray(actual)[column],
                self.expected[name][column],
                self.low_error[name][column],
                dtype,
                name=name,
            )


def budget_for(
    problem: Problem, *, gradients: bool = True, seed: int = 0, normaliser: Normaliser | None = None
) -> Budget:
    """Oracle and low-precision errors of a problem, forward and (unless declined) backward.

    Examples
    --------
    >>> import numpy as np
    >>> from numba_sparse_attn.testing import random_problem
    >>> sorted(budget_for(random_problem(np.ones((3, 3), bool), head_dim=2)).expected)
    ['dk', 'dq', 'dv', 'lse', 'out']
    """
    expected = _oracle(problem, gradients, normaliser)
    affordable = _DRAWN_SCORES // max(1, problem.selected.size)
    # Gradients of sinks, tables and alpha are a few numbers: there is no safety in theirs.
    few_numbers = gradients and (problem.sink is not None or problem.changes or normaliser is not None)
    draws = _DRAWS if few_numbers else max(_FEWEST_DRAWS, min(affordable, _DRAWS))
    stacked = problem.with_arrays(*(_stack(array, draws) for array in problem.arrays))
    errors = {}
    low_results = low_precision_attention(stacked, gradients=gradients, seed=seed, normaliser=normaliser)
    for name, low in low_results.items():
        if name.startswith(("dchange", "dsink")):
            low = low.reshape(draws, len(low) // draws, *low.shape[1:]).sum(axis=1)
        if name == "dalpha":
            low = low.sum(axis=tuple(range(1, low.ndim - 1)))
        with np.errstate(invalid="ignore"):
            error = np.abs(low.astype(np.float64) - expected[name])
        errors[name] = np.where(low == expected[name], 0.0, error)  # -inf equals -inf
    return Budget(problem, expected, errors)


def low_precision_attention(
    problem: Problem, *, gradients: bool = True, seed: int = 0, normaliser: Normaliser | None = None
) -> dict[str, Array]:
    """Attention the way hardware does it, dense, in NumPy: "out", "lse" and the gradients by name.

    Intermediate results are off by a unit in the last place at random, and sums run in a random order,
    another one for every head. Inputs have to be finite. "dalpha", where alpha is learned, is that of every
    head of every batch element.

    Examples
    --------
    >>> import numpy as np
    >>> from numba_sparse_attn.testing import random_problem
    >>> low_precision_attention(random_problem(np.ones((3, 4), bool), head_dim=2))["lse"].dtype
    dtype('float32')
    """
    heads = math.prod(problem.q.shape[:-2])
    kv_heads = math.prod(problem.k.shape[:-2])
    group = heads // max(kv_heads, 1)
    n_q, n_k = problem.q.shape[-2], problem.k.shape[-2]
    rng = np.random.default_rng(seed)
    q, k, v, dout = (
        array.astype(problem.accumulator).reshape(count, *array.shape[-2:])
        for array, count in zip(problem.arrays, (heads, kv_heads, kv_heads, heads), strict=True)
    )
    k, v = np.repeat(k, group, axis=0), np.repeat(v, group, axis=0)
    selected = problem.selected.reshape(heads, n_q, n_k)
    step = max(1, _CHUNK_ELEMENTS // max(1, n_q * n_k))
    blocks = [slice(begin, begin + step) for begin in range(0, max(heads, 1), step)]
    parts = [
        _low_precision_heads(
            q[block],
            k[block],
            v[block],
            dout[block],
            selected[block],
            problem,
            gradients,
            rng,
            normaliser,
            block.start,
        )
        for block in blocks
    ]

    shapes = dict(zip(("dq", "dk", "dv", "out"), (array.shape for array in problem.arrays), strict=True))
    shapes["lse"] = problem.q.shape[:-1]
    shapes["dalpha"] = problem.q.shape[:-2]
    results = {}
    for name in parts[0]:
        whole = np.concatenate([part[name] for part in parts])
        if name not in shapes:  # of parameters: a contribution a head
            results[name] = whole
            continue
        if name in ("dk", "dv"):
            whole = whole.reshape(kv_heads, group, *whole.shape[1:]).sum(axis=1)
        if name not in ("lse", "dalpha"):
            whole = whole.astype(problem.dtype)
        results[name] = whole.reshape(shapes[name])
    return results


def _low_precision_heads(
    q: Array,
    k: Array,
    v: Array,
    dout: Array,
    selected: Array,
    problem: Problem,
    gradients: bool,
    rng: np.random.Generator,
    normaliser: Normaliser | None,
    first: int,
) -> dict[str, Array]:
    """Results of heads that are stacked along the first axis, in the accumulator's type.

    `first` is the number of the first of them, counted through all axes before rows.
    """
    sum_type = problem.accumulator.type
    scale, log2_e, ln_2 = sum_type(problem.scale), sum_type(_LOG2_E), sum_type(_LN_2)

    def loose(array: Array) -> Array:
        """Each element one unit in the last place up, down, or as it is, the last half of the time."""
        steps = _STEPS[rng.integers(0, len(_STEPS), array.shape, np.uint8)]
        steps *= np.isfinite(array) & (array != 0)
        # The bits of a float, read as an integer, count its neighbors.
        bits = array.view(np.int64 if sum_type is np.float64 else np.int32)
        return np.add(bits, steps).view(sum_type)

    def rounded(array: Array) -> Array:
        return array.astype(problem.dtype).astype(sum_type)

    def up_or_down(array: Array) -> Array:
        """Rounded to either neighbor, the nearer one more often."""
        step = np.spacing(np.abs(array).astype(problem.dtype)).astype(sum_type)
        return rounded(array + (rng.random(array.shape, np.float32) - sum_type(0.5)) * step)

    def product(left: Array, right: Array) -> Array:
        """``left @ right``, every element summed in a chain, in another order for every head."""
        order = rng.permuted(np.tile(np.arange(left.shape[2]), (len(left), 1)), axis=1)
        left = np.take_along_axis(left, order[:, None, :], axis=2)
        right = np.take_along_axis(right, order[:, :, None], axis=1)
        if min(left.shape[1], right.shape[2]) >= _CHAINED_BY_BLAS:
            return loose(left @ right)
        total = np.zeros((len(left), left.shape[1], right.shape[2]), sum_type)
        for term, factors in zip(np.moveaxis(left, 2, 0), np.moveaxis(right, 1, 0), strict=True):
            total += term[:, :, None] * factors[:, None, :]
        return loose(total)

    with np.errstate(all="ignore"):
        heads_a_call = _heads(problem)
        places = [divmod(first + number, heads_a_call) for number in range(len(q))]
        if normaliser is not None and normaliser.needs_rows:
            results = normalised_heads(
                rule_of(normaliser, heads_a_call),
                np.array([head for _, head in places]),
                (q, k, v, dout),
                selected,
                problem.scale,
                gradients,
                Rounding(loose, rounded, product),
            )
            if not normaliser.learnable:
                results.pop("dalpha", None)
            return results
        everything = slice(0, q.shape[1])
        slopes = []
        if problem.changes:
            scores = loose(product(q, k.swapaxes(1, 2)) * scale)
            for change in problem.changes:
                pairs = [change.apply(s, *place, everything) for s, place in zip(scores, places, strict=True)]
                scores = loose(np.stack([changed for changed, _ in pairs]))
                slopes.append(loose(np.stack([slope for _, slope in pairs])))
            scores = loose(scores * log2_e)
        else:
            scores = loose(product(q, k.swapaxes(1, 2)) * sum_type(problem.scale * _LOG2_E))
        scores = np.where(selected, scores, sum_type(-np.inf))
        sinks = np.full((len(q), 1, 1), -np.inf, sum_type)
        if problem.sink is not None:
            sinks[:, 0, 0] = [problem.sink[head] * _LOG2_E for _, head in places]
        peak = np.maximum(scores.max(axis=2, keepdims=True, initial=-np.inf), sinks)
        # An online softmax subtracts a maximum that is not up to date: probabilities round elsewhere.
        stale = rng.random(peak.shape, np.float32).astype(sum_type)
        peak = np.where(np.isfinite(peak), peak + stale, sum_type(0.0))
        weights = np.where(selected, loose(np.exp2(scores - peak)), sum_type(0.0))
        total = product(weights, np.ones((len(k), k.shape[1], 1), sum_type)) + loose(np.exp2(sinks - peak))
        if isinstance(normaliser, SoftmaxPlusOne):
            total = loose(total + np.exp2(-peak))
        some = selected.any(axis=2, keepdims=True) | (sinks > -np.inf)
        out = np.where(some, loose(product(rounded(weights), v) / total), sum_type(0.0))
        lse = np.where(some, loose((peak + np.log2(total)) * ln_2), sum_type(-np.inf))
        results = {"out": out, "lse": lse[..., 0]}
        if gradients:
            weights = np.where(selected, loose(np.exp2(scores - loose(lse * log2_e))), sum_type(0.0))
            delta = loose((dout * up_or_down(out)).sum(axis=2, keepdims=True))
            dweights = np.where(selected, product(dout, v.swapaxes(1, 2)), delta)
            dscores = loose(weights * (dweights - delta))
            if problem.sink is not None:
                shares = np.where(np.isneginf(lse), 0, loose(np.exp2(sinks - loose(lse * log2_e)))) * delta
                results["dsink"] = np.zeros((len(q), heads_a_call), sum_type)
                for number, (_, head) in enumerate(places):
                    results["dsink"][number, head] = -shares[number].sum()
            for number, change in reversed(list(enumerate(problem.changes))):
                totals = [change.zeros() for _ in places]
                for total, place, found in zip(totals, places, dscores, strict=True):
                    change.add_gradient(np.where(np.isfinite(found), found, 0.0), *place, everything, total)
                results[f"dchange{number}"] = np.stack(totals)
                dscores = np.where(selected, loose(dscores * slopes[number]), sum_type(0.0))
            dscores = rounded(dscores)
            results["dq"] = loose(product(dscores, k) * scale)
            results["dk"] = loose(product(dscores.swapaxes(1, 2), q) * scale)
            results["dv"] = product(rounded(weights).swapaxes(1, 2), dout)
        return results


def _oracle(problem: Problem, gradients: bool, normaliser: Normaliser | None) -> dict[str, Array]:
    heads = _heads(problem)
    inputs = problem.q, problem.k, problem.v, problem.mask, problem.scale
    settings: dict[str, Any] = {"changes": problem.changes, "sink": problem.sink}
    settings["rule"] = rule_of(normaliser, heads)
    out, lse = reference.forward(*inputs, **settings)
    if not gradients:
        return {"out": out, "lse": lse}
    dalpha = np.zeros(heads)
    settings["dparameter"] = dalpha
    dq, dk, dv, changed, dsink = reference.backward_of_changes(problem.dout, *inputs, **settings)
    found = {"out": out, "lse": lse, "dq": dq, "dk": dk, "dv": dv}
    if problem.sink is not None:
        found["dsink"] = dsink
    if normaliser is not None and normaliser.learnable:
        found["dalpha"] = dalpha
    return found | {f"dchange{number}": gradient for number, gradient in enumerate(changed)}


def _heads(problem: Problem) -> int:
    """Query heads; one where arrays have no axis for them."""
    return int(problem.q.shape[-3]) if problem.q.ndim > 2 else 1


def _stack(array: Array, count: int) -> Array:
    """The array `count` times over along a new first axis, as a view, with zeros for NaN and infinity."""
    finite = np.where(np.isfinite(array), array, array.dtype.type(0))
    return np.broadcast_to(finite, (count, *array.shape))


def _excess(result: Array, exact: Array, dtype: np.dtype[Any], name: str) -> Array:
    """Error beyond the rounding of the format; infinities and NaN have to be where they belong."""
    format_ = ml_dtypes.finfo(dtype)
    wide = result.astype(np.float64)
    beyond = np.isfinite(exact) & (np.abs(exact) > float(format_.max))
    wrong = np.where(beyond, np.isnan(wide), np.isfinite(wide) != np.isfinite(exact))
    wrong |= ~np.isfinite(exact) & ~((wide == exact) | (np.isnan(wide) & np.isnan(exact)))
    if wrong.any():
        where = _place(wrong)
        raise AssertionError(f"{name}: {wide[where]} at {where}, expected {exact[where]}")
    finite = np.isfinite(exact) & ~beyond
    error = np.abs(np.where(finite, wide, 0.0) - np.where(finite, exact, 0.0))
    rounding = 0.5 * float(format_.eps) * np.abs(exact) + 0.5 * float(format_.smallest_subnormal)
    return np.maximum(error - np.where(finite, rounding, 0.0), 0.0)


def _judge(excess: Array, draws: Array, name: str) -> None:
    """Compare by maximum and by norm, first everything, then every block of rows of every head."""
    rows = excess.shape[-2]
    starts = np.arange(0, max(1, rows // BLOCK_ROWS)) * BLOCK_ROWS  # the last block takes the remainder

    def largest(array: Array) -> Array:
        return np.maximum.reduceat(array.max(axis=-1), starts, axis=-1)

    def norm(array: Array) -> Array:
        return np.sqrt(np.add.reduceat(np.square(array).sum(axis=-1), starts, axis=-1))

    if excess.max() > 2.0 * draws.max():
        raise AssertionError(
            f"{name}: largest error {excess.max():.3g} at {_place(excess == excess.max())}, "
            f"allowed {2.0 * draws.max():.3g}"
        )
    allowed = 2.0 * np.sqrt(np.square(draws).reshape(len(draws), -1).sum(axis=1)).max()
    if np.sqrt(np.square(excess).sum()) > allowed:
        raise AssertionError(
            f"{name}: norm of the error {np.sqrt(np.square(excess).sum()):.3g}, allowed {allowed:.3g}"
        )
    for measure, kind in ((largest, "largest error"), (norm, "norm of the error")):
        found, limit = measure(excess), 2.0 * measure(draws).max(axis=0)
        if (found > limit).any():
            where = _place(found > limit)
            first = int(starts[where[-1]])
            last = rows if where[-1] == len(starts) - 1 else first + BLOCK_ROWS
            raise AssertionError(
                f"{name}: {kind} {found[where]:.3g} in rows {first}:{last} of head {where[:-1]}, "
                f"allowed {limit[where]:.3g}"
            )


def _place(wrong: npt.NDArray[np.bool_]) -> tuple[int, ...]:
    return tuple(int(index) for index in np.unravel_index(np.argmax(wrong), wrong.shape))
