"""Attention with changed scores against the oracle: changes, types and kinds of pattern, both directions."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import numba_sparse_attn as nsa
from numba_sparse_attn import scores
from numba_sparse_attn.cpu import row_work
from numba_sparse_attn.reference_scores import DenseRelative
from numba_sparse_attn.testing import DTYPES, assert_within_budget, budget_for, random_problem, run_call

from .twins import EVERY

every_dtype = pytest.mark.parametrize("dtype", DTYPES)


def ragged(n_q, n_k, seed=0):
    """Empty rows, full rows, keys that nobody sees."""
    rng = np.random.default_rng(seed)
    mask = rng.random((n_q, n_k)) < rng.choice([0.0, 0.1, 0.5, 1.0], (n_q, 1))
    mask[n_q // 2] = False
    mask[:, n_k // 2] = False
    mask[0, 0] = True
    return mask


def problem_with(names, mask, *, heads, seed=0, sink=None, **sizes):
    """(problem with the oracle's twins, changes)."""
    rng = np.random.default_rng(seed)
    pairs = [EVERY[name](mask, heads, rng) for name in names]
    problem = random_problem(mask, heads=heads, **sizes)
    changes = [change for change, _ in pairs]
    if sink is not None:
        changes.insert(len(changes) // 2, scores.sink(sink))
    return replace(problem, changes=tuple(twin for _, twin in pairs), sink=sink), changes


def check(problem, changes, pattern, engine="cpu"):
    """Everything that comes back, gradients of parameters included."""
    found = run_call(problem, pattern, engine=engine, scores=changes)
    budget = budget_for(problem)
    number = 0
    for place, change in enumerate(changes):
        gradient = found.pop(f"dscores{place}", None)
        if change.kind == "sink":
            budget.check(dsink=gradient)
            continue
        if change.kind == "bias":
            check_bias(problem, change, gradient, budget, f"dchange{number}")
        elif gradient is not None:
            budget.check(**{f"dchange{number}": gradient})
        number += 1
    budget.check(**found)


def check_bias(problem, change, gradients, budget, name):
    """The gradient of every stored number, beside the oracle's at the pair that it belongs to."""
    expected, errors = budget.expected[name], budget.low_error[name]
    if len(change._parts) > 1:
        gradients = np.split(gradients, np.cumsum([part.data.size for part in change._parts])[:-1])
    for head, gradient in enumerate(gradients if expected.shape[1] > 1 else [gradients]):
        owner = change._parts[0].owner
        pairs = np.nonzero(problem.selected.reshape(-1, *expected.shape[2:])[head])
        if owner is not None:
            pairs = np.repeat(np.arange(owner.shape[0]), np.diff(owner.indptr)), owner.indices
        at = (..., head, *pairs)
        assert_within_budget(
            gradient[:, None],
            expected[0][at][:, None],
            errors[:, 0][at][..., None],
            gradient.dtype,
            name=name,
        )


@every_dtype
@pytest.mark.parametrize("name", EVERY)
def test_every_change(name, dtype):
    mask = ragged(37, 50)
    problem, changes = problem_with([name], mask, heads=4, kv_heads=2, head_dim=12, dtype=DTYPES[dtype])
    check(problem, changes, nsa.as_pattern(mask))


@every_dtype
def test_all_of_them_in_a_row(dtype):
    mask = ragged(30, 24)
    logits = np.array([0.5, -1.0], np.float32)
    problem, changes = problem_with(EVERY, mask, heads=2, head_dim=16, dtype=DTYPES[dtype], sink=logits)
    check(problem, changes, nsa.as_pattern(mask))


@every_dtype
@pytest.mark.parametrize("batch", [(), (2,)])
def test_sinks(batch, dtype):
    mask = ragged(150, 140)
    logits = np.array([0.5, -np.inf, 3.0, -2.0], np.float32)
    problem, changes = problem_with(
        [], mask, heads=4, kv_heads=2, head_dim=16, batch=batch, dtype=DTYPES[dtype], sink=logits
    )
    check(problem, changes, nsa.as_pattern(mask))
    check(problem, changes, nsa.as_pattern(mask), engine="reference")


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("engine", ["cpu", "reference"])
def test_batches(name, engine):
    mask = ragged(20, 31)
    problem, changes = problem_with([name], mask, heads=2, kv_heads=1, head_dim=8, batch=(2, 2))
    check(problem, changes, nsa.as_pattern(mask), engine)


@pytest.mark.parametrize("name", [name for name in EVERY if name != "bias for all"])
def test_patterns_of_their_own_for_heads_of_a_group(name):
    masks = np.stack([ragged(40, 33, seed) for seed in range(4)])
    masks[2] = False
    problem, changes = problem_with([name], masks, heads=4, kv_heads=2, head_dim=8)
    check(problem, changes, nsa.as_pattern(masks))


@pytest.mark.parametrize("name", EVERY)
def test_lists_of_several_pieces(name):
    mask = np.zeros((5, 1300), bool)
    mask[[1, 3]] = True
    mask[2, ::7] = True
    problem, changes = problem_with([name], mask, heads=2, head_dim=8)
    check(problem, changes, nsa.as_pattern(mask))


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("scale", [0.0, -0.5])
def test_scales(name, scale):
    mask = ragged(20, 30)
    problem, changes = problem_with([name], mask, heads=2, head_dim=8, scale=scale)
    check(problem, changes, nsa.as_pattern(mask))


@pytest.mark.parametrize(("grid", "sizes"), [((5, 6), (9, 11)), ((2, 3, 5), (3, 7, 9)), ((30,), (59,))])
def test_relative_positions_on_grids(grid, sizes):
    n = int(np.prod(grid))
    mask = ragged(n, n)
    table = np.random.default_rng(0).standard_normal((2, *sizes)).astype(np.float32)
    coordinates = np.stack(np.unravel_index(np.arange(n), grid), axis=-1)
    difference = coordinates[:, None] - coordinates + np.array(sizes) // 2
    twin = DenseRelative(
        table.reshape(2, -1), np.ravel_multi_index(tuple(np.moveaxis(difference, -1, 0)), sizes)
    )
    problem = replace(random_problem(mask, heads=2, head_dim=8), changes=(twin,))
    found = run_call(problem, nsa.as_pattern(mask), engine="cpu", scores=scores.relative(table, grid))
    assert found["dscores0"].shape == table.shape
    gradient = found.pop("dscores0").reshape(2, -1)
    budget_for(problem).check(**found, dchange0=gradient)


def test_threads_and_waves_do_not_change_bits(monkeypatch):
    mask = ragged(90, 200)
    problem, changes = problem_with(
        EVERY, mask, heads=4, kv_heads=2, head_dim=32, sink=np.zeros(4, np.float32)
    )
    monkeypatch.setattr("numba_sparse_attn.cpu.operands._SERIAL_FLOPS", 0)
    results = []
    for threads, size in (("1", 1 << 40), ("2", 1 << 40), ("3", 1), ("3", 300_000)):
        monkeypatch.setenv("NSA_NUM_THREADS", threads)
        monkeypatch.setattr(row_work, "_WAVE_BYTES", size)
        found = run_call(problem, nsa.as_pattern(mask), engine="cpu", scores=changes)
        results.append({name: array.tobytes() for name, array in found.items()})
    assert all(result == results[0] for result in results)
