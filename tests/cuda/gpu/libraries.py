"""The libraries whose arrays the GPU tests use: which are installed, arrays to them and from them."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import ml_dtypes
import numpy as np
import pytest

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # JAX is not alone on this GPU

LIBRARIES = [name for name in ("torch", "cupy", "jax", "numba") if find_spec(name)]
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
DTYPES = [np.dtype(np.float16), BFLOAT16, np.dtype(np.float32), np.dtype(np.float64)]

each_library = pytest.mark.parametrize("library", LIBRARIES)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def needs(*libraries: str) -> Callable[[Any], Any]:
    """Collect a test where all of these are installed; a skip is for a missing device only."""
    return lambda test: test if set(libraries) <= set(LIBRARIES) else None


def each_of(*libraries: str) -> Callable[[Any], Any]:
    """Collect a test for those of these that are installed."""
    found = [name for name in libraries if name in LIBRARIES]
    return pytest.mark.parametrize("library", found) if found else needs(*libraries)


@functools.cache
def modules(library: str) -> Any:
    if library == "numba":
        from numba import cuda

        return cuda
    if library == "jax":
        import jax

        jax.config.update("jax_enable_x64", True)
        return jax
    return __import__(library)


def random_array(dtype: Any, shape: tuple[int, ...] = (2, 37, 24)) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(dtype)


def put(library: str, array: np.ndarray) -> Any:
    """A C-contiguous copy on GPU 0."""
    module = modules(library)
    array = np.ascontiguousarray(array)
    if library == "torch":
        if array.dtype == BFLOAT16:
            return module.from_numpy(array.view(np.int16)).cuda().view(module.bfloat16)
        return module.from_numpy(array).cuda()
    if library == "cupy":
        return module.asarray(array)
    if library == "jax":
        return module.device_put(array, module.devices("gpu")[0])
    if array.dtype == BFLOAT16:  # Numba copies what has a buffer, and NumPy gives foreign types none
        return module.to_device(array.view(np.uint16)).view(BFLOAT16)
    return module.to_device(array)


def fetch(library: str, value: Any) -> np.ndarray:
    """What the library itself says that an array holds."""
    if library == "torch":
        if "bfloat16" in str(value.dtype):
            return value.view(modules("torch").int16).cpu().numpy().view(BFLOAT16)
        return value.detach().cpu().numpy()
    if library == "cupy":
        return modules("cupy").asnumpy(value)
    if library == "jax":
        return np.asarray(value)
    if value.dtype == BFLOAT16:
        return value.view(np.uint16).copy_to_host().view(BFLOAT16)
    return value.copy_to_host()


def knows(library: str, dtype: np.dtype) -> bool:
    """Whether the installed version of a library has an element type; CuPy and bfloat16 are in question."""
    if library != "cupy" or dtype != BFLOAT16:
        return True
    try:
        modules("cupy").empty(1, dtype)
    except (TypeError, ValueError):
        return False
    return True
