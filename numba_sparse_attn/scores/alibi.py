"""Linear biases: the farther a key, the lower its score."""

from __future__ import annotations

import math
from collections.abc import Hashable
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import ArgumentError, ShapeError
from ..formats import changes
from ..formats.work import Request
from ._change import Change, parameter

__all__ = ["AlibiChange", "alibi"]


class AlibiChange(Change):
    """See :func:`alibi`."""

    kind = "alibi"

    def __init__(self, slopes: npt.NDArray[Any], offset: int | None, learnable: bool) -> None:
        self.slopes, self.offset, self.learnable = slopes, offset, learnable

    @property
    def key(self) -> Hashable:
        return self.kind, self.offset, self.learnable

    def describe(self) -> str:
        return f"ALiBi: slopes {self.slopes.min():.3g} to {self.slopes.max():.3g} of {len(self.slopes)} heads"

    def step(self, request: Request, lead: tuple[int, ...]) -> changes.Slopes:
        if len(self.slopes) != request.heads:
            raise ShapeError(
                f"ALiBi slopes of {len(self.slopes)} heads for {request.heads} query heads",
                "a slope a query head",
                "pass as many",
            )
        offset = request.n_k - request.n_q if self.offset is None else self.offset
        return changes.Slopes(self.slopes.astype(request.accumulator), offset, self.learnable)

    def gradient(self, found: npt.NDArray[Any], request: Request) -> npt.NDArray[Any]:
        return found.astype(self.slopes.dtype)


def alibi(slopes: Any, *, offset: int | None = None, learnable: bool = False) -> AlibiChange:
    """``score - slope[head] * |i + offset - j|``: ALiBi, attention with linear biases.

    Parameters
    ----------
    slopes : int or array (heads,)
        A number of heads stands for the slopes of the ALiBi paper: for a power of two,
        2^(-8/heads), 2^(-16/heads), ..., and in between those of the next smaller power of two, followed by
        every second one of the next larger.
    offset : int, optional
        Where query 0 stands among the keys; n_k - n_q if not given, so that the last query stands at the last
        key, as in :func:`numba_sparse_attn.patterns.causal`.
    learnable : bool
        Whether the backward pass returns the gradient of the slopes, an array (heads,).

    Examples
    --------
    >>> import numpy as np, numba_sparse_attn as nsa
    >>> nsa.scores.alibi(4).slopes.tolist()
    [0.25, 0.0625, 0.015625, 0.00390625]
    >>> q = k = np.zeros((1, 3, 4))
    >>> far = nsa.scores.alibi([np.log(2)])
    >>> out = nsa.sparse_attention(q, k, np.eye(3)[None], nsa.patterns.causal(3), scores=far)
    >>> (out[0, 2] * 7).round(6).tolist()
    [1.0, 2.0, 4.0]
    """
    if isinstance(slopes, int | np.integer) and not isinstance(slopes, bool):
        if slopes < 1:
            raise ArgumentError(f"alibi({slopes})", "at least one head", "pass a positive number of heads")
        found = np.array(_slopes_of_paper(int(slopes)))
    else:
        found = parameter(slopes, "slopes")
    if found.ndim != 1 or not found.size:
        raise ShapeError(f"slopes of shape {found.shape}", "(heads,)", "pass a slope a head")
    return AlibiChange(found, None if offset is None else int(offset), learnable)


def _slopes_of_paper(heads: int) -> list[float]:
    power = 1 << heads.bit_length() - 1
    slopes = [2.0 ** (-8.0 * (head + 1) / power) for head in range(power)]
    between = [2.0 ** (-8.0 * (head + 1) / (2 * power)) for head in range(0, 2 * power, 2)]
    return slopes + between[: heads - power] if math.log2(heads) % 1 else slopes
