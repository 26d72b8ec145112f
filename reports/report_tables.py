"""Benchmark rows as Markdown tables and lines; nothing here knows a number that is not in a row."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from benchmarks.roofline import Roofs, roofs_of
from benchmarks.rows import Row, is_peer, on_gpu, table_of
from benchmarks.tables import format_bytes, format_rate, format_seconds

__all__ = [
    "all_pairs_lines",
    "attention_tables",
    "build_table",
    "energy_table",
    "goal_table",
    "lost_lines",
    "markdown_table",
    "planner_lines",
    "process_table",
    "rate_table",
    "setup_table",
]

#: What the tables of cases are about, those of a GPU without its prefix; the report has them in this order.
TITLES = {
    "target": "The project's own bounds",
    "table": "Windows, blocks, a document and a question",
    "tile": "Where tiles are dense",
    "gpu": "Graphs, windows and the warp engine",
    "graph": "Graphs",
    "length": "Over length: a window of 256 to each side",
    "density": "Over density: 16,384 tokens",
    "head_dim": "Over head dimension: a window of 256 to each side, 4096 tokens",
    "path": "Tiles against pairs: what the planner chose",
    "score": "Changes of scores: what each costs",
    "catalogue": "Every named pattern at 4096 tokens",
    "catalogue_16384": "Every named pattern at 16,384 tokens",
    "catalogue_65536": "Every named pattern at 65,536 tokens",
    "quick": "The tour",
}
#: Tables with a line a contender for what is done before the first timed call; elsewhere it is much the same.
SETUP_TABLES = {"target", "table", "tile"}


def markdown_table(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A Markdown table; the first column to the left, the others to the right.

    >>> print(markdown_table(["a", "b"], [["x", "1"]]))
    | a | b |
    |---|--:|
    | x | 1 |
    """
    rule = "|---|" + "--:|" * (len(header) - 1)
    return "\n".join([f"| {' | '.join(header)} |", rule, *(f"| {' | '.join(line)} |" for line in lines)])


def goal_table(found: Iterable[Row]) -> str:
    """What the project set itself, and what was measured; missed ones say so."""
    lines = [
        [f"`{row['case']}`", goal["goal"], f"{goal['value']:.3g}", "reached" if goal["met"] else "**missed**"]
        for row in found
        for goal in row.get("goals", ())
    ]
    return markdown_table(["case", "goal", "measured", ""], lines) if lines else ""


def attention_tables(found: Sequence[Row]) -> list[tuple[str, str]]:
    """A heading and a table for each table of cases: one line a case, times of the same turns."""
    roofs = roofs_of(found)
    by_table: dict[str, list[Row]] = {}
    for row in found:
        if row["kind"] == "attention":
            by_table.setdefault(table_of(row), []).append(row)
    order = [*(name for name in TITLES if name in by_table), *sorted(by_table.keys() - TITLES.keys())]
    made = [(TITLES.get(name, name), _attention_table(by_table[name], roofs)) for name in order]
    return [(title, table) for title, table in made if table]


def _attention_table(found: Sequence[Row], roofs: Roofs) -> str:
    """Ours, our dense mode and every contender of the same turns; columns that stay empty are left out."""
    by_case: dict[str, dict[str, Row]] = {}
    for row in found:
        by_case.setdefault(row["case"], {})[row["contender"]] = row
    peers = sorted({row["contender"] for row in found if is_peer(row)})
    paths = sorted({name for row in found for name in row.get("alternatives", {})})
    dense = sorted({name for row in found for name in row.get("speedup_all_pairs", {})})
    changes = sorted({name for row in found for name in row.get("changed", {})})
    gpu = any(map(on_gpu, found))
    rates = ["engine", "TFLOP/s", "Gpair/s", "of a gather"] if gpu else ["GFLOP/s"]
    all_pairs = [f"{peer}, all pairs" for peer in dense]
    header = ["case", "density", "ours", *rates, "of the roof", "memory", "over our dense mode", "of ideal"]
    header += ["tokens/s", *(f"with {name}" for name in changes), *paths, *peers, *all_pairs]
    lines = []
    for case, group in by_case.items():
        own = next((row for row in group.values() if "speedup" in row), None)
        if own is None:
            continue
        share = roofs.share(own)
        lines.append(
            [
                f"`{case}`",
                _percent(own["density"]),
                format_seconds(own["seconds"]),
                *(_gpu_measures(own) if gpu else [f"{own['gflops']:.0f}"]),
                "" if share is None else f"{share:.0%}",
                format_bytes(own["peak_bytes"]) if "peak_bytes" in own else "",
                f"{own['speedup_dense']:.2f}x" if "speedup_dense" in own else "",
                f"{own['efficiency']:.0%}" if "efficiency" in own else "",
                f"{own['tokens_per_second']:,.0f}" if table_of(own) == "length" else "",
                *(_factor(own.get("changed", {}).get(name)) for name in changes),
                *(_time_of(group, path, own.get("alternatives", {})) for path in paths),
                *(_time_of(group, peer, own["speedup"]) for peer in peers),
                *(_time_of(group, peer, own.get("speedup_all_pairs", {})) for peer in dense),
            ]
        )
    return markdown_table(*_without_empty_columns(header, lines)) if lines else ""


def _factor(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.2f}x the time"


def _without_empty_columns(header: list[str], lines: list[list[str]]) -> tuple[list[str], list[list[str]]]:
    filled = [number for number in range(len(header)) if any(line[number] for line in lines)]
    return [header[number] for number in filled], [[line[number] for number in filled] for line in lines]


def _percent(share: float) -> str:
    """One decimal, or two digits: graphs have densities of a hundredth of a percent."""
    return f"{share:.1%}" if share >= 0.01 else f"{share * 100:.2g}%"


