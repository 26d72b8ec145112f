"""NumPy arrays as PyTorch tensors over the same memory, and back; what the PyTorch peers share."""

from __future__ import annotations

import importlib.util
import time
from typing import Any

import ml_dtypes
import numpy as np

from numba_sparse_attn import config

from ..workload import Array, Workload
from . import Prepared

__all__ = [
    "cuda_torch_absent",
    "from_torch",
    "start_torch",
    "to_torch",
    "torch_absent",
    "torch_version",
    "with_autograd",
]


def torch_absent() -> str:
    """Why PyTorch cannot be used, or an empty string."""
    return "" if importlib.util.find_spec("torch") else "PyTorch is not installed (pip install torch)"


def cuda_torch_absent() -> str:
    """Why PyTorch cannot be used on a GPU, or an empty string."""
    if absent := torch_absent():
        return absent
    import torch

    return "" if torch.cuda.is_available() else "the installed PyTorch reaches no GPU"


def torch_version() -> dict[str, str]:
    """PyTorch's version."""
    import torch

    return {"torch": torch.__version__}


def start_torch() -> Any:
    """The module, on as many threads as our engine uses."""
    import torch

    torch.set_num_threads(config.thread_count())
    return torch


def to_torch(array: Array) -> Any:
    """A tensor ``(1, heads, n, d)``; bfloat16 travels as its bits, which PyTorch does not take from NumPy."""
    import torch

    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)[None]
    return torch.from_numpy(array)[None]


def from_torch(tensor: Any) -> Array:
    """The inverse of :func:`to_torch`."""
    import torch

    if tensor.dtype == torch.bfloat16:
        bits: Array = tensor[0].detach().view(torch.int16).numpy()
        return bits.view(ml_dtypes.bfloat16)
    array: Array = tensor[0].detach().numpy()
    return array


def with_autograd(attention: Any, inputs: list[Any], workload: Workload) -> Prepared:
    """Both passes of a PyTorch function of q, k and v with a batch axis; the first call is made and timed."""
    import torch

    start = time.perf_counter()

    def forward() -> Any:
        with torch.no_grad():
            return attention(*inputs)[0]

    prepared = Prepared(forward)
    if workload.direction == "forward":
        forward()
    else:
        leaves = [tensor.detach().requires_grad_() for tensor in inputs]
        out = attention(*leaves)

        def backward(dout: Any) -> tuple[Any, Any, Any]:
            dq, dk, dv = torch.autograd.grad(out, leaves, dout[None], retain_graph=True)
            return dq[0], dk[0], dv[0]

        def training(dout: Any) -> tuple[Any, Any, Any, Any]:
            fresh = attention(*leaves)
            dq, dk, dv = torch.autograd.grad(fresh, leaves, dout[None])
            return fresh[0].detach(), dq[0], dk[0], dv[0]

        prepared.backward, prepared.training = backward, training
        backward(workload.dout)
    workload.place.synchronize()
    prepared.setup["first_call_seconds"] = time.perf_counter() - start
    return prepared
