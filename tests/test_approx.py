"""The linear and low-rank family against dense definitions, gradients against differences."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import numba_sparse_attn as nsa
from numba_sparse_attn import approx

#: Step of the differences below: an error of step**4 beside one of 2**-53 / step.
STEP = 1e-3


def draw(*shape, seed=0, dtype=np.float64):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def softmax(scores):
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def repeated(array, heads):
    return np.repeat(array, heads // array.shape[-3], axis=-3)


def check_pullback(function, arrays, seed=0):
    """<dout, derivative along a direction> is the pullback's inner product with that direction."""
    out, pullback = function(*arrays)
    dout = draw(*out.shape, seed=seed + 1)
    gradients = pullback(dout)
    assert len(gradients) == len(arrays)
    for number, (array, gradient) in enumerate(zip(arrays, gradients, strict=True)):
        assert gradient.shape == array.shape and gradient.dtype == array.dtype
        direction = draw(*array.shape, seed=seed + 2 + number)

        def along(step, number=number, direction=direction):
            moved = [a + step * direction if i == number else a for i, a in enumerate(arrays)]
            return (dout * function(*moved)[0]).sum()

        near, far = along(STEP) - along(-STEP), along(2 * STEP) - along(-2 * STEP)
        difference = (8 * near - far) / (12 * STEP)
        size = np.abs(gradient * direction).sum() + np.abs(dout * out).sum()
        assert abs((gradient * direction).sum() - difference) <= 1e-8 * size, number


# Linformer ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mix_heads", [None, 2])
def test_linformer_is_attention_over_mixtures(mix_heads):
    q, k, v = draw(3, 4, 10, 8), draw(3, 2, 20, 8, seed=1), draw(3, 2, 20, 5, seed=2)
    key_mix, value_mix = (
        approx.linformer_projection(20, 6, heads=mix_heads, seed=seed).astype(np.float64) for seed in (3, 4)
    )
    mixed_k, mixed_v = repeated(key_mix @ k, 4), repeated(value_mix @ v, 4)
    expected = softmax(0.3 * q @ mixed_k.swapaxes(-1, -2)) @ mixed_v
    out = approx.linformer(q, k, v, key_mix, value_mix, scale=0.3)
    assert out.dtype == np.float64 and np.abs(out - expected).max() < 1e-13
    check_pullback(lambda *a: approx.linformer_vjp(*a, scale=0.3), (q, k, v, key_mix, value_mix))


def test_a_mixture_that_mixes_nothing_is_attention():
    q, k, v = draw(3, 2, 12, 8)
    identity = np.eye(12)
    expected = nsa.sparse_attention(q, k, v, nsa.patterns.full(12))
    assert np.abs(approx.linformer(q, k, v, identity, identity) - expected).max() < 1e-14


# Performer ----------------------------------------------------------------------------------------------


def dense_performer(q, k, v, features, *, causal, scale):
    """With every product written out: features as in the paper, without any shift."""
    roots = np.sqrt(abs(scale)), np.copysign(np.sqrt(abs(scale)), scale)
    small = [array * root for array, root in zip((q, k), roots, strict=True)]
    directions = features.directions.astype(np.float64)
    left, right = (
        np.exp(array @ directions.T - (array**2).sum(axis=-1, keepdims=True) / 2) for array in small
    )
    weights = left @ repeated(right, q.shape[-3]).swapaxes(-1, -2)
    if causal:
        n_q, n_k = weights.shape[-2:]
        weights = np.tril(weights, n_k - n_q)
    total = weights.sum(axis=-1, keepdims=True)
    return np.divide(
        weights @ repeated(v, q.shape[-3]), total, out=np.zeros((*q.shape[:-1], v.shape[-1])), where=total > 0
    )


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("n_q", "n_k"), [(7, 7), (300, 300), (130, 260), (140, 5), (1, 9)])
@pytest.mark.parametrize("scale", [0.25, -0.4])
def test_performer_is_its_dense_definition(causal, n_q, n_k, scale):
    q, k, v = draw(2, 4, n_q, 8), draw(2, 2, n_k, 8, seed=1), draw(2, 2, n_k, 3, seed=2)
    features = approx.Features.draw(8, 20, seed=3)
    out = approx.performer(q, k, v, features, causal=causal, scale=scale)
    expected = dense_performer(q, k, v, features, causal=causal, scale=scale)
    assert np.abs(out - expected).max() < 1e-12
    if n_q * n_k < 40_000:
        check_pullback(lambda *a: approx.performer_vjp(*a, features, causal=causal, scale=scale), (q, k, v))


