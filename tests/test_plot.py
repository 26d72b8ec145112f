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

from numba_sparse_attn import Pattern, PatternError, patterns
from numba_sparse_attn.plot import _kinds, _shares, plot_pattern, plot_tiles

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
