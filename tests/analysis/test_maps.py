"""Maps of weights: every cell is a mean, and nothing is left out."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from numba_sparse_attn import ArgumentError, analysis, as_pattern
from numba_sparse_attn.testing import strategies

from .dense import probabilities


@given(strategies.problems(largest=150), st.sampled_from([1, 3, 40, 1000]))
def test_map(problem, cells):
    found = analysis.attention_map(
        problem.q, problem.k, as_pattern(problem.mask), scale=problem.scale, cells=cells
    )
    n_q, n_k = problem.mask.shape[-2:]
    weights = probabilities(problem, problem.mask)
    assert found.shape == (n_q, n_k) and found.cell.bit_count() == 1
    assert max(found.mass.shape[-2:]) <= cells
    for row in range(found.mass.shape[-2]):
        queries = weights[..., row * found.cell : (row + 1) * found.cell, :]
        for column in range(found.mass.shape[-1]):
            keys = queries[..., column * found.cell : (column + 1) * found.cell]
            np.testing.assert_allclose(
                found.mass[..., row, column], keys.sum(axis=-1).mean(axis=-1), rtol=1e-9, atol=1e-12
            )


@given(strategies.problems(largest=150), st.sampled_from([1, 2, 8]))
def test_coarser_cells(problem, times):
    """What is pooled is what would have been computed."""
    arguments = (problem.q, problem.k, as_pattern(problem.mask))
    fine = analysis.attention_map(*arguments, scale=problem.scale, cells=100)
    coarse = fine.coarser(fine.cell * times)
    most = max(1, *coarse.mass.shape[-2:])
    again = analysis.attention_map(*arguments, scale=problem.scale, cells=most)
    if again.cell == coarse.cell:
        np.testing.assert_allclose(coarse.mass, again.mass, rtol=1e-9, atol=1e-12)


def test_cells_of_one_head():
    q, k = np.random.default_rng(0).standard_normal((2, 3, 2, 10, 4))
    found = analysis.attention_map(q, k)
    np.testing.assert_array_equal(found.of((2, -1)), found.mass[2, 1])
    flat = analysis.attention_map(q[0, 0], k[0, 0])
    np.testing.assert_array_equal(flat.of(0), flat.mass)
    with pytest.raises(ArgumentError, match="head=5"):
        found.of(5)
    with pytest.raises(ArgumentError, match="multiple of 1"):
        found.coarser(0.5)
