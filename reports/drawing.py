"""The figures of benchmark rows. Only this file needs matplotlib."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

import numba_sparse_attn as nsa
from benchmarks.rows import Row, is_peer, on_gpu

__all__ = ["building", "density", "gallery", "peers", "run", "save"]

#: Okabe and Ito's colors, which people with every kind of color vision tell apart; ours is the first.
COLORS = ("#0072B2", "#56B4E9", "#E69F00", "#D55E00", "#009E73", "#CC79A7", "#999999")
STYLE = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "font.size": 9,
}


def save(figure: Figure, path: Path) -> Path:
    """Write a PNG that depends on the rows only."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130, metadata={"Software": None})
    return path


def _figure(width: float, height: float, columns: int = 1) -> tuple[Figure, list[Any]]:
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        return figure, list(np.atleast_1d(figure.subplots(1, columns)))


def _own(rows: Sequence[Row]) -> list[Row]:
    """Our rows that stand beside others."""
    return [row for row in rows if "speedup" in row]


def _rate_bars(axes: Any, rows: Sequence[Row]) -> None:
    """Rates on selected pairs, a group of bars a case; in TFLOP/s on a GPU."""
    own = _own(rows)
    unit, scale, form = ("TFLOP/s", 1e-3, ".3g") if any(map(on_gpu, own)) else ("GFLOP/s", 1.0, ".0f")
    cases = [row["case"] for row in own]
    others = sorted({row["contender"] for row in rows if is_peer(row)})
    names = ["ours", *others]
    height = 0.8 / len(names)
    for number, name in enumerate(names):
        rate = {
            row["case"]: row["gflops"] * scale
            for row in rows
            if (row in own if name == "ours" else row["contender"] == name) and row["kind"] == "attention"
        }
        places = np.arange(len(cases)) + number * height
        bars = axes.barh(
            places, [rate.get(case, 0.0) for case in cases], height, color=COLORS[number], label=name
        )
        axes.bar_label(bars, [f"{rate[case]:{form}}" if case in rate else "" for case in cases], padding=2)
    axes.set_yticks(np.arange(len(cases)) + 0.4 - height / 2, cases)
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set_xlabel(f"{unit} on selected pairs")
    axes.margins(x=0.1)
    if others:
        axes.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=len(names), frameon=False)


def _density_points(axes: Any, rows: Sequence[Row]) -> None:
    """Speed-up over our own dense mode against density, below the line of the ideal."""
    points = [row for row in _own(rows) if "speedup_dense" in row]
    for number, (direction, marker) in enumerate((("forward", "o"), ("backward", "s"))):
        chosen = [row for row in points if row["direction"] == direction]
        if chosen:
            axes.plot(
                [row["density"] for row in chosen],
                [row["speedup_dense"] for row in chosen],
                marker,
                color=COLORS[3 * number],
                label=direction,
                alpha=0.8,
            )
    low = min(row["density"] for row in points)
    line = np.geomspace(low, 1.0)
    axes.plot(line, 1 / line, "--", color=COLORS[-1], label="ideal: 1 / density")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("density (share of pairs that is selected)")
    axes.set_ylabel("times faster than our dense mode")
    axes.legend(loc="best", frameon=False)


def peers(rows: Sequence[Row]) -> Figure:
    """Ours beside the peers, case by case."""
    compared = {row["case"] for row in _own(rows) if row["speedup"]}
    chosen = [row for row in rows if row["case"] in compared]
    figure, (axes,) = _figure(8.0, 1.0 + 0.8 * len(compared))
    _rate_bars(axes, chosen)
    return figure


def density(rows: Sequence[Row]) -> Figure:
    """Whether sparsity pays."""
    figure, (axes,) = _figure(6.0, 4.5)
    _density_points(axes, rows)
    return figure


def building(rows: Sequence[Row]) -> Figure:
    """Seconds from a pattern to its tiles."""
    chosen = [row for row in rows if row["kind"] == "build"]
    figure, (axes,) = _figure(7.0, 0.8 + 0.32 * len(chosen))
    bars = axes.barh(
        [row["case"] for row in chosen], [row["seconds"] * 1e3 for row in chosen], color=COLORS[0]
    )
    axes.bar_label(bars, [f"{row['seconds'] * 1e3:.3g} ms" for row in chosen], padding=2)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.margins(x=0.15)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("milliseconds to build the tiles, both directions")
    return figure


def run(rows: Sequence[Row]) -> Figure:
    """The picture of one run: rates, and speed-up against density where there is a dense mode to compare."""
    own = _own(rows)
    dense = any("speedup_dense" in row for row in own)
    contenders = 1 + len({row["contender"] for row in rows if is_peer(row)})
    height = max(4.0, 0.8 + len(own) * (0.2 + 0.15 * contenders))
    figure, axes = _figure(11.0 if dense else 7.0, min(height, 40.0), columns=2 if dense else 1)
    _rate_bars(axes[0], [row for row in rows if row["kind"] == "attention"])
    if dense:
        _density_points(axes[1], rows)
    return figure


#: Patterns of the gallery, each at a length at which its structure is seen.
GALLERY: dict[str, Callable[[], nsa.Pattern]] = {
    "sliding_window": lambda: nsa.patterns.sliding_window(96, 8),
    "dilated_window": lambda: nsa.patterns.dilated_window(96, 4, [1, 2, 4, 8]),
    "longformer": lambda: nsa.patterns.longformer(96, 6, [0, 40, 41]),
    "bigbird": lambda: nsa.patterns.bigbird(96, 6, 1, 1, 2, 0),
    "documents": lambda: nsa.patterns.documents([20, 33, 12, 31], causal=True),
    "strided": lambda: nsa.patterns.strided(96, 12, 6, causal=True),
    "multiscale_grid": lambda: nsa.patterns.multiscale_grid((8, 8), 3, window=3, border=False),
    "tree": lambda: nsa.patterns.tree([-1, *((i - 1) // 3 for i in range(1, 96))], ["self", "ancestors"]),
}


def gallery() -> Figure:
    """Eight patterns, queries downwards, keys to the right."""
    figure = Figure(figsize=(8.0, 4.4), layout="constrained")
    colors = ListedColormap(["#f4f4f4", COLORS[0]])
    for axes, (name, build) in zip(figure.subplots(2, 4).flat, GALLERY.items(), strict=True):
        axes.imshow(build().toarray(), cmap=colors, interpolation="nearest")
        axes.set_title(name, fontsize=9)
        axes.set_xticks([])
        axes.set_yticks([])
    return figure
