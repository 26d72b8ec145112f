"""DLPack capsules, made and read in host memory, where NumPy can check both."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import numba_sparse_attn as nsa
from numba_sparse_attn.cuda import dlpack

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


class Exporter:
    """What ``numpy.from_dlpack`` wants around a capsule in host memory."""

    def __init__(self, capsule: Any) -> None:
        self.capsule = capsule

    def __dlpack__(self, **keywords: Any) -> Any:
        return self.capsule

    def __dlpack_device__(self) -> tuple[int, int]:
        return dlpack.CPU, 0


class Owner:
    pass


def capsule_of(array: np.ndarray, **keywords: Any) -> Any:
    return dlpack.make_capsule(array.ctypes.data, array.shape, array.dtype, dlpack.CPU, 0, array, **keywords)


@pytest.mark.parametrize("versioned", [False, True])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "uint8"])
@pytest.mark.parametrize("shape", [(), (5,), (2, 3, 4), (1, 1), (3, 0, 2)])
def test_numpy_takes_our_capsule(shape: tuple[int, ...], dtype: str, versioned: bool) -> None:
    array = np.arange(int(np.prod(shape, dtype=int))).astype(dtype).reshape(shape)
    taken = np.from_dlpack(Exporter(capsule_of(array, versioned=versioned)))
    assert taken.shape == shape and taken.dtype == dtype
    np.testing.assert_array_equal(taken, array)
    if array.size:
        assert taken.ctypes.data == array.ctypes.data


@pytest.mark.parametrize("versioned", [False, True])
@pytest.mark.parametrize("dtype", [np.float16, BFLOAT16, np.float32, np.float64])
def test_our_capsule_says_what_it_was_told(dtype: Any, versioned: bool) -> None:
    address = 0x7F00_0000_1000  # never read
    capsule = dlpack.make_capsule(
        address, (2, 3, 5), np.dtype(dtype), dlpack.CUDA, 3, None, versioned=versioned
    )
    size = np.dtype(dtype).itemsize
    assert dlpack.read_capsule(capsule, "q") == dlpack.Contents(
        address, (2, 3, 5), (15 * size, 5 * size, size), np.dtype(dtype), dlpack.CUDA, 3, True
    )


@pytest.mark.parametrize("version", [None, (1, 0)])
def test_strides_of_other_producers_are_read(version: tuple[int, int] | None) -> None:
    array = np.zeros((4, 6, 8), np.float32).transpose(2, 0, 1)[::2, ::-1]
    contents = dlpack.read_capsule(array.__dlpack__(max_version=version), "q")
    assert contents.strides == array.strides and contents.shape == array.shape
    assert contents.address == array.ctypes.data
    assert contents.device_kind == dlpack.CPU


def test_read_only_is_read() -> None:
    array = np.zeros(3)
    array.flags.writeable = False
    assert not dlpack.read_capsule(array.__dlpack__(max_version=(1, 0)), "q").writable


@pytest.mark.parametrize("consumed", [False, True])
def test_owner_lives_as_long_as_the_capsule_or_its_consumer(consumed: bool) -> None:
    array = np.zeros(4, np.float32)
    owner = Owner()
    alive = weakref.ref(owner)
    capsule = dlpack.make_capsule(array.ctypes.data, (4,), array.dtype, dlpack.CPU, 0, owner)
    holder = np.from_dlpack(Exporter(capsule)) if consumed else capsule
    del owner, capsule
    gc.collect()
    assert alive() is not None
    del holder
    gc.collect()
    assert alive() is None


def test_a_capsule_may_die_while_an_exception_is_raised() -> None:
    owner = Owner()
    alive = weakref.ref(owner)

    def fail(kept: Any) -> None:
        capsule = dlpack.make_capsule(0x1000, (4,), BFLOAT16, dlpack.CUDA, 0, kept)
        raise KeyError(dlpack.read_capsule(capsule, "q").address)

    with pytest.raises(KeyError, match="4096"):
        fail(owner)
    del owner
    gc.collect()
    assert alive() is None


def test_consumed_capsule_is_refused() -> None:
    capsule = capsule_of(np.zeros(3))
    np.from_dlpack(Exporter(capsule))
    with pytest.raises(nsa.errors.ArgumentError, match="q as a DLPack capsule named"):
        dlpack.read_capsule(capsule, "q")


def test_newer_layout_is_refused() -> None:
    capsule = capsule_of(np.zeros(3), versioned=True)
    pointer = dlpack._get_pointer(capsule, b"dltensor_versioned")
    dlpack._ManagedVersioned.from_address(pointer).major = 2
    with pytest.raises(nsa.errors.ArgumentError, match="version 2"):
        dlpack.read_capsule(capsule, "q")
    dlpack._ManagedVersioned.from_address(pointer).major = 1


@pytest.mark.parametrize(
    ("code", "bits", "lanes"), [(2, 32, 4), (2, 8, 1), (8, 8, 1), (5, 64, 1), (4, 32, 1)]
)
def test_unknown_element_types_are_refused(code: int, bits: int, lanes: int) -> None:
    capsule = capsule_of(np.zeros(4, np.float32))
    tensor, _ = dlpack._open(capsule, "q")
    tensor.element.code, tensor.element.bits, tensor.element.lanes = code, bits, lanes
    with pytest.raises(nsa.errors.DtypeError, match=f"q of DLPack type code {code}"):
        dlpack.read_capsule(capsule, "q")


def test_missing_strides_mean_contiguous() -> None:
    array = np.zeros((2, 3, 4), np.float16)
    capsule = array.__dlpack__()
    tensor, _ = dlpack._open(capsule, "q")
    tensor.strides = None
    assert dlpack.read_capsule(capsule, "q").strides == array.strides


def test_byte_offset_is_added() -> None:
    array = np.zeros(8, np.float32)
    capsule = array.__dlpack__()
    dlpack._open(capsule, "q")[0].byte_offset = 12
    assert dlpack.read_capsule(capsule, "q").address == array.ctypes.data + 12
