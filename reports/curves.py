"""Figures over a quantity: density, length, arithmetic intensity; and which engine is faster where."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from benchmarks.roofline import least_bytes, roofs_of, work_of
from benchmarks.rows import Row, table_of
from benchmarks.tables import format_bytes, format_seconds

from .drawing import OURS, grouped_bars, logarithmic, look_of, new_figure, own_rows

__all__ = ["density", "density_points", "engines", "length", "lines_over_length", "memory", "roofline"]

#: What stands beside the contenders: ideals and limits.
GREY = "#666666"
DIRECTIONS = ("forward", "backward")


def density(rows: Sequence[Row]) -> Figure:
    """Whether sparsity pays: the ideal is one over the density."""
    figure, (axes,) = new_figure(6.0, 4.5)
    density_points(axes, rows)
    return figure


def density_points(axes: Any, rows: Sequence[Row]) -> None:
    """Speed-up over our own dense mode, ours in both passes and the peers' forward, below the ideal."""
    points = [row for row in own_rows(rows) if "speedup_dense" in row]
    for number, direction in enumerate(DIRECTIONS):
        chosen = [row for row in points if row["direction"] == direction]
        if chosen:
            look = look_of(3 * number)
            axes.plot(
                [row["density"] for row in chosen],
                [row["speedup_dense"] for row in chosen],
                look.marker,
                color=look.color,
                label=f"{OURS}, {direction}",
                alpha=0.8,
            )
    names = sorted({name for row in points for name in row["speedup"]})
    for number, name in enumerate(names, 4):
        chosen = [row for row in points if name in row["speedup"] and row["direction"] == "forward"]
        if chosen:
            look = look_of(number)
            axes.plot(
                [row["density"] for row in chosen],
                [row["speedup_dense"] / row["speedup"][name] for row in chosen],
                look.marker,
                color=look.color,
                label=f"{name}, forward",
                markerfacecolor="none",
            )
    line = np.geomspace(min(row["density"] for row in points), 1.0)
    axes.plot(line, 1 / line, "--", color=GREY, label="ideal: 1 / density")
    axes.set_xscale("log")
    axes.set_yscale("log")
    logarithmic(axes.xaxis, "{:.3g}".format)
    logarithmic(axes.yaxis)
    axes.set_xlabel("density (share of pairs that is selected)")
    axes.set_ylabel("times faster than our dense mode")
    axes.legend(loc="best", frameon=False, fontsize=7)


def lines_over_length(axes: Any, rows: Sequence[Row], measure: str, words: Callable[[float], str]) -> None:
    """A measure of every contender, dense ones included, over the number of tokens."""
    own = {row["case"]: row for row in own_rows(rows)}
    names = {name: None for row in own.values() for name in [row["contender"]]}
    others = {row["contender"]: None for row in rows if row["contender"] not in names}
    for number, name in enumerate([*names, *others]):
        chosen = sorted(
            (own[row["case"]]["n_q"], row[measure])
            for row in rows
            if row["contender"] == name and measure in row and row["case"] in own
        )
        if chosen:
            look = look_of(number)
            label = OURS if name in names else f"{OURS}, all pairs" if name.endswith("-dense") else name
            axes.plot(
                *zip(*chosen, strict=True),
                marker=look.marker,
                linestyle=look.line,
                color=look.color,
                label=label,
                markersize=4,
            )
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda n, _: f"{n / 1024:.0f}k" if n < 2**20 else "1M"))
    logarithmic(axes.yaxis, words)
    axes.set_xlabel("tokens")
    axes.legend(loc="best", frameon=False, fontsize=7)


def length(rows: Sequence[Row]) -> Figure:
    """Seconds over length, a panel for each pass."""
    directions = [name for name in DIRECTIONS if any(row["direction"] == name for row in rows)]
    figure, panels = new_figure(5.0 * len(directions), 4.0, len(directions))
    for axes, direction in zip(panels, directions, strict=True):
        lines_over_length(
            axes, [row for row in rows if row["direction"] == direction], "seconds", format_seconds
        )
        axes.set_title(f"{direction}, window of 256 to each side")
        axes.set_ylabel("a call")
    return figure


