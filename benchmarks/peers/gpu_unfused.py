"""Attention over CSR with PyTorch in three steps: scores of the pairs, softmax of the rows, sparse product.

The steps are the fastest that PyTorch has for the case, found by timing them: scores by cuSPARSE's sampled
product, halves widened to float32 for it, or by a gather that is compiled into one kernel; the maximum of a
row by a scatter or by segments, unless all rows are of one length; cuSPARSE's product in the case's type or
in float32. The backward pass is written by hand: autograd would keep the gathered keys.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from functools import cached_property, partial
from typing import Any

import numpy as np

import numba_sparse_attn as nsa

from ..workload import Workload
from . import Prepared
from .torch_arrays import cuda_torch_absent, torch_version

__all__ = ["Peer"]

#: Over all heads; an int32 index and a few numbers each.
MOST_PAIRS = 2_000_000_000


class Peer:
    """The best of PyTorch's unfused steps."""

    name = "torch_unfused"

    def why_absent(self) -> str:
        """PyTorch has to be installed, and to reach the GPU."""
        return cuda_torch_absent()

    def why_not(self, workload: Workload) -> str:
        """Every pair is a stored number."""
        if workload.heads != workload.kv_heads or not isinstance(workload.pattern, nsa.Pattern):
            return "written for one pattern for all heads, without groups"
        if workload.nnz > MOST_PAIRS:
            return f"stores every pair; measured up to {MOST_PAIRS:,} pairs"
        return ""

    def version(self) -> dict[str, str]:
        """PyTorch."""
        return torch_version()

    def prepare(self, workload: Workload) -> Prepared:
        """The pattern on the device, the choice of steps, a first call."""
        import torch

        torch._dynamo.reset()
        warnings.filterwarnings("ignore", "Sparse (CSR tensor support|invariant checks)")
        start = time.perf_counter()
        steps = _Steps(workload)
        steps.choose()
        out, p = steps.attend()

        def backward(dout: Any) -> tuple[Any, Any, Any]:
            return steps.gradients(dout, out, p)

        def training(dout: Any) -> tuple[Any, Any, Any, Any]:
            fresh, weights = steps.attend()
            return (fresh, *steps.gradients(dout, fresh, weights))

        if workload.direction != "forward":
            backward(workload.dout)
        workload.place.synchronize()
        setup = {"first_call_seconds": time.perf_counter() - start, **steps.chosen}
        return Prepared(lambda: steps.attend()[0], backward, training, setup)


_StepChoice = dict[str, Callable[..., Any]]


def _pair_products(left: Any, right: Any, rows: Any, columns: Any, scale: float, wide: Any) -> Any:
    """``left[rows] . right[columns]`` for all heads; compiled, one kernel that stores only the result."""
    return (left[:, rows].to(wide) * right[:, columns].to(wide)).sum(-1) * scale


def _pair_gradients(
    dout: Any, v: Any, rows: Any, columns: Any, p: Any, delta: Any, scale: float, wide: Any
) -> Any:
    """``p (dout . v - delta) scale`` pair by pair, likewise."""
    return p * (_pair_products(dout, v, rows, columns, 1.0, wide) - delta[:, rows]) * scale


