"""Attention sinks: a score without a key, which takes its share of every row's weight."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import ShapeError
from ..formats.changes import Step
from ..formats.work import Request
from ._change import Change, parameter

__all__ = ["Sink", "sink", "sink_gradient", "with_sink"]

_Array = npt.NDArray[Any]


class Sink(Change):
    """See :func:`sink`. No kernel knows of it: what it does to a row follows from the row's lse."""

    kind = "sink"

    def __init__(self, logits: _Array, learnable: bool) -> None:
        self.logits, self.learnable = logits, learnable

    @property
    def key(self) -> Hashable:
        return self.kind, self.learnable

    def describe(self) -> str:
        learns = "learnable" if self.learnable else "fixed"
        return f"attention sink: {learns}, logits of shape {self.logits.shape}"

    def step(self, request: Request, lead: tuple[int, ...]) -> Step:
        raise AssertionError("a sink is no step of a kernel")

    def logits_of(self, heads: int, accumulator: np.dtype[Any]) -> _Array:
        """A logit for every head."""
        if self.logits.size not in (1, heads):
            raise ShapeError(
                f"sink logits of {self.logits.size} heads for {heads} query heads",
                "one logit, or one a query head",
                "pass as many",
            )
        return np.broadcast_to(self.logits.astype(accumulator).reshape(-1), heads)

    def gradient(self, found: _Array, request: Request) -> _Array:
        if self.logits.size == 1:
            found = found.sum(keepdims=True)
        return found.reshape(self.logits.shape).astype(self.logits.dtype)


def sink(logits: Any, *, learnable: bool = True) -> Sink:
    """One more score in every row's softmax, for a key whose value is zero.

    ``out' = out * exp(lse - lse')`` with ``lse' = log(exp(lse) + exp(logit))``; ``return_lse=True`` returns
    lse'. A query without keys has output 0 and lse' = logit.

    Parameters
    ----------
    logits : float or array (heads,)
        A logit of 0 is "softmax plus one", -inf no sink at all.
    learnable : bool
        Whether the backward pass returns the gradient of the logits.

    Examples
    --------
    >>> import numpy as np, numba_sparse_attn as nsa
    >>> q = k = np.zeros((1, 2, 4))
    >>> zero = nsa.scores.sink(0.0)
    >>> nsa.sparse_attention(q, k, np.ones((1, 2, 1)), nsa.patterns.causal(2), scores=zero)[0, :, 0].round(3)
    array([0.5  , 0.667])
    """
    found = parameter(logits, "logits")
    if found.ndim > 1 or not found.size:
        raise ShapeError(
            f"sink logits of shape {found.shape}", "a number or (heads,)", "pass one a query head"
        )
    return Sink(found, learnable)


def with_sink(out: _Array, lse: _Array, logits: _Array) -> None:
    """Let a sink take its share of `out` (..., heads, n_q, d_v), in place; lse becomes that with the sink."""
    logits = logits[:, None]
    with np.errstate(invalid="ignore"):
        total = np.logaddexp(lse, logits)
        share = np.exp(lse - total)
    np.copyto(share, 0, where=np.isneginf(lse))  # nothing is there to be shared, whatever the sink is
    lse[...] = total
    with np.errstate(invalid="ignore"):
        out[...] = (out.astype(lse.dtype, copy=False) * share[..., None]).astype(out.dtype)


def sink_gradient(dout: _Array, out: _Array, lse: _Array, logits: _Array) -> _Array:
    """Gradient of every head's logit: ``-sum over rows of exp(logit - lse) * (dout . out)``, in float64.

    A row whose lse is the logit has no keys, or none that counts: its output is 0, whatever `dout` holds.
    """
    kind, logits = lse.dtype, logits[:, None]
    pull = np.einsum("...d,...d->...", dout.astype(kind, copy=False), out.astype(kind, copy=False))
    alone = lse == logits
    share = np.exp(np.where(alone, 0, logits - np.where(alone, 0, lse)).astype(np.float64))
    each = -np.where(alone, 0.0, share * pull).sum(axis=-1)
    return np.asarray(each.reshape(-1, each.shape[-1]).sum(axis=0))
