"""Gradients from ``vjp`` are the slopes of the function that it was made of, in float64."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import assume, event, given
from hypothesis import strategies as st

import numba_sparse_attn as nsa
from numba_sparse_attn import as_pattern
from numba_sparse_attn.testing import budget_for, strategies

#: Steps are powers of two: q, k, v and directions have 11 bits and are below 16, so that sums are exact.
LONGEST, SHORTEST = -8, -24
EPS = float(np.finfo(np.float64).eps)


@given(strategies.problems(names=["float16"], largest=70, strided=False), st.integers(0, 2**32 - 1))
def test_pullback_is_the_central_difference_along_any_direction(problem, seed):
    """``(f(h) - f(-h)) / 2h`` for ``f(h) = sum(dout * out(q + h q', k + h k', v + h v'))``.

    It differs from the derivative by at most h^2 / 6 times the largest third derivative between, which
    `third_derivative` bounds, and by errors of f over h. What out and gradients may be off by is what
    every other test allows them. h makes the sum of both about as small as it gets.
    """
    assume(problem.q.size and problem.k.size)
    rng = np.random.default_rng(seed)
    directions = [rng.standard_normal(array.shape).astype(np.float16) for array in problem.arrays[:3]]
    directions = [direction.astype(np.float64) for direction in directions]
    problem = problem.cast(np.float64)
    *inputs, dout = problem.arrays
    budget = budget_for(problem)
    steepest = third_derivative(problem, directions, 2.0**LONGEST)
    rounding = rounding_of(budget, "out", dout)
    best = math.log2(3.0 * rounding / steepest) / 3.0 if rounding and steepest else LONGEST
    step = 2.0 ** max(SHORTEST, min(LONGEST, round(best)))
    event(f"step 2**{round(math.log2(step))}")

    pattern = as_pattern(problem.mask)
    settings = {"scale": problem.scale, "engine": "cpu"}
    _, pullback = nsa.vjp(*inputs, pattern, **settings)
    pairs = list(zip(pullback(dout), directions, strict=True))
    ends = []
    for sign in (step, -step):
        moved = [array + sign * direction for array, direction in zip(inputs, directions, strict=True)]
        out, _ = nsa.vjp(*moved, pattern, **settings)
        ends.append(math.fsum((dout * out).reshape(-1)))
        there = budget_for(problem.with_arrays(*moved, dout), gradients=False)
        rounding = max(rounding, rounding_of(there, "out", dout))
    numeric = (ends[0] - ends[1]) / (2.0 * step)
    slope = math.fsum((gradient * direction).sum() for gradient, direction in pairs)

    allowed = step**2 / 6.0 * steepest + rounding / step
    for name, direction in zip(("dq", "dk", "dv"), directions, strict=True):
        allowed += rounding_of(budget, name, direction)
    size = sum(np.abs(gradient * direction).sum() for gradient, direction in pairs)
    event("the bound says something" if allowed < 1e-4 * size else "slopes of nearly zero")
    assert abs(numeric - slope) <= allowed


def rounding_of(budget, name, factors):
    """What ``(factors * result).sum()`` may be off by: the result by its budget, the oracle by as much again,
    and each product by its own rounding.
    """
    largest = budget.low_error[name].max()
    return (np.abs(factors) * (4.0 * largest + 2.0 * EPS * np.abs(budget.expected[name]))).sum()


def third_derivative(problem, directions, reach):
    """A bound of the third derivative of ``sum(dout * out)`` on ``[-reach, reach]``.

    A row's part is the mean of u = dout . v over its weights, softmax(s). Along the line s' and u are linear
    and s'' and u' constant, and the derivative of a joint cumulant of weighted numbers is the sum of those
    with one of them differentiated and the one with s' added. So the third derivative is

        3 c(u', s'') + 3 c(u', s', s') + 3 c(u, s', s'') + c(u, s', s', s')

    and cumulants of numbers of at most r1, r2, ... are at most r1 r2, 2 r1 r2 r3 and 7 r1 r2 r3 r4: a
    covariance is at most the product of deviations, a distance from the mean at most 2 r, and the fourth
    cumulant a mean of products of four distances less three products of two covariances.
    """
    group = problem.q.shape[-3] // problem.k.shape[-3]
    q, dout, moved_q = problem.q, problem.dout, directions[0]
    k, v, moved_k, moved_v = (
        np.repeat(array, group, axis=-3).swapaxes(-1, -2)
        for array in (problem.k, problem.v, directions[1], directions[2])
    )
    curve = 2.0 * problem.scale * (moved_q @ moved_k)
    pace = problem.scale * (moved_q @ k + q @ moved_k)
    climb = dout @ moved_v

    def largest(numbers):
        return np.where(problem.selected, numbers, 0.0).max(axis=-1, initial=0.0)

    u1, s2 = largest(np.abs(climb)), largest(np.abs(curve))
    u = largest(np.abs(dout @ v) + reach * np.abs(climb))
    s1 = largest(np.abs(pace) + reach * np.abs(curve))
    return (3.0 * u1 * s2 + 6.0 * u1 * s1**2 + 6.0 * u * s1 * s2 + 7.0 * u * s1**3).sum()
