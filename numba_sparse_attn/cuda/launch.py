"""From kernel source to a launch: compile cache, loading, and launches that cost microseconds.

Numba compiles a kernel to LTO-IR, nvJitLink turns that into a cubin, and the cubin is kept on disk under
a key that covers the source of the whole package, the kernel's compile-time parameters, the target and
the compiler's version. Neither step needs a GPU, so the tests compile every kernel for every target
and read the assembler's report.

Launches go through ``cuda.core`` with a cached configuration, addresses as plain integers: Numba's own
dispatcher costs 17 us and about 3 us more for every argument, this costs 4 to 6 us for any number.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from .. import config
from ..jit import source_digest

__all__ = ["Compiled", "Target", "compile_kernel", "launch", "load_kernel"]

_FUNCTION_NAME = re.compile(r"Function properties for (\S+)")


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


def compile_kernel(function: Callable[..., None], signature: Any, target: Target, threads: int) -> Compiled:
    """Compile a kernel's Python source; needs no GPU."""
    from cuda.core import Linker, LinkerOptions, ObjectCode
    from numba import cuda

    # "One block at least" means all registers that there are. Told the threads alone, the assembler saves
    # registers for an occupancy that nobody asked for, and spills.
    intermediate, _ = cuda.compile(
        function,
        signature,
        device=False,
        cc=target.capability,
        output="ltoir",
        abi="numba",
        launch_bounds=(threads, 1),
    )
    options = LinkerOptions(arch=target.architecture, link_time_optimization=True, ptxas_options=["-v"])
    linker = Linker(ObjectCode.from_ltoir(intermediate), options=options)
    cubin = linker.link("cubin").code
    report = linker.get_info_log() + linker.get_error_log()
    found = _FUNCTION_NAME.search(report)
    if found is None:
        raise AssertionError(f"the assembler's report names no function: {report}")
    return Compiled(bytes(cubin), found.group(1), report)


@functools.cache
def _compiler_version() -> str:
    return " ".join(version(package) for package in ("numba", "llvmlite", "numba-cuda", "cuda-core"))


def _cached(
    make: Callable[[Any], Callable[..., None]], shape: Any, signature: Any, target: Target, threads: int
) -> Compiled:
    """Compile, or read what was compiled before."""
    folder = config.cache_directory()
    if folder is None:
        return compile_kernel(make(shape), signature, target, threads)
    text = f"{make.__module__}.{make.__name__} {shape!r} {threads} {_compiler_version()}"
    digest = hashlib.sha256(text.encode()).hexdigest()[:20]
    path = folder / source_digest() / f"{make.__name__}-{target.architecture}-{digest}.cubin"
    try:
        header, _, cubin = path.read_bytes().partition(b"\n")
        found = json.loads(header)
        if hashlib.sha256(cubin).hexdigest() == found["digest"]:
            return Compiled(cubin, found["name"], found["report"])
    except (OSError, ValueError, KeyError):
        pass  # absent, unreadable or cut short: compile again
    compiled = compile_kernel(make(shape), signature, target, threads)
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
def _device(number: int) -> Any:
    from cuda.core import Device

    device = Device(number)
    device.set_current()
    return device


def target_of(number: int) -> Target:
    """The best target of a device: Hopper's own instructions need the ``a`` variant."""
    capability = _device(number).compute_capability
    return Target(capability.major, capability.minor, "a" if capability.major == 9 else "")


_loaded: dict[tuple[Any, ...], Any] = {}


def load_kernel(
    make: Callable[[Any], Callable[..., None]], shape: Any, signature: Any, threads: int, device: int
) -> Any:
    """A kernel that is ready on a device, from memory, disk or source; a factory has one signature."""
    key = make, shape, threads, device  # to hash a signature takes 6 us, more than the launch
    kernel = _loaded.get(key)
    if kernel is None:
        from cuda.core import ObjectCode

        compiled = _cached(make, shape, signature, target_of(device), threads)
        kernel = _loaded[key] = ObjectCode.from_cubin(compiled.cubin).get_kernel(compiled.name)
    return kernel


@functools.lru_cache(maxsize=1024)  # grids follow sizes, and those never end
def _configuration(blocks: int, threads: int, shared_bytes: int) -> Any:
    from cuda.core import LaunchConfig

    return LaunchConfig(grid=blocks, block=threads, shmem_size=shared_bytes)


def launch(
    kernel: Any, blocks: int, threads: int, stream: Any, arguments: tuple[Any, ...], *, shared_bytes: int = 0
) -> None:
    """Queue a kernel on a stream."""
    import cuda.core

    if not blocks:
        return  # no rows, no work; to the driver an empty grid is an error
    cuda.core.launch(stream, _configuration(blocks, threads, shared_bytes), kernel, *arguments)
