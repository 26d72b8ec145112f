"""Laws of selections: what is chosen never looks ahead, grows with its budget, and knows of no other head."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import event, given
from hypothesis import strategies as st

from numba_sparse_attn import dynamic
from numba_sparse_attn.dynamic._seeded import normals
from numba_sparse_attn.dynamic.catalogue import SELECTIONS, Case

from .test_learned import moved

PREDICTORS = {rows: moved(5, 4, heads=1, width=8, query_block=rows) for rows in (1, 8)}
SIZES = {"block": 4, "length": 4, "stride": 2}
LAYERS = ((normals(1, (8, 5)), normals(2, (5,))),)
WEIGHT = 0.3 * normals(3, (16,))

#: Those that choose for a query by itself and the keys before it alone.
PAST_ONLY = {
    "top_k": lambda q, k, **a: dynamic.top_k(q, k, 5, **a),
    "threshold": lambda q, k, **a: dynamic.threshold(q, k, 0.1, **a),
    "adaptive": lambda q, k, **a: dynamic.adaptive(q, k, WEIGHT, -1.0, 0.5, **a),
    "moba": lambda q, k, **a: dynamic.moba(q, k, 3, 4, **a),
    "quest": lambda q, k, **a: dynamic.quest(q, k, 3, 4, **a),
    "block_top_k": lambda q, k, **a: dynamic.block_top_k(q, k, 3, 4, query_block=1, **a),
    "nsa_blocks": lambda q, k, **a: dynamic.nsa_blocks(q, k, 4, **SIZES, **a),
    "lsh": lambda q, k, **a: dynamic.lsh(q, k, 3, 4, rounds=2, **a),
    "learned_blocks": lambda q, k, **a: dynamic.learned_blocks(q, k, PREDICTORS[1], 3, **a),
}
BUDGETED = {
    "top_k": lambda q, k, n, **a: dynamic.top_k(q, k, n, **a),
    "block_top_k": lambda q, k, n, **a: dynamic.block_top_k(q, k, n, 4, query_block=8, **a),
    "moba": lambda q, k, n, **a: dynamic.moba(q, k, n, 4, **a),
    "quest": lambda q, k, n, **a: dynamic.quest(q, k, n, 4, **a),
    "nsa_blocks": lambda q, k, n, **a: dynamic.nsa_blocks(q, k, n, **SIZES, **a),
    "learned_blocks": lambda q, k, n, **a: dynamic.learned_blocks(q, k, PREDICTORS[8], n, **a),
    "vertical_slash": lambda q, k, n, **a: dynamic.vertical_slash(q, k, n, n, last=9, **a),
    "kmeans_routing": lambda q, k, n, **a: dynamic.kmeans_routing(q, k, normals(4, (5, 8)), n, **a),
    "mlp_routing": lambda q, k, n, **a: dynamic.mlp_routing(q, k, LAYERS, n, **a),
    "landmarks_by_importance": lambda q, k, n, **a: dynamic.landmarks_by_importance(q, k, n, 1, **a),
    "landmarks_by_structure": lambda q, k, n, **a: dynamic.landmarks_by_structure(
        q, k, n, np.abs(k[0, :, 0]), 1, **a
    ),
}
#: Those that look at directions, or at the order of scores.
FREE_OF_SCALE = {
    **{name: BUDGETED[name] for name in ("top_k", "block_top_k", "moba", "quest", "kmeans_routing")},
    "lsh": lambda q, k, n, **a: dynamic.lsh(q, k, n, 4, **a),
}


def masks(made):
    return np.stack([pattern.toarray() for pattern in made])


def arrays(seed, n_q, n_k, heads=2, kv_heads=1):
    return Case(n_q, n_k, heads=heads, kv_heads=kv_heads, head_dim=8, seed=seed).arrays()


def test_every_selection_is_under_some_law():
    others = {"landmarks_by_clustering"}  # more clusters are other clusters
    assert set(PAST_ONLY) | set(BUDGETED) | others == set(SELECTIONS)


@pytest.mark.parametrize("select", PAST_ONLY.values(), ids=PAST_ONLY)
@given(length=st.integers(1, 50), cut=st.integers(0, 50), seed=st.integers(0, 99))
def test_what_comes_later_changes_no_choice(select, length, cut, seed):
    """The first tokens of a sequence choose as if they were all of it."""
    cut = min(cut, length)
    q, k = arrays(seed, length, length)
    whole = masks(select(q, k, causal=True))
    start = masks(select(q[:, :cut], k[:, :cut], causal=True))
    np.testing.assert_array_equal(whole[:, :cut, :cut], start)
    event("nothing left out" if cut == length else "a part left out")


@pytest.mark.parametrize("select", BUDGETED.values(), ids=BUDGETED)
@given(
    sizes=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    budgets=st.tuples(st.integers(1, 12), st.integers(0, 12)),
    causal=st.booleans(),
    seed=st.integers(0, 99),
)
def test_a_larger_budget_keeps_what_a_smaller_one_chose(select, sizes, budgets, causal, seed):
    q, k = arrays(seed, *sizes)
    small, large = (masks(select(q, k, n, causal=causal)) for n in (budgets[0], sum(budgets)))
    assert (small <= large).all()
    event("more pairs" if large.sum() > small.sum() else "as many pairs")


@pytest.mark.parametrize("select", FREE_OF_SCALE.values(), ids=FREE_OF_SCALE)
@given(factor=st.sampled_from([2.0**-20, 0.5, 8.0, 2.0**30]), seed=st.integers(0, 99))
def test_the_size_of_queries_does_not_matter(select, factor, seed):
    """Powers of two round nothing."""
    q, k = arrays(seed, 30, 37)
    np.testing.assert_array_equal(
        masks(select(q * factor, k, 4, causal=True)), masks(select(q, k, 4, causal=True))
    )


@pytest.mark.parametrize("select", BUDGETED.values(), ids=BUDGETED)
@given(budgets=st.lists(st.integers(1, 9), min_size=2, max_size=2), seed=st.integers(0, 99))
def test_budgets_of_heads_are_their_own(select, budgets, seed):
    """Each of two heads with a budget each chooses as it does where both have its budget."""
    q, k = arrays(seed, 26, 33, kv_heads=2)
    mixed = masks(select(q, k, budgets, causal=True))
    for head, budget in enumerate(budgets):
        np.testing.assert_array_equal(mixed[head], masks(select(q, k, budget, causal=True))[head])


@given(seed=st.integers(0, 99), order=st.permutations(range(20)))
def test_exact_choices_follow_their_keys(seed, order):
    """Keys in another order are chosen in another order: no ties, so no order is preferred."""
    q, k = arrays(seed, 15, 20)
    for select in (BUDGETED["top_k"], lambda q, k, n: dynamic.threshold(q, k, 1 / n)):
        np.testing.assert_array_equal(masks(select(q, k[:, order], 6)), masks(select(q, k, 6))[:, :, order])
