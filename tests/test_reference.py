"""The oracle, checked by a triple loop in plain Python and by finite differences."""

from __future__ import annotations

import ast
import itertools
import math
from pathlib import Path

import numpy as np
import pytest

from numba_sparse_attn import reference, reference_normalisers


def by_triple_loop(q, k, v, mask, scale):
    """Forward pass of one head with Python floats: one loop for queries, one for keys, one for channels."""
    n_q, d_v = len(q), v.shape[1]
    out, lse = [[0.0] * d_v for _ in range(n_q)], [-math.inf] * n_q
    for row in range(n_q):
        scores = {}
        for key in range(len(k)):
            if mask[row][key]:
                scores[key] = scale * math.fsum(
                    float(a) * float(b) for a, b in zip(q[row], k[key], strict=True)
                )
        if not scores:
            continue
        peak = max(scores.values())
        total = math.fsum(math.exp(score - peak) for score in scores.values())
        lse[row] = peak + math.log(total)
        for channel in range(d_v):
            out[row][channel] = math.fsum(
                math.exp(score - lse[row]) * float(v[key, channel]) for key, score in scores.items()
            )
    return np.array(out).reshape(n_q, d_v), np.array(lse)


def drawn(rng, n_q, n_k, d, d_v, *, density=0.6):
    q, k, v = rng.standard_normal((n_q, d)), rng.standard_normal((n_k, d)), rng.standard_normal((n_k, d_v))
    return q, k, v, rng.standard_normal((n_q, d_v)), rng.random((n_q, n_k)) < density


