"""Any function of a score and of where it stands."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import numpy.typing as npt

from ..formats import changes
from ..formats.work import Request
from ..jit import compiled_by_user
from ._change import Change
from ._derivative import NotDerived, derivative_of

__all__ = ["Modification", "modify"]

_SIGNATURE = "float64(float64, int64, int64, int64)"


class Modification(Change):
    """See :func:`modify`."""

    kind = "modify"

    def __init__(
        self, function: Callable[..., Any], derivative: Callable[..., Any] | None, reason: str | None
    ) -> None:
        self.function, self.derivative = function, derivative
        #: Why there is no derivative, if there is none.
        self.reason = reason

    @property
    def key(self) -> Hashable:
        return self.kind, self.function, self.derivative

    def describe(self) -> str:
        backward = f"no derivative: {self.reason}" if self.derivative is None else "with derivative"
        return f"modify: {getattr(self.function, '__name__', 'function')}(score, head, i, j), {backward}"

    def step(self, request: Request, lead: tuple[int, ...]) -> changes.Function:
        return changes.Function(self.function, self.derivative)

    def gradient(self, found: npt.NDArray[Any], request: Request) -> None:
        raise AssertionError("a function has no parameters that are known")


def modify(function: Callable[..., Any], derivative: Callable[..., Any] | None = None) -> Modification:
    """``function(score, head, i, j)`` in place of the score of query i and key j.

    Parameters
    ----------
    function : callable
        An ordinary Python function that Numba compiles into the kernels: arithmetic, conditions, loops,
        functions of ``math`` and NumPy on numbers, and arrays that it closes over, as they are now. `score`
        is scale * (q . k) as the changes before have left it, `head` a query head, i and j are numbers of a
        query and a key. It is called for selected pairs only.
    derivative : callable, optional
        ``derivative(score, head, i, j)``, the derivative with respect to `score`. If it is not given, it is
        derived from the function's source; where that is not possible, the forward pass works, and the
        backward pass says why it does not.

    Examples
    --------
    >>> import numpy as np, numba_sparse_attn as nsa
    >>> q = k = np.zeros((1, 4, 4))
    >>> same_parity = nsa.scores.modify(lambda score, head, i, j: score - 99.0 * ((i + j) % 2))
    >>> out = nsa.sparse_attention(q, k, np.eye(4)[None], nsa.patterns.full(4), scores=same_parity)
    >>> out[0, 1].round(6).tolist()
    [0.0, 0.5, 0.0, 0.5]
    """
    compiled_by_user(function, "score_mod", signature=_SIGNATURE)
    reason = None
    if derivative is None:
        try:
            derivative = derivative_of(function)
            compiled_by_user(derivative, "the derivative of score_mod", signature=_SIGNATURE, shown=function)
        except NotDerived as error:
            derivative, reason = None, str(error)
    else:
        compiled_by_user(derivative, "derivative", signature=_SIGNATURE)
    return Modification(function, derivative, reason)
