"""Benchmark rows as the tables of the report: short ones, every line with the mark of its source."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence

from benchmarks.rows import Row, on_gpu
from benchmarks.tables import format_bytes, format_seconds
from reports.report_tables import markdown_table

from .evidence import MissingError, bench_source, field_name
from .ledger import UNBREAKABLE, Ledger

__all__ = ["attention_table", "goal_table", "lost", "lost_table", "seconds", "times"]


def seconds(value: float) -> str:
    """Three digits and a unit.

    >>> seconds(4.2e-5).split()
    ['42', 'µs']
    """
    return format_seconds(value).replace("us", "µs").replace(" ", UNBREAKABLE)


def times(ratio: float) -> str:
    """A factor.

    >>> times(3.1), times(61.94), times(1220.0)
    ('3.10', '61.9', '1,220')
    """
    return f"{ratio:.2f}" if ratio < 10 else f"{ratio:.1f}" if ratio < 100 else f"{ratio:,.0f}"


def _share(share: float) -> str:
    return f"{share:.1%}" if share >= 0.01 else f"{100 * share:.2g}%"


def _measure(name: str, value: float) -> str:
    """A measure of a goal in its unit."""
    if name == "seconds":
        return seconds(value)
    return format_bytes(value).replace(" ", UNBREAKABLE) if name.endswith("bytes") else times(value)


def goal_table(found: Sequence[Row], ledger: Ledger, *, met: bool) -> str:
    """Every goal that was reached, or every one that was missed, and what was measured."""
    lines: list[list[str]] = []
    for row in found:
        for goal in row.get("goals", ()):
            if goal["met"] != met:
                continue
            measure, relation, bound = goal["goal"].rsplit(" ", 2)
            value = _measure(measure, goal["value"])
            noted = measure.replace(" over ", ".")
            mark = ledger.note(bench_source(row), {field_name(row, noted): value})
            what, over, peer = measure.partition(" over ")
            sign = "≥" if relation == ">=" else "≤"
            words = f"{what.replace('_', ' ')}{over}{peer and f'`{peer}`'}"
            bounded = f"{words} {sign} {_measure(measure, float(bound))}"
            lines.append([f"`{row['case']}`{mark}", bounded, value])
    if not lines:
        raise MissingError(f"no goal of this machine was {'reached' if met else 'missed'}")
    return markdown_table(["case", "goal", "measured"], lines)


def attention_table(found: Sequence[Row], globs: Sequence[str], ledger: Ledger) -> str:
    """A line a case with such a name: ours beside our dense mode, the fastest peer and the fastest dense one.

    The factors are those by which ours is faster; below 1 it is slower, which is set in bold.
    """
    gpu = any(map(on_gpu, found))
    unit, scale = ("TFLOP/s", 1e-3) if gpu else ("GFLOP/s", 1.0)
    lines = []
    for row in found:
        named = any(fnmatch.fnmatchcase(row["case"], glob) for glob in globs)
        if row["kind"] != "attention" or "speedup" not in row or not named:
            continue
        shown = {"density": _share(row["density"]), "seconds": seconds(row["seconds"])}
        shown["gflops"] = f"{row['gflops'] * scale:.3g}{UNBREAKABLE}{unit}"
        cells = [shown["density"], shown["seconds"], shown["gflops"].split(UNBREAKABLE)[0]]
        for field, form in (("speedup_dense", times), ("efficiency", "{:.0%}".format)):
            cells.append(shown.setdefault(field, form(row[field])) if field in row else "")
        for field in ("speedup", "speedup_all_pairs"):
            name, ratio = min(row.get(field, {}).items(), key=lambda item: item[1], default=("", 0.0))
            if name:
                shown[f"{field}.{name}"] = times(ratio)
            factor = f"**{times(ratio)}**" if ratio < 1.0 else times(ratio)
            cells.append(f"{factor} `{name}`" if name else "")
        mark = ledger.note(bench_source(row), {field_name(row, name): text for name, text in shown.items()})
        lines.append([f"`{row['case']}`{mark}", *cells])
    if not lines:
        raise MissingError(f"no rows of the cases {', '.join(globs)}")
    header = ["case", "density", "ours", unit, "dense", "of ideal", "fastest peer", "all pairs"]
    filled = [number for number in range(len(header)) if any(line[number] for line in lines)]
    return markdown_table(
        [header[number] for number in filled], [[line[number] for number in filled] for line in lines]
    )


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
        mark = ledger.note(bench_source(row), {field_name(row, f"1 / {field}.{peer}"): shown})
        lines.append([f"`{row['case']}`{mark}", f"`{peer}`", seconds(row["seconds"]), shown])
    return markdown_table(["case", "faster", "ours", "its lead"], lines)
