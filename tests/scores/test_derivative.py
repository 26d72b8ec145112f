"""Derivatives of users' functions beside finite differences, and refusals of what cannot be derived."""

from __future__ import annotations

import math

import numba
import numpy as np
import pytest

from numba_sparse_attn.scores._derivative import NotDerived, derivative_of

TABLE = np.linspace(-1.0, 1.0, 16)


def with_everything(score, head, i, j):
    """A docstring, a loop, conditions, a table, assignments of all kinds."""
    total = score * score
    count = 0
    for turn in range(3):
        total += 0.5 * math.sin(score) * turn
        count += 1
    while count < 5:
        count += 1
        total -= 0.1 * score
    if total > 1.0 and i >= j:
        factor: float = math.log(total)
    else:
        factor = 2.0
    return total * factor + TABLE[(i + j) % 16] * score ** (head + 1)


SMOOTH = {
    "everything": with_everything,
    "soft cap": lambda score, head, i, j: 30.0 * math.tanh(score / 30.0),
    "powers": lambda score, head, i, j: score**3 - 2.0**score + pow(1.5 + score * score, 0.5 * score),
    "quotients": lambda score, head, i, j: (1.0 - score) / (2.0 + score * score) - (+(-score)),
    "exponentials": lambda score, head, i, j: np.exp(-score * score) + np.expm1(score) + math.exp2(score) / 8,
    "logarithms": lambda score, head, i, j: (
        math.log1p(score * score) + np.log2(4 + score) + math.log10(5 + score)
    ),
    "roots": lambda score, head, i, j: math.sqrt(4.0 + score) + math.cbrt(5.0 + score) + np.square(score),
    "circles": lambda score, head, i, j: (
        math.cos(score) * math.atan(score) + math.asin(score / 9) - np.arccos(score / 9)
    ),
    "hyperbolas": lambda score, head, i, j: (
        math.sinh(score) - math.cosh(score) * np.tanh(score) + math.tan(score / 9)
    ),
    "errors": lambda score, head, i, j: math.erf(score) * math.erfc(score / 2),
    "kinks": lambda score, head, i, j: (
        max(score, 0.1 * score, -2.0) + min(score, 0.25) - abs(score) + math.fabs(score)
    ),
    "choices": lambda score, head, i, j: score if i > j else (0.5 * score if head else 0.0),
    "steps": lambda score, head, i, j: (
        score * math.floor(score) + int(score) + score % 0.75 + (score > 0.5) * score
    ),
    "NumPy": lambda score, head, i, j: np.maximum(score, -1.0) * np.float64(score) + np.power(score, 2),
    "signs": lambda score, head, i, j: math.copysign(score, -1.0) - (not score) + np.sign(score),
    "no score at all": lambda score, head, i, j: 0.25 * (i - j),
}


@pytest.mark.parametrize("name", SMOOTH)
def test_as_finite_differences_have_it(name):
    function = SMOOTH[name]
    derivative = derivative_of(function)
    for score in (-2.9, -1.37, -0.61, 0.13, 0.42, 1.83, 2.71):
        for place in ((0, 3, 1), (1, 1, 3)):
            step = 1e-6
            wanted = (function(score + step, *place) - function(score - step, *place)) / (2 * step)
            assert derivative(score, *place) == pytest.approx(wanted, rel=1e-6, abs=1e-7)


@pytest.mark.parametrize("name", ["everything", "kinks", "steps", "NumPy", "choices"])
def test_the_derivative_compiles(name):
    derivative = derivative_of(SMOOTH[name])
    assert numba.njit(derivative)(0.7, 1, 3, 2) == pytest.approx(derivative(0.7, 1, 3, 2))


def test_a_closure_and_a_function_that_is_compiled_already():
    numbers = np.array([2.0, 3.0])
    assert derivative_of(lambda score, head, i, j: score * numbers[head])(0.0, 1, 0, 0) == 3.0
    assert derivative_of(numba.njit(with_everything))(0.3, 0, 1, 2) == derivative_of(with_everything)(
        0.3, 0, 1, 2
    )


def test_two_lambdas_on_one_line():
    first, second = (lambda score, head, i, j: 2.0 * score), (lambda score, head, i, j: 3.0 * score)
    assert derivative_of(first)(1.0, 0, 0, 0) == 2.0 and derivative_of(second)(1.0, 0, 0, 0) == 3.0


def calls_another(score, head, i, j):
    return with_everything(score, head, i, j)


def assigns_two(score, head, i, j):
    one, other = score, 2.0
    return one * other


def goes_round_by_score(score, head, i, j):
    for _ in np.array([score]):
        score = 0.5 * score
    return score


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (calls_another, "calls with_everything with the score"),
        (assigns_two, "assigns to more than a name"),
        (goes_round_by_score, "loops over what depends on the score"),
        (lambda score, head, i, j: (two := 2 * score) + two, "has NamedExpr"),
        (lambda score, head, i, j: score or 1.0, "has 'score or 1.0'"),
        (lambda *score: score[0], "takes other arguments"),
        (math.tanh, "is no Python function"),
        (eval("lambda score, head, i, j: score"), "source is not"),
    ],
)
def test_what_cannot_be_derived_says_why(function, said):
    with pytest.raises(NotDerived, match=said):
        derivative_of(function)
