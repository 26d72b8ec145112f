"""What patterns cost: by counting, and by the clock."""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import api
from ..errors import ArgumentError, PatternError
from ..formats.census import count_blocks
from ..formats.tiles import TILE
from ..patterns.convert import as_pattern
from ..patterns.full import full
from ..patterns.heads import HeadPatterns
from ..patterns.pattern import Pattern
from ..planner import Plan
from ._inputs import AnyPattern, members_of
from .table import Table

__all__ = ["Complexity", "complexity"]

#: Most measurements of a contender, and fewest if there is time for more than one.
_MOST, _FEWEST = 50, 3


class Complexity(Table):
    """Theory beside measurement, a row a pattern; made by :func:`complexity`."""

    columns = {
        "pattern": ("pattern", ""),
        "n_q": ("queries", ","),
        "pairs": ("pairs", ","),
        "density": ("density", ".2%"),
        "forward_flops": ("flops", ".3g"),
        "least_bytes": ("bytes", ".3g"),
        "dense_weight_bytes": ("dense weights", ".3g"),
        "csr_bytes": ("as CSR", ".3g"),
        "plan_bytes": ("plan", ".3g"),
        "peak_bytes": ("peak", ".3g"),
        "seconds": ("seconds", ".3g"),
        "dense_seconds": ("dense", ".3g"),
        "speedup": ("speed-up", ".2f"),
        "efficiency": ("efficiency", ".2f"),
    }

    @property
    def exponents(self) -> dict[str, float]:
        """How quantities grow with the number of queries: p of ``n ** p``, fitted to all rows.

        Of use where the rows are one pattern at several lengths; empty for a single length.
        """
        lengths = np.array(self.column("n_q"), np.float64)
        names = ("pairs", "forward_flops", "least_bytes", "plan_bytes", "peak_bytes", "seconds")
        if len(np.unique(lengths)) < 2:
            return {}
        values = {name: self.column(name) for name in names if all(name in row for row in self.rows)}
        return {
            name: float(np.polyfit(np.log(lengths), np.log(column), 1)[0])
            for name, column in values.items()
            if lengths.min() > 0 and min(column) > 0
        }


def complexity(
    patterns: Any,
    *,
    heads: int = 1,
    kv_heads: int | None = None,
    head_dim: int = 64,
    value_dim: int | None = None,
    dtype: Any = "float32",
    engine: str = "auto",
    seconds: float = 0.3,
    dense: bool = True,
) -> Complexity:
    """Pairs, operations, bytes and memory of patterns, and the time that an engine takes for them.

    Counted: `pairs` of all heads; `forward_flops` and `backward_flops`, the useful ones; `least_bytes`, q,
    k, v and out moved once; `gathered_bytes`, a key and a value moved for every pair;
    `dense_weight_bytes`, what a dense implementation holds; `csr_bytes`, the pairs as SciPy would store
    them; `tiles`, of 128 x 128. Read off: `plan_bytes`, what our plan holds. Measured, forward, on
    normally distributed NumPy arrays: `peak_bytes`, the most that a call holds of NumPy's memory, its
    result included; `seconds` and `dense_seconds`, whose ratio is the `speedup`. `efficiency` is the
    speed-up over the one that fewer pairs promise.

    Parameters
    ----------
    patterns
        One pattern, a list of them, or a mapping from names to them. Lengths may differ.
    heads, kv_heads, head_dim, value_dim, dtype, engine
        As in :func:`numba_sparse_attn.plan`.
    seconds : float
        How long to measure each; 0 counts only.
    dense : bool
        Whether to measure the same engine on all pairs beside each pattern.

    Returns
    -------
    Complexity
        Prints as a table; `rows`, `to_csv` and `exponents` have more.

    Examples
    --------
    >>> import numba_sparse_attn as nsa
    >>> windows = [nsa.patterns.sliding_window(n, 32, causal=True) for n in (1024, 2048, 4096)]
    >>> table = nsa.analysis.complexity(windows, seconds=0)
    >>> table.column("pairs")
    [33264, 67056, 134640]
    >>> round(table.exponents["pairs"], 2)
    1.01
    """
    if seconds < 0:
        raise ArgumentError(f"seconds={seconds!r}", "0 or more", "pass 0 to count only")
    rows = []
    for name, pattern in named(patterns).items():
        plan = api.plan(
            pattern,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            value_dim=value_dim,
            dtype=dtype,
            engine=engine,
        )
        row = _counted(name, pattern, plan)
        if seconds > 0:
            runners = {"seconds": _runner(plan)}
            if dense:
                n_q, n_k = pattern.shape
                everything = api.plan(
                    full(n_q, n_keys=n_k),
                    heads=heads,
                    kv_heads=plan.kv_heads,
                    head_dim=head_dim,
                    value_dim=plan.value_dim,
                    dtype=dtype,
                    engine=engine,
                )
                runners["dense_seconds"] = _runner(everything)
            row |= {"peak_bytes": _peak_bytes(runners["seconds"]), **median_seconds(runners, seconds)}
            if dense:
                row["speedup"] = row["dense_seconds"] / row["seconds"]
                row["efficiency"] = row["speedup"] * row["density"]
        rows.append(row)
    return Complexity(rows)


