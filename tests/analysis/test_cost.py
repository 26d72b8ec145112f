"""Counts of the complexity table against the patterns, and what it measures."""

from __future__ import annotations

import numpy as np
import pytest

import numba_sparse_attn as nsa
from numba_sparse_attn import analysis, patterns


def test_counts():
    window, random = patterns.sliding_window(300, 10), patterns.random_keys(300, 7, 0)
    table = analysis.complexity(
        {"window": window, "random": random},
        heads=4,
        kv_heads=2,
        head_dim=16,
        value_dim=8,
        dtype="float16",
        seconds=0,
    )
    for row, pattern in zip(table.rows, (window, random), strict=True):
        assert row["pairs"] == 4 * pattern.nnz
        assert row["density"] == pytest.approx(pattern.nnz / 300**2)
        assert row["forward_flops"] == 2 * row["pairs"] * 24
        assert row["backward_flops"] == 2 * row["pairs"] * (3 * 16 + 2 * 8)
        # q and out of four heads, k and v of two, two bytes each
        assert row["least_bytes"] == 2 * 300 * (4 * (16 + 8) + 2 * (16 + 8))
        assert row["gathered_bytes"] == row["pairs"] * 24 * 2
        assert row["dense_weight_bytes"] == 4 * 300 * 300 * 2
        assert row["csr_bytes"] == pattern.nnz * 4 + 301 * 8
        assert row["tiles"] == 4 * pattern.tiles().count
        assert row["plan_bytes"] > 0 and row["engine"] == "cpu"
        assert "seconds" not in row


def test_heads_with_patterns_of_their_own():
    stack = patterns.strided_heads(64, 8, 8)
    row = analysis.complexity(stack, heads=2, seconds=0).rows[0]
    assert row["pairs"] == stack.nnz and row["density"] == pytest.approx(stack.nnz / (2 * 64 * 64))
    batch = nsa.HeadPatterns(stack.members, [[0, 1], [1, 1], [0, 0]])
    row = analysis.complexity(batch, heads=2, seconds=0).rows[0]
    assert row["pairs"] == batch.nnz and row["density"] == pytest.approx(1.0 - batch.sparsity)
    alone = nsa.HeadPatterns([patterns.causal(64)], [[0, 0], [0, 0]])
    row = analysis.complexity(alone, heads=2, seconds=0).rows[0]
    assert row["pairs"] == 4 * patterns.causal(64).nnz


def test_growth():
    """A window grows like n, full attention like n squared."""
    lengths = (1024, 2048, 4096)
    window = analysis.complexity([patterns.sliding_window(n, 16) for n in lengths], seconds=0)
    full = analysis.complexity([patterns.full(n) for n in lengths], seconds=0)
    assert window.exponents["pairs"] == pytest.approx(1.0, abs=0.02)
    assert full.exponents["pairs"] == pytest.approx(2.0) == full.exponents["forward_flops"]
    assert full.exponents["least_bytes"] == pytest.approx(1.0)
    assert not analysis.complexity(patterns.full(64), seconds=0).exponents


@pytest.mark.parametrize("dense", [True, False])
def test_time(dense):
    windows = [patterns.sliding_window(n, 8) for n in (64, 128)]
    batch = nsa.HeadPatterns([patterns.causal(64), windows[0]], [[0, 1], [1, 1]])
    for case, heads in ((windows, 1), (batch, 2)):
        table = analysis.complexity(case, heads=heads, head_dim=8, seconds=0.01, dense=dense)
        for row in table.rows:
            assert row["seconds"] > 0.0 and ("speedup" in row) == dense
            assert row["peak_bytes"] >= row["heads"] * row["n_q"] * 8 * 4  # the result of one batch element
            if dense:
                assert row["speedup"] == row["dense_seconds"] / row["seconds"]
                assert row["efficiency"] == pytest.approx(row["speedup"] * row["density"])
        assert np.isfinite(list(table.exponents.values())).all()


def test_refusals():
    with pytest.raises(nsa.ArgumentError, match="seconds"):
        analysis.complexity(patterns.causal(8), seconds=-1)
    with pytest.raises(nsa.PatternError, match="no pattern"):
        analysis.complexity([])
