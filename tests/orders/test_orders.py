"""Orders of tokens: permutations as defined, patterns by their places, and tiles that really get fuller."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import event, given
from hypothesis import strategies as st

import numba_sparse_attn as nsa
from numba_sparse_attn import orders, patterns
from numba_sparse_attn.formats.census import census_of_rows
from numba_sparse_attn.formats.pieces import make_pieces
from numba_sparse_attn.testing import strategies

seeds = st.integers(0, 2**32 - 1)


def is_permutation(places, n):
    assert places.dtype == np.int32 and not places.flags.writeable
    assert np.array_equal(np.sort(places), np.arange(n))


def some_order(shape, seed):
    rng = np.random.default_rng(seed)
    return orders.Order(rng.permutation(shape[0]), rng.permutation(shape[1]))


# What they are -------------------------------------------------------------------------------------------


@given(st.integers(0, 300), st.integers(1, 40))
def test_residues_ascend_class_by_class(n, step):
    order = orders.residues(n, step)
    assert order.queries.tolist() == sorted(range(n), key=lambda token: (token % step, token))
    assert order.keys is order.queries and order.shape == (n, n)


@given(st.data())
def test_boxes_are_listed_one_after_the_other(data):
    axes = data.draw(st.integers(1, 3))
    shape, box, shift, dilation = (
        tuple(data.draw(st.integers(*bounds)) for _ in range(axes))
        for bounds in ((0, 9), (1, 5), (0, 6), (1, 3))
    )
    cells = int(np.prod(shape))
    n = data.draw(st.sampled_from([None, cells // 2]))
    order = orders.boxes(shape, box, shift=shift, dilation=dilation, n=n)

    def key_of(token, ahead):
        place = [int(coordinate) for coordinate in np.unravel_index(token, shape)]
        members = [max(-(-length // step), 1) for length, step in zip(shape, dilation, strict=True)]
        inside = [
            (c // step + back) % count
            for c, step, back, count in zip(place, dilation, ahead, members, strict=True)
        ]
        return (
            [c % step for c, step in zip(place, dilation, strict=True)],
            [c // size for c, size in zip(inside, box, strict=True)],
            [c % size for c, size in zip(inside, box, strict=True)],
        )

    tokens = range(cells if n is None else n)
    assert order.queries.tolist() == sorted(tokens, key=lambda token: key_of(token, (0,) * axes))
    assert order.keys.tolist() == sorted(tokens, key=lambda token: key_of(token, shift))


@pytest.mark.parametrize("shape", [(8, 8), (16, 16), (4, 4, 4), (8, 8, 8)])
def test_hilberts_curve_goes_from_neighbor_to_neighbor(shape):
    order = orders.hilbert(shape)
    is_permutation(order.queries, np.prod(shape))
    place = np.stack(np.unravel_index(order.queries, shape))
    assert (np.abs(np.diff(place, axis=1)).sum(axis=0) == 1).all()


@pytest.mark.parametrize("shape", [(5, 12), (0, 3), (1, 1), (3, 7, 2)])
def test_hilberts_curve_takes_any_grid(shape):
    is_permutation(orders.hilbert(shape).queries, np.prod(shape))


@given(st.integers(0, 50), st.integers(0, 50), seeds)
def test_buckets_ascend(n_q, n_k, seed):
    rng = np.random.default_rng(seed)
    of_queries, of_keys = rng.integers(0, 5, n_q), rng.integers(0, 5, n_k)
    order = orders.buckets(of_queries, of_keys)
    assert order.queries.tolist() == sorted(range(n_q), key=lambda token: (of_queries[token], token))
    assert order.keys.tolist() == sorted(range(n_k), key=lambda token: (of_keys[token], token))
    assert order.T.queries is not None and order.T.queries.tolist() == order.keys.tolist()


@given(st.integers(0, 40), st.integers(0, 40), seeds)
def test_places_invert_an_order(n_q, n_k, seed):
    order = some_order((n_q, n_k), seed)
    for tokens, places in ((order.queries, order.query_places), (order.keys, order.key_places)):
        assert np.array_equal(tokens[places], np.arange(len(tokens)))
        assert np.array_equal(places[tokens], np.arange(len(tokens)))
        is_permutation(places, len(tokens))
    same = orders.Order(order.queries.copy(), order.keys.copy())
    assert same == order and hash(same) == hash(order) and order != "auto"
    assert pickle.loads(pickle.dumps(order)) == order


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: orders.Order([0, 0]), "no permutation"),
        (lambda: orders.Order([1, 2]), "no permutation"),
        (lambda: orders.Order([-1, 0]), "no permutation"),
        (lambda: orders.Order([0.0, 1.0]), "float64 of shape"),
        (lambda: orders.Order([[0, 1]]), "one axis of whole numbers"),
        (lambda: orders.Order([0, 1], [0, 2]), "keys of an order"),
        (lambda: orders.residues(4, 0), "step >= 1"),
        (lambda: orders.boxes((4, 4), (2,)), "one number an axis"),
        (lambda: orders.boxes((4,), (0,)), "at least 1"),
        (lambda: orders.hilbert((4,)), "2 or 3 axes"),
        (lambda: orders.as_order("rcm", (4, 4)), "'auto', 'natural'"),
        (lambda: orders.as_order([0, 1], (2, 2)), "pair of permutations"),
        (lambda: orders.as_order(([0, 1], [0, 1]), (2, 3)), "for a pattern of shape"),
        (lambda: orders.reverse_cuthill_mckee(patterns.full(3, n_keys=4)), "as many queries as keys"),
    ],
)
def test_what_is_no_order_is_refused(make, message):
    with pytest.raises(nsa.SparseAttentionError, match=message):
        make()


# Patterns by their places --------------------------------------------------------------------------------


@given(st.data(), seeds)
def test_a_permuted_pattern_has_exactly_these_pairs(data, seed):
    n_q, n_k = data.draw(strategies.lengths(300)), data.draw(strategies.lengths(300))
    mask = data.draw(strategies.bool_masks(n_q, n_k))
    pattern = nsa.as_pattern(mask)
    if data.draw(st.booleans()):
        event("regular")
        pattern = pattern & patterns.full(n_q, n_keys=n_k)
        band = patterns.sliding_window(n_k, 17).T if n_q == n_k else patterns.full(n_q, n_keys=n_k)
        pattern, mask = (band, band.toarray()) if band.regular else (pattern, mask)
    order = some_order((n_q, n_k), seed)
    permuted = pattern.permuted(order)
    wanted = mask[order.queries][:, order.keys]
    assert permuted.regular == pattern.regular and permuted.nnz == mask.sum()
    np.testing.assert_array_equal(permuted.toarray(), wanted)
    np.testing.assert_array_equal(permuted.T.toarray(), wanted.T)
    fresh = pattern.permuted((order.queries, order.keys))
    assert fresh.tiles().nnz == mask.sum()
    assert fresh.tiles().count == census_of_rows(permuted.rows()).tiles


def test_a_long_pattern_is_permuted_a_few_tile_rows_at_a_time(monkeypatch):
    from numba_sparse_attn.patterns import _sources

    pattern, order = patterns.causal(1000), orders.residues(1000, 7)
    expected = pattern.permuted(order).tiles()
    monkeypatch.setattr(_sources, "_PAIRS_AT_A_TIME", 1)
    found = pattern.permuted(order).tiles()
    for name, array in vars(expected).items():
        np.testing.assert_array_equal(getattr(found, name), array)


def test_set_operations_keep_the_orders_of_both_sides():
    dilated, window = patterns.dilated_window(1024, 16, 4), patterns.sliding_window(1024, 16)
    for made in (dilated | window, window | dilated, dilated & window, dilated - window, ~dilated):
        assert made.orders == dilated.orders
    assert (dilated | patterns.dilated_window(1024, 16, 4)).orders == dilated.orders
    assert dilated.causal().orders == dilated.orders
    assert len((dilated | patterns.dilated_window(1024, 16, 8)).orders) == 2
    grid = patterns.neighborhood((32, 32), 5)
    assert [order.T for order in grid.orders] == list(grid.T.orders) and grid.orders != grid.T.orders
    assert window.orders == () and pickle.loads(pickle.dumps(grid.T)).orders == grid.T.orders
    mine = some_order((1024, 1024), 0)
    assert window.with_orders(mine, (mine.keys, mine.queries)).orders == (mine, mine.T)
    assert window.with_orders(mine).equals(window)


@given(st.data())
def test_classes_are_alike_and_see_only_themselves(data):
    """Pieces with lattices of several steps; what is taken for a period is one."""
    n_q, n_k = (data.draw(st.sampled_from([0, 12, 24, 36, 30, 7])) for _ in range(2))
    pieces = []
    for _ in range(data.draw(st.integers(1, 3))):
        low = data.draw(st.integers(-40, 40))
        begins = data.draw(st.sampled_from([0, 0, 6, 5])), data.draw(st.sampled_from([0, 0, 12]))
        pieces.append(
            make_pieces(
                rows=(begins[0], data.draw(st.sampled_from([n_q, n_q + 50, 12]))),
                columns=(begins[1], data.draw(st.sampled_from([n_k, n_k + 1, 12]))),
                differences=(low, low + data.draw(st.integers(0, 50))),
                axis=data.draw(st.sampled_from([2, 2, 2, 0, 1])),
                step=data.draw(st.sampled_from([6, 12, 4, 1])),
                phase=data.draw(st.sampled_from([0, 0, 6, 1])),
            )
        )
    parts = [nsa.Pattern.from_pieces((n_q, n_k), piece) for piece in pieces]
    pattern = parts[0]
    for part in parts[1:]:
        pattern = data.draw(st.sampled_from([pattern | part, pattern - part, pattern & part]))
    period = pattern.period
    event(f"period {period}")
    mask = pattern.toarray()
    if period > 1:
        classes = np.arange(n_q)[:, None] % period == np.arange(n_k) % period
        assert not mask[~classes].any()
        folded = pattern.folded(period)
        for residue in range(period):
            np.testing.assert_array_equal(mask[residue::period, residue::period], folded.toarray())
    assert pattern.folded(1) is pattern
    with pytest.raises(nsa.PatternError, match="divisors of its period"):
        pattern.folded(period + 1)


@pytest.mark.parametrize(
    ("pattern", "period"),
    [
        (patterns.dilated_window(64, 3, 8), 8),
        (patterns.dilated_window(64, 3, [8, 12]), 4),
        (patterns.dilated_window(60, 3, 8), 4),
        (patterns.dilated_window(61, 3, 8), 1),
        (patterns.strided_heads(64, 8, 2)[1], 8),
        (patterns.axial((4, 16), 0), 16),
        (patterns.sliding_window(64, 3), 1),
        (patterns.random_keys(64, per_query=2, seed=0), 1),
        (patterns.full(0), 1),
    ],
    ids=str,
)
def test_periods(pattern, period):
    assert pattern.period == period == pattern.T.period


# Fuller tiles --------------------------------------------------------------------------------------------

N = 16_384


def selected(function, *arguments, **keywords):
    """A selection of one head with keys that are queries, as in Reformer."""
    q = np.random.default_rng(0).standard_normal((1, N, 64), dtype=np.float32)
    return getattr(nsa.dynamic, function)(q, q, *arguments, **keywords)[0]


#: The pattern, and how many times fewer tiles there are in its order.
FULLER = {
    "dilated window": (lambda: patterns.dilated_window(N, 64, 16), 8.2),
    "dilated window, causal": (lambda: patterns.dilated_window(N, 64, 16).causal(), 4.3),
    "strided": (lambda: patterns.strided(N, 128, 64), 5.0),
    "strided, wide window": (lambda: patterns.strided(N, 128, 128), 4.3),
    "strided, causal": (lambda: patterns.strided(N, 128, 128, causal=True), 3.4),
    "strided, a head": (lambda: patterns.strided_heads(N, 128, 64)[1], 128.0),
    "strided, narrow window": (lambda: patterns.strided(N, 128, 2), 25.0),
    "neighborhood 13 x 13": (lambda: patterns.neighborhood((128, 128), 13), 2.2),
    "neighborhood 7 x 7": (lambda: patterns.neighborhood((128, 128), 7), 1.7),
    "neighborhood, dilated": (lambda: patterns.neighborhood((128, 128), 7, dilation=2), 1.7),
    "neighborhood, 3-D": (lambda: patterns.neighborhood((16, 32, 32), (3, 5, 7)), 1.3),
    "columns": (lambda: patterns.axial((128, 128), 0), 128.0),
    "rows and columns": (lambda: patterns.axial((128, 128), "all"), 5.5),
    "LSH": (lambda: selected("lsh", 32, 512, causal=True), 32.0),
    "LSH, wide": (lambda: selected("lsh", 64, 128), 42.0),
    "k-means, all keys": (
        lambda: selected("kmeans_routing", np.eye(64, dtype=np.float32), None),
        20.0,
    ),
}


@pytest.mark.parametrize("name", FULLER)
def test_declared_orders_make_fewer_tiles(name):
    make, ratio = FULLER[name]
    pattern = make()
    before = pattern.census.tiles
    after = min(ordered.census.tiles for ordered in pattern.in_orders)
    print(f"{name}: {before} tiles, in order {after}: {before / after:.2f} times fewer")
    assert before >= ratio * after
    assert all(ordered.nnz == pattern.nnz for ordered in pattern.in_orders)


def test_a_mesh_that_was_shuffled_has_a_band_again():
    mesh = patterns.neighborhood((64, 64), 3).tocsr()
    shuffle = np.random.default_rng(0).permutation(4096)
    graph = nsa.as_pattern(mesh[shuffle][:, shuffle])
    found = graph.permuted(orders.reverse_cuthill_mckee(graph))
    assert graph.census.tiles == 1024 and found.census.tiles < 120
    assert orders.reverse_cuthill_mckee(nsa.as_pattern(np.zeros((0, 0), bool))).shape == (0, 0)
