"""From kernel source to a launch: compile cache, loading, and launches that cost microseconds.

Numba compiles a kernel to LTO-IR, nvJitLink turns that into a cubin, and the cubin is kept on disk under
a key that covers the source of the whole package, the kernel's compile-time parameters, the target and
the compiler's version. Neither step needs a GPU, so the tests compile every kernel for every target
and read the assembler's report.

Launches go through ``cuda.core`` with a cached configuration, addresses as plain integers: Numba's own
dispatcher costs 17 us and about 3 us more for every argument, this costs 4.3 us for 34 of them. The driver
alone takes 3.9 us of that (``cuLaunchKernel`` through ctypes, arguments packed beforehand), so there is
nothing left to win.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, cast

from .. import config
from ..jit import source_digest
from . import streams

__all__ = ["Compiled", "Target", "compile_kernel", "launch", "load_kernel", "target_of"]

#: The section of a cubin that holds a kernel's parameters; functions that are no kernels have none.
_PARAMETERS = re.compile(rb"\.nv\.constant0\.([^\0]+)\0")


@dataclass(frozen=True)
class Target:
    """What a kernel is compiled for: ``Target(9, 0, "a")`` is sm_90a."""

    major: int
    minor: int
    variant: str = ""

    @property
    def architecture(self) -> str:
        """As the assembler spells it."""
        return f"sm_{self.major}{self.minor}{self.variant}"

    @property
    def capability(self) -> tuple[Any, ...]:
        """As Numba spells it."""
        return (self.major, self.minor, self.variant) if self.variant else (self.major, self.minor)


@dataclass(frozen=True)
class Compiled:
    """A cubin, the name of its kernel, and what the assembler said about it."""

    cubin: bytes
    name: str
    report: str


_SPILLS = re.compile(r"[1-9]\d* bytes spill stores")


def compile_kernel(
    function: Callable[..., None], signature: Any, target: Target, threads: int, blocks: int = 1
) -> Compiled:
    """Compile a kernel's Python source; needs no GPU.

    `blocks` blocks should fit a multiprocessor at a time; if registers would have to be spilled for that,
    fewer do.
    """
    while True:
        compiled = _compile(function, signature, target, threads, blocks)
        if blocks == 1 or not _SPILLS.search(compiled.report):
            return compiled
        blocks -= 1


def _compile(
    function: Callable[..., None], signature: Any, target: Target, threads: int, blocks: int
) -> Compiled:
    from cuda.core import Linker, LinkerOptions, ObjectCode
    from numba import cuda

    # One block means all registers that there are. Told the threads alone, the assembler saves registers
    # for an occupancy that nobody asked for, and spills.
    intermediate, _ = cuda.compile(
        function,
        signature,
        device=False,
        cc=target.capability,
        output="ltoir",
        abi="numba",
        launch_bounds=(threads, blocks),
    )
    options = LinkerOptions(arch=target.architecture, link_time_optimization=True, ptxas_options=["-v"])
    linker = Linker(ObjectCode.from_ltoir(intermediate), options=options)
    cubin = linker.link("cubin").code
    # Not every release of the linker fills the log, and another library may have loaded an old one.
    report = linker.get_info_log() + linker.get_error_log()
    return Compiled(bytes(cubin), _kernel_name(cubin), report)


def _kernel_name(cubin: bytes) -> str:
    """The name of the one kernel in a cubin."""
    (name,) = set(_PARAMETERS.findall(cubin))
    return str(name, "ascii")


@functools.cache
def _compiler_version() -> str:
    return " ".join(version(package) for package in ("numba", "llvmlite", "numba-cuda", "cuda-core"))


def _cached(
    make: Callable[[Any], Callable[..., None]],
    shape: Any,
    signature: Any,
    target: Target,
    threads: int,
    blocks: int,
) -> Compiled:
    """Compile, or read what was compiled before."""
    folder = config.cache_directory()
    if folder is None:
        return compile_kernel(make(shape), signature, target, threads, blocks)
    text = f"{make.__module__}.{make.__name__} {shape!r} {threads} {blocks} {_compiler_version()}"
    digest = hashlib.sha256(text.encode()).hexdigest()[:20]
    path = folder / source_digest() / f"{make.__name__}-{target.architecture}-{digest}.cubin"
    try:
        header, _, cubin = path.read_bytes().partition(b"\n")
        found = json.loads(header)
        if hashlib.sha256(cubin).hexdigest() == found["digest"]:
            return Compiled(cubin, found["name"], found["report"])
    except (OSError, ValueError, KeyError):
        pass  # absent, unreadable or cut short: compile again
    compiled = compile_kernel(make(shape), signature, target, threads, blocks)
    digest = hashlib.sha256(compiled.cubin).hexdigest()
    header = json.dumps({"name": compiled.name, "report": compiled.report, "digest": digest}).encode()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            file.write(header + b"\n" + compiled.cubin)
        os.replace(file.name, path)  # whole or not at all, whoever else writes it
    except OSError:
        pass  # a folder that cannot be written costs a compilation, not an error
    return compiled


@functools.cache
def target_of(device: int) -> Target:
    """The best target of a device: Hopper's own instructions need the ``a`` variant."""
    from cuda.core import Device

    capability = Device(device).compute_capability
    return Target(capability.major, capability.minor, "a" if capability.major == 9 else "")


