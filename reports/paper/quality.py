"""Rows of the scenarios as phrases and tables: factors beside dense attention, with intervals and tests.

The report's sentences and tables are made here, and the lines on quality of the pattern cards and of
``benchmarks/run.py --report``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from reports.report_tables import markdown_table
from reports.scenarios.comparison import Comparison, compare
from reports.scenarios.families import DENSE
from reports.scenarios.measures import all_first, log_probability, ratio
from reports.scenarios.runs import RESULTS, Row

from .evidence import MissingError, result_source
from .ledger import UNBREAKABLE, Ledger, Source

__all__ = ["MEASURES", "Measured", "largest", "measured", "pattern_lines", "phrase", "table"]

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
    title = "all tokens" if of == "positions" else of
    return Measure(
        ratio("loss", of), False, lambda loss: f"{math.exp(loss):.2f}", lambda d: f"{math.exp(d):.2f}", title
    )


def _signed(share: float) -> str:
    """In percentage points; what rounds to zero has no sign of its own."""
    return f"{round(100 * share, 1) + 0.0:+.1f}"


def _points(of_row: Callable[[Row], float], title: str) -> Measure:
    return Measure(of_row, True, lambda share: f"{share:.1%}", _signed, title)


MEASURES = {
    "perplexity": _perplexity("positions"),
    "accuracy": _points(ratio("hits", "positions"), "all tokens"),
    "perplexity_changes": _perplexity("changes"),
    "accuracy_changes": _points(ratio("hits", "changes"), "changes"),
    "found": _points(all_first, "found"),
    "log_probability": Measure(log_probability, True, "{:.2f}".format, "{:+.2f}".format, "log probability"),
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
        text = _with_interval(show, getattr(line, what))
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


def table(compared: Sequence[Measured], ledger: Ledger) -> str:
    """A line a family, a column a measure, length and density; differences are those from dense attention.

    Dense attention has the first line, with its own mean.
    """
    columns = [(found, *budget) for found in compared for budget in found.budgets()]
    several = len({tokens for _, tokens, _ in columns}) > 1
    order = sorted(compared[0].lines, key=_order(compared[0]))
    families = list(dict.fromkeys(line.family for line in order if line.family != DENSE))
    header, cells = ["family"], []
    for found, tokens, density in columns:
        by_family = {
            line.family: line for line in found.lines if (line.tokens, line.density) == (tokens, density)
        }
        shown = {
            family: _with_interval(found.measure.show_difference, line.to_dense)
            for family, line in by_family.items()
        }
        dense = next(line for line in found.lines if line.family == DENSE and line.tokens == tokens)
        shown[DENSE] = found.measure.show(dense.mean[0])
        place = f"density {density:g}" + (f", {tokens:,} tokens" if several else "")
        mark = ledger.note(found.source(place), shown)
        title = f"{found.measure.title}, " if len(compared) > 1 else ""
        header.append(f"{title}{place}{mark}")
        best = {family for family, line in by_family.items() if line.best}
        cells.append([_bold(shown.get(family, ""), family in best) for family in [DENSE, *families]])
    names = [f"`{family}`" for family in [DENSE, *families]]
    return markdown_table(header, list(zip(names, *cells, strict=True)))


def _with_interval(show: Callable[[float], str], ends: Sequence[float]) -> str:
    middle, low, high = map(show, ends)
    return UNBREAKABLE.join([middle, f"[{low},", f"{high}]"])


def _bold(text: str, best: bool) -> str:
    """The number of the best family stands out, its interval does not."""
    number, space, interval = text.partition(UNBREAKABLE)
    return f"**{number}**{space}{interval}" if best else text


def _order(found: Measured) -> Callable[[Comparison], float]:
    sign = -1.0 if found.measure.higher_is_better else 1.0
    return lambda line: sign * line.to_dense[0]


#: The family that spends its budget on a pattern, if there is one.
_FAMILIES = {
    "bigbird": "bigbird",
    "block_local": "block_local",
    "dilated_window": "dilated",
    "document_qa": "document_qa",
    "exponential_offsets": "log_sparse",
    "indentation": "indentation",
    "longformer": "longformer",
    "outline": "outline",
    "random_keys": "random",
    "sink_window": "sink_window",
    "sliding_window": "window",
    "strided": "strided",
}
#: What is said of a pattern: scenario and measure, the unit of a mean and of a difference.
_LINES = (
    ("language", "perplexity", "perplexity {mean}, {difference} times that of dense attention"),
    ("code", "perplexity", "perplexity {mean}, {difference} times that of dense attention"),
    ("retrieval", "found", "{mean} of the answers found, {difference} points from dense attention"),
)


def pattern_lines(pattern: str, results: Path = RESULTS) -> list[tuple[str, str]]:
    """What the rows say of a pattern: (scenario and budget, measure with intervals); nothing without rows."""
    lines = []
    for scenario, name, words in _LINES:
        found = _measured_file(results / f"{scenario}.json", scenario, name)
        if found is None:
            continue
        for line in found.lines:
            if line.family == _FAMILIES.get(pattern):
                budget = f"{scenario}, {line.tokens:,} tokens, density {line.density:g}"
                text = words.format(
                    mean=_with_interval(found.measure.show, line.mean),
                    difference=_with_interval(found.measure.show_difference, line.to_dense),
                )
                lines.append((budget, f"{text}; {line.documents} documents".replace(UNBREAKABLE, " ")))
    return lines


@cache
def _measured_file(path: Path, scenario: str, name: str) -> Measured | None:
    if not path.exists():
        return None
    return measured(json.loads(path.read_text("utf-8")), scenario, name)


def largest(content: dict[str, Any], field: str, ledger: Ledger) -> str:
    """The largest value of a field over the documents of ``logits``; "documents" counts them."""
    rows = content["rows"]
    if field == "documents":
        text = f"{len(rows)}"
    else:
        text = f"{max(row[field] for row in rows):.1e}".replace("e-0", "e-")
    return text + ledger.note(result_source("logits", "largest of all documents"), {field: text})
