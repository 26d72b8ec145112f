"""The CPU engine against the oracle: patterns, types, dimensions, groups, ragged tiles, empty rows.

Every case runs forward and backward, with poison in what is not selected, NaN in outputs and new memory, and
is judged by the error budget. Small cases go through the public functions, larger ones through both of the
engine's paths, whichever the planner would choose.
"""

from __future__ import annotations

import numpy as np
import pytest

from numba_sparse_attn import HeadPatterns, Pattern, cpu, patterns
from numba_sparse_attn.formats import from_mask
from numba_sparse_attn.patterns.catalogue import CATALOGUE
from numba_sparse_attn.testing import DTYPES, budget_for, random_problem, run_call, run_engine

from ..hard_cases import mask_of

HEAD_DIMS = (1, 16, 40, 64, 80, 128)
PATHS = {"tiles": Pattern.tiles, "rows": Pattern.rows}

every_path = pytest.mark.parametrize("path", PATHS)
every_dtype = pytest.mark.parametrize("dtype", DTYPES)


def ragged(n_q, n_k):
    """Full and partial tiles, a part without tiles, rows without keys, and keys without queries."""
    near = np.abs(np.arange(n_k) - np.arange(n_q)[:, None]) <= 140
    near[:, : n_k // 8] = True
    near[[0, n_q // 3, n_q - 1]] = False
    near[:, [1, n_k - 2]] = False
    return near


@every_dtype
@pytest.mark.parametrize("name", CATALOGUE)
def test_every_pattern(name, dtype):
    entry = CATALOGUE[name]
    pattern = entry.build(**entry.examples[0])
    # Every pattern meets all types, every type meets all head dimensions.
    head_dim = HEAD_DIMS[(list(CATALOGUE).index(name) + list(DTYPES).index(dtype)) % len(HEAD_DIMS)]
    kv_heads = entry.heads or 1
    problem = random_problem(
        mask_of(pattern), heads=entry.heads or 2, kv_heads=kv_heads, head_dim=head_dim, dtype=DTYPES[dtype]
    )
    budget_for(problem).check(**run_call(problem, pattern, engine="cpu"))


@every_path
@pytest.mark.parametrize("name", CATALOGUE)
def test_every_pattern_over_several_tiles(name, path):
    entry = CATALOGUE[name]
    pattern = entry.build(**entry.scaled(300))
    dtype = ("float32", "bfloat16")[list(CATALOGUE).index(name) % 2]
    heads = entry.heads or 1
    problem = random_problem(mask_of(pattern), heads=heads, head_dim=32, dtype=DTYPES[dtype], seed=len(name))
    members = list(pattern) if entry.heads else [pattern]
    budget_for(problem).check(**run_engine(cpu, problem, [PATHS[path](member) for member in members]))


@every_path
@every_dtype
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_every_head_dimension(head_dim, dtype, path):
    mask = ragged(150, 277)
    problem = random_problem(mask, heads=2, kv_heads=1, head_dim=head_dim, dtype=DTYPES[dtype], seed=head_dim)
    structure = PATHS[path](Pattern.from_csr(from_mask(mask)))
    budget_for(problem).check(**run_engine(cpu, problem, structure))


@every_path
@every_dtype
@pytest.mark.parametrize(("head_dim", "value_dim"), [(24, 1), (1, 24), (40, 72), (128, 17), (7, 130)])
def test_value_dimension_of_its_own(head_dim, value_dim, dtype, path):
    mask = ragged(140, 135)
    problem = random_problem(mask, heads=1, head_dim=head_dim, value_dim=value_dim, dtype=DTYPES[dtype])
    structure = PATHS[path](Pattern.from_csr(from_mask(mask)))
    budget_for(problem).check(**run_engine(cpu, problem, structure))


@every_path
@pytest.mark.parametrize(
    ("n_q", "n_k"),
    [(1, 1), (1, 300), (300, 1), (127, 128), (128, 127), (128, 128), (129, 129), (257, 130), (64, 385)],
)
def test_lengths_around_the_tile(n_q, n_k, path):
    for mask in (np.ones((n_q, n_k), bool), ragged(n_q, max(n_k, 3))[:, :n_k]):
        problem = random_problem(mask, heads=2, head_dim=16, seed=n_q)
        structure = PATHS[path](Pattern.from_csr(from_mask(mask)))
        budget_for(problem).check(**run_engine(cpu, problem, structure))


@every_path
@every_dtype
@pytest.mark.parametrize(("heads", "kv_heads", "batch"), [(4, 1, ()), (6, 2, (2,)), (3, 3, (2, 1))])
def test_groups_and_batches(heads, kv_heads, batch, dtype, path):
    mask = ragged(131, 140)
    problem = random_problem(
        mask, heads=heads, kv_heads=kv_heads, batch=batch, head_dim=20, dtype=DTYPES[dtype], seed=heads
    )
    structure = PATHS[path](Pattern.from_csr(from_mask(mask)))
    budget_for(problem).check(**run_engine(cpu, problem, structure))


@every_path
def test_heads_with_patterns_of_very_different_size(path):
    n = 200
    members = [
        patterns.full(n),
        patterns.sliding_window(n, 2),
        Pattern.from_csr(from_mask(np.zeros((n, n), bool))),
        patterns.global_tokens(n, [5]),
    ]
    problem = random_problem(mask_of(HeadPatterns(members, range(4))), heads=4, kv_heads=2, head_dim=24)
    budget = budget_for(problem)
    budget.check(**run_engine(cpu, problem, [PATHS[path](member) for member in members]))
    budget.check(**run_call(problem, HeadPatterns(members, range(4)), engine="cpu"))


def test_one_call_may_mix_tiles_and_rows():
    members = [patterns.causal(150), patterns.random_keys(150, 3, seed=1)]
    problem = random_problem(mask_of(HeadPatterns(members, [0, 1])), heads=2, kv_heads=1, head_dim=24)
    structures = [members[0].tiles(), members[1].rows()]
    budget_for(problem).check(**run_engine(cpu, problem, structures))


@every_path
@pytest.mark.parametrize("kind", ["empty", "one pair", "one row", "one column", "checkerboard"])
def test_extreme_patterns(kind, path):
    mask = np.zeros((150, 140), bool)
    if kind == "one pair":
        mask[149, 139] = True
    elif kind == "one row":
        mask[77] = True
    elif kind == "one column":
        mask[:, 0] = True
    elif kind == "checkerboard":
        mask[::2, ::2] = mask[1::2, 1::2] = True
    problem = random_problem(mask, heads=2, kv_heads=1, head_dim=33)
    structure = PATHS[path](Pattern.from_csr(from_mask(mask)))
    budget_for(problem).check(**run_engine(cpu, problem, structure))
