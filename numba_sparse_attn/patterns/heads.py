"""HeadPatterns: another pattern for every head, and for every batch element if need be."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from ..errors import PatternError, ShapeError
from .pattern import Pattern

__all__ = ["HeadPatterns"]


class HeadPatterns(Sequence["Pattern"]):
    """One pattern a head, optionally with batch axes in front.

    Parameters
    ----------
    members : sequence of Pattern
        The distinct patterns, all of one shape.
    member_of : int array (..., heads)
        Which member each head has.

    Examples
    --------
    >>> from numba_sparse_attn import patterns
    >>> stack = HeadPatterns([patterns.causal(8), patterns.full(8)], [0, 0, 1])
    >>> [pattern.nnz for pattern in stack]
    [36, 36, 64]
    """

    def __init__(self, members: Sequence[Pattern], member_of: npt.ArrayLike) -> None:
        self.members = tuple(members)
        #: What others keep with the patterns, such as plans.
        self.memo: dict[Any, Any] = {}
        self.member_of = np.array(member_of, np.int32)
        self.member_of.flags.writeable = False
        if not self.members or self.member_of.ndim < 1:
            raise PatternError("no pattern for any head", "at least one head", "pass at least one pattern")
        shapes = {member.shape for member in self.members}
        if len(shapes) > 1:
            raise ShapeError(
                f"patterns of shapes {sorted(shapes)} for the heads of one call",
                "one shape for all heads",
                "build every head's pattern for the same number of queries and keys",
            )

    def __getstate__(self) -> dict[str, Any]:
        """Without what others keep, which is of use in this process only."""
        return {**self.__dict__, "memo": {}}

    @property
    def shape(self) -> tuple[int, int]:
        """(n_q, n_k) of every head."""
        return self.members[0].shape

    @property
    def nnz(self) -> int:
        """Pairs over all heads."""
        return int(sum(self.members[member].nnz for member in self.member_of.reshape(-1)))

    @property
    def sparsity(self) -> float:
        """Share of all heads' pairs that is not selected."""
        size = self.member_of.size * self.shape[0] * self.shape[1]
        return 1.0 - self.nnz / size if size else 0.0

    def __len__(self) -> int:
        return int(self.member_of.shape[0])

    @overload
    def __getitem__(self, item: int) -> Pattern: ...
    @overload
    def __getitem__(self, item: slice) -> HeadPatterns: ...
    def __getitem__(self, item: int | slice) -> Any:
        chosen = self.member_of[item]
        return self.members[int(chosen)] if chosen.ndim == 0 else HeadPatterns(self.members, chosen)

    def __repr__(self) -> str:
        names = ", ".join(member.name for member in self.members)
        return f"<HeadPatterns {self.member_of.shape}: {names}>"

    def __add__(self, other: HeadPatterns) -> HeadPatterns:
        """The heads of both, one after the other (along the last axis)."""
        shifted = other.member_of + np.int32(len(self.members))
        return HeadPatterns(self.members + other.members, np.concatenate([self.member_of, shifted], axis=-1))

    def _map(self, function: Callable[[Pattern], Pattern]) -> HeadPatterns:
        return HeadPatterns([function(member) for member in self.members], self.member_of)

    def _zip(self, other: Any, function: Callable[[Pattern, Pattern], Pattern]) -> HeadPatterns:
        if not isinstance(other, HeadPatterns):
            from .convert import as_pattern

            other = as_pattern(other)
        if isinstance(other, Pattern):
            return self._map(lambda member: function(member, other))
        left, right = np.broadcast_arrays(self.member_of, other.member_of)
        pairs, index = np.unique(np.stack([left.reshape(-1), right.reshape(-1)]), axis=1, return_inverse=True)
        members = [function(self.members[a], other.members[b]) for a, b in pairs.T]
        return HeadPatterns(members, index.reshape(left.shape))

    def __or__(self, other: Any) -> HeadPatterns:
        return self._zip(other, lambda a, b: a | b)

    def __and__(self, other: Any) -> HeadPatterns:
        return self._zip(other, lambda a, b: a & b)

    def __sub__(self, other: Any) -> HeadPatterns:
        return self._zip(other, lambda a, b: a - b)

    def __xor__(self, other: Any) -> HeadPatterns:
        return self._zip(other, lambda a, b: a ^ b)

    def __invert__(self) -> HeadPatterns:
        return self._map(lambda member: ~member)

    __ror__, __rand__, __rxor__ = __or__, __and__, __xor__
    __array_ufunc__ = None

    def __rsub__(self, other: Any) -> HeadPatterns:
        return self._zip(other, lambda a, b: b - a)

    @property
    def T(self) -> HeadPatterns:
        """Queries and keys exchanged in every head."""
        return self._map(lambda member: member.T)

    def causal(self) -> HeadPatterns:
        """Every head's pairs that do not look ahead.

        Examples
        --------
        >>> from numba_sparse_attn import patterns
        >>> patterns.full(4).heads(2).causal().nnz
        20
        """
        return self._map(lambda member: member.causal())
