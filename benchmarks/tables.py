"""Rows as text: aligned columns, units that people read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from .rows import Row, on_gpu

__all__ = [
    "format_bytes",
    "format_rate",
    "format_seconds",
    "format_table",
    "goal_lines",
    "remarks",
    "result_tables",
]


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


def _spread(row: Row) -> str:
    return f"{(row['seconds_high'] - row['seconds_low']) / row['seconds'] / 2:.0%}"


def remarks(row: Row) -> list[str]:
    """How a row stands beside the others of its turns, and what is to be known about it."""
    found = [f"{ratio:.2f}x {peer}" for peer, ratio in row.get("speedup", {}).items()]
    found += [
        f"{ratio:.2f}x {peer} on all pairs, {ratio * row['density']:.0%} of ideal"
        for peer, ratio in row.get("speedup_all_pairs", {}).items()
    ]
    found += [f"{ratio:.2f}x the time of {other}" for other, ratio in row.get("slowdown", {}).items()]
    if row.get("over_best", 1.0) > 1.0:
        best = min(row["alternatives"], key=row["alternatives"].__getitem__)
        found.append(f"{row['over_best']:.2f}x the time of {best}")
    if "joules" in row:
        found.append(f"{row['joules']:.3g} J at {row['watts']:.0f} W")
    if "share_of_gather" in row:
        found.append(f"{row['share_of_gather']:.0%} of a gather")
    if row.get("computes"):
        found.append(f"computes {row['computes']}")
    if row.get("clock") == "host":
        found.append("timed by the host")
    if row.get("host_seconds", 0.0) > row["seconds"]:
        found.append("the host is slower")
    if not row.get("within_budget", True):
        found.append("less exact than our budget")
    return found


def _shown(rows: list[Row]) -> list[Row]:
    """Our own dense mode is a column, not a line, unless there is something wrong with it."""
    return [row for row in rows if row["status"] != "measured" or not row["contender"].endswith("-dense")]


def _attention(rows: list[Row]) -> str:
    def line(row: Row) -> list[str]:
        if row["status"] != "measured":
            return [row["case"], row["contender"], *([""] * 5), f"{row['status']}: {row['reason']}"]
        return [
            row["case"],
            row["contender"],
            f"{1 - row['density']:.1%}" if "density" in row else "",
            format_seconds(row["seconds"]),
            _spread(row),
            f"{row['gflops']:.0f}",
            f"{row['speedup_dense']:.2f}x" if "speedup_dense" in row else "",
            ", ".join(remarks(row)),
        ]

    header = ["case", "by", "sparsity", "time", "+-", "GFLOP/s", "over dense", "over peers"]
    return format_table(header, map(line, _shown(rows)))


def _gpu_attention(rows: list[Row]) -> str:
    def line(row: Row) -> list[str]:
        if row["status"] != "measured":
            return [row["case"], row["contender"], *([""] * 8), f"{row['status']}: {row['reason']}"]
        return [
            row["case"],
            row["contender"],
            f"{1 - row['density']:.1%}" if "density" in row else "",
            format_seconds(row["seconds"]),
            _spread(row),
            format_seconds(row["host_seconds"]),
            f"{row['gflops'] / 1e3:.3g}" if row["gflops"] else "",
            _number(row, "gpairs_per_second", "{:.3g}"),
            f"{row['speedup_dense']:.2f}x" if "speedup_dense" in row else "",
            format_bytes(row["peak_bytes"]) if "peak_bytes" in row else "",
            ", ".join(remarks(row)),
        ]

    measures = ["sparsity", "time", "+-", "host", "TFLOP/s", "Gpair/s", "over dense", "memory", ""]
    return format_table(["case", "by", *measures], map(line, _shown(rows)))


def format_rate(row: Row) -> str:
    """What the machine itself reaches, in the unit of the case."""
    if "gflops" in row:
        rate = row["gflops"]
        return f"{rate / 1e3:.0f} TFLOP/s" if rate >= 10_000 else f"{rate:.0f} GFLOP/s"
    return _number(row, "gbytes_per_second", "{:.0f} GB/s")


def _rates(rows: list[Row]) -> str:
    def line(row: Row) -> list[str]:
        if row["status"] != "measured":
            return [row["case"], row["contender"], "", "", f"{row['status']}: {row['reason']}"]
        return [row["case"], row["contender"], format_seconds(row["seconds"]), _spread(row), format_rate(row)]

    return format_table(["case", "by", "time", "+-", "rate"], map(line, rows))


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


def _select(rows: list[Row]) -> str:
    def line(row: Row) -> list[str]:
        if row["status"] != "measured":
            return [row["case"], row["pattern"], "", "", f"{row['status']}: {row['reason']}", "", ""]
        sparsity = f"{1 - row['density']:.1%}"
        # On a GPU "seconds" are those of selecting, planning and attention in one call.
        times = [row.get("select_seconds", row["seconds"]), row["attention_seconds"]]
        whole = format_seconds(row["seconds"]) if "select_seconds" in row else ""
        beside = ", ".join(f"{ratio:.2f}x {name}" for name, ratio in row.get("speedup", {}).items())
        return [row["case"], row["pattern"], sparsity, *map(format_seconds, times), whole, beside]

    heads = ["case", "selection", "sparsity", "to select", "attention", "one call of both", "speed"]
    return format_table(heads, map(line, rows))


def _cold(rows: list[Row]) -> str:
    def line(row: Row) -> list[str]:
        if row["status"] != "measured":
            return [row["case"], row["pattern"], "", "", f"{row['status']}: {row['reason']}"]
        times = (row[name] for name in ("import_seconds", "first_call_seconds", "seconds"))
        return [row["case"], row["pattern"], *map(format_seconds, times)]

    return format_table(["case", "pattern", "imports", "first call", "first result"], map(line, rows))


def _group(row: Row) -> Callable[[list[Row]], str]:
    """The table that a row belongs to."""
    tables = {
        "attention": _gpu_attention if on_gpu(row) else _attention,
        "build": _build,
        "memory": _memory,
        "cold": _cold,
        "select": _select,
    }
    return tables.get(row["kind"], _rates)


def result_tables(rows: Sequence[Row]) -> str:
    """All rows of a run, a table for each kind of measurement."""
    groups: dict[Callable[[list[Row]], str], list[Row]] = {}
    for row in rows:
        groups.setdefault(_group(row), []).append(row)
    return "\n\n".join(table(chosen) for table, chosen in groups.items())


def goal_lines(rows: Iterable[Row]) -> list[str]:
    """One line a goal that was measured, the missed ones marked."""
    return [
        f"{'reached' if goal['met'] else 'MISSED '}  {row['case']}: {goal['goal']} ({goal['value']:.3g})"
        for row in rows
        for goal in row.get("goals", ())
    ]
