"""Pictures of patterns, of the tiles that an engine works on, and of what :mod:`..analysis` finds.

Needs matplotlib, which the ``plot`` extra brings; it is imported when something is drawn. Light means
little and dark means much in every picture, so they survive a gray printer; where two kinds of things are
told apart, their colors are apart for every kind of color vision, and so are their lightness or markers.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .errors import PatternError
from .formats.tiles import FULL, TILE, WORDS
from .patterns import HeadPatterns, as_pattern

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

    from .analysis import AttentionMap, Comparison, ReceptiveField
    from .formats.tiles import Tiles
    from .patterns import Pattern

__all__ = ["plot_heads", "plot_pareto", "plot_pattern", "plot_receptive_field", "plot_tiles", "plot_weights"]

#: Most cells along an edge of a picture, whatever its size.
_CELLS = 512
#: Characters in a line of a title.
_TITLE_WIDTH = 48
#: Characters of a name where there are several.
_SHORT_NAME = 26
#: Masks whose bits are looked at together: 16 KiB each while they are counted.
_MASKS = 512
#: Okabe and Ito's orange and blue: a light color and a dark one.
_LIGHT_COLOR, _DARK_COLOR = "#E69F00", "#0072B2"
#: A legend below the axis label: the distance is in font sizes, so it holds for axes of any height.
_BELOW: dict[str, Any] = {
    "loc": "upper center",
    "bbox_to_anchor": (0.5, 0.0),
    "borderaxespad": 4.0,
    "ncols": 2,
    "frameon": False,
}
#: Weights less than this share of the largest are drawn alike.
_FAINTEST = 1e-6


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
    drawn = _one_pattern(pattern)
    ax = _prepare(ax, drawn.name)
    if 0 in drawn.shape:
        return ax
    cell = _cell_side(ax, max(drawn.shape), smallest=1)
    image = _draw_shares(ax, drawn, cell)
    if cell > 1:
        ax.figure.colorbar(image, ax=ax, shrink=0.8, label=_share_label(cell))
    return ax


def plot_heads(heads: Any, figure: Figure | None = None) -> Figure:
    """Draw every head, side by side: its pattern as :func:`plot_pattern` does, or its weights.

    Parameters
    ----------
    heads
        HeadPatterns, anything else with a pattern a head, or an AttentionMap, whose heads then share one
        scale. Axes of a batch come first.
    figure : matplotlib Figure, optional
        Where to draw; a new one if not given.

    Returns
    -------
    matplotlib Figure

    Examples
    --------
    >>> import matplotlib; matplotlib.use("agg")
    >>> from numba_sparse_attn import patterns, plot
    >>> figure = plot.plot_heads(patterns.strided_heads(64, 8, 8))
    >>> [ax.get_title().splitlines()[0] for ax in figure.axes]
    ['head 0', 'head 1']
    """
    # An AttentionMap is known by what it has: it is made above this module.
    has_weights = hasattr(heads, "mass")
    if has_weights:
        places = list(np.ndindex(heads.mass.shape[:-2] or (1,)))
        names = [heads.name] * len(places)
    else:
        made = as_pattern(heads)
        stack = made if isinstance(made, HeadPatterns) else made.heads(1)
        places = list(np.ndindex(stack.member_of.shape))
        members = [stack.members[int(stack.member_of[place])] for place in places]
        names = [member.name for member in members]
    figure, grid = _grid(figure, places)
    for place, name, ax in zip(places, names, grid, strict=True):
        _prepare(ax, "")
        number = place[0] if len(place) == 1 else place
        ax.set_title(f"head {number}\n{_short(name)}", fontsize="small")
    if has_weights:
        bar = _draw_weights(dict(zip(places, grid, strict=True)), heads)
    else:
        bar = _draw_members(members, grid)
    if bar:
        figure.colorbar(bar[0], ax=grid, shrink=0.8, label=bar[1])
    return figure


def plot_weights(weights: AttentionMap, ax: Axes | None = None, *, head: int | tuple[int, ...] = 0) -> Axes:
    """Draw where the weights of attention are, on a logarithmic scale; pairs without weight are white.

    Parameters
    ----------
    weights : AttentionMap
        From :func:`numba_sparse_attn.analysis.attention_map`.
    ax : matplotlib Axes, optional
        Where to draw; a new figure if not given.
    head : int, or a tuple with the indices of the axes of a batch in front
        Which head; of no consequence for arrays without heads.

    Returns
    -------
    matplotlib Axes

    Examples
    --------
    >>> import matplotlib; matplotlib.use("agg")
    >>> import numpy as np, numba_sparse_attn as nsa
    >>> q, k = np.random.default_rng(0).standard_normal((2, 4, 64, 8))
    >>> weights = nsa.analysis.attention_map(q, k, nsa.patterns.sliding_window(64, 8, causal=True))
    >>> nsa.plot.plot_weights(weights, head=2).get_title()
    'sliding_window(n=64, window=8, causal=True)'
    """
    ax = _prepare(ax, weights.name)
    bar = _draw_weights({head: ax}, weights)
    if bar:
        ax.figure.colorbar(bar[0], ax=ax, shrink=0.8, label=bar[1])
    return ax


def plot_receptive_field(field: ReceptiveField, ax: Axes | None = None, *, query: int | None = None) -> Axes:
    """Draw what a query depends on, a line for each layer from 0 on.

    A cell is as dark as the share of its keys that is reached by then.

    Parameters
    ----------
    field : ReceptiveField
        From :func:`numba_sparse_attn.analysis.receptive_field`.
    ax : matplotlib Axes, optional
        Where to draw; a new figure if not given.
    query : int, optional
        One of ``field.queries``; the one that reaches most if not given. A triangle marks it.

    Returns
    -------
    matplotlib Axes

    Examples
    --------
    >>> import matplotlib; matplotlib.use("agg")
    >>> import numba_sparse_attn as nsa
    >>> field = nsa.analysis.receptive_field(nsa.patterns.sliding_window(64, 4), depth=3)
    >>> ax = nsa.plot.plot_receptive_field(field)
    >>> ax.images[0].get_array()[:, 32].tolist(), ax.get_ylabel()  # the middle, reached at once
    ([1.0, 1.0, 1.0, 1.0], 'layers')
    """
    from matplotlib.ticker import MaxNLocator

    ax = _prepare(ax, field.name)
    ax.set_ylabel("layers")
    if not len(field.queries):
        return ax
    chosen, reached = field.reached(query)
    length = reached.shape[1]
    cell = _cell_side(ax, length, smallest=1)
    starts = np.arange(0, length, cell)
    share = np.add.reduceat(reached, starts, axis=1, dtype=np.int64) / np.diff(np.append(starts, length))
    extent = (0.0, float(len(starts) * cell), field.depth + 0.5, -0.5)
    image = _draw_image(ax, share, extent, vmin=0.0, vmax=1.0)
    ax.set_aspect("auto")
    ax.set_xlim(0, length)
    ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlabel(f"key (of query {chosen})")
    mark: dict[str, Any] = {"color": "black", "markersize": 8, "clip_on": False}
    ax.plot([chosen + 0.5], [-0.5], "v", **mark)  # above the line of layer 0, whether or not that is a pixel
    if cell > 1:
        ax.figure.colorbar(image, ax=ax, shrink=0.8, label=f"share reached,\nby {cell} keys")
    return ax


def plot_pareto(comparison: Comparison, ax: Axes | None = None) -> Axes:
    """Draw error against pairs: the patterns that no other beats are joined, numbered and named.

    Parameters
    ----------
    comparison : Comparison
        From :func:`numba_sparse_attn.analysis.compare`.
    ax : matplotlib Axes, optional
        Where to draw; a new figure if not given.

    Returns
    -------
    matplotlib Axes

    Examples
    --------
    >>> import matplotlib; matplotlib.use("agg")
    >>> import numpy as np, numba_sparse_attn as nsa
    >>> q, k, v = np.random.default_rng(0).standard_normal((3, 128, 8))
    >>> windows = [nsa.patterns.sliding_window(128, reach) for reach in (4, 16, 64)]
    >>> ax = nsa.plot.plot_pareto(nsa.analysis.compare(q, k, v, windows))
    >>> ax.get_xlabel(), len(ax.texts)
    ('selected pairs', 3)
    """
    ax = _prepare(ax, "")
    ax.set_xlabel("selected pairs")
    ax.set_ylabel("relative output error")
    rows = [row for row in comparison.rows if np.isfinite(row["error"])]
    front = sorted((row for row in rows if row["front"]), key=lambda row: (row["pairs"], row["error"]))
    beaten = [row for row in rows if not row["front"]]
    if rows and all(row["pairs"] > 0 for row in rows):
        ax.set_xscale("log")
    style: dict[str, Any] = {"markeredgecolor": "black", "markersize": 7}
    ax.plot(*_points(beaten), "s", color=_LIGHT_COLOR, alpha=0.8, label="beaten by another", **style)
    # Between two points of the front the best that there is, is the cheaper one.
    ax.step(*_points(front), "o-", where="post", color=_DARK_COLOR, label="on the Pareto front", **style)
    # Below the line there is no point, or it would be on the line: numbers have room there, names have not.
    for number, row in enumerate(front, 1):
        where: dict[str, Any] = {
            "xytext": (-4, -4),
            "textcoords": "offset points",
            "ha": "right",
            "va": "top",
        }
        ax.annotate(str(number), (row["pairs"], row["error"]), fontsize="small", **where)
        shown: dict[str, Any] = {"color": "black", "marker": f"${number}$", "markeredgewidth": 0}
        ax.plot([], [], linestyle="", label=_short(row["pattern"]), **shown)
    ax.margins(x=0.1, y=0.14)
    ax.legend(fontsize="small", **_BELOW)
    return ax


def _points(rows: Sequence[dict[str, Any]]) -> tuple[list[float], list[float]]:
    return [row["pairs"] for row in rows], [row["error"] for row in rows]


def _tints() -> Colormap:
    """One map for all pictures: from a tint that is told from white, so that one pair in a thousand shows."""
    from matplotlib import colormaps
    from matplotlib.colors import LinearSegmentedColormap

    tints = colormaps["Blues"](np.linspace(0.3, 1.0, 256))
    return LinearSegmentedColormap.from_list("share", tints).with_extremes(bad="white")


def _draw_image(
    ax: Axes, values: npt.NDArray[np.float64], extent: tuple[float, float, float, float], **scale: Any
) -> AxesImage:
    """Values that are not zero, in tints."""
    return ax.imshow(
        np.ma.masked_equal(values, 0.0), cmap=_tints(), extent=extent, interpolation="nearest", **scale
    )


def _draw_cells(
    ax: Axes, values: npt.NDArray[np.float64], cell: int, shape: tuple[int, int], **scale: Any
) -> AxesImage:
    """Square cells of a matrix of queries and keys."""
    extent = (0.0, float(values.shape[1] * cell), float(values.shape[0] * cell), 0.0)
    image = _draw_image(ax, values, extent, **scale)
    _limit(ax, shape)
    return image


def _draw_shares(ax: Axes, pattern: Pattern, cell: int) -> AxesImage:
    return _draw_cells(ax, _shares(pattern, cell), cell, pattern.shape, vmin=0.0, vmax=1.0)


def _draw_members(members: Sequence[Pattern], grid: Sequence[Axes]) -> tuple[AxesImage, str] | None:
    """Patterns of one shape; what a color bar is to show, if it is to show anything."""
    if not members or 0 in members[0].shape:
        return None
    cell = _cell_side(grid[0], max(members[0].shape), smallest=1)
    images = [_draw_shares(ax, member, cell) for member, ax in zip(members, grid, strict=True)]
    return (images[0], _share_label(cell)) if cell > 1 else None


def _draw_weights(axes: dict[Any, Axes], weights: AttentionMap) -> tuple[AxesImage, str] | None:
    """Weights of some heads on one scale; what a color bar is to show, if there is any weight."""
    from matplotlib.colors import LogNorm

    if not axes or 0 in weights.shape:
        return None
    cell = _cell_side(next(iter(axes.values())), max(weights.shape), smallest=weights.cell)
    coarse = weights.coarser(cell)
    masses = [coarse.of(head) for head in axes]
    some = np.concatenate([mass[mass > 0.0] for mass in masses])
    if not some.size:
        return None
    most = float(some.max())
    least = max(most * _FAINTEST, min(float(some.min()), most / 10))
    for mass, ax in zip(masses, axes.values(), strict=True):
        image = _draw_cells(ax, mass, cell, weights.shape, norm=LogNorm(least, most, clip=True))
    return image, "weight" if cell == 1 else f"mean weight of a query,\nby {cell} x {cell} cells"


def _grid(figure: Figure | None, places: Sequence[tuple[int, ...]]) -> tuple[Figure, list[Axes]]:
    """Axes for some heads: at most four in a line, and a line for each batch element if they fit."""
    columns = max(1, min(places[-1][-1] + 1 if places else 1, 4))
    lines = max(1, -(-len(places) // columns))
    if figure is None:
        from matplotlib import pyplot

        figure = pyplot.figure(figsize=(2.4 * columns, 2.5 * lines), layout="constrained")
    grid = figure.subplots(lines, columns, squeeze=False).reshape(-1)
    for ax in grid[len(places) :]:
        ax.remove()
    return figure, list(grid[: len(places)])


def _share_label(cell: int) -> str:
    return f"share of pairs selected,\nby {cell} x {cell} cells"


def _short(name: str) -> str:
    """A name that fits beside others."""
    return name if len(name) <= _SHORT_NAME else name[: _SHORT_NAME - 1] + "…"


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
    ax = _prepare(ax, drawn.name)
    if 0 in drawn.shape:
        return ax
    tiles = drawn.tiles()
    cell = _cell_side(ax, max(drawn.shape), smallest=TILE)
    kinds = _kinds(tiles, cell // TILE)
    ax.imshow(
        kinds,
        cmap=ListedColormap(["white", _LIGHT_COLOR, _DARK_COLOR]),
        vmin=0,
        vmax=2,
        extent=(0, kinds.shape[1] * cell, kinds.shape[0] * cell, 0),
        interpolation="nearest",
    )
    _limit(ax, drawn.shape)
    handles = [
        Patch(facecolor=_DARK_COLOR, edgecolor="black", label=f"{tiles.full_count} full tiles"),
        Patch(facecolor=_LIGHT_COLOR, edgecolor="black", label=f"{tiles.partial_count} partial tiles"),
    ]
    ax.legend(handles=handles, **_BELOW)
    return ax


def _one_pattern(value: Any) -> Pattern:
    pattern: Pattern | HeadPatterns = as_pattern(value)
    if isinstance(pattern, HeadPatterns):
        raise PatternError(
            f"patterns of {len(pattern)} heads", "one pattern a picture", "draw them with plot_heads"
        )
    return pattern


def _prepare(ax: Axes | None, title: str) -> Axes:
    if ax is None:
        from matplotlib import pyplot

        ax = pyplot.subplots(layout="constrained")[1]
    ax.set_title(textwrap.fill(title, _TITLE_WIDTH), fontsize="small")
    ax.set_xlabel("key")
    ax.set_ylabel("query")
    return ax


def _limit(ax: Axes, shape: tuple[int, int]) -> None:
    """Cut off what the last cells stick out of the matrix."""
    ax.set_xlim(0, shape[1])
    ax.set_ylim(shape[0], 0)


def _cell_side(ax: Axes, length: int, *, smallest: int) -> int:
    """Tokens along the edge of a cell: a power of two, and so many that a cell is wider than a pixel."""
    area = ax.get_window_extent()
    # A quarter is kept back for labels and the color bar, which are not laid out yet.
    most = int(max(1, min(_CELLS, 0.75 * area.width, 0.75 * area.height)))
    cell = smallest
    while -(-length // cell) > most:
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
