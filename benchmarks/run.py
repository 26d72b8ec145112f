"""Measure what runs here, print a table, keep the rows.

    python benchmarks/run.py                          every case that this machine can run
    python benchmarks/run.py --quick                  one line a pattern, in a minute or two
    python benchmarks/run.py --cases 'target/*'       the project's own bounds, beside the peers
    python benchmarks/run.py --device gpu --limit 20  what matters most on a GPU, in about twenty minutes
    python benchmarks/run.py --report document_qa     a setting: sparsity, performance, quality
    python benchmarks/run.py --list                   what there is

Works from a checkout, installed or not. Every result is compared with the float64 oracle before it is
timed; a wrong one is reported as wrong and not timed. Ctrl-C keeps what was measured.
"""

from __future__ import annotations

import argparse
import fnmatch
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

# After a product, idle OpenBLAS threads of NumPy and SciPy spin for some 30 ms, in whoever's turn comes next
# (our window took 14.6 ms beside them and 7.6 ms without). 2**20 cycles are long enough for a next product.
os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "20")

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from benchmarks import brief_reports, cases, kinds, rows, runner, tables  # noqa: E402
from benchmarks.peers import PEERS  # noqa: E402
from benchmarks.progress import Progress, duration  # noqa: E402

DTYPES = ("float16", "bfloat16", "float32", "float64")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="benchmarks/run.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = made.add_argument
    add("--quick", action="store_true", help="the tour only")
    add("--tiny", action="store_true", help="every kind of measurement at toy size: does the suite work?")
    add("--cases", metavar="GLOB", action="append", help="cases by name; may be repeated")
    add(
        "--device",
        choices=("cpu", "gpu"),
        help="cases whose arrays lie there (default: both; --quick: the GPU if any)",
    )
    add("--engine", default="auto", help="our engine (default: the case's, or what the planner chooses)")
    add("--peer", action="append", choices=[*PEERS, "none"], help="only these peers; may be repeated")
    add("--dtype", choices=DTYPES, help="element type of attention cases, instead of their own")
    add("--json", type=Path, metavar="FILE", default=rows.LOCAL, help="file that rows are appended to")
    add("--seed", type=int, default=0)
    add("--seconds", type=float, help="time for each contender of a case (2; on a GPU 0.25)")
    add("--limit", type=float, metavar="MINUTES", help="start no case after so long; the first matter most")
    add("--list", action="store_true", help="print the cases and who is here, and stop")
    add(
        "--report",
        metavar="NAME",
        type=brief_reports.named,
        help=f"print one setting in full, and stop: {', '.join(brief_reports.REPORTS)}, any pattern by its "
        "name, or a call, 'sliding_window(n=4096, window=256)'",
    )
    add("--no-figures", action="store_true", help="draw nothing")
    return made


def chosen_cases(options: argparse.Namespace, gpu: bool) -> list[kinds.Case]:
    """The cases that the options name; without a GPU its cases only if they are named."""
    if options.tiny:
        found = cases.tiny_cases()
    else:
        found = cases.quick_cases() if options.quick else cases.all_cases()
    if globs := options.cases:
        found = [case for case in found if any(fnmatch.fnmatchcase(case.name, glob) for glob in globs)]
    device = options.device or ("gpu" if options.quick and gpu else "")
    if not device and not gpu and not options.cases:
        device = "cpu"
    if device:
        found = [case for case in found if kinds.device_of(case) == device]
    if kind := options.dtype:
        found = [
            replace(case, dtype=kind) if isinstance(case, kinds.AttentionCase) else case for case in found
        ]
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0, 1 if something was wrong or failed, 2 for a mistaken command line, 130 after Ctrl-C."""
    options = parser().parse_args(arguments)
    field = runner.Field.here(options.engine, options.peer, look_for_gpu=options.device != "cpu")
    if options.report:
        print(options.report(field, options.seed))
        return 0
    found = chosen_cases(options, field.gpu is not None)
    if not found:
        print("no case has such a name; --list prints them", file=sys.stderr)
        return 2
    print(field.describe())
    if options.list:
        print("\n".join(case.name for case in found))
        return 0
    weights = [runner.expected_seconds(case, field, options.seconds) for case in found]
    print(f"{len(found)} cases, about {duration(sum(weights))}; rows go to {options.json}\n")

    measured: list[rows.Row] = []
    shared = rows.provenance(options.seed)
    progress = Progress(sum(weights))
    interrupted = False
    left_out = 0
    began = time.perf_counter()
    try:
        for number, (case, weight) in enumerate(zip(found, weights, strict=True)):
            if options.limit is not None and time.perf_counter() - began >= 60 * options.limit:
                left_out = len(found) - number
                break
            progress.show(case.name)
            made = [{**row, **shared} for row in runner.run_case(case, field, options.seed, options.seconds)]
            rows.append(options.json, made)
            measured += made
            progress.step(weight)
    except KeyboardInterrupt:
        interrupted = True
    progress.clear()
    print(tables.result_tables(measured))
    for line in tables.goal_lines(measured):
        print(line)
    if interrupted:
        print(f"\ninterrupted: {len(measured)} rows are kept in {options.json}", file=sys.stderr)
    if left_out:
        print(f"\n{options.limit:g} minutes are over: {left_out} of {len(found)} cases were not started")
    if measured and not options.no_figures:
        print(_draw(measured))
    if interrupted:
        return 130
    return 1 if any(row["status"] in {"wrong", "failed"} for row in measured) else 0


def _draw(measured: list[rows.Row]) -> str:
    """Draw the figures of this run, or say what is missing."""
    try:
        from reports import make_report
    except ImportError as error:
        return f"no figure: {error}"
    drawn = make_report.draw_run(measured)
    if not drawn:
        return "no figure: nothing in this run to draw"
    return "\n".join(f"figure: {os.path.relpath(path)}" for path in drawn)


if __name__ == "__main__":
    sys.exit(main())
