"""Other normalisers on the warp engine in Numba's simulator; ``test_simulator.py`` runs this, or by hand:

NUMBA_ENABLE_CUDASIM=1 python -m pytest tests/cuda/normaliser_simulator_cases.py
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import event, given
from hypothesis import strategies as st
from numba import cuda

from numba_sparse_attn import normalisers, reference
from numba_sparse_attn.cuda.device.simulated import guarded
from numba_sparse_attn.cuda.plus_one import PLUS_ONE_WARPS, make_plus_one
from numba_sparse_attn.cuda.warp import normalised
from numba_sparse_attn.reference_engine import rule_of
from numba_sparse_attn.testing import DTYPES, budget_for, random_problem, run_engine

from ..normaliser_cases import NORMALISERS, learned
from .launching import SimulatedEngine, run, small_problems, structures_of
from .simulator_cases import RUNS, address_of, few_examples, one_core

#: Those with kernels of their own.
BY_ROWS = {name: one for name, one in NORMALISERS.items() if one.needs_rows}
every_dtype = pytest.mark.parametrize("dtype", DTYPES)
every_normaliser = pytest.mark.parametrize("name", BY_ROWS)

__all__ = ["one_core"]  # a fixture that every test here takes


def check(problem, structures, normaliser, **settings):
    results = run(problem, structures, normaliser=normaliser, **settings)
    budget_for(problem, normaliser=normaliser).check(**results)
    return results


@few_examples
@given(small_problems(), st.sampled_from(list(BY_ROWS)), st.booleans(), st.sampled_from([np.nan, np.inf]))
def test_small_problems(problem, name, wide, poison):
    event(name)
    check(problem, structures_of(problem, wide), BY_ROWS[name], poison=poison)


@every_dtype
@pytest.mark.parametrize("group", [1, 2])
def test_alpha_of_every_head_is_learned(group, dtype):
    mask = np.arange(9) < np.array([[0], [9], [3], [7], [1]])
    problem = random_problem(
        mask, heads=2 * group, kv_heads=2, head_dim=8, value_dim=5, dtype=DTYPES[dtype], batch=(2,), scale=1.0
    )
    results = check(problem, structures_of(problem), learned(2 * group), part_keys=2)
    assert results["dalpha"].shape == (2 * group,)


@every_dtype
@pytest.mark.parametrize(("head_dim", "value_dim"), [(16, 16), (5, 3), (8, 264), (136, 8)])
def test_every_layout_of_lanes(dtype, head_dim, value_dim):
    """Rows that are read in chunks and by elements, of fewer chunks than lanes and of more."""
    mask = np.array([[True, False, True], [False, False, False], [False, True, False]])
    problem = random_problem(mask, head_dim=head_dim, value_dim=value_dim, dtype=DTYPES[dtype])
    check(problem, structures_of(problem), BY_ROWS["entmax15"])


@every_normaliser
def test_blocks_that_stay_take_all_rows(name, monkeypatch):
    """Fewer blocks than there are rows to take, and one block where scores are many."""
    lengths = np.array([40, 0, 1, 33, 0, 2, 12, 7, 0])
    problem = random_problem(np.arange(40) < lengths[:, None], heads=2, kv_heads=1, head_dim=8)
    settings = {"normaliser": BY_ROWS[name], "gradients": False}
    expected = run(problem, structures_of(problem), **settings)
    budget_for(problem, **settings).check(**expected)
    for limit in ("_MOST_BLOCKS", "_MOST_BYTES"):
        with monkeypatch.context() as patch:
            patch.setattr(normalised, limit, 2)
            results = run(problem, structures_of(problem), **settings)
        for key, array in expected.items():
            assert results[key].tobytes() == array.tobytes()


@pytest.mark.parametrize("name", ["sigmoid", "sparsemax"])
@pytest.mark.parametrize(("n_q", "n_k"), [(0, 3), (3, 0), (0, 0)])
def test_nothing_at_all(n_q, n_k, name):
    problem = random_problem(np.ones((n_q, n_k), bool), heads=2, kv_heads=1, head_dim=8)
    check(problem, structures_of(problem), BY_ROWS[name])


def test_no_batch_elements_have_no_gradient_of_alpha():
    problem = random_problem(np.ones((3, 3), bool), heads=2, head_dim=8, batch=(0,))
    assert run(problem, structures_of(problem), normaliser=learned(2))["dalpha"].tolist() == [0.0, 0.0]


@every_normaliser
def test_the_same_bits_every_time(name):
    mask = np.arange(12) < np.array([[0], [12], [3], [7], [1]])
    problem = random_problem(mask, heads=2, kv_heads=1, head_dim=8, dtype=DTYPES["bfloat16"])

    class Engine(SimulatedEngine):
        """With one normaliser, whatever the request says of it."""

        def _run(self, function, request, changes, **arrays):
            object.__setattr__(request, "normaliser", BY_ROWS[name])
            return super()._run(function, request, changes, **arrays)

    results = run_engine(Engine(part_keys=5), problem, structures_of(problem))
    budget_for(problem, normaliser=BY_ROWS[name]).check(**results)


@pytest.mark.parametrize("part_keys", [2, 100])
@pytest.mark.parametrize("name", ["sigmoid", "entmax"])
def test_patterns_that_differ_inside_of_a_group(name, part_keys):
    mask = np.array([[[True, False]], [[True, True]], [[False, False]], [[False, True]]])
    mask = np.concatenate([mask, ~mask, mask | True], axis=1)
    problem = random_problem(mask, heads=4, kv_heads=2, head_dim=8)
    normaliser = learned(4) if name == "entmax" else BY_ROWS[name]
    check(problem, structures_of(problem), normaliser, part_keys=part_keys)


def test_runs_that_keys_have_in_common_are_staged():
    problem = random_problem(RUNS.T, heads=2, kv_heads=1, head_dim=8, value_dim=24, dtype=DTYPES["float16"])
    engine = SimulatedEngine(23)
    check(problem, structures_of(problem), BY_ROWS["entmax15"], engine=engine)
    assert "shared make_normalised_key_backward" in engine.launched and "make_add" in engine.launched


@pytest.mark.parametrize("name", ["sigmoid", "entmax", "sparsemax"])
def test_values_that_are_not_finite_go_where_a_weight_carries_them(name):
    problem = random_problem(np.ones((5, 9), bool), head_dim=8, scale=1.0)
    problem.k[0, 5] = -np.inf
    problem.q[...] = np.abs(problem.q)
    problem.v[0, 4] = np.inf
    problem.q[0, 3, 1] = np.nan
    out = run(problem, structures_of(problem), gradients=False, normaliser=BY_ROWS[name])["out"]
    with np.errstate(all="ignore"):
        rule = rule_of(BY_ROWS[name], 1)
        expected, _ = reference.forward(*problem.arrays[:3], problem.mask, 1.0, rule=rule)
    assert np.isnan(expected).any() and not np.isnan(expected).all()
    np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-5)


@every_dtype
def test_softmax_becomes_softmax_plus_one(dtype):
    kind = DTYPES[dtype]
    real = np.float64 if dtype == "float64" else np.float32
    lse = np.array([[0.0, 1.5, -np.inf], [-90.0, 90.0, np.nan]], real)
    out = np.random.default_rng(0).standard_normal((2, 3, 40)).astype(kind)[..., ::-1]
    out[0, 2] = 0
    whole, exact = out.copy(), out.astype(np.float64)
    memory = out.base
    arguments = (
        *(np.int64(address_of(array)) for array in (out, lse)),
        *(np.int64(number) for number in (6, 3, 40, *out.strides)),
    )
    with np.errstate(invalid="ignore"):
        expected_lse = np.where(np.isneginf(lse), lse, np.logaddexp(lse.astype(float), 0.0))
        shares = np.where(np.isneginf(lse), 0.0, np.exp(lse.astype(float) - expected_lse))
    with guarded([], [memory, lse]):
        cuda.jit(make_plus_one(dtype))[1, 32 * PLUS_ONE_WARPS](*arguments)
    eps = max(np.finfo(real).eps, 2.0**-8 if dtype == "bfloat16" else float(np.finfo(kind).eps))
    np.testing.assert_allclose(lse, expected_lse, rtol=2 * np.finfo(real).eps, atol=np.finfo(real).tiny)
    np.testing.assert_allclose(out.astype(float), exact * shares[..., None], rtol=2 * eps, atol=1e-7)
    assert whole.shape == out.shape


def test_the_engine_takes_them_and_the_tile_engine_says_why_not():
    from numba_sparse_attn.cuda import tile, warp
    from numba_sparse_attn.testing import request_for

    problem = random_problem(np.ones((3, 3), bool), head_dim=8, dtype=np.float16)
    request = request_for(problem, structures_of(problem), normalisers.sparsemax())
    assert warp.why_not(request) == []
    assert any("normaliser sparsemax" in reason for reason in tile.why_not(request))
    request = request_for(problem, structures_of(problem), normalisers.softmax_plus_one())
    assert not any("normaliser" in reason for reason in tile.why_not(request))
