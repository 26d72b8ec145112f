"""NumPy arrays as PyTorch tensors over the same memory, and back; what both PyTorch peers share."""

from __future__ import annotations

import importlib.util
from typing import Any

import ml_dtypes
import numpy as np

from numba_sparse_attn import config

from . import Array

__all__ = ["from_torch", "start_torch", "to_torch", "torch_absent", "torch_version"]


def torch_absent() -> str:
    """Why PyTorch cannot be used, or an empty string."""
    return "" if importlib.util.find_spec("torch") else "PyTorch is not installed (pip install torch)"


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
