"""The oracle's rules for other normalisers: optimality, limits and finite differences."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import event, given
from hypothesis import strategies as st

from numba_sparse_attn import reference, reference_normalisers
from numba_sparse_attn.reference_normalisers import EntmaxRule, PlusOneRule, SigmoidRule

RULES = {
    "softmax_plus_one": PlusOneRule(),
    "sigmoid": SigmoidRule(None),
    "sigmoid with a bias": SigmoidRule(-0.7),
    "sparsemax": EntmaxRule([2.0, 2.0]),
    "entmax15": EntmaxRule([1.5, 1.5]),
    "entmax": EntmaxRule([1.15, 1.7]),
}
every_rule = pytest.mark.parametrize("name", RULES)

scores = st.lists(st.floats(-30.0, 30.0), min_size=1, max_size=12)
alphas = st.sampled_from([1.05, 1.3, 1.5, 1.8, 2.0])


def row_of(values, rule):
    """Weights and lse of one row that sees every key."""
    row = np.array([values])
    weights, lse = rule.weights(row, np.ones(row.shape, bool), 0)
    return weights[0], float(lse[0])


def drawn(seed=0):
    rng = np.random.default_rng(seed)
    q, k, v, dout = 1.5 * rng.standard_normal((4, 2, 6, 5))
    mask = rng.random((6, 6)) < 0.8
    mask[2] = False
    return q, k, v, dout, mask


@every_rule
def test_backward_is_the_central_difference(name):
    q, k, v, dout, mask = drawn()
    rule, step = RULES[name], 1e-6
    gradients = reference.backward(dout, q, k, v, mask, 0.6, rule=rule)
    for position, gradient in enumerate(gradients):
        numeric = np.zeros_like(gradient)
        for index in np.ndindex(gradient.shape):
            sides = []
            for sign in (1.0, -1.0):
                moved = [q.copy(), k.copy(), v.copy()]
                moved[position][index] += sign * step
                sides.append(np.sum(dout * reference.forward(*moved, mask, 0.6, rule=rule)[0]))
            numeric[index] = (sides[0] - sides[1]) / (2 * step)
        # Rounding over the step is 1e-9 here.
        np.testing.assert_allclose(gradient, numeric, rtol=1e-6, atol=3e-8)


@pytest.mark.parametrize("alphas", [[1.5, 1.2], [1.05, 1.95], [1.7, 1.35]])
def test_gradient_of_alpha_is_the_central_difference(alphas):
    q, k, v, dout, mask = drawn(1)
    dalpha = np.zeros(2)
    reference.backward(dout, q, k, v, mask, 0.6, rule=EntmaxRule(alphas), dparameter=dalpha)
    for head in range(2):
        sides = []
        for sign in (1.0, -1.0):
            moved = np.array(alphas)
            moved[head] += sign * 1e-6
            sides.append(np.sum(dout * reference.forward(q, k, v, mask, 0.6, rule=EntmaxRule(moved))[0]))
        np.testing.assert_allclose(dalpha[head], (sides[0] - sides[1]) / 2e-6, rtol=1e-6, atol=1e-7)


@given(scores, alphas)
def test_entmax_is_optimal(values, alpha):
    """The conditions of Karush, Kuhn and Tucker for the largest of p . s + entropy of Tsallis."""
    weights, lse = row_of(values, EntmaxRule([alpha]))
    event(f"support {min((weights > 0).sum(), 4)}")
    assert (weights >= 0).all()
    assert abs(weights.sum() - 1.0) < 1e-9
    threshold = lse - 1.0 / (alpha - 1.0)
    # On the support one gradient is as large as the other, and nowhere is it larger.
    for score, weight in zip(values, weights, strict=True):
        gap = score - weight ** (alpha - 1.0) / (alpha - 1.0) - threshold
        assert abs(gap) < 1e-7 if weight > 0 else gap < 1e-7


@given(scores, st.integers(0, 2**32 - 1))
def test_sparsemax_is_the_nearest_point_of_the_simplex(values, seed):
    weights, _ = row_of(values, EntmaxRule([2.0]))
    others = np.random.default_rng(seed).dirichlet(np.full(len(values), 0.5), 20)
    nearest = np.sum((weights - values) ** 2)
    assert (np.sum((others - values) ** 2, axis=1) >= nearest - 1e-9 * (1.0 + nearest)).all()


@given(scores)
def test_sorting_and_halving_agree(values):
    rows, seen = np.array([values]), np.ones((1, len(values)), bool)
    for alpha, by_sorting in (
        (1.5, reference_normalisers._entmax15_threshold),
        (2.0, reference_normalisers._sparsemax_threshold),
    ):
        step = alpha - 1.0
        shifted = step * (rows - rows.max())
        by_halving = reference_normalisers._threshold(shifted, step)
        np.testing.assert_allclose(by_sorting(shifted, step), by_halving, rtol=0, atol=1e-12)
        weights, _ = EntmaxRule([alpha]).weights(rows, seen, 0)
        assert abs(weights.sum() - 1.0) < 1e-10


@given(scores)
def test_entmax_becomes_softmax(values):
    rows, seen = np.array([values]), np.ones((1, len(values)), bool)
    expected, expected_lse = reference.SOFTMAX.weights(rows, seen, 0)
    weights, lse = EntmaxRule([1.0 + 1e-7]).weights(rows, seen, 0)
    # The weights differ by a term of first order in alpha - 1, and by rounding over alpha - 1.
    np.testing.assert_allclose(weights, expected, rtol=0, atol=1e-4)
    np.testing.assert_allclose(lse, expected_lse, rtol=0, atol=1e-3)


@given(scores, st.sampled_from(list(RULES)))
def test_weights_follow_from_the_distance_to_lse(values, name):
    """The definition that engines rely on in the backward pass."""
    rule = RULES[name]
    weights, lse = row_of(values, rule)
    np.testing.assert_allclose(rule.weight(np.array(values) - lse, 0), weights, rtol=1e-9, atol=1e-9)


@every_rule
def test_rows_without_keys_and_scores_that_are_no_numbers(name):
    rows = np.array([[1.0, 2.0], [np.nan, 0.0], [np.inf, 0.0], [-np.inf, 0.0], [-np.inf, -np.inf]])
    seen = np.ones(rows.shape, bool)
    seen[0] = False
    with np.errstate(all="ignore"):
        weights, lse = RULES[name].weights(rows, seen, 0)
    assert not weights[0].any() and lse[0] == -np.inf
    assert np.isnan(weights[1, 0])
    if not name.startswith("sigmoid"):
        assert np.isnan(weights[1:3]).all()
        assert np.isfinite(weights[3]).all() and weights[3, 0] == 0.0 and weights[3, 1] > 0.0
    if name in ("sparsemax", "entmax15", "entmax"):
        assert np.isnan(weights[4]).all() and np.isnan(lse[1:3]).all()
