"""What all normalisers have: a name for plans and messages, and a check against a call."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from ..errors import ArgumentError

__all__ = ["Normaliser", "check_normaliser"]


@dataclass(frozen=True)
class Normaliser:
    """A way from scores to weights; made by the functions of :mod:`numba_sparse_attn.normalisers`."""

    @property
    def name(self) -> str:
        """What plans and messages call it."""
        raise NotImplementedError

    @property
    def needs_rows(self) -> bool:
        """Whether kernels of its own compute it, row by row; if not, it is a change to softmax's results."""
        return True

    @property
    def learnable(self) -> bool:
        """Whether the backward pass returns the gradient of a parameter as a fourth item."""
        return False

    @property
    def row_lse(self) -> float:
        """lse of every query with keys, where it is not looked for; NaN stands for log(number of keys)."""
        return math.nan

    def step_of(self, head: int) -> float:
        """alpha - 1 of a query head; 0 where weights are no entmax weights."""
        return 0.0

    def check(self, heads: int) -> None:
        """Refuse parameters that do not fit a call with so many query heads."""


def check_normaliser(given: Any, heads: int) -> Normaliser | None:
    """A normaliser that fits a call with so many heads, or None for softmax.

    Examples
    --------
    >>> check_normaliser("sparsemax", 4)
    Traceback (most recent call last):
    numba_sparse_attn.errors.ArgumentError: given: normaliser='sparsemax'; supported: None for softmax, ...
    """
    if given is None:
        return None
    if not isinstance(given, Normaliser):
        raise ArgumentError(
            f"normaliser={given!r}",
            "None for softmax, or what a function of numba_sparse_attn.normalisers returns",
            "pass normalisers.sparsemax(), for example",
        )
    given.check(heads)
    return given
