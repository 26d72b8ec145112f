"""Objects that look like other libraries' arrays on a GPU, for tests without one.

Their addresses are numbers, or those of NumPy arrays; nothing in these tests reads them through a GPU.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np

from numba_sparse_attn.cuda import dlpack

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


class TorchDtype:
    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return f"torch.{self.name}"


class Tensor:
    """As ``torch.Tensor``, as far as it is looked at; `array` has its shape, strides and element type."""

    __module__ = "torch"

    def __init__(
        self, array: np.ndarray, kind: str = "cuda", device: int = 0, requires_grad: bool = False
    ) -> None:
        self.array = array
        self.is_cuda = kind == "cuda"
        self.is_cpu = kind == "cpu"
        self.device = f"{kind}:{device}"
        self._number = device
        self.dtype = _torch_dtype(array.dtype.name)
        self.shape = array.shape
        self.requires_grad = requires_grad
        self.versions = 0

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        raise RuntimeError("Can't get __cuda_array_interface__ on Variable that requires grad")

    def get_device(self) -> int:
        return self._number

    def data_ptr(self) -> int:
        return self.array.ctypes.data

    def stride(self) -> tuple[int, ...]:
        return tuple(step // self.array.itemsize for step in self.array.strides)

    def is_neg(self) -> bool:
        return False

    def numel(self) -> int:
        return self.array.size


class NegatedTensor(Tensor):
    """A tensor with a lazy minus sign."""

    __module__ = "torch"

    def is_neg(self) -> bool:
        return True

    def resolve_neg(self) -> Tensor:
        return Tensor(-self.array)


class SparseTensor(Tensor):
    __module__ = "torch.sparse"

    def data_ptr(self) -> int:
        raise RuntimeError("Cannot access data pointer of Tensor that doesn't have storage")


class FakeTensor(Tensor):
    __module__ = "torch._subclasses"

    def data_ptr(self) -> int:
        return 0


_TORCH_DTYPES: dict[str, TorchDtype] = {}


def _torch_dtype(name: str) -> TorchDtype:
    return _TORCH_DTYPES.setdefault(name, TorchDtype(name))


def torch_module(streams: dict[int, int], raw: bool = True) -> SimpleNamespace:
    """A ``torch`` with given current streams by device, with or without the private function for them."""

    def empty(shape: tuple[int, ...], dtype: TorchDtype, device: tuple[str, int]) -> Tensor:
        kind, number = device
        return Tensor(np.empty(shape, np.dtype(dtype.name)), kind, number)

    def increment_version(tensor: Tensor) -> None:
        tensor.versions += 1

    hidden = {"_cuda_getCurrentRawStream": streams.__getitem__} if raw else {}
    names = ("float16", "bfloat16", "float32", "float64", "uint8")
    return SimpleNamespace(
        _C=SimpleNamespace(**hidden),
        cuda=SimpleNamespace(current_stream=lambda device: SimpleNamespace(cuda_stream=streams[device])),
        autograd=SimpleNamespace(graph=SimpleNamespace(increment_version=increment_version)),
        device=lambda kind, number: (kind, number),
        empty=empty,
        **{name: _torch_dtype(name) for name in names},
    )


def _make_cupy_array() -> type:
    class ndarray:
        """As ``cupy.ndarray``."""

        __module__ = "cupy"

        def __init__(self, array: np.ndarray, device: int = 0, address: int | None = None) -> None:
            self.array = array
            pointer = array.ctypes.data if address is None else address
            self.data = SimpleNamespace(ptr=pointer, device_id=device)
            self.shape, self.strides, self.dtype = array.shape, array.strides, array.dtype

    return ndarray


CupyArray = _make_cupy_array()


def cupy_module(streams: dict[int, int]) -> SimpleNamespace:
    """A ``cupy`` with given current streams by device; it knows no bfloat16."""

    def empty(shape: tuple[int, ...], dtype: Any) -> Any:
        if dtype == BFLOAT16:
            raise TypeError("dtype bfloat16 is not supported")
        return CupyArray(np.empty(shape, dtype))

    def get_current_stream(device: int) -> SimpleNamespace:
        return SimpleNamespace(ptr=streams[device])

    return SimpleNamespace(cuda=SimpleNamespace(get_current_stream=get_current_stream), empty=empty)


class InterfaceArray:
    """Any object with ``__cuda_array_interface__``; keywords replace entries of the interface."""

    def __init__(self, array: np.ndarray, **entries: Any) -> None:
        self.dtype = array.dtype
        self.array = array
        self.__cuda_array_interface__ = {
            "version": 3,
            "shape": array.shape,
            "typestr": array.dtype.str,
            "strides": None if array.flags.c_contiguous else array.strides,
            "data": (array.ctypes.data, False),
            "stream": None,
            **entries,
        }


class NumbaArray(InterfaceArray):
    """As ``numba.cuda``'s device array."""

    __module__ = "numba.cuda.cudadrv.devicearray"

    # Types are recognised before instances are seen.
    __cuda_array_interface__: Any = None


class DlpackArray:
    """An object that speaks DLPack only, of a given kind of device. `asked` are the keywords it was given."""

    def __init__(
        self, array: np.ndarray, kind: int = dlpack.CUDA, device: int = 0, versions: bool = True
    ) -> None:
        self.array = array
        self.kind = kind
        self.number = device
        self.versions = versions
        self.asked: list[dict[str, Any]] = []

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.kind, self.number

    def __dlpack__(self, **keywords: Any) -> Any:
        self.asked.append(keywords)
        if "max_version" in keywords and not self.versions:
            raise TypeError("unexpected keyword argument 'max_version'")
        array = self.array
        return dlpack.make_capsule(
            array.ctypes.data,
            array.shape,
            array.dtype,
            self.kind,
            self.number,
            array,
            versioned=self.versions,
        )


class ArrayImpl(DlpackArray):
    """As a JAX array."""

    __module__ = "jaxlib._jax"
    deleted = False

    def is_deleted(self) -> bool:
        return self.deleted


class ShardedArrayImpl(ArrayImpl):
    __module__ = "jaxlib._jax"

    def __dlpack_device__(self) -> tuple[int, int]:
        raise BufferError("__dlpack__ only supported for unsharded arrays.")


class DynamicJaxprTracer:
    __module__ = "jax._src.interpreters.partial_eval"
