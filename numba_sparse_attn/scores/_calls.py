"""Between a plan and an engine: numbers for a call, and gradients in the form in which parameters came."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import ArgumentError
from ..formats.changes import Changes, Scored
from ..formats.pair_gradients import numbers_of
from ..formats.work import Request
from ._change import Change
from .modify import Modification
from .sink import Sink

__all__ = ["CallScores", "kinds_of"]

_Array = npt.NDArray[Any]


def kinds_of(scores: Sequence[Change]) -> tuple[str, ...]:
    """Names of the changes that an engine has to apply, "learned ..." if they learn; a sink is none."""
    return tuple(
        f"learned {change.kind}" if change.learnable else change.kind
        for change in scores
        if not isinstance(change, Sink)
    )


class CallScores:
    """The changes of a plan, turned into what a call needs, and its gradients into what users get."""

    def __init__(self, scores: Sequence[Change], engine: str) -> None:
        self._scores, self._engine = scores, engine
        self._sink = next((change for change in scores if isinstance(change, Sink)), None)

    def require_derivatives(self) -> None:
        """Refuse to go back through a function that has no derivative."""
        for change in self._scores:
            if isinstance(change, Modification) and change.derivative is None:
                raise ArgumentError(
                    f"a backward pass through {change.describe()}",
                    "functions whose derivative is given, or can be derived from their source",
                    "pass derivative= to scores.modify",
                )

    def of(self, request: Request, lead: tuple[int, ...]) -> Scored:
        """What an engine is handed, and what is done afterwards; `lead` are the axes before heads."""
        steps = tuple(change.step(request, lead) for change in self._scores if change is not self._sink)
        logits = self._sink.logits_of(request.heads, request.accumulator) if self._sink else None
        if self._engine == "reference":  # the oracle has a sink of its own
            own = bool(self._sink and self._sink.learnable)
            return Scored((Changes(steps, logits),), None, own)
        learns = self._sink is not None and self._sink.learnable
        return Scored((Changes(steps),) if steps else (), logits, learns)

    def learnt(
        self, request: Request, scored: Scored, found: Sequence[_Array | None], of_sink: _Array | None
    ) -> tuple[tuple[Any, ...], ...]:
        """The fourth item of a backward call, or nothing if no change learns.

        `found` is what the engine returned, if it ran, `of_sink` the gradient of the sink's logits.
        """
        if not any(change.learnable for change in self._scores):
            return ()
        results: list[Any] = []
        number = 0
        for change in self._scores:
            if change is self._sink:
                nothing = np.zeros(request.heads) if of_sink is None else of_sink
                results.append(change.gradient(nothing, request) if change.learnable else None)
                continue
            total = None
            if change.learnable:
                total = found[number] if found else np.zeros(numbers_of(scored.changes[0].steps[number]))
            results.append(None if total is None else change.gradient(total, request))
            number += 1
        return (tuple(results),)