def named(patterns: Any) -> dict[str, AnyPattern]:
    """Patterns by name; equal names are numbered."""
    if isinstance(patterns, Mapping):
        return {str(name): as_pattern(value) for name, value in patterns.items()}
    many = patterns if isinstance(patterns, list | tuple) else [patterns]
    if not many:
        raise PatternError("no pattern", "at least one", "pass a pattern, a list or a mapping")
    found: dict[str, AnyPattern] = {}
    for value in many:
        made = as_pattern(value)
        name = " + ".join(member.name for member in members_of(made))
        count = 1 + sum(other == name or other.startswith(f"{name} #") for other in found)
        found[name if count == 1 else f"{name} #{count}"] = made
    return found


def median_seconds(runners: Mapping[str, Callable[[], object]], seconds: float) -> dict[str, float]:
    """Medians of calls in turns, A B A B, so that a slow moment of the machine hits all of them."""
    for run in runners.values():
        run()  # compiles, and touches all memory
    taken: dict[str, list[float]] = {name: [] for name in runners}
    deadline = time.perf_counter() + seconds * len(runners)
    for turn in range(_MOST):
        if turn >= _FEWEST and time.perf_counter() >= deadline:
            break
        for name, run in runners.items():
            start = time.perf_counter()
            run()
            taken[name].append(time.perf_counter() - start)
    return {name: float(np.median(samples)) for name, samples in taken.items()}


def _counted(name: str, pattern: AnyPattern, plan: Plan) -> dict[str, Any]:
    n_q, n_k = pattern.shape
    width, size = plan.head_dim + plan.value_dim, plan.dtype.itemsize
    members = members_of(pattern)
    # One pattern serves all heads; HeadPatterns have one for each head of each batch element.
    own = pattern.member_of if isinstance(pattern, HeadPatterns) else np.zeros(1, np.int32)
    index = np.broadcast_to(own, (*own.shape[:-1], plan.heads)).reshape(-1)
    uses = np.bincount(index, minlength=len(members))
    pairs = int(np.dot(uses, [member.nnz for member in members]))
    batch = len(index) // plan.heads
    square = batch * plan.heads * n_q * n_k
    stored = sum(member.nnz * _index_size(n_k) + (n_q + 1) * 8 for member in members)
    return {
        "pattern": name,
        "n_q": n_q,
        "n_k": n_k,
        "heads": plan.heads,
        "pairs": pairs,
        "density": pairs / square if square else 0.0,
        "tiles": int(np.dot(uses, [_tiles(member) for member in members])),
        "forward_flops": 2 * pairs * width,
        "backward_flops": 2 * pairs * (3 * plan.head_dim + 2 * plan.value_dim),
        "least_bytes": batch * size * width * (plan.heads * n_q + plan.kv_heads * n_k),
        "gathered_bytes": pairs * width * size,
        "dense_weight_bytes": square * size,
        "csr_bytes": stored,
        "plan_bytes": plan.nbytes,
        "engine": plan.engine,
    }


def _tiles(pattern: Pattern) -> int:
    if pattern.regular:
        return int(pattern.tiles().count)
    rows = pattern.rows()
    return int(count_blocks(rows.indptr, rows.indices, rows.shape[1], TILE, TILE))


def _index_size(n_k: int) -> int:
    return 4 if n_k <= np.iinfo(np.int32).max else 8


def _runner(plan: Plan) -> Callable[[], object]:
    """A call of a plan on arrays of its own."""
    n_q, n_k = plan.pattern.shape
    lead = plan.pattern.member_of.shape[:-1] if isinstance(plan.pattern, HeadPatterns) else ()
    rng = np.random.default_rng(0)

    def normal(heads: int, n: int, width: int) -> npt.NDArray[Any]:
        return rng.standard_normal((*lead, heads, n, width), np.float32).astype(plan.dtype)

    q = normal(plan.heads, n_q, plan.head_dim)
    k, v = normal(plan.kv_heads, n_k, plan.head_dim), normal(plan.kv_heads, n_k, plan.value_dim)
    return lambda: plan(q, k, v)


def _peak_bytes(run: Callable[[], object]) -> int:
    """What a call holds at most, as NumPy tells ``tracemalloc``."""
    run()  # what is kept from call to call is the plan's
    tracing = tracemalloc.is_tracing()
    if not tracing:
        tracemalloc.start()
    try:
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        result = run()
        return max(tracemalloc.get_traced_memory()[1] - before, getattr(result, "nbytes", 0))
    finally:
        if not tracing:
            tracemalloc.stop()
