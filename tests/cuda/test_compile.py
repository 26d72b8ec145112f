"""Every kernel compiles for every target, and the assembler reports nothing that costs time; needs no GPU.

By default, a kernel meets every head dimension, and every type, target and alignment some of them. All of
their combinations, minutes of compiling, are tried by

    python -m pytest tests/cuda/test_compile.py --hypothesis-profile thorough
"""

from __future__ import annotations

import itertools
import math
import re
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("numba_cuda", reason="numba-cuda is not installed")
pytest.importorskip("cuda.core", reason="cuda-core is not installed")

from hypothesis import settings

from numba_sparse_attn.cuda.changes import CompiledFunction
from numba_sparse_attn.cuda.launch import Target, compile_kernel
from numba_sparse_attn.cuda.sinks import (
    GRADIENT_SIGNATURE,
    SHARE_SIGNATURE,
    SUM_SIGNATURE,
    make_share,
    make_sum,
    make_terms,
)
from numba_sparse_attn.cuda.warp.backward import (
    KEY_SIGNATURE,
    KEY_STEPS,
    KEY_THREADS,
    QUERY_SIGNATURE,
    QUERY_THREADS,
    make_key_backward,
    make_query_backward,
)
from numba_sparse_attn.cuda.warp.forward import FORWARD_SIGNATURE, FORWARD_THREADS, make_forward
from numba_sparse_attn.cuda.warp.merge import ADD_SIGNATURE, MERGE_SIGNATURE, make_add, make_merge
from numba_sparse_attn.cuda.warp.shape import WARPS, shared_shape, warp_shape
from numba_sparse_attn.scores._derivative import derivative_of
from numba_sparse_attn.testing import DTYPES

from .compiling import disassembled, instructions, ptx_of

KERNELS = {
    "forward": (make_forward, FORWARD_SIGNATURE, FORWARD_THREADS),
    "query backward": (make_query_backward, QUERY_SIGNATURE, QUERY_THREADS),
    "key backward": (make_key_backward, KEY_SIGNATURE, KEY_THREADS),
}
#: 128 let 16 warps run on a multiprocessor, 168 let 12.
REGISTERS = {"forward": 128, "query backward": 128, "key backward": 168}
#: How rows are read: 16 bytes at a time, or staged in shared memory so, or element by element.
READINGS = ("chunks", "staged", "elements")
HEAD_DIMS = (1, 16, 40, 64, 80, 128, 192, 256, 512)
TARGETS = {"sm_80": Target(8, 0), "sm_90a": Target(9, 0, "a")}
EVERYTHING = settings().max_examples >= 1000

_REPORT = re.compile(
    r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads"
    r".*Used (?P<registers>\d+) registers",
    re.DOTALL,
)


def shape_of(dtype, head_dim, reading, wide=False, mixed=False):
    """The kernel's shape; None if there is none."""
    if reading != "elements" and head_dim * DTYPES[dtype].itemsize % 16:
        return None
    shape = warp_shape(dtype, head_dim, head_dim, aligned=reading != "elements", wide=wide, mixed=mixed)
    return shared_shape(shape) if reading == "staged" else shape


def every_case():
    """(kernel, dtype, head dimension, how rows are read, target), one for each kernel that differs."""
    seen = set()
    for name, dtype, head_dim, reading in itertools.product(KERNELS, DTYPES, HEAD_DIMS, READINGS):
        shape = shape_of(dtype, head_dim, reading)
        if shape is not None and (name, shape) not in seen:
            seen.add((name, shape))
            yield from ((name, dtype, head_dim, reading, target) for target in TARGETS)


def diagonal():
    """A case for every kernel and head dimension; the others take turns."""
    for number, name in enumerate(KERNELS):
        for turn, head_dim in enumerate(HEAD_DIMS, start=number):
            dtype = list(DTYPES)[turn % 4]
            possible = [reading for reading in READINGS if shape_of(dtype, head_dim, reading) is not None]
            yield name, dtype, head_dim, possible[turn % len(possible)], list(TARGETS)[turn % 2]


def compiled_of(name, shape, target="sm_90a"):
    make, signature, resident = KERNELS[name]
    if name == "key backward":
        shape = replace(shape, steps=KEY_STEPS)
    return compile_kernel(make(shape), signature, TARGETS[target], shape.threads, shape.blocks(resident))


@pytest.mark.parametrize(
    ("name", "dtype", "head_dim", "reading", "target"), list(every_case() if EVERYTHING else diagonal())
)
def test_registers_hold_everything(name, dtype, head_dim, reading, target):
    compiled = compiled_of(name, shape_of(dtype, head_dim, reading), target)
    assert f"for '{target}'" in compiled.report
    assert "warning" not in compiled.report.lower()
    found = {key: int(value) for key, value in _REPORT.search(compiled.report).groupdict().items()}
    assert (found["stack"], found["stores"], found["loads"]) == (0, 0, 0)
    ordinary = reading != "elements" and (dtype, head_dim) != ("float64", 512)
    assert found["registers"] <= (REGISTERS[name] if ordinary else 255)


def test_a_kernel_is_named_by_its_cubin():
    """And not by the report, which is empty where another library has loaded an old linker."""
    compiled = compile_kernel(make_merge("float32"), MERGE_SIGNATURE, TARGETS["sm_80"], 32 * WARPS)
    assert f"Compiling entry function '{compiled.name}' for 'sm_80'" in compiled.report


