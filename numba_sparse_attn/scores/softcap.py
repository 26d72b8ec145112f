"""Scores that are bent so that none exceeds a cap."""

from __future__ import annotations

import math
from collections.abc import Hashable
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import ArgumentError
from ..formats import changes
from ..formats.work import Request
from ._change import Change

__all__ = ["SoftCapChange", "softcap"]


class SoftCapChange(Change):
    """See :func:`softcap`."""

    kind = "softcap"

    def __init__(self, cap: float) -> None:
        self.cap = cap

    @property
    def key(self) -> Hashable:
        return self.kind, self.cap

    def describe(self) -> str:
        return f"soft-cap: {self.cap:g} * tanh(score / {self.cap:g})"

    def step(self, request: Request, lead: tuple[int, ...]) -> changes.SoftCap:
        return changes.SoftCap(self.cap)

    def gradient(self, found: npt.NDArray[Any], request: Request) -> None:
        raise AssertionError("a cap has no gradient")


def softcap(cap: float) -> SoftCapChange:
    """``score -> cap * tanh(score / cap)``: nearly the score where it is small, and never beyond the cap.

    Parameters
    ----------
    cap : float
        A positive number, such as 50 (Gemma 2) or 30 (Grok).

    Examples
    --------
    >>> import numpy as np, numba_sparse_attn as nsa
    >>> q = k = np.full((1, 2, 1), 100.0)
    >>> weights = nsa.sparse_attention(q, k * [[1], [2]], np.eye(2)[None], nsa.patterns.full(2),
    ...                                scores=nsa.scores.softcap(1.0))
    >>> weights[0, 0].tolist()
    [0.5, 0.5]
    """
    if isinstance(cap, bool) or not isinstance(cap, int | float | np.number) or not 0 < cap < math.inf:
        raise ArgumentError(f"cap={cap!r}", "a positive finite number", "leave the change out for no cap")
    return SoftCapChange(float(cap))
