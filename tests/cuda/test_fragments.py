"""What the instructions on fragments become, and the kernels that are made of them; needs no GPU.

By default some kernels are compiled. All of them, minutes of compiling, by

    python -m pytest tests/cuda/test_fragments.py --hypothesis-profile thorough
"""

from __future__ import annotations

import itertools
import re

import pytest

pytest.importorskip("numba_cuda", reason="numba-cuda is not installed")
pytest.importorskip("cuda.core", reason="cuda-core is not installed")

from hypothesis import settings
from numba import cuda, float32, int32, types

from numba_sparse_attn.cuda.device import fragments
from numba_sparse_attn.cuda.launch import Target, compile_kernel
from numba_sparse_attn.cuda.tile.backward_sm80 import BACKWARD_SIGNATURE, make_backward
from numba_sparse_attn.cuda.tile.forward_sm80 import FORWARD_SIGNATURE, make_forward
from numba_sparse_attn.cuda.tile.shape_sm80 import fragment_shape, gradient_shapes

from .compiling import disassembled, instructions, ptx_of
from .fragment_products import PRODUCTS_SIGNATURE, make_products
from .test_tile_compile import CHANGES

TYPES = {"float16": "f16", "bfloat16": "bf16"}
TARGETS = {"sm_80": Target(8, 0), "sm_89": Target(8, 9), "sm_90a": Target(9, 0, "a"), "sm_120": Target(12, 0)}
DIMENSIONS = (
    (64, 64),
    (128, 128),
    (192, 192),
    (256, 256),
    (32, 32),
    (96, 96),
    (192, 128),
    (64, 256),
    (256, 32),
)
EVERYTHING = settings().max_examples >= 1000

_REPORT = re.compile(
    r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads"
    r".*Used (?P<registers>\d+) registers",
    re.DOTALL,
)


# Text


@pytest.mark.parametrize("kind", TYPES)
def test_products(kind):
    found = instructions(ptx_of(make_products(kind), PRODUCTS_SIGNATURE, 32))
    one = TYPES[kind]
    assert found[f"mma.sync.aligned.m16n8k16.row.col.f32.{one}.{one}.f32"] == 8
    assert found["ldmatrix.sync.aligned.m8n8.x4.shared.b16"] == 3
    assert found["ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16"] == 2
    assert not [name for name in found if name.startswith(("wgmma", "ld.local", "st.local"))]


def test_where_matrices_are_loaded_from():
    load = fragments.load_matrices(3, 512, transposed=False)

    def kernel(place, target):
        words = cuda.local.array(14, int32)
        load(words, 2, fragments.place_of(place))
        for i in range(12):
            fragments.store_shared_int32(fragments.place_of(target + 4 * i), words[i + 2])

    text = ptx_of(kernel, types.void(types.uint32, types.uint32), 32)
    assert len(re.findall(r"ldmatrix\.sync", text)) == 3
    assert sorted(set(re.findall(r"add\.\w+ .*, (\d+);", text)) & {"512", "1024"}) == ["1024", "512"]


