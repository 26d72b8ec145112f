"""The current GPU and stream handles, with a stand-in for the driver."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from numba_sparse_attn.cuda import streams


class Status(int):
    name = "CUDA_ERROR_INVALID_VALUE"


class Driver:
    """Contexts 100 + device; a stack of them for the one thread of the test."""

    CUpointer_attribute = SimpleNamespace(CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL=9)
    CUstreamCaptureMode = SimpleNamespace(CU_STREAM_CAPTURE_MODE_RELAXED="relaxed")

    def __init__(self) -> None:
        self.stack: list[int] = []
        self.calls: list[str] = []
        self.capture_mode = "global"

    def cuThreadExchangeStreamCaptureMode(self, mode: str) -> tuple[Any, ...]:
        before, self.capture_mode = self.capture_mode, mode
        return Status(0), before

    def cuInit(self, flags: int) -> tuple[Any, ...]:
        return (Status(0),)

    def cuDeviceGet(self, number: int) -> tuple[Any, ...]:
        return Status(0), number

    def cuDevicePrimaryCtxRetain(self, device: int) -> tuple[Any, ...]:
        self.calls.append("retain")
        return Status(0), 100 + device

    def cuCtxGetCurrent(self) -> tuple[Any, ...]:
        return Status(0), self.stack[-1] if self.stack else 0

    def cuCtxPushCurrent(self, context: int) -> tuple[Any, ...]:
        self.calls.append("push")
        self.stack.append(context)
        return (Status(0),)

    def cuCtxPopCurrent(self) -> tuple[Any, ...]:
        self.calls.append("pop")
        return Status(0), self.stack.pop()

    def cuCtxGetDevice(self) -> tuple[Any, ...]:
        return (Status(0), self.stack[-1] - 100) if self.stack else (Status(201), None)

    def cuPointerGetAttribute(self, attribute: int, address: int) -> tuple[Any, ...]:
        return (Status(0), 1) if (attribute, address) == (9, 4096) else (Status(1), None)

    def cuStreamIsCapturing(self, handle: int) -> tuple[Any, ...]:
        return Status(0), int(handle == 7)


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Driver]:
    fake = Driver()
    monkeypatch.setattr(streams, "driver", lambda: fake)
    streams._primary_context.cache_clear()
    yield fake
    streams._primary_context.cache_clear()


def test_the_right_context_is_left_alone(driver: Driver) -> None:
    driver.stack = [101]
    with streams.on_device(1):
        assert driver.stack == [101]
    assert driver.calls == ["retain"]


def test_another_context_is_there_for_the_block_only(driver: Driver) -> None:
    for before in ([], [100]):
        driver.stack = list(before)
        with pytest.raises(KeyError), streams.on_device(1), streams.on_device(1):
            assert driver.stack == [*before, 101]
            raise KeyError
        assert driver.stack == before
    assert driver.calls == ["retain", "push", "pop", "push", "pop"]


def test_driver_errors_are_named(driver: Driver) -> None:
    with pytest.raises(RuntimeError, match="cuPointerGetAttribute failed: CUDA_ERROR_INVALID_VALUE"):
        streams.device_of_address(1234)


def test_device_of_address(driver: Driver) -> None:
    assert streams.device_of_address(4096) == 1
    assert streams.device_of_address(0) == 0
    driver.stack = [103]
    assert streams.device_of_address(0) == 3


def test_capturing(driver: Driver) -> None:
    assert streams.is_capturing(7) and not streams.is_capturing(8)


def test_beside_a_capture_and_back(driver: Driver) -> None:
    with pytest.raises(KeyError), streams.beside_capture(), streams.beside_capture():
        assert driver.capture_mode == "relaxed"
        raise KeyError
    assert driver.capture_mode == "global"
