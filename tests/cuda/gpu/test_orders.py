"""Calls in another order of tokens on a GPU: both engines, all libraries, graphs, whatever the strides."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import numba_sparse_attn as nsa
from numba_sparse_attn import choices, orders, patterns
from numba_sparse_attn.testing import DTYPES, budget_for, random_problem

from .libraries import each_library, fetch, knows, modules, needs, put

pytestmark = pytest.mark.gpu


def run(library: str, problem: Any, pattern: Any, **settings: Any) -> tuple[dict[str, Any], nsa.Plan]:
    q, k, v, dout = (put(library, array) for array in problem.arrays)
    heads, kv_heads = problem.q.shape[-3], problem.k.shape[-3]
    plan = nsa.plan(
        pattern,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=problem.q.shape[-1],
        value_dim=problem.v.shape[-1],
        dtype=problem.dtype,
        device="cuda",
        **settings,
    )
    out, lse = plan(q, k, v, return_lse=True)
    names = ("out", "lse", "dq", "dk", "dv")
    results = (out, lse, *plan.backward(dout, q, k, v, out, lse))
    return {name: fetch(library, one) for name, one in zip(names, results, strict=True)}, plan


def mixed(shape: tuple[int, int], seed: int = 0) -> orders.Order:
    rng = np.random.default_rng(seed)
    return orders.Order(rng.permutation(shape[0]), rng.permutation(shape[1]))


PATTERNS = {
    "dilated window": lambda: patterns.dilated_window(1024, 30, 8),
    "dilated window, causal": lambda: patterns.dilated_window(1000, 30, 8).causal(),
    "strided": lambda: patterns.strided(1024, 32, 32),
    "neighborhood": lambda: patterns.neighborhood((32, 32), 7),
    "columns": lambda: patterns.axial((32, 32), 0),
}


@needs("torch")
@pytest.mark.parametrize("engine", ["cuda-tile", "cuda-warp"])
@pytest.mark.parametrize("name", PATTERNS)
def test_declared_orders(name: str, engine: str) -> None:
    pattern = PATTERNS[name]()
    problem = random_problem(pattern.toarray(), heads=4, kv_heads=2, head_dim=64, dtype=np.float16)
    results, plan = run("torch", problem, pattern, engine=engine, order=pattern.orders[0])
    assert plan.orders == pattern.orders[:1]
    budget_for(problem).check(**results)


@needs("torch")
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("batch", [(), (3,), (2, 2)])
@pytest.mark.parametrize("head_dim", [64, 128, 40, 20])
def test_classes_where_they_lie(
    monkeypatch: pytest.MonkeyPatch, dtype: str, batch: tuple[int, ...], head_dim: int
) -> None:
    for name in ("_TILE_START", "_MOVING_START"):  # so little work is not worth a launch
        monkeypatch.setattr(choices, name, 0.0)
    pattern = patterns.dilated_window(1200, 30, 8)
    problem = random_problem(
        pattern.toarray(), heads=4, kv_heads=2, head_dim=head_dim, dtype=DTYPES[dtype], batch=batch
    )
    results, plan = run("torch", problem, pattern, engine="cuda-tile")
    assert plan.fold == 8 and plan.orders == (), plan.explain()
    budget_for(problem).check(**results)


@needs("torch")
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("head_dim", [64, 40, 20, 3])
@pytest.mark.parametrize("batch", [(), (2, 2)])
def test_rows_of_every_size(dtype: str, head_dim: int, batch: tuple[int, ...]) -> None:
    mask = np.random.default_rng(0).random((130, 201)) < 0.3
    mask[5] = False
    problem = random_problem(
        mask, heads=4, kv_heads=2, head_dim=head_dim, dtype=DTYPES[dtype], batch=batch, value_dim=head_dim + 4
    )
    results, _ = run("torch", problem, nsa.as_pattern(mask), order=mixed(mask.shape))
    budget_for(problem).check(**results)


@needs("torch")
def test_arrays_that_lie_otherwise() -> None:
    """Heads behind rows, and batch axes that no single stride reaches."""
    mask = np.random.default_rng(0).random((96, 96)) < 0.3
    problem = random_problem(mask, heads=4, head_dim=32, dtype=np.float16, batch=(2, 3))
    order = mixed(mask.shape)
    expected, _ = run("torch", problem, nsa.as_pattern(mask), order=order)
    torch = modules("torch")
    arrays = [put("torch", array) for array in problem.arrays]
    turned = [array.permute(1, 3, 0, 2, 4).contiguous().permute(2, 0, 3, 1, 4) for array in arrays]
    assert all(torch.equal(one, other) for one, other in zip(arrays, turned, strict=True))
    plan = nsa.plan(nsa.as_pattern(mask), heads=4, head_dim=32, dtype="float16", device="cuda", order=order)
    out, lse = plan(*turned[:3], return_lse=True)
    gradients = plan.backward(turned[3], *turned[:3], out, lse)
    for name, found in zip(("out", "lse", "dq", "dk", "dv"), (out, lse, *gradients), strict=True):
        assert fetch("torch", found).tobytes() == expected[name].tobytes(), name


@each_library
def test_every_library(library: str) -> None:
    pattern = PATTERNS["strided"]()
    problem = random_problem(pattern.toarray(), heads=2, head_dim=64, dtype=np.float16)
    if not knows(library, problem.dtype):
        return
    results, _ = run(
        library, problem, pattern, order=pattern.orders[0] if pattern.orders else mixed((1024,) * 2)
    )
    budget_for(problem).check(**results)


@needs("torch")
def test_every_head_in_an_order_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_TILE_START", "_MOVING_START"):  # so little work is not worth a launch
        monkeypatch.setattr(choices, name, 0.0)
    q = np.random.default_rng(0).standard_normal((4, 2048, 64), np.float32)
    pattern = nsa.dynamic.lsh(q, q, 32, 64, causal=True)
    problem = random_problem(
        np.stack([head.toarray() for head in pattern]), heads=4, head_dim=64, dtype=np.float16
    )
    results, plan = run("torch", problem, pattern, engine="cuda-tile")
    assert len(plan.orders) == 4, plan.explain()
    budget_for(problem).check(**results)


@needs("torch")
@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_what_no_query_selects_reaches_no_result(poison: float) -> None:
    mask = np.random.default_rng(0).random((150, 150)) < 0.2
    mask[:, [3, 70, 149]] = False
    problem = random_problem(mask, heads=2, head_dim=64, dtype=np.float16)
    dirty = [array.copy() for array in problem.arrays]
    for array in dirty[1:3]:
        array[..., [3, 70, 149], :] = poison
    results, _ = run("torch", problem.with_arrays(*dirty), nsa.as_pattern(mask), order=mixed(mask.shape))
    budget_for(problem).check(**results)


@needs("torch")
def test_a_captured_call_is_replayed_on_other_inputs() -> None:
    torch = modules("torch")
    pattern = PATTERNS["dilated window"]()
    problem = random_problem(pattern.toarray(), heads=2, head_dim=64, dtype=np.float16)
    q, k, v, dout = (put("torch", array) for array in problem.arrays)
    plan = nsa.plan(
        pattern,
        heads=2,
        head_dim=64,
        dtype="float16",
        device="cuda",
        engine="cuda-tile",
        order=mixed((1024,) * 2),
    )
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        out, lse = plan(q, k, v, return_lse=True)
        gradients = plan.backward(dout, q, k, v, out, lse)
    other = random_problem(pattern.toarray(), heads=2, head_dim=64, dtype=np.float16, seed=1)
    for tensor, array in zip((q, k, v, dout), other.arrays, strict=True):
        tensor.copy_(put("torch", array))
    graph.replay()
    torch.cuda.synchronize()
    names = ("out", "lse", "dq", "dk", "dv")
    results = {name: fetch("torch", one) for name, one in zip(names, (out, lse, *gradients), strict=True)}
    budget_for(other).check(**results)


def test_arrays_on_the_host() -> None:
    pattern = PATTERNS["dilated window"]()
    problem = random_problem(pattern.toarray(), heads=2, head_dim=64, dtype=np.float16)
    out, lse = nsa.sparse_attention(
        *problem.arrays[:3], pattern, engine="cuda-tile", order=mixed((1024,) * 2), return_lse=True
    )
    budget_for(problem, gradients=False).check(out=out, lse=lse)
