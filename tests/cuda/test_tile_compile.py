"""Every tile kernel compiles for Hopper, and the assembler reports nothing that costs time; needs no GPU.

By default every padded dimension is met once, with the types, masks and signs taking turns. All of their
combinations, many minutes of compiling, are tried by

    python -m pytest tests/cuda/test_tile_compile.py --hypothesis-profile thorough
"""

from __future__ import annotations

import itertools
import math
import re

import pytest

pytest.importorskip("numba_cuda", reason="numba-cuda is not installed")
pytest.importorskip("cuda.core", reason="cuda-core is not installed")

from hypothesis import settings

from numba_sparse_attn.cuda.changes import CompiledFunction
from numba_sparse_attn.cuda.launch import Target, compile_kernel
from numba_sparse_attn.cuda.tile.copies import COPY_SIGNATURE, COPY_THREADS, make_copy
from numba_sparse_attn.cuda.tile.forward_sm90 import FORWARD_SIGNATURE, THREADS, make_forward
from numba_sparse_attn.cuda.tile.merge import MERGE_SIGNATURE, MERGE_WARPS, MergeShape, make_merge
from numba_sparse_attn.cuda.tile.shape import tile_shape
from numba_sparse_attn.scores._derivative import derivative_of

from .compiling import disassembled, instructions, ptx_of

HOPPER = Target(9, 0, "a")
KINDS = ("float16", "bfloat16")
DIMS = tuple(range(32, 257, 32))
EVERYTHING = settings().max_examples >= 1000

_REPORT = re.compile(
    r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads"
    r".*Used (?P<registers>\d+) registers",
    re.DOTALL,
)


def cases():
    """(type, head dimension, value dimension, masked, negate)."""
    if EVERYTHING:
        return list(itertools.product(KINDS, DIMS, DIMS, (False, True), (False, True)))
    turns = [(KINDS[n % 2], dim, dim, n % 3 > 0, n % 4 == 3) for n, dim in enumerate(DIMS)]
    return [*turns, ("float16", 128, 128, False, False), ("bfloat16", 192, 128, True, False)]


def checked(compiled):
    report = compiled.report
    # Warnings of serialised products (C7510 to C7515) and of ignored setmaxnreg (C7508) are but notes there.
    assert not re.search(r"C75\d\d|warning", report, re.IGNORECASE), report
    found = {key: int(value) for key, value in _REPORT.search(report).groupdict().items()}
    assert (found["stack"], found["stores"], found["loads"]) == (0, 0, 0)
    return found["registers"]


@pytest.mark.parametrize(("kind", "head_dim", "value_dim", "masked", "negate"), cases())
def test_registers_hold_everything(kind, head_dim, value_dim, masked, negate):
    shape = tile_shape(kind, head_dim, value_dim, masked=masked, negate=negate)
    compiled = compile_kernel(make_forward(shape), FORWARD_SIGNATURE, HOPPER, THREADS)
    registers = checked(compiled)
    assert registers * THREADS <= 1 << 16  # what a launch asks for, before warpgroups shift registers
    assert "HGMMA" in disassembled(compiled.cubin)


def bent(score, head, i, j):
    return 20.0 * math.tanh(score / 20.0) if j <= i else score - 0.1 * head


#: What scores may go through.
CHANGES = {
    "alibi": (("alibi", False),),
    "softcap": (("softcap",),),
    "relative": (("relative", False),),
    "modify": (("modify", CompiledFunction(bent, derivative_of(bent))),),
    "two": (("alibi", False), ("softcap",)),
}


@pytest.mark.parametrize(
    ("head_dim", "changes"),
    list(itertools.product((64, 128, 192), CHANGES))
    if EVERYTHING
    else [(128, "alibi"), (64, "modify"), (128, "two"), (192, "relative")],
)
def test_registers_hold_changes_of_scores_too(head_dim, changes):
    shape = tile_shape("float16", head_dim, head_dim, masked=True, negate=False, changes=CHANGES[changes])
    compiled = compile_kernel(make_forward(shape), FORWARD_SIGNATURE, HOPPER, THREADS)
    assert checked(compiled) * THREADS <= 1 << 16
    assert "HGMMA" in disassembled(compiled.cubin)


@pytest.mark.parametrize("kind", KINDS)
def test_copies_need_few_registers(kind):
    assert checked(compile_kernel(make_copy(kind), COPY_SIGNATURE, HOPPER, COPY_THREADS)) <= 64


@pytest.mark.parametrize("width", [64, 256])
def test_merging_needs_few_registers(width):
    compiled = compile_kernel(
        make_merge(MergeShape("float16", width, width, False)), MERGE_SIGNATURE, HOPPER, 32 * MERGE_WARPS
    )
    assert checked(compiled) <= 128


@pytest.mark.parametrize(
    ("kind", "head_dim", "value_dim", "masked", "negate"),
    [
        ("float16", 128, 128, False, False),
        ("bfloat16", 64, 96, True, True),
        ("float16", 256, 256, True, False),
    ],
)
def test_text_has_the_instructions_that_are_meant(kind, head_dim, value_dim, masked, negate):
    shape = tile_shape(kind, head_dim, value_dim, masked=masked, negate=negate)
    text = ptx_of(make_forward(shape), FORWARD_SIGNATURE, THREADS)
    found = instructions(text)
    letters = {"float16": "f16.f16", "bfloat16": "bf16.bf16"}[kind]
    scores = f"wgmma.mma_async.sync.aligned.m64n{shape.keys}k16.f32.{letters}"
    sums = f"wgmma.mma_async.sync.aligned.m64n{shape.width}k16.f32.{letters}"
    # Each product stands twice: in the step that has both, and where a row begins or ends.
    expected = {scores: 2 * shape.depth // 16}
    expected[sums] = expected.get(sums, 0) + 2 * shape.keys // 16
    assert {name: count for name, count in found.items() if "mma_async" in name} == expected
    signs = set(re.findall(r"(?:_p|never|always), (-?1), 1, 0, 0;", text))
    assert signs == ({"-1"} if negate else {"1"})
    assert found["setmaxnreg.dec.sync.aligned.u32"] == found["setmaxnreg.inc.sync.aligned.u32"] == 1
    assert found["cp.async.bulk.tensor.4d.global.shared::cta.bulk_group"] == shape.value_chunks
    copies = found["cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes"]
    assert bool(copies) is masked and bool(found["ld.shared.b32"]) is masked
    # Arrays are registers, and sums have one order.
    assert ".local" not in text
    assert not [name for name in found if name.startswith(("atom", "red.", "call"))]