def _gpu_measures(own: Row) -> list[str]:
    gather = f"{own['share_of_gather']:.0%}" if "share_of_gather" in own else ""
    rates = [f"{own['gflops'] / 1e3:.3g}", f"{own['gpairs_per_second']:.3g}"]
    return [own["engine"], *rates, gather]


def _time_of(group: dict[str, Row], peer: str, beside: dict[str, float]) -> str:
    """A contender's time in one case, if it is of the kind that `beside` lists."""
    return format_seconds(group[peer]["seconds"]) if peer in beside and peer in group else ""


def rate_table(found: Iterable[Row]) -> str:
    """What the machine itself reaches."""
    names = {"product": "matrix product", "copy": "copy, read and written"}
    lines = [
        [
            f"`{row['case']}`",
            format_rate(row),
            f"{row['dtype']} {names[row['what']]}" if row["kind"] == "rate" else "random rows read",
        ]
        for row in found
        if row["kind"] in {"rate", "gather"}
    ]
    return markdown_table(["case", "measured", "what"], lines) if lines else ""


def energy_table(found: Iterable[Row]) -> str:
    """Joules of a call, of everybody."""
    lines = [
        [
            f"`{row['case']}`",
            row["contender"] + (f", {row['computes']}" if row.get("computes") else ""),
            f"{row['joules']:.3g} J",
            f"{row['watts']:.0f} W",
            f"{row['gflops'] / row['watts']:.0f} GFLOP/J" if row["gflops"] else "",
        ]
        for row in found
        if "joules" in row
    ]
    return markdown_table(["case", "by", "a call", "power", "useful work"], lines) if lines else ""


def lost_lines(found: Iterable[Row]) -> list[str]:
    """Every case in which a peer was faster, the worst first."""
    lost = [
        (ratio, row["case"], peer)
        for row in found
        for peer, ratio in row.get("speedup", {}).items()
        if ratio < 1.0
    ]
    return [f"- `{case}`: {peer} is {1 / ratio:.2f}x faster" for ratio, case, peer in sorted(lost)]


def all_pairs_lines(found: Iterable[Row]) -> list[str]:
    """Every case in which sparsity does not pay: somebody computes all pairs in less time."""
    lost = [
        (ratio, row["case"], peer, row["density"])
        for row in found
        for peer, ratio in row.get("speedup_all_pairs", {}).items()
        if ratio < 1.0
    ]
    return [
        f"- `{case}`: {peer} computes all pairs, {1 / share:.0f} times ours, {1 / ratio:.2f}x faster"
        for ratio, case, peer, share in sorted(lost)
    ]


def planner_lines(found: Iterable[Row]) -> list[str]:
    """Every case in which the planner's choice took over a tenth longer than another."""
    missed = [
        (row["over_best"], row["case"], min(row["alternatives"], key=row["alternatives"].__getitem__))
        for row in found
        if row.get("over_best", 0.0) > 1.1
    ]
    return [
        f"- `{case}`: {best} would have been {ratio:.2f}x faster"
        for ratio, case, best in sorted(missed, reverse=True)
    ]


def setup_table(found: Iterable[Row]) -> str:
    """What everybody needs once, before the first timed call: a plan or a mask, compiling, a first call."""
    lines = []
    for row in found:
        once = [row.get("plan_seconds", row.get("mask_seconds")), row.get("compile_seconds")]
        once.append(row.get("first_call_seconds"))
        if table_of(row) in SETUP_TABLES and row["kind"] == "attention" and row["checked"] and any(once):
            shown = ["" if seconds is None else format_seconds(seconds) for seconds in once]
            lines.append([f"`{row['case']}`", row["contender"], *shown])
    header = ["case", "by", "plan or mask", "compiled and called", "first call"]
    return markdown_table(*_without_empty_columns(header, lines)) if lines else ""


def build_table(found: Iterable[Row]) -> str:
    """Patterns to tiles."""
    lines = [
        [
            f"`{row['pattern']}`",
            f"{row['tiles']:,}",
            format_seconds(row["seconds"]),
            format_bytes(row["tiles_bytes"]),
            "" if row["peak_extra_bytes"] is None else format_bytes(row["peak_extra_bytes"]),
        ]
        for row in found
        if row["kind"] == "build"
    ]
    return markdown_table(["pattern", "tiles", "time", "tiles take", "peak"], lines) if lines else ""


def process_table(found: Iterable[Row]) -> str:
    """Cold starts, planning, selecting, the cost of a call, and peak memory."""
    lines = []
    for row in found:
        if row["kind"] == "cold":
            lines.append(
                [f"`{row['case']}`", format_seconds(row["seconds"]), "first result of a new process"]
            )
        elif row["kind"] == "plan":
            lines.append([f"`{row['case']}`", format_seconds(row["seconds"]), f"to plan {row['pattern']}"])
        elif row["kind"] == "select":
            attending = format_seconds(row["attention_seconds"])
            beside = f"to select; attention over it {attending}"
            if "select_seconds" in row:
                selecting = format_seconds(row["select_seconds"])
                beside = f"to select ({selecting}), plan and attend ({attending}), in one call"
            lines.append([f"`{row['case']}`", format_seconds(row["seconds"]), beside])
        elif row["kind"] == "host":
            what = (
                "of the host, to queue one call" if on_gpu(row) else "of a call that computes next to nothing"
            )
            lines.append([f"`{row['case']}`", format_seconds(row["seconds"]), what])
        elif row["kind"] == "memory" and row["peak_extra_bytes"] is not None:
            square = f"beyond inputs; n x n scores would be {format_bytes(row['square_bytes'])}"
            lines.append([f"`{row['case']}`", format_bytes(row["peak_extra_bytes"]), square])
    return markdown_table(["case", "measured", "what"], lines) if lines else ""