@pytest.mark.parametrize(("n_q", "n_k", "d", "d_v"), [(7, 7, 4, 4), (5, 9, 3, 2), (9, 4, 1, 6), (1, 1, 1, 1)])
@pytest.mark.parametrize("scale", [0.5, -0.7, 0.0, 30.0])
def test_forward_is_the_triple_loop(n_q, n_k, d, d_v, scale):
    q, k, v, _, mask = drawn(np.random.default_rng(n_q * n_k), n_q, n_k, d, d_v)
    mask[0] = False
    out, lse = reference.forward(q, k, v, mask, scale)
    expected_out, expected_lse = by_triple_loop(q, k, v, mask, scale)
    np.testing.assert_allclose(out, expected_out, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(lse, expected_lse, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(("n_q", "n_k", "d", "d_v"), [(4, 4, 3, 3), (3, 6, 2, 4), (6, 3, 4, 1)])
@pytest.mark.parametrize("scale", [0.6, -1.1])
def test_backward_is_the_central_difference(n_q, n_k, d, d_v, scale):
    q, k, v, dout, mask = drawn(np.random.default_rng(n_q + 10 * n_k), n_q, n_k, d, d_v)
    mask[-1] = False
    gradients = reference.backward(dout, q, k, v, mask, scale)
    step = 1e-5
    for position, gradient in enumerate(gradients):
        numeric = np.zeros_like(gradient)
        for index in np.ndindex(gradient.shape):
            sides = []
            for sign in (1.0, -1.0):
                moved = [q.copy(), k.copy(), v.copy()]
                moved[position][index] += sign * step
                sides.append(np.sum(dout * reference.forward(*moved, mask, scale)[0]))
            numeric[index] = (sides[0] - sides[1]) / (2 * step)
        # A central difference is off by step**2 and by rounding / step: 1e-10 and 1e-11 here.
        np.testing.assert_allclose(gradient, numeric, rtol=1e-8, atol=1e-8)


def test_heads_groups_and_batches_are_separate_problems():
    rng = np.random.default_rng(3)
    batch, heads, kv_heads, n_q, n_k, d, d_v = 2, 6, 3, 5, 7, 4, 2
    q, k = rng.standard_normal((batch, heads, n_q, d)), rng.standard_normal((batch, kv_heads, n_k, d))
    v, dout = rng.standard_normal((batch, kv_heads, n_k, d_v)), rng.standard_normal((batch, heads, n_q, d_v))
    mask = rng.random((heads, n_q, n_k)) < 0.5
    out, lse = reference.forward(q, k, v, mask, 0.4)
    dq, dk, dv = reference.backward(dout, q, k, v, mask, 0.4)
    assert (out.shape, lse.shape) == ((batch, heads, n_q, d_v), (batch, heads, n_q))
    dk_sum, dv_sum = np.zeros_like(k), np.zeros_like(v)
    for item, head in itertools.product(range(batch), range(heads)):
        shared = head // (heads // kv_heads)
        one = (q[item, head], k[item, shared], v[item, shared], mask[head], 0.4)
        np.testing.assert_array_equal(out[item, head], reference.forward(*one)[0])
        np.testing.assert_array_equal(lse[item, head], reference.forward(*one)[1])
        gradients = reference.backward(dout[item, head], *one)
        np.testing.assert_array_equal(dq[item, head], gradients[0])
        dk_sum[item, shared] += gradients[1]
        dv_sum[item, shared] += gradients[2]
    np.testing.assert_array_equal(dk, dk_sum)
    np.testing.assert_array_equal(dv, dv_sum)


def test_row_blocks_do_not_show(monkeypatch):
    q, k, v, dout, mask = drawn(np.random.default_rng(5), 33, 20, 4, 4)
    whole = (*reference.forward(q, k, v, mask, 0.5), *reference.backward(dout, q, k, v, mask, 0.5))
    monkeypatch.setattr(reference, "_BLOCK_ELEMENTS", 20 * 7)
    parts = (*reference.forward(q, k, v, mask, 0.5), *reference.backward(dout, q, k, v, mask, 0.5))
    for one, other in zip(whole, parts, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-13, atol=1e-14)


def test_a_row_without_keys_and_a_key_without_queries():
    q, k, v, dout, mask = drawn(np.random.default_rng(6), 6, 6, 3, 3)
    mask[2], mask[:, 4] = False, False
    dout[2] = np.nan
    out, lse = reference.forward(q, k, v, mask, 1.0)
    dq, dk, dv = reference.backward(dout, q, k, v, mask, 1.0)
    assert not out[2].any() and lse[2] == -np.inf and not dq[2].any()
    assert not dk[4].any() and not dv[4].any()
    assert all(np.isfinite(array).all() for array in (out, dq, dk, dv))


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_what_is_not_selected_reaches_nothing(poison):
    q, k, v, dout, mask = drawn(np.random.default_rng(7), 8, 9, 3, 3)
    mask[1], mask[:, 5] = False, False
    clean = (*reference.forward(q, k, v, mask, 1.0), *reference.backward(dout, q, k, v, mask, 1.0))
    q[1], k[5], v[5], dout[1] = poison, poison, poison, poison
    dirty = (*reference.forward(q, k, v, mask, 1.0), *reference.backward(dout, q, k, v, mask, 1.0))
    for one, other in zip(clean, dirty, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_what_is_selected_reaches_exactly_the_rows_that_select_it(poison):
    q, k, v, dout, mask = drawn(np.random.default_rng(8), 8, 9, 3, 3)
    v[4, 1] = poison
    out, lse = reference.forward(q, k, v, mask, 1.0)
    assert np.isfinite(lse).all()
    expected = np.zeros_like(out, bool)
    expected[:, 1] = mask[:, 4]
    np.testing.assert_array_equal(~np.isfinite(out), expected)
    dq, dk, dv = reference.backward(dout, q, k, v, mask, 1.0)
    sees = mask[:, 4]
    np.testing.assert_array_equal(~np.isfinite(dq).all(axis=1), sees)
    np.testing.assert_array_equal(~np.isfinite(dk).all(axis=1), mask[sees].any(axis=0))
    assert np.isfinite(dv).all()  # dv does not depend on v


def test_a_nan_score_makes_its_row_nan():
    q, k, v, dout, mask = drawn(np.random.default_rng(9), 6, 6, 2, 2)
    k[3, 0] = np.nan
    out, lse = reference.forward(q, k, v, mask, 1.0)
    np.testing.assert_array_equal(np.isnan(lse), mask[:, 3])
    np.testing.assert_array_equal(np.isnan(out).all(axis=1), mask[:, 3])
    np.testing.assert_array_equal(np.isnan(out).any(axis=1), mask[:, 3])


@pytest.mark.parametrize(("n_q", "n_k", "d", "d_v"), [(0, 3, 2, 2), (3, 0, 2, 2), (3, 3, 2, 0), (0, 0, 1, 1)])
def test_empty_arrays(n_q, n_k, d, d_v):
    q, k, v, dout, mask = drawn(np.random.default_rng(0), n_q, n_k, d, d_v)
    out, lse = reference.forward(q, k, v, mask, 1.0)
    dq, dk, dv = reference.backward(dout, q, k, v, mask, 1.0)
    assert (out.shape, lse.shape) == ((n_q, d_v), (n_q,))
    assert (dq.shape, dk.shape, dv.shape) == (q.shape, k.shape, v.shape)
    assert not out.any() and not dq.any() and not dk.any()


def test_integer_masks_unfit_heads_and_unfit_axes_are_refused():
    q = np.zeros((2, 3, 4))
    with pytest.raises(ValueError, match="boolean"):
        reference.forward(q, q, q, np.ones((3, 3), int), 1.0)
    with pytest.raises(ValueError, match="3 query heads are not a multiple of 2 key heads"):
        reference.forward(np.zeros((3, 3, 4)), q, q, np.ones((3, 3), bool), 1.0)
    with pytest.raises(ValueError, match="the same number"):
        reference.forward(q, q[0], q, np.ones((3, 3), bool), 1.0)


def test_the_callers_arrays_are_left_alone():
    q, k, v, dout, mask = drawn(np.random.default_rng(11), 5, 5, 2, 2)
    copies = [array.copy() for array in (q, k, v, dout, mask)]
    for array in (q, k, v, dout, mask):
        array.setflags(write=False)
    reference.forward(q, k, v, mask, 1.0)
    reference.backward(dout, q, k, v, mask, 1.0)
    for array, copy in zip((q, k, v, dout, mask), copies, strict=True):
        np.testing.assert_array_equal(array, copy)


@pytest.mark.parametrize("module", [reference, reference_normalisers])
def test_the_oracle_imports_nothing_but_numpy_and_scipy(module):
    tree = ast.parse(Path(module.__file__).read_text(encoding="utf-8"))
    roots = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            roots |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "the oracle imports from its own package"
            roots.add(node.module.split(".")[0])
    assert roots <= {"__future__", "collections", "numpy", "scipy", "typing"}
