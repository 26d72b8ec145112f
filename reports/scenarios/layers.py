"""Layers with gradients written by hand: every function returns its result and the way back through it.

The way back takes the gradient of a scalar with respect to the result, and returns those with respect to the
array arguments, in their order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse
from scipy.special import erf

import numba_sparse_attn as nsa

__all__ = [
    "Back",
    "Floats",
    "Turn",
    "attend",
    "cross_entropy",
    "embed",
    "gelu",
    "linear",
    "normalise",
    "rotation",
]

#: Single precision where models are run, double where their gradients are checked.
Floats = npt.NDArray[np.floating[Any]]
Integers = npt.NDArray[np.int64]
Turn = npt.NDArray[np.complexfloating[Any]]

Back = Callable[[Floats], tuple[Floats, ...]]


def linear(x: Floats, weight: Floats, bias: Floats) -> tuple[Floats, Back]:
    """``x @ weight + bias`` over the last axis."""

    def back(dout: Floats) -> tuple[Floats, ...]:
        rows, drows = x.reshape(-1, x.shape[-1]), dout.reshape(-1, dout.shape[-1])
        return (drows @ weight.T).reshape(x.shape), rows.T @ drows, drows.sum(axis=0)

    # One product of matrices and not one for every leading index: a third faster at widths of 64.
    out = x.reshape(-1, x.shape[-1]) @ weight
    out += bias
    return out.reshape(*x.shape[:-1], -1), back


def normalise(x: Floats, gain: Floats, bias: Floats, epsilon: float = 1e-5) -> tuple[Floats, Back]:
    """Rows of mean 0 and variance 1, then a gain and a bias for every element: LayerNorm."""
    centred = x - x.mean(axis=-1, keepdims=True)
    inverse = 1.0 / np.sqrt(np.mean(centred * centred, axis=-1, keepdims=True) + x.dtype.type(epsilon))
    unit = centred * inverse

    def back(dout: Floats) -> tuple[Floats, ...]:
        leading = tuple(range(x.ndim - 1))
        dunit = dout * gain
        along = np.mean(dunit * unit, axis=-1, keepdims=True)
        dx = inverse * (dunit - dunit.mean(axis=-1, keepdims=True) - unit * along)
        return dx, np.sum(dout * unit, axis=leading), np.sum(dout, axis=leading)

    return unit * gain + bias, back


def gelu(x: Floats) -> tuple[Floats, Back]:
    """``x`` times the share of a normal distribution that is below it."""
    below = 0.5 * (1.0 + erf(x * x.dtype.type(0.5**0.5)))

    def back(dout: Floats) -> tuple[Floats, ...]:
        bell = np.exp(-0.5 * x * x) * x.dtype.type((2.0 * np.pi) ** -0.5)
        return (dout * (below + x * bell),)

    return x * below, back


def embed(table: Floats, numbers: Integers) -> tuple[Floats, Back]:
    """The rows of `table` with these numbers."""

    def back(dout: Floats) -> tuple[Floats, ...]:
        flat = numbers.ravel()
        # Many rows go to few places: a sparse product adds them ten times as fast as np.add.at.
        places = (np.ones(len(flat), dout.dtype), flat, np.arange(len(flat) + 1))
        chosen = sparse.csr_array(places, shape=(len(flat), len(table)))
        return (chosen.T @ dout.reshape(len(flat), -1),)

    return table[numbers], back


def rotation(tokens: int, head_dim: int, dtype: Any = np.float32) -> Turn:
    """exp(i * position * pace), the paces from 1 down to 1 / 10,000: rotary positions."""
    pace = 10_000.0 ** (-np.arange(0, head_dim, 2) / head_dim)
    return np.exp(1j * np.outer(np.arange(tokens), pace)).astype(np.result_type(dtype, np.complex64))


def _turned(x: Floats, turn: Turn | None) -> Floats:
    """Neighboring elements as complex numbers, turned by their position."""
    return x if turn is None else (x.view(turn.dtype) * turn).view(x.dtype)


def attend(qkv: Floats, heads: int, pattern: nsa.Pattern, turn: Turn | None = None) -> tuple[Floats, Back]:
    """Attention by `pattern`, queries and keys turned by their positions if there are any to turn by.

    Queries, keys and values lie behind one another on the last axis of `qkv`.
    """
    *leading, tokens, three = qkv.shape
    head_dim = three // (3 * heads)
    split = np.moveaxis(qkv.reshape(*leading, tokens, 3, heads, head_dim), -3, 0)
    q, k, v = (np.ascontiguousarray(np.swapaxes(part, -3, -2)) for part in split)
    q, k = _turned(q, turn), _turned(k, turn)
    seen, lse = nsa.sparse_attention(q, k, v, pattern, return_lse=True)

    def joined(by_head: Floats) -> Floats:
        return np.swapaxes(by_head, -3, -2).reshape(*leading, tokens, heads * head_dim)

    def back(dout: Floats) -> tuple[Floats, ...]:
        dseen = np.ascontiguousarray(np.swapaxes(dout.reshape(*leading, tokens, heads, head_dim), -3, -2))
        dq, dk, dv = nsa.sparse_attention_backward(dseen, q, k, v, seen, lse, pattern)
        # A turn is orthogonal: the way back is the turn the other way round.
        reverse = None if turn is None else turn.conj()
        found = _turned(dq, reverse), _turned(dk, reverse), dv
        return (np.concatenate([joined(part) for part in found], axis=-1),)

    return joined(seen), back


def cross_entropy(logits: Floats, targets: Integers) -> tuple[Floats, Back]:
    """-log p of every target, in nats."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    wanted = targets[..., None]

    def back(dout: Floats) -> tuple[Floats, ...]:
        dlogits = np.exp(log_p)
        np.put_along_axis(dlogits, wanted, np.take_along_axis(dlogits, wanted, -1) - 1.0, axis=-1)
        return (dlogits * dout[..., None],)

    return -np.take_along_axis(log_p, wanted, -1)[..., 0], back
