"""PyTorch's scaled_dot_product_attention with a dense boolean mask; backward by its autograd."""

from __future__ import annotations

import time

from ..workload import Workload
from . import Array, Prepared
from .torch_arrays import from_torch, start_torch, to_torch, torch_absent, torch_version

__all__ = ["Peer"]

LONGEST = 8192


class Peer:
    """Computes every pair and masks afterwards."""

    name = "torch_sdpa"

    def why_absent(self) -> str:
        """PyTorch has to be installed."""
        return torch_absent()

    def why_not(self, workload: Workload) -> str:
        """The mask is n x n."""
        if max(workload.pattern.shape) > LONGEST:
            return f"takes an n x n mask; measured up to n = {LONGEST}"
        return ""

    def version(self) -> dict[str, str]:
        """PyTorch."""
        return torch_version()

    def prepare(self, workload: Workload) -> Prepared:
        """Tensors over our arrays; for the backward pass, a graph that is kept."""
        torch = start_torch()
        attention = torch.nn.functional.scaled_dot_product_attention
        start = time.perf_counter()
        mask = torch.from_numpy(workload.masks)[None]
        made = time.perf_counter()
        q, k, v = (to_torch(array) for array in (workload.q, workload.k, workload.v))
        options = {
            "attn_mask": mask,
            "scale": workload.scale,
            "enable_gqa": workload.heads != workload.kv_heads,
        }

        def forward() -> Array:
            with torch.no_grad():
                return from_torch(attention(q, k, v, **options))

        setup = {"mask_seconds": made - start}
        if workload.direction == "forward":
            forward()
            return Prepared(forward, setup=setup | {"first_call_seconds": time.perf_counter() - made})
        leaves = [tensor.clone().requires_grad_() for tensor in (q, k, v)]
        out = attention(*leaves, **options)

        def backward(dout: Array) -> tuple[Array, Array, Array]:
            gradients = torch.autograd.grad(out, leaves, to_torch(dout), retain_graph=True)
            dq, dk, dv = (from_torch(gradient) for gradient in gradients)
            return dq, dk, dv

        backward(workload.dout)
        setup["first_call_seconds"] = time.perf_counter() - made
        return Prepared(forward, backward, setup=setup)
