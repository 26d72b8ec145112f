"""Two sets of rows side by side, with what moved beyond the noise marked.

    python benchmarks/compare.py old.jsonl new.jsonl          two files
    python benchmarks/compare.py 3f2a91c 77b01de              two commits, from the rows in benchmarks/data

Rows are paired by case, contender and processor, or GPU. A time has moved when the quartiles of the two do
not overlap and the medians differ by more than `--threshold`. Compares times only; measures nothing.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from benchmarks import rows, tables  # noqa: E402

#: Medians closer than this are the same: a machine's clock wanders by about as much from day to day.
THRESHOLD = 0.05

Key = tuple[str, str, str]


def load(name: str) -> list[rows.Row]:
    """The rows of a file, or those of a commit (any unambiguous beginning) in ``benchmarks/data``."""
    path = Path(name)
    if path.exists():
        return list(rows.read(path))
    found = [row for row in rows.read_all() if row["commit"].startswith(name)]
    commits = {row["commit"] for row in found}
    if not found:
        raise ValueError(f"{name}: neither a file nor a commit with rows in {rows.DATA}")
    if len(commits) > 1:
        raise ValueError(f"{name}: several commits begin so: {', '.join(sorted(commits))}")
    return found


def by_key(found: Iterable[rows.Row]) -> dict[Key, rows.Row]:
    """The last row that has a time, for every case, contender and machine."""
    timed = (row for row in found if row["status"] == "measured" and "seconds" in row)
    return {(row["case"], row["contender"], _processor(row)): row for row in timed}


def _processor(row: rows.Row) -> str:
    """The chip: another driver or another number of threads is a change like any other."""
    chip = row["device"]["name"] if rows.on_gpu(row) else row["machine"]["cpu"]
    return str(chip)


def verdict(old: rows.Row, new: rows.Row, threshold: float = THRESHOLD) -> str:
    """ "faster", "slower" or an empty string.

    >>> old = {"seconds": 1.0, "seconds_low": 0.98, "seconds_high": 1.02}
    >>> verdict(old, {"seconds": 0.5, "seconds_low": 0.49, "seconds_high": 0.51})
    'faster'
    >>> verdict(old, {"seconds": 1.2, "seconds_low": 1.0, "seconds_high": 1.3})
    ''
    """
    if abs(new["seconds"] / old["seconds"] - 1.0) <= threshold:
        return ""
    if new["seconds_high"] < old["seconds_low"]:
        return "faster"
    if new["seconds_low"] > old["seconds_high"]:
        return "slower"
    return ""


def compare(
    old: Iterable[rows.Row], new: Iterable[rows.Row], threshold: float = THRESHOLD
) -> tuple[str, int]:
    """The table, and how many times got worse."""
    before, after = by_key(old), by_key(new)
    lines = []
    slower = 0
    for key in sorted(before.keys() | after.keys()):
        case, contender, _ = key
        if key not in before or key not in after:
            lines.append([case, contender, "", "", "", "only in the " + ("old" if key in before else "new")])
            continue
        one, other = before[key], after[key]
        mark = verdict(one, other, threshold)
        slower += mark == "slower"
        ratio = other["seconds"] / one["seconds"]
        times = (tables.format_seconds(row["seconds"]) for row in (one, other))
        lines.append([case, contender, *times, f"{ratio:.3f}", mark])
    return tables.format_table(["case", "by", "old", "new", "new / old", ""], lines), slower


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 1 with ``--fail-on-slower`` and a time that got worse, 2 for rows that cannot be read."""
    parser = argparse.ArgumentParser(
        prog="benchmarks/compare.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("old", help="a file of rows, or a commit")
    parser.add_argument("new", help="a file of rows, or a commit")
    parser.add_argument("--threshold", type=float, default=THRESHOLD, help=f"({THRESHOLD})")
    parser.add_argument("--fail-on-slower", action="store_true")
    options = parser.parse_args(arguments)
    try:
        table, slower = compare(load(options.old), load(options.new), options.threshold)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    print(table)
    print(f"\n{slower} slower beyond the noise")
    return 1 if slower and options.fail_on_slower else 0


if __name__ == "__main__":
    sys.exit(main())
