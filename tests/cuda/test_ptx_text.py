"""Every intrinsic turns into the instruction that is meant, and into nothing else."""

from __future__ import annotations

import pytest

pytest.importorskip("numba_cuda", reason="numba-cuda is not installed")

from numba import cuda, float32, float64, types

from numba_sparse_attn.cuda.device import lanes

from .compiling import instructions, ptx_of

ADDRESSES = types.void(types.int64, types.int64)
#: 16 bytes of memory to accumulators and back.
CHUNKS = {
    "float16": {"ld.global.nc.v4.b32": 1, "cvt.f32.f16": 8, "cvt.rn.f16x2.f32": 4, "st.global.v4.b32": 1},
    "bfloat16": {"ld.global.nc.v4.b32": 1, "cvt.rn.bf16x2.f32": 4, "st.global.v4.b32": 1},
    "float32": {"ld.global.nc.v4.f32": 1, "st.global.v4.f32": 1},
    "float64": {"ld.global.nc.v2.f64": 1, "st.global.v2.f64": 1},
}
ELEMENTS = {
    # The upper half of the word is converted too, and thrown away.
    "float16": {"ld.global.nc.b16": 1, "cvt.f32.f16": 2, "cvt.rn.f16x2.f32": 1, "st.global.b16": 1},
    "bfloat16": {"ld.global.nc.b16": 1, "cvt.rn.bf16x2.f32": 1, "st.global.b16": 1},
    "float32": {"ld.global.nc.f32": 1, "st.global.f32": 1},
    "float64": {"ld.global.nc.f64": 1, "st.global.f64": 1},
}
#: Moves between registers, and what every kernel has.
PLUMBING = ("mov.", "cvt.u", "cvt.s", "shl.", "and.", "ld.param.", "ret")


def meant(kernel, signature=ADDRESSES):
    """The instructions of a kernel without plumbing."""
    found = instructions(ptx_of(kernel, signature, 32))
    return {name: count for name, count in found.items() if not name.startswith(PLUMBING)}


@pytest.mark.parametrize("kind", CHUNKS)
def test_chunks(kind):
    load, store = lanes.load_chunk(kind), lanes.store_chunk(kind)
    real = float64 if kind == "float64" else float32
    words = {"float64": 2, "float32": 4}.get(kind, 8)

    def kernel(source, target):
        values = cuda.local.array(words, real)
        load(source, values, 0)
        store(target, values, 0)

    assert meant(kernel) == CHUNKS[kind]


@pytest.mark.parametrize("kind", ELEMENTS)
def test_elements(kind):
    load, store = lanes.load_element(kind), lanes.store_element(kind)

    def kernel(source, target):
        store(target, load(source))

    assert meant(kernel) == ELEMENTS[kind]


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_the_first_of_a_pair_is_the_lower_half(kind):
    """An element is stored from the lower half of a word whose upper half is 0."""
    store = lanes.store_element(kind)

    def kernel(target, value):
        store(target, value)

    text = ptx_of(kernel, types.void(types.int64, types.float32), 32)
    (conversion,) = [line for line in text.splitlines() if "cvt.rn" in line]
    _, upper, lower = (name.strip(" ,;") for name in conversion.split()[1:])
    assert f"mov.f32 \t{upper}, 0f00000000;" in text
    assert f"ld.param.f32 \t{lower}," in text


@pytest.mark.parametrize("kind", CHUNKS)
def test_copies_and_loads_of_shared_memory(kind):
    room, load, store = lanes.shared_room(64), lanes.load_shared_chunk(kind), lanes.store_chunk(kind)
    copy, commit, wait = lanes.copy_chunk, lanes.commit_copies, lanes.wait_for_copies(1)
    real = float64 if kind == "float64" else float32

    def kernel(source, target):
        values = cuda.local.array(8, real)
        place = room()
        copy(place + 16, source, 12)
        commit()
        wait()
        load(place + 16, values, 0)
        store(target, values, 0)

    expected = {name.replace("global.nc", "shared"): count for name, count in CHUNKS[kind].items()}
    found = {name: count for name, count in meant(kernel).items() if not name.startswith(("cvta.", "add."))}
    assert found == expected | {
        "cp.async.cg.shared.global": 1,
        "cp.async.commit_group": 1,
        "cp.async.wait_group": 1,
    }


def test_the_exponential_of_float32_is_one_instruction():
    exp2, load, store = lanes.exp2("bfloat16"), lanes.load_element("float32"), lanes.store_element("float32")

    def kernel(source, target):
        store(target, exp2(load(source)))

    assert meant(kernel) == ELEMENTS["float32"] | {"ex2.approx.ftz.f32": 1}


def test_the_exponential_of_float64_is_exact_and_calls_nothing():
    exp2, load, store = lanes.exp2("float64"), lanes.load_element("float64"), lanes.store_element("float64")

    def kernel(source, target):
        store(target, exp2(load(source)))

    found = meant(kernel)
    assert found["fma.rn.f64"] > 10
    assert not [name for name in found if name.startswith(("ex2", "call"))]


def test_lanes_exchange_words_by_shuffles():
    load_int32, load_int64, store = lanes.load_int32, lanes.load_int64, lanes.store_element("float64")

    def kernel(source, target):
        index = load_int64(source)
        store(target, float64(lanes.from_lane(index, 3)))
        store(target, float64(lanes.xor_lane(load_int32(source), 4)))

    found = meant(kernel)
    assert found["ld.global.nc.b64"] == found["ld.global.nc.b32"] == 1
    assert found["shfl.sync.idx.b32"] == 2  # a word at a time
    assert found["shfl.sync.bfly.b32"] == 1
