"""Tile rows that are cut into parts, against the oracle on a GPU: one head, few queries, rows of all keys."""

from __future__ import annotations

import numpy as np
import pytest

import numba_sparse_attn as nsa
from numba_sparse_attn import as_pattern, patterns
from numba_sparse_attn.cuda.tile import dealing
from numba_sparse_attn.testing import DTYPES, budget_for, random_problem

from ...hard_cases import ragged
from .tile_calls import run, run_gradients

pytestmark = pytest.mark.gpu

MULTIPROCESSORS = 132


def is_cut(lengths):
    """Whether a launch on rows of so many tiles cuts one."""
    work = np.stack([np.arange(len(lengths)), lengths, *[0 * lengths] * 3], axis=1)
    return len(dealing.cut(work, 8, MULTIPROCESSORS)[1]) > 0


def structures_of(problem):
    masks = problem.mask if problem.mask.ndim == 3 else problem.mask[None]
    return [as_pattern(mask).tiles() for mask in masks]


def check(problem, **settings):
    """Against the oracle, after making sure that there is a cut row."""
    structures = structures_of(problem)
    assert is_cut(np.concatenate([np.diff(tiles.indptr) for tiles in structures]))
    budget_for(problem, gradients=False).check(**run(problem, structures, **settings))


def check_gradients(problem, **settings):
    """As :func:`check`, for columns, too."""
    structures = structures_of(problem)
    assert is_cut(np.concatenate([np.diff(tiles.indptr) for tiles in structures]))
    assert is_cut(np.concatenate([np.diff(tiles.transposed_indptr) for tiles in structures]))
    budget_for(problem).check(**run_gradients(problem, structures, **settings))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize(("head_dim", "value_dim"), [(64, 64), (128, 128), (80, 112), (192, 128), (256, 256)])
def test_head_dimensions(head_dim, value_dim, dtype):
    mask = ragged(200, 1750)
    check(random_problem(mask, heads=2, head_dim=head_dim, value_dim=value_dim, dtype=DTYPES[dtype]))


@pytest.mark.parametrize("n_q", [1, 17, 128, 129])
@pytest.mark.parametrize("group", [1, 4])
def test_few_queries(n_q, group):
    mask = np.ones((n_q, 2500), bool)
    check(random_problem(mask, heads=4, kv_heads=4 // group, head_dim=128, dtype=np.float16, batch=(2,)))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize(("head_dim", "value_dim"), [(64, 64), (128, 128), (80, 112), (192, 128), (256, 256)])
def test_gradients(head_dim, value_dim, dtype):
    mask = ragged(1750, 1800)
    check_gradients(random_problem(mask, head_dim=head_dim, value_dim=value_dim, dtype=DTYPES[dtype]))


def test_gradients_of_a_group():
    mask = ragged(1750, 1750)
    problem = random_problem(mask, heads=4, kv_heads=1, head_dim=64, dtype=np.float16)
    check_gradients(problem, repeats=300)


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_what_no_query_selects_reaches_no_gradient(poison):
    mask = ragged(1750, 1900)
    mask[:, [3, 800, 1890]] = False
    mask[[5, 700]] = False
    check_gradients(random_problem(mask, heads=2, kv_heads=1, head_dim=64, dtype=np.float16), poison=poison)


@pytest.mark.parametrize("poison", [np.nan, np.inf])
@pytest.mark.parametrize("head_dim", [64, 256])
def test_what_no_query_selects_reaches_no_result(poison, head_dim):
    mask = ragged(150, 1900)
    mask[:, [3, 800, 1890]] = False
    mask[100:110, 256:] = False
    check(random_problem(mask, heads=2, kv_heads=1, head_dim=head_dim, dtype=np.float16), poison=poison)


@pytest.mark.parametrize("scale", [-0.2, 3.0, 600.0])
def test_scales(scale):
    """Up to scores whose product with the factor is rounded by more than 16 bits show."""
    check(random_problem(ragged(130, 1700), heads=1, head_dim=64, dtype=np.float16, scale=scale))


def test_patterns_of_their_own_some_cut_and_some_not():
    few = np.zeros((256, 2048), bool)
    few[:, :100] = True
    masks = np.stack([np.ones((256, 2048), bool), few])
    check(random_problem(masks, heads=2, kv_heads=1, head_dim=64, dtype=np.float16, batch=(3,)))


def test_a_thousand_repeats_have_the_same_bits():
    check(random_problem(ragged(300, 1700), heads=2, head_dim=64, dtype=np.float16), repeats=1000)


def test_a_captured_graph_has_memory_of_its_own():
    import torch

    pattern = patterns.longformer(4096, window=64, tokens=[0, 9])
    q, k, v = (torch.randn(1, 4096, 64, device="cuda", dtype=torch.float16) for _ in range(3))
    plan = nsa.plan(pattern, heads=1, head_dim=64, dtype="float16", engine="cuda-tile", device="cuda")
    expected = plan(q, k, v)
    out = torch.empty_like(q)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        plan(q, k, v, out=out)
    for _ in range(3):
        out.fill_(float("nan"))
        graph.replay()
        junk = torch.full((1 << 20,), float("nan"), device="cuda")
        torch.cuda.synchronize()
        assert torch.equal(out, expected)
        del junk


def test_more_elements_than_32_bits_count():
    """Addresses beyond 2**31 elements, in every array; a few rows against float64.

    The first column of v rises along the keys: a part of a long row that is left out moves its mean. The rule
    is that of ``testing/budget.py``: twice a low-precision computation's error, and the format's rounding.
    """
    import torch

    heads, n, d = 17, 1 << 20, 128
    assert heads * n * d > 1 << 31
    generator = torch.Generator(device="cuda").manual_seed(0)
    q, k, v = (
        torch.randn(heads, n, d, device="cuda", dtype=torch.float16, generator=generator) for _ in range(3)
    )
    v[:, :, 0] = torch.linspace(0.0, 1.0, n, device="cuda")
    pattern = patterns.longformer(n, window=100, tokens=[0, 5])
    out, lse = nsa.sparse_attention(q, k, v, pattern, engine="cuda-tile", return_lse=True)
    for head in (0, heads - 1):
        for row in (0, 5, n // 2 + 3, n - 1):  # two of all keys, and two of a window and two more
            keys = torch.arange(n, device="cuda")
            if row > 5:
                keys = keys[((keys - row).abs() <= 100) | (keys == 0) | (keys == 5)]
            some_k, some_v = k[head, keys].double(), v[head, keys].double()
            scores = some_k @ q[head, row].double() / d**0.5
            expected = torch.softmax(scores, 0) @ some_v
            weights = torch.exp(scores - scores.max()).float()
            low = (weights.half().float() @ some_v.float() / weights.sum()).half().double()
            error, low_error = (
                float(torch.linalg.vector_norm(found.double() - expected)) for found in (out[head, row], low)
            )
            assert error <= 2 * low_error + 2**-11 * float(torch.linalg.vector_norm(expected)), row
            # Products and weights are summed in float32: a lane has a quarter of a row's, one after another.
            largest = float((some_k.abs() @ q[head, row].double().abs()).max()) / d**0.5
            total = float(torch.logsumexp(scores, 0))
            allowed = 2**-24 * (d * largest + len(keys) / 4 + 4 * abs(total) + 4)
            assert abs(total - float(lse[head, row])) <= allowed, row
