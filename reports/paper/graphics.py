"""The figures of the report: axes in a rectangle of a page, or of a picture of their own.

Line widths and letters are for a column of print. Colors, hatches and markers are those of the other figures,
and tell apart without color, too.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure

from benchmarks.rows import Row, table_of
from benchmarks.tables import format_seconds
from reports import curves, drawing
from reports.scenarios.families import DENSE

from . import quality
from .evidence import Evidence, MissingError
from .pdf import Drawing

__all__ = ["FIGURES", "drawings", "picture"]

Rectangle = tuple[float, float, float, float]

_STYLE = {
    **drawing.STYLE,
    "font.family": "DejaVu Sans",
    "font.size": 6.2,
    "axes.linewidth": 0.5,
    "axes.titlesize": 6.6,
    "axes.titlepad": 2.5,
    "axes.labelpad": 1.5,
    "grid.linewidth": 0.4,
    "lines.linewidth": 0.9,
    "lines.markersize": 3.4,
    "xtick.major.width": 0.5,
    "ytick.major.width": 0.5,
    "xtick.major.size": 2.0,
    "ytick.major.size": 2.0,
    "xtick.major.pad": 1.8,
    "ytick.major.pad": 1.8,
    "legend.fontsize": 6.0,
    "legend.handlelength": 1.6,
    "legend.borderpad": 0.2,
    "legend.labelspacing": 0.3,
}
#: Width of a column in inches, for pictures outside of the PDF.
_COLUMN = 3.35
_GAP = 0.08
_TICKS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)


def _panels(figure: Figure, box: Rectangle, rows: int, columns: int) -> list[list[Any]]:
    """Axes in equal parts of a rectangle, row by row from above; :func:`_fit` makes them fit."""
    left, low, width, height = box
    figure_width, figure_height = figure.get_size_inches()
    wide, high = (width - _GAP * (columns - 1)) / columns, (height - _GAP * (rows - 1)) / rows
    made: list[list[Any]] = []
    for row in range(rows):
        made.append([])
        for column in range(columns):
            x, y = left + column * (wide + _GAP), low + (rows - 1 - row) * (high + _GAP)
            part = (x / figure_width, y / figure_height, wide / figure_width, high / figure_height)
            made[-1].append(figure.add_axes(part))
    return made


def _fit(figure: Figure, axes: Any) -> None:
    """Shrink axes until their labels, too, lie in the place that they were given."""
    renderer = FigureCanvasAgg(figure).get_renderer()
    wanted = axes.get_position()
    for _ in range(3):
        # Ticks follow the size, and their labels the ticks.
        found = axes.get_tightbbox(renderer).transformed(figure.transFigure.inverted())
        now = axes.get_position()
        left, low = now.x0 + max(0.0, wanted.x0 - found.x0), now.y0 + max(0.0, wanted.y0 - found.y0)
        right, high = now.x1 - max(0.0, found.x1 - wanted.x1), now.y1 - max(0.0, found.y1 - wanted.y1)
        axes.set_position((left, low, right - left, high - low))


def _patterns(evidence: Evidence, figure: Figure, box: Rectangle) -> None:
    """As rectangles, one a run of keys: sharp at every size."""
    panels = [axes for row in _panels(figure, box, 2, 4) for axes in row]
    for axes, (name, build) in zip(panels, drawing.GALLERY.items(), strict=True):
        mask = build().toarray()
        steps = np.diff(np.pad(mask, ((0, 0), (1, 1))).astype(np.int8), axis=1)
        rows, begins = np.nonzero(steps == 1)
        ends = np.nonzero(steps == -1)[1]
        corners = [
            [(begin, row), (end, row), (end, row + 1), (begin, row + 1)]
            for row, begin, end in zip(rows, begins, ends, strict=True)
        ]
        axes.add_collection(PolyCollection(corners, facecolor=drawing.COLORS[0], edgecolor="none"))
        axes.set(xlim=(0, mask.shape[1]), ylim=(mask.shape[0], 0), xticks=[], yticks=[], aspect="equal")
        axes.set_title(name)
        axes.grid(False)
        for side in axes.spines.values():
            side.set_visible(True)
        _fit(figure, axes)


def _host(evidence: Evidence, figure: Figure, box: Rectangle) -> None:
    _bars(evidence.machine("host").rows, ("target/*",), 1.0, "GFLOP/s on selected pairs", 2, figure, box)


def _tiles(evidence: Evidence, figure: Figure, box: Rectangle) -> None:
    cases = ("tile/blocks_*", "tile/window_128_*", "tile/document_qa_*")
    _bars(evidence.machine("gpu").rows, cases, 1e-3, "TFLOP/s on selected pairs", 1, figure, box)


def _bars(
    found: Sequence[Row],
    globs: Sequence[str],
    scale: float,
    label: str,
    most: int,
    figure: Figure,
    box: Rectangle,
) -> None:
    """Ours beside the `most` fastest peers of the same turns, of either kind; forward passes only.

    Who computes all pairs is shown by the rate at which it is done with the selected ones.
    """
    own = {
        row["case"]: row
        for row in found
        if row.get("speedup")
        and row.get("direction") == "forward"
        and any(fnmatch.fnmatchcase(row["case"], glob) for glob in globs)
    }
    if not own:
        raise MissingError(f"no rows beside peers of the cases {', '.join(globs)}")
    names = {case: case.split("/")[1].removesuffix("_forward") for case in own}
    heights = {drawing.OURS: {names[case]: row["gflops"] * scale for case, row in own.items()}}
    for field, suffix in (("speedup", ""), ("speedup_all_pairs", ", all pairs")):
        for peer in _fastest(own.values(), field)[:most]:
            heights[peer + suffix] = {
                names[case]: row["gflops"] * scale / row[field][peer]
                for case, row in own.items()
                if peer in row.get(field, {})
            }
    [[axes]] = _panels(figure, box, 1, 1)
    drawing.grouped_bars(axes, list(names.values()), heights, "{:.3g}".format)
    for text in axes.texts:
        text.set_fontsize(5.4)
    axes.set_xlabel(label)
    _fit(figure, axes)


def _fastest(own: Iterable[Row], field: str) -> list[str]:
    """The contenders, those that are nearest to ours over all cases first."""
    logarithms: dict[str, list[float]] = {}
    for row in own:
        for peer, ratio in row.get(field, {}).items():
            logarithms.setdefault(peer, []).append(math.log(ratio))
    return sorted(logarithms, key=lambda peer: float(np.mean(logarithms[peer])))


def _density(evidence: Evidence, figure: Figure, box: Rectangle) -> None:
    """Ours, and those of the peers that are the fastest."""
    found = [row for row in evidence.machine("gpu").rows if "speedup_dense" in row]
    near = _fastest(found, "speedup")[:1]
    shown = [
        {**row, "speedup": {peer: ratio for peer, ratio in row["speedup"].items() if peer in near}}
        for row in found
    ]
    [[axes]] = _panels(figure, box, 1, 1)
    curves.density_points(axes, shown)
    axes.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=2, frameon=False)
    _fit(figure, axes)


def _length(evidence: Evidence, figure: Figure, box: Rectangle) -> None:
    """Seconds of a forward pass over the number of tokens, on the GPU."""
    found = [
        row
        for row in evidence.machine("gpu").rows
        if table_of(row) == "length" and row["direction"] == "forward"
    ]
    [[axes]] = _panels(figure, box, 1, 1)
    curves.lines_over_length(axes, found, "seconds", format_seconds)
    axes.set_ylabel("a call, forward")
    _fit(figure, axes)


def _quality(evidence: Evidence, figure: Figure, box: Rectangle) -> None:
    """Factors of the perplexity with their intervals, one scenario below the other, a marker a density."""
    scenarios = [name for name in ("language", "code") if evidence.has_result(name)]
    panels = [axes for [axes] in _panels(figure, box, len(scenarios), 1)]
    for axes, scenario in zip(panels, scenarios, strict=True):
        found = quality.measured(evidence.result(scenario), scenario, "perplexity")
        lines = [line for line in found.lines if line.family != DENSE]
        families = list(dict.fromkeys(line.family for line in sorted(lines, key=lambda one: one.to_dense[0])))
        budgets = found.budgets()
        for number, (tokens, density) in enumerate(budgets):
            look = drawing.look_of(number)
            chosen = [line for line in lines if (line.tokens, line.density) == (tokens, density)]
            middle, low, high = np.exp(np.array([line.to_dense for line in chosen])).T
            axes.errorbar(
                middle,
                [families.index(line.family) + 0.2 * (number - (len(budgets) - 1) / 2) for line in chosen],
                xerr=(middle - low, high - middle),
                fmt=look.marker,
                color=look.color,
                elinewidth=0.8,
                label=f"{density:g}" + (f", {tokens} tokens" if len({t for t, _ in budgets}) > 1 else ""),
            )
        axes.set_yticks(range(len(families)), families)
        axes.set_ylim(len(families) - 0.4, -0.6)
        axes.set_xscale("log")
        most = 1.2 * math.exp(max(line.to_dense[2] for line in lines))
        axes.set_xlim(1.0, most)
        axes.set_xticks([tick for tick in _TICKS if tick <= most])
        axes.set_xticks([], minor=True)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set_xlabel(f"{scenario}: perplexity, times dense")
        if axes is panels[0]:
            axes.legend(loc="upper right", frameon=False, title="density")
        _fit(figure, axes)


#: By name: the height as a part of a column's width, and what draws it.
FIGURES: dict[str, tuple[float, Callable[[Evidence, Figure, Rectangle], None]]] = {
    "patterns": (0.53, _patterns),
    "host": (0.5, _host),
    "tiles": (0.74, _tiles),
    "density": (0.55, _density),
    "length": (0.6, _length),
    "quality": (0.9, _quality),
}


def drawings(evidence: Evidence) -> dict[str, tuple[float, Drawing]]:
    """The figures as the PDF wants them."""

    def drawn(draw: Callable[[Evidence, Figure, Rectangle], None]) -> Drawing:
        def into(figure: Figure, box: Rectangle) -> None:
            with matplotlib.rc_context(_STYLE):
                draw(evidence, figure, box)

        return into

    return {name: (height, drawn(draw)) for name, (height, draw) in FIGURES.items()}


def picture(evidence: Evidence, name: str) -> Figure:
    """One figure by itself, as wide as a column."""
    height, draw = drawings(evidence)[name]
    figure = Figure(figsize=(_COLUMN + 0.1, height * _COLUMN + 0.1))
    draw(figure, (0.05, 0.05, _COLUMN, height * _COLUMN))
    return figure
