"""Attention weights as SciPy arrays: against their definition, and in the shape of the call."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import event, given

import numba_sparse_attn as nsa
from numba_sparse_attn import reference
from numba_sparse_attn.testing import random_problem, strategies

from .analysis.dense import probabilities
from .cuda.fake_libraries import Tensor


def leaves(nested, axes):
    """The arrays of all heads, batch elements first."""
    for _ in range(axes - 1):
        nested = [item for part in nested for item in part]
    return nested


@given(strategies.problems(largest=140))
def test_weights_are_those_of_the_definition(problem):
    event(problem.dtype.name)
    weights = nsa.attention_weights(problem.q, problem.k, problem.mask, scale=problem.scale)
    lead = problem.q.shape[:-2]
    heads = (int(np.prod(lead)), *problem.selected.shape[-2:])
    expected = probabilities(problem, problem.mask).reshape(heads)
    selected = problem.selected.reshape(heads)
    found = leaves(weights, len(lead))
    assert len(found) == len(expected)
    for array, dense, mask in zip(found, expected, selected, strict=True):
        assert array.dtype == problem.accumulator and array.has_canonical_format
        assert array.nnz == mask.sum()
        rounding = 4 * np.finfo(problem.accumulator).eps
        np.testing.assert_allclose(array.toarray(), dense, rtol=1e-9 + rounding, atol=1e-40)
        sums = np.asarray(array.sum(axis=1)).reshape(-1)
        np.testing.assert_allclose(sums, mask.any(axis=1), rtol=0, atol=200 * rounding)


def test_weights_times_values_are_attention():
    pattern = nsa.patterns.bigbird(
        300, 32, window_blocks=1, global_blocks=1, random_blocks=2, seed=0
    ).causal()
    problem = random_problem(pattern.toarray(), heads=4, kv_heads=2, head_dim=24, dtype=np.float64)
    weights = nsa.attention_weights(problem.q, problem.k, pattern)
    expected, _ = reference.forward(*problem.arrays[:3], problem.mask, problem.scale)
    for head, array in enumerate(weights):
        np.testing.assert_allclose(array @ problem.v[head // 2], expected[head], rtol=1e-12, atol=1e-13)


def test_the_result_is_nested_as_the_axes_are():
    q = np.zeros((2, 3, 4, 5, 8), np.float32)
    weights = nsa.attention_weights(q, q[:, :, :2, :4], nsa.patterns.full(5, n_keys=4))
    assert len(weights) == 2 and len(weights[0]) == 3 and len(weights[0][0]) == 4
    assert weights[1][2][3].shape == (5, 4)
    assert nsa.attention_weights(q[0, 0, 0], q[0, 0, 0], nsa.patterns.causal(5)).shape == (5, 5)
    assert nsa.attention_weights(q[:0], q[:0], nsa.patterns.causal(5)) == []
    assert nsa.attention_weights(q[:, :0], q[:, :0], nsa.patterns.causal(5)) == [[], []]


def test_every_head_has_its_own_pattern_and_arrays():
    q = np.random.default_rng(0).standard_normal((2, 6, 4))
    heads = nsa.patterns.causal(6).heads(1) + nsa.patterns.block_local(6, 2).heads(1)
    first, second = nsa.attention_weights(q, q, heads)
    assert (first.nnz, second.nnz) == (21, 12)
    same = nsa.attention_weights(q, q, nsa.patterns.causal(6))
    same[0].data[:] = 0.0
    same[0].eliminate_zeros()
    assert same[1].nnz == 21
    assert nsa.patterns.causal(6).nnz == 21


def test_what_is_not_selected_never_matters():
    q, k = np.random.default_rng(0).standard_normal((2, 1, 8, 4))
    k[0, 3] = np.nan
    window = nsa.patterns.sliding_window(8, 1)
    (weights,) = nsa.attention_weights(q, k, window)
    dense = weights.toarray()
    assert np.isnan(dense[2:5]).any(axis=1).all()
    assert np.isfinite(np.delete(dense, [2, 3, 4], axis=0)).all()
    assert (np.isnan(dense) <= window.toarray()).all()


def test_weights_too_small_for_the_type_are_stored():
    q = np.array([[100.0, 0.0]], np.float32)
    k = np.array([[100.0, 0.0], [-100.0, 0.0]], np.float32)
    weights = nsa.attention_weights(q, k, np.ones((1, 2), bool), scale=1.0)
    assert weights.nnz == 2 and weights.toarray().tolist() == [[1.0, 0.0]]


def test_refusals():
    q = np.zeros((2, 4, 8))
    with pytest.raises(nsa.ShapeError, match="a pattern of shape"):
        nsa.attention_weights(q, q, nsa.patterns.causal(5))
    with pytest.raises(nsa.ArgumentError, match="scale=nan"):
        nsa.attention_weights(q, q, nsa.patterns.causal(4), scale=np.nan)
    with pytest.raises(nsa.SparseAttentionError):
        nsa.attention_weights(Tensor(q), Tensor(q), nsa.patterns.causal(4))
