"""Receptive fields against powers of matrices, and when everything is connected."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st
from scipy import sparse

import numba_sparse_attn as nsa
from numba_sparse_attn import analysis, as_pattern, patterns
from numba_sparse_attn.testing import strategies


def fields(masks, depth, residual):
    """The field of every query after each layer, as dense masks: powers of SciPy's matrices."""
    n = len(masks[0])
    found = [sparse.eye_array(n, format="csr", dtype=np.int64)]
    for layer in range(depth):
        step = sparse.csr_array(masks[layer % len(masks)].astype(np.int64))
        if residual:
            step = step + sparse.eye_array(n, dtype=np.int64)
        product = sparse.csr_array(step @ found[-1])
        product.data[:] = product.data != 0
        product.eliminate_zeros()
        found.append(product)
    return [matrix.toarray().astype(bool) for matrix in found]


@st.composite
def layers(draw, largest=150):
    n = draw(strategies.lengths(largest, smallest=1))
    masks = []
    for _ in range(draw(st.integers(1, 3))):
        mask = draw(strategies.bool_masks(n, n))
        masks.append(np.tril(mask) if draw(st.booleans()) else mask)
    return masks


@given(layers(), st.integers(0, 5), st.booleans())
def test_fields_are_powers(masks, depth, residual):
    event("layers take turns" if len(masks) > 1 else "one kind of layer")
    n = len(masks[0])
    field = analysis.receptive_field(
        *map(as_pattern, masks), depth=depth, residual=residual, queries=range(0, n, 7)
    )
    exact = fields(masks, depth, residual)
    np.testing.assert_array_equal(field.by_query, [mask.sum(axis=1) for mask in exact])
    np.testing.assert_array_equal(field.by_key, [mask.sum(axis=0) for mask in exact])
    np.testing.assert_allclose(field.share, [mask.mean() for mask in exact])
    assert field.depth == depth
    reached = np.stack(exact)[:, ::7]
    first = np.where(reached.any(axis=0), reached.argmax(axis=0), -1)
    np.testing.assert_array_equal(field.first_layer, first)


@pytest.mark.parametrize("residual", [True, False])
def test_blocks_of_keys_join(residual):
    """More keys than a block has, and not a multiple of it."""
    rng = np.random.default_rng(0)
    masks = [sparse.random_array((1300, 1300), density=0.002, rng=rng).toarray() > 0 for _ in range(2)]
    field = analysis.receptive_field(*masks, depth=5, residual=residual)
    exact = fields(masks, 5, residual)
    np.testing.assert_array_equal(field.by_query, [mask.sum(axis=1) for mask in exact])
    np.testing.assert_array_equal(field.by_key, [mask.sum(axis=0) for mask in exact])


@given(layers(), st.data())
def test_connection(masks, data):
    n = len(masks[0])
    goal = data.draw(strategies.bool_masks(n, n) | st.none())
    found = analysis.layers_to_connect(*masks, goal=None if goal is None else as_pattern(goal))
    event("connected" if found.layers is not None else "never connected")
    causal = not any(np.triu(mask, 1).any() for mask in masks)
    wanted = goal if goal is not None else np.tri(n, dtype=bool) if causal else np.ones((n, n), bool)
    # Nothing grows after n rounds of all layers; a few more than are needed are enough here.
    depth = 1 + max(n, 1) * len(masks) if n < 20 else 8 * len(masks)
    exact = np.stack(fields(masks, depth, True))
    complete = (exact | ~wanted).all(axis=2)
    by_query = np.where(complete.any(axis=0), complete.argmax(axis=0), -1)
    by_key = (exact | ~wanted).all(axis=1)
    by_key = np.where(by_key.any(axis=0), by_key.argmax(axis=0), -1)
    settled = depth > n * len(masks) or np.array_equal(exact[-1], exact[-1 - len(masks)])
    for mine, theirs in ((found.by_query, by_query), (found.by_key, by_key)):
        known = slice(None) if settled else theirs >= 0
        np.testing.assert_array_equal(mine[known], theirs[known])
    if settled:
        assert found.layers == (None if (by_query < 0).any() else by_query.max())


