"""Numbers and phrases that a placeholder of the text can ask for: looked up, formatted, noted down.

A placeholder names a method of :class:`Facts`; what follows are its arguments, as words. What compares two
things ("faster than") follows the rows, too, so that a sentence cannot claim what they no longer say.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.rows import ROOT, Row, machine_title
from benchmarks.tables import format_bytes, format_rate
from numba_sparse_attn.patterns.catalogue import CATALOGUE
from reports.scenarios.comparison import RESAMPLES

from . import grids, quality
from .evidence import Evidence, MissingError, bench_source, field_name, result_source
from .ledger import UNBREAKABLE, Ledger, Source

__all__ = ["Facts", "dotted"]

#: How a number is shown.
FORMATS: dict[str, Callable[[float], str]] = {
    "bytes": format_bytes,
    "integer": "{:,.0f}".format,
    "number": "{:.3g}".format,
    "percent": "{:.0%}".format,
    "seconds": grids.seconds,
    "times": grids.times,
}


def dotted(row: Row, field: str) -> Any:
    """A field, or a field of a field: ``speedup.torch_flex``."""
    value: Any = row
    for name in field.split("."):
        if not isinstance(value, dict) or name not in value:
            raise MissingError(f"the row of {row['contender']} for {row['case']!r} has no {field}")
        value = value[name]
    return value


class Facts:
    """What placeholders call, by name.

    Parameters
    ----------
    evidence : Evidence
    ledger : Ledger
        Gets every number that is shown.
    """

    def __init__(self, evidence: Evidence, ledger: Ledger) -> None:
        self._evidence, self._ledger = evidence, ledger

    def value(self, case: str, field: str, form: str, contender: str = "") -> str:
        """A field of a row: of ours, or of a contender's."""
        row = self._evidence.by(case, contender) if contender else self._evidence.own(case)
        return self._noted(row, field, FORMATS[form](dotted(row, field)))

    def time(self, case: str, contender: str = "") -> str:
        """How long it takes."""
        return self.value(case, "seconds", "seconds", contender)

    def rate(self, case: str, contender: str = "") -> str:
        """On selected pairs, or of the machine itself."""
        row = self._evidence.by(case, contender) if contender else self._evidence.own(case)
        return self._noted(row, "gflops" if "gflops" in row else "gbytes_per_second", format_rate(row))

    def beside(self, case: str, peer: str) -> str:
        """Of ours beside a peer: '3.45 times as fast as'."""
        return f"{self.value(case, f'speedup.{peer}', 'times')} times as fast as"

    def all_pairs(self, case: str, peer: str) -> str:
        """The same of a peer that computes all pairs."""
        return f"{self.value(case, f'speedup_all_pairs.{peer}', 'times')} times as fast as"

    def pattern(self, case: str) -> str:
        """The call that makes the pattern of a case; for code, so without a mark."""
        return str(self._evidence.own(case)["pattern"])

    def setting(self, case: str) -> str:
        """Heads, head dimension and element type of a case."""
        row = self._evidence.own(case)
        shown = f"{row['heads']} heads of dimension {row['head_dim']} in {row['dtype']}"
        return shown + self._ledger.note(bench_source(row), {"setting": shown})

    def machine(self, place: str) -> str:
        """What the rows of a place were measured on."""
        machine = self._evidence.machine(place)
        return machine_title(machine.rows[0]) + self._of_all(place, "machine", machine.title)

    def goal(self, case: str, measure: str) -> str:
        """The bound of a goal, as it is noted in the row."""
        row = self._evidence.own(case)
        for goal in row.get("goals", ()):
            name, _, bound = goal["goal"].rsplit(" ", 2)
            if name == measure:
                return self._noted(row, f"goal of {measure}", bound)
        raise MissingError(f"the case {case!r} has no goal of {measure}")

    def goals(self, place: str) -> str:
        """How many goals there are, how many of them were reached and how many missed, in words."""
        goals = [goal for row in self._evidence.machine(place).rows for goal in row.get("goals", ())]
        met = sum(goal["met"] for goal in goals)
        reached = f"{met} of {len(goals)}"
        missed = f"{len(goals) - met} missed" if met < len(goals) else "none is missed"
        return f"{reached} goals{self._of_all(place, 'goals', reached)} are reached, {missed}"

    def losses(self, place: str) -> str:
        """In how many cases a peer is faster, out of how many."""
        compared, lost = grids.lost(self._evidence.machine(place).rows)
        mark = self._of_all(place, "speedup", f"{len(lost)} of {compared} below 1")
        if not lost:
            return f"no peer is faster in any of the {compared} comparisons{mark}"
        return f"a peer is faster in {len(lost)} of the {compared} comparisons{mark}"

    def all_pairs_losses(self, place: str) -> str:
        """In how many cases somebody computes all pairs in less time."""
        compared, lost = grids.lost(self._evidence.machine(place).rows, "speedup_all_pairs")
        mark = self._of_all(place, "speedup_all_pairs", f"{len(lost)} of {compared} below 1")
        if not lost:
            return (
                f"in none of {compared} comparisons{mark} does it take anyone less time to compute all pairs"
            )
        return f"in {len(lost)} of {compared} comparisons{mark} it takes less time to compute all pairs"

    def constant(self, file: str, name: str, form: str = "number") -> str:
        """A constant of the source."""
        shown = FORMATS[form](self._evidence.constant(file, name))
        return shown + self._ledger.note(Source(file, name), {"value": shown})

    def parameter(self, file: str, name: str) -> str:
        """As `constant`, without a mark: for one that has had its mark in the same paragraph."""
        return FORMATS["number"](self._evidence.constant(file, name))

    def patterns(self) -> str:
        """How many named patterns there are."""
        return f"{len(CATALOGUE)}" + self._ledger.mark(
            Source("patterns/README.md", "rows of the atlas"), patterns=f"{len(CATALOGUE)}"
        )

    def tests(self, file: str) -> str:
        """How many test functions a file has."""
        if not (ROOT / file).exists():
            raise MissingError(f"there is no file {file}")
        count = Path(ROOT / file).read_text("utf-8").count("\ndef test_")
        return f"{count}" + self._ledger.mark(Source(file, "test functions"), count=f"{count}")

    def resamples(self) -> str:
        """How often documents are drawn anew for an interval."""
        return f"{RESAMPLES:,}" + self._ledger.mark(
            Source("reports/scenarios/comparison.py", "RESAMPLES"), value=f"{RESAMPLES:,}"
        )

    # Tables ------------------------------------------------------------------------------------------

    def missed_table(self, place: str) -> str:
        """Every goal of a place that was missed."""
        return grids.goal_table(self._evidence.machine(place).rows, self._ledger, met=False)

    def reached_table(self, place: str) -> str:
        """Every goal of a place that was reached."""
        return grids.goal_table(self._evidence.machine(place).rows, self._ledger, met=True)

    def attention_table(self, place: str, *globs: str) -> str:
        """Every case with such a name."""
        return grids.attention_table(self._evidence.machine(place).rows, globs, self._ledger)

    def lost_table(self, place: str) -> str:
        """Every case in which a peer is faster."""
        return grids.lost_table(self._evidence.machine(place).rows, self._ledger)

    def all_pairs_table(self, place: str) -> str:
        """Every case in which computing all pairs is faster."""
        return grids.lost_table(self._evidence.machine(place).rows, self._ledger, "speedup_all_pairs")

    # Quality -----------------------------------------------------------------------------------------

    def quality(self, scenario: str, measure: str, what: str, family: str = "", density: str = "") -> str:
        """A phrase about a comparison; see :mod:`quality`."""
        found = quality.measured(self._evidence.result(scenario), scenario, measure)
        return quality.phrase(found, what, family, float(density or 0), self._ledger)

    def quality_table(self, scenario: str, *measures: str) -> str:
        """Families by measures and densities."""
        content = self._evidence.result(scenario)
        found = [quality.measured(content, scenario, measure) for measure in measures]
        return quality.table(found, self._ledger)

    def model(self, scenario: str) -> str:
        """The file of the model that a scenario ran."""
        name = self._evidence.result(scenario)["model"]["file"]
        return f"`{name}`" + self._ledger.mark(result_source(scenario, "model"), file=name)

    def logits(self, field: str) -> str:
        """The largest of an error of the logits over all documents."""
        return quality.largest(self._evidence.result("logits"), field, self._ledger)

    # ------------------------------------------------------------------------------------------------

    def _of_all(self, place: str, field: str, shown: str) -> str:
        """The mark of something that all rows of a machine say together."""
        files = sorted({row["file"] for row in self._evidence.machine(place).rows})
        return self._ledger.note(Source(", ".join(files), "all rows"), {field: shown})

    def _noted(self, row: Row, field: str, shown: str) -> str:
        shown = shown.replace(" ", UNBREAKABLE)
        return shown + self._ledger.note(bench_source(row), {field_name(row, field): shown})
