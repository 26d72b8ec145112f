"""Changes of scores in the tile kernels on mma.sync, in Numba's simulator; ``test_simulator.py`` runs this file.

Both the online softmax and the gradients, with queries as rows and as columns of scores.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from numba_sparse_attn import as_pattern, scores
from numba_sparse_attn.reference_scores import DenseFunction
from numba_sparse_attn.testing import DTYPES, budget_for, random_problem

from ..scores.test_agreement import problem_with
from ..scores.twins import EVERY
from .simulator_cases import one_core  # noqa: F401
from .tile_launching import run
from .tile_simulator_cases import ragged

#: Changes that the tile engine takes.
NAMES = ("alibi", "softcap", "relative", "modify")


def check(problem, changes, **settings):
    for change in changes:
        change.learnable = False
    masks = problem.mask if problem.mask.ndim == 3 else problem.mask[None]
    tiles = [as_pattern(mask).tiles() for mask in masks]
    results = run(problem, tiles, gradients=True, scores=changes, **settings)
    budget_for(problem).check(**results)


def test_every_change_has_its_case():
    assert set(NAMES) | {"bias by head", "bias for all"} == set(EVERY)


@pytest.mark.parametrize(("name", "dtype"), zip(NAMES, ["float16", "bfloat16"] * 2, strict=True))
def test_every_change(name, dtype):
    problem, changes = problem_with(
        [name], ragged(20, 150), heads=2, kv_heads=1, head_dim=32, dtype=DTYPES[dtype]
    )
    check(problem, changes)


@pytest.mark.parametrize(("n_q", "n_k", "head_dim"), [(140, 40, 64), (20, 40, 128)])
def test_all_of_them_in_a_row(n_q, n_k, head_dim):
    """A second tile row, both shapes of a warp; half of the scores of the last tile are of no query or key."""
    problem, changes = problem_with(
        NAMES, ragged(n_q, n_k), heads=1, head_dim=head_dim, dtype=np.float16
    )
    check(problem, changes, poison=0.0)


def test_scales_and_batches():
    """A negative scale negates products, and what is computed exactly has its sign, too."""
    mask = np.zeros((19, 130), bool)
    mask[[1, 2, 17], [0, 129, 5]] = mask[18, 3:9] = True
    problem, changes = problem_with(
        ["relative", "modify"], mask, heads=2, kv_heads=1, head_dim=32, dtype=np.float16, batch=(2,)
    )
    check(replace(problem, scale=-0.2), changes, poison=np.inf)


def wild(score, head, i, j):
    """Infinite, or no number, for pairs that nobody selects."""
    return score if (i + j) % 3 == 0 else (1e30 * score) * 1e30 - 1e30 * (1e30 * score)


def wild_slope(score, head, i, j):
    return 1.0 if (i + j) % 3 == 0 else float("nan")


def test_what_functions_make_of_pairs_that_are_not_selected_reaches_nothing():
    mask = (np.arange(30)[:, None] + np.arange(140)) % 3 == 0
    problem = random_problem(mask, heads=1, head_dim=32, dtype=np.float16)
    problem = replace(problem, changes=(DenseFunction(lambda s, h, i, j: s, lambda s, h, i, j: 1.0),))
    check(problem, [scores.modify(wild, wild_slope)], poison=0.0)
