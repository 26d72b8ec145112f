"""What every measure does first: check a call, widen it to float64, and ask the engine for moments.

Most measures need no weights at all. With s the scores of a query and L its log-sum-exp, the weight of
key j is ``exp(s_j - L)``, so whatever two patterns have in common, their weights differ by one factor a
query. Sums over weights become differences of L, and the entropy becomes ``L - sum_j p_j s_j``, whose sum
is ``scale * q . sum_j p_j k_j``: attention with the keys as values. Both come from the engine, at its
cost and in its memory.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import arrays
from ..api import sparse_attention
from ..errors import ArgumentError, PatternError, ShapeError
from ..patterns.convert import as_pattern
from ..patterns.full import full
from ..patterns.heads import HeadPatterns
from ..patterns.pattern import Pattern
from ..planner import gpu_views
from ._runs import runs_of

__all__ = [
    "AnyPattern",
    "Call",
    "Floats",
    "Moments",
    "check_layers",
    "check_whole",
    "members_of",
    "pairs_of",
    "row_counts",
]

Floats = npt.NDArray[np.float64]
AnyPattern = Pattern | HeadPatterns


@dataclass(frozen=True, eq=False)
class Call:
    """Checked inputs in float64, over which any number of patterns are looked at.

    Attributes
    ----------
    q, k, v : float64 arrays, as :func:`numba_sparse_attn.sparse_attention` takes them
    sizes : Dimensions
    scale : float
    """

    q: Floats
    k: Floats
    v: Floats
    sizes: arrays.Dimensions
    scale: float

    @classmethod
    def of(cls, q: Any, k: Any, v: Any, scale: float | None) -> Call:
        """Check the arrays; measures without values pass the keys in their place."""
        if gpu_views(q, k, v) is not None:
            raise ArgumentError("arrays in GPU memory", "arrays on the host", "copy them to NumPy first")
        given = [arrays.as_array(value, name) for value, name in ((q, "q"), (k, "k"), (v, "v"))]
        sizes = arrays.check_arrays(*given)
        queries, keys, values = (array.astype(np.float64, copy=False) for array in given)
        return cls(queries, keys, values, sizes, arrays.check_scale(scale, sizes.head_dim))

    def pattern(self, value: Any) -> AnyPattern:
        """A pattern of the call's shape; None stands for all pairs."""
        sizes = self.sizes
        if value is None:
            return full(sizes.n_q, n_keys=sizes.n_k)
        made: AnyPattern = as_pattern(value, keys=sizes.n_k)
        if made.shape != (sizes.n_q, sizes.n_k):
            raise ShapeError(
                f"a pattern of shape {made.shape} for {sizes.n_q} queries and {sizes.n_k} keys",
                "a pattern of shape (n_q, n_k)",
                "build the pattern for these lengths",
            )
        if isinstance(made, HeadPatterns):
            self.which(made)
        return made

    def which(self, pattern: AnyPattern) -> npt.NDArray[np.int64]:
        """Number of the member that each head of each batch element has, ``[batch, heads]``."""
        index = np.zeros(1, np.int64) if isinstance(pattern, Pattern) else pattern.member_of.astype(np.int64)
        wanted = (*self.sizes.lead, self.sizes.heads)
        try:
            return np.broadcast_to(index, wanted).reshape(-1, self.sizes.heads)
        except ValueError:
            raise ShapeError(
                f"patterns for axes {index.shape} and arrays with axes {wanted} before (n, d)",
                "one pattern for all, one a head, or one a head and batch element",
                "give as many patterns as there are query heads",
            ) from None

    def heads_first(self, array: Floats) -> Floats:
        """(batch, heads, n, d), whatever axes there were."""
        heads = 1 if self.sizes.flat else array.shape[-3]
        return array.reshape(self.sizes.batch, heads, *array.shape[-2:])

    def shaped(self, array: Floats) -> Floats:
        """Results ``[batch, heads, ...]`` with the axes of the inputs."""
        lead = () if self.sizes.flat else (*self.sizes.lead, self.sizes.heads)
        return array.reshape(*lead, *array.shape[2:])

    def log_sums(self, pattern: AnyPattern) -> Floats:
        """Logarithm of every query's sum of exp(score), ``(..., heads, n_q)``; -inf without keys."""
        return self._attend(pattern, self.k[..., :1])[1]

    def moments(self, pattern: AnyPattern, *, outputs: bool = False) -> Moments:
        """What entropy and, with `outputs`, errors are made of."""
        values = np.concatenate([self.k, self.v], axis=-1) if outputs else self.k
        means, log_sums = self._attend(pattern, values)
        width = self.sizes.head_dim
        mean_score = self.scale * np.einsum("...d,...d->...", self.q, means[..., :width])
        return Moments(log_sums, mean_score, means[..., width:])

    def outputs(self, pattern: AnyPattern) -> Floats:
        """Attention, ``(..., heads, n_q, d_v)``."""
        return self._attend(pattern, self.v)[0]

    def _attend(self, pattern: AnyPattern, values: Floats) -> tuple[Floats, Floats]:
        found: tuple[Floats, Floats] = sparse_attention(
            self.q, self.k, values, pattern, scale=self.scale, return_lse=True, engine="cpu"
        )
        return found


