"""Every intrinsic of the tile kernels turns into the instruction that is meant; needs no GPU."""

from __future__ import annotations

import itertools
import re

import pytest

pytest.importorskip("numba_cuda", reason="numba-cuda is not installed")

from numba import cuda, float32, int32, int64, types, uint8, uint32

from numba_sparse_attn.cuda.ptx import arithmetic, barriers, memory, registers, shared, tma, wgmma

from .compiling import instructions, ptx_of

#: Moves between registers, addresses, and what every kernel has.
PLUMBING = ("mov.", "cvt.u", "cvt.s", "cvta.", "shl.", "add.", "ld.param.", "ret", "setp.ne.b32")

A, N, M = uint32, int32, int64
SCALAR = {
    "barrier_init": (barriers.barrier_init, (A, N), {"mbarrier.init.shared::cta.b64": 1}),
    "barrier_expect": (barriers.barrier_expect, (A, N), {"mbarrier.arrive.expect_tx.shared::cta.b64": 1}),
    "barrier_arrive": (barriers.barrier_arrive, (A,), {"mbarrier.arrive.shared::cta.b64": 1}),
    "fence_barrier_init": (barriers.fence_barrier_init, (), {"fence.mbarrier_init.release.cluster": 1}),
    "fence_async_proxy": (barriers.fence_async_proxy, (), {"fence.proxy.async.shared::cta": 1}),
    "named_barrier": (barriers.named_barrier(5, 128).sync, (), {"bar.sync": 1}),
    "give_registers": (barriers.give_registers(24), (), {"setmaxnreg.dec.sync.aligned.u32": 1}),
    "take_registers": (barriers.take_registers(240), (), {"setmaxnreg.inc.sync.aligned.u32": 1}),
    "acquire_map": (tma.acquire_map, (M,), {"fence.proxy.tensormap::generic.acquire.gpu": 1}),
    "load_box": (
        tma.load_box,
        (A, M, A, N, N, N, N),
        {"cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes": 1},
    ),
    "store_box": (
        tma.store_box,
        (A, M, N, N, N, N),
        {"cp.async.bulk.tensor.4d.global.shared::cta.bulk_group": 1},
    ),
    "copy_bytes": (
        tma.copy_bytes,
        (A, M, N, A),
        {"cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes": 1},
    ),
    "commit_stores": (tma.commit_stores, (), {"cp.async.bulk.commit_group": 1}),
    "wait_for_reads": (tma.wait_for_reads, (), {"cp.async.bulk.wait_group.read": 1}),
    "wait_for_stores": (tma.wait_for_stores, (), {"cp.async.bulk.wait_group": 1}),
    "store_int32": (memory.store_int32, (M, N), {"st.global.b32": 1}),
    "store_shared_int32": (shared.store_shared_int32, (A, N), {"st.shared.b32": 1}),
}


def kernel_of(intrinsic, count):
    """A kernel that hands its arguments on."""
    return {
        0: lambda: intrinsic(),
        1: lambda a: intrinsic(a),
        2: lambda a, b: intrinsic(a, b),
        4: lambda a, b, c, d: intrinsic(a, b, c, d),
        6: lambda a, b, c, d, e, f: intrinsic(a, b, c, d, e, f),
        7: lambda a, b, c, d, e, f, g: intrinsic(a, b, c, d, e, f, g),
    }[count]


def meant(kernel, *arguments):
    """Text of a kernel, and its instructions without plumbing."""
    text = ptx_of(kernel, types.void(*arguments), 128)
    found = instructions(text)
    return text, {name: count for name, count in found.items() if not name.startswith(PLUMBING)}


@pytest.mark.parametrize("name", SCALAR)
def test_scalar_instructions(name):
    intrinsic, operands, expected = SCALAR[name]
    _, found = meant(kernel_of(intrinsic, len(operands)), *operands)
    assert found == expected


def test_operands_stand_where_they_belong():
    text, _ = meant(kernel_of(tma.load_box, 7), *SCALAR["load_box"][1])
    places = {
        register: int(number)
        for register, number in re.findall(r"ld\.param\.u\d+ \t(%\w+), \[\w+?_param_(\d)\]", text)
    }
    (line,) = [line for line in text.splitlines() if "cp.async.bulk.tensor" in line]
    used = re.findall(r"%\w+", line)
    assert [places[register] for register in used] == [0, 1, 3, 4, 5, 6, 2]


def test_waiting_repeats_until_the_phase_has_ended():
    text, found = meant(kernel_of(barriers.barrier_wait, 2), A, N)
    assert text.count("AGAIN: mbarrier.try_wait.parity.shared::cta.b64 over,") == 1
    assert set(found) == {"bra.uni"} and text.count("@over bra.uni OVER; bra.uni AGAIN; OVER:") == 1


def test_a_condition_anywhere_is_one_barrier():
    barrier_any = barriers.named_barrier(3, 128).any

    def kernel(address, condition):
        shared.store_shared_int32(address, barrier_any(condition))

    text, found = meant(kernel, A, N)
    assert found == {"bar.red.or.pred": 1, "selp.b32": 1, "st.shared.b32": 1}
    assert "3, 128" in text


def test_arithmetic():
    store = shared.store_shared_int32
    fma, largest, pack = arithmetic.fma_float32, arithmetic.max_float32, registers.pack_pair("bfloat16")

    def kernel(address, a, b):
        store(address, pack(fma(a, b, a), largest(a, b)))

    _, found = meant(kernel, A, float32, float32)
    assert found == {"fma.rn.f32": 1, "max.f32": 1, "cvt.rn.bf16x2.f32": 1, "st.shared.b32": 1}


