"""Comparisons, their Pareto front, and the tables that results are."""

from __future__ import annotations

import csv

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import numba_sparse_attn as nsa
from numba_sparse_attn import analysis, patterns
from numba_sparse_attn.analysis import Table
from numba_sparse_attn.patterns.catalogue import CATALOGUE
from numba_sparse_attn.testing import random_problem

from .dense import probabilities

points = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6) | st.just(np.nan)), max_size=12)


@given(points)
def test_front(pairs):
    costs, errors = [cost for cost, _ in pairs], [error for _, error in pairs]
    front = analysis.pareto_front(costs, errors)
    for cost, error, chosen in zip(costs, errors, front, strict=True):
        beaten = any(c <= cost and e <= error and (c, e) != (cost, error) for c, e in pairs)
        assert chosen == (not np.isnan(error) and not beaten)


def rows_by_name(table):
    return {row["pattern"]: row for row in table.rows}


def test_rows_are_the_measures():
    mask = patterns.causal(96).toarray()
    problem = random_problem(mask, heads=4, kv_heads=2, head_dim=8, value_dim=6, batch=(2,), dtype=np.float16)
    q, k, v = problem.q, problem.k, problem.v
    baseline = patterns.causal(96)
    heads = patterns.sliding_window(96, 4, causal=True).heads(2) + patterns.full(96).heads(2)
    window = patterns.sliding_window(96, 9, causal=True)
    table = analysis.compare(q, k, v, {"window": window, "mixed": heads}, baseline=baseline, block=32)
    for name, pattern in (("window", window), ("mixed", heads)):
        row = rows_by_name(table)[name]
        settings = {"baseline": baseline}
        recall = analysis.recall(q, k, pattern, **settings)
        assert row["recall"] == pytest.approx(recall.mean())
        assert row["recall_low"] == pytest.approx(recall.min())
        assert row["kl"] == pytest.approx(analysis.kl_divergence(q, k, pattern, **settings).mean())
        distance = analysis.total_variation(q, k, pattern, **settings)
        assert row["total_variation"] == pytest.approx(distance.mean())
        assert row["entropy"] == pytest.approx(analysis.attention_entropy(q, k, pattern).mean())
        gap = analysis.information_gap(q, k, pattern, **settings)
        assert row["information_gap"] == pytest.approx(gap.mean())
        errors = analysis.output_error(q, k, v, pattern, block=32, **settings)
        assert row["error_high"] == pytest.approx(errors.max())
    row = rows_by_name(table)["window"]
    assert row["pairs"] == 8 * window.nnz and row["density"] == window.nnz / 96**2
    assert row["forward_flops"] == 2 * 8 * window.nnz * 14
    values = np.repeat(v.astype(np.float64), 2, axis=-3)
    out, exact = (probabilities(problem, seen) @ values for seen in (window.toarray(), mask))
    assert row["error"] == pytest.approx(np.linalg.norm(out - exact) / np.linalg.norm(exact), rel=1e-9)
    assert rows_by_name(table)["mixed"]["kl"] == np.inf  # full attention is not inside of causal attention
    assert rows_by_name(table)["mixed"]["pairs"] == 2 * heads.nnz


def test_the_whole_catalogue():
    rng = np.random.default_rng(0)
    q, k, v = rng.standard_normal((3, 2, 256, 8)).astype(ml_dtypes.bfloat16)
    table = analysis.compare(q, k, v, baseline=patterns.causal(256))
    names = {row["pattern"] for row in table.rows}
    assert names | set(table.skipped) == set(CATALOGUE) and not names & set(table.skipped)
    assert len(names) > 28 and all(table.skipped.values())
    assert [row["error"] for row in table.rows] == sorted(row["error"] for row in table.rows)
    assert all(0.0 <= row["recall"] <= 1.0 and row["kl"] >= 0.0 for row in table.rows)
    # Cut to the baseline, full attention is the baseline.
    full = rows_by_name(table)["full"]
    assert full["error"] == 0.0 and full["recall"] == 1.0 and full["pairs"] == 2 * patterns.causal(256).nnz
    front = [rows_by_name(table)[name] for name in table.front]
    assert [row["pairs"] for row in front] == sorted(row["pairs"] for row in front)
    assert all(not row["front"] for row in table.rows if row["pattern"] not in table.front)


def test_time_is_taken_of_the_engine_that_is_asked_for():
    q, k, v = np.random.default_rng(0).standard_normal((3, 64, 8))
    table = analysis.compare(q, k, v, patterns.causal(64), engine="cpu", seconds=0.01)
    assert table.rows[0]["seconds"] > 0.0 and "seconds" in str(table)
    with pytest.raises(nsa.EngineError, match="'nonsense'"):
        analysis.compare(q, k, v, patterns.causal(64), engine="nonsense", seconds=0.01)


def test_equal_names_are_numbered():
    q, k, v = np.random.default_rng(0).standard_normal((3, 16, 8))
    table = analysis.compare(q, k, v, [patterns.causal(16), patterns.causal(16), np.tri(16, dtype=bool)])
    assert sorted(table.column("pattern")) == ["causal(n=16)", "causal(n=16) #2", "mask"]


def test_outputs_of_zero():
    q, k, v = np.ones((3, 8, 4))
    nothing = np.zeros((8, 8), bool)
    both = analysis.compare(q, k, v, [nothing], baseline=nothing).rows[0]
    assert both["error"] == 0.0 and np.isnan(both["recall"])
    found = analysis.compare(q, k, v, [patterns.full(8)], baseline=nothing).rows[0]
    assert found["error"] == np.inf


def test_tables(tmp_path):
    table = Table(
        [{"name": "a", "pairs": 1234, "share": 0.1 + 0.2}, {"name": "long", "pairs": 5, "front": True}]
    )
    lines = str(table).splitlines()
    assert lines[0].split() == ["name", "pairs", "share", "front"]
    assert len(lines) == 4 and lines[2].startswith("a     ") and lines[3].endswith("*")
    assert len(table) == 2 and "2 rows" in repr(table) and str(Table([])) == "no rows"
    table.to_csv(tmp_path / "table.csv")
    with open(tmp_path / "table.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert float(rows[0]["share"]) == 0.1 + 0.2 and rows[1]["share"] == "" and rows[1]["front"] == "True"


def test_refusals():
    q = np.zeros((2, 5, 4))
    with pytest.raises(nsa.PatternError, match="no pattern"):
        analysis.compare(q, q, q, [])
    with pytest.raises(nsa.ShapeError, match="pattern of shape"):
        analysis.compare(q, q, q, patterns.causal(6))
    with pytest.raises(nsa.ShapeError, match="catalogue"):
        analysis.compare(q, q[:, :1], q[:, :1])
    with pytest.raises(nsa.ArgumentError, match="block"):
        analysis.compare(q, q, q, patterns.causal(5), block=0)
