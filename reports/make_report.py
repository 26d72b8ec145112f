"""Benchmark rows to figures, ``reports/performance.md`` and the performance block of ``README.md``.

    python reports/make_report.py             rewrite all three from the rows in benchmarks/data
    python reports/make_report.py --check     change nothing; status 1 if the texts do not follow the rows

Measures nothing: every number here is in a row that `benchmarks/run.py` wrote.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from benchmarks import rows  # noqa: E402
from benchmarks.roofline import roofs_of  # noqa: E402
from benchmarks.rows import Row, machine_title, on_gpu, table_of  # noqa: E402
from reports import report_tables  # noqa: E402

FIGURES = ROOT / "reports" / "figures"
REPORT = ROOT / "reports" / "performance.md"
README = ROOT / "README.md"
BEGIN, END = "<!-- begin: performance -->", "<!-- end: performance -->"

NO_ROWS = "No rows are published yet. `python benchmarks/run.py` measures them on your machine."

GPU_NOTE = (
    "Time is the GPU's, by events around batches of calls, each from a cold cache and queued beforehand. "
    "Memory is what one call takes beyond its inputs, what it was planned with included. JAX computes in "
    "streams of its own: its time is the host's, from an idle GPU until its results are there, and its "
    "memory is not counted. Energy is the GPU's own count over seconds of calls from a warm cache, its "
    "idling included."
)


#: Fields that have a ratio for every peer.
OVER_PEERS = ("speedup", "speedup_all_pairs")


def machines(found: Iterable[Row]) -> dict[str, list[Row]]:
    """Rows by machine; of rows for the same thing, the last one.

    Beside peers that were left out of the last run, we stand as we did in the last one that had them.
    """
    by_machine: dict[str, dict[tuple[str, str], Row]] = {}
    for row in found:
        if row["status"] != "measured":
            continue
        chosen = by_machine.setdefault(machine_title(row), {})
        before = chosen.get((row["case"], row["contender"]), {})
        ratios = {field: {**before.get(field, {}), **row[field]} for field in OVER_PEERS if field in row}
        chosen[row["case"], row["contender"]] = {**row, **ratios}
    return {title: list(chosen.values()) for title, chosen in by_machine.items()}


def report_text(found: Sequence[Row]) -> str:
    """``reports/performance.md``."""
    parts = [
        "# Performance",
        "Made by `python reports/make_report.py` from the rows in `benchmarks/data/`; do not edit. A rate "
        "counts the products over *selected* pairs only. Times are medians; every ratio is one of times that "
        "were taken in turns in one process, on the same inputs and as many threads, after results were "
        "compared with the float64 oracle.",
    ]
    if not found:
        return "\n\n".join([*parts, NO_ROWS]) + "\n"
    for title, chosen in machines(found).items():
        versions = sorted({name_versions(row) for row in chosen})
        parts += [f"## {title}", "\n".join(f"- {text}" for text in versions)]
        if any(map(on_gpu, chosen)):
            parts.append(GPU_NOTE)
        for heading, text in _sections(chosen):
            if text:
                parts += [f"### {heading}", text]
    figures = figures_for(found)
    parts += ["## Figures", "\n".join(f"![{name}](figures/{name}.png)" for name in figures)]
    parts.append("\n".join(missing_lines(figures)))
    return "\n\n".join(filter(None, parts)) + "\n"


def _sections(chosen: Sequence[Row]) -> list[tuple[str, str]]:
    """Headings and texts of one machine, the goals and what was lost before everything else."""
    lost = "\n".join(report_tables.lost_lines(chosen))
    return [
        ("Goals", report_tables.goal_table(chosen)),
        ("Where a peer is faster", lost or "Nowhere in these rows."),
        ("Where computing all pairs is faster", "\n".join(report_tables.all_pairs_lines(chosen))),
        ("Where the planner chose the slower engine", "\n".join(report_tables.planner_lines(chosen))),
        ("The machine", report_tables.rate_table(chosen)),
        *report_tables.attention_tables(chosen),
        ("Before the first call", report_tables.setup_table(chosen)),
        ("Energy", report_tables.energy_table(chosen)),
        ("Building patterns", report_tables.build_table(chosen)),
        ("Processes", report_tables.process_table(chosen)),
    ]


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
        goals = [
            row for row in chosen if row["case"].startswith(("target/", "cold/", "gpu/", "tile/", "order/"))
        ]
        lost = report_tables.lost_lines(chosen)
        parts += [
            f"On {title} (rows: `benchmarks/data/`, all tables: `reports/performance.md`):",
            report_tables.goal_table(goals),
            "Where a peer is faster:\n\n" + "\n".join(lost) if lost else "",
        ]
    return "\n\n".join(filter(None, [BEGIN, *parts, END]))


def with_block(text: str, block: str) -> str:
    """`text` with what stands between the marks replaced."""
    begin, end = text.index(BEGIN), text.index(END) + len(END)
    return text[:begin] + block + text[end:]


class Kind(NamedTuple):
    """A kind of figure: the rows that it shows, and the cases that make them on the host and on a GPU."""

    chosen: Callable[[list[Row]], list[Row]]
    host_cases: str
    gpu_cases: str


def _of_kind(kind: str) -> Callable[[list[Row]], list[Row]]:
    return lambda found: [row for row in found if row["kind"] == kind]


def _beside_peers(found: list[Row]) -> list[Row]:
    """Rows of cases with peers, without those that belong to a figure of their own."""
    tables = {"target", "table", "tile", "gpu"}
    named = {row["case"] for row in found if row.get("speedup") and table_of(row) in tables}
    return [row for row in found if row["case"] in named]


def _under_roof(found: list[Row]) -> list[Row]:
    roofs = roofs_of(found)
    known = any("speedup" in row and roofs.share(row) is not None for row in found)
    return found if known else []


def _with(name: str) -> Callable[[list[Row]], list[Row]]:
    """All rows of the cases in which ours have a field."""

    def chosen(found: list[Row]) -> list[Row]:
        named = {row["case"] for row in found if "speedup" in row and name in row}
        return [row for row in found if row["case"] in named]

    return chosen


def _over_length(found: list[Row]) -> list[Row]:
    return [row for row in found if table_of(row) == "length"]


def _memory(found: list[Row]) -> list[Row]:
    """Of whole runs, and of calls where it was counted."""
    return [*_of_kind("memory")(found), *_with("peak_bytes")(_over_length(found))]


#: By the names of the functions that draw them; figures of a GPU are called ``gpu_<kind>``.
KINDS = {
    "peers": Kind(_beside_peers, "t*/*", "tile/*"),
    "density": Kind(_with("speedup_dense"), "density/*", "gpu-density/*"),
    "length": Kind(_over_length, "length/*", "gpu-length/*"),
    "roofline": Kind(_under_roof, "machine/*", "gpu/[cp]*"),
    "memory": Kind(_memory, "memory/*", "gpu/memory_*"),
    "energy": Kind(_with("joules"), "", "gpu/energy_*"),
    "engines": Kind(_with("alternatives"), "path/*", "gpu-path/*"),
    "building": Kind(_of_kind("build"), "build/*", ""),
}


def figures_for(found: Sequence[Row]) -> dict[str, tuple[str, list[Row]]]:
    """By the name of its file, the kind of a figure and its rows.

    Of several processors, and of several GPUs, the one with most rows is drawn.
    """
    figures: dict[str, tuple[str, list[Row]]] = {}
    for gpu in (False, True):
        of_place = max(machines(row for row in found if on_gpu(row) == gpu).values(), key=len, default=[])
        for name, kind in KINDS.items():
            if chosen := kind.chosen(of_place):
                figures[_file(name, gpu)] = (name, chosen)
    return figures


def _file(kind: str, gpu: bool) -> str:
    return f"gpu_{kind}" if gpu else kind


def missing_lines(figures: Iterable[str]) -> list[str]:
    """What figures have no rows yet, and the command that makes them."""
    drawn = set(figures)
    lines = []
    for gpu, file in ((False, "cpu"), (True, "gpu")):
        for name, kind in KINDS.items():
            cases = kind.gpu_cases if gpu else kind.host_cases
            if cases and _file(name, gpu) not in drawn:
                lines.append(
                    f"- no rows for the figure `{_file(name, gpu)}` yet: `python benchmarks/run.py "
                    f"--cases '{cases}' --json benchmarks/data/{file}.jsonl`"
                )
    return lines


def _drawn(name: str, chosen: list[Row], file: str) -> Path:
    from reports import curves, drawing

    draw = getattr(drawing, name, None) or getattr(curves, name)
    return drawing.save(draw(chosen), FIGURES / f"{file}.png")


def draw_figures(found: Sequence[Row]) -> list[Path]:
    """The gallery, and the figures of the published rows."""
    from reports import drawing

    drawn = [drawing.save(drawing.gallery(), FIGURES / "patterns.png")]
    return drawn + [_drawn(name, chosen, file) for file, (name, chosen) in figures_for(found).items()]


def draw_run(found: Sequence[Row]) -> list[Path]:
    """The figures of one run, which Git ignores: rates and density in one, the other kinds each in one.

    Raises ImportError without matplotlib.
    """
    chosen = [row for row in found if row["status"] == "measured"]
    drawn = []
    if any("speedup" in row for row in chosen):
        drawn.append(_drawn("run", chosen, "local"))
    for file, (name, shown) in figures_for(chosen).items():
        if name not in {"peers", "density"}:
            drawn.append(_drawn(name, shown, f"local_{file}"))
    return drawn


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
