"""Changes of scores in the tile kernels on mma.sync, in Numba's simulator; ``test_simulator.py`` runs it.

Both the online softmax and the gradients, with queries as rows and as columns of scores.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from numba_sparse_attn import as_pattern, scores
from numba_sparse_attn.cuda.tile.packing import pack_groups
from numba_sparse_attn.reference_scores import DenseFunction
from numba_sparse_attn.testing import DTYPES, budget_for, random_problem

from ..scores.test_agreement import problem_with
from ..scores.twins import EVERY
from .simulator_cases import one_core  # noqa: F401
from .tile_launching import run
from .tile_simulator_cases import ragged

#: Changes that the tile engine takes.
NAMES = ("alibi", "softcap", "relative", "modify")


def check(problem, changes, *, gradients=True, **settings):
    for change in changes:
        change.learnable = False
    results = run(
        problem, [as_pattern(problem.mask).tiles()], gradients=gradients, scores=changes, **settings
    )
    budget_for(problem, gradients=gradients).check(**results)


def test_every_change_has_its_case():
    assert set(NAMES) | {"bias by head", "bias for all"} == set(EVERY)


@pytest.mark.parametrize(("name", "dtype"), list(zip(NAMES, ["float16", "bfloat16"] * 2, strict=True)))
def test_every_change(name, dtype):
    problem, changes = problem_with(
        [name], ragged(20, 40), heads=2, kv_heads=1, head_dim=32, dtype=DTYPES[dtype]
    )
    check(problem, changes)


@pytest.mark.parametrize(("n_q", "n_k"), [(140, 30), (30, 140)])
def test_all_of_them_in_a_row(n_q, n_k):
    """A second tile row or column; most of the scores of the last one are of no query or of no key."""
    problem, changes = problem_with(NAMES, ragged(n_q, n_k), heads=1, head_dim=64, dtype=np.float16)
    check(problem, changes, poison=0.0)


def test_what_is_computed_exactly_is_changed_too():
    """With the scale's sign; rows whose tile has values that spoil them."""
    mask = np.zeros((19, 130), bool)
    mask[[1, 2, 17], [0, 129, 5]] = mask[18, 3:9] = True
    problem, changes = problem_with(
        ["relative", "modify"], mask, heads=2, kv_heads=1, head_dim=32, dtype=np.float16
    )
    check(replace(problem, scale=-0.2), changes, poison=np.inf)


def wild(score, head, i, j):
    """Infinite, or no number, for pairs that nobody selects."""
    return score if (i + j) % 3 == 0 else (math.inf if j > i else math.nan)


def wild_slope(score, head, i, j):
    return 1.0 if (i + j) % 3 == 0 else math.nan


def test_what_functions_make_of_pairs_that_are_not_selected_reaches_nothing():
    mask = (np.arange(30)[:, None] + np.arange(40)) % 3 == 0
    problem = random_problem(mask, heads=1, head_dim=32, dtype=np.float16)
    problem = replace(problem, changes=(DenseFunction(lambda s, h, i, j: s, lambda s, h, i, j: 1.0),))
    check(problem, [scores.modify(wild, wild_slope)], poison=0.0)


def test_heads_that_stand_behind_one_another():
    """A group's queries as rows of one tile: each has its head's slope and table, and its own place."""
    mask = ragged(9, 40)
    problem, changes = problem_with(NAMES, mask, heads=6, kv_heads=2, head_dim=32, dtype=np.float16)

    def stack(request, q, out):
        found = pack_groups(request, q, out, blocks=1)
        assert found[0].n_q == 27 and found[0].heads == 2
        return found

    check(problem, changes, poison=0.0, gradients=False, stack=stack)
