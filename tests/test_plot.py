"""Pictures: every pair is in them, at any length, and nothing that is empty looks selected."""

from __future__ import annotations

from collections.abc import Iterator

import matplotlib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib import colors, pyplot
from matplotlib.axes import Axes

from numba_sparse_attn import ArgumentError, HeadPatterns, Pattern, PatternError, analysis, patterns
from numba_sparse_attn.plot import (
    _kinds,
    _shares,
    plot_heads,
    plot_pareto,
    plot_pattern,
    plot_receptive_field,
    plot_tiles,
    plot_weights,
)

matplotlib.use("agg")


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    yield
    pyplot.close("all")


def image(ax: Axes) -> np.ma.MaskedArray:
    return np.ma.asarray(ax.images[0].get_array())


def shares(pattern: Pattern, cell: int) -> np.ndarray:
    """Share of the pairs in every cell, from the mask."""
    mask = pattern.toarray().astype(float)
    rows, columns = (np.arange(0, length, cell) for length in mask.shape)
    total = np.add.reduceat(np.add.reduceat(mask, rows, axis=0), columns, axis=1)
    ones = np.add.reduceat(np.add.reduceat(np.ones_like(mask), rows, axis=0), columns, axis=1)
    return total / ones


@given(
    shape=st.tuples(st.integers(1, 400), st.integers(1, 400)),
    exponent=st.integers(0, 9),
    left=st.integers(0, 200),
    right=st.integers(0, 200),
)
def test_shares_are_counted_and_not_sampled(
    shape: tuple[int, int], exponent: int, left: int, right: int
) -> None:
    pattern = patterns.band(shape[0], left, right, n_keys=shape[1])
    np.testing.assert_allclose(_shares(pattern, 2**exponent), shares(pattern, 2**exponent), rtol=1e-12)


def test_short_pattern_is_drawn_pair_by_pair() -> None:
    pattern = patterns.longformer(40, 3, [7])
    ax = plot_pattern(pattern)
    np.testing.assert_array_equal(image(ax).filled(0) > 0, pattern.toarray())
    assert ax.get_xlim() == (0, 40)
    assert ax.get_ylim() == (40, 0)
    assert len(ax.figure.axes) == 1  # no color bar where a pair is dark or is not


