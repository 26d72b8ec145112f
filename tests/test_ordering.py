"""Which order a plan computes in, what it says about it, and that results do not care."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import event, given
from hypothesis import strategies as st

import numba_sparse_attn as nsa
from numba_sparse_attn import orders, patterns
from numba_sparse_attn.formats import Csr, Tiles
from numba_sparse_attn.testing import budget_for, random_problem, run_call, strategies

seeds = st.integers(0, 2**32 - 1)
CALL = {"heads": 16, "head_dim": 128, "dtype": "float16", "device": "cuda"}


@pytest.fixture
def hopper(monkeypatch):
    """A machine whose GPU can run every engine; planning needs none."""
    calls = pytest.importorskip("numba_sparse_attn.cuda.calls")
    monkeypatch.setattr(calls, "why_unavailable", lambda name, device: None)


#: Two heads that are best off in different orders.
DILATED = patterns.dilated_window(1024, 30, 8).heads(1) + patterns.dilated_window(1024, 30, 16).heads(1)


# Results -------------------------------------------------------------------------------------------------


@given(strategies.problems(largest=140), st.data(), seeds)
def test_any_order_of_tokens_gives_the_same_result(problem, data, seed):
    rng = np.random.default_rng(seed)
    n_q, n_k = problem.mask.shape[-2:]
    queries, keys = rng.permutation(n_q), rng.permutation(n_k)
    if n_q == n_k and data.draw(st.booleans()):
        event("one order for queries and keys")
        keys = queries
    event(f"heads share keys: {problem.q.shape[-3] != problem.k.shape[-3]}")
    order = data.draw(st.sampled_from([(queries, keys), orders.Order(queries, keys)]))
    results = run_call(problem, nsa.as_pattern(problem.mask), engine="cpu", order=order)
    budget_for(problem).check(**results)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("batch", [(), (2,)])
def test_the_order_of_a_plan_gives_the_same_result(dtype, batch):
    pattern = patterns.dilated_window(700, 20, 12)
    problem = random_problem(
        pattern.toarray(), heads=4, kv_heads=2, head_dim=16, dtype=np.dtype(dtype), batch=batch
    )
    plan = nsa.plan(pattern, heads=4, kv_heads=2, head_dim=16, dtype=dtype)
    assert plan.orders == pattern.orders
    budget_for(problem).check(**run_call(problem, pattern))


def test_heads_may_stand_in_orders_of_their_own():
    stack = patterns.sliding_window(1024, 8).heads(1) + DILATED
    problem = random_problem(np.stack([head.toarray() for head in stack]), heads=3, head_dim=32)
    plan = nsa.plan(stack, heads=3, head_dim=32)
    assert [order.name.split(",")[0] for order in plan.orders] == [
        "natural",
        "residues mod 8",
        "residues mod 16",
    ]
    assert [type(choice.structure) for choice in plan._choices] == [Tiles, Tiles, Tiles]
    budget_for(problem).check(**run_call(problem, stack))


def test_results_are_the_same_bits_for_every_number_of_threads(monkeypatch):
    pattern = patterns.dilated_window(600, 9, 5)
    q, k, v = np.random.default_rng(0).standard_normal((3, 4, 600, 16), np.float32)
    found = []
    for threads in (1, 2):
        monkeypatch.setenv("NSA_NUM_THREADS", str(threads))
        found.append(nsa.sparse_attention(q, k, v, pattern, order=pattern.orders[0]).tobytes())
    assert found[0] == found[1]


def test_lists_of_pairs_are_followed_in_any_order():
    """The row path, with an order of the caller's own."""
    pattern = patterns.random_keys(1200, per_query=16, seed=0)
    order = orders.Order(np.random.default_rng(0).permutation(1200))
    plan = nsa.plan(pattern, heads=1, head_dim=64, order=order)
    assert isinstance(plan._choices[0].structure, Csr) and plan.orders == (order,)
    problem = random_problem(pattern.toarray(), heads=1, head_dim=64)
    budget_for(problem).check(**run_call(problem, pattern, order=order))


# Choices -------------------------------------------------------------------------------------------------


def test_what_is_asked_for_is_done():
    pattern, order = patterns.dilated_window(4096, 64, 16), orders.residues(4096, 16)
    sizes = {"heads": 4, "head_dim": 64}
    for wish, expected in (("natural", ()), (None, ()), (order, (order,)), ("auto", pattern.orders)):
        plan = nsa.plan(pattern, **sizes, order=wish)
        assert plan.orders == expected and nsa.plan(pattern, **sizes, order=wish) is plan
    asked = nsa.plan(pattern, **sizes, order=(order.queries, order.keys))
    assert asked is nsa.plan(pattern, **sizes, order=order)
    assert pickle.loads(pickle.dumps(asked)).orders == (order,)
    for wrong in ("residues", 3, [1, 0]):
        with pytest.raises(nsa.ArgumentError, match="'auto', 'natural', None"):
            nsa.plan(pattern, **sizes, order=wrong)
    assert nsa.plan(patterns.dilated_window(64, 4, 2), **sizes, engine="reference").orders == ()


