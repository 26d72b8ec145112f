"""Selections of whole blocks: budgets, bounds, what they cost to hold."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import event, given
from hypothesis import strategies as st

import numba_sparse_attn as nsa
from numba_sparse_attn import dynamic
from numba_sparse_attn.dynamic._tools import extremes_of_blocks
from numba_sparse_attn.dynamic.catalogue import SELECTIONS, Case

BY_QUERY = {"moba": dynamic.moba, "quest": dynamic.quest}
by_query = pytest.mark.parametrize("select", BY_QUERY.values(), ids=BY_QUERY)


@given(st.data())
def test_blocks_of_any_sizes_are_what_the_definition_says(data):
    """Whole numbers and blocks of powers of two: means are exact, and many scores are tied."""
    name = data.draw(st.sampled_from(["block_top_k", "moba", "quest"]))
    n_q, n_k = data.draw(st.integers(0, 40)), data.draw(st.integers(0, 40))
    block, budget = data.draw(st.sampled_from([1, 2, 4, 8])), data.draw(st.integers(1, 6))
    causal = data.draw(st.booleans())
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    # Whole blocks only: the mean of a shorter last one need not be exact.
    n_k -= n_k % block
    q, k = (rng.integers(-2, 3, (1, n, 3)).astype(np.float32) for n in (n_q, n_k))
    arguments = {"budget": budget, ("page" if name == "quest" else "block"): block, "causal": causal}
    if name == "block_top_k":
        arguments["query_block"] = data.draw(st.sampled_from([1, 2, 4]))
        q = q[:, : n_q - n_q % arguments["query_block"]]
    entry = SELECTIONS[name]
    (made,) = entry.select(q, k, **arguments)
    np.testing.assert_array_equal(made.toarray(), entry.dense(q, k, **arguments)[0])
    event(f"{name}, {'causal' if causal else 'all'}")
    if n_q > n_k and causal:
        event("queries without keys")


@by_query
@pytest.mark.parametrize("causal", [False, True])
def test_no_query_sees_more_than_its_budget(select, causal):
    q, k = Case(50, 70).arrays()
    for budget in (1, 3, 100):
        for pattern in select(q, k, budget, 8, causal=causal):
            mask = pattern.toarray()
            touched = np.add.reduceat(mask, np.arange(0, 70, 8), axis=1) > 0
            assert touched.sum(axis=1).max() <= budget
            if causal:
                own = (np.arange(50) + 20) // 8
                assert touched[np.arange(50), own].all()


def test_a_page_promises_at_least_what_its_keys_have():
    q, k = np.random.default_rng(0).standard_normal((2, 60, 8))
    signed = np.concatenate([np.maximum(q, 0.0), np.minimum(q, 0.0)], axis=1)
    promised = signed @ extremes_of_blocks(k, 7).T
    best = np.maximum.reduceat(q @ k.T, np.arange(0, 60, 7), axis=1)
    assert (promised >= best - 1e-12).all()
    # A page of one key promises its score: the choice is the exact one.
    assert dynamic.quest(q, k, 5, 1).equals(dynamic.top_k(q, k, 5))
    assert dynamic.moba(q, k, 5, 1).equals(dynamic.top_k(q, k, 5))
    assert dynamic.block_top_k(q, k, 5, 1).equals(dynamic.top_k(q, k, 5))


@by_query
def test_blocks_with_nan_are_chosen_last(select):
    q, k = np.random.default_rng(0).standard_normal((2, 40, 8))
    k[13] = np.nan
    mask = select(q, k, 4, 8).toarray()
    assert not mask[:, 8:16].any() and (mask.sum(axis=1) == 32).all()


def test_blocks_of_queries_may_stand_in_several_blocks_of_keys():
    """Four blocks of keys beside every block of queries: all of them are in, whatever the budget."""
    q, k = np.random.default_rng(0).standard_normal((2, 64, 8))
    made = dynamic.block_top_k(q, k, 1, 4, query_block=16, causal=True)
    assert made.equals(nsa.patterns.block_local(64, 16).causal())


def test_a_long_choice_is_held_as_blocks():
    n = 65_536
    q, k = np.random.default_rng(0).standard_normal((2, n, 16)).astype(np.float32)
    by_block = dynamic.block_top_k(q, k, 16, 128, causal=True)
    by_query = dynamic.moba(q, k, 4, 512, causal=True)
    for pattern, most in ((by_block, 1e6), (by_query, 2.5e6)):
        assert len(pickle.dumps(pattern)) < most  # the pairs are 33 to 130 million, 4 bytes each
    assert by_block.nnz <= n * 16 * 128
    rows = [0, 1, 511, 512, 30_000, n - 1]
    assert all((row, row) in by_block for row in rows[:2])
    assert by_query._source._rows(511, 513)[0].tolist() == [0, 512, 1025]


@pytest.mark.parametrize(
    ("select", "arguments", "words"),
    [
        (dynamic.moba, {"budget": 0, "block": 4}, "budget=0; supported: a whole number of at least 1"),
        (dynamic.moba, {"budget": 1, "block": 0}, "block=0"),
        (dynamic.quest, {"budget": 1, "page": 2.0}, "page=2.0 of type float"),
        (dynamic.block_top_k, {"budget": 1, "block": 4, "query_block": 0}, "query_block=0"),
    ],
)
def test_refusals(select, arguments, words):
    q = np.zeros((8, 4))
    with pytest.raises(nsa.PatternError, match=words):
        select(q, q, **arguments)
