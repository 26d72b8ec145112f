"""Pictures of patterns: which query sees which key, and which tiles an engine works on.

Needs matplotlib, which the ``plot`` extra brings; it is imported when something is drawn. Light means
little and dark means much in every picture, so they survive a gray printer, and the two colors of
:func:`plot_tiles` are apart for every kind of color vision.
"""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .errors import PatternError
from .formats.tiles import FULL, TILE, WORDS
from .patterns import HeadPatterns, as_pattern

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from .formats.tiles import Tiles
    from .patterns import Pattern

__all__ = ["plot_pattern", "plot_tiles"]

#: Most cells along an edge of a picture, whatever its size.
_CELLS = 512
#: Characters in a line of a title.
_TITLE_WIDTH = 48
#: Masks whose bits are looked at together: 16 KiB each while they are counted.
_MASKS = 512
#: Okabe and Ito's orange and blue.
_PARTIAL_COLOR, _FULL_COLOR = "#E69F00", "#0072B2"


def plot_pattern(pattern: Any, ax: Axes | None = None) -> Axes:
    """Draw a pattern: rows are queries, columns are keys, selected pairs are dark.

    Where there are more tokens than pixels, a cell of the picture stands for a square of pairs and is
    as dark as the share of them that is selected; a cell with any pair at all never looks empty.
    Everything is counted, nothing sampled, and memory follows the tiles and not the square.

    Parameters
    ----------
    pattern
        A Pattern, or anything that :func:`numba_sparse_attn.as_pattern` takes.
    ax : matplotlib Axes, optional
        Where to draw; a new figure if not given.

    Returns
    -------
    matplotlib Axes

    Examples
    --------
    >>> import matplotlib; matplotlib.use("agg")
    >>> from numba_sparse_attn import patterns, plot
    >>> ax = plot.plot_pattern(patterns.sliding_window(64, 4))
    >>> ax.get_xlabel(), ax.get_ylabel()
    ('key', 'query')
    """
    from matplotlib import colormaps
    from matplotlib.colors import LinearSegmentedColormap

    drawn = _one_pattern(pattern)
    ax = _prepare(ax, drawn)
    if 0 in drawn.shape:
        return ax
    cell = _cell_side(ax, drawn, smallest=1)
    share = _shares(drawn, cell)
    # The map begins at a tint that is told from white, so that one pair in a thousand shows.
    tints = colormaps["Blues"](np.linspace(0.3, 1.0, 256))
    tinted = LinearSegmentedColormap.from_list("share", tints).with_extremes(bad="white")
    image = ax.imshow(
        np.ma.masked_equal(share, 0.0),
        cmap=tinted,
        vmin=0.0,
        vmax=1.0,
        extent=(0, share.shape[1] * cell, share.shape[0] * cell, 0),
        interpolation="nearest",
    )
    _limit(ax, drawn)
    if cell > 1:
        ax.figure.colorbar(
            image, ax=ax, shrink=0.8, label=f"share of pairs selected, by {cell} x {cell} cells"
        )
    return ax


