"""Other normalisers on a GPU against the oracle: types, dimensions, groups, long rows, libraries."""

from __future__ import annotations

import numpy as np
import pytest

import numba_sparse_attn as nsa
from numba_sparse_attn import normalisers, patterns
from numba_sparse_attn.cuda.warp import lists, normalised
from numba_sparse_attn.testing import DTYPES, budget_for, random_problem, run_call

from ...hard_cases import mask_of, ragged
from ...normaliser_cases import NORMALISERS, learned
from .libraries import each_of, fetch, put

pytestmark = pytest.mark.gpu

every_dtype = pytest.mark.parametrize("dtype", DTYPES)
every_normaliser = pytest.mark.parametrize("name", NORMALISERS)


def check(problem, pattern, normaliser, engine="cuda-warp"):
    results = run_call(problem, pattern, engine=engine, normaliser=normaliser)
    budget_for(problem, normaliser=normaliser).check(**results)
    return results


@every_dtype
@every_normaliser
@pytest.mark.parametrize("head_dim", [16, 40, 64, 128])
def test_head_dimensions_and_groups(head_dim, name, dtype):
    mask = ragged(70, 90)
    value_dim = 24 if head_dim == 40 else head_dim
    problem = random_problem(
        mask, heads=6, kv_heads=2, head_dim=head_dim, value_dim=value_dim, dtype=DTYPES[dtype], batch=(2,)
    )
    check(problem, mask, NORMALISERS[name])


@every_dtype
@pytest.mark.parametrize("head_dim", [1, 80, 256, 512])
def test_wide_and_narrow_rows(head_dim, dtype):
    mask = ragged(40, 60)
    problem = random_problem(mask, heads=2, kv_heads=1, head_dim=head_dim, dtype=DTYPES[dtype])
    check(problem, mask, normalisers.entmax15())


@every_dtype
def test_alpha_of_every_head_is_learned(dtype):
    mask = ragged(80, 100)
    problem = random_problem(mask, heads=6, kv_heads=2, head_dim=64, dtype=DTYPES[dtype], batch=(3,))
    check(problem, mask, learned(6))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("head_dim", [64, 96, 128])
def test_softmax_plus_one_on_tiles(head_dim, dtype):
    pattern = patterns.longformer(300, window=40, tokens=[0, 150])
    problem = random_problem(
        mask_of(pattern), heads=4, kv_heads=2, head_dim=head_dim, dtype=DTYPES[dtype], batch=(2,)
    )
    check(problem, pattern, normalisers.softmax_plus_one(), engine="cuda-tile")


@pytest.mark.parametrize("name", ["sigmoid", "sparsemax", "entmax"])
def test_patterns_that_differ_between_batch_elements_and_heads(name):
    masks = np.stack([[ragged(30, 40, seed=2 * b + h) for h in range(4)] for b in range(3)])
    problem = random_problem(masks, batch=(3,), heads=4, kv_heads=2, head_dim=32)
    check(problem, masks, NORMALISERS[name])


@every_dtype
@pytest.mark.parametrize("name", ["sigmoid", "entmax15"])
def test_long_rows_and_blocks_that_stay(name, dtype, monkeypatch):
    """Keys with long lists are cut into parts, rows are not; a few blocks take all of them."""
    monkeypatch.setattr(lists, "PART_KEYS", 16)
    monkeypatch.setattr(normalised, "_MOST_BLOCKS", 3)
    for mask in (ragged(40, 200), patterns.sliding_window(300, 60).toarray()):
        problem = random_problem(mask, heads=4, kv_heads=2, head_dim=64, dtype=DTYPES[dtype])
        check(problem, mask, NORMALISERS[name])


def test_a_row_with_a_million_keys_and_one_with_none():
    n_k = 1_000_000
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((1, n, 16)).astype(np.float32) for n in (3, n_k, n_k))
    pattern = nsa.as_pattern(np.stack([np.ones(n_k, bool), np.zeros(n_k, bool), np.arange(n_k) % 7 == 0]))
    for normaliser in (normalisers.sparsemax(), normalisers.entmax(1.3)):
        settings = {"normaliser": normaliser, "return_lse": True}
        out, lse = nsa.sparse_attention(q, k, v, pattern, engine="cuda-warp", **settings)
        exact = nsa.sparse_attention(
            *(array.astype("f8") for array in (q, k, v)), pattern, engine="cpu", **settings
        )
        assert np.abs(out - exact[0]).max() < 1e-5 and np.all(out[0, 1] == 0)
        assert np.allclose(lse[0, ::2], exact[1][0, ::2], rtol=1e-5) and lse[0, 1] == -np.inf


def test_results_have_the_same_bits_every_time():
    pattern = patterns.random_keys(2000, 40, seed=1) | patterns.global_tokens(2000, [5])
    rng = np.random.default_rng(0)
    q, k, v, dout = rng.standard_normal((4, 2, 2000, 64)).astype(np.float16)
    normaliser = normalisers.entmax([1.3, 1.7])
    plan = nsa.plan(pattern, heads=2, head_dim=64, dtype="float16", device="cuda", normaliser=normaliser)
    out, lse = plan(q, k, v, return_lse=True)
    first = [out, lse, *plan.backward(dout, q, k, v, out, lse)]
    for _ in range(50):
        again_out, again_lse = plan(q, k, v, return_lse=True)
        again = [again_out, again_lse, *plan.backward(dout, q, k, v, again_out, again_lse)]
        assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))


@each_of("torch", "cupy", "jax", "numba")
@pytest.mark.parametrize("name", ["softmax_plus_one", "entmax15"])
def test_arrays_of_other_libraries(name, library):
    problem = random_problem(patterns.causal(60).toarray(), heads=2, head_dim=32)
    normaliser = NORMALISERS[name]
    q, k, v, dout = (put(library, array) for array in problem.arrays)
    pattern = patterns.causal(60)
    plan = nsa.plan(pattern, heads=2, head_dim=32, device="cuda", normaliser=normaliser)
    assert f"normaliser {normaliser.name}" in plan.explain()
    out, pullback = nsa.vjp(q, k, v, pattern, normaliser=normaliser)
    results = dict(zip(("out", "dq", "dk", "dv"), (out, *pullback(dout)), strict=True))
    budget_for(problem, normaliser=normaliser).check(
        **{key: fetch(library, array) for key, array in results.items()}
    )


def test_a_captured_call_is_replayed():
    import torch

    pattern = patterns.sliding_window(256, 16)
    for normaliser in (normalisers.softmax_plus_one(), normalisers.sparsemax()):
        plan = nsa.plan(pattern, heads=2, head_dim=64, dtype="float16", device="cuda", normaliser=normaliser)
        q, k, v = torch.randn(3, 2, 256, 64, device="cuda", dtype=torch.float16)
        out = torch.empty_like(q)
        plan(q, k, v, out=out)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            plan(q, k, v, out=out)
        q.normal_()
        graph.replay()
        torch.cuda.synchronize()
        replayed = out.clone()
        assert torch.equal(replayed, plan(q, k, v))


def test_the_tile_engine_says_why_not():
    q = np.zeros((2, 128, 64), np.float16)
    with pytest.raises(nsa.EngineError, match="normaliser sparsemax"):
        nsa.sparse_attention(
            q, q, q, patterns.causal(128), engine="cuda-tile", normaliser=normalisers.sparsemax()
        )
