"""How the gradient of a token in the last layer spreads back over the tokens of the layers below.

Only the attention weights are followed, as attention rollout does: a layer hands a token's gradient to
the keys that it saw, in proportion to its weights, and a share past them along the skip connection.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..api import sparse_attention, sparse_attention_backward
from ..errors import ArgumentError
from ..patterns.heads import HeadPatterns
from ._inputs import AnyPattern, Call, Floats, check_layers, check_whole

__all__ = ["GradientFlow", "gradient_flow"]


@dataclass(frozen=True, eq=False)
class GradientFlow:
    """Where gradient is, layer by layer on its way down; made by :func:`gradient_flow`.

    Attributes
    ----------
    tokens : int64 [m]
        Tokens of the last layer whose gradient is followed, each starting with a mass of 1.
    mass : float64 (..., depth + 1, m, n)
        Mass at each position after 0, 1, ... layers; the axes in front are the batch's.
    """

    tokens: npt.NDArray[np.int64]
    mass: Floats

    @property
    def total(self) -> Floats:
        """Mass that is left, (..., depth + 1, m): queries without keys swallow what they are given."""
        return self.mass.sum(axis=-1)

    @property
    def positions(self) -> Floats:
        """Number of positions that the mass effectively lies on, (..., depth + 1, m): exp of its entropy."""
        share = self._shares
        logs = np.log(share, out=np.zeros_like(share), where=share > 0.0)
        return np.where(self.total > 0.0, np.exp(-(share * logs).sum(axis=-1)), 0.0)

    @property
    def reached(self) -> Floats:
        """Share of the positions with any mass, (..., depth + 1, m)."""
        return np.count_nonzero(self.mass, axis=-1) / self.mass.shape[-1]

    @property
    def distance(self) -> Floats:
        """Mean distance of the mass from its token, (..., depth + 1, m); NaN where there is none."""
        away = np.abs(np.arange(self.mass.shape[-1]) - self.tokens[:, None])
        return np.where(self.total > 0.0, (self._shares * away).sum(axis=-1), np.nan)

    @property
    def _shares(self) -> Floats:
        total = self.total[..., None]
        return np.divide(self.mass, total, out=np.zeros_like(self.mass), where=total > 0.0)


def gradient_flow(
    *layers: Any,
    depth: int,
    q: Any = None,
    k: Any = None,
    scale: float | None = None,
    residual: float = 0.5,
    tokens: Sequence[int] | None = None,
) -> GradientFlow:
    """Spread of gradient mass over positions, per depth.

    Parameters
    ----------
    *layers
        The pattern of every layer, or several patterns that take turns, the first layer's first.
    depth : int
        Number of layers.
    q, k : arrays, or lists with an array a layer (the first layer's first), optional
        As :func:`numba_sparse_attn.sparse_attention` takes them. Without them, every query gives all of
        its keys the same weight. A layer's heads are averaged.
    scale : float, optional
    residual : float
        Share of a token's gradient that passes a layer along its skip connection, from 0 to 1.
    tokens : sequence of int, optional
        Tokens of the last layer to start from, each on its own; the last one if not given.

    Returns
    -------
    GradientFlow

    Examples
    --------
    >>> import numba_sparse_attn as nsa
    >>> flow = nsa.analysis.gradient_flow(nsa.patterns.causal(4), depth=2, residual=0.0)
    >>> flow.mass[:, 0].round(4).tolist()
    [[0.0, 0.0, 0.0, 1.0], [0.25, 0.25, 0.25, 0.25], [0.5208, 0.2708, 0.1458, 0.0625]]
    >>> flow.positions[:, 0].round(2).tolist()
    [1.0, 4.0, 3.15]
    """
    patterns = check_layers(layers)
    n = patterns[0].shape[0]
    depth = check_whole("depth", depth, low=0)
    if not 0.0 <= residual <= 1.0:
        raise ArgumentError(f"residual={residual!r}", "a number from 0 to 1", "pass 0.5 for one half")
    if (q is None) != (k is None):
        raise ArgumentError("one of q and k", "both or none", "pass the other one too")
    chosen = np.array([n - 1] if tokens is None else list(tokens), np.int64)
    if not chosen.size or chosen.min() < 0 or chosen.max() >= n:
        raise ArgumentError(
            f"tokens={chosen.tolist()}", f"at least one token, from 0 to {n - 1}", "correct tokens"
        )
    for name, value in (("q", q), ("k", k)):
        if isinstance(value, list | tuple) and len(value) != depth:
            raise ArgumentError(
                f"{len(value)} arrays as {name}",
                f"one array, or a list of {depth}",
                "give one a layer",
            )
    mass: Floats = np.zeros((len(chosen), n))
    mass[np.arange(len(chosen)), chosen] = 1.0
    found = [mass]
    for layer in reversed(range(depth)):
        pattern = patterns[layer % len(patterns)]
        queries, keys = _arrays_of(pattern, q, k, layer)
        call = Call.of(queries, keys, keys, scale)
        mass = residual * mass + (1.0 - residual) * _step(call, call.pattern(pattern), mass)
        found.append(mass)
    return GradientFlow(chosen, np.stack(np.broadcast_arrays(*found), axis=-3))


def _arrays_of(pattern: AnyPattern, q: Any, k: Any, layer: int) -> tuple[Any, Any]:
    """A layer's queries and keys; zeros, whose scores are all equal, if there are none."""
    if q is None:
        index = pattern.member_of.shape if isinstance(pattern, HeadPatterns) else (1,)
        zeros = np.broadcast_to(np.zeros(()), (*index, pattern.shape[0], 1))
        return zeros, zeros
    pick = [value[layer] if isinstance(value, list | tuple) else value for value in (q, k)]
    return pick[0], pick[1]


def _step(call: Call, pattern: AnyPattern, mass: Floats) -> Floats:
    """Transposed weights times mass, averaged over heads: the gradient of values, which is linear in it.

    The values themselves do not enter it, so they are zeros; each token that is followed is a channel.
    """
    sizes = call.sizes
    lead = () if sizes.flat else (*sizes.lead, sizes.heads)
    incoming = mass.swapaxes(-1, -2)
    if not sizes.flat:
        incoming = incoming[..., None, :, :]
    dout = np.broadcast_to(incoming, (*lead, *incoming.shape[-2:]))
    zeros = np.broadcast_to(np.zeros(()), (*call.k.shape[:-1], mass.shape[-2]))
    settings: dict[str, Any] = {"scale": call.scale, "engine": "cpu"}
    out, lse = sparse_attention(call.q, call.k, zeros, pattern, return_lse=True, **settings)
    arrays = (dout, call.q, call.k, zeros, out, lse)
    dv = sparse_attention_backward(*arrays, pattern, **settings)[2]
    if not sizes.flat:
        dv = dv.sum(axis=-3) / sizes.heads
    result: Floats = dv.swapaxes(-1, -2)
    return result
