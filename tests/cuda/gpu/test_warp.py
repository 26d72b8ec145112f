"""The warp engine against the oracle on a GPU: patterns, types, dimensions, groups, strides, long rows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import numba_sparse_attn as nsa
from numba_sparse_attn import patterns
from numba_sparse_attn.cuda.warp import lists
from numba_sparse_attn.cuda.warp.schedule import share_runs
from numba_sparse_attn.cuda.warp.shape import SHARING_WARPS
from numba_sparse_attn.patterns.catalogue import CATALOGUE
from numba_sparse_attn.testing import DTYPES, budget_for, random_problem, run_call

from ...hard_cases import mask_of, ragged

pytestmark = pytest.mark.gpu

HEAD_DIMS = (1, 16, 40, 64, 80, 128, 192, 256, 512)

every_dtype = pytest.mark.parametrize("dtype", DTYPES)


@every_dtype
@pytest.mark.parametrize("name", CATALOGUE)
def test_every_pattern(name, dtype):
    entry = CATALOGUE[name]
    pattern = entry.build(**entry.examples[0])
    head_dim = HEAD_DIMS[(list(CATALOGUE).index(name) + list(DTYPES).index(dtype)) % len(HEAD_DIMS)]
    problem = random_problem(
        mask_of(pattern),
        heads=entry.heads or 4,
        kv_heads=entry.heads or 2,
        head_dim=head_dim,
        dtype=DTYPES[dtype],
    )
    budget_for(problem).check(**run_call(problem, pattern, engine="cuda-warp"))


@every_dtype
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_head_dimensions_and_groups(head_dim, dtype):
    mask = ragged(70, 90)
    value_dim = {40: 24, 192: 128}.get(head_dim, head_dim)
    problem = random_problem(
        mask, heads=6, kv_heads=2, head_dim=head_dim, value_dim=value_dim, dtype=DTYPES[dtype]
    )
    budget_for(problem).check(**run_call(problem, mask, engine="cuda-warp"))


@every_dtype
def test_long_rows_are_shared_and_folded(dtype, monkeypatch):
    monkeypatch.setattr(lists, "PART_KEYS", 16)
    for mask in (ragged(40, 200), patterns.sliding_window(300, 60).toarray()):
        problem = random_problem(mask, heads=4, kv_heads=2, head_dim=64, dtype=DTYPES[dtype])
        budget_for(problem).check(**run_call(problem, mask, engine="cuda-warp"))


def test_a_row_with_a_million_keys_and_one_with_none():
    n_k = 1_000_000
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((1, n, 16)).astype(np.float32) for n in (3, n_k, n_k))
    pattern = nsa.as_pattern(np.stack([np.ones(n_k, bool), np.zeros(n_k, bool), np.arange(n_k) % 7 == 0]))
    out, lse = nsa.sparse_attention(q, k, v, pattern, engine="cuda-warp", return_lse=True)
    exact, exact_lse = nsa.sparse_attention(
        q.astype("f8"), k.astype("f8"), v.astype("f8"), pattern, engine="cpu", return_lse=True
    )
    assert np.abs(out - exact).max() < 1e-5 and np.all(out[0, 1] == 0)  # sums of 10**6 float32 terms
    assert np.allclose(lse[0, ::2], exact_lse[0, ::2], rtol=1e-5) and lse[0, 1] == -np.inf


def test_patterns_that_differ_between_batch_elements_and_heads():
    masks = np.stack([[ragged(30, 40, seed=2 * b + h) for h in range(2)] for b in range(3)])
    problem = random_problem(masks, batch=(3,), heads=2, head_dim=32)
    budget_for(problem).check(**run_call(problem, masks, engine="cuda-warp"))


@every_dtype
def test_patterns_that_differ_inside_of_a_group(dtype):
    masks = np.stack([ragged(50, 60, seed=h) for h in range(3)])[[0, 1, 2, 0, 1, 1]]
    problem = random_problem(masks, heads=6, kv_heads=2, head_dim=40, dtype=DTYPES[dtype])
    budget_for(problem).check(**run_call(problem, masks, engine="cuda-warp"))


#: Runs that rows have in common, from a window, a block, and far keys beside them.
RUNS = {
    "window": patterns.sliding_window(300, 20),
    "window and global tokens": patterns.longformer(300, window=40, tokens=[0, 150]),
    "blocks": patterns.random_blocks(300, block=50, per_row=2, seed=0),
    "documents": patterns.documents(lengths=[100, 30, 150, 20]),
    "causal": patterns.causal(300),
}


@every_dtype
@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("head_dim", [16, 40, 64, 128])
def test_runs_are_staged(name, head_dim, dtype):
    pattern = RUNS[name]
    assert share_runs(pattern.rows(), SHARING_WARPS) is not None
    problem = random_problem(
        mask_of(pattern), heads=4, kv_heads=2, head_dim=head_dim, dtype=DTYPES[dtype], batch=(2,)
    )
    budget_for(problem).check(**run_call(problem, pattern, engine="cuda-warp"))


def test_results_have_the_same_bits_every_time():
    pattern = patterns.random_keys(2000, 40, seed=1) | patterns.global_tokens(2000, [5])
    rng = np.random.default_rng(0)
    q, k, v, dout = rng.standard_normal((4, 2, 2000, 64)).astype(np.float16)
    plan = nsa.plan(pattern, heads=2, head_dim=64, dtype="float16", device="cuda")
    out, lse = plan(q, k, v, return_lse=True)
    first = [out, lse, *plan.backward(dout, q, k, v, out, lse)]
    for _ in range(100):
        again_out, again_lse = plan(q, k, v, return_lse=True)
        again = [again_out, again_lse, *plan.backward(dout, q, k, v, again_out, again_lse)]
        assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))


def test_strides():
    mask = ragged(50, 60)
    problem = random_problem(mask, heads=4, kv_heads=2, head_dim=24)
    turned = replace(
        problem,
        q=np.ascontiguousarray(problem.q.swapaxes(-3, -2)).swapaxes(-3, -2),
        k=np.ascontiguousarray(problem.k.swapaxes(-1, -2)).swapaxes(-1, -2),
        v=np.ascontiguousarray(problem.v[..., ::-1])[..., ::-1],
    )
    budget_for(problem).check(**run_call(turned, mask, engine="cuda-warp"))
    import torch

    q, k, v = (
        torch.from_numpy(np.ascontiguousarray(array)).cuda() for array in (problem.q, problem.k, problem.v)
    )
    straight = nsa.sparse_attention(q, k, v, mask, scale=problem.scale)
    k_turned = k.transpose(-1, -2).contiguous().transpose(-1, -2)
    q_turned = q.transpose(-3, -2).contiguous().transpose(-3, -2)
    v_wide = torch.cat([v, v], dim=-1)[..., : v.shape[-1]]
    for arrays in ((q_turned, k, v), (q, k_turned, v), (q, k, v_wide)):
        result = nsa.sparse_attention(*arrays, mask, scale=problem.scale)
        assert torch.allclose(result, straight, rtol=1e-5, atol=1e-6) and result.is_cuda


def test_arrays_of_other_libraries_come_back_as_their_kind():
    import torch

    rng = np.random.default_rng(0)
    q, k, v = rng.standard_normal((3, 2, 100, 64)).astype(np.float32)
    pattern = patterns.sliding_window(100, 9)
    expected = nsa.sparse_attention(q, k, v, pattern, engine="cpu")
    q_, k_, v_ = (torch.from_numpy(array).cuda() for array in (q, k, v))
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        out, lse = nsa.sparse_attention(q_, k_, v_, pattern, return_lse=True)
        dq, _, _ = nsa.sparse_attention_backward(out, q_, k_, v_, out, lse, pattern)
    stream.synchronize()
    assert isinstance(out, torch.Tensor) and isinstance(dq, torch.Tensor)
    np.testing.assert_allclose(out.cpu().numpy(), expected, rtol=1e-4, atol=1e-5)
    plan = nsa.plan(pattern, heads=2, head_dim=64, device="cuda")
    target = torch.empty_like(q_)
    assert plan(q_, k_, v_, out=target) is target and torch.equal(target, out)


def test_a_captured_call_is_replayed():
    import torch

    pattern = patterns.sliding_window(256, 16)
    plan = nsa.plan(pattern, heads=2, head_dim=64, dtype="float16", device="cuda")
    q, k, v = torch.randn(3, 2, 256, 64, device="cuda", dtype=torch.float16)
    out = torch.empty_like(q)
    plan(q, k, v, out=out)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        plan(q, k, v, out=out)
    for seed in range(3):
        torch.manual_seed(seed)
        q.normal_()
        graph.replay()
        torch.cuda.synchronize()
        replayed = out.clone()
        assert torch.equal(replayed, plan(q, k, v))
