"""CSR rows made by hand, and the engine run on them, for the tests of the row path."""

from __future__ import annotations

import numpy as np

from numba_sparse_attn import cpu
from numba_sparse_attn.formats import Csr, canonical
from numba_sparse_attn.testing import request_for


def csr_of(mask):
    """Rows of a bool mask (n_q, n_k)."""
    indptr = np.concatenate(([0], np.cumsum(np.count_nonzero(mask, axis=1))))
    return canonical(mask.shape, indptr, np.nonzero(mask)[1])


def with_wide_indices(csr):
    """The same rows with int64 indices, as a pattern of more than 2^31 keys has them."""
    wide = csr.indices.astype(np.int64)
    wide.flags.writeable = False
    result = Csr(csr.shape, csr.indptr, wide)
    by_key = csr.transposed
    result.__dict__["transposed"] = Csr(by_key.shape, by_key.indptr, by_key.indices.astype(np.int64))
    return result


def ragged_mask(n_q, n_k, seed=0):
    """Rows of every length: empty ones, full ones, single keys, a band, random keys; unseen keys."""
    rng = np.random.default_rng(seed)
    mask = rng.random((n_q, n_k)) < rng.choice([0.0, 0.02, 0.3, 1.0], (n_q, 1), p=[0.2, 0.5, 0.2, 0.1])
    mask[n_q // 2] = False
    if n_k > 2:
        mask[:, n_k // 2] = False
        mask[-1] = np.arange(n_k) == n_k - 1
    return mask


def run_forward(problem, structures):
    """out and lse, in arrays that start as NaN."""
    request = request_for(problem, structures)
    out = np.full((*problem.q.shape[:-1], problem.v.shape[-1]), np.nan, problem.dtype)
    lse = np.full(problem.q.shape[:-1], np.nan, problem.accumulator)
    cpu.forward(request, problem.q, problem.k, problem.v, out, lse)
    return out, lse


def run_backward(problem, structures, out, lse):
    """dq, dk and dv, in arrays that start as NaN."""
    request = request_for(problem, structures)
    gradients = tuple(np.full(array.shape, np.nan, array.dtype) for array in problem.arrays[:3])
    cpu.backward(request, problem.dout, problem.q, problem.k, problem.v, out, lse, *gradients)
    return gradients


def bits(arrays):
    return [array.tobytes() for array in arrays]