@dataclass(frozen=True, eq=False)
class Moments:
    """Attention over one pattern, without its weights.

    Attributes
    ----------
    log_sums, mean_score : (..., heads, n_q)
    out : (..., heads, n_q, d_v)
        Of width zero unless asked for.
    """

    log_sums: Floats
    mean_score: Floats
    out: Floats

    @cached_property
    def entropy(self) -> Floats:
        """Entropy of every query's weights in nats; NaN without keys."""
        some = np.isfinite(self.log_sums)
        # A single key has entropy 0, which the subtraction misses by a rounding to either side.
        return np.where(some, np.maximum(self.log_sums - self.mean_score, 0.0), np.nan)


def check_whole(name: str, value: Any, *, low: int) -> int:
    """A whole number of at least `low`."""
    try:
        number = operator.index(value)
    except TypeError:
        number = low - 1
    if number < low:
        raise ArgumentError(f"{name}={value!r}", f"a whole number of at least {low}", f"correct {name}")
    return number


def check_layers(layers: tuple[Any, ...]) -> list[AnyPattern]:
    """The patterns of layers that work on each other's results."""
    if not layers:
        raise PatternError("no layer", "the pattern of at least one layer", "pass a pattern")
    patterns: list[AnyPattern] = [as_pattern(layer) for layer in layers]
    shapes = {pattern.shape for pattern in patterns}
    if len(shapes) > 1 or patterns[0].shape[0] != patterns[0].shape[1]:
        raise ShapeError(
            f"layers of shapes {sorted(shapes)}",
            "square patterns of one shape: what one layer gives the next one sees",
            "build all patterns for the same tokens as queries and as keys",
        )
    return patterns


def members_of(pattern: AnyPattern) -> tuple[Pattern, ...]:
    """The distinct patterns."""
    return (pattern,) if isinstance(pattern, Pattern) else pattern.members


def pairs_of(call: Call, pattern: AnyPattern) -> int:
    """Selected pairs over all heads and batch elements."""
    sizes = np.array([member.nnz for member in members_of(pattern)], np.int64)
    return int(sizes[call.which(pattern)].sum())


def row_counts(call: Call, pattern: AnyPattern) -> npt.NDArray[np.int64]:
    """Keys of every query, ``(..., heads, n_q)``."""
    counts = np.stack([runs_of(member).row_counts for member in members_of(pattern)])
    found = counts[call.which(pattern)]
    return found.reshape(*(() if call.sizes.flat else (*call.sizes.lead, call.sizes.heads)), -1)
