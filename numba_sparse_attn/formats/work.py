"""One call, as the engines see it: which structure each head has, and how much work that is."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .csr import Csr
from .tiles import Tiles

if TYPE_CHECKING:
    from ..normalisers import Normaliser
    from ..orders.order import Order

__all__ = ["Request", "Structure"]

Structure = Tiles | Csr


@dataclass(frozen=True, eq=False)
class Request:
    """Everything about a call except its arrays.

    Arrays that come with it have at least three axes, ``(..., heads, n, d)``; the axes before
    ``heads`` are flattened, in C order, into ``batch``.

    Attributes
    ----------
    structures : tuple of Tiles or Csr
        The distinct patterns of the call. Tiles take an engine's tile path, Csr its row path.
    which : int32 [batch, heads]
        Index into ``structures`` for every head of every batch element.
    heads, kv_heads : int
        ``heads`` is a multiple of ``kv_heads``; query head h reads key head h // (heads / kv_heads).
    n_q, n_k, head_dim, value_dim : int
    dtype : numpy dtype
        float16, bfloat16 (ml_dtypes), float32 or float64; of q, k, v, out and the gradients.
    scale : float
        Factor on q k^T before the softmax.
    orders : tuple of Order
        Where the structures' queries and keys come from in the arrays, one a structure; none if they stand
        where they are. Query heads that share a key head agree on the order of its keys.
    fold : int
        Into how many classes tokens fall by their number modulo this; the structures are those of a class,
        and apply to every one.
    changed : tuple of str
        Kinds of the changes that an engine applies to scores; their numbers come with each call.
    normaliser : Normaliser or None
        What stands in place of softmax.
    memo : dict
        What an engine keeps for repeated calls of this kind. It is this request's own: a copy with other
        fields starts with an empty one.
    """

    structures: tuple[Structure, ...]
    which: npt.NDArray[np.int32]
    heads: int
    kv_heads: int
    n_q: int
    n_k: int
    head_dim: int
    value_dim: int
    dtype: np.dtype[Any]
    scale: float
    orders: tuple[Order, ...] = ()
    fold: int = 1
    changed: tuple[str, ...] = ()
    normaliser: Normaliser | None = None
    memo: dict[Any, Any] = field(default_factory=dict, init=False, repr=False)

    @cached_property
    def inner(self) -> Request:
        """The same call on arrays that stand as the structures do, with classes as a last batch axis."""
        return replace(
            self,
            which=np.repeat(self.which, self.fold, axis=0),
            n_q=self.n_q // self.fold,
            n_k=self.n_k // self.fold,
            orders=(),
            fold=1,
        )

    @property
    def query_orders(self) -> list[Order]:
        """The order of every query head of every batch element."""
        return [self.orders[number] for number in self.which.reshape(-1)]

    @property
    def key_orders(self) -> list[Order]:
        """The order of every key head of every batch element."""
        return [self.orders[number] for number in self.which[:, :: self.group].reshape(-1)]

    @property
    def batch(self) -> int:
        """Product of the axes before ``heads``."""
        return int(self.which.shape[0])

    @property
    def group(self) -> int:
        """Query heads that share one key head."""
        return self.heads // self.kv_heads

    @cached_property
    def accumulator(self) -> np.dtype[Any]:
        """Element type of sums and of lse: float64 for float64, float32 for everything else."""
        return np.dtype(np.float64 if self.dtype == np.float64 else np.float32)

    @property
    def nnz(self) -> int:
        """Selected pairs over all heads and batch elements."""
        sizes = np.array([structure.nnz for structure in self.structures], np.int64)
        return self.fold * int(sizes[self.which].sum())

    @property
    def forward_flops(self) -> int:
        """Useful floating-point operations of the forward pass: two products over selected pairs."""
        return 2 * self.nnz * (self.head_dim + self.value_dim)

    @property
    def backward_flops(self) -> int:
        """Useful operations of the backward pass: q k^T, dout v^T, dq, dk and dv."""
        return 2 * self.nnz * (3 * self.head_dim + 2 * self.value_dim)
