"""Rows of the scenarios as phrases and tables: factors beside dense attention, with intervals and tests."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from reports.report_tables import markdown_table
from reports.scenarios.comparison import Comparison, compare
from reports.scenarios.families import DENSE
from reports.scenarios.runs import Row
from reports.scenarios.summary import all_first, log_probability, ratio

from .evidence import MissingError, result_source
from .ledger import Ledger, Source

__all__ = ["MEASURES", "Measured", "largest", "measured", "phrase", "table"]

#: Below it, a difference is called significant: after Holm's adjustment for all tests of a comparison.
SIGNIFICANT = 0.05


@dataclass(frozen=True)
class Measure:
    """What is compared, and how a mean and a difference from dense attention are shown."""

    of_row: Callable[[Row], float]
    higher_is_better: bool
    show: Callable[[float], str]
    show_difference: Callable[[float], str]
    title: str


def _perplexity(of: str) -> Measure:
    # The mean of losses is the logarithm of a perplexity, a difference of them that of a factor.
    return Measure(
        ratio("loss", of), False, lambda loss: f"{math.exp(loss):.2f}", lambda d: f"{math.exp(d):.2f}", "×"
    )


def _points(of_row: Callable[[Row], float]) -> Measure:
    return Measure(
        of_row, True, lambda share: f"{share:.1%}", lambda d: f"{100 * d:+.1f}", "percentage points"
    )


MEASURES = {
    "perplexity": _perplexity("positions"),
    "accuracy": _points(ratio("hits", "positions")),
    "perplexity_changes": _perplexity("changes"),
    "accuracy_changes": _points(ratio("hits", "changes")),
    "found": _points(all_first),
    "log_probability": Measure(log_probability, True, "{:.2f}".format, "{:+.2f}".format, "nats"),
}


@dataclass(frozen=True)
class Measured:
    """The comparison of a scenario by one measure."""

    scenario: str
    name: str
    measure: Measure
    lines: tuple[Comparison, ...]

    def source(self, place: str) -> Source:
        """Where a number of it comes from."""
        return result_source(self.scenario, f"{self.name}, {place}")

    def line(self, family: str, density: float) -> Comparison:
        """Of a family at a density; of several lengths, the longest."""
        found = [
            line
            for line in self.lines
            if line.family == family and (family == DENSE or math.isclose(line.density, density))
        ]
        if not found:
            raise MissingError(f"{self.scenario} has no {family} at density {density:g}")
        return found[-1]

    def best(self, density: float) -> Comparison:
        """The best family of a density; of several lengths, that of the longest."""
        found = [line for line in self.lines if line.best and math.isclose(line.density, density)]
        if not found:
            raise MissingError(f"{self.scenario} has no family at density {density:g}")
        return found[-1]

    def budgets(self) -> list[tuple[int, float]]:
        """Lengths and densities, those of dense attention left out."""
        return list(dict.fromkeys((line.tokens, line.density) for line in self.lines if line.family != DENSE))


def measured(content: dict[str, Any], scenario: str, name: str) -> Measured:
    """Compare the rows of a scenario's file by a measure."""
    rows = [row for row in content["rows"] if not name.endswith("_changes") or row["changes"]["count"]]
    measure = MEASURES[name]
    lines = compare(rows, measure.of_row, higher_is_better=measure.higher_is_better)
    return Measured(scenario, name, measure, tuple(lines))


def phrase(found: Measured, what: str, family: str, density: float, ledger: Ledger) -> str:
    """Mean, difference from dense attention, best family, documents, or what the tests say.

    Parameters
    ----------
    what : {"mean", "to_dense", "best", "best_to_dense", "documents", "tokens", "tests"}
    family, density
        Of "mean" and "to_dense"; the density of "best" and "best_to_dense".
    """
    if what == "best_to_dense":
        what, family = "to_dense", found.best(density).family
    if what in {"mean", "to_dense"}:
        line = found.line(family, density)
        show = found.measure.show if what == "mean" else found.measure.show_difference
        middle, low, high = map(show, getattr(line, what))
        text = f"{middle} [{low}, {high}]"
        place = f"{family}, density {line.density:g}"
    elif what == "best":
        text, place = f"`{found.best(density).family}`", f"best, density {density:g}"
    elif what in {"documents", "tokens"}:
        values = [getattr(line, what) for line in found.lines]
        text, place = " to ".join(f"{value:,}" for value in sorted({min(values), max(values)})), what
    elif what == "tests":
        tests = [p for line in found.lines for p in (line.p_dense, line.p_best) if p is not None]
        low = sum(p < SIGNIFICANT for p in tests)
        text, place = f"{low if low else 'none'} of {len(tests)} tests", "adjusted p-values"
    else:
        raise MissingError(f"quality has no {what!r}")
    return text + ledger.note(found.source(place), {what: text})


def table(found: Measured, ledger: Ledger) -> str:
    """A line a family, a column a length and density: the mean of dense attention and differences from it."""
    budgets = found.budgets()
    dense = found.line(DENSE, 1.0)
    families = {line.family: None for line in sorted(found.lines, key=_order(found)) if line.family != DENSE}
    by_place = {(line.tokens, line.density, line.family): line for line in found.lines}
    lengths = len({tokens for tokens, _ in budgets}) > 1
    shown: dict[tuple[int, float], dict[str, str]] = {budget: {} for budget in budgets}
    lines = []
    for family in families:
        cells = []
        for budget in budgets:
            line = by_place.get((*budget, family))
            if line is None:
                cells.append("")
                continue
            middle, low, high = map(found.measure.show_difference, line.to_dense)
            shown[budget][family] = f"{middle} [{low}, {high}]"
            cells.append(f"**{middle}** [{low}, {high}]" if line.best else shown[budget][family])
        lines.append([f"`{family}`", *cells])
    header = ["family"]
    for budget in budgets:
        place = f"density {budget[1]:g}" + (f", {budget[0]:,} tokens" if lengths else "")
        header.append(place + ledger.note(found.source(place), shown[budget]))
    text = f"{found.measure.show(dense.mean[0])}"
    mark = ledger.note(found.source(f"dense, {dense.tokens:,} tokens"), {"mean": text})
    return markdown_table(header, [[f"`dense`: {text}{mark}", *[""] * len(budgets)], *lines])


def _order(found: Measured) -> Callable[[Comparison], float]:
    sign = -1.0 if found.measure.higher_is_better else 1.0
    return lambda line: sign * line.to_dense[0]


def largest(content: dict[str, Any], field: str, ledger: Ledger) -> str:
    """The largest value of a field over the documents of ``logits``; "documents" counts them."""
    rows = content["rows"]
    if field == "documents":
        text = f"{len(rows)}"
    else:
        text = f"{max(row[field] for row in rows):.1e}".replace("e-0", "e-")
    return text + ledger.note(result_source("logits", "largest of all documents"), {field: text})
