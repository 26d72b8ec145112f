"""What the report may rely on: benchmark rows, rows of scenarios, and constants of the source.

Every look-up that finds nothing is an error: the text claims only what is in a file.
"""

from __future__ import annotations

import ast
import fnmatch
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import rows
from benchmarks.rows import OWN, ROOT, Row, on_gpu
from reports.make_report import machines
from reports.scenarios.runs import RESULTS

from .ledger import Source

__all__ = ["PLACES", "Evidence", "Machine", "MissingError", "bench_source", "field_name", "result_source"]

#: What a place is called in the text.
PLACES = {"host": False, "gpu": True}


class MissingError(LookupError):
    """Something that the text speaks of is in no file."""


@dataclass(frozen=True)
class Machine:
    """The machine of a place with most rows, and of rows for the same thing the last one."""

    title: str
    rows: Sequence[Row]


def bench_source(row: Row) -> Source:
    """Where a benchmark row stands."""
    command = f"python benchmarks/run.py --cases '<place>' --json {row['file']}"
    return Source(row["file"], row["case"], command)


def field_name(row: Row, field: str) -> str:
    """A field as it is noted down: with the contender, unless the row is ours or nobody contends."""
    rival = row["kind"] == "attention" and not row["contender"].startswith(OWN)
    return f"{row['contender']} {field}" if rival else field


def result_source(scenario: str, place: str) -> Source:
    """Where a comparison of a scenario's rows comes from."""
    return Source(f"reports/results/{scenario}.json", place, f"python -m reports.scenarios.{scenario}")


class Evidence:
    """All files, read once.

    Parameters
    ----------
    data, results : Path
        Folders with benchmark rows and with rows of scenarios.
    """

    def __init__(self, data: Path = rows.DATA, results: Path = RESULTS) -> None:
        found = []
        for path in sorted(path for path in data.glob("*.jsonl") if path.name != rows.LOCAL.name):
            name = path.relative_to(ROOT) if path.is_relative_to(ROOT) else Path(path.name)
            found += [{**row, "file": name.as_posix()} for row in rows.read(path)]
        self._machines = {
            place: max(
                machines(row for row in found if on_gpu(row) == gpu).items(),
                key=lambda item: len(item[1]),
                default=None,
            )
            for place, gpu in PLACES.items()
        }
        self._results = {
            path.stem: json.loads(path.read_text("utf-8")) for path in sorted(results.glob("*.json"))
        }

    def fingerprint(self) -> str:
        """Of all rows: figures show some that no sentence speaks of."""
        content = json.dumps([self._machines, self._results])
        return hashlib.sha256(content.encode()).hexdigest()

    def machine(self, place: str) -> Machine:
        """The machine of a place."""
        found = self._machines[place]
        if found is None:
            raise MissingError(f"no rows of the {place} in benchmarks/data")
        return Machine(*found)

    def own(self, case: str) -> Row:
        """Our row of a case, or its only one."""
        found = [row for row in self._of(case) if row["kind"] != "attention" or "speedup" in row]
        if not found:
            raise MissingError(f"no row of ours for the case {case!r} in benchmarks/data")
        return found[-1]

    def by(self, case: str, contender: str) -> Row:
        """A contender's row of a case."""
        for row in self._of(case):
            if row["contender"] == contender:
                return row
        raise MissingError(f"no row of {contender} for the case {case!r} in benchmarks/data")

    def _of(self, case: str) -> list[Row]:
        found = [row for item in self._machines.values() if item for row in item[1] if row["case"] == case]
        if not found:
            raise MissingError(f"no row for the case {case!r} in benchmarks/data")
        return found

    def has_cases(self, place: str, glob: str) -> bool:
        """Whether there are rows of cases with such names."""
        found = self._machines[place]
        return found is not None and any(fnmatch.fnmatchcase(row["case"], glob) for row in found[1])

    def has_result(self, scenario: str) -> bool:
        """Whether there are rows of a scenario."""
        return bool(scenario in self._results and self._results[scenario]["rows"])

    def result(self, scenario: str) -> dict[str, Any]:
        """The file of a scenario: model, runs, rows."""
        if not self.has_result(scenario):
            raise MissingError(f"no rows of the scenario {scenario!r} in reports/results")
        content: dict[str, Any] = self._results[scenario]
        return content

    @staticmethod
    def constant(file: str, name: str) -> Any:
        """The value of a constant that stands at the top level of a source file."""
        path = ROOT / file
        if not path.exists():
            raise MissingError(f"there is no file {file}")
        for node in ast.parse(path.read_text("utf-8")).body:
            targets = node.targets if isinstance(node, ast.Assign) else []
            targets = [node.target] if isinstance(node, ast.AnnAssign) else targets
            if any(isinstance(target, ast.Name) and target.id == name for target in targets):
                assert isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None
                return ast.literal_eval(node.value)
        raise MissingError(f"{file} has no constant {name}")