def bent(score, head, i, j):
    return 20.0 * math.tanh(score / 20.0) - TABLE[(i + j) % 64] * head


TABLE = np.linspace(0.0, 1.0, 64)
#: Changes of scores, and the registers that they may take.
CHANGES = {
    "bias": ((("bias", True),), 128),
    "function": ((("softcap",), ("modify", CompiledFunction(bent, derivative_of(bent)))), 168),
    "all": (
        (
            ("bias", True),
            ("alibi", True),
            ("relative", True),
            ("softcap",),
            ("modify", CompiledFunction(bent, derivative_of(bent))),
        ),
        168,
    ),
}


@pytest.mark.parametrize(
    ("name", "dtype", "changed", "target"),
    [
        ("forward", "float16", "all", "sm_90a"),
        ("forward", "float64", "function", "sm_80"),
        ("query backward", "bfloat16", "all", "sm_80"),
        ("query backward", "float32", "bias", "sm_90a"),
        ("key backward", "float16", "bias", "sm_80"),
        ("key backward", "float32", "all", "sm_90a"),
    ],
)
def test_registers_hold_changes_of_scores_too(name, dtype, changed, target):
    kinds, registers = CHANGES[changed]
    shape = replace(shape_of(dtype, 64, "chunks"), changes=kinds)
    compiled = compiled_of(name, shape, target)
    assert "warning" not in compiled.report.lower()
    found = {key: int(value) for key, value in _REPORT.search(compiled.report).groupdict().items()}
    assert (found["stack"], found["stores"], found["loads"]) == (0, 0, 0)
    assert found["registers"] <= (registers if dtype != "float64" else 255)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("make", "signature"),
    [(make_share, SHARE_SIGNATURE), (make_terms, GRADIENT_SIGNATURE), (make_sum, SUM_SIGNATURE)],
)
def test_sinks_need_few_registers(make, signature, dtype):
    report = compile_kernel(make(dtype), signature, TARGETS["sm_80"], 128).report
    stack, stores, loads, registers = (int(number) for number in _REPORT.search(report).groups())
    assert (stack, stores, loads) == (0, 0, 0) and registers <= 96


def test_a_function_is_known_by_what_it_computes():
    """Its cubin is found again in another process, and not taken for that of another function."""
    same = CompiledFunction(bent, None)
    assert repr(same) == repr(CompiledFunction(bent, None)) and same == CompiledFunction(bent, None)
    made = [CompiledFunction(lambda score, head, i, j, by=by: score * by, None) for by in (1.0, 2.0)]
    assert len({same, *made}) == 3
    closed = []
    for numbers in (np.zeros(3), np.ones(3)):
        closed.append(CompiledFunction(lambda score, head, i, j, numbers=None: score + TABLE[0], None))
        closed.append(_closing_over(numbers))
    assert closed[0] == closed[2] and closed[1] != closed[3]


def _closing_over(numbers):
    return CompiledFunction(lambda score, head, i, j: score + numbers[j], None)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("make", "signature"), [(make_merge, MERGE_SIGNATURE), (make_add, ADD_SIGNATURE)])
def test_folding_needs_few_registers(make, signature, dtype):
    report = compile_kernel(make(dtype), signature, TARGETS["sm_90a"], 32 * WARPS).report
    stack, stores, loads, registers = (int(number) for number in _REPORT.search(report).groups())
    assert (stack, stores, loads) == (0, 0, 0) and registers <= 80


@pytest.mark.parametrize("name", KERNELS)
def test_loads_of_a_round_are_not_kept_apart(name):
    """The compiler knows that lanes stay together: it guards no shuffle, so loads are moved freely."""
    for reading in ("chunks", "staged"):
        text = disassembled(compiled_of(name, shape_of("float16", 64, reading)).cubin)
        assert "BRA.DIV" not in text and "SHFL" in text


@pytest.mark.parametrize(
    ("name", "dtype", "chunk", "element"),
    [
        ("forward", "float16", "ld.global.nc.v4.b32", "ld.global.nc.b16"),
        ("query backward", "float64", "ld.global.nc.v2.f64", "ld.global.nc.f64"),
        ("key backward", "bfloat16", "ld.global.nc.v4.b32", "ld.global.nc.b16"),
    ],
)
def test_text_has_the_loads_that_are_meant(name, dtype, chunk, element):
    make, signature, _ = KERNELS[name]
    variants = {
        variant: ptx_of(make(shape_of(dtype, 64, *variant)), signature, 32 * WARPS)
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


@pytest.mark.parametrize("name", KERNELS)
def test_staged_rows_are_copied_past_the_registers(name):
    make, signature, _ = KERNELS[name]
    shape = shape_of("float16", 64, "staged")
    text = ptx_of(make(shape), signature, shape.threads)
    found = instructions(text)
    # K and V of the first tile, and of the next one.
    assert found["cp.async.cg.shared.global"] == 4 and found["cp.async.commit_group"] == 2
    assert found["cp.async.wait_group"] == 1 and found["bar.sync"] == 2
    assert found["ld.shared.v4.b32"] == 2 * shape.steps
    assert ".local" not in text
