"""Rows as text: aligned columns, units that people read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from .rows import Row

__all__ = ["format_bytes", "format_seconds", "format_table", "goal_lines", "result_tables"]


def format_seconds(seconds: float) -> str:
    """Three digits and a unit.

    >>> format_seconds(0.01234), format_seconds(2.5), format_seconds(4.2e-5)
    ('12.3 ms', '2.5 s', '42 us')
    """
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= size or unit == "us":
            return f"{seconds / size:.3g} {unit}"
    raise AssertionError("the loop always returns")


def format_bytes(count: float) -> str:
    """Three digits and a decimal unit.

    >>> format_bytes(999), format_bytes(1_250_000)
    ('999 B', '1.25 MB')
    """
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.0f} B"


def format_table(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """Columns as wide as their widest entry; the first two to the left, numbers to the right.

    >>> print(format_table(["case", "by", "time"], [["a", "cpu", "1 ms"]]))
    case  by   time
    ----  ---  ----
    a     cpu  1 ms
    """
    table = [list(header), *map(list, lines)]
    widths = [max(len(line[column]) for line in table) for column in range(len(header))]
    table.insert(1, ["-" * width for width in widths])
    text = []
    for line in table:
        cells = [
            cell.ljust(width) if column < 2 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        text.append("  ".join(cells).rstrip())
    return "\n".join(text)


def _number(row: Row, name: str, form: str) -> str:
    value = row.get(name)
    return "" if value is None else form.format(value)


def _attention(rows: list[Row]) -> str:
    def line(row: Row) -> list[str]:
        if row["status"] != "measured":
            return [row["case"], row["contender"], *([""] * 5), f"{row['status']}: {row['reason']}"]
        remarks = [f"{ratio:.2f}x {peer}" for peer, ratio in row.get("speedup", {}).items()]
        if not row.get("within_budget", True):
            remarks.append("less exact than our budget")
        spread = (row["seconds_high"] - row["seconds_low"]) / row["seconds"] / 2
        return [
            row["case"],
            row["contender"],
            f"{1 - row['density']:.1%}" if "density" in row else "",
            format_seconds(row["seconds"]),
            f"{spread:.0%}",
            f"{row['gflops']:.0f}",
            f"{row['speedup_dense']:.2f}x" if "speedup_dense" in row else "",
            ", ".join(remarks),
        ]

    # Our own dense mode is a column, not a line, unless there is something wrong with it.
    shown = [row for row in rows if row["status"] != "measured" or not row["contender"].endswith("-dense")]
    header = ["case", "by", "sparsity", "time", "+-", "GFLOP/s", "over dense", "over peers"]
    return format_table(header, map(line, shown))


def _build(rows: list[Row]) -> str:
    def line(row: Row) -> list[str]:
        if row["status"] != "measured":
            return [row["case"], row["pattern"], "", "", "", f"{row['status']}: {row['reason']}"]
        extra = row["peak_extra_bytes"]
        return [
            row["case"],
            row["pattern"],
            f"{row['tiles']:,}",
            format_bytes(row["tiles_bytes"]),
            "" if extra is None else format_bytes(extra),
            format_seconds(row["seconds"]),
        ]

    return format_table(["case", "pattern", "tiles", "tile memory", "peak memory", "time"], map(line, rows))


def _memory(rows: list[Row]) -> str:
    def line(row: Row) -> list[str]:
        if row["status"] != "measured" or row["peak_extra_bytes"] is None:
            return [row["case"], row["pattern"], "", "", f"{row['status']}: {row['reason']}"]
        return [
            row["case"],
            row["pattern"],
            format_bytes(row["peak_extra_bytes"]),
            f"{row['peak_over_results']:.2f}",
            format_bytes(row["square_bytes"]),
        ]

    header = ["case", "pattern", "peak beyond inputs", "over results and tiles", "n x n would be"]
    return format_table(header, map(line, rows))


def _cold(rows: list[Row]) -> str:
    def line(row: Row) -> list[str]:
        if row["status"] != "measured":
            return [row["case"], row["pattern"], "", "", f"{row['status']}: {row['reason']}"]
        times = (row[name] for name in ("import_seconds", "first_call_seconds", "seconds"))
        return [row["case"], row["pattern"], *map(format_seconds, times)]

    return format_table(["case", "pattern", "imports", "first call", "first result"], map(line, rows))


_TABLES = {"attention": _attention, "rate": _attention, "build": _build, "memory": _memory, "cold": _cold}


def result_tables(rows: Sequence[Row]) -> str:
    """All rows of a run, a table for each kind of measurement."""
    parts = []
    for kinds in (("rate", "attention"), ("build",), ("memory",), ("cold",)):
        chosen = [row for row in rows if row["kind"] in kinds]
        if chosen:
            parts.append(_TABLES[kinds[0]](chosen))
    return "\n\n".join(parts)


def goal_lines(rows: Iterable[Row]) -> list[str]:
    """One line a goal that was measured, the missed ones marked."""
    return [
        f"{'reached' if goal['met'] else 'MISSED '}  {row['case']}: {goal['goal']} ({goal['value']:.3g})"
        for row in rows
        for goal in row.get("goals", ())
    ]
