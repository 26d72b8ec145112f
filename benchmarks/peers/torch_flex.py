"""PyTorch's FlexAttention, compiled for the CPU. Forward only: it has no CPU backward."""

from __future__ import annotations

import shutil
import time
import warnings
from collections.abc import Callable

import numba_sparse_attn as nsa

from ..workload import Workload
from . import Array, Prepared
from .flex_masks import arithmetic_mask, lookup_mask
from .torch_arrays import from_torch, start_torch, to_torch, torch_absent, torch_version

__all__ = ["Peer"]

LONGEST = 16_384
#: On CPUs the default of 128 is seldom the best: smaller blocks follow a pattern more closely.
BLOCK_SIZES = (64, 128)


class Peer:
    """Block-sparse attention with a mask function, compiled by PyTorch's C++ back end."""

    name = "torch_flex"

    def why_absent(self) -> str:
        """PyTorch has to be installed, and a C++ compiler."""
        if absent := torch_absent():
            return absent
        return "" if shutil.which("g++") or shutil.which("clang++") else "no C++ compiler, which it needs"

    def why_not(self, workload: Workload) -> str:
        """Forward only."""
        if workload.direction != "forward":
            return "has no backward pass on a CPU"
        if max(workload.pattern.shape) > LONGEST:
            return f"makes its block mask from an n x n mask; measured up to n = {LONGEST}"
        return ""

    def version(self) -> dict[str, str]:
        """PyTorch."""
        return torch_version()

    def prepare(self, workload: Workload) -> Prepared:
        """The faster of the block sizes; its block mask and compilation are timed apart."""
        start_torch()._dynamo.reset()  # after eight masks it would stop compiling
        tried = [self._prepare(workload, size) for size in BLOCK_SIZES]
        return min(tried, key=lambda prepared: _shortest(prepared.forward))

    def _prepare(self, workload: Workload, block_size: int) -> Prepared:
        torch = start_torch()
        from torch._inductor import config as inductor
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention

        inductor.force_disable_caches = True  # compilation is measured, not a look-up of an earlier run's
        n_q, n_k = workload.pattern.shape
        heads = None if isinstance(workload.pattern, nsa.Pattern) else workload.heads
        device = torch.device("cpu")
        mask_mod = arithmetic_mask(workload, device) or lookup_mask(workload, device)
        start = time.perf_counter()
        block_mask = create_block_mask(mask_mod, None, heads, n_q, n_k, device="cpu", BLOCK_SIZE=block_size)
        made = time.perf_counter()
        compiled = torch.compile(flex_attention, dynamic=False)
        q, k, v = (to_torch(array) for array in (workload.q, workload.k, workload.v))
        options = {"scale": workload.scale, "enable_gqa": workload.heads != workload.kv_heads}

        def forward() -> Array:
            with torch.no_grad():
                return from_torch(compiled(q, k, v, block_mask=block_mask, **options))

        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "dynamo_pgo force disabled")
            forward()
        compile_seconds = time.perf_counter() - made
        setup = {"mask_seconds": made - start, "compile_seconds": compile_seconds, "block_size": block_size}
        return Prepared(forward, setup=setup)


def _shortest(run: Callable[[], object]) -> float:
    """The shortest of three calls, in seconds."""
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return min(seconds)
