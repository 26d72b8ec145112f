"""Sparse attention as a function that PyTorch differentiates: tensors on a GPU or on the CPU.

    python examples/torch_autograd.py

On a GPU tensors are used where they lie, on PyTorch's current stream. On the CPU they share their memory with
NumPy arrays, and the CPU engine computes.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import torch
from torch.autograd.function import once_differentiable

import numba_sparse_attn as nsa


class _SparseAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Any, k: Any, v: Any, pattern: Any, settings: dict[str, Any]) -> Any:
        result, ctx.pullback = nsa.vjp(_to_engine(q), _to_engine(k), _to_engine(v), pattern, **settings)
        out = _from_engine(result)
        # PyTorch then notices if one of them is changed in place before the pullback reads it.
        ctx.save_for_backward(q, k, v, out)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Any) -> tuple[Any, ...]:
        _ = ctx.saved_tensors
        return (*map(_from_engine, ctx.pullback(_to_engine(dout))), None, None)


def sparse_attention(q: Any, k: Any, v: Any, pattern: Any, **settings: Any) -> Any:
    """:func:`numba_sparse_attn.sparse_attention` of tensors, for ``backward()``."""
    return _SparseAttention.apply(q, k, v, pattern, settings)


def _to_engine(tensor: Any) -> Any:
    """The tensor itself on a GPU, else a NumPy array over its memory."""
    tensor = tensor.detach()
    if tensor.is_cuda:
        return tensor
    if tensor.dtype == torch.bfloat16:  # NumPy has no such type of its own
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


def _from_engine(array: Any) -> Any:
    """A tensor over the memory of a result; another object, so that no graph holds on to itself."""
    if isinstance(array, torch.Tensor):
        return array.detach()
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def main() -> None:
    """Fit queries to a target through attention over a causal window."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    heads, n, d = 2, 128, 16
    pattern = nsa.patterns.sliding_window(n, 16, causal=True)
    k, v, target = torch.randn(3, heads, n, d, device=device)
    q = torch.randn(heads, n, d, device=device, requires_grad=True)
    optimizer = torch.optim.Adam([q], lr=0.1)
    for step in range(50):
        loss = (sparse_attention(q, k, v, pattern) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 10 == 0:
            print(f"step {step:2}: loss {loss.item():.4f}")


if __name__ == "__main__":
    main()
