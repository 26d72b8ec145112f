"""Runs that can be interrupted: a results file that is whole after every row, and no row is made twice."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.progress import Progress
from benchmarks.rows import ROOT, provenance

__all__ = ["RESULTS", "Job", "Results", "Row", "run_missing"]

RESULTS = ROOT / "reports" / "results"

Row = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """One row to be made: the fields that tell it from others, its share of the time, the work."""

    key: Row
    weight: float
    work: Callable[[], Row]


class Results:
    """The rows of one scenario in one JSON file.

    Parameters
    ----------
    path : Path
    scenario : str
    model : dict
        Facts about the model. A file with rows of another model is refused: they are never mixed.
    """

    def __init__(self, path: Path, scenario: str, model: dict[str, str]) -> None:
        self._path = path
        self._run = -1
        self._content: dict[str, Any] = {"scenario": scenario, "model": model, "runs": [], "rows": []}
        if path.exists():
            self._content = json.loads(path.read_text("utf-8"))
            stored = self._content["model"]["sha256"]
            if stored != model["sha256"]:
                raise ValueError(
                    f"{path} has rows of the model {stored[:12]}, this one is {model['sha256'][:12]}; "
                    "name another file with --output"
                )

    @property
    def rows(self) -> list[Row]:
        """All rows so far."""
        return list(self._content["rows"])

    def begin(self) -> None:
        """Rows from now on are of a run of this commit on this machine."""
        about = provenance(0)
        del about["seed"]  # rows have their own
        if about not in self._content["runs"]:
            self._content["runs"].append(about)
        self._run = self._content["runs"].index(about)

    def holds(self, key: Row) -> bool:
        """Whether a row with these fields is there."""
        return any(all(row.get(name) == key[name] for name in key) for row in self._content["rows"])

    def add(self, row: Row) -> None:
        """Add a row. The file is replaced in one step, so it is never seen half written."""
        self._content["rows"].append({**row, "run": self._run})
        self._path.parent.mkdir(parents=True, exist_ok=True)
        new = self._path.with_suffix(".new")
        new.write_text(self._text(), "utf-8")
        os.replace(new, self._path)

    def _text(self) -> str:
        """One row a line, so that a difference between two versions can be read."""
        head = {name: value for name, value in self._content.items() if name != "rows"}
        lines = ",\n".join(json.dumps(row) for row in self._content["rows"])
        return f'{json.dumps(head, indent=1)[:-2]},\n "rows": [\n{lines}\n]\n}}\n'


def run_missing(jobs: Sequence[Job], results: Results) -> None:
    """Run the jobs whose rows are not there yet, in order."""
    missing = [job for job in jobs if not results.holds(job.key)]
    progress = Progress(sum(job.weight for job in missing))
    progress.message(f"{len(jobs)} rows, {len(jobs) - len(missing)} of them are there already")
    if missing:
        results.begin()
    for job in missing:
        progress.show(", ".join(str(value) for value in job.key.values()))
        begin = time.perf_counter()
        row = job.work()
        results.add({**job.key, **row, "seconds": round(time.perf_counter() - begin, 2)})
        progress.step(job.weight)
    progress.clear()
