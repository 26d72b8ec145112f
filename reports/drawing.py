"""The figures of benchmark rows. Only this file, `curves.py` and `scenarios/loss_curves.py` need matplotlib.

Whoever prints them in grey or sees no red and green can still read them: every color comes with a hatch, a
marker or a line style of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

import numba_sparse_attn as nsa
from benchmarks.rows import Row, is_peer, on_gpu
from benchmarks.tables import format_seconds

__all__ = [
    "GALLERY",
    "OURS",
    "Look",
    "building",
    "energy",
    "gallery",
    "grouped_bars",
    "logarithmic",
    "look_of",
    "new_figure",
    "own_rows",
    "peers",
    "run",
    "save",
]


#: Matplotlib's words for the dashes of a line, or their lengths.
LineStyle = str | tuple[int, tuple[int, ...]]


class Look(NamedTuple):
    """How a contender is drawn."""

    color: str
    hatch: str
    marker: str
    line: LineStyle


#: Okabe and Ito's colors, which people with every kind of color vision tell apart; ours is the first.
COLORS = ("#0072B2", "#E69F00", "#56B4E9", "#D55E00", "#009E73", "#CC79A7", "#000000", "#999999")
HATCHES = ("", "//", "..", "xx", "\\\\", "--", "oo", "++")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<")
LINES: tuple[LineStyle, ...] = (
    "-",
    "--",
    "-.",
    ":",
    (0, (5, 1)),
    (0, (3, 1, 1, 1)),
    (0, (1, 1)),
    (0, (8, 2)),
)
OURS = "ours"
STYLE = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "font.size": 9,
    "hatch.linewidth": 0.5,
}


def look_of(number: int) -> Look:
    """The look of the contender with that number, ours being 0."""
    number %= len(COLORS)
    return Look(COLORS[number], HATCHES[number], MARKERS[number], LINES[number])


def save(figure: Figure, path: Path) -> Path:
    """Write a PNG that depends on the rows only, fine enough for print."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(STYLE):
        figure.savefig(path, dpi=150, metadata={"Software": None})
    return path


def new_figure(width: float, height: float, columns: int = 1) -> tuple[Figure, list[Any]]:
    """A figure with its axes, side by side."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        return figure, list(np.atleast_1d(figure.subplots(1, columns)))


def own_rows(rows: Sequence[Row]) -> list[Row]:
    """Our rows that stand beside others."""
    return [row for row in rows if "speedup" in row]


def logarithmic(axis: Any, words: Callable[[float], str] = "{:g}".format) -> None:
    """Numbers of a logarithmic axis in words: 1, 2 and 5 of each decade, or of many decades the powers."""
    low, high = sorted(axis.get_view_interval())
    few = high / max(low, 1e-300) < 1e3
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if few else (1.0,)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: words(value)))
    axis.set_minor_formatter(NullFormatter())


def grouped_bars(
    axes: Any,
    cases: Sequence[str],
    heights: dict[str, dict[str, float]],
    words: Callable[[float], str],
    *,
    log: bool = False,
) -> None:
    """Horizontal bars, a group a case, by contender and case; a missing one leaves its place empty.

    `words` label a bar, and a logarithmic axis.
    """
    thickness = 0.8 / max(1, len(heights))
    for number, (name, values) in enumerate(heights.items()):
        look = look_of(number)
        bars = axes.barh(
            np.arange(len(cases)) + number * thickness,
            [values.get(case, np.nan) for case in cases],
            thickness,
            color=look.color,
            hatch=look.hatch,
            edgecolor="white",
            linewidth=0.3,
            label=name,
        )
        labels = [words(values[case]) if case in values else "" for case in cases]
        axes.bar_label(bars, labels, padding=2, fontsize=7)
    axes.set_yticks(np.arange(len(cases)) + 0.4 - thickness / 2, cases)
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.margins(x=0.12)
    if log:
        axes.set_xscale("log")
        logarithmic(axes.xaxis, words)
    if len(heights) > 1:
        axes.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=min(4, len(heights)), frameon=False)


def by_contender(rows: Sequence[Row], measure: str, scale: float = 1.0) -> dict[str, dict[str, float]]:
    """A measure by contender and case, ours first, for cases in which we were measured."""
    own = own_rows(rows)
    found = {OURS: {row["case"]: row[measure] * scale for row in own if measure in row}}
    for name in sorted({row["contender"] for row in rows if is_peer(row)}):
        found[name] = {
            row["case"]: row[measure] * scale
            for row in rows
            if row["contender"] == name and measure in row and row["case"] in found[OURS]
        }
    return {name: values for name, values in found.items() if values}


def _rate_bars(axes: Any, rows: Sequence[Row]) -> None:
    """Rates on selected pairs; in TFLOP/s on a GPU."""
    own = own_rows(rows)
    unit, scale, form = ("TFLOP/s", 1e-3, "{:.3g}") if any(map(on_gpu, own)) else ("GFLOP/s", 1.0, "{:.0f}")
    grouped_bars(axes, [row["case"] for row in own], by_contender(rows, "gflops", scale), form.format)
    axes.set_xlabel(f"{unit} on selected pairs")


def peers(rows: Sequence[Row]) -> Figure:
    """Ours beside the peers, case by case."""
    compared = {row["case"] for row in own_rows(rows) if row["speedup"]}
    chosen = [row for row in rows if row["case"] in compared and row["kind"] == "attention"]
    contenders = 1 + len({row["contender"] for row in chosen if is_peer(row)})
    figure, (axes,) = new_figure(8.0, min(60.0, 1.0 + len(compared) * (0.2 + 0.14 * contenders)))
    _rate_bars(axes, chosen)
    return figure


def building(rows: Sequence[Row]) -> Figure:
    """Seconds from a pattern to its tiles."""
    figure, (axes,) = new_figure(7.0, 0.8 + 0.32 * len(rows))
    times = {OURS: {row["case"]: row["seconds"] for row in rows}}
    grouped_bars(axes, [row["case"] for row in rows], times, format_seconds, log=True)
    axes.set_xlabel("to build the tiles, both directions")
    return figure


def energy(rows: Sequence[Row]) -> Figure:
    """Joules a call, the GPU's own idling in them."""
    cases = [row["case"] for row in own_rows(rows)]
    found = by_contender(rows, "joules")
    figure, (axes,) = new_figure(8.0, 1.0 + len(cases) * (0.2 + 0.14 * len(found)))
    grouped_bars(axes, cases, found, "{:.3g} J".format, log=True)
    axes.set_xlabel("energy of a call")
    return figure


def run(rows: Sequence[Row]) -> Figure:
    """The picture of one run: rates, and speed-up against density where there is a dense mode to compare.

    Of many cases, those are shown in which there is somebody to be compared with.
    """
    from . import curves

    own = own_rows(rows)
    dense = any("speedup_dense" in row for row in own)
    beside = {row["case"] for row in own if row["speedup"]} or {row["case"] for row in own}
    shown = [row for row in rows if row["case"] in beside]
    contenders = 1 + len({row["contender"] for row in shown if is_peer(row)})
    height = max(4.0, 0.8 + len(beside) * (0.2 + 0.15 * contenders))
    figure, axes = new_figure(11.0 if dense else 7.0, min(height, 40.0), columns=2 if dense else 1)
    _rate_bars(axes[0], shown)
    if dense:
        curves.density_points(axes[1], rows)
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
