"""Maps of weights: every cell is a mean, and nothing is left out."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from numba_sparse_attn import analysis, as_pattern
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