@pytest.mark.parametrize("n", [3000, 65_536, 1_000_000])
def test_long_pattern_loses_no_pair(n: int) -> None:
    """One pair in a row is there, and the shares add up to all pairs."""
    pattern = patterns.exponential_offsets(n, 1)
    ax = plot_pattern(pattern)
    drawn = image(ax)
    cell = round(float(ax.images[0].get_extent()[1]) / drawn.shape[1])
    assert max(drawn.shape) <= 512
    sizes = np.diff(np.append(np.arange(0, n, cell), n))
    assert (drawn.filled(0) * np.outer(sizes, sizes)).sum() == pytest.approx(pattern.nnz)
    corner = n - 2 ** ((n - 1).bit_length() - 1) - 1  # the last row of the furthest offset
    assert not np.ma.getmaskarray(drawn)[corner // cell, (n - 1) // cell]
    assert f"{cell} x {cell}" in ax.figure.axes[1].get_ylabel()


def test_cells_are_wider_than_pixels() -> None:
    figure = pyplot.figure(figsize=(1, 1), dpi=100)
    ax = plot_pattern(patterns.sliding_window(10_000, 5), figure.add_subplot())
    figure.canvas.draw()
    assert max(image(ax).shape) <= ax.get_window_extent().width


def test_any_pair_is_told_from_none_and_more_is_darker() -> None:
    ax = plot_pattern(patterns.global_tokens(10_000, [5000]))
    colormap = ax.images[0].get_cmap()
    lightness = colors.rgb_to_hsv(colormap(np.linspace(0, 1, 50))[:, :3])
    luminance = colormap(np.linspace(0, 1, 50))[:, :3] @ np.array([0.2126, 0.7152, 0.0722])
    assert (np.diff(luminance) < 0).all()
    assert luminance[0] < 0.9
    assert lightness[0, 1] > 0.2  # a tint, where white has none
    np.testing.assert_array_equal(colormap(np.ma.masked)[:3], 1.0)


def test_tiles() -> None:
    pattern = patterns.causal(300) | patterns.band(300, 0, 0)
    ax = plot_tiles(pattern)
    assert image(ax).tolist() == [[1, 0, 0], [2, 1, 0], [1, 1, 1]]  # the last row sticks out of the matrix
    legend = ax.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["1 full tiles", "5 partial tiles"]
    # A gray printer tells them apart, too.
    full, partial = (
        np.dot(patch.get_facecolor()[:3], [0.2126, 0.7152, 0.0722]) for patch in legend.get_patches()
    )
    assert partial - full > 0.2 and 1.0 - partial > 0.2


def test_tiles_that_share_a_cell() -> None:
    tiles = (patterns.block_local(128 * 6, 256) | patterns.sliding_window(128 * 6, 1)).tiles()
    assert _kinds(tiles, 2).tolist() == [[2, 1, 0], [1, 2, 1], [0, 1, 2]]
    assert _kinds(tiles, 4).tolist() == [[1, 1], [1, 2]]
    assert _kinds(tiles, 8).tolist() == [[1]]


@pytest.mark.parametrize("plot", [plot_pattern, plot_tiles])
def test_what_can_be_drawn(plot: type) -> None:
    assert not plot(patterns.full(0)).images
    assert not plot(patterns.full(3, n_keys=0)).images
    assert plot(patterns.full(3, n_keys=0) | patterns.full(3, n_keys=0)).get_ylabel() == "query"
    assert plot(np.eye(5, dtype=bool)).images
    assert plot(patterns.random_keys(200, 2, 0)).get_title().startswith("random_keys")
    with pytest.raises(PatternError, match="one pattern a picture"):
        plot(patterns.strided_heads(16, 4, 4))


def test_heads_are_drawn_side_by_side() -> None:
    stack = patterns.strided_heads(32, 4, 4) + patterns.causal(32).heads(3)
    figure = plot_heads(stack)
    assert len(figure.axes) == 5
    for head, ax in enumerate(figure.axes):
        np.testing.assert_array_equal(image(ax).filled(0) > 0, stack[head].toarray())
        assert ax.get_title().startswith(f"head {head}\n")
    batch = HeadPatterns([patterns.causal(8), patterns.full(8)], [[0, 1], [1, 1]])
    figure = plot_heads(batch, pyplot.figure())
    assert [ax.get_title().splitlines()[0] for ax in figure.axes] == [
        f"head {place}" for place in ((0, 0), (0, 1), (1, 0), (1, 1))
    ]


def test_heads_share_a_color_bar_where_cells_are_shares() -> None:
    figure = plot_heads(patterns.causal(5000).heads(2))
    *heads, bar = figure.axes
    cell = round(heads[0].images[0].get_extent()[1] / image(heads[0]).shape[1])
    assert len(heads) == 2 and f"{cell} x {cell}" in bar.get_ylabel()
    assert len(plot_heads(patterns.causal(16)).axes) == 1
    assert not plot_heads(patterns.full(0).heads(2)).axes[0].images


def test_weights_are_drawn_as_they_are() -> None:
    q, k = np.random.default_rng(0).standard_normal((2, 3, 2, 40, 4))
    weights = analysis.attention_map(q, k, patterns.causal(40))
    ax = weights.plot(head=(2, 1))
    drawn = image(ax)
    np.testing.assert_array_equal(drawn.filled(0), weights.mass[2, 1])
    np.testing.assert_array_equal(np.ma.getmaskarray(drawn), ~np.tri(40, dtype=bool))
    assert isinstance(ax.images[0].norm, colors.LogNorm)
    assert ax.images[0].norm.vmax == weights.mass[2, 1].max()
    assert ax.figure.axes[1].get_ylabel() == "weight"
    for head in (1, (3, 0), (0, 0, 0)):
        with pytest.raises(ArgumentError, match="head="):
            weights.plot(head=head)


def test_weights_of_all_heads_share_a_scale() -> None:
    q, k = np.random.default_rng(0).standard_normal((2, 2, 3, 40, 4))
    weights = analysis.attention_map(q, k)
    *heads, bar = plot_heads(weights).axes
    assert [ax.get_title().splitlines()[0] for ax in heads[:4]] == [
        f"head {place}" for place in ((0, 0), (0, 1), (0, 2), (1, 0))
    ]
    cell = round(heads[0].images[0].get_extent()[1] / image(heads[0]).shape[1])
    coarse = weights.coarser(cell).mass
    for place, ax in zip(np.ndindex(2, 3), heads, strict=True):
        np.testing.assert_array_equal(image(ax), coarse[place])
        assert ax.images[0].norm.vmax == coarse.max()
    assert "weight" in bar.get_ylabel()
    assert len(plot_heads(analysis.attention_map(q[0, 0], k[0, 0])).axes) == 2


def test_weights_are_pooled_where_cells_would_be_narrower_than_pixels() -> None:
    figure = pyplot.figure(figsize=(1.5, 1.5), dpi=100)
    q, k = np.random.default_rng(0).standard_normal((2, 1000, 4))
    weights = analysis.attention_map(q, k, patterns.sliding_window(1000, 20), cells=256)
    ax = plot_weights(weights, figure.add_subplot())
    figure.canvas.draw()
    assert max(image(ax).shape) <= ax.get_window_extent().width
    np.testing.assert_allclose(image(ax).filled(0).sum(axis=1), 1.0)


def test_weights_of_long_sequences_come_in_cells() -> None:
    q, k = np.random.default_rng(0).standard_normal((2, 1000, 4))
    weights = analysis.attention_map(q, k, patterns.sliding_window(1000, 20), cells=64)
    ax = plot_weights(weights)
    assert image(ax).shape == (63, 63) and (ax.get_xlim(), ax.get_ylim()) == ((0, 1000), (1000, 0))
    assert "16 x 16" in ax.figure.axes[1].get_ylabel()
    assert not plot_weights(analysis.attention_map(q[:3], k[:3], np.zeros((3, 3), bool))).images


@pytest.mark.parametrize("n", [60, 3000])
def test_receptive_field_layer_by_layer(n: int) -> None:
    field = analysis.receptive_field(patterns.sliding_window(n, 2, causal=True), depth=3, queries=[0, n - 1])
    ax = field.plot()
    drawn = image(ax).filled(0)
    starts = np.arange(0, n, round(ax.images[0].get_extent()[1] / drawn.shape[1]))
    for layers in range(4):
        reached = np.arange(n) >= n - 1 - 2 * layers  # the last query reaches most
        sizes = np.diff(np.append(starts, n))
        np.testing.assert_allclose(drawn[layers], np.add.reduceat(reached, starts, dtype=int) / sizes)
    assert ax.get_xlabel() == f"key (of query {n - 1})" and ax.lines[0].get_xdata()[0] == n - 0.5
    assert plot_receptive_field(field, query=0).get_xlabel() == "key (of query 0)"
    with pytest.raises(ArgumentError, match="query=5"):
        field.plot(query=5)


def test_receptive_field_of_nothing() -> None:
    assert not analysis.receptive_field(patterns.full(0), depth=1).plot().images


def test_pareto_front() -> None:
    q, k, v = np.random.default_rng(0).standard_normal((3, 200, 8))
    names = {
        "a": patterns.sliding_window(200, 5),
        "b": patterns.sliding_window(200, 50),
        "c": patterns.full(200),
    }
    worse = patterns.band(200, 0, 150)
    table = analysis.compare(q, k, v, {**names, "worse": worse}, baseline=patterns.full(200))
    assert table.front == ["a", "b", "c"]
    ax = table.plot()
    beaten, front = ax.lines[:2]
    by_name = {row["pattern"]: (row["pairs"], row["error"]) for row in table.rows}
    assert beaten.get_xydata().tolist() == [list(by_name["worse"])]
    assert front.get_xydata().tolist() == [list(by_name[name]) for name in table.front]
    assert (beaten.get_marker(), front.get_marker()) == ("s", "o") and front.get_drawstyle() == "steps-post"
    assert [text.get_text() for text in ax.texts] == ["1", "2", "3"]
    legend = ax.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()][2:] == table.front
    assert ax.get_xscale() == "log"


def test_patterns_without_pairs_have_a_place_on_the_axis() -> None:
    q, k, v = np.random.default_rng(0).standard_normal((3, 8, 4))
    ax = plot_pareto(analysis.compare(q, k, v, [np.zeros((8, 8), bool), patterns.full(8)]))
    assert ax.get_xscale() == "linear" and len(ax.lines[1].get_xydata()) == 2
