"""Kernels of selections by content compile for every target, and registers hold everything; needs no GPU.

Of the kernels of blocks every other one is tried, such that any two of their properties meet. All are by

    python -m pytest tests/cuda/test_selection_compile.py --hypothesis-profile thorough
"""

from __future__ import annotations

import itertools
import re

import pytest

pytest.importorskip("numba_cuda", reason="numba-cuda is not installed")
pytest.importorskip("cuda.core", reason="cuda-core is not installed")

from numba_sparse_attn.cuda.launch import Target, compile_kernel
from numba_sparse_attn.cuda.selection.attended import (
    LINES_SIGNATURE,
    MASSES_SIGNATURE,
    SUM_THREADS,
    WEIGHTS_SIGNATURE,
    WEIGHTS_WARPS,
    MassesShape,
    make_lines,
    make_masses,
    make_weights,
)
from numba_sparse_attn.cuda.selection.best import BEST_SIGNATURE, BEST_WARPS, make_best
from numba_sparse_attn.cuda.selection.blocks import (
    BLOCKS_SIGNATURE,
    BLOCKS_THREADS,
    blocks_shape,
    make_blocks,
)
from numba_sparse_attn.cuda.selection.products import PRODUCTS_SIGNATURE, make_products, products_shape
from numba_sparse_attn.testing import DTYPES

from .compiling import disassembled
from .test_tile_compile import EVERYTHING

TARGETS = {"sm_80": Target(8, 0), "sm_90a": Target(9, 0, "a")}
_REPORT = re.compile(
    r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads.*Used (\d+) registers",
    re.DOTALL,
)
by_target = pytest.mark.parametrize("target", TARGETS)
by_dtype = pytest.mark.parametrize("dtype", DTYPES)


def real_of(dtype):
    return "float64" if dtype == "float64" else "float32"


def compiled_of(make, shape, signature, threads, target, *, registers, blocks=1):
    compiled = compile_kernel(make(shape), signature, TARGETS[target], threads, blocks)
    assert f"for '{target}'" in compiled.report
    assert "warning" not in compiled.report.lower()
    stack, stores, loads, used = map(int, _REPORT.search(compiled.report).groups())
    assert (stack, stores, loads) == (0, 0, 0) and used <= registers, compiled.report
    return compiled


def block_cases():
    """(type, what, words, target)"""
    properties = list(DTYPES), ["means", "extremes", "sides"], [False, True], list(TARGETS)
    numbers = itertools.product(*(range(len(values)) for values in properties))
    return [
        tuple(values[number] for values, number in zip(properties, case, strict=True))
        for case in numbers
        if EVERYTHING or sum(case) % 2 == 0
    ]


@pytest.mark.parametrize(("dtype", "what", "words", "target"), block_cases())
def test_blocks(dtype, what, words, target):
    size = DTYPES[dtype].itemsize
    shape = blocks_shape(dtype, size, 128, real_of(dtype), what=what, words=words)
    compiled = compiled_of(make_blocks, shape, BLOCKS_SIGNATURE, BLOCKS_THREADS, target, registers=128)
    if words:
        assert "LDG.E.128" in disassembled(compiled.cubin)


@by_target
@by_dtype
def test_products(dtype, target):
    """Two blocks of 256 threads have 128 registers a thread, and 64 sums stay in them; on sm_80 one block."""
    shape = products_shape(dtype, real_of(dtype))
    sizes = {"blocks": shape.resident, "registers": 128 if target == "sm_90a" else 168}
    compiled_of(make_products, shape, PRODUCTS_SIGNATURE, shape.threads, target, **sizes)


def of_warps(kind):
    return make_masses(MassesShape(kind, 8))


@by_target
@pytest.mark.parametrize("kind", ["float32", "float64"])
@pytest.mark.parametrize(
    ("make", "signature", "threads"),
    [
        (make_best, BEST_SIGNATURE, 32 * BEST_WARPS),
        (make_weights, WEIGHTS_SIGNATURE, 32 * WEIGHTS_WARPS),
        (of_warps, MASSES_SIGNATURE, 32 * 8),
        (make_lines, LINES_SIGNATURE, SUM_THREADS),
    ],
    ids=["best", "weights", "masses", "lines"],
)
def test_what_is_made_of_scores(make, signature, threads, kind, target):
    compiled_of(make, kind, signature, threads, target, registers=128)
