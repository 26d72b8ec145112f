"""Patterns from functions: the same pairs as from anywhere else, and refusals that name the reason."""

from __future__ import annotations

import numba
import numpy as np
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

import numba_sparse_attn as nsa
from numba_sparse_attn import HeadPatterns, Pattern, patterns
from numba_sparse_attn.testing import budget_for, random_problem, run_call


def near(head, i, j):
    return abs(i - j) <= 5


#: Functions of every kind, beside patterns that select the same pairs.
SAME = {
    "a window": (near, lambda: patterns.sliding_window(300, 5)),
    "more keys than queries": (lambda head, i, j: j <= i + 77, lambda: patterns.causal(200, n_keys=277)),
    "more queries than keys": (lambda head, i, j: True, lambda: patterns.full(256, n_keys=140)),
    "nothing": (lambda head, i, j: False, lambda: ~patterns.full(130)),
    "numbers for yes and no": (
        lambda head, i, j: (j + 1) % 2,
        lambda: patterns.full(9) & (np.mgrid[:9, :9][1] % 2 == 0),
    ),
    "no queries": (near, lambda: patterns.full(0, n_keys=3)),
}


@pytest.mark.parametrize("name", SAME)
def test_selects_what_it_says(name):
    function, same = SAME[name]
    expected = same()
    pattern = Pattern.from_predicate(function, expected.shape)
    assert pattern.nnz == expected.nnz
    assert pattern.equals(expected)
    assert pattern.T.equals(expected.T)
    np.testing.assert_array_equal(pattern.toarray(), expected.toarray())


@settings(max_examples=max(1, settings().max_examples // 5))  # each compiles a function
@given(st.integers(0, 400), st.integers(0, 400), st.sampled_from([0.0, 0.02, 0.5, 1.0]), st.integers(0, 9))
def test_any_mask_comes_back(n_q, n_k, share, seed):
    mask = np.random.default_rng(seed).random((n_q, n_k)) < share
    pattern = Pattern.from_predicate(lambda head, i, j: mask[i, j], mask.shape)
    event(f"tiles: {-(-n_q // 128) * -(-n_k // 128)}")
    np.testing.assert_array_equal(pattern.toarray(), mask)
    np.testing.assert_array_equal((pattern & patterns.full(n_q, n_keys=n_k)).T.toarray(), mask.T)


def test_masks_follow_the_kind_of_pattern_and_not_its_length():
    causal = Pattern.from_predicate(lambda head, i, j: j <= i, (8192, 8192))
    assert causal.regular
    assert len(causal.tiles().pool) == 2
    scattered = Pattern.from_predicate(lambda head, i, j: (i * 7919 + j * j) % 61 == 0, (4096, 4096))
    assert not scattered.regular


def test_heads_differ_if_the_function_looks_at_them():
    reach = Pattern.from_predicate(lambda head, i, j: abs(i - j) <= head, (40, 40), heads=3)
    assert isinstance(reach, HeadPatterns) and len(reach.members) == 3
    for head, member in enumerate(reach):
        assert member.equals(patterns.sliding_window(40, head))
    alike = Pattern.from_predicate(near, (40, 40), heads=3)
    assert len(alike) == 3 and len(alike.members) == 1


def test_a_function_that_is_compiled_already():
    compiled = numba.njit(near)
    assert Pattern.from_predicate(compiled, (20, 20)).equals(patterns.sliding_window(20, 5))


@pytest.mark.parametrize("engine", ["auto", "reference"])
def test_attention_over_one(engine):
    document = np.repeat(np.arange(5), [40, 1, 70, 0, 59])
    pattern = Pattern.from_predicate(
        lambda head, i, j: document[i] == document[j] and j <= i + head, (170, 170), heads=2
    )
    masks = np.stack([member.toarray() for member in pattern])
    problem = random_problem(masks, heads=2, head_dim=16)
    budget_for(problem).check(**run_call(problem, pattern, engine=engine))


def test_every_machine_of_threads_draws_the_same(monkeypatch):
    function = lambda head, i, j: (i * i + j) % 97 < 13  # noqa: E731
    one, several = [], []
    for count, found in (("1", one), ("3", several)):
        monkeypatch.setenv("NSA_NUM_THREADS", count)
        found.append(Pattern.from_predicate(function, (130, 9000)).rows().indices)
    np.testing.assert_array_equal(one[0], several[0])


def unheard_of(head, i, j):
    return nsa.patterns.causal(i).nnz


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (unheard_of, "'unheard_of', which Numba does not compile: .*patterns"),
        (lambda head, i: True, "takes 2 arguments"),
        (lambda head, i, j: "yes".encode("ascii", i), "does not compile"),
        (None, "mask_mod=None; supported: a Python function"),
    ],
)
def test_refusals(function, said):
    with pytest.raises(nsa.PatternError, match=said) as caught:
        Pattern.from_predicate(function, (4, 4))
    assert "what to do:" in str(caught.value)


@pytest.mark.parametrize("shape", [4, (4,), (4, -1), (4.0, 4), "44"])
def test_shapes_that_are_none(shape):
    with pytest.raises(nsa.ArgumentError, match="two whole numbers"):
        Pattern.from_predicate(near, shape)


def test_no_heads():
    with pytest.raises(nsa.PatternError, match="at least one head"):
        Pattern.from_predicate(near, (4, 4), heads=0)
