"""Benchmark rows as the tables of the report: short ones, every line with the mark of its source."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.rows import Row, on_gpu, table_of
from benchmarks.tables import format_seconds
from reports.report_tables import markdown_table

from .evidence import MissingError, bench_source
from .ledger import Ledger

__all__ = ["attention_table", "goal_table", "lost", "lost_table"]


def _seconds(seconds: float) -> str:
    return format_seconds(seconds).replace("us", "µs")


def goal_table(found: Sequence[Row], ledger: Ledger) -> str:
    """Every goal, what was measured, and whether that is enough."""
    lines = []
    for row in found:
        for goal in row.get("goals", ()):
            measure, relation, bound = goal["goal"].rsplit(" ", 2)
            value = f"{goal['value']:.3g}"
            mark = ledger.note(bench_source(row), {f"{row['contender']} {measure}": value})
            bounded = f"{measure} {'≥' if relation == '>=' else '≤'} {bound}"
            outcome = "reached" if goal["met"] else "**missed**"
            lines.append([f"`{row['case']}`{mark}", bounded, value, outcome])
    if not lines:
        raise MissingError("no row of this machine has a goal")
    return markdown_table(["case", "goal", "measured", ""], lines)


def attention_table(found: Sequence[Row], tables: Sequence[str], ledger: Ledger) -> str:
    """A line a case: ours, beside our dense mode, the fastest peer and the fastest dense one.

    The factors are those by which ours is faster; below 1 it is slower, which is set in bold.
    """
    gpu = any(map(on_gpu, found))
    unit, scale = ("TFLOP/s", 1e-3) if gpu else ("GFLOP/s", 1.0)
    lines = []
    for row in found:
        if row["kind"] != "attention" or "speedup" not in row or table_of(row) not in tables:
            continue
        shown = {"density": _share(row["density"]), "seconds": _seconds(row["seconds"])}
        shown["gflops"] = f"{row['gflops'] * scale:.3g} {unit}"
        cells = [shown["density"], shown["seconds"], shown["gflops"].split()[0]]
        for field, ratio in (("speedup_dense", "{:.2f}"), ("efficiency", "{:.0%}")):
            cells.append(shown.setdefault(field, ratio.format(row[field])) if field in row else "")
        for field in ("speedup", "speedup_all_pairs"):
            name, ratio = min(row.get(field, {}).items(), key=lambda item: item[1], default=("", 0.0))
            if name:
                shown[f"{field}.{name}"] = f"{ratio:.3g}"
            times = f"**{ratio:.3g}**" if ratio < 1.0 else f"{ratio:.3g}"
            cells.append(f"{times} `{name}`" if name else "")
        mark = ledger.note(
            bench_source(row), {f"{row['contender']} {name}": text for name, text in shown.items()}
        )
        lines.append([f"`{row['case']}`{mark}", *cells])
    if not lines:
        raise MissingError(f"no rows of the tables {', '.join(tables)}")
    header = ["case", "density", "ours", unit, "dense", "of ideal", "fastest peer", "all pairs"]
    filled = [number for number in range(len(header)) if any(line[number] for line in lines)]
    return markdown_table(
        [header[number] for number in filled], [[line[number] for number in filled] for line in lines]
    )


def _share(share: float) -> str:
    return f"{share:.1%}" if share >= 0.01 else f"{100 * share:.2g}%"


def lost(found: Sequence[Row], field: str = "speedup") -> tuple[int, list[tuple[float, Row, str]]]:
    """How many comparisons there are, and those that we lose, the worst first."""
    ratios = [(ratio, row, peer) for row in found for peer, ratio in row.get(field, {}).items()]
    slower = [item for item in ratios if item[0] < 1.0]
    return len(ratios), sorted(slower, key=lambda item: (item[0], item[1]["case"]))


def lost_table(found: Sequence[Row], ledger: Ledger, field: str = "speedup") -> str:
    """Every comparison that we lose."""
    _, slower = lost(found, field)
    if not slower:
        raise MissingError(f"nothing is lost by {field}: the text must not announce a table of it")
    lines = []
    for ratio, row, peer in slower:
        shown = f"{1 / ratio:.2f}"
        mark = ledger.note(bench_source(row), {f"{row['contender']} 1 / {field}.{peer}": shown})
        lines.append([f"`{row['case']}`{mark}", f"`{peer}`", _seconds(row["seconds"]), shown])
    return markdown_table(["case", "faster", "ours", "its lead"], lines)
