"""Attention over a CSR pattern in three unfused steps with NumPy and SciPy: scores, softmax, product."""

from __future__ import annotations

import numpy as np
import scipy
import scipy.sparse

from ..workload import Workload
from . import Array, Prepared

__all__ = ["Peer"]

MOST_PAIRS = 40_000_000
#: Pairs whose gathered rows are held at a time.
CHUNK = 1 << 16


def _scores(left: Array, right: Array, rows: Array, columns: Array) -> Array:
    """``left[rows] . right[columns]``, pair by pair (a sampled dense-dense product)."""
    result = np.empty(len(rows), left.dtype)
    for begin in range(0, len(rows), CHUNK):
        part = slice(begin, begin + CHUNK)
        np.einsum("pd,pd->p", left[rows[part]], right[columns[part]], out=result[part])
    return result


class Peer:
    """What SciPy offers: storage and a sparse-dense product, nothing fused."""

    name = "scipy_unfused"

    def why_absent(self) -> str:
        """SciPy is always there."""
        return ""

    def why_not(self, workload: Workload) -> str:
        """Every pair is a stored number."""
        if workload.nnz > MOST_PAIRS:
            return f"stores every pair; measured up to {MOST_PAIRS:,} pairs"
        return ""

    def version(self) -> dict[str, str]:
        """SciPy."""
        return {"scipy": scipy.__version__}

    def prepare(self, workload: Workload) -> Prepared:
        """CSR arrays are made beforehand."""
        accumulator = np.float64 if workload.q.dtype == np.float64 else np.float32
        q, k, v = (array.astype(accumulator) for array in (workload.q, workload.k, workload.v))
        group, dtype = workload.heads // workload.kv_heads, workload.q.dtype
        scale = accumulator(workload.scale)
        patterns = [workload.head_pattern(head).rows() for head in range(workload.heads)]
        lengths = [np.diff(csr.indptr) for csr in patterns]
        rows = [np.repeat(np.arange(len(length)), length) for length in lengths]

        def weights(head: int) -> scipy.sparse.csr_array:
            csr = patterns[head]
            data = _scores(q[head], k[head // group], rows[head], csr.indices) * scale
            filled = np.flatnonzero(lengths[head])
            starts = csr.indptr[filled]
            data -= np.repeat(np.maximum.reduceat(data, starts), lengths[head][filled])
            np.exp(data, out=data)
            np.divide(data, np.repeat(np.add.reduceat(data, starts), lengths[head][filled]), out=data)
            return scipy.sparse.csr_array((data, csr.indices, csr.indptr), shape=csr.shape)

        def forward() -> Array:
            out = np.empty((*q.shape[:2], workload.value_dim), dtype)
            for head in range(workload.heads):
                out[head] = weights(head) @ v[head // group]
            return out

        trained = workload.heads if workload.direction == "backward" else 0
        probabilities = [weights(head) for head in range(trained)]

        def backward(dout: Array) -> tuple[Array, Array, Array]:
            dq, dk, dv = (np.zeros(array.shape, accumulator) for array in (q, k, v))
            for head, p in enumerate(probabilities):
                csr, shared, incoming = patterns[head], head // group, dout[head].astype(accumulator)
                dp = _scores(incoming, v[shared], rows[head], csr.indices)
                delta = np.bincount(rows[head], weights=dp * p.data, minlength=csr.shape[0])
                data = p.data * (dp - delta.astype(accumulator)[rows[head]]) * scale
                ds = scipy.sparse.csr_array((data, csr.indices, csr.indptr), shape=csr.shape)
                dq[head] = ds @ k[shared]
                dk[shared] += ds.T @ q[head]
                dv[shared] += p.T @ incoming
            return dq.astype(dtype), dk.astype(dtype), dv.astype(dtype)

        return Prepared(forward, backward)
