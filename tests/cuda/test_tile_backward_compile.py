"""The kernels of the tile engine's backward pass compile for Hopper, and nothing is spilled; needs no GPU.

By default every padded dimension is met, with the sweeps, types, masks and signs taking turns. All of their
combinations are tried by

    python -m pytest tests/cuda/test_tile_backward_compile.py --hypothesis-profile thorough
"""

from __future__ import annotations

import itertools
import re

import pytest

pytest.importorskip("numba_cuda", reason="numba-cuda is not installed")
pytest.importorskip("cuda.core", reason="cuda-core is not installed")

from numba_sparse_attn.cuda.launch import compile_kernel
from numba_sparse_attn.cuda.tile.backward_sm90 import BACKWARD_SIGNATURE, THREADS, make_backward
from numba_sparse_attn.cuda.tile.merge import MERGE_WARPS
from numba_sparse_attn.cuda.tile.merge_gradients import MERGE_GRADIENTS_SIGNATURE, make_gradient_merge
from numba_sparse_attn.cuda.tile.shape_gradients import gradient_shapes
from numba_sparse_attn.cuda.tile.statistics import (
    STATISTICS_SIGNATURE,
    STATISTICS_THREADS,
    StatisticsShape,
    make_statistics,
)

from .compiling import disassembled, instructions, ptx_of
from .test_tile_compile import CHANGES, DIMS, EVERYTHING, HOPPER, KINDS, checked


def shapes():
    """Every padded dimension, of queries and of keys; both gradients of keys in one launch and in two."""
    if EVERYTHING:
        calls = itertools.product(KINDS, DIMS, DIMS, (False, True), (False, True), (False, True))
    else:
        calls = [
            ("float16", 32, 32, False, True, False),
            ("bfloat16", 64, 64, True, True, False),
            ("bfloat16", 96, 96, True, False, True),
            ("float16", 128, 128, False, True, True),
            ("float16", 128, 128, True, True, False),
            ("bfloat16", 160, 192, False, False, False),
            ("bfloat16", 224, 160, True, True, False),
            ("float16", 256, 256, False, True, False),
            ("float16", 256, 256, True, False, False),
        ]
    found = {
        shape
        for kind, head_dim, value_dim, of_keys, masked, negate in calls
        for shape in gradient_shapes(kind, head_dim, value_dim, of_keys=of_keys, masked=masked, negate=negate)
    }
    return sorted(found, key=repr)


@pytest.mark.parametrize("shape", shapes(), ids=repr)
def test_registers_hold_everything(shape):
    compiled = compile_kernel(make_backward(shape), BACKWARD_SIGNATURE, HOPPER, THREADS)
    registers = checked(compiled)
    assert registers * THREADS <= 1 << 16  # what a launch asks for, before warpgroups shift registers
    assert "HGMMA" in disassembled(compiled.cubin)


@pytest.mark.parametrize("of_keys", [False, True])
def test_merging_needs_few_registers(of_keys):
    for shape in gradient_shapes("float16", 256, 256, of_keys=of_keys, masked=True, negate=False):
        compiled = compile_kernel(
            make_gradient_merge(shape), MERGE_GRADIENTS_SIGNATURE, HOPPER, 32 * MERGE_WARPS
        )
        assert 3 * 32 * MERGE_WARPS * checked(compiled) <= 1 << 16  # three blocks a multiprocessor


def changed_shapes():
    """Both sweeps, gradients of keys in one launch and in two."""
    calls = [(128, "alibi", True), (64, "softcap", True), (128, "modify", False), (192, "relative", False)]
    if EVERYTHING:
        calls = list(itertools.product((64, 128, 192), CHANGES, (False, True)))
    return [
        shape
        for dim, changes, of_keys in calls
        for shape in gradient_shapes(
            "bfloat16", dim, dim, of_keys=of_keys, masked=True, negate=False, changes=CHANGES[changes]
        )
    ]


@pytest.mark.parametrize(
    "shape", changed_shapes(), ids=lambda s: f"{s.depth} {s.changes[0][0]} {s.of_keys} {s.first} {s.second}"
)
def test_registers_hold_changes_of_scores_too(shape):
    compiled = compile_kernel(make_backward(shape), BACKWARD_SIGNATURE, HOPPER, THREADS)
    assert checked(compiled) * THREADS <= 1 << 16
    assert "HGMMA" in disassembled(compiled.cubin)


@pytest.mark.parametrize("aligned", [False, True])
def test_statistics_need_few_registers(aligned):
    shape = StatisticsShape("float16", 16, aligned)
    compiled = compile_kernel(make_statistics(shape), STATISTICS_SIGNATURE, HOPPER, STATISTICS_THREADS)
    assert checked(compiled) <= 80


@pytest.mark.parametrize(
    ("head_dim", "value_dim", "of_keys", "masked", "negate"),
    [(128, 128, True, True, False), (64, 96, False, False, True), (256, 224, True, False, True)],
)
def test_text_has_the_instructions_that_are_meant(head_dim, value_dim, of_keys, masked, negate):
    for shape in gradient_shapes(
        "float16", head_dim, value_dim, of_keys=of_keys, masked=masked, negate=negate
    ):
        text = ptx_of(make_backward(shape), BACKWARD_SIGNATURE, THREADS)
        found = instructions(text)
        # Each product stands twice: in a step, and where an item begins or ends.
        expected = {}
        for columns, count, wanted in (
            (shape.columns, shape.depth, True),
            (shape.columns, shape.width, shape.first),
            (shape.depth, shape.columns, shape.first),
            (shape.width, shape.columns, shape.second),
        ):
            name = f"wgmma.mma_async.sync.aligned.m64n{columns}k16.f32.f16.f16"
            if wanted:
                expected[name] = expected.get(name, 0) + 2 * count // 16
        assert {name: count for name, count in found.items() if "mma_async" in name} == expected
        signs = re.findall(r"(?:_p|never|always), (-?1), 1, 0, 0;", text)
        assert signs.count("-1") == (2 * shape.depth // 16 if negate else 0)
        assert found["setmaxnreg.dec.sync.aligned.u32"] == found["setmaxnreg.inc.sync.aligned.u32"] == 1
        copies = found["cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes"]
        assert bool(copies) is (masked or of_keys)
        # Arrays are registers, and sums have one order.
        assert ".local" not in text
        assert not [name for name in found if name.startswith(("atom", "red.", "call"))]
