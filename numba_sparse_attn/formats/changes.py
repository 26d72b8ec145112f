"""Changes of scores as the engines see them: which, in which order, and the numbers of their parameters.

``numba_sparse_attn.scores`` makes these for a call; an engine applies them to the score of every pair, and
gives back the gradients of their parameters. Head (b, h) of a call has flat number ``b * heads + h``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Changes", "Function", "PairBias", "Relative", "Scored", "Slopes", "SoftCap", "Step"]


@dataclass(frozen=True, eq=False)
class PairBias:
    """``score + data[starts[flat head] + entry]``, entries counted through the head's CSR rows.

    Attributes
    ----------
    data : float array
        In the accumulator's type, contiguous. Heads with equal starts share their numbers.
    starts : int64 [batch * heads]
    wanted : bool
        Whether somebody asks for the gradient.
    """

    data: Any
    starts: npt.NDArray[np.int64]
    wanted: bool


@dataclass(frozen=True, eq=False)
class Slopes:
    """``score - slopes[head] * |i + offset - j|``; slopes in the accumulator's type."""

    slopes: Any
    offset: int
    wanted: bool


@dataclass(frozen=True, eq=False)
class Relative:
    """``score + table[starts[head] + clip(query_places[i] - key_places[j], 0, size - 1)]``.

    Attributes
    ----------
    table : float array
        One table after the other, in the accumulator's type.
    starts : int64 [heads]
    size : int
        Entries of a table.
    query_places, key_places : int64 [n_q], [n_k]
    """

    table: Any
    starts: npt.NDArray[np.int64]
    size: int
    query_places: npt.NDArray[np.int64]
    key_places: npt.NDArray[np.int64]
    wanted: bool


@dataclass(frozen=True)
class SoftCap:
    """``cap * tanh(score / cap)``."""

    cap: float
    wanted: bool = False


@dataclass(frozen=True)
class Function:
    """``function(score, head, i, j)``; `derivative`, if there is one, takes the same and is d / d score."""

    function: Callable[..., Any]
    derivative: Callable[..., Any] | None
    wanted: bool = False


Step = PairBias | Slopes | Relative | SoftCap | Function


@dataclass(frozen=True, eq=False)
class Changes:
    """What the scaled scores of a call go through on their way to the softmax.

    Attributes
    ----------
    steps : tuple of Step
        In their order.
    sink : array (heads,) or None
        Logits of a sink. Engines need not know it: see :mod:`numba_sparse_attn.scores.sink`. The oracle does.
    """

    steps: tuple[Step, ...]
    sink: npt.NDArray[Any] | None = None


@dataclass(frozen=True, eq=False)
class Scored:
    """What becomes of the scores of one call.

    Attributes
    ----------
    changes : tuple of Changes
        What the engine is handed behind the arrays: one item or none.
    sink : array (heads,) or None
        Logits, in the accumulator's type, of a sink that has its share of what the engine returns.
    sink_learns : bool
        Whether somebody asks for the gradient of the logits.
    """

    changes: tuple[Changes, ...]
    sink: npt.NDArray[Any] | None
    sink_learns: bool
