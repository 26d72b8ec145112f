"""Kernels loaded once, with the shared memory that they need, and launched; `cuda.core` is a stand-in."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from numba_sparse_attn.cuda import launch, streams


class Toolkit:
    """Records what is compiled, loaded and launched."""

    def __init__(self) -> None:
        self.compiled: list[tuple[Any, ...]] = []
        self.attributes: list[tuple[Any, ...]] = []
        self.launched: list[tuple[Any, ...]] = []
        self.beside_capture = False

    def compile(
        self, make: Any, shape: Any, signature: Any, target: Any, threads: int, blocks: int
    ) -> launch.Compiled:
        time.sleep(0.01)
        self.compiled.append((make, shape, threads, blocks))
        return launch.Compiled(b"cubin", "kernel", "")

    def from_cubin(self, cubin: bytes) -> Any:
        assert self.beside_capture
        handle = len(self.compiled)
        return SimpleNamespace(get_kernel=lambda name: SimpleNamespace(handle=handle, name=name))

    def call(self, name: str, *arguments: Any) -> Any:
        if name == "cuDeviceGet":
            return 100 + arguments[0]
        assert name == "cuKernelSetAttribute"
        self.attributes.append(arguments)
        return None

    def __enter__(self) -> None:
        self.beside_capture = True

    def __exit__(self, *error: object) -> None:
        self.beside_capture = False


@pytest.fixture
def toolkit(monkeypatch: pytest.MonkeyPatch) -> Iterator[Toolkit]:
    toolkit = Toolkit()
    core = SimpleNamespace(
        ObjectCode=SimpleNamespace(from_cubin=toolkit.from_cubin),
        LaunchConfig=lambda **entries: entries,
        launch=lambda *arguments: toolkit.launched.append(arguments),
    )
    enumeration = SimpleNamespace(CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES="most shared")
    monkeypatch.setitem(sys.modules, "cuda.core", core)
    monkeypatch.setattr(launch, "_cached", toolkit.compile)
    monkeypatch.setattr(launch, "target_of", lambda device: launch.Target(9, 0, "a"))
    monkeypatch.setattr(launch, "_LOADED", {})
    monkeypatch.setattr(streams, "call", toolkit.call)
    driver = SimpleNamespace(CUfunction_attribute=enumeration, CUkernel=int)
    monkeypatch.setattr(streams, "driver", lambda: driver)
    monkeypatch.setattr(streams, "beside_capture", lambda: toolkit)
    monkeypatch.setattr(streams, "on_device", lambda device: contextlib.nullcontext())
    for function in (launch._launcher, launch._configuration):
        function.cache_clear()
    yield toolkit
    for function in (launch._launcher, launch._configuration):
        function.cache_clear()


def make(shape: Any) -> Any:
    raise AssertionError("compiling is replaced")


def test_a_kernel_is_loaded_once_for_a_device(toolkit: Toolkit) -> None:
    first = launch.load_kernel(make, (64,), "signature", 128, 0)
    assert launch.load_kernel(make, (64,), "signature", 128, 0) is first
    others = [((32,), 128, 0), ((64,), 256, 0), ((64,), 128, 1)]
    found = [launch.load_kernel(make, shape, "signature", threads, gpu) for shape, threads, gpu in others]
    found.append(launch.load_kernel(make, (64,), "signature", 128, 0, blocks=8))
    assert len({id(kernel) for kernel in (first, *found)}) == 5 == len(toolkit.compiled)
    assert not toolkit.attributes


def test_shared_memory_is_asked_for_once_where_it_is_more_than_all_get(toolkit: Toolkit) -> None:
    for _ in range(2):
        launch.load_kernel(make, (64,), "signature", 128, 0, shared_bytes=48 << 10)
        launch.load_kernel(make, (64,), "signature", 128, 1, shared_bytes=227 << 10)
    assert toolkit.attributes == [("most shared", 227 << 10, 2, 101)]


def test_threads_that_want_one_kernel_compile_it_once(toolkit: Toolkit) -> None:
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(launch.load_kernel(make, (64,), "signature", 128, 0)))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(toolkit.compiled) == 1 and len({id(kernel) for kernel in found}) == 1


def test_a_failed_compilation_is_tried_again(toolkit: Toolkit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "_cached", lambda *arguments: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        launch.load_kernel(make, (64,), "signature", 128, 0)
    monkeypatch.setattr(launch, "_cached", toolkit.compile)
    assert launch.load_kernel(make, (64,), "signature", 128, 0).name == "kernel"


def test_a_launch_has_its_grid_and_an_empty_one_is_none(toolkit: Toolkit) -> None:
    launch.launch("kernel", 5, 128, "stream", (1, 2.5), shared_bytes=1024)
    launch.launch("kernel", 0, 128, "stream", (1, 2.5))
    grid = {"grid": 5, "block": 128, "shmem_size": 1024}
    assert toolkit.launched == [("stream", grid, "kernel", 1, 2.5)]


def test_blocks_that_would_cost_spills_are_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def compile(function: Any, signature: Any, target: Any, threads: int, blocks: int) -> launch.Compiled:
        tried.append(blocks)
        return launch.Compiled(b"", "kernel", f"0 bytes stack frame, {8 * (blocks > 6)} bytes spill stores")

    monkeypatch.setattr(launch, "_compile", compile)
    launch.compile_kernel(make, "signature", launch.Target(9, 0, "a"), 128, 8)
    assert tried == [8, 7, 6]