def plot_tiles(pattern: Any, ax: Axes | None = None) -> Axes:
    """Draw the tiles of a pattern: full ones, partial ones with a mask, and none where it is white.

    Where there are more tiles than pixels, a cell of the picture stands for a square of tiles; it is
    full if all of them are, and partial if any of them is listed.

    Parameters
    ----------
    pattern
        A Pattern, or anything that :func:`numba_sparse_attn.as_pattern` takes.
    ax : matplotlib Axes, optional
        Where to draw; a new figure if not given.

    Returns
    -------
    matplotlib Axes

    Examples
    --------
    >>> import matplotlib; matplotlib.use("agg")
    >>> from numba_sparse_attn import patterns, plot
    >>> ax = plot.plot_tiles(patterns.causal(1024))
    >>> [text.get_text() for text in ax.get_legend().get_texts()]
    ['28 full tiles', '8 partial tiles']
    """
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch

    drawn = _one_pattern(pattern)
    ax = _prepare(ax, drawn)
    if 0 in drawn.shape:
        return ax
    tiles = drawn.tiles()
    cell = _cell_side(ax, drawn, smallest=TILE)
    kinds = _kinds(tiles, cell // TILE)
    ax.imshow(
        kinds,
        cmap=ListedColormap(["white", _PARTIAL_COLOR, _FULL_COLOR]),
        vmin=0,
        vmax=2,
        extent=(0, kinds.shape[1] * cell, kinds.shape[0] * cell, 0),
        interpolation="nearest",
    )
    _limit(ax, drawn)
    handles = [
        Patch(facecolor=_FULL_COLOR, edgecolor="black", label=f"{tiles.full_count} full tiles"),
        Patch(facecolor=_PARTIAL_COLOR, edgecolor="black", label=f"{tiles.partial_count} partial tiles"),
    ]
    # Below the axis label: the distance is in font sizes, so it holds for axes of any height.
    below: dict[str, Any] = {"loc": "upper center", "bbox_to_anchor": (0.5, 0.0), "borderaxespad": 4.0}
    ax.legend(handles=handles, ncols=2, frameon=False, **below)
    return ax


def _one_pattern(value: Any) -> Pattern:
    pattern: Pattern | HeadPatterns = as_pattern(value)
    if isinstance(pattern, HeadPatterns):
        raise PatternError(
            f"patterns of {len(pattern)} heads", "one pattern a picture", "draw them one by one"
        )
    return pattern


def _prepare(ax: Axes | None, pattern: Pattern) -> Axes:
    if ax is None:
        from matplotlib import pyplot

        ax = pyplot.subplots(layout="constrained")[1]
    ax.set_title(textwrap.fill(pattern.name, _TITLE_WIDTH), fontsize="small")
    ax.set_xlabel("key")
    ax.set_ylabel("query")
    return ax


def _limit(ax: Axes, pattern: Pattern) -> None:
    """Cut off what the last cells stick out of the matrix."""
    ax.set_xlim(0, pattern.shape[1])
    ax.set_ylim(pattern.shape[0], 0)


def _cell_side(ax: Axes, pattern: Pattern, *, smallest: int) -> int:
    """Pairs along the edge of a cell: a power of two, and so many that a cell is wider than a pixel."""
    area = ax.get_window_extent()
    # A quarter is kept back for labels and the color bar, which are not laid out yet.
    most = int(max(1, min(_CELLS, 0.75 * area.width, 0.75 * area.height)))
    cell = smallest
    while -(-max(pattern.shape) // cell) > most:
        cell *= 2
    return cell


def _tile_grid(tiles: Tiles) -> tuple[tuple[int, int], npt.NDArray[np.int64]]:
    """(tile rows, tile columns), and the tile row of every listed tile."""
    rows = len(tiles.indptr) - 1
    return (rows, len(tiles.transposed_indptr) - 1), np.repeat(np.arange(rows), np.diff(tiles.indptr))


def _shares(pattern: Pattern, cell: int) -> npt.NDArray[np.float64]:
    """Share of the pairs selected in every cell; cells at the edges count what lies in the matrix."""
    tiles = pattern.tiles()
    (rows, columns), tile_row = _tile_grid(tiles)
    within = max(1, TILE // cell)  # cells along the edge of a tile
    counts = _counts(tiles.pool, within)[tiles.mask_ids]
    together = max(1, cell // TILE)  # tiles along the edge of a cell
    shape = (-(-rows // together), -(-columns // together))
    total = np.zeros((*shape, within, within), np.int64)
    np.add.at(total, (tile_row // together, tiles.columns // together), counts)
    cells = total.transpose(0, 2, 1, 3).reshape(shape[0] * within, shape[1] * within)
    height, width = (np.diff(np.append(np.arange(0, length, cell), length)) for length in pattern.shape)
    return cells[: len(height), : len(width)] / np.outer(height, width)


def _counts(pool: npt.NDArray[np.uint64], within: int) -> npt.NDArray[np.int64]:
    """Pairs in every cell of every mask, ``[unique, within, within]``."""
    side = TILE // within
    counts = np.empty((len(pool), within, within), np.int64)
    for begin in range(0, len(pool), _MASKS):
        words = np.ascontiguousarray(pool[begin : begin + _MASKS]).astype("<u8", copy=False)
        octets = words.view(np.uint8).reshape(-1, WORDS * 8)
        bits = np.unpackbits(octets, axis=1, bitorder="little").reshape(-1, within, side, within, side)
        counts[begin : begin + _MASKS] = bits.sum(axis=(2, 4), dtype=np.int64)
    return counts


def _kinds(tiles: Tiles, together: int) -> npt.NDArray[np.int64]:
    """0 for cells without tiles, 1 with some, 2 where all tiles are full."""
    (rows, columns), tile_row = _tile_grid(tiles)
    shape = (-(-rows // together), -(-columns // together))
    full = np.zeros(shape, np.int64)
    place = (tile_row // together, tiles.columns // together)
    np.add.at(full, place, tiles.mask_ids == FULL)
    listed = np.zeros(shape, np.bool_)
    listed[place] = True
    height, width = (np.diff(np.append(np.arange(0, length, together), length)) for length in (rows, columns))
    return listed.astype(np.int64) + (full == np.outer(height, width))
