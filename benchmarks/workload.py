"""The arrays of one attention case, the same for everyone who is measured on it."""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

import numba_sparse_attn as nsa
from numba_sparse_attn.formats.pieces import make_pieces

from .cases import AttentionCase, MemoryCase, PatternSpec

__all__ = ["Workload", "make_workload", "random_arrays"]

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class Workload:
    """Inputs of one case; `q`, `k`, `v` and `dout` are ``(heads, n, d)``."""

    spec: PatternSpec
    pattern: nsa.Pattern | nsa.HeadPatterns
    direction: str
    q: Array
    k: Array
    v: Array
    dout: Array

    @property
    def heads(self) -> int:
        """Query heads."""
        return int(self.q.shape[0])

    @property
    def kv_heads(self) -> int:
        """Key heads."""
        return int(self.k.shape[0])

    @property
    def head_dim(self) -> int:
        """Length of a query."""
        return int(self.q.shape[2])

    @property
    def value_dim(self) -> int:
        """Length of a value."""
        return int(self.v.shape[2])

    @property
    def scale(self) -> float:
        """The factor that every contender uses."""
        return 1.0 / math.sqrt(self.head_dim)

    def head_pattern(self, head: int) -> nsa.Pattern:
        """The pattern of one head."""
        return self.pattern if isinstance(self.pattern, nsa.Pattern) else self.pattern[head]

    @cached_property
    def nnz(self) -> int:
        """Selected pairs over all heads."""
        return sum(self.head_pattern(head).nnz for head in range(self.heads))

    @property
    def density(self) -> float:
        """Share of all pairs that is selected."""
        n_q, n_k = self.pattern.shape
        return self.nnz / (self.heads * n_q * n_k)

    @property
    def flops(self) -> int:
        """Useful operations: the products over selected pairs, two forward and five backward."""
        if self.direction == "forward":
            return 2 * self.nnz * (self.head_dim + self.value_dim)
        return 2 * self.nnz * (3 * self.head_dim + 2 * self.value_dim)

    @cached_property
    def masks(self) -> npt.NDArray[np.bool_]:
        """Dense masks for contenders that take nothing else: ``(1 or heads, n_q, n_k)``."""
        if isinstance(self.pattern, nsa.Pattern):
            return self.pattern.toarray()[None]
        return np.stack([self.head_pattern(head).toarray() for head in range(self.heads)])

    def mask_rows(self, head: int, ranges: list[tuple[int, int]]) -> npt.NDArray[np.bool_]:
        """Rows of one head's mask without making the others: ``(rows, n_k)``."""
        pattern = self.head_pattern(head)
        begins, ends = np.transpose(ranges)
        chosen = nsa.Pattern.from_pieces(
            pattern.shape, make_pieces(rows=(begins, ends), columns=(0, pattern.shape[1]))
        )
        csr = (pattern & chosen).rows()
        rows = np.concatenate([np.arange(begin, end) for begin, end in ranges])
        mask = np.zeros((len(rows), pattern.shape[1]), np.bool_)
        for line, row in zip(mask, rows, strict=True):
            line[csr.indices[csr.indptr[row] : csr.indptr[row + 1]]] = True
        return mask


def random_arrays(seed: int, name: str, dtype: str, *shapes: tuple[int, ...]) -> list[Array]:
    """Standard-normal arrays that depend on the seed and the case's name only."""
    generator = np.random.default_rng([seed, zlib.crc32(name.encode())])
    element = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    return [generator.standard_normal(shape, np.float32).astype(element) for shape in shapes]


def make_workload(case: AttentionCase | MemoryCase, seed: int) -> Workload:
    """Pattern and arrays of a case."""
    pattern = case.spec.build()
    n_q, n_k = pattern.shape
    kv_heads = case.kv_heads if isinstance(case, AttentionCase) else case.heads
    q, k, v, dout = random_arrays(
        seed,
        case.name,
        case.dtype,
        (case.heads, n_q, case.head_dim),
        (kv_heads, n_k, case.head_dim),
        (kv_heads, n_k, case.head_dim),
        (case.heads, n_q, case.head_dim),
    )
    return Workload(case.spec, pattern, case.direction, q, k, v, dout)