@given(st.integers(0, 2**16), st.integers(1, 40), st.booleans())
def test_performer_does_not_care_how_large_keys_are_together(seed, n, causal):
    """A constant on all values comes out as it is, and large inputs overflow nothing."""
    q, k = 30 * draw(2, 1, n, 8, seed=seed)
    features = approx.Features.draw(8, 16, seed=seed)
    out = approx.performer(q, k, np.full((1, n, 2), 3.0), features, causal=causal)
    # Logarithms of products of features, shifted as they are: a query's by its largest, all keys' together.
    left, right = (
        small @ features.directions.T.astype(np.float64) - (small**2).sum(axis=1, keepdims=True) / 2
        for small in (q[0] / np.sqrt(np.sqrt(8)), k[0] / np.sqrt(np.sqrt(8)))
    )
    products = (left - left.max(axis=1, keepdims=True))[:, None] + (right - right.max())[None]
    largest = np.where(np.tri(n, dtype=bool) | (not causal), products.max(axis=2), -np.inf).max(axis=1)
    assert np.isfinite(out).all()
    assert np.allclose(out[0, largest > -700], 3.0, rtol=1e-9)  # exp(-700) is a number, exp(-760) is 0
    assert not out[0, largest < -760].any()


def test_more_features_err_less_and_orthogonal_ones_less_than_independent_ones():
    # Scores about 0.2, of which the exponential is a mean that few features come near to.
    q, k, v = 0.4 * draw(3, 4, 128, 16, dtype=np.float32)
    exact = nsa.sparse_attention(q, k, v, nsa.patterns.full(128))

    def error(count, orthogonal):
        errors = []
        for seed in range(20):
            features = approx.Features.draw(16, count, seed=seed, orthogonal=orthogonal)
            errors.append(((approx.performer(q, k, v, features) - exact) ** 2).mean())
        return np.mean(errors)

    # The variance falls as 1 / count; between 16 times as many it has to fall by far more than half.
    assert error(256, True) < 0.25 * error(16, True)
    assert error(64, True) < error(64, False)


def test_features_are_drawn_from_their_seed():
    first = approx.Features.draw(16, 40, seed=5)
    assert (first.directions == approx.Features.draw(16, 40, seed=5).directions).all()
    assert first.redraw().seed == 6 and first.redraw().directions.shape == (40, 16)
    blocks = first.directions.astype(np.float64)[:16]
    products = blocks @ blocks.T
    assert np.abs(products - np.diag(np.diag(products))).max() < 1e-5
    assert not np.allclose(np.diag(products), 16)  # lengths are drawn, too


# Synthesizer --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("lead", [(), (3,)])
def test_synthesizer_is_a_softmax_of_its_scores(causal, lead):
    scores, v = draw(*lead, 4, 12, 14), draw(3, 2, 9, 5, seed=1)
    used = scores[..., :9, :9]
    if causal:
        used = np.where(np.tri(9, dtype=bool), used, -np.inf)
    expected = softmax(used) @ repeated(v, 4)
    assert np.abs(approx.synthesizer(scores, v, causal=causal) - expected).max() < 1e-14
    check_pullback(lambda *a: approx.synthesizer_vjp(*a, causal=causal), (scores, v))


