"""What a pattern would cost on the paths that an engine, or a machine, offers; and which is the cheapest.

Predictions are of the forward pass and are only ever compared with each other. They are made from a census
of the pattern, so what is not used is not built: no masks for a pattern that goes by rows, no rows for a
regular pattern that goes by tiles.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .formats.census import PANEL, Census, fair_part
from .formats.tiles import TILE
from .formats.work import Structure
from .patterns.pattern import Pattern

__all__ = [
    "Choice",
    "Kind",
    "choose_cpu",
    "choose_dense",
    "choose_gpu",
    "most_parts",
    "moving_on_cpu",
    "moving_on_gpu",
    "predict_cpu",
    "predict_gpu",
]


@dataclass(frozen=True)
class Kind:
    """The sizes of a call that costs depend on."""

    heads: int
    head_dim: int
    value_dim: int
    dtype: np.dtype[Any]
    #: Why rows are the only path, if they are.
    by_rows: str | None = None
    #: Kinds of the changes that scores go through.
    changed: tuple[str, ...] = ()

    @property
    def width(self) -> int:
        """Elements of a key and its value."""
        return self.head_dim + self.value_dim


@dataclass(frozen=True)
class Choice:
    """How one distinct pattern is run, with the figures that decided it.

    Attributes
    ----------
    structure : Tiles or Csr
    path : {"tiles", "rows", "warp", "dense"}
    census : Census
    lines : tuple of str
        What ``Plan.explain`` says of it.
    """

    structure: Structure
    path: str
    census: Census
    lines: tuple[str, ...]


def _tile_line(census: Census) -> str:
    kinds = ""
    if census.full_tiles is not None:
        kinds = f" ({census.full_tiles} full, {census.tiles - census.full_tiles} partial)"
    return f"tiles of {TILE} x {TILE}: {census.tiles}{kinds}, fill {census.fill:.1%}"


def _memory_line(structure: Structure, path: str) -> str:
    return f"memory of the {path}: {structure.nbytes / 1e6:.3g} MB"


# The CPU engine -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _CpuCosts:
    """Nanoseconds of the forward pass on one core with 512-bit vectors; only their ratios decide.

    Fitted to both paths on windows, strided and random patterns of 4096 queries with d = 16, 64 and 128
    (``python benchmarks/run.py --cases 'path/*'`` repeats the measurement).
    """

    tile_flop: float  # of a computed pair, selected or not
    tile_pair: float
    tile_element: float  # of a query and its output
    row_flop: float
    row_pair: float
    row_element: float
    row_query: float


_CPU_COSTS = {
    np.dtype(np.float32): _CpuCosts(0.0062, 0.2, 0.6, 0.016, 1.5, 0.8, 90.0),
    np.dtype(np.float64): _CpuCosts(0.0115, 0.5, 0.9, 0.030, 1.5, 1.2, 90.0),
}


#: Nanoseconds of moving a byte on one core: into memory that is there (0.03 measured in a cache, 0.14 outside
#: of it), and into memory that the system has to clear first, which is where the C library gets large arrays.
_CPU_MOVED_BYTE, _CPU_NEW_BYTE = 0.12, 0.38
#: Bytes of the four arrays that are moved from which on they are large.
_CPU_LARGE = 4 << 25


def predict_cpu(pattern: Pattern, kind: Kind) -> tuple[float, float]:
    """(seconds by tiles, seconds by rows) of the forward pass of `kind.heads` heads on one core.

    Examples
    --------
    >>> from numba_sparse_attn import patterns
    >>> kind = Kind(4, 64, 64, np.dtype(np.float32))
    >>> tiles, rows = predict_cpu(patterns.dilated_window(4096, 64, 16), kind)
    >>> rows < tiles
    True
    """
    census = pattern.census
    costs = _CPU_COSTS[np.dtype(np.float64 if kind.dtype == np.float64 else np.float32)]
    flops = 2 * kind.width
    elements = pattern.shape[0] * kind.width
    tiles = (
        census.meetings * PANEL * (flops * costs.tile_flop + costs.tile_pair) + elements * costs.tile_element
    )
    rows = census.nnz * (flops * costs.row_flop + costs.row_pair)
    rows += elements * costs.row_element + pattern.shape[0] * costs.row_query
    return 1e-9 * kind.heads * tiles, 1e-9 * kind.heads * rows


def moving_on_cpu(moved: int) -> float:
    """Seconds of moving so many bytes by index, on one core."""
    return 1e-9 * moved * (_CPU_MOVED_BYTE if moved < _CPU_LARGE else _CPU_NEW_BYTE)


def choose_cpu(pattern: Pattern, kind: Kind) -> Choice:
    """Tiles or rows, whichever the costs say; tiles of an irregular pattern only if they are used."""
    census = pattern.census
    tiles, rows = predict_cpu(pattern, replace(kind, heads=1))
    path = "tiles" if tiles <= rows and kind.by_rows is None else "rows"
    structure: Structure = pattern.tiles() if path == "tiles" else pattern.rows()
    cheaper = "whole panels cost less" if path == "tiles" else "single pairs cost less"
    if kind.by_rows is not None:
        cheaper = kind.by_rows
    return Choice(
        structure,
        path,
        census,
        (
            _tile_line(census),
            f"keys met by panels of {PANEL} queries: {census.meetings}, fill {census.panel_fill:.1%}",
            f"predicted forward time of a head on one core: tiles {tiles * 1e3:.3g} ms, "
            f"rows {rows * 1e3:.3g} ms",
            f"path {path}: {cheaper}",
            _memory_line(structure, path),
        ),
    )


# The GPU engines ----------------------------------------------------------------------------------------

#: Multiprocessors of an H200, which the rates below are those of.
_MULTIPROCESSORS = 132
#: Operations a second on whole tiles, by padded head dimension (python benchmarks/run.py --cases 'tile/*').
_TILE_RATES = {64: 4.3e14, 128: 6.0e14, 192: 5.5e14, 256: 6.7e14}
#: What looking at a mask costs, in tiles.
_PARTIAL_TILE = 1.2
#: What changes of scores cost a pair, in instructions: those that the forward kernel of head dimension 64 has
#: more in its machine code (3, 15, 9; of a function with a tanh in float64 127), with 8 for an exponential or
#: a reciprocal and 4 for a load, by the widths of their units. Assumed, not measured: that none of it hides
#: behind products, and that 128 go by a cycle.
_CHANGED_PAIR = {"alibi": 3, "softcap": 29, "relative": 14, "modify": 127}
_PAIRS_A_SECOND = 128 * 1.75e9
#: Tiles of a row that one multiprocessor takes in any case; longer rows are cut where others are idle.
_UNCUT = 4
#: Bytes of keys and values a second, gathered one by one and staged in runs ('gpu/*'), by bytes an element.
_GATHERED_RATE = 9.0e12
_STAGED_RATES = {2: 14.0e12, 4: 18.0e12, 8: 8.0e12}
#: Seconds that one warp takes for a key of a row that it has alone: 27 ns staged ('gpu/window_512_1_heads'),
#: 36 gathered ('gpu-catalogue/global_tokens').
_WARP_KEY = 30e-9
#: Seconds until anything is done at all.
_TILE_START, _WARP_START = 10e-6, 5e-6
#: Bytes a second that are moved by index, each read and written, and seconds until the four launches of that
#: are done if there were nothing to move: from 268 and 134 MB of 'order/dilated_window*'.
_GPU_MOVED_RATE, _MOVING_START = 2.4e12, 8e-6


def most_parts(rows: int) -> int:
    """How many parts there are at most of tile rows that are cut, of so many rows.

    No row is cut that is not longer than a third of a multiprocessor's share: of these, and of parts beyond
    one a row, there are at most three a multiprocessor. Of rows so long that their sums lose digits there are
    no more parts than rows.
    """
    return max(6 * _MULTIPROCESSORS, rows)


def moving_on_gpu(moved: int) -> float:
    """Seconds of moving so many bytes by index on an H200."""
    return _MOVING_START + moved / _GPU_MOVED_RATE


def predict_gpu(pattern: Pattern, kind: Kind) -> tuple[Census, float, float]:
    """(census, seconds by tiles, seconds by rows) of the forward pass of `kind.heads` heads on an H200.

    Examples
    --------
    >>> from numba_sparse_attn import patterns
    >>> kind = Kind(16, 128, 128, np.dtype(np.float16))
    >>> _, tiles, rows = predict_gpu(patterns.sliding_window(16384, 256), kind)
    >>> tiles < rows
    True
    >>> _, tiles, rows = predict_gpu(patterns.random_keys(16384, per_query=8, seed=0), kind)
    >>> rows < tiles
    True
    """
    census = pattern.census
    padded = min(256, max(64, -(-max(kind.head_dim, kind.value_dim) // 64) * 64))
    one_tile = 4 * TILE * TILE * padded * _MULTIPROCESSORS / _TILE_RATES[padded]  # on one multiprocessor
    one_tile += TILE * TILE * _changed_pair(kind) / _PAIRS_A_SECOND
    work = float(census.tiles)
    longest = 0
    if census.full_tiles is not None:
        work += (census.tiles - census.full_tiles) * (_PARTIAL_TILE - 1.0)
        longest = int(np.diff(pattern.tiles().indptr).max(initial=0))
    tiles = _TILE_START + one_tile * max(kind.heads * work / _MULTIPROCESSORS, min(longest, _UNCUT))
    size = kind.dtype.itemsize
    rate = _STAGED_RATES[size] if pattern.regular else _GATHERED_RATE
    alone = min(census.longest, fair_part(census.nnz))
    rows = _WARP_START + max(kind.heads * census.nnz * kind.width * size / rate, _WARP_KEY * alone)
    return census, tiles, rows


def _changed_pair(kind: Kind) -> int:
    """Instructions that changes of scores add to a pair of a tile; none for those that tiles do not take."""
    return sum(_CHANGED_PAIR.get(change, 0) for change in kind.changed)


def choose_gpu(pattern: Pattern, kind: Kind, path: str) -> Choice:
    """One of the paths of the GPU engines, which the planner has chosen for all patterns of a call."""
    census, tiles, rows = predict_gpu(pattern, kind)
    structure: Structure = pattern.tiles() if path == "tiles" else pattern.rows()
    lines = [
        _tile_line(census),
        f"predicted forward time of {kind.heads} heads on an H200: tiles {tiles * 1e3:.3g} ms, "
        f"rows {rows * 1e3:.3g} ms",
        _memory_line(structure, "tiles" if path == "tiles" else "rows"),
    ]
    if path == "tiles" and kind.changed:
        lines.append(
            f"changes of scores ({', '.join(kind.changed)}): about {_changed_pair(kind)} instructions a pair "
            "of a tile, selected or not"
        )
    return Choice(structure, path, census, tuple(lines))


def choose_dense(pattern: Pattern) -> Choice:
    """The oracle's only path."""
    rows = pattern.rows()
    census = Census(rows.nnz, 0, None, 0, 0)
    return Choice(rows, "dense", census, ("dense float64 mask: the oracle, for checking; slow",))
