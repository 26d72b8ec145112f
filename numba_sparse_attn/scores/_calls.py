"""Between a plan and an engine: numbers for a call, and gradients in the form in which parameters came."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import ArgumentError
from ..formats.changes import Changes
from ..formats.pair_gradients import numbers_of
from ..formats.work import Request
from ._change import Change
from .modify import Modification
from .sink import Sink

__all__ = ["gradients_of", "kinds_of", "require_derivatives", "sink_of", "steps_of"]

_Array = npt.NDArray[Any]


def kinds_of(scores: Sequence[Change]) -> tuple[str, ...]:
    """Names of the changes that an engine has to apply; a sink is none."""
    return tuple(change.kind for change in scores if not isinstance(change, Sink))


def sink_of(scores: Sequence[Change]) -> Sink | None:
    """The sink among the changes."""
    return next((change for change in scores if isinstance(change, Sink)), None)


def steps_of(
    scores: Sequence[Change], request: Request, lead: tuple[int, ...], engine: str
) -> tuple[Changes, ...]:
    """What an engine is handed behind the arrays: one item or none. `lead` are the axes before heads."""
    steps = tuple(change.step(request, lead) for change in scores if not isinstance(change, Sink))
    sink = sink_of(scores)
    if sink and engine == "reference":
        return (Changes(steps, sink.column(request.heads, request.accumulator)[:, 0]),)
    return (Changes(steps),) if steps else ()


def require_derivatives(scores: Sequence[Change]) -> None:
    """Refuse to go back through a function that has no derivative."""
    for change in scores:
        if isinstance(change, Modification) and change.derivative is None:
            raise ArgumentError(
                f"a backward pass through {change.describe()}",
                "functions whose derivative is given, or can be derived from their source",
                "pass derivative= to scores.modify",
            )


def gradients_of(
    scores: Sequence[Change],
    request: Request,
    changes: tuple[Changes, ...],
    found: Sequence[_Array | None],
    of_sink: _Array | None,
) -> tuple[Any, ...]:
    """One item a change, None where it does not learn; `found` is what the engine returned, if it ran."""
    results: list[Any] = []
    number = 0
    for change in scores:
        if isinstance(change, Sink):
            results.append(None if of_sink is None else change.gradient(of_sink, request))
            continue
        if not change.learnable:
            results.append(None)
        else:
            total = found[number] if found else np.zeros(numbers_of(changes[0].steps[number]))
            assert total is not None
            results.append(change.gradient(total, request))
        number += 1
    return tuple(results)