def memory(rows: Sequence[Row]) -> Figure:
    """Peak memory beyond the inputs: of planning and a call, and over length where a call's is known."""
    whole = [row for row in rows if row["kind"] == "memory" and row["peak_extra_bytes"] is not None]
    swept = [row for row in rows if table_of(row) == "length" and row["direction"] == "forward"]
    swept = swept if any("peak_bytes" in row for row in swept) else []
    figure, panels = new_figure(
        7.0 if not (whole and swept) else 12.0, max(3.0, 1.0 + 0.8 * len(whole)), bool(whole) + bool(swept)
    )
    if whole:
        bars = {
            "peak beyond the inputs": {row["case"]: row["peak_extra_bytes"] for row in whole},
            "results and pattern": {row["case"]: row["results_bytes"] for row in whole},
            "n x n scores would be": {row["case"]: row["square_bytes"] for row in whole},
        }
        grouped_bars(panels[0], [row["case"] for row in whole], bars, format_bytes, log=True)
        panels[0].set_xlabel("memory")
    if swept:
        lines_over_length(panels[-1], swept, "peak_bytes", format_bytes)
        panels[-1].set_ylabel("memory of a call beyond its inputs, forward")
    return figure


def roofline(rows: Sequence[Row]) -> Figure:
    """Rates over arithmetic intensity, below what the machine's own products and copies allow."""
    roofs = roofs_of(rows)
    points = [row for row in own_rows(rows) if roofs.share(row) is not None]
    dtypes = sorted({row["dtype"] for row in points})
    figure, (axes,) = new_figure(7.0, 4.5)
    intensity = [work_of(row) / least_bytes(row) for row in points]
    low, high = min(intensity) / 2, max(intensity) * 2
    for number, dtype in enumerate(dtypes):
        chosen = [row for row in points if row["dtype"] == dtype]
        product = roofs.product(chosen[0])
        ends = np.geomspace(low, max(high, 4 * product / roofs.bytes_per_second), 200)
        look = look_of(number)
        axes.plot(
            ends,
            np.minimum(product, ends * roofs.bytes_per_second) / 1e9,
            linestyle=look.line,
            color=look.color,
            linewidth=1,
            label=f"roof of {dtype}",
        )
        for direction, filled in (("forward", True), ("backward", False), ("training", False)):
            part = [row for row in chosen if row["direction"] == direction]
            if part:
                axes.plot(
                    [work_of(row) / least_bytes(row) for row in part],
                    [row["gflops"] for row in part],
                    look.marker,
                    color=look.color,
                    markerfacecolor=look.color if filled else "none",
                    label=f"{dtype}, {direction}",
                    markersize=4,
                )
    axes.set_xscale("log")
    axes.set_yscale("log")
    logarithmic(axes.xaxis)
    logarithmic(axes.yaxis)
    axes.set_xlabel("operations a byte, every array read or written once")
    axes.set_ylabel("GFLOP/s on selected pairs")
    axes.legend(loc="best", frameon=False, fontsize=7)
    return figure


def engines(rows: Sequence[Row]) -> Figure:
    """Which path is the fastest, over density and head dimension; a ring where the planner took another."""
    points = [row for row in rows if "alternatives" in row]
    names = sorted({name for row in points for name in row["alternatives"]})
    head_dims = sorted({row["head_dim"] for row in points})
    dtypes = sorted({row["dtype"] for row in points})
    figure, (axes,) = new_figure(7.0, 3.6)
    for number, name in enumerate(names):
        look = look_of(3 * number)
        best = [row for row in points if min(row["alternatives"], key=row["alternatives"].get) == name]
        axes.plot(
            [row["density"] for row in best],
            [_height(row, head_dims, dtypes) for row in best],
            look.marker,
            color=look.color,
            label=f"{name} is the fastest",
            markersize=6,
        )
    missed = [row for row in points if row["over_best"] > 1.1]
    axes.plot(
        [row["density"] for row in missed],
        [_height(row, head_dims, dtypes) for row in missed],
        "o",
        color="black",
        markerfacecolor="none",
        markersize=12,
        label="the planner's choice takes over 10 % more",
    )
    axes.set_xscale("log")
    logarithmic(axes.xaxis)
    axes.set_yticks(range(len(head_dims)), [f"d = {head_dim}" for head_dim in head_dims])
    axes.set_ylim(-0.6, len(head_dims) - 0.4)
    axes.set_xlabel(f"density; rows of a head dimension from below: {', '.join(dtypes)}")
    axes.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=2, frameon=False, fontsize=7)
    return figure


def _height(row: Row, head_dims: Sequence[int], dtypes: Sequence[str]) -> float:
    """Around the tick of the head dimension, a line an element type."""
    return head_dims.index(row["head_dim"]) + 0.25 * (dtypes.index(row["dtype"]) - (len(dtypes) - 1) / 2)