def test_a_plan_says_which_order_and_what_it_costs():
    pattern = patterns.dilated_window(4096, 64, 16)
    text = nsa.plan(pattern, heads=4, head_dim=64).explain()
    assert "tiles in the caller's order: 472; in order\n  tiles of 128 x 128: 64 (0 full" in text
    (line,) = [line for line in text.splitlines() if line.startswith("order ")]
    assert line.startswith("order boxes of 128 on 4096, every 16, of keys 64 earlier: predicted ")
    assert "of which moving 16.8 MB of q, k, v and out takes" in line and "; natural " in line
    for other, words in (
        (patterns.causal(256), "the pattern declares no other"),
        (patterns.neighborhood((64, 64), 13), "ms; boxes of 8 x 16 on 64 x 64"),
        (
            patterns.causal(512).with_orders(orders.residues(512, 9)),
            "tiles of none of the declared orders cost less",
        ),
    ):
        lines = nsa.plan(other, heads=4, head_dim=64).explain().splitlines()
        (line,) = [line for line in lines if line.startswith("order natural: ")]
        assert words in line
    assert "order natural: asked for" in nsa.plan(pattern, heads=1, head_dim=8, order=None).explain()


def test_key_heads_that_are_shared_stand_in_one_order():
    """A key head is read by heads in two orders: nothing is moved, unless the orders agree on the keys."""
    plan = nsa.plan(DILATED, heads=2, kv_heads=1, head_dim=64)
    assert plan.orders == () and "share a key head" in plan.explain()
    paired = nsa.HeadPatterns(DILATED.members, [0, 0, 1, 1])
    assert len(nsa.plan(paired, heads=4, kv_heads=2, head_dim=64).orders) == 2
    alike = nsa.HeadPatterns((*DILATED.members, patterns.dilated_window(1024, 29, 8)), [0, 2, 1, 1])
    assert len(nsa.plan(alike, heads=4, kv_heads=2, head_dim=64).orders) == 3
    order = orders.residues(1024, 8)
    assert nsa.plan(DILATED, heads=2, kv_heads=1, head_dim=64, order=order).orders == (order, order)


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: patterns.strided(16_384, 128, 128), "boxes of 8 x 16 on 128 x 128"),
        (
            lambda: patterns.neighborhood((128, 128), 13, dilation=4),
            "boxes of 4 x 32 on 128 x 128, every 4 x 4",
        ),
    ],
)
def test_a_gpu_computes_in_order_where_tiles_pay_for_moving(hopper, make, name):
    pattern = make()
    plan = nsa.plan(pattern, **CALL)
    assert plan.engine == "cuda-tile" and plan.orders == pattern.orders[:1]
    assert f"\norder {name}" in plan.explain() and "MB of q, k, v and out takes" in plan.explain()
    assert nsa.plan(pattern, **CALL, engine="cuda-warp").orders == ()
    assert nsa.plan(pattern, **CALL, engine="cuda-warp", order=pattern.orders[0]).orders != ()
    (request,) = [plan._make_request(plan_dimensions(plan))]
    assert request.orders == plan.orders and request.inner.orders == ()
    assert request.inner is request.inner and request.inner.structures == request.structures


@pytest.mark.parametrize(
    ("make", "period"),
    [
        (lambda: patterns.dilated_window(16_384, 64, 16), 16),
        (lambda: patterns.dilated_window(16_384, 64, 16).causal(), 16),
        (lambda: patterns.axial((128, 128), 0), 128),
    ],
)
def test_a_gpu_reads_classes_where_they_lie(hopper, make, period):
    pattern = make()
    plan = nsa.plan(pattern, **CALL)
    assert plan.engine == "cuda-tile" and plan.orders == () and plan.fold == period
    assert f"\norder residues mod {period}, where they lie: predicted " in plan.explain()
    assert (
        f"; in each of {period} classes\n" in plan.explain()
        and f" {pattern.nnz} pairs a head" in plan.explain()
    )
    (choice,) = plan._choices
    assert period * choice.structure.nnz == pattern.nnz
    request = plan._make_request(plan_dimensions(plan))
    inner = request.inner
    assert request.fold == period and request.nnz == inner.nnz == plan.heads * pattern.nnz
    assert (inner.fold, inner.batch, inner.n_q, inner.n_k) == (1, period, 16_384 // period, 16_384 // period)
    moved = nsa.plan(pattern, **CALL, order=pattern.orders[0])
    assert moved.fold == 1 and moved.orders == pattern.orders
    assert nsa.plan(pattern, heads=4, head_dim=64).fold == 1  # a CPU's first cache has few places for them


def test_one_class_for_all_heads_or_none(hopper):
    both = patterns.dilated_window(4096, 64, 16).heads(8) + patterns.dilated_window(4096, 64, 24).heads(8)
    assert nsa.plan(both, **CALL).fold in (1, 8) and both.members[1].period == 8
    mixed = patterns.dilated_window(4096, 64, 16).heads(8) + patterns.sliding_window(4096, 64).heads(8)
    assert nsa.plan(mixed, **CALL).fold == 1


def plan_dimensions(plan):
    from numba_sparse_attn.arrays import Dimensions

    sizes = plan.heads, plan.kv_heads, *plan.pattern.shape, plan.head_dim, plan.value_dim, plan.dtype
    return Dimensions((), *sizes, False)


def test_a_gpu_leaves_tokens_where_moving_costs_more(hopper):
    pattern = patterns.neighborhood((128, 128), 3)
    plan = nsa.plan(pattern, **CALL, engine="cuda-tile")
    assert plan.orders == () and "order natural: predicted " in plan.explain()
    assert "in_orders" not in pattern.__dict__  # what cannot pay is not looked at
    plan = nsa.plan(patterns.neighborhood((128, 128), 7), **CALL, engine="cuda-tile")
    assert plan.orders == () and "ms; boxes of 8 x 16 on 128 x 128" in plan.explain()