@pytest.mark.parametrize("crossed", [False, True])
def test_which_words_are_multiplied(crossed):
    """Registers come from loads in order, so their order in the text is that of the words."""
    multiply = fragments.multiply("float16", 1, 8, crossed=crossed)

    def kernel(words, target):
        sums = cuda.local.array(8, float32)
        left, right = cuda.local.array(4, int32), cuda.local.array(4, int32)
        for i in range(8):
            sums[i] = float32(0.0)
        for i in range(4):
            left[i], right[i] = words[i], words[4 + i]
        multiply(sums, 0, left, 0, right)
        for i in range(8):
            target[i] = sums[i]

    text = ptx_of(kernel, types.void(types.int32[::1], types.float32[::1]), 32)
    offset = {
        register: int(at or 0)
        for register, at in re.findall(r"ld\.\w+\.\w*32 \s*(%r\d+), \[%rd\d+\+?(\d*)\]", text)
    }
    products = re.findall(r"mma\.sync\S+ {[^}]*}, {([^}]*)}, {([^}]*)}", text)
    words = [
        [offset[name.strip()] // 4 for part in product for name in part.split(",")] for product in products
    ]
    pairs = [(4, 6), (5, 7)] if crossed else [(4, 5), (6, 7)]
    assert words == [[0, 1, 2, 3, *pair] for pair in pairs]


# The kernels


def every_kernel():
    """(kind, dimensions, whether there are masks, whether the scale is negative, target)."""
    return itertools.product(TYPES, DIMENSIONS, (True, False), (False, True), TARGETS)


def some_kernels():
    """One for every layout of warps and ring; the one with the fewest registers to spare is tried twice."""
    kinds, targets = list(TYPES), list(TARGETS)
    yield "float16", (128, 128), True, False, "sm_80"
    for turn, dimensions in enumerate(DIMENSIONS[:4]):
        yield kinds[turn % 2], dimensions, turn % 3 > 0, turn % 4 == 3, targets[(turn + 1) % 4]


def every_gradient():
    """The same, and which of the kernels of such a call."""
    for case in every_kernel():
        kind, dimensions, masked, negate, _ = case
        for number in range(len(gradient_shapes(kind, *dimensions, masked=masked, negate=negate))):
            yield *case, number


def some_gradients():
    """One for every layout that a pass has, by queries or by keys, and a key's value alone."""
    yield "bfloat16", (64, 64), True, True, "sm_120", 1
    yield "float16", (128, 128), True, False, "sm_90a", 0
    yield "bfloat16", (128, 128), True, False, "sm_80", 1
    yield "float16", (192, 192), True, True, "sm_120", 0
    yield "float16", (192, 192), True, False, "sm_89", 2
    yield "bfloat16", (256, 256), False, False, "sm_80", 0


def check_kernel(make, signature, shape, target, products):
    """What has to be true of each: `products` is how many instructions a step takes."""
    # 1 KB is the system's.
    assert shape.shared_bytes + 1024 <= 100 << 10
    compiled = compile_kernel(make(shape), signature, TARGETS[target], shape.threads)
    assert f"for '{target}'" in compiled.report
    assert "warning" not in compiled.report.lower()
    found = {key: int(value) for key, value in _REPORT.search(compiled.report).groupdict().items()}
    assert (found["stack"], found["stores"], found["loads"]) == (0, 0, 0)
    # Every block has its multiprocessor's registers or half of them.
    assert found["registers"] <= 255
    code = disassembled(compiled.cubin)
    # All products of a step, and nothing twice.
    assert len(re.findall(r"\bHMMA\.16816\.F32", code)) == products
    assert "LDSM.16.M88.4" in code and "LDSM.16.MT88.4" in code
    assert "LDGSTS.E.BYPASS.128" in code
    # Sums stay together: no lane waits for another one between the products.
    first, last = (place(code, "HMMA") for place in (str.index, str.rindex))
    assert not re.search(r"BRA\.DIV|WARPSYNC|\bLDL\b|\bSTL\b", code[first:last])


@pytest.mark.parametrize(
    ("kind", "dimensions", "masked", "negate", "target"),
    list(every_kernel() if EVERYTHING else some_kernels()),
)
def test_registers_hold_everything(kind, dimensions, masked, negate, target):
    shape = fragment_shape(kind, *dimensions, masked=masked, negate=negate)
    steps = shape.keys // 8 * (shape.depth // 16) + shape.width // 8 * (shape.keys // 16)
    check_kernel(make_forward, FORWARD_SIGNATURE, shape, target, shape.row_tiles * steps)


@pytest.mark.parametrize(
    ("kind", "dimensions", "masked", "negate", "target", "number"),
    list(every_gradient() if EVERYTHING else some_gradients()),
)
def test_registers_hold_everything_of_gradients(kind, dimensions, masked, negate, target, number):
    shape = gradient_shapes(kind, *dimensions, masked=masked, negate=negate)[number]
    depth, width, columns = shape.depth, shape.width, shape.columns
    steps = columns // 8 * (depth // 16)
    if shape.first:
        steps += columns // 8 * (width // 16) + depth // 8 * (columns // 16)
    if shape.second:
        steps += width // 8 * (columns // 16)
    check_kernel(make_backward, BACKWARD_SIGNATURE, shape, target, shape.row_tiles * steps)


@pytest.mark.parametrize(
    ("head_dim", "changes"),
    list(itertools.product((64, 128, 192), CHANGES)) if EVERYTHING else [(64, "softcap"), (128, "alibi")],
)
def test_registers_hold_changes_of_scores_too(head_dim, changes):
    settings = {"masked": True, "negate": False, "changes": CHANGES[changes]}
    shape = fragment_shape("float16", head_dim, head_dim, **settings)
    kernels = [(make_forward(shape), FORWARD_SIGNATURE, shape.threads)]
    for one in gradient_shapes("float16", head_dim, head_dim, **settings):
        kernels.append((make_backward(one), BACKWARD_SIGNATURE, one.threads))
    for kernel, signature, threads in kernels:
        report = compile_kernel(kernel, signature, Target(8, 0), threads).report
        found = {key: int(value) for key, value in _REPORT.search(report).groupdict().items()}
        assert (found["stack"], found["stores"], found["loads"]) == (0, 0, 0)
