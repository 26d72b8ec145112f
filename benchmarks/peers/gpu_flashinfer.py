"""FlashInfer's block-sparse attention: CSR of blocks where the pattern is made of blocks, else of pairs.

Forward only: it serves models, it trains none.
"""

from __future__ import annotations

import importlib
import importlib.util
import time
from importlib.metadata import version
from typing import Any

import numpy as np

import numba_sparse_attn as nsa

from ..workload import Workload
from . import Prepared
from .torch_arrays import cuda_torch_absent, torch_version

__all__ = ["Peer"]

#: What its documentation recommends.
WORKSPACE_BYTES = 128 << 20
#: Rows of blocks that its planner has room for.
MOST_BLOCK_ROWS = 32_768


class Peer:
    """Its wrapper for block-sparse patterns, planned beforehand; kernels are compiled when first used."""

    name = "flashinfer"

    def why_absent(self) -> str:
        """PyTorch and FlashInfer have to be installed."""
        if absent := cuda_torch_absent():
            return absent
        if importlib.util.find_spec("flashinfer"):
            return ""
        return "FlashInfer is not installed (pip install flashinfer-python)"

    def why_not(self, workload: Workload) -> str:
        """What its wrapper does not take."""
        if workload.direction != "forward":
            return "has no backward pass"
        if workload.dtype.name not in {"float16", "bfloat16"}:
            return "takes float16 and bfloat16 only"
        if not isinstance(workload.pattern, nsa.Pattern):
            return "takes one pattern for all heads"
        if workload.pattern.shape[0] // _block(workload) > MOST_BLOCK_ROWS:
            return f"takes up to {MOST_BLOCK_ROWS:,} rows of blocks"
        return ""

    def version(self) -> dict[str, str]:
        """Both."""
        return {**torch_version(), "flashinfer": version("flashinfer-python")}

    def prepare(self, workload: Workload) -> Prepared:
        """Plan, and one call, which compiles."""
        import torch

        assert isinstance(workload.pattern, nsa.Pattern)
        library: Any = importlib.import_module("flashinfer")
        device, kind = workload.q.device, workload.q.dtype
        start = time.perf_counter()
        block = _block(workload)
        indptr, indices = _block_lists(workload.pattern, block)
        wrapper = library.BlockSparseAttentionWrapper(
            torch.empty(WORKSPACE_BYTES, dtype=torch.uint8, device=device)
        )
        wrapper.plan(
            torch.from_numpy(indptr).to(device),
            torch.from_numpy(indices).to(device),
            *workload.pattern.shape,
            block,
            block,
            workload.heads,
            workload.kv_heads,
            workload.head_dim,
            sm_scale=workload.scale,
            q_data_type=kind,
            # Versions before the one that can quantize its output have no such argument.
            **({"o_data_type": kind} if kind != torch.float16 else {}),
        )
        q, k, v = (array.transpose(0, 1).contiguous() for array in (workload.q, workload.k, workload.v))
        planned = time.perf_counter()

        def forward() -> Any:
            return wrapper.run(q, k, v).transpose(0, 1)

        forward()
        workload.place.synchronize()
        setup = {"plan_seconds": planned - start, "first_call_seconds": time.perf_counter() - planned}
        return Prepared(forward, setup={**setup, "block_size": block})


def _block(workload: Workload) -> int:
    """The block of a pattern that is made of whole ones, else 1."""
    block = workload.spec.arguments.get("block", 1)
    aligned = all(length % block == 0 for length in workload.pattern.shape)
    return int(block) if workload.spec.function in {"bigbird", "random_blocks"} and aligned else 1


def _block_lists(pattern: nsa.Pattern, block: int) -> tuple[Any, Any]:
    """int32 CSR of the pattern's blocks, all of which are full."""
    if block == 1:
        csr = pattern.rows()
        return csr.indptr.astype(np.int32), csr.indices.astype(np.int32)
    matrix = pattern.tobsr((block, block))
    return matrix.indptr.astype(np.int32), matrix.indices.astype(np.int32)
