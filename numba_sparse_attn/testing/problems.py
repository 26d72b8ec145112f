"""Attention problems to test with: five arrays and a scale."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

__all__ = ["DTYPES", "Problem", "random_problem"]

#: Every element type that attention is defined for, by name.
DTYPES: dict[str, np.dtype[Any]] = {
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float32": np.dtype(np.float32),
    "float64": np.dtype(np.float64),
}


@dataclass(frozen=True, eq=False, repr=False)
class Problem:
    """Inputs of one forward and backward pass.

    Attributes
    ----------
    q : (..., heads, n_q, d)
    k : (..., kv_heads, n_k, d)
    v : (..., kv_heads, n_k, d_v)
    dout : (..., heads, n_q, d_v)
        All of one float dtype.
    mask : bool, broadcastable to (..., heads, n_q, n_k)
    scale : float
    changes : tuple
        What the scaled scores go through: the oracle's twins, of ``numba_sparse_attn.reference_scores``.
    sink : (heads,), optional
        Logits of a sink.
    """

    q: npt.NDArray[Any]
    k: npt.NDArray[Any]
    v: npt.NDArray[Any]
    dout: npt.NDArray[Any]
    mask: npt.NDArray[np.bool_]
    scale: float
    changes: tuple[Any, ...] = ()
    sink: npt.NDArray[Any] | None = None

    def __repr__(self) -> str:
        """Shapes and strides: numbers would say nothing."""
        arrays = zip(("q", "k", "v", "dout"), self.arrays, strict=True)
        layout = ", ".join(f"{name} {array.shape} {array.strides}" for name, array in arrays)
        pairs = f"{self.mask.sum()} of {self.mask.shape}"
        return f"<Problem {self.dtype}: {layout}, {pairs}, scale {self.scale:.4g}>"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """What Hypothesis and IPython print."""
        printer.text(repr(self))

    @property
    def dtype(self) -> np.dtype[Any]:
        """Element type of the arrays, of out and of the gradients."""
        return self.q.dtype

    @property
    def accumulator(self) -> np.dtype[Any]:
        """Element type of sums and of lse."""
        return np.dtype(np.float64 if self.dtype == np.float64 else np.float32)

    @property
    def selected(self) -> npt.NDArray[np.bool_]:
        """The mask of every head, (..., heads, n_q, n_k), as a read-only view."""
        return np.broadcast_to(self.mask, (*self.q.shape[:-1], self.k.shape[-2]))

    def cast(self, dtype: npt.DTypeLike) -> Problem:
        """The problem with its arrays rounded to another dtype."""
        return self.with_arrays(*(array.astype(dtype) for array in self.arrays))

    @property
    def arrays(self) -> tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]:
        """q, k, v and dout."""
        return self.q, self.k, self.v, self.dout

    def with_arrays(
        self, q: npt.NDArray[Any], k: npt.NDArray[Any], v: npt.NDArray[Any], dout: npt.NDArray[Any]
    ) -> Problem:
        """The problem with other arrays."""
        return replace(self, q=q, k=k, v=v, dout=dout)


def random_problem(
    mask: npt.ArrayLike,
    *,
    heads: int = 1,
    head_dim: int,
    dtype: npt.DTypeLike = np.float32,
    kv_heads: int | None = None,
    value_dim: int | None = None,
    batch: tuple[int, ...] = (),
    scale: float | None = None,
    seed: int = 0,
) -> Problem:
    """A problem with normally distributed arrays, the same for a seed on every machine.

    Parameters
    ----------
    mask : bool, its last two axes (n_q, n_k)
        Broadcastable to ``(*batch, heads, n_q, n_k)``.
    heads, kv_heads, head_dim, value_dim, batch
        Sizes; ``kv_heads`` is ``heads`` and ``value_dim`` is ``head_dim`` unless given.
    dtype : one of :data:`DTYPES`
    scale : float, optional
        1 / sqrt(head_dim) unless given.

    Examples
    --------
    >>> import numpy as np
    >>> problem = random_problem(np.ones((5, 7), bool), heads=4, kv_heads=2, head_dim=8)
    >>> problem.q.shape, problem.k.shape, problem.selected.shape
    ((4, 5, 8), (2, 7, 8), (4, 5, 7))
    """
    seen = np.asarray(mask, np.bool_)
    n_q, n_k = seen.shape[-2:]
    kv_heads = heads if kv_heads is None else kv_heads
    value_dim = head_dim if value_dim is None else value_dim
    rng = np.random.default_rng(seed)
    shapes = (
        (*batch, heads, n_q, head_dim),
        (*batch, kv_heads, n_k, head_dim),
        (*batch, kv_heads, n_k, value_dim),
        (*batch, heads, n_q, value_dim),
    )
    q, k, v, dout = (rng.standard_normal(shape).astype(dtype) for shape in shapes)
    return Problem(q, k, v, dout, seen, 1.0 / math.sqrt(head_dim) if scale is None else scale)
