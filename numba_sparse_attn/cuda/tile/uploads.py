"""What kernels read beside the arrays of a call, copied to the device at once and for any stream.

Not on the caller's stream: it may be gone tomorrow, another one may be the next to read the copy, or it may
be capturing a CUDA graph, which would copy again whenever it is replayed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt

from .. import staging, streams
from ..view import DeviceView

__all__ = ["overwrite", "upload"]


def upload(device: int, *arrays: npt.NDArray[np.generic]) -> tuple[DeviceView, ...]:
    """Copies in new memory, complete when this returns."""
    with _apart(device) as stream:
        return tuple(staging.to_device(array, device, stream) for array in arrays)


def overwrite(device: int, address: int, array: npt.NDArray[np.generic]) -> None:
    """Copy a contiguous array to an address, complete when this returns."""
    with _apart(device) as stream:
        streams.call("cuMemcpyHtoDAsync", address, array.ctypes.data, array.nbytes, stream)


@contextmanager
def _apart(device: int) -> Iterator[int]:
    """Our own stream, empty again afterwards; also while this thread captures another one."""
    stream = streams.own_stream(device)
    # To allocate and to wait are refused to a thread that captures, unless it says that it knows better.
    relaxed = streams.driver().CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED
    before = streams.call("cuThreadExchangeStreamCaptureMode", relaxed)
    try:
        yield stream
        streams.stream_object(stream, device).sync()
    finally:
        streams.call("cuThreadExchangeStreamCaptureMode", before)
