"""Gradients of the tile engine on mma.sync in Numba's simulator; see ``tile_simulator_cases.py``. By hand:

NUMBA_ENABLE_CUDASIM=1 python -m pytest tests/cuda/tile_gradient_cases.py
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from numba_sparse_attn import as_pattern
from numba_sparse_attn.testing import DTYPES, budget_for, random_problem

from .simulator_cases import one_core  # noqa: F401
from .tile_launching import run
from .tile_simulator_cases import ragged


def tiles_of(mask):
    return [as_pattern(one).tiles() for one in (mask if mask.ndim == 3 else mask[None])]


def check(problem, **settings):
    results = run(problem, tiles_of(problem.mask), gradients=True, **settings)
    budget_for(problem).check(**results)


@pytest.mark.parametrize(
    ("head_dim", "value_dim", "dtype"),
    [
        (32, 32, "float16"),
        (64, 40, "bfloat16"),
        (128, 128, "float16"),
        (152, 192, "bfloat16"),
        (224, 32, "float16"),
    ],
)
def test_head_dimensions(head_dim, value_dim, dtype):
    """Both shapes of a warp, whole and half tiles, own rows in registers and not, dk beside dv and apart.

    Nothing is poisoned, so what the products give is what is compared.
    """
    problem = random_problem(
        ragged(70, 70), heads=1, head_dim=head_dim, value_dim=value_dim, dtype=DTYPES[dtype]
    )
    check(problem, poison=0.0)


def test_heads_of_a_group_with_patterns_of_their_own():
    """Their gradients are summed; one of them has nothing to add."""
    mask = np.stack([ragged(20, 130), np.zeros((20, 130), bool), ragged(20, 130, seed=1)])
    problem = random_problem(mask, heads=3, kv_heads=1, head_dim=32, dtype=np.float16)
    check(problem, poison=0.0)


def test_batch_elements_that_no_single_stride_reaches():
    """They are launched one by one; rows of odd length are copied before and after."""
    problem = random_problem(
        ragged(9, 20), heads=1, head_dim=21, value_dim=24, dtype=np.float16, batch=(2, 2)
    )
    arrays = [np.ascontiguousarray(array.swapaxes(0, 1)).swapaxes(0, 1) for array in problem.arrays]
    check(problem.with_arrays(*arrays), poison=0.0)


def test_full_tiles():
    """Alone, where the kernels have no masks, and beside partial ones."""
    full = random_problem(np.ones((128, 256), bool), heads=1, head_dim=64, dtype=np.float16)
    check(full)
    band = np.ones((128, 256), bool)
    band[1:, :40] = False
    check(replace(full, mask=band))


def test_scale_of_zero():
    check(random_problem(ragged(20, 40), heads=1, head_dim=32, dtype=np.float16, scale=0.0), poison=0.0)


@pytest.mark.parametrize(("head_dim", "poison"), [(32, np.nan), (160, np.inf)])
def test_what_no_pair_needs_reaches_no_gradient(poison, head_dim):
    """Rows whose tile has others that spoil them are computed again, with the scale's sign."""
    mask = np.zeros((70, 130), bool)
    mask[[1, 2, 17, 66], [0, 129, 5, 70]] = mask[69, 3:9] = True
    check(random_problem(mask, heads=1, head_dim=head_dim, dtype=np.float16, scale=-0.2), poison=poison)


def test_nan_that_is_selected_spoils_what_selects_it_and_nothing_else():
    mask = np.random.default_rng(0).random((10, 20)) < 0.3
    problem = random_problem(mask, heads=1, head_dim=32, dtype=np.float16)
    k = problem.k.copy()
    k[0, 7] = np.nan
    clean = run(problem, tiles_of(mask), gradients=True)
    dirty = run(replace(problem, k=k), tiles_of(mask), gradients=True)
    queries = mask[:, 7]
    keys = mask[queries].any(axis=0)
    assert queries.any() and not queries.all() and not keys.all()
    for name, spoilt in (("dq", queries), ("dk", keys), ("dv", keys)):
        assert np.isnan(dirty[name][0, spoilt]).all()
        error = np.abs(dirty[name][0, ~spoilt].astype(float) - clean[name][0, ~spoilt].astype(float))
        assert error.max() < 4e-3  # of other arithmetic, in numbers about 1


@pytest.mark.parametrize(("n_q", "n_k"), [(0, 3), (3, 0), (3, 3)])
def test_nothing_to_see(n_q, n_k):
    """Zeros, and nothing else."""
    check(random_problem(np.zeros((n_q, n_k), bool), heads=2, kv_heads=1, head_dim=32, dtype=np.float16))
