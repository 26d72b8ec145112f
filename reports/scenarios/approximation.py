"""How far the linear and low-rank family is from softmax attention, by size, as a curve.

    python -m reports.scenarios.approximation [--quick]
    python -m reports.scenarios.approximation --report     write approximation.md and its figure from the rows
    python -m reports.scenarios.approximation --check      change nothing; status 1 if the text is stale

Queries, keys and values are normal draws; a row is one draw. How hard they are is the standard deviation of
the scores: near 0 all weights are alike, at 2 a few keys have most of the mass. Linformer's matrices are
random, as they are before any training, and say what mixing by itself loses.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np

from numba_sparse_attn import approx, patterns, sparse_attention
from reports.report_tables import markdown_table

from .comparison import bootstrap_interval
from .runs import RESULTS, Job, Results, Row, run_missing

__all__ = ["REPORT", "main", "report_text"]

REPORT = RESULTS.parent / "approximation.md"
FIGURE = RESULTS.parent / "figures" / "approximation.png"
ROWS = RESULTS / "approximation.json"

_N, _HEADS, _HEAD_DIM = 1024, 4, 64
_SIZES = (16, 32, 64, 128, 256, 512, 1024)
_DEVIATIONS = (0.25, 0.5, 1.0, 2.0)
_SEEDS = tuple(range(8))
#: How a method is called and whether it is told the order of time.
_METHODS = ("linformer", "performer", "performer, causal", "performer, not orthogonal")


def _error(method: str, size: int, deviation: float, seed: int, n: int) -> Row:
    """Frobenius norm of the error over that of the exact result."""
    q, k, v = np.random.default_rng(seed).standard_normal((3, _HEADS, n, _HEAD_DIM))
    scale = deviation / np.sqrt(_HEAD_DIM)
    causal = method.endswith("causal")
    pattern = patterns.causal(n) if causal else patterns.full(n)
    exact = sparse_attention(q, k, v, pattern, scale=scale)
    if method == "linformer":
        mix = approx.linformer_projection(n, size, seed=seed).astype(np.float64)
        found = approx.linformer(q, k, v, mix, mix, scale=scale)
    else:
        features = approx.Features.draw(_HEAD_DIM, size, seed=seed, orthogonal="not" not in method)
        found = approx.performer(q, k, v, features, causal=causal, scale=scale)
    return {"error": float(np.linalg.norm(found - exact) / np.linalg.norm(exact))}


def _jobs(quick: bool) -> Iterator[Job]:
    n, sizes, seeds = (128, _SIZES[:2], _SEEDS[:2]) if quick else (_N, _SIZES, _SEEDS)
    for method, deviation, size, seed in product(_METHODS, _DEVIATIONS, sizes, seeds):
        key = {"method": method, "tokens": n, "size": size, "deviation": deviation, "seed": seed}
        yield Job(key, 1.0, partial(_error, method, size, deviation, seed, n))


def _cell(rows: Sequence[Row], **wanted: object) -> tuple[float, float, float]:
    return bootstrap_interval(
        [row["error"] for row in rows if all(row[name] == value for name, value in wanted.items())]
    )


def report_text() -> str:
    """The page, from the rows."""
    rows = json.loads(ROWS.read_text("utf-8"))["rows"]
    parts = [
        "# Approximations beside exact attention",
        "Made by `python -m reports.scenarios.approximation --report` from `results/approximation.json`; do "
        f"not edit. {_N} tokens, {_HEADS} heads of {_HEAD_DIM}, normal draws. The error is the Frobenius "
        "norm of the difference to softmax attention over that of softmax attention itself; with nothing "
        f"but zeros for a result it is 1. Means of {len(_SEEDS)} draws, in brackets 95 % bootstrap intervals "
        "of the mean.",
        "![The error falls with the number of features, the slower the larger the scores are]"
        "(figures/approximation.png)",
    ]
    for method in _METHODS:
        what = "mixtures of keys" if method == "linformer" else "features"
        lines = []
        for size in _SIZES:
            cells = [_cell(rows, method=method, size=size, deviation=deviation) for deviation in _DEVIATIONS]
            lines.append([str(size), *(f"{mean:.3g} [{low:.3g}, {high:.3g}]" for mean, low, high in cells)])
        header = [what, *(f"scores of deviation {deviation:g}" for deviation in _DEVIATIONS)]
        parts += [f"## {method[:1].upper()}{method[1:]}", markdown_table(header, lines)]
    return "\n\n".join(parts) + "\n"


def _draw() -> None:
    from reports.drawing import COLORS, LINES, MARKERS, logarithmic, new_figure, save

    rows = json.loads(ROWS.read_text("utf-8"))["rows"]
    figure, axes = new_figure(10.0, 2.8, len(_METHODS))
    for axis, method in zip(axes, _METHODS, strict=True):
        for look, deviation in enumerate(_DEVIATIONS):
            cells = np.array([_cell(rows, method=method, size=size, deviation=deviation) for size in _SIZES])
            style = {"color": COLORS[look], "linestyle": LINES[look], "marker": MARKERS[look]}
            axis.plot(_SIZES, cells[:, 0], markersize=4, label=f"{deviation:g}", **style)
            axis.fill_between(_SIZES, cells[:, 1], cells[:, 2], color=COLORS[look], alpha=0.2, linewidth=0)
        axis.set(xscale="log", yscale="log", title=method)
        axis.set_xlabel("mixtures of keys" if method == "linformer" else "features")
        logarithmic(axis.xaxis)
        logarithmic(axis.yaxis)
    axes[0].set_ylabel("error over exact")
    axes[0].legend(title="deviation of scores", fontsize=7, title_fontsize=7)
    save(figure, FIGURE)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m reports.scenarios.approximation")
    add = parser.add_argument
    add("--quick", action="store_true", help="short sequences, two sizes, two draws")
    add("--output", type=Path, help="results file")
    add("--report", action="store_true", help="write the page and its figure")
    add("--check", action="store_true", help="change nothing; fail if the page is stale")
    options = parser.parse_args(arguments)
    if options.check:
        return int(REPORT.read_text("utf-8") != report_text())
    if options.report:
        _draw()
        REPORT.write_text(report_text(), "utf-8")
        return 0
    usual = RESULTS / "quick" / ROWS.name if options.quick else ROWS
    facts = {"name": "none: normal draws", "sha256": ""}
    results = Results(options.output or usual, "approximation", facts)
    run_missing(list(_jobs(options.quick)), results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