def test_elements_are_kept_by_the_bits_of_a_word():
    keep, pack, store = (
        registers.keep_by_bits(4, 4),
        registers.pack_pair("float16"),
        shared.store_shared_int32,
    )

    def kernel(address, word, value):
        values = cuda.local.array(8, float32)
        for i in range(8):
            values[i] = value
        keep(values, word)
        for i in range(4):
            store(address, pack(values[2 * i], values[2 * i + 1]))

    text, found = meant(kernel, A, N, float32)
    assert found["selp.f32"] == 4 and found["st.shared.b32"] == 4
    tested = re.findall(r"and\.b32 bit, %r\d+, (\d+);", text)
    assert tested == ["1", "2", "4", "8"] and text.count("0fFF800000") == 4


@pytest.mark.parametrize("negate", [False, True])
def test_products(negate):
    chain = wgmma.Chain("bfloat16", depth=96, columns=64, width=128, left_rows=128, negate=negate)
    products = wgmma.products(chain)
    score, add, score_and_add, wait = products

    def kernel(address, left, right, values):
        scores = cuda.local.array(32, float32)
        sums = cuda.local.array(64, float32)
        weights = cuda.local.array(16, int32)
        for i in range(64):
            sums[i] = float32(0.0)
        score(scores, left, right)
        for i in range(16):
            weights[i] = int32(scores[2 * i] + scores[2 * i + 1])
        score_and_add(scores, sums, weights, left, right, values)
        wait(sums, weights)
        for i in range(16):
            weights[i] = int32(scores[2 * i] + scores[2 * i + 1])
        add(sums, weights, values)
        for i in range(64):
            shared.store_shared_int32(address, int32(sums[i]))

    text = ptx_of(kernel, types.void(A, A, A, A), 128)
    found = instructions(text)
    letters = "wgmma.mma_async.sync.aligned.m64n{}k16.f32.bf16.bf16"
    assert found[letters.format(64)] == 2 * 6 and found[letters.format(128)] == 2 * 4
    assert found["wgmma.commit_group.sync.aligned"] == 4 and found["wgmma.fence.sync.aligned"] == 3
    assert re.findall(r"wait_group\.sync\.aligned (\d);", text) == ["0", "1", "0", "0"]
    assert ".local" not in text
    # Offsets of operands in units of 16 bytes: 32 bytes a step inside of a chunk, then the next chunk.
    steps = [0, 2, 4, 6, 128 * 8, 128 * 8 + 2]
    first = text[text.index("wgmma.fence") :]
    first = first[: first.index("commit_group")]
    offsets = [int(offset) for offset in re.findall(r"add\.u32 low, uniform\d, (\d+);", first)]
    assert offsets[0::2] == steps
    assert offsets[1::2] == [0, 2, 4, 6, 64 * 8, 64 * 8 + 2]
    last = text[text.rindex("wgmma.fence") :]
    offsets = [int(offset) for offset in re.findall(r"add\.u32 low, uniform\d, (\d+);", last)]
    assert offsets == [(64 * 8 << 16) + 16 * 8 * step for step in range(4)]
    assert set(re.findall(r"(?:never|always), (-?1), 1, 0, 0;", text)) == {"-1" if negate else "1"}


def test_products_end_in_their_order_and_when_they_are_asked_to():
    score = wgmma.Score("float16", depth=64, columns=64, left_rows=128)
    add = wgmma.Sum("float16", columns=64, width=32)
    begin, proceed = wgmma.start(score, score, unfinished=1), wgmma.start(add, unfinished=1, before=(score,))
    end = wgmma.finish(add)

    def kernel(address, left, right, values):
        scores, more = cuda.local.array(32, float32), cuda.local.array(32, float32)
        sums = cuda.local.array(16, float32)
        weights = cuda.local.array(16, int32)
        for i in range(16):
            sums[i] = float32(0.0)
        begin(scores, more, left, right, uint32(left + 7), uint32(right + 9))
        for i in range(16):
            weights[i] = int32(scores[2 * i] + scores[2 * i + 1])
        proceed(sums, weights, more, values)
        for i in range(32):
            shared.store_shared_int32(address, int32(more[i]))
        end(sums, weights)
        for i in range(16):
            shared.store_shared_int32(address, int32(sums[i]))

    text = ptx_of(kernel, types.void(A, A, A, A), 128)
    found = instructions(text)
    letters = "wgmma.mma_async.sync.aligned.m64n{}k16.f32.f16.f16"
    assert found[letters.format(64)] == 2 * 4 and found[letters.format(32)] == 4
    assert found["wgmma.commit_group.sync.aligned"] == 3 and found["wgmma.fence.sync.aligned"] == 2
    order = re.findall(r"commit_group|wait_group\.sync\.aligned \d|m64n\d+", text)
    assert [name for name, _ in itertools.groupby(order)] == [
        *("m64n64", "commit_group", "m64n64", "commit_group", "wait_group.sync.aligned 1"),
        *("m64n32", "commit_group", "wait_group.sync.aligned 1", "wait_group.sync.aligned 0"),
    ]
    assert ".local" not in text
    # Scores that are still being computed are stored after the wait for them, sums after theirs.
    assert text.count("st.shared.b32") == 48
    assert text.index("st.shared.b32") > text.index("m64n32")


def test_a_shared_address_has_32_bits():
    def kernel(value):
        shared.store_shared_int32(shared.shared_address(cuda.shared.array(0, uint8)), value)

    _, found = meant(kernel, N)
    assert found == {"st.shared.b32": 1}
