"""No attention: the selected keys and values are read once each and added up. The roof of graph attention."""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np

import numba_sparse_attn as nsa

from ..workload import Workload
from . import Prepared

__all__ = ["Peer"]


class Peer:
    """A plain gather kernel in Numba-CUDA over the case's own pattern."""

    name = "gather_only"

    def why_absent(self) -> str:
        """It is compiled by the same packages as our engines."""
        return "" if importlib.util.find_spec("numba_cuda") else "numba-cuda is not installed"

    def why_not(self, workload: Workload) -> str:
        """One pattern, one key head a head, rows of whole lanes, keys like values."""
        from ..gather_kernel import gather_shape

        if not isinstance(workload.pattern, nsa.Pattern) or workload.heads != workload.kv_heads:
            return "reads one pattern for all heads, without groups"
        if workload.direction != "forward":
            return "is the floor of a forward pass"
        if workload.head_dim != workload.value_dim:
            return "reads keys and values of one length"
        try:
            gather_shape(workload.head_dim * workload.dtype.itemsize)
        except ValueError as error:
            return str(error)
        return ""

    def version(self) -> dict[str, str]:
        """In the row anyway."""
        return {}

    def prepare(self, workload: Workload) -> Prepared:
        """Compile and copy the pattern."""
        assert isinstance(workload.pattern, nsa.Pattern)
        return prepare_gather(workload)


def prepare_gather(workload: Workload) -> Prepared:
    """A launch that gathers a workload's keys and values."""
    from numba_sparse_attn.cuda import staging, streams
    from numba_sparse_attn.cuda.interchange import device_view
    from numba_sparse_attn.cuda.launch import launch, load_kernel

    from ..gather_kernel import GATHER_SIGNATURE, THREADS, WARPS, gather_shape, make_gather

    shape = gather_shape(workload.head_dim * workload.dtype.itemsize)
    kernel = load_kernel(make_gather, shape, GATHER_SIGNATURE, THREADS, 0)
    rows = workload.head_pattern(0).rows()
    lists = [
        staging.to_device(array, 0, 0)
        for array in (rows.indptr.astype(np.int64), rows.indices.astype(np.int32))
    ]
    out = workload.place.zeros_like(workload.q)
    views: list[Any] = [device_view(array) for array in (workload.k, workload.v, out)]
    addresses = [view.address for view in (*views, *lists)]
    n_q, n_k = rows.shape
    blocks = workload.heads * -(-n_q // WARPS)
    stream = streams.stream_object(0, 0)
    arguments = (*addresses, n_q, n_k)

    def gather(_held: Any = lists) -> Any:  # the kernel knows addresses only
        launch(kernel, blocks, THREADS, stream, arguments)
        return out

    return Prepared(gather, flops=0, checked=False)
