"""Benchmark rows to figures, ``reports/performance.md`` and the performance block of ``README.md``.

    python reports/make_report.py             rewrite all three from the rows in benchmarks/data
    python reports/make_report.py --check     change nothing; status 1 if the texts do not follow the rows

Measures nothing: every number here is in a row that `benchmarks/run.py` wrote.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from benchmarks import rows  # noqa: E402
from benchmarks.rows import Row, is_peer  # noqa: E402
from benchmarks.tables import format_bytes, format_seconds  # noqa: E402

FIGURES = ROOT / "reports" / "figures"
REPORT = ROOT / "reports" / "performance.md"
README = ROOT / "README.md"
BEGIN, END = "<!-- begin: performance -->", "<!-- end: performance -->"

NO_ROWS = "No rows are published yet. `python benchmarks/run.py` measures them on your machine."


def machines(found: Iterable[Row]) -> dict[str, list[Row]]:
    """Rows by machine; of rows for the same thing, the last one."""
    by_machine: dict[str, dict[tuple[str, str], Row]] = {}
    for row in found:
        if row["status"] != "measured":
            continue
        machine = row["machine"]
        title = f"{machine['cpu']}, {machine['threads']} threads"
        by_machine.setdefault(title, {})[row["case"], row["contender"]] = row
    return {title: list(chosen.values()) for title, chosen in by_machine.items()}


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


def attention_table(found: Iterable[Row]) -> str:
    """One line a case: ours, our dense mode and every peer that ran it, times of the same turns."""
    by_case: dict[str, dict[str, Row]] = {}
    for row in found:
        if row["kind"] == "attention":
            by_case.setdefault(row["case"], {})[row["contender"]] = row
    peers = sorted({row["contender"] for group in by_case.values() for row in group.values() if is_peer(row)})
    lines = []
    for case, group in by_case.items():
        own = next((row for row in group.values() if "speedup" in row), None)
        if own is None:
            continue
        times = [format_seconds(group[peer]["seconds"]) if peer in group else "" for peer in peers]
        dense = f"{own['speedup_dense']:.2f}x" if "speedup_dense" in own else ""
        lines.append(
            [
                f"`{case}`",
                f"{own['density']:.1%}",
                format_seconds(own["seconds"]),
                f"{own['gflops']:.0f}",
                dense,
                *times,
            ]
        )
    header = ["case", "density", "ours", "GFLOP/s", "over our dense mode", *peers]
    return markdown_table(header, lines) if lines else ""


def lost_lines(found: Iterable[Row]) -> list[str]:
    """Every case in which a peer was faster, the worst first."""
    lost = [
        (ratio, row["case"], peer)
        for row in found
        for peer, ratio in row.get("speedup", {}).items()
        if ratio < 1.0
    ]
    return [f"- `{case}`: {peer} is {1 / ratio:.2f}x faster" for ratio, case, peer in sorted(lost)]


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
    """Cold starts and peak memory."""
    lines = []
    for row in found:
        if row["kind"] == "cold":
            lines.append(
                [f"`{row['case']}`", format_seconds(row["seconds"]), "first result of a new process"]
            )
        elif row["kind"] == "memory" and row["peak_extra_bytes"] is not None:
            square = f"beyond inputs; n x n scores would be {format_bytes(row['square_bytes'])}"
            lines.append([f"`{row['case']}`", format_bytes(row["peak_extra_bytes"]), square])
    return markdown_table(["case", "measured", "what"], lines) if lines else ""


def report_text(found: Sequence[Row]) -> str:
    """``reports/performance.md``."""
    parts = [
        "# Performance",
        "Made by `python reports/make_report.py` from the rows in `benchmarks/data/`; do not edit. A rate "
        "counts the products over *selected* pairs only. Times are medians; everyone in a line was timed in "
        "turns in one process, on the same inputs and as many threads, after its result was compared with "
        "the float64 oracle.",
    ]
    if not found:
        return "\n\n".join([*parts, NO_ROWS]) + "\n"
    for title, chosen in machines(found).items():
        versions = sorted({name_versions(row) for row in chosen})
        parts += [f"## {title}", "\n".join(f"- {text}" for text in versions)]
        lost = lost_lines(chosen)
        sections = [
            ("Goals", goal_table(chosen)),
            ("Where a peer is faster", "\n".join(lost) if lost else "Nowhere in these rows."),
            ("Attention", attention_table(chosen)),
            ("Building patterns", build_table(chosen)),
            ("Processes", process_table(chosen)),
        ]
        for heading, text in sections:
            if text:
                parts += [f"### {heading}", text]
    pictures = [f"![{name}](figures/{name}.png)" for name in figures_for(found)]
    if pictures:
        parts += ["## Figures", "\n".join(pictures)]
    return "\n\n".join(parts) + "\n"


def name_versions(row: Row) -> str:
    """Commit and versions of a row, in words."""
    packages = {**row["versions"], **row.get("packages", {})}
    return f"commit {row['commit']}; " + ", ".join(
        f"{name} {text}" for name, text in sorted(packages.items())
    )


def readme_block(found: Sequence[Row]) -> str:
    """What stands between the two marks in ``README.md``."""
    parts = [NO_ROWS] if not found else []
    for title, chosen in machines(found).items():
        goals = [row for row in chosen if row["case"].startswith(("target/", "cold/"))]
        lost = lost_lines(chosen)
        parts += [
            f"On {title} (rows: `benchmarks/data/`, all tables: `reports/performance.md`):",
            goal_table(goals),
            "Where a peer is faster:\n\n" + "\n".join(lost) if lost else "",
        ]
    return "\n\n".join(filter(None, [BEGIN, *parts, END]))


def with_block(text: str, block: str) -> str:
    """`text` with what stands between the marks replaced."""
    begin, end = text.index(BEGIN), text.index(END) + len(END)
    return text[:begin] + block + text[end:]


def figures_for(found: Sequence[Row]) -> list[str]:
    """Names of the figures that the rows are enough for."""
    kinds = {row["kind"] for row in found if row["status"] == "measured"}
    beside = any(row.get("speedup") for row in found)
    dense = any("speedup_dense" in row for row in found)
    return [
        name
        for name, enough in (("peers", beside), ("density", dense), ("building", "build" in kinds))
        if enough
    ]


def draw_figures(found: Sequence[Row]) -> list[Path]:
    """The gallery, and the figures of the published rows: of several machines, the one with most rows."""
    from reports import drawing

    drawn = [drawing.save(drawing.gallery(), FIGURES / "patterns.png")]
    if not found:
        return drawn
    chosen = max(machines(found).values(), key=len)
    draw = {"peers": drawing.peers, "density": drawing.density, "building": drawing.building}
    return drawn + [drawing.save(draw[name](chosen), FIGURES / f"{name}.png") for name in figures_for(found)]


def draw_run(found: Sequence[Row]) -> Path | None:
    """The figure of one run, which Git ignores; None if there is nothing to draw.

    Raises ImportError without matplotlib.
    """
    from reports import drawing

    chosen = [row for row in found if row["status"] == "measured"]
    if not any("speedup" in row for row in chosen):
        return None
    return drawing.save(drawing.run(chosen), FIGURES / "local.png")


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 1 with ``--check`` and a text that does not follow the rows."""
    parser = argparse.ArgumentParser(
        prog="reports/make_report.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args(arguments)
    found = rows.read_all()
    wanted = {
        REPORT: report_text(found),
        README: with_block(README.read_text("utf-8"), readme_block(found)),
    }
    stale = [path for path, text in wanted.items() if not path.exists() or path.read_text("utf-8") != text]
    if options.check:
        for path in stale:
            print(f"{path.relative_to(ROOT)} does not follow benchmarks/data: run make report")
        return 1 if stale else 0
    for path in stale:
        path.write_text(wanted[path], "utf-8")
    for path in [*stale, *draw_figures(found)]:
        print(path.relative_to(ROOT))
    return 0


if __name__ == "__main__":
    sys.exit(main())