@settings(max_examples=20)
@given(st.integers(1, 400), st.integers(0, 40), st.booleans())
def test_windows_take_one_layer_a_window(n, window, causal):
    pattern = patterns.sliding_window(n, window, causal=causal)
    layers = analysis.layers_to_connect(pattern).layers
    assert layers == (0 if n == 1 else -(-(n - 1) // window) if window else 0 if causal and n == 1 else None)


@pytest.mark.parametrize("n", [2, 65, 1000])
def test_all_pairs_take_one_layer(n):
    for pattern in (patterns.full(n), patterns.causal(n)):
        found = analysis.layers_to_connect(pattern)
        assert found.layers == 1 and found.by_query.max() == 1 and found.by_key.max() == 1
    assert (analysis.layers_to_connect(patterns.causal(n), goal=patterns.full(n)).layers is None) == (n > 1)


@given(layers(60))
def test_the_field_of_a_union_holds_both(masks):
    n = len(masks[0])
    queries = range(n)
    one, other, both = (
        analysis.receptive_field(pattern, depth=3, queries=queries).first_layer
        for pattern in (masks[0], masks[-1], masks[0] | masks[-1])
    )
    for part in (one, other):
        assert np.all((part < 0) | ((both >= 0) & (both <= part)))


def test_heads_are_united():
    heads = patterns.strided_heads(64, 8, 8)
    joined = analysis.receptive_field(heads, depth=2)
    union = analysis.receptive_field(heads[0] | heads[1], depth=2)
    np.testing.assert_array_equal(joined.by_query, union.by_query)


def test_layers_that_take_turns():
    """A layer with local attention and one that looks at every 8th token back."""
    local, far = patterns.block_local(64, 8), patterns.strided_heads(64, 8, 1)[1]
    assert analysis.layers_to_connect(local).layers is None
    assert analysis.layers_to_connect(far).layers is None
    assert analysis.layers_to_connect(local, far).layers == 2
    assert analysis.layers_to_connect(far, local).layers == 2


def test_tens_of_thousands_of_tokens():
    n = 20_000
    window = patterns.sliding_window(n, 500, causal=True)
    found = analysis.layers_to_connect(window)
    assert found.layers == 40
    np.testing.assert_array_equal(found.by_query, -(-np.arange(n) // 500))
    np.testing.assert_array_equal(found.by_key, found.by_query[::-1])
    field = analysis.receptive_field(window, depth=3, queries=[n - 1])
    np.testing.assert_array_equal(field.by_query[3], np.minimum(np.arange(n), 1500) + 1)
    assert field.first_layer[0, n - 1 - 501] == 2


def test_results_do_not_depend_on_threads(monkeypatch):
    pattern = patterns.bigbird(2048, 64, 1, 1, 2, 0).causal()
    found = []
    for threads in ("1", "3"):
        monkeypatch.setenv("NSA_NUM_THREADS", threads)
        field, connection = analysis.receptive_field(pattern, depth=3), analysis.layers_to_connect(pattern)
        found.append(
            (field.by_query, field.by_key, field.first_layer, connection.by_query, connection.by_key)
        )
    for one, other in zip(*found, strict=True):
        np.testing.assert_array_equal(one, other)


def test_nothing_to_connect():
    assert analysis.layers_to_connect(patterns.full(0)).layers == 0
    assert analysis.layers_to_connect(patterns.full(1)).layers == 0
    field = analysis.receptive_field(patterns.full(0), depth=2)
    assert field.by_query.shape == (3, 0) and not field.share.any()


def test_refusals():
    window = patterns.sliding_window(8, 1)
    with pytest.raises(nsa.PatternError, match="no layer"):
        analysis.layers_to_connect()
    with pytest.raises(nsa.ShapeError, match="square"):
        analysis.receptive_field(patterns.full(8, n_keys=9), depth=1)
    with pytest.raises(nsa.ShapeError, match="square"):
        analysis.layers_to_connect(window, patterns.full(9))
    with pytest.raises(nsa.ShapeError, match="goal"):
        analysis.layers_to_connect(window, goal=patterns.full(9))
    for depth in (-1, 1.5, None):
        with pytest.raises(nsa.ArgumentError, match="depth"):
            analysis.receptive_field(window, depth=depth)
    with pytest.raises(nsa.ArgumentError, match="queries below 8"):
        analysis.receptive_field(window, depth=1, queries=[8])
    with pytest.raises(nsa.ArgumentError, match="query"):
        analysis.receptive_field(window, depth=1, queries=[-1])
