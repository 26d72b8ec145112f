"""Every kernel compiles for every target, and the assembler reports nothing that costs time; needs no GPU.

By default, a kernel meets every head dimension, and every type, target and alignment some of them. All of
their combinations, minutes of compiling, are tried by

    python -m pytest tests/cuda/test_compile.py --hypothesis-profile thorough
"""

from __future__ import annotations

import itertools
import re

import pytest

pytest.importorskip("numba_cuda", reason="numba-cuda is not installed")
pytest.importorskip("cuda.core", reason="cuda-core is not installed")

from hypothesis import settings

from numba_sparse_attn.cuda.launch import Target, compile_kernel
from numba_sparse_attn.cuda.warp.backward import (
    KEY_SIGNATURE,
    QUERY_SIGNATURE,
    make_key_backward,
    make_query_backward,
)
from numba_sparse_attn.cuda.warp.forward import FORWARD_SIGNATURE, make_forward
from numba_sparse_attn.cuda.warp.merge import MERGE_SIGNATURE, make_merge
from numba_sparse_attn.cuda.warp.shape import WARPS, warp_shape
from numba_sparse_attn.testing import DTYPES

from .compiling import instructions, ptx_of

KERNELS = {
    "forward": (make_forward, FORWARD_SIGNATURE),
    "query backward": (make_query_backward, QUERY_SIGNATURE),
    "key backward": (make_key_backward, KEY_SIGNATURE),
}
#: 128 let 16 warps run on a multiprocessor, 168 let 12.
REGISTERS = {"forward": 128, "query backward": 128, "key backward": 168}
HEAD_DIMS = (1, 16, 40, 64, 80, 128, 192, 256, 512)
TARGETS = {"sm_80": Target(8, 0), "sm_90a": Target(9, 0, "a")}
THREADS = 32 * WARPS
EVERYTHING = settings().max_examples >= 1000

_REPORT = re.compile(
    r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads"
    r".*Used (?P<registers>\d+) registers",
    re.DOTALL,
)


def shape_of(dtype, head_dim, reading, wide=False):
    return warp_shape(dtype, head_dim, head_dim, aligned=reading == "chunks", wide=wide)


def every_case():
    """(kernel, dtype, head dimension, how rows are read, target), one for each kernel that differs."""
    seen = set()
    for name, dtype, head_dim, reading in itertools.product(
        KERNELS, DTYPES, HEAD_DIMS, ("chunks", "elements")
    ):
        if reading == "chunks" and head_dim * DTYPES[dtype].itemsize % 16:
            continue
        shape = shape_of(dtype, head_dim, reading)
        if (name, shape) not in seen:
            seen.add((name, shape))
            yield from ((name, dtype, head_dim, reading, target) for target in TARGETS)


def diagonal():
    """A case for every kernel and head dimension; the others take turns."""
    for number, name in enumerate(KERNELS):
        for turn, head_dim in enumerate(HEAD_DIMS, start=number):
            dtype = list(DTYPES)[turn % 4]
            by_chunks = head_dim * DTYPES[dtype].itemsize % 16 == 0 and turn % 3
            yield name, dtype, head_dim, "chunks" if by_chunks else "elements", list(TARGETS)[turn % 2]


@pytest.mark.parametrize(
    ("name", "dtype", "head_dim", "reading", "target"), list(every_case() if EVERYTHING else diagonal())
)
def test_registers_hold_everything(name, dtype, head_dim, reading, target):
    make, signature = KERNELS[name]
    compiled = compile_kernel(make(shape_of(dtype, head_dim, reading)), signature, TARGETS[target], THREADS)
    assert f"for '{target}'" in compiled.report
    assert "warning" not in compiled.report.lower()
    found = {key: int(value) for key, value in _REPORT.search(compiled.report).groupdict().items()}
    assert (found["stack"], found["stores"], found["loads"]) == (0, 0, 0)
    ordinary = reading == "chunks" and (dtype, head_dim) != ("float64", 512)
    assert found["registers"] <= (REGISTERS[name] if ordinary else 255)


@pytest.mark.parametrize("dtype", DTYPES)
def test_merging_needs_few_registers(dtype):
    make, shape = make_merge, shape_of(dtype, 64, "chunks")
    report = compile_kernel(make(shape), MERGE_SIGNATURE, TARGETS["sm_90a"], THREADS).report
    stack, stores, loads, registers = (int(number) for number in _REPORT.search(report).groups())
    assert (stack, stores, loads) == (0, 0, 0) and registers <= 80


@pytest.mark.parametrize(
    ("name", "dtype", "chunk", "element"),
    [
        ("forward", "float16", "ld.global.nc.v4.b32", "ld.global.nc.b16"),
        ("query backward", "float64", "ld.global.nc.v2.f64", "ld.global.nc.f64"),
        ("key backward", "bfloat16", "ld.global.nc.v4.b32", "ld.global.nc.b16"),
    ],
)
def test_text_has_the_loads_that_are_meant(name, dtype, chunk, element):
    make, signature = KERNELS[name]
    variants = {
        variant: ptx_of(make(shape_of(dtype, 64, *variant)), signature, THREADS)
        for variant in (("chunks", False), ("chunks", True), ("elements", False))
    }
    chunks, wide, elements = (instructions(text) for text in variants.values())
    # lse, delta and workspaces are read and written by elements everywhere, but in the accumulator's type.
    assert chunks[chunk] and not elements[chunk]
    assert elements[element] > chunks[element]
    assert wide["ld.global.nc.b64"] > chunks["ld.global.nc.b64"]
    assert wide["ld.global.nc.b32"] < chunks["ld.global.nc.b32"]
    # Arrays of a lane are registers before the assembler sees them, and sums have one order.
    assert not any(".local" in text for text in variants.values())
    assert not [name for name in chunks + elements if name.startswith(("atom", "red", "call"))]
