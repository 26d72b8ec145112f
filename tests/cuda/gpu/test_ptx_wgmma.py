"""Copy engine, products, masks and packing, each against NumPy; whole numbers, so that equal means equal."""

from __future__ import annotations

import numpy as np
import pytest
from numba import cuda, float32, int32, int64, types, uint8, uint32

from numba_sparse_attn.cuda import launch as launching
from numba_sparse_attn.cuda.device.lanes import load_int32, store_element
from numba_sparse_attn.cuda.ptx import barriers, registers, shared, tma
from numba_sparse_attn.cuda.ptx.wgmma import CHUNK, Chain, products
from numba_sparse_attn.cuda.tile.maps import TensorLayout
from numba_sparse_attn.cuda.tile.operands import Operand
from numba_sparse_attn.formats.tiles import lane_words
from numba_sparse_attn.testing import DTYPES

from .tile_calls import on_gpu

pytestmark = pytest.mark.gpu

ROWS, THREADS = 64, 128
SIGNATURE = types.void(*[types.int64] * 6)
CHAINS = [
    Chain("float16", 128, 128, 128, ROWS, False),
    Chain("bfloat16", 64, 128, 64, ROWS, True),
    Chain("float16", 32, 64, 256, ROWS, False),
    Chain("bfloat16", 160, 64, 96, ROWS, False),
    Chain("float16", 256, 64, 32, ROWS, True),
]