#: A block gets this much dynamic shared memory without asking.
_SHARED_BYTES_FOR_ALL = 48 << 10

_LOADED: dict[tuple[Any, ...], Any] = {}
_LOADING = threading.Lock()


def load_kernel(
    make: Callable[[Any], Callable[..., None]],
    shape: Any,
    signature: Any,
    threads: int,
    device: int,
    *,
    blocks: int = 1,
    shared_bytes: int = 0,
) -> Any:
    """A kernel that is ready on a device, from memory, disk or source; a factory has one signature.

    `blocks` is how many blocks should fit a multiprocessor at a time, `shared_bytes` the most dynamic shared
    memory that it will be launched with.
    """
    # Without the signature: to hash one takes 6 us, more than the launch.
    key = make, shape, threads, device, blocks, shared_bytes
    kernel = _LOADED.get(key)
    if kernel is None:
        with _LOADING:  # compiling takes seconds: threads that want the same kernel wait for it
            kernel = _LOADED.get(key)
            if kernel is None:
                compiled = _cached(make, shape, signature, target_of(device), threads, blocks)
                kernel = _LOADED[key] = _load(compiled, device, shared_bytes)
    return kernel


def _load(compiled: Compiled, device: int, shared_bytes: int) -> Any:
    """A kernel from its cubin, allowed to use so much dynamic shared memory on a device."""
    from cuda.core import ObjectCode

    with streams.on_device(device), streams.beside_capture():
        kernel = ObjectCode.from_cubin(compiled.cubin).get_kernel(compiled.name)
        if shared_bytes > _SHARED_BYTES_FOR_ALL:
            driver = streams.driver()
            attribute = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
            handle, number = driver.CUkernel(int(kernel.handle)), streams.call("cuDeviceGet", device)
            streams.call("cuKernelSetAttribute", attribute, shared_bytes, handle, number)
    return kernel


@functools.lru_cache(maxsize=1024)  # grids follow sizes, and those never end
def _configuration(grid: int | tuple[int, int, int], threads: int, shared_bytes: int) -> Any:
    from cuda.core import LaunchConfig

    return LaunchConfig(grid=grid, block=threads, shmem_size=shared_bytes)


@functools.cache
def _launcher() -> Callable[..., None]:
    from cuda.core import launch

    return cast(Callable[..., None], launch)


def launch(
    kernel: Any,
    grid: int | tuple[int, int, int],
    threads: int,
    stream: Any,
    arguments: tuple[Any, ...],
    *,
    shared_bytes: int = 0,
) -> None:
    """Queue a kernel on a stream of the current device: see :class:`streams.on_device`.

    More dynamic shared memory than 48 KiB has to be announced to :func:`load_kernel`.
    """
    if grid:  # no rows, no work; to the driver an empty grid is an error
        _launcher()(stream, _configuration(grid, threads, shared_bytes), kernel, *arguments)
