"""Graph attention as the users of two graph libraries write it, without the projections of a layer.

PyTorch Geometric: messages along edges, its softmax, its sums, as in its TransformerConv. DGL: the batched
sampled product, sparse softmax and batched sparse product of its sparse API, as in its graph transformers.
Both get their arrays in the layout that they compute in.
"""

from __future__ import annotations

import importlib
import importlib.util
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any, ClassVar

import numpy as np

import numba_sparse_attn as nsa

from ..workload import Workload
from . import Prepared
from .torch_arrays import cuda_torch_absent, torch_version

__all__ = ["Dgl", "Pyg"]

#: Bytes of the keys gathered along all edges; autograd keeps several such arrays.
MOST_BYTES = 10_000_000_000


class _GraphLibrary:
    """What both have in common: one graph for all heads, autograd, a layout of their own."""

    name: ClassVar[str]
    module: ClassVar[str]
    package: ClassVar[str]
    #: From ``(heads, n, d)``.
    layout: ClassVar[tuple[int, int, int]]

    def why_absent(self) -> str:
        """PyTorch and the library have to be installed."""
        if absent := cuda_torch_absent():
            return absent
        return "" if importlib.util.find_spec(self.module) else f"not installed (pip install {self.package})"

    def why_not(self, workload: Workload) -> str:
        """Keys are gathered along the edges."""
        if workload.heads != workload.kv_heads or not isinstance(workload.pattern, nsa.Pattern):
            return "written for one graph for all heads, without groups"
        if workload.gathered_bytes > 2 * MOST_BYTES:
            return f"gathers the keys of all edges; measured up to {MOST_BYTES / 1e9:.0f} GB of them"
        return ""

    def version(self) -> dict[str, str]:
        """Both."""
        return {**torch_version(), self.package: version(self.package)}

    def attention(self, workload: Workload, kind: Any) -> Callable[[Any, Any, Any], Any]:
        """The function of q, k and v of type `kind` in the library's layout."""
        raise NotImplementedError

    def prepare(self, workload: Workload) -> Prepared:
        """The graph on the device, leaves in the library's layout, a first call."""
        import torch

        start = time.perf_counter()
        # Messages are rounded to the inputs' type; with bfloat16 nobody would call the result attention.
        kind = torch.float32 if workload.q.dtype == torch.bfloat16 else workload.q.dtype
        attention = self.attention(workload, kind)
        back = tuple(int(axis) for axis in np.argsort(self.layout))

        def handed_over(array: Any) -> Any:
            return array.to(kind).permute(self.layout).contiguous()

        def delivered(array: Any) -> Any:
            return array.to(workload.q.dtype).permute(back)

        leaves = [handed_over(array).requires_grad_() for array in (workload.q, workload.k, workload.v)]

        def forward() -> Any:
            with torch.no_grad():
                return delivered(attention(*leaves))

        def gradients(out: Any, dout: Any, keep: bool) -> Any:
            found = torch.autograd.grad(out, leaves, dout.to(kind).permute(self.layout), retain_graph=keep)
            return tuple(map(delivered, found))

        def training(dout: Any) -> tuple[Any, Any, Any, Any]:
            fresh = attention(*leaves)
            return (delivered(fresh.detach()), *gradients(fresh, dout, False))

        prepared = Prepared(forward, training=training)
        if workload.direction == "backward":
            out = attention(*leaves)
            prepared.backward = lambda dout: gradients(out, dout, True)
        forward()
        workload.place.synchronize()
        prepared.setup = {"first_call_seconds": time.perf_counter() - start, "arithmetic": str(kind)}
        return prepared


def _edges(workload: Workload) -> tuple[Any, Any, Any]:
    """Row pointers, and the query and the key of every edge, sorted by query."""
    import torch

    assert isinstance(workload.pattern, nsa.Pattern)
    csr = workload.pattern.rows()
    device = workload.q.device
    indptr = torch.from_numpy(csr.indptr.astype(np.int64)).to(device)
    keys = torch.from_numpy(csr.indices.astype(np.int64)).to(device)
    queries = torch.repeat_interleave(torch.arange(csr.shape[0], device=device), indptr.diff())
    return indptr, queries, keys


class Pyg(_GraphLibrary):
    """PyTorch Geometric: ``(n, heads, d)``."""

    name, module, package = "pyg", "torch_geometric", "torch_geometric"
    layout = (1, 0, 2)

    def attention(self, workload: Workload, kind: Any) -> Callable[[Any, Any, Any], Any]:
        """Edges are sorted by query, so that softmax and sums run over segments."""
        utils: Any = importlib.import_module("torch_geometric.utils")
        indptr, queries, keys = _edges(workload)

        def attend(q: Any, k: Any, v: Any) -> Any:
            weights = utils.softmax((q[queries] * k[keys]).sum(-1) * workload.scale, ptr=indptr)
            return utils.segment(v[keys] * weights.unsqueeze(-1), indptr, reduce="sum")

        return attend


class Dgl(_GraphLibrary):
    """DGL's sparse API: ``(n, d, heads)``."""

    name, module, package = "dgl", "dgl", "dgl"
    layout = (1, 2, 0)

    def attention(self, workload: Workload, kind: Any) -> Callable[[Any, Any, Any], Any]:
        """The adjacency matrix holds ones, which the sampled product multiplies by."""
        import torch

        sparse: Any = importlib.import_module("dgl.sparse")
        _, queries, keys = _edges(workload)
        ones = torch.ones(len(keys), dtype=kind, device=keys.device)
        adjacency = sparse.from_coo(queries, keys, ones, workload.pattern.shape)

        def attend(q: Any, k: Any, v: Any) -> Any:
            scores = sparse.bsddmm(adjacency, q * workload.scale, k.transpose(0, 1))
            return sparse.bspmm(scores.softmax(), v)

        return attend
