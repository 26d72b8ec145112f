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
from benchmarks.rows import Row, is_peer, machine_title, on_gpu  # noqa: E402
from benchmarks.tables import format_bytes, format_rate, format_seconds  # noqa: E402

FIGURES = ROOT / "reports" / "figures"
REPORT = ROOT / "reports" / "performance.md"
README = ROOT / "README.md"
BEGIN, END = "<!-- begin: performance -->", "<!-- end: performance -->"

NO_ROWS = "No rows are published yet. `python benchmarks/run.py` measures them on your machine."

GPU_NOTE = (
    "Time is the GPU's, by events around batches of calls, each from a cold cache and queued beforehand. "
    "Memory is what one call takes beyond its inputs, what it was planned with included."
)


def machines(found: Iterable[Row]) -> dict[str, list[Row]]:
    """Rows by machine; of rows for the same thing, the last one."""
    by_machine: dict[str, dict[tuple[str, str], Row]] = {}
    for row in found:
        if row["status"] != "measured":
            continue
        by_machine.setdefault(machine_title(row), {})[row["case"], row["contender"]] = row
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
    everyone = [row for group in by_case.values() for row in group.values()]
    peers = sorted({row["contender"] for row in everyone if is_peer(row)})
    dense = sorted({name for row in everyone for name in row.get("speedup_all_pairs", {})})
    gpu = any(map(on_gpu, everyone))
    lines = []
    for case, group in by_case.items():
        own = next((row for row in group.values() if "speedup" in row), None)
        if own is None:
            continue
        lines.append(
            [
                f"`{case}`",
                _percent(own["density"]),
                format_seconds(own["seconds"]),
                *(_gpu_measures(own) if gpu else [f"{own['gflops']:.0f}"]),
                f"{own['speedup_dense']:.2f}x" if "speedup_dense" in own else "",
                *(_time_of(group, peer, own["speedup"]) for peer in peers),
                *(_time_of(group, peer, own.get("speedup_all_pairs", {})) for peer in dense),
            ]
        )
    rates = ["engine", "TFLOP/s", "Gpair/s", "of a gather", "memory"] if gpu else ["GFLOP/s"]
    all_pairs = [f"{peer}, all pairs" for peer in dense]
    header = ["case", "density", "ours", *rates, "over our dense mode", *peers, *all_pairs]
    return markdown_table(header, lines) if lines else ""


def _percent(share: float) -> str:
    """One decimal, or two digits: graphs have densities of a hundredth of a percent."""
    return f"{share:.1%}" if share >= 0.01 else f"{share * 100:.2g}%"


def _gpu_measures(own: Row) -> list[str]:
    gather = f"{own['share_of_gather']:.0%}" if "share_of_gather" in own else ""
    rates = [f"{own['gflops'] / 1e3:.3g}", f"{own['gpairs_per_second']:.3g}"]
    return [own["engine"], *rates, gather, format_bytes(own["peak_bytes"])]


def _time_of(group: dict[str, Row], peer: str, beside: dict[str, float]) -> str:
    """A contender's time in one case, if it is of the kind that `beside` lists."""
    return format_seconds(group[peer]["seconds"]) if peer in beside and peer in group else ""


def rate_table(found: Iterable[Row]) -> str:
    """What the machine itself reaches, and what a call costs its host."""
    lines = []
    for row in found:
        if row["kind"] == "host":
            lines.append(
                [f"`{row['case']}`", f"{row['seconds'] * 1e6:.3g} us", "of the host, to queue one call"]
            )
        elif row["kind"] in {"rate", "gather"} and on_gpu(row):
            what = {"product": "matrix product", "copy": "copy, read and written"}.get(
                row.get("what", ""), "random rows read"
            )
            lines.append([f"`{row['case']}`", format_rate(row), what])
    return markdown_table(["case", "measured", "what"], lines) if lines else ""


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
        if any(map(on_gpu, chosen)):
            parts.append(GPU_NOTE)
        lost = lost_lines(chosen)
        sections = [
            ("Goals", goal_table(chosen)),
            ("Where a peer is faster", "\n".join(lost) if lost else "Nowhere in these rows."),
            ("The machine", rate_table(chosen)),
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
        goals = [row for row in chosen if row["case"].startswith(("target/", "cold/", "gpu/", "tile/"))]
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


def figures_for(found: Sequence[Row]) -> dict[str, tuple[str, list[Row]]]:
    """By the name of its file, the kind of a figure and its rows.

    Of several processors, and of several GPUs, the one with most rows is drawn.
    """
    figures: dict[str, tuple[str, list[Row]]] = {}
    for prefix, gpu in (("", False), ("gpu_", True)):
        chosen = max(machines(row for row in found if on_gpu(row) == gpu).values(), key=len, default=[])
        enough = {
            "peers": any(row.get("speedup") for row in chosen),
            "density": any("speedup_dense" in row for row in chosen),
            "building": any(row["kind"] == "build" for row in chosen),
        }
        figures |= {prefix + kind: (kind, chosen) for kind, drawn in enough.items() if drawn}
    return figures


def draw_figures(found: Sequence[Row]) -> list[Path]:
    """The gallery, and the figures of the published rows."""
    from reports import drawing

    drawn = [drawing.save(drawing.gallery(), FIGURES / "patterns.png")]
    draw = {"peers": drawing.peers, "density": drawing.density, "building": drawing.building}
    for name, (kind, chosen) in figures_for(found).items():
        drawn.append(drawing.save(draw[kind](chosen), FIGURES / f"{name}.png"))
    return drawn


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
