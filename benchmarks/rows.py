"""Result rows: JSON lines, one measurement each, complete enough to be read years later."""

from __future__ import annotations

import json
import platform
import subprocess
from collections.abc import Iterable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from numba_sparse_attn import jit

from . import measure

__all__ = [
    "DATA",
    "LOCAL",
    "OWN",
    "ROOT",
    "Row",
    "append",
    "is_peer",
    "machine_title",
    "on_gpu",
    "provenance",
    "read",
    "read_all",
    "table_of",
]

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "benchmarks" / "data"
#: Where rows go unless told otherwise; Git ignores it. Published rows go to a file by ``--json``.
LOCAL = DATA / "local.jsonl"

#: How the names of our engines begin.
OWN = ("cpu", "cuda", "reference")

Row = dict[str, Any]


def _commit() -> str:
    """The commit, with a mark if the sources differ from it; "unknown" outside of a checkout."""

    def git(*arguments: str) -> str:
        run = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True)
        return run.stdout.strip() if run.returncode == 0 else ""

    try:
        commit = git("rev-parse", "--short=12", "HEAD")
        changed = git("status", "--porcelain", "--", "numba_sparse_attn", "benchmarks")
    except FileNotFoundError:
        return "unknown"
    return (commit + ("+changes" if changed else "")) if commit else "unknown"


def provenance(seed: int) -> Row:
    """What every row of one run shares."""
    packages = {}
    for name in ("numba", "numpy", "scipy", "ml_dtypes"):
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            packages[name] = "unknown"
    return {
        "commit": _commit(),
        "source": jit.source_digest(),
        "seed": seed,
        "machine": measure.machine(),
        "versions": {"python": platform.python_version(), **packages},
    }


def append(path: Path, rows: Iterable[Row]) -> None:
    """Add rows to a file at once, so that an interrupted run keeps what it has."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row) + "\n")


def read(path: Path) -> Iterator[Row]:
    """The rows of one file."""
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                try:
                    yield json.loads(line)
                except json.JSONDecodeError as error:
                    raise ValueError(f"{path}, line {number}: not a row ({error})") from None


def read_all(folder: Path = DATA) -> list[Row]:
    """All published rows, file by file in the order of their names."""
    paths = sorted(path for path in folder.glob("*.jsonl") if path.name != LOCAL.name)
    return [row for path in paths for row in read(path)]


def on_gpu(row: Row) -> bool:
    """Whether a row was measured on a GPU."""
    return "device" in row


def table_of(row: Row) -> str:
    """The table of a row's case, the same for the host and a GPU."""
    name: str = row["case"].split("/")[0]
    return name.removeprefix("gpu-")


def machine_title(row: Row) -> str:
    """What a row was measured on, in words; times of different titles are not compared."""
    if on_gpu(row):
        device = row["device"]
        return f"{device['name']}, driver {device['driver']}, clocks {device['clocks']}"
    return f"{row['machine']['cpu']}, {row['machine']['threads']} threads"


def is_peer(row: Row) -> bool:
    """Whether a row is another library's attention: not ours, not our dense mode, not a plain product."""
    return bool(row["kind"] == "attention" and row["checked"] and not row["contender"].startswith(OWN))
