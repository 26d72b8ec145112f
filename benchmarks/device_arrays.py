"""Arrays in GPU memory by whichever library is installed: PyTorch, CuPy or Numba, in this order.

The only file here that knows how each of them makes, fills and copies arrays and counts its memory.
bfloat16, which neither NumPy's random generator nor every library knows, is made by rounding float32.
"""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from collections.abc import Callable
from typing import Any, Protocol

import ml_dtypes
import numpy as np

from .workload import Array, NotHere, element_type, host_random

__all__ = ["COUNTED", "DeviceArrays", "find_arrays"]


#: What a library's count of memory stands for, in words for rows.
COUNTED = {
    "peak": "the library's arrays and the driver's pool, at their peak",
    "use": "the library's arrays after the call, and the driver's pool at its peak",
    "device": "all that is taken of the device after the call",
}


class DeviceArrays(Protocol):
    """What the measurements need of a library. Everything runs on the legacy default stream of GPU 0."""

    @property
    def name(self) -> str:
        """The library, as it stands in rows."""

    @property
    def counting(self) -> str:
        """Whose memory :meth:`used_bytes` is, and whether there are peaks; see :data:`COUNTED`."""

    def random(self, seed: int, shape: tuple[int, ...], dtype: str) -> Any:
        """Standard-normal numbers."""

    def give_back(self) -> None:
        """Return memory that is kept but not used, for others to take."""

    def zeros_like(self, array: Any) -> Any:
        """Zeros of the shape and type of `array`."""

    def fetch(self, array: Any) -> Array:
        """A copy on the host."""

    def used_bytes(self) -> int:
        """Memory that is taken now."""

    def peak_bytes(self) -> int:
        """Most of it at once since the last :meth:`forget_peak`; what is taken now where nobody says."""

    def forget_peak(self) -> None:
        """Start a new peak."""

    def copier(self, source: Any) -> Callable[[], object]:
        """Copies `source` within the device."""

    def multiplier(self, left: Any, right: Any) -> Callable[[], object] | None:
        """Multiplies two matrices by the library's own product; None if it has none."""


class TorchArrays:
    """PyTorch tensors."""

    name, counting = "torch", "peak"

    def __init__(self) -> None:
        import torch

        self._torch = torch
        self._device = torch.device("cuda", 0)

    def random(self, seed: int, shape: tuple[int, ...], dtype: str) -> Any:
        """Made on the device."""
        generator = self._torch.Generator(self._device).manual_seed(seed)
        wide = self._torch.float64 if dtype == "float64" else self._torch.float32
        made = self._torch.randn(shape, generator=generator, device=self._device, dtype=wide)
        return made.to(getattr(self._torch, dtype))

    def give_back(self) -> None:
        """Empty the caching allocator."""
        self._torch.cuda.empty_cache()

    def zeros_like(self, array: Any) -> Any:
        """Zeros."""
        return self._torch.zeros_like(array)

    def fetch(self, array: Any) -> Array:
        """bfloat16 travels as its bits."""
        tensor = array.detach()
        if tensor.dtype == self._torch.bfloat16:
            bits: Array = tensor.view(self._torch.int16).cpu().numpy()
            return bits.view(ml_dtypes.bfloat16)
        found: Array = tensor.cpu().numpy()
        return found

    def used_bytes(self) -> int:
        """By the caching allocator: what is alive, not what it keeps."""
        return int(self._torch.cuda.memory_allocated())

    def peak_bytes(self) -> int:
        """By the caching allocator."""
        return int(self._torch.cuda.max_memory_allocated())

    def forget_peak(self) -> None:
        """A new peak."""
        self._torch.cuda.reset_peak_memory_stats()

    def copier(self, source: Any) -> Callable[[], object]:
        """A copy in place."""
        target = self._torch.empty_like(source)
        return lambda: target.copy_(source)

    def multiplier(self, left: Any, right: Any) -> Callable[[], object]:
        """cuBLAS."""
        out = self._torch.empty_like(left)
        return lambda: self._torch.mm(left, right, out=out)


class CupyArrays:
    """CuPy arrays."""

    name, counting = "cupy", "use"

    def __init__(self) -> None:
        self._cupy: Any = importlib.import_module("cupy")

    def random(self, seed: int, shape: tuple[int, ...], dtype: str) -> Any:
        """Made on the device."""
        wide = np.float64 if dtype == "float64" else np.float32
        return self._cupy.random.default_rng(seed).standard_normal(shape, wide).astype(element_type(dtype))

    def give_back(self) -> None:
        """Empty the pool."""
        self._cupy.get_default_memory_pool().free_all_blocks()

    def zeros_like(self, array: Any) -> Any:
        """Zeros."""
        return self._cupy.zeros_like(array)

    def fetch(self, array: Any) -> Array:
        """A copy."""
        found: Array = self._cupy.asnumpy(array)
        return found

    def used_bytes(self) -> int:
        """By its memory pool."""
        return int(self._cupy.get_default_memory_pool().used_bytes())

    def peak_bytes(self) -> int:
        """Its pool has no peak."""
        return self.used_bytes()

    def forget_peak(self) -> None:
        """Nothing to forget."""

    def copier(self, source: Any) -> Callable[[], object]:
        """A copy in place."""
        target = self._cupy.empty_like(source)
        return lambda: self._cupy.copyto(target, source)

    def multiplier(self, left: Any, right: Any) -> Callable[[], object]:
        """cuBLAS."""
        out = self._cupy.empty_like(left)
        return lambda: self._cupy.matmul(left, right, out=out)


class NumbaArrays:
    """Numba's device arrays: they are there wherever our engine is."""

    name, counting = "numba", "device"

    def __init__(self) -> None:
        from numba import cuda
        from numba.core.errors import NumbaPerformanceWarning

        # Numba copies slices by kernels of one block, and says so.
        warnings.filterwarnings("ignore", category=NumbaPerformanceWarning)
        self._cuda = cuda

    def random(self, seed: int, shape: tuple[int, ...], dtype: str) -> Any:
        """Made on the host."""
        if dtype == "bfloat16":
            raise NotHere("Numba makes no bfloat16 arrays; PyTorch or CuPy would")
        return self._cuda.to_device(host_random(seed, shape, dtype))

    def give_back(self) -> None:
        """Run the deallocations that Numba has put off."""
        self._cuda.current_context().deallocations.clear()

    def zeros_like(self, array: Any) -> Any:
        """Zeros."""
        return self._cuda.to_device(np.zeros(array.shape, array.dtype))

    def fetch(self, array: Any) -> Array:
        """A copy."""
        found: Array = array.copy_to_host()
        return found

    def used_bytes(self) -> int:
        """Numba counts nothing; the driver does, once Numba has freed what it has put off."""
        self.give_back()
        free, total = self._cuda.current_context().get_memory_info()
        return int(total - free)

    def peak_bytes(self) -> int:
        """No peak."""
        return self.used_bytes()

    def forget_peak(self) -> None:
        """Nothing to forget."""

    def copier(self, source: Any) -> Callable[[], object]:
        """A copy in place."""
        target = self._cuda.device_array_like(source)
        return lambda: target.copy_to_device(source)

    def multiplier(self, left: Any, right: Any) -> None:
        """Numba multiplies no matrices."""


def find_arrays() -> DeviceArrays:
    """The first library that is installed and reaches the GPU."""
    if importlib.util.find_spec("torch"):
        import torch

        if torch.cuda.is_available():
            return TorchArrays()
    return CupyArrays() if importlib.util.find_spec("cupy") else NumbaArrays()
