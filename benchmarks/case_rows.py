"""The fields of a row that follow from its case: what was measured, and which goals were met."""

from __future__ import annotations

from collections.abc import Sequence

from .kinds import (
    AttentionCase,
    BuildCase,
    Case,
    ColdStartCase,
    GatherCase,
    Goal,
    HostCase,
    MemoryCase,
    PlanCase,
    RateCase,
    SelectCase,
)
from .rows import Row

__all__ = ["goal_rows", "head_of"]

_KINDS = {
    AttentionCase: "attention",
    BuildCase: "build",
    PlanCase: "plan",
    MemoryCase: "memory",
    ColdStartCase: "cold",
    RateCase: "rate",
    GatherCase: "gather",
    HostCase: "host",
    SelectCase: "select",
}


def head_of(case: Case, contender: str) -> Row:
    """The fields that every row starts with."""
    head: Row = {"case": case.name, "kind": _KINDS[type(case)], "contender": contender}
    if isinstance(case, SelectCase):
        head["pattern"] = case.label
    elif not isinstance(case, RateCase):
        head["pattern"] = case.spec.label
    for name in ("direction", "heads", "kv_heads", "head_dim", "dtype", "what"):
        if hasattr(case, name):
            head[name] = getattr(case, name)
    return head


def goal_rows(goals: Sequence[Goal], row: Row) -> list[Row]:
    """Every goal whose measure the row has."""
    found = []
    for goal in goals:
        value = row.get(goal.measure)
        if isinstance(value, dict):
            value = value.get(goal.over)
        if value is not None:
            found.append({"goal": goal.label, "value": value, "met": goal.met(value)})
    return found