class _Steps:
    """Tensors of one workload, and the steps that were found to be fastest."""

    def __init__(self, workload: Workload) -> None:
        import torch

        self._torch = torch
        self._workload = workload
        self._device = workload.q.device
        assert isinstance(workload.pattern, nsa.Pattern)
        csr = workload.pattern.rows()
        self._shape = csr.shape
        self._indptr, self._columns = self._lists(csr)
        lengths = np.diff(csr.indptr)
        self._lengths = torch.from_numpy(lengths).to(self._device)
        self._rows = torch.repeat_interleave(
            torch.arange(csr.shape[0], device=self._device, dtype=torch.int32), self._lengths
        )
        #: Length of every row, or 0 if they differ.
        self._uniform = int(lengths[0]) if len(lengths) and (lengths == lengths[0]).all() else 0
        #: What the softmax is computed in, and cuSPARSE's sampled product, which knows no halves.
        self._wide = torch.float64 if workload.dtype == np.float64 else torch.float32
        self.chosen: dict[str, str] = {}
        self._products: Callable[..., Any] = self._gathered
        self._row_softmax: Callable[[Any], Any] = self._uniform_softmax
        self._sparse_times: Callable[..., Any] = partial(self._times, self._wide)

    def _lists(self, csr: Any) -> tuple[Any, Any]:
        """Row pointers and columns as int32, which cuSPARSE reads fastest."""
        from_numpy = self._torch.from_numpy
        return (
            from_numpy(csr.indptr.astype(np.int32)).to(self._device),
            from_numpy(csr.indices.astype(np.int32)).to(self._device),
        )

    @cached_property
    def _transposed(self) -> tuple[Any, Any, Any]:
        """Row pointers and columns of the transposed pattern, and where its pairs stand in this one's."""
        torch = self._torch
        order = torch.argsort(self._columns, stable=True)
        counts = torch.bincount(self._columns, minlength=self._shape[1])
        indptr = torch.zeros(self._shape[1] + 1, dtype=torch.int32, device=self._device)
        indptr[1:] = torch.cumsum(counts, 0)
        return indptr, self._rows[order], order

    @cached_property
    def _compiled(self) -> tuple[Callable[..., Any], Callable[..., Any]]:
        compile_step = partial(self._torch.compile, dynamic=False)
        return compile_step(_pair_products), compile_step(_pair_gradients)

    def choose(self) -> None:
        """Time the alternatives of each step and keep the faster one."""
        workload = self._workload
        products: _StepChoice = {"compiled gather": self._gathered, "sampled_addmm": self._sampled}
        self.chosen["scores"], self._products = self._fastest(
            products, lambda step: step(workload.q, workload.k, workload.scale)
        )
        scores = self._products(workload.q, workload.k, workload.scale)
        softmaxes: _StepChoice = {
            "scatter": self._scattered_softmax,
            "segments": self._segmented_softmax,
        }
        if self._uniform:
            softmaxes = {"rows of one length": self._uniform_softmax}
        self.chosen["softmax"], self._row_softmax = self._fastest(softmaxes, lambda step: step(scores))
        p = self._row_softmax(scores)
        types: _StepChoice = {
            str(kind): partial(self._times, kind) for kind in (workload.q.dtype, self._wide)
        }
        self.chosen["products"], self._sparse_times = self._fastest(
            types, lambda step: step(self._matrix, p, workload.v)
        )

    def _fastest(
        self, steps: _StepChoice, call: Callable[[Callable[..., Any]], Any]
    ) -> tuple[str, Callable[..., Any]]:
        """The step with the shortest of three calls after one that compiles; what PyTorch lacks is out."""
        taken = {}
        for name, step in steps.items():
            try:
                call(step)
            except NotImplementedError:
                continue
            seconds = []
            for _ in range(3):
                self._workload.place.synchronize()
                start = time.perf_counter()
                call(step)
                self._workload.place.synchronize()
                seconds.append(time.perf_counter() - start)
            taken[name] = min(seconds)
        best = min(taken, key=lambda name: taken[name])
        return best, steps[best]

    # Scores ------------------------------------------------------------------------------------------

    def _gathered(self, left: Any, right: Any, scale: float) -> Any:
        return self._compiled[0](left, right, self._rows, self._columns, scale, self._wide)

    def _sampled(self, left: Any, right: Any, scale: float) -> Any:
        sampled = self._torch.sparse.sampled_addmm
        left, right = left.to(self._wide), right.to(self._wide)
        parts = [
            sampled(self._blank, left[head], right[head].T, beta=0.0, alpha=scale).values()
            for head in range(len(left))
        ]
        return self._torch.stack(parts)

    @cached_property
    def _blank(self) -> Any:
        """The pattern with zeros, which say where to sample."""
        return self._matrix(self._torch.zeros(len(self._columns), dtype=self._wide, device=self._device))

    # Softmax -----------------------------------------------------------------------------------------

    def _uniform_softmax(self, scores: Any) -> Any:
        return scores.view(len(scores), -1, self._uniform).softmax(-1).view(scores.shape)

    def _scattered_softmax(self, scores: Any) -> Any:
        torch = self._torch
        rows = self._rows.long().expand_as(scores)
        peak = torch.full((len(scores), self._shape[0]), -torch.inf, dtype=scores.dtype, device=self._device)
        peak.scatter_reduce_(1, rows, scores, "amax")
        weights = torch.exp(scores - peak.gather(1, rows))
        total = torch.zeros_like(peak).scatter_add_(1, rows, weights)
        return weights / total.gather(1, rows)

    def _segmented_softmax(self, scores: Any) -> Any:
        torch = self._torch
        by_pair = scores.T.contiguous()
        peak = torch.segment_reduce(by_pair, "max", lengths=self._lengths, unsafe=True)
        weights = torch.exp(by_pair - torch.repeat_interleave(peak, self._lengths, dim=0))
        total = torch.segment_reduce(weights, "sum", lengths=self._lengths, unsafe=True)
        weights /= torch.repeat_interleave(total, self._lengths, dim=0)
        return weights.T.contiguous()

    # Products ----------------------------------------------------------------------------------------

    def _matrix(self, values: Any) -> Any:
        return self._torch.sparse_csr_tensor(
            self._indptr, self._columns, values, self._shape, check_invariants=False
        )

    def _transposed_matrix(self, values: Any) -> Any:
        indptr, columns, order = self._transposed
        return self._torch.sparse_csr_tensor(
            indptr, columns, values[order], self._shape[::-1], check_invariants=False
        )

    def _times(self, kind: Any, matrix: Callable[[Any], Any], values: Any, dense: Any) -> Any:
        """A sparse product a head, multiplied in a type and rounded to that of the case."""
        values, wide = values.to(kind), dense.to(kind)
        products = [matrix(values[head]) @ wide[head] for head in range(len(dense))]
        return self._torch.stack(products).to(dense.dtype)

    # Passes ------------------------------------------------------------------------------------------

    def attend(self) -> tuple[Any, Any]:
        """out and the weights of the pairs."""
        workload = self._workload
        p = self._row_softmax(self._products(workload.q, workload.k, workload.scale))
        return self._sparse_times(self._matrix, p, workload.v), p

    def gradients(self, dout: Any, out: Any, p: Any) -> tuple[Any, Any, Any]:
        """dq, dk and dv."""
        workload = self._workload
        delta = (dout.to(self._wide) * out.to(self._wide)).sum(-1)
        if self._products == self._sampled:
            products = self._sampled(dout, workload.v, 1.0)
            ds = p * (products - delta[:, self._rows]) * workload.scale
        else:
            ds = self._compiled[1](
                dout, workload.v, self._rows, self._columns, p, delta, workload.scale, self._wide
            )
        dq = self._sparse_times(self._matrix, ds, workload.k)
        dk = self._sparse_times(self._transposed_matrix, ds, workload.q)
        dv = self._sparse_times(self._transposed_matrix, p, dout)
        return dq, dk, dv
