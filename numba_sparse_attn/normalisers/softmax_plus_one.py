"""Softmax with a one in the denominator: a query may attend to nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .description import Normaliser

__all__ = ["SoftmaxPlusOne", "add_one", "softmax_plus_one"]


@dataclass(frozen=True)
class SoftmaxPlusOne(Normaliser):
    """Description of softmax-plus-one."""

    @property
    def name(self) -> str:
        """Its name is all there is."""
        return "softmax_plus_one"

    @property
    def needs_rows(self) -> bool:
        """Softmax, times a factor for every row."""
        return False


def softmax_plus_one() -> SoftmaxPlusOne:
    """Weights ``exp(s) / (1 + sum of exp(s))``: softmax beside a key with score 0 and value 0.

    Where all scores are far below 0 the weights, and with them the output, go to 0 instead of to a mean.
    (Miller, "Attention is off by one", 2023.)

    Every engine runs it, at the cost of softmax: the output is softmax's times ``exp(lse - lse')`` with
    ``lse' = log(1 + exp(lse))``, and with that `lse'` the backward pass is softmax's. `lse'` is what
    ``return_lse=True`` gives; it is -inf for a query without keys.

    Examples
    --------
    >>> import numpy as np, numba_sparse_attn as nsa
    >>> q, k, v = np.zeros((1, 4)), np.zeros((3, 4)), np.ones((3, 1))
    >>> one = nsa.normalisers.softmax_plus_one()
    >>> nsa.sparse_attention(q, k, v, np.ones((1, 3), bool), normaliser=one).round(12).item()
    0.75
    """
    return SoftmaxPlusOne()


def add_one(out: npt.NDArray[Any], lse: npt.NDArray[Any]) -> None:
    """Results of softmax become those of softmax-plus-one, in place."""
    with np.errstate(invalid="ignore"):
        whole = np.where(np.isneginf(lse), lse, np.logaddexp(lse, lse.dtype.type(0.0)))
        # exp(lse - whole), which would be inf - inf where there are no keys.
        share = np.where(np.isneginf(lse), lse.dtype.type(0.0), np.exp(lse - whole))
    np.multiply(out, share[..., None], out=out, casting="unsafe")
    lse[...] = whole
