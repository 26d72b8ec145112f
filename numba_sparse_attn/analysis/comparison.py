"""Patterns side by side on one's own queries, keys and values: what each costs and what it loses."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..errors import PatternError, ShapeError
from ..patterns.catalogue import CATALOGUE
from ..patterns.heads import HeadPatterns
from ..planner import make_plan
from ._inputs import AnyPattern, Call, Floats, check_whole, pairs_of
from .cost import median_seconds, named
from .loss import Overlap, relative_errors
from .table import Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Comparison", "compare", "pareto_front"]


class Comparison(Table):
    """What patterns cost and lose, a row a pattern, by error; made by :func:`compare`.

    Attributes
    ----------
    rows : list of dict
        ``pattern``, ``pairs``, ``density``, ``forward_flops``; means over queries of ``recall``, ``kl``,
        ``total_variation``, ``entropy`` and ``information_gap``; ``recall_low``, the smallest of a query;
        ``error`` of the whole output and ``error_high`` of the worst block of queries; ``seconds`` if
        measured; ``front``, whether no other pattern has fewer pairs and a smaller error.
    skipped : dict
        Patterns of the catalogue that were left out, and why.
    """

    columns = {
        "pattern": ("pattern", ""),
        "front": ("front", ""),
        "pairs": ("pairs", ","),
        "density": ("density", ".2%"),
        "error": ("error", ".3g"),
        "error_high": ("worst block", ".3g"),
        "recall": ("recall", ".4f"),
        "recall_low": ("lowest", ".4f"),
        "kl": ("KL", ".3g"),
        "total_variation": ("TV", ".3g"),
        "information_gap": ("gap", ".3g"),
        "seconds": ("seconds", ".3g"),
    }

    def __init__(self, rows: Sequence[dict[str, Any]], skipped: dict[str, str]) -> None:
        super().__init__(rows)
        self.skipped = dict(skipped)

    @property
    def front(self) -> list[str]:
        """Names of the patterns on the Pareto front, the cheapest first."""
        return [row["pattern"] for row in sorted(self.rows, key=lambda row: row["pairs"]) if row["front"]]

    def plot(self, ax: Axes | None = None) -> Axes:
        """Error against pairs, by :func:`numba_sparse_attn.plot.plot_pareto`."""
        from ..plot import plot_pareto

        return plot_pareto(self, ax)


def pareto_front(costs: npt.ArrayLike, errors: npt.ArrayLike) -> npt.NDArray[np.bool_]:
    """Which points no other point beats: none is at most as dear and as wrong, and better in one of both.

    Points with a NaN are never on the front; equal points are on it together.

    Examples
    --------
    >>> pareto_front([1, 2, 3, 3], [0.9, 0.5, 0.6, 0.1]).tolist()
    [True, True, False, True]
    """
    cost, error = np.asarray(costs, np.float64), np.asarray(errors, np.float64)
    no_worse = (cost[:, None] <= cost) & (error[:, None] <= error)
    better = (cost[:, None] < cost) | (error[:, None] < error)
    beaten = (no_worse & better).any(axis=0)
    found: npt.NDArray[np.bool_] = ~beaten & ~np.isnan(cost) & ~np.isnan(error)
    return found


def compare(
    q: Any,
    k: Any,
    v: Any,
    patterns: Any = None,
    *,
    baseline: Any = None,
    scale: float | None = None,
    block: int = 128,
    engine: str = "auto",
    seconds: float = 0.0,
) -> Comparison:
    """What patterns would cost and lose in place of a baseline, on given queries, keys and values.

    Parameters
    ----------
    q, k, v
        As :func:`numba_sparse_attn.sparse_attention` takes them; errors are those of the patterns and not
        of the arithmetic, since everything is computed in float64.
    patterns : optional
        One pattern, a list of them, or a mapping from names to them. If not given, the whole catalogue in
        its usual settings for that length, cut to the baseline.
    baseline : optional
        What they are compared with; all pairs if not given.
    scale : float, optional
    block : int
        Queries of a block of which the worst is reported.
    engine : str
        Engine whose forward pass is timed, on q, k and v as they are.
    seconds : float
        How long to time each; 0 leaves the clock out of it.

    Returns
    -------
    Comparison
        Prints as a table; `rows`, `to_csv`, `front` and `plot` have more.

    Examples
    --------
    >>> import numpy as np, numba_sparse_attn as nsa
    >>> rng = np.random.default_rng(0)
    >>> q, k, v = rng.standard_normal((3, 2, 256, 16))
    >>> p = nsa.patterns
    >>> table = nsa.analysis.compare(q, k, v, {"near": p.sliding_window(256, 8), "all": p.full(256)})
    >>> table.front
    ['near', 'all']
    >>> [round(row["recall"], 3) for row in table.rows]
    [1.0, 0.067]
    """
    call = Call.of(q, k, v, scale)
    block = check_whole("block", block, low=1)
    dense = call.pattern(baseline)
    skipped: dict[str, str] = {}
    if patterns is None:
        candidates = _catalogue(call, dense if baseline is not None else None, skipped)
    else:
        candidates = {name: call.pattern(pattern) for name, pattern in named(patterns).items()}
    exact = call.moments(dense, outputs=True)
    rows: list[dict[str, Any]] = []
    for name, pattern in candidates.items():
        found = call.moments(pattern, outputs=True)
        overlap = Overlap.from_sums(call, pattern, dense, found.log_sums, exact.log_sums)
        pairs = pairs_of(call, pattern)
        sizes = call.sizes
        square = sizes.batch * sizes.heads * sizes.n_q * sizes.n_k
        row: dict[str, Any] = {
            "pattern": name,
            "pairs": pairs,
            "density": pairs / square if square else 0.0,
            "forward_flops": 2 * pairs * (sizes.head_dim + sizes.value_dim),
            "recall": _mean(overlap.recall),
            "recall_low": float(np.fmin.reduce(overlap.recall, axis=None, initial=math.inf)),
            "kl": _mean(overlap.kl),
            "total_variation": _mean(overlap.total_variation),
            "entropy": _mean(found.entropy),
            "information_gap": _mean(exact.entropy - found.entropy),
            "error": _norm_ratio(found.out, exact.out),
            "error_high": float(relative_errors(found.out, exact.out, block).max(initial=0.0)),
        }
        if seconds > 0:
            row |= _timed(q, k, v, call, pattern, engine, seconds)
        rows.append(row)
    chosen = pareto_front([row["pairs"] for row in rows], [row["error"] for row in rows])
    for row, on_front in zip(rows, chosen, strict=True):
        row["front"] = bool(on_front)
    return Comparison(sorted(rows, key=lambda row: (row["error"], row["pairs"])), skipped)


def _catalogue(call: Call, baseline: AnyPattern | None, skipped: dict[str, str]) -> dict[str, AnyPattern]:
    """Every named pattern that has a usual setting for the call's shape, inside of the baseline."""
    shape = call.sizes.n_q, call.sizes.n_k
    found: dict[str, AnyPattern] = {}
    for name, entry in CATALOGUE.items():
        try:
            made = entry.build(**entry.scaled(max(shape)))
        except PatternError as error:
            skipped[name] = f"no usual setting for {max(shape)} tokens: {error}"
            continue
        if made.shape != shape:
            skipped[name] = f"its usual setting is of shape {made.shape}, not {shape}"
            continue
        if isinstance(made, HeadPatterns):
            if call.sizes.heads % len(made):
                skipped[name] = f"it has {len(made)} heads in turns, and there are {call.sizes.heads}"
                continue
            made = HeadPatterns(made.members, np.resize(made.member_of, call.sizes.heads))
        found[name] = made if baseline is None else made & baseline
    if not found:
        raise ShapeError(
            f"{shape[0]} queries and {shape[1]} keys for the patterns of the catalogue",
            "as many queries as keys",
            "pass patterns",
        )
    return found


def _timed(
    q: Any, k: Any, v: Any, call: Call, pattern: AnyPattern, engine: str, seconds: float
) -> dict[str, float]:
    """Seconds of the user's engine on the user's arrays."""
    sizes = call.sizes
    plan = make_plan(
        pattern,
        heads=sizes.heads,
        kv_heads=sizes.kv_heads,
        head_dim=sizes.head_dim,
        value_dim=sizes.value_dim,
        dtype=sizes.dtype,
        scale=call.scale,
        engine=engine,
        gpu=None,
        order="auto",
    )
    return median_seconds({"seconds": lambda: plan(q, k, v)}, seconds)


def _mean(values: Floats) -> float:
    """Over queries for which there is a value."""
    some = values[~np.isnan(values)]
    return float(some.mean()) if some.size else math.nan


def _norm_ratio(out: Floats, exact: Floats) -> float:
    wrong, size = float(np.linalg.norm(out - exact)), float(np.linalg.norm(exact))
    return wrong / size if size else (math.inf if wrong else 0.0)
