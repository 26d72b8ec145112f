"""Which GPU a thread talks to, streams by their handles, and the driver calls that cuda.core does not offer.

A handle is a plain integer: 0 and 1 are the legacy default stream, 2 is the calling thread's default stream.
"""

from __future__ import annotations

import functools
import threading
from types import ModuleType
from typing import Any

__all__ = [
    "beside_capture",
    "call",
    "device_of_address",
    "driver",
    "is_capturing",
    "on_device",
    "own_stream",
    "stream_object",
    "wait",
]

#: Enough for every stream that a process uses; wrapping a handle again costs 35 us.
_STREAMS_KEPT = 1024

_OWN: dict[int, Any] = {}
_OWN_LOCK = threading.Lock()


@functools.cache
def driver() -> ModuleType:
    """The driver's functions; imported when a GPU is first used."""
    from cuda.bindings import driver as module

    return module


def call(name: str, *arguments: Any) -> Any:
    """Call a driver function by name: its result, or RuntimeError with the driver's word for what failed."""
    status, *results = getattr(driver(), name)(*arguments)
    if status:
        raise RuntimeError(f"{name} failed: {status.name}")
    return results[0] if results else None


class on_device:
    """``with on_device(number):`` talk to this GPU, and afterwards to the one before.

    Unlike setting the current device, this leaves no trace in the calling thread: PyTorch and CuPy take the
    thread's current context for the user's choice of a device. Where it is the right one already, and that is
    nearly always, it costs one driver call.
    """

    __slots__ = ("_context", "_pushed")

    def __init__(self, device: int) -> None:
        self._context = _primary_context(device)
        self._pushed = False

    def __enter__(self) -> None:
        if int(call("cuCtxGetCurrent")) != self._context:
            call("cuCtxPushCurrent", self._context)
            self._pushed = True

    def __exit__(self, *error: object) -> None:
        if self._pushed:
            call("cuCtxPopCurrent")
            self._pushed = False


@functools.cache
def _primary_context(device: int) -> int:
    """The context that the CUDA runtime, and with it every library, uses; held until the process ends."""
    call("cuInit", 0)
    return int(call("cuDevicePrimaryCtxRetain", call("cuDeviceGet", device)))


class beside_capture:
    """``with beside_capture():`` allocate and load, though a stream may be captured into a CUDA graph.

    As long as any stream is captured, the driver forbids every thread what might wait for it: pinning memory,
    allocating, loading. What is made once and kept, on streams of ours that nobody captures, is no part of
    the graph and may be made all the same.
    """

    __slots__ = ("_before",)

    def __enter__(self) -> None:
        relaxed = driver().CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED
        self._before = call("cuThreadExchangeStreamCaptureMode", relaxed)

    def __exit__(self, *error: object) -> None:
        call("cuThreadExchangeStreamCaptureMode", self._before)


@functools.lru_cache(maxsize=_STREAMS_KEPT)
def stream_object(handle: int, device: int) -> Any:
    """The ``cuda.core`` stream of a handle; of the default streams, that of the current device."""
    from cuda.core import LEGACY_DEFAULT_STREAM, PER_THREAD_DEFAULT_STREAM, Stream

    if handle <= 1:
        return LEGACY_DEFAULT_STREAM
    return PER_THREAD_DEFAULT_STREAM if handle == 2 else Stream.from_handle(handle)


def own_stream(device: int) -> int:
    """Handle of our one stream on a GPU, for arrays that bring none; it lives as long as the process."""
    stream = _OWN.get(device)
    if stream is None:
        from cuda.core import Device

        with _OWN_LOCK, on_device(device), beside_capture():
            if device not in _OWN:
                Device(device).set_current()  # cuda.core wants to hear it from the thread itself
                _OWN[device] = Device(device).create_stream()
            stream = _OWN[device]
    return int(stream.__cuda_stream__()[1])


def wait(handle: int, other: int, device: int) -> None:
    """What is queued on `handle` from now on runs after what is queued on `other` so far."""
    if handle != other:
        stream_object(handle, device).wait(stream_object(other, device))


def is_capturing(handle: int) -> bool:
    """Whether work queued on a stream goes into a CUDA graph instead of being run."""
    return bool(call("cuStreamIsCapturing", handle))


def device_of_address(address: int) -> int:
    """Number of the GPU that owns an address; for address 0, which is an empty array's, the current one."""
    if address:
        attribute = driver().CUpointer_attribute.CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL
        return int(call("cuPointerGetAttribute", attribute, address))
    status, device = driver().cuCtxGetDevice()
    return 0 if status else int(device)
