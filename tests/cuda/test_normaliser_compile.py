"""Kernels of other normalisers compile for every target, with nothing spilled; needs no GPU.

A sample of shapes; all of them, minutes of compiling, are tried by

    python -m pytest tests/cuda/test_normaliser_compile.py --hypothesis-profile thorough
"""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

pytest.importorskip("numba_cuda", reason="numba-cuda is not installed")
pytest.importorskip("cuda.core", reason="cuda-core is not installed")

from numba_sparse_attn.cuda.device.weighing import ENTMAX, SIGMOID
from numba_sparse_attn.cuda.launch import compile_kernel
from numba_sparse_attn.cuda.plus_one import PLUS_ONE_SIGNATURE, PLUS_ONE_WARPS, make_plus_one
from numba_sparse_attn.cuda.warp.backward import KEY_STEPS, KEY_THREADS, QUERY_THREADS
from numba_sparse_attn.cuda.warp.normalised_backward import (
    ALPHA_SIGNATURE,
    NORMALISED_KEY_SIGNATURE,
    NORMALISED_QUERY_SIGNATURE,
    make_alpha_sum,
    make_normalised_key_backward,
    make_normalised_query_backward,
)
from numba_sparse_attn.cuda.warp.normalised_forward import (
    NORMALISED_SIGNATURE,
    NORMALISED_THREADS,
    NormalisedShape,
    make_normalised_forward,
)
from numba_sparse_attn.testing import DTYPES

from .compiling import instructions, ptx_of
from .test_compile import _REPORT, EVERYTHING, HEAD_DIMS, READINGS, TARGETS, shape_of

KERNELS = {
    "forward": (make_normalised_forward, NORMALISED_SIGNATURE, NORMALISED_THREADS),
    "query backward": (make_normalised_query_backward, NORMALISED_QUERY_SIGNATURE, QUERY_THREADS),
    "key backward": (make_normalised_key_backward, NORMALISED_KEY_SIGNATURE, KEY_THREADS),
}
#: Only rows of the key kernel are ever staged.
_STAGES = ("key backward",)


def every_case():
    """(kernel, rule, whether alpha is learned, dtype, head dimension, how rows are read, target)."""
    for name, rule, dtype, head_dim, reading, target in itertools.product(
        KERNELS, (ENTMAX, SIGMOID), DTYPES, HEAD_DIMS, READINGS, TARGETS
    ):
        if reading == "staged" and name not in _STAGES:
            continue
        if shape_of(dtype, head_dim, reading) is not None:
            yield name, rule, rule == ENTMAX and name == "query backward", dtype, head_dim, reading, target


#: The usual shape of every kernel, the widest, and one that is read by elements.
SAMPLE = (
    ("forward", ENTMAX, False, "float16", 64, "chunks", "sm_90a"),
    ("forward", SIGMOID, False, "bfloat16", 128, "elements", "sm_80"),
    ("forward", ENTMAX, False, "float64", 512, "chunks", "sm_80"),
    ("query backward", ENTMAX, True, "float16", 64, "chunks", "sm_90a"),
    ("query backward", SIGMOID, False, "float32", 40, "elements", "sm_90a"),
    ("query backward", ENTMAX, True, "float64", 512, "chunks", "sm_90a"),
    ("key backward", ENTMAX, False, "float16", 64, "staged", "sm_90a"),
    ("key backward", SIGMOID, False, "bfloat16", 80, "elements", "sm_80"),
    ("key backward", ENTMAX, False, "float64", 512, "chunks", "sm_90a"),
)


def inner_shape(name, dtype, head_dim, reading):
    shape = shape_of(dtype, head_dim, reading)
    return replace(shape, steps=KEY_STEPS) if name == "key backward" else shape


@pytest.mark.parametrize(
    ("name", "rule", "learns", "dtype", "head_dim", "reading", "target"),
    list(every_case()) if EVERYTHING else SAMPLE,
)
def test_registers_hold_everything(name, rule, learns, dtype, head_dim, reading, target):
    make, signature, resident = KERNELS[name]
    shape = NormalisedShape(inner_shape(name, dtype, head_dim, reading), rule, learns)
    compiled = compile_kernel(make(shape), signature, TARGETS[target], shape.threads, shape.blocks(resident))
    assert f"for '{target}'" in compiled.report
    assert "warning" not in compiled.report.lower()
    found = {key: int(value) for key, value in _REPORT.search(compiled.report).groupdict().items()}
    # Four rows of 16 float64 a lane, and a logarithm and an exponential between them: one register too many.
    crowded = (name, rule, dtype, head_dim) == ("key backward", ENTMAX, "float64", 512)
    spilled = max(found["stack"], found["stores"], found["loads"])
    assert spilled <= (8 if crowded else 0)
    if reading != "elements" and head_dim <= 128:
        assert found["registers"] <= 96


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("make", "signature", "threads"),
    [(make_plus_one, PLUS_ONE_SIGNATURE, 32 * PLUS_ONE_WARPS), (make_alpha_sum, ALPHA_SIGNATURE, 32)],
)
def test_small_kernels_need_few_registers(make, signature, threads, dtype):
    report = compile_kernel(make(dtype), signature, TARGETS["sm_90a"], threads).report
    stack, stores, loads, registers = (int(number) for number in _REPORT.search(report).groups())
    assert (stack, stores, loads) == (0, 0, 0) and registers <= 64


def test_what_a_kernel_writes_is_not_read_through_the_read_only_path():
    shape = NormalisedShape(inner_shape("forward", "float16", 64, "chunks"), ENTMAX)
    text = ptx_of(make_normalised_forward(shape), NORMALISED_SIGNATURE, shape.threads)
    found = instructions(text)
    # Scores: in the search and in the second walk, one for each step of a round.
    assert found["ld.global.f32"] == 1 + shape.warp.steps
    assert found["st.global.f32"] >= 1 and found["bar.warp.sync"] == 2
    found = instructions(ptx_of(make_plus_one("float16"), PLUS_ONE_SIGNATURE, 32 * PLUS_ONE_WARPS))
    assert found["ld.global.b16"] >= 1 and not any(name.startswith("ld.global.nc") for name in found)
