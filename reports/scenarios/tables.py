"""What the tables of all scenarios share: numbers with their intervals, families beside one another."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from typing import Any

import numpy as np

from reports.report_tables import markdown_table

from .comparison import Comparison, bootstrap_interval
from .families import DENSE
from .runs import Row

__all__ = [
    "comparison_table",
    "density_and_family",
    "factor",
    "groups",
    "interval",
    "nats",
    "over_documents",
    "p_value",
    "percent",
    "perplexity",
    "points",
]


def interval(ends: Sequence[float], show: Callable[[float], str]) -> str:
    """Mean and interval, the smaller end first."""
    mean, low, high = map(show, ends)
    return f"{mean} [{low}, {high}]"


def p_value(value: float | None) -> str:
    return "" if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}"


def perplexity(loss: float) -> str:
    return f"{math.exp(loss):.2f}"


def factor(difference: float) -> str:
    return f"{math.exp(difference):.3f}x"


def percent(share: float) -> str:
    return f"{share:.1%}"


def points(difference: float) -> str:
    return f"{100 * difference:+.1f}"


def nats(value: float) -> str:
    return f"{value:.2f}"


def comparison_table(
    compared: Iterable[Comparison],
    what: str,
    show: Callable[[float], str],
    show_difference: Callable[[float], str],
) -> str:
    """One line a family, the best of a density first and in bold."""
    lines = [
        [
            f"**`{line.family}`**" if line.best and line.family != DENSE else f"`{line.family}`",
            f"{line.tokens}",
            f"{line.density:g}",
            percent(line.share),
            f"{line.documents}",
            interval(line.mean, show),
            "" if line.family == DENSE else interval(line.to_dense, show_difference),
            p_value(line.p_dense),
            p_value(line.p_best),
        ]
        for line in compared
    ]
    header = ["family", "tokens", "density", "share", "documents", what, "to dense", "p, dense", "p, best"]
    return markdown_table(header, lines)


def groups(rows: Iterable[Row], key: Callable[[Row], Any]) -> list[tuple[Any, list[Row]]]:
    """Rows by a key, the keys in ascending order."""
    return [(value, list(group)) for value, group in groupby(sorted(rows, key=key), key=key)]


def density_and_family(row: Row) -> tuple[float, str]:
    """Dense attention, whose density is the highest, comes first."""
    return -row["density"], row["family"]


def over_documents(rows: Iterable[Row], measure: Callable[[Row], float]) -> tuple[float, float, float]:
    """Mean and interval over documents; several rows of one are averaged."""
    by_document = groups(rows, lambda row: row["document"])
    return bootstrap_interval([np.mean([measure(row) for row in found]) for _, found in by_document])
