"""Changes of scores in the warp kernels, in Numba's simulator; ``test_simulator.py`` runs this file."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from numba_sparse_attn import scores
from numba_sparse_attn.reference_scores import DenseRelative
from numba_sparse_attn.testing import DTYPES, budget_for, random_problem

from ..scores.twins import EVERY
from .launching import SimulatedEngine, run, structures_of
from .simulator_cases import RUNS, one_core

__all__ = ["one_core"]

MASK = np.array(
    [[1, 0, 1, 1, 0, 0, 1], [0, 0, 0, 0, 0, 0, 0], [1, 1, 1, 1, 1, 0, 1], [0, 1, 0, 0, 0, 0, 0]], bool
)


def problem_with(names, mask, heads, **sizes):
    rng = np.random.default_rng(3)
    pairs = [EVERY[name](mask, heads, rng) for name in names]
    problem = random_problem(mask, heads=heads, **sizes)
    return replace(problem, changes=tuple(twin for _, twin in pairs)), tuple(change for change, _ in pairs)


def check(problem, changes, **options):
    found = run(problem, structures_of(problem), scores=changes, **options)
    budget = budget_for(problem)
    for number, change in enumerate(changes):
        gradient = found.pop(f"dscores{number}", None)
        if change.kind == "bias":
            gradient = as_matrices(gradient, problem, budget.expected[f"dchange{number}"].shape)
        if gradient is not None:
            budget.check(**{f"dchange{number}": gradient})
    budget.check(**found)


def as_matrices(gradient, problem, shape):
    """The gradient of a bias, a number a pair and head, as the matrices that the oracle has."""
    dense = np.zeros(shape, np.float32)
    for head, numbers in enumerate(gradient):
        dense[0, head][problem.selected.reshape(-1, *shape[2:])[head]] = numbers
    return dense


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("name", [name for name in EVERY if name != "bias for all"])
def test_every_change(name, dtype):
    problem, changes = problem_with([name], MASK, 2, kv_heads=1, head_dim=8, dtype=DTYPES[dtype])
    check(problem, changes)


@pytest.mark.parametrize("part_keys", [2, 100])
def test_all_of_them_in_a_row(part_keys):
    names = [name for name in EVERY if name != "bias for all"]
    problem, changes = problem_with(names, MASK, 2, kv_heads=2, head_dim=5, value_dim=3)
    check(problem, changes, part_keys=part_keys)


@pytest.mark.parametrize("name", ["bias by head", "relative", "alibi"])
def test_patterns_that_differ_inside_of_a_group(name):
    masks = np.stack([MASK, ~MASK, MASK & False, MASK | True])
    problem, changes = problem_with([name], masks, 4, kv_heads=2, head_dim=8)
    check(problem, changes)


def test_batches_share_numbers():
    problem, changes = problem_with(["bias by head", "alibi"], MASK, 2, kv_heads=1, head_dim=8, batch=(2,))
    check(problem, changes)


@pytest.mark.parametrize("name", ["alibi", "softcap", "modify", "relative", "bias by head"])
def test_runs_are_staged_where_nobody_asks_for_entries(name):
    problem, changes = problem_with([name], RUNS, 1, head_dim=16, dtype=DTYPES["float16"])
    for change in changes:
        change.learnable = name == "bias by head"
    engine = SimulatedEngine()
    found = run(problem, structures_of(problem), scores=changes, engine=engine)
    found.pop("dscores0", None)
    budget_for(problem).check(**found)
    assert any(made.startswith("shared") for made in engine.launched) == (name != "bias by head")


def test_a_bias_of_zeros_changes_no_bit():
    problem = random_problem(MASK, heads=2, head_dim=7)
    zero = scores.bias(np.zeros((2, MASK.sum()), np.float32))
    plain = run(problem, structures_of(problem))
    found = run(problem, structures_of(problem), scores=(zero,))
    assert all(found[name].tobytes() == plain[name].tobytes() for name in plain)


def test_a_grid():
    mask = np.random.default_rng(0).random((6, 6)) < 0.6
    table = np.random.default_rng(1).standard_normal((2, 3, 5)).astype(np.float32)
    coordinates = np.stack(np.unravel_index(np.arange(6), (2, 3)), axis=-1)
    difference = coordinates[:, None] - coordinates + np.array([1, 2])
    twin = DenseRelative(
        table.reshape(2, -1), np.ravel_multi_index(tuple(np.moveaxis(difference, -1, 0)), (3, 5))
    )
    problem = replace(random_problem(mask, heads=2, head_dim=8), changes=(twin,))
    found = run(problem, structures_of(problem), scores=(scores.relative(table, (2, 3)),))
    gradient = found.pop("dscores0").reshape(2, -1)
    budget_for(problem).check(**found, dchange0=gradient)
