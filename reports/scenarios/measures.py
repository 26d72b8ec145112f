"""What is measured of a row: the functions that its tables, and the technical report, compare."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .runs import Row

__all__ = ["all_first", "log_probability", "ratio"]


def ratio(total: str, of: str, buckets: slice = slice(None)) -> Callable[[Row], float]:
    """A sum of a row over the tokens that it was summed over; of some buckets, if there are several."""

    def value(row: Row) -> float:
        sums = row[of]
        part, count = (np.sum(np.atleast_1d(sums[name])[buckets]) for name in (total, "count"))
        return float(part / count)

    return value


def log_probability(row: Row) -> float:
    """Of a retrieval's answer."""
    return float(row["log_probability"])


def all_first(row: Row) -> float:
    """Whether every token of a retrieval's answer was the most likely one."""
    return float(not any(row["ranks"]))
