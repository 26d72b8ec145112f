"""What all changes of scores have in common, and how a call takes them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ..arrays import host_array
from ..errors import ArgumentError, DtypeError
from ..formats.changes import Step
from ..formats.work import Request

__all__ = ["Change", "as_changes", "parameter"]


class Change(ABC):
    """A change of scores: made by the functions of :mod:`numba_sparse_attn.scores`, handed to ``scores=``.

    Attributes
    ----------
    learnable : bool
        Whether the backward pass returns a gradient for it.
    """

    learnable: bool = False
    #: What ``Plan.explain`` and refusals call it.
    kind: str

    def bound(self, pattern: Any) -> Change:
        """The change for a pattern in the form in which it was passed."""
        return self

    @property
    @abstractmethod
    def key(self) -> Hashable:
        """Everything that a plan depends on; values of parameters are not among it."""

    @abstractmethod
    def describe(self) -> str:
        """One line for ``Plan.explain``."""

    @abstractmethod
    def step(self, request: Request, lead: tuple[int, ...]) -> Step:
        """What an engine is told, for one call; refuses what does not fit the call.

        `lead` are the call's axes before heads.
        """

    @abstractmethod
    def gradient(self, found: npt.NDArray[Any], request: Request) -> Any:
        """The parameters' gradient in the form of the parameters, from what an engine gave back."""


def as_changes(scores: Any, pattern: Any) -> tuple[Change, ...]:
    """What was passed as ``scores=`` beside a pattern: nothing, a change, or several in their order."""
    if scores is None:
        return ()
    changes = tuple(scores) if isinstance(scores, Sequence) else (scores,)
    for change in changes:
        if not isinstance(change, Change):
            raise ArgumentError(
                f"scores with an item of type {type(change).__name__}",
                "what the functions of numba_sparse_attn.scores return, one or a sequence of them",
                "wrap a function in scores.modify(function), an array in scores.bias(array)",
            )
    if sum(change.kind == "sink" for change in changes) > 1:
        raise ArgumentError("scores with several sinks", "one sink", "add their exponentials: logaddexp")
    return tuple(change.bound(pattern) for change in changes)


def parameter(value: Any, name: str) -> npt.NDArray[Any]:
    """Numbers of a change, in a floating type."""
    array = host_array(value, name)
    if array.dtype.kind in "iub":
        return array.astype(np.float32)
    if array.dtype.kind not in "fV":
        raise DtypeError(f"{name} of {array.dtype.name}", "floating-point numbers", "convert it")
    return array