def make_chain_kernel(chain):
    """(maps, bits, first scores, first sums, second scores, second sums), the last four by thread.

    The second scores are masked by the bits; the second sums have the product of the first scores twice.
    """
    score, add, score_and_add, wait = products(chain)
    keep_low = registers.keep_by_bits(0, 32)
    keep_high = registers.keep_by_bits(32, 32) if chain.columns == 128 else keep_low
    pack = registers.pack_pair(chain.kind)
    store = store_element("float32")
    score_count, sum_count, weight_count = chain.columns // 2, chain.width // 2, chain.columns // 4
    depth_chunks, width_chunks = -(-chain.depth // CHUNK), -(-chain.width // CHUNK)
    left_chunk, right_chunk = ROWS * 128, chain.columns * 128
    right_at = depth_chunks * left_chunk
    values_at = right_at + depth_chunks * right_chunk
    mask_at = values_at + width_chunks * right_chunk
    barrier_at = mask_at + 8 * THREADS
    total = depth_chunks * (left_chunk + right_chunk) + width_chunks * right_chunk + 8 * THREADS
    has_high = chain.columns == 128

    def kernel(maps, bits, first_scores, first_sums, second_scores, second_sums):
        base = uint32((shared.shared_address(cuda.shared.array(0, uint8)) + 1023) & 0xFFFFFC00)
        barrier = uint32(base + barrier_at)
        thread = int32(cuda.threadIdx.x)
        if thread == 0:
            barriers.barrier_init(barrier, 1)
            barriers.fence_barrier_init()
        cuda.syncthreads()
        if thread == 0:
            barriers.barrier_expect(barrier, total)
            for c in range(depth_chunks):
                tma.load_box(uint32(base + c * left_chunk), maps, barrier, c * CHUNK, 0, 0, 0)
                tma.load_box(
                    uint32(base + right_at + c * right_chunk), maps + 128, barrier, c * CHUNK, 0, 0, 0
                )
            for c in range(width_chunks):
                tma.load_box(
                    uint32(base + values_at + c * right_chunk), maps + 256, barrier, c * CHUNK, 0, 0, 0
                )
            tma.copy_bytes(uint32(base + mask_at), bits, 8 * THREADS, barrier)
        barriers.barrier_wait(barrier, 0)
        left, right = uint32(base >> 4), uint32((base >> 4) + right_at // 16)
        values = uint32((base >> 4) + values_at // 16)
        scores = cuda.local.array(score_count, float32)
        sums = cuda.local.array(sum_count, float32)
        weights = cuda.local.array(weight_count, int32)
        for i in range(sum_count):
            sums[i] = float32(0.0)
        score(scores, left, right)
        for i in range(score_count):
            store(first_scores + 4 * (int64(thread) * score_count + i), scores[i])
        for i in range(weight_count):
            weights[i] = pack(scores[2 * i], scores[2 * i + 1])
        add(sums, weights, values)
        for i in range(sum_count):
            store(first_sums + 4 * (int64(thread) * sum_count + i), sums[i])
        score_and_add(scores, sums, weights, left, right, values)
        wait(sums, weights)
        word = uint32(base + mask_at + 8 * thread)
        keep_low(scores, shared.load_shared_int32(word))
        if has_high:
            keep_high(scores, shared.load_shared_int32(uint32(word + 4)))
        for i in range(score_count):
            store(second_scores + 4 * (int64(thread) * score_count + i), scores[i])
        for i in range(sum_count):
            store(second_sums + 4 * (int64(thread) * sum_count + i), sums[i])

    return kernel, barrier_at + 8 + 1024


def fragments(matrix):
    """A (64, columns) matrix by thread, as ``ptx/wgmma.py`` says: (128, columns / 2)."""
    thread = np.arange(THREADS)[:, None]
    element = np.arange(matrix.shape[1] // 2)
    row = 16 * (thread // 32) + thread % 32 // 4 + 8 * (element // 2 % 2)
    column = 8 * (element // 4) + 2 * (thread % 4) + element % 2
    return matrix[row, column]


def run(function, shared_bytes, arguments, monkeypatch):
    """Launch a kernel of this file, compiled anew: the cache on disk knows the package only."""
    monkeypatch.setattr(
        launching,
        "_cached",
        lambda make, shape, signature, target, threads, blocks: launching.compile_kernel(
            function, signature, target, threads, blocks
        ),
    )
    kernel = launching.load_kernel(object, object(), SIGNATURE, THREADS, 0, shared_bytes=shared_bytes)
    from numba_sparse_attn.cuda import streams

    stream = streams.stream_object(0, 0)
    launching.launch(kernel, 1, THREADS, stream, arguments, shared_bytes=shared_bytes)


@pytest.mark.parametrize("chain", CHAINS, ids=str)
def test_products_masks_and_copies(chain, monkeypatch):
    import torch

    rng = np.random.default_rng(0)
    # Fewer rows and columns than the kernel is made for: what lies beyond has to arrive as zeros.
    left = rng.integers(-1, 2, (ROWS - 3, chain.depth - 8))
    right = rng.integers(-1, 2, (chain.columns - 3, chain.depth - 8))
    values = rng.integers(-1, 2, (chain.columns - 3, chain.width - 8))
    mask = rng.random((1, 128, 128)) < 0.5
    pool = np.packbits(mask, axis=2, bitorder="little").view("<u8")
    tensors = [on_gpu(array.astype(DTYPES[chain.kind])) for array in (left, right, values)]
    operands = tuple(
        Operand(0, (1, 1, *array.shape), (0, 0, 2 * array.shape[1], 2)) for array in (left, right, values)
    )
    layout = TensorLayout(chain.kind, operands, (ROWS, chain.columns, chain.columns))
    maps = torch.from_numpy(layout.describe(tuple(t.data_ptr() for t in tensors)).view(np.int64)).cuda()
    words = np.ascontiguousarray(lane_words(pool)[0, 0])
    bits = torch.from_numpy(words.view(np.int64)).cuda()
    results = [
        torch.full((THREADS, count), float("nan"), device="cuda")
        for count in (chain.columns // 2, chain.width // 2) * 2
    ]
    function, shared_bytes = make_chain_kernel(chain)
    run(
        function,
        shared_bytes,
        (maps.data_ptr(), bits.data_ptr(), *(r.data_ptr() for r in results)),
        monkeypatch,
    )
    torch.cuda.synchronize()

    def padded(array, rows, columns):
        return np.pad(array, ((0, rows - array.shape[0]), (0, columns - array.shape[1])))

    scores = padded(left @ right.T, ROWS, chain.columns) * (-1 if chain.negate else 1)
    sums = scores @ padded(values, chain.columns, chain.width)
    kept = np.where(mask[0, :ROWS, : chain.columns], scores, -np.inf)
    expected = [scores, sums, kept, 2 * sums]
    for result, matrix in zip(results, expected, strict=True):
        np.testing.assert_array_equal(result.cpu().numpy(), fragments(matrix.astype(np.float32)))


def test_barriers_and_stores(monkeypatch):
    """A box goes through shared memory into a smaller matrix; a condition holds for one thread."""
    import torch

    group_any = barriers.named_barrier(1, THREADS).any
    store = store_element("float32")
    chunk = ROWS * 128

    def kernel(maps, conditions, target, unused, unused_too, nor_this):
        base = uint32((shared.shared_address(cuda.shared.array(0, uint8)) + 1023) & 0xFFFFFC00)
        barrier = uint32(base + chunk)
        thread = int32(cuda.threadIdx.x)
        if thread == 0:
            barriers.barrier_init(barrier, 2)
            barriers.fence_barrier_init()
        cuda.syncthreads()
        for turn in range(4):
            if thread == 0:
                tma.load_box(base, maps, barrier, 0, 0, 0, 0)
                barriers.barrier_expect(barrier, chunk)
            if thread == 64:
                barriers.barrier_arrive(barrier)
            barriers.barrier_wait(barrier, turn & 1)
        found = group_any(int32(load_int32(conditions + 4 * int64(thread)) == 77))
        store(target + 4 * int64(thread), float32(found))
        if thread == 0:
            tma.store_box(base, maps + 128, 0, 0, 0, 0)
            tma.commit_stores()
            tma.wait_for_stores()

    source = np.arange(ROWS * CHUNK).reshape(ROWS, CHUNK).astype(np.float16)
    result = np.full((50, 40), np.nan, np.float16)
    tensors = [on_gpu(source), on_gpu(result)]
    operands = tuple(Operand(0, (1, 1, *a.shape), (0, 0, 2 * a.shape[1], 2)) for a in (source, result))
    layout = TensorLayout("float16", operands, (ROWS, ROWS))
    maps = torch.from_numpy(layout.describe(tuple(t.data_ptr() for t in tensors)).view(np.int64)).cuda()
    for odd_one in (None, 0, 101):
        conditions = torch.zeros(THREADS, dtype=torch.int32, device="cuda")
        if odd_one is not None:
            conditions[odd_one] = 77
        found = torch.full((THREADS,), float("nan"), device="cuda")
        arguments = (maps.data_ptr(), conditions.data_ptr(), found.data_ptr(), 0, 0, 0)
        run(kernel, chunk + 8 + 1024, arguments, monkeypatch)
        torch.cuda.synchronize()
        assert bool((found == (odd_one is not None)).all())
        np.testing.assert_array_equal(tensors[1].cpu().numpy(), source[:50, :40])