def test_scores_of_tokens_and_of_factors():
    x, inner, outer = draw(3, 2, 6, 8), draw(2, 8, 4, seed=1), draw(2, 4, 12, seed=2)
    biases = draw(2, 1, 4, seed=3), draw(2, 1, 12, seed=4)
    given_arrays = (x, inner, biases[0], outer, biases[1])
    scores, _ = approx.dense_scores(*given_arrays)
    assert np.allclose(scores, np.maximum(x @ inner + biases[0], 0) @ outer + biases[1], rtol=1e-13)
    check_pullback(approx.dense_scores, given_arrays)
    left, right = draw(2, 6, 3, seed=5), draw(2, 7, 3, seed=6)
    scores, _ = approx.factorized_scores(left, right)
    assert np.allclose(scores, np.einsum("hir,hjr->hij", left, right), rtol=1e-13)
    check_pullback(approx.factorized_scores, (left, right))
    left, right = draw(5, 2, 6, 3, seed=7), draw(5, 2, 6, 4, seed=8)
    scores, _ = approx.factorized_scores(left, right, outer=True)
    assert scores.shape == (5, 2, 6, 12) and scores[1, 1, 2, 7] == left[1, 1, 2, 1] * right[1, 1, 2, 3]
    check_pullback(lambda *a: approx.factorized_scores(*a, outer=True), (left, right))


# All of them --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32])
def test_results_have_the_type_of_the_inputs(dtype):
    q, k, v = (array.astype(dtype) for array in draw(3, 2, 40, 16))
    wide = [array.astype(np.float64) for array in (q, k, v)]
    features, mix = approx.Features.draw(16, 64), approx.linformer_projection(40, 8).astype(dtype)
    scores = draw(2, 40, 40).astype(dtype)
    eps = float(ml_dtypes.finfo(dtype).eps)
    lengths = [np.linalg.norm(array, axis=-1).max() for array in (*wide[:2], features.directions)]
    mixed = np.linalg.norm(mix.astype(np.float64) @ wide[1], axis=-1).max()
    # How large exponents are at most: an exponential is off by the error of its exponent.
    exponents = (
        lengths[2] * max(lengths[:2]) / 2 + max(lengths[:2]) ** 2 / 8,
        lengths[0] * mixed / 4,
        np.abs(scores.astype(np.float64)).max(),
    )
    calls = (
        (lambda *a: approx.performer_vjp(*a, features), (q, k, v), wide),
        (approx.linformer_vjp, (q, k, v, mix, mix), [*wide, *[mix.astype(np.float64)] * 2]),
        (approx.synthesizer_vjp, (scores, v), [scores.astype(np.float64), wide[2]]),
    )
    for (function, arrays, precise), exponent in zip(calls, exponents, strict=True):
        out, pullback = function(*arrays)
        expected, exact_pullback = function(*precise)
        allowed = 4 * eps * (1 + exponent)
        assert out.dtype == dtype
        assert np.abs(out.astype(float) - expected).max() < allowed * np.abs(wide[2]).max()
        for gradient, exact in zip(pullback(out), exact_pullback(out.astype(float)), strict=True):
            assert gradient.dtype == dtype
            assert np.linalg.norm(gradient.astype(float) - exact) < allowed * np.linalg.norm(exact)


def test_what_does_not_fit_is_refused():
    q, k, v = draw(3, 2, 8, 4)
    with pytest.raises(nsa.ShapeError, match="drawn for the head dimension"):
        approx.performer(q, k, v, approx.Features.draw(5, 8))
    with pytest.raises(nsa.ShapeError, match="one matrix for all heads"):
        approx.linformer(q, k, v, np.ones((3, 7)), np.ones((3, 7)))
    with pytest.raises(nsa.ShapeError, match="as many of both"):
        approx.linformer(q, k, v, np.ones((3, 8)), np.ones((4, 8)))
    with pytest.raises(nsa.ShapeError, match="heads a multiple"):
        approx.performer(q[:1], k, v, approx.Features.draw(4, 8))
    with pytest.raises(nsa.ShapeError, match="longest sequence"):
        approx.synthesizer(np.ones((2, 7, 8)), v)
    with pytest.raises(nsa.DtypeError, match="convert them"):
        approx.performer(q, k, v.astype(np.float32), approx.Features.draw(4, 8))
    with pytest.raises(nsa.DtypeError, match="convert them"):
        approx.synthesizer(np.ones((2, 8, 8), int), v.astype(int))
    with pytest.raises(nsa.ArgumentError, match="at least 1"):
        approx.Features.draw(4, 0)
