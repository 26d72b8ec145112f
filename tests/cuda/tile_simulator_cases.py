"""The tile kernel on mma.sync in Numba's simulator; ``test_tile_simulator.py`` runs this file, or by hand:

    NUMBA_ENABLE_CUDASIM=1 python -m pytest tests/cuda/tile_simulator_cases.py

The simulator has to be chosen before ``numba.cuda`` is imported, hence in a process of its own. A block has
128 or 256 threads of Python: a tile takes a second.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numba import cuda, float32

from numba_sparse_attn import as_pattern
from numba_sparse_attn.cuda.device import fragments, simulated_fragments
from numba_sparse_attn.cuda.device.shared_rows import lane_offset, pieces_at
from numba_sparse_attn.cuda.device.simulated import guarded
from numba_sparse_attn.cuda.tile.merge import MERGE_SIGNATURE, MERGE_WARPS, MergeShape, make_merge
from numba_sparse_attn.testing import (
    DTYPES,
    budget_for,
    nan_filled,
    poisoned,
    random_problem,
    request_for,
)

from ..scores.test_agreement import problem_with
from .fragment_products import make_products, operands
from .simulator_cases import address_of, one_core  # noqa: F401
from .tile_launching import Device, run

every_dtype = pytest.mark.parametrize("dtype", ["float16", "bfloat16"])


def check(problem, **settings):
    masks = problem.mask if problem.mask.ndim == 3 else problem.mask[None]
    results = run(problem, [as_pattern(mask).tiles() for mask in masks], **settings)
    budget_for(problem, gradients=False).check(**results)


def ragged(n_q, n_k, seed=0):
    """Random pairs, with rows that have no key and one that has all, and no key that nobody has."""
    mask = np.random.default_rng(seed).random((n_q, n_k)) < 0.3
    mask[[0, n_q // 3]] = False
    mask[n_q // 2] = True
    return mask


# What merges


def parts_of_rows(problem, head, counts):
    """Slots [parts, 128, width + 2] of one head's tile rows, as the tiles of each part have them.

    `counts` has the parts of each tile row; keys are shared out among them tile by tile.
    """
    width = -(-problem.v.shape[-1] // 32) * 32
    scores = problem.q[head].astype(np.float32) @ problem.k[head].astype(np.float32).T
    factor = np.float32(problem.scale * np.log2(np.e))
    if problem.changes:  # the largest score is kept with the factor in it
        scores = scores * np.float32(problem.scale)
        for change in problem.changes:
            scores, _ = change.apply(scores, 0, head, slice(0, len(scores)))
        scores, factor = scores * np.float32(np.log2(np.e)), np.float32(1.0)
    values = problem.v[head].astype(np.float32)
    slots = []
    for row, count in enumerate(counts):
        for keys in np.array_split(np.arange(-(-scores.shape[1] // 128)), count):
            here = np.isin(np.arange(scores.shape[1]) // 128, keys)
            slot = np.zeros((128, width + 2), np.float32)
            rows = range(128 * row, min(128 * (row + 1), len(scores)))
            for number, query in enumerate(rows):
                selected = problem.mask[query] & here
                some = scores[query, selected]
                largest = some.max(initial=-np.inf)
                weights = np.exp2((some - largest) * factor) if len(some) else some
                # A product of matrices has 0 * nan of what is not selected, too.
                products = np.where(selected, 0, 0 * values.T).T[here].sum(axis=0)
                slot[number, : values.shape[1]] = weights @ values[selected] + products
                slot[number, width:] = largest, weights.sum()
            slots.append(slot)
    return np.stack(slots)


@pytest.mark.parametrize(
    ("head_dim", "poison", "names"),
    [(32, 0.0, ()), (80, np.nan, ()), (32, np.nan, ("alibi", "relative", "softcap", "modify"))],
)
def test_parts_of_rows_become_results(head_dim, poison, names):
    mask = ragged(150, 400)
    mask[:, [5, 390]] = False
    problem, scores = problem_with(names, mask, heads=1, head_dim=head_dim, dtype=np.float16)
    for change in scores:
        change.learnable = False
    dirty = poisoned(problem, poison)
    tiles = as_pattern(mask).tiles()
    device = Device()
    changes = device.changes(scores, request_for(problem, tiles), ())
    counts = [3, 2]
    with np.errstate(invalid="ignore"):
        slots = parts_of_rows(dirty, 0, counts)
    pairs = np.stack([tiles.columns, tiles.mask_ids], axis=1)
    lanes = np.ascontiguousarray(tiles.lanes)
    firsts = np.cumsum([0, *counts[:-1]])
    lists = address_of(pairs) + 8 * tiles.indptr[:-1]
    long_rows = np.stack(
        [np.arange(2), firsts, counts, lists, np.diff(tiles.indptr), np.full(2, address_of(lanes))], axis=1
    ).astype(np.int64)
    out = nan_filled((1, 150, head_dim), problem.dtype)
    lse = nan_filled((1, 150), np.dtype(np.float32))
    arrays = (*dirty.arrays[:3], out)
    depth = -(-head_dim // 32) * 32
    kernel = make_merge(MergeShape("float16", depth, depth, False, changes.kinds if changes else ()))
    addresses = [address_of(array) for array in (long_rows, slots, lse)]
    strides = [stride for array in arrays for stride in (0, *array.strides[:2])]
    sizes = [1, 1, 150, head_dim, head_dim]
    factor = np.float32(problem.scale * np.log2(np.e))
    arguments = [*addresses, *sizes, *(address_of(array) for array in arrays), *strides, factor]
    arguments.append(changes.settings if changes else 0)
    typed = [kind(argument) for kind, argument in zip(MERGE_SIGNATURE.args, arguments, strict=True)]
    with guarded([long_rows, slots, pairs, lanes, *arrays[:3], *device.arrays], [out, lse]):
        cuda.jit(kernel)[2 * 128 // MERGE_WARPS, 32 * MERGE_WARPS](*typed)
    budget_for(problem, gradients=False).check(out=out, lse=lse)


# The engine


@pytest.mark.parametrize(
    ("head_dim", "value_dim", "n_k", "dtype"),
    [
        (32, 32, 300, "float16"),
        (64, 64, 140, "bfloat16"),
        (80, 80, 140, "float16"),
        (128, 128, 140, "bfloat16"),
        (24, 128, 60, "float16"),
        (160, 64, 60, "bfloat16"),
        (256, 256, 60, "float16"),
    ],
)
def test_head_dimensions(head_dim, value_dim, n_k, dtype):
    """Both shapes of a warp, half lines, queries in registers and not, results wider than queries."""
    mask = ragged(70, n_k)
    check(random_problem(mask, heads=1, head_dim=head_dim, value_dim=value_dim, dtype=DTYPES[dtype]))


@every_dtype
def test_groups_batches_and_patterns_of_their_own(dtype):
    masks = np.stack([ragged(50, 60, seed=head) for head in range(2)])
    problem = random_problem(masks, heads=2, kv_heads=1, head_dim=32, dtype=DTYPES[dtype], batch=(2,))
    check(problem)


def test_full_tiles():
    """Alone, where the kernel has no masks, and beside partial ones."""
    full = random_problem(np.ones((128, 384), bool), heads=1, head_dim=64, dtype=np.float16)
    check(full)
    band = np.ones((128, 384), bool)
    band[1:, :40] = band[:100, 300:] = False
    check(replace(full, mask=band))


@pytest.mark.parametrize("scale", [-3.0, 0.0])
def test_scales(scale):
    check(random_problem(ragged(140, 40), heads=1, head_dim=32, dtype=np.float16, scale=scale))


def test_scores_that_grow_along_the_row():
    """The maximum is taken over rarely: here it grows by much, by little, and in some rows only."""
    problem = random_problem(ragged(64, 256), heads=1, head_dim=64, dtype=np.float16, scale=1.0)
    growing = np.linspace(0.1, 3.0, 256)[:, None] * problem.k.astype(np.float32)
    mild = np.where(np.arange(64)[:, None] % 3, 0.2, 1.0) * problem.q.astype(np.float32)
    check(replace(problem, q=mild.astype(np.float16), k=growing.astype(np.float16)))


@pytest.mark.parametrize(("head_dim", "poison"), [(32, np.nan), (32, np.inf), (192, np.nan)])
def test_what_no_query_selects_reaches_no_result(poison, head_dim):
    """A row without keys, and rows whose tile has values that spoil them, so that they are computed again."""
    mask = np.zeros((19, 130), bool)
    mask[[1, 2, 17], [0, 129, 5]] = mask[18, 3:9] = True
    check(random_problem(mask, heads=1, head_dim=head_dim, dtype=np.float16, scale=-0.2), poison=poison)


def test_nothing_to_see():
    for n_k in (0, 3):
        problem = random_problem(np.zeros((3, n_k), bool), heads=1, head_dim=32, dtype=np.float16)
        check(problem)


@pytest.mark.parametrize("layout", ["columns first", "odd rows", "rows first"])
def test_strides(layout):
    """The first two are copied before and after, the third is read where it lies."""
    problem = random_problem(
        ragged(9, 20), heads=2, head_dim=21 if layout == "odd rows" else 24, dtype=np.float16
    )
    axes = {"columns first": (-1, -2), "odd rows": (0, 0), "rows first": (-3, -2)}[layout]
    arrays = [np.ascontiguousarray(array.swapaxes(*axes)).swapaxes(*axes) for array in problem.arrays]
    check(problem.with_arrays(*arrays))


# What it stands on: fragments


@every_dtype
def test_products_of_fragments(dtype):
    arrays, expected = operands(DTYPES[dtype])
    cuda.jit(make_products(dtype))[1, 32](*(address_of(array) for array in arrays))
    np.testing.assert_allclose(arrays[3], expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("row_bytes", [128, 256, 384, 512])
def test_rows_of_a_matrix_lie_in_different_banks(row_bytes):
    """Those that are loaded together as one matrix; and every piece of every row is loaded once."""
    numbers = row_bytes // 32
    seen = np.zeros((numbers, 32), np.int64)

    def kernel(seen):
        for number in range(numbers):
            offset = lane_offset(row_bytes)
            seen[number, cuda.threadIdx.x] = pieces_at(offset, number)

    cuda.jit(kernel)[1, 32](seen)
    banks = np.sort(seen.reshape(-1, 8) // 16 % 8, axis=1)
    assert (banks == np.arange(8)).all()
    rows, pieces = np.divmod(seen // 16, row_bytes // 16)
    assert (rows == np.arange(32) % 16).all()
    assert (pieces ^ rows % 8 == 2 * np.arange(numbers)[:, None] + np.arange(32) // 16).all()


def test_small_twins():
    words = [fragments.pack_pair(kind)(float32(1.5), float32(-2.0)) for kind in ("float16", "bfloat16")]
    halves = np.array(words, np.int32).view(np.int16).reshape(2, 2)
    assert halves[0].view(np.float16).tolist() == [1.5, -2.0]
    assert halves[1].view(DTYPES["bfloat16"]).tolist() == [1.5, -2.0]
    values = np.arange(6, dtype=np.float32)
    fragments.keep_by_bits(2, 3)(values, np.int32(0b101 - (1 << 31)))
    assert values.tolist() == [0, 1, 2, -np.inf, 4, 5]
    assert fragments.max_float32(np.float32(np.nan), np.float32(2)) == 2
    assert fragments.fma_float32(np.float32(3), np.float32(5), np.float32(0.5)) == 15.5


def test_any_lane():
    seen = np.zeros((2, 64), bool)

    def kernel(seen):
        for turn in range(2):
            seen[turn, cuda.threadIdx.x] = fragments.any_lane(cuda.threadIdx.x == 40 * turn)

    cuda.jit(kernel)[1, 64](seen)
    assert seen.reshape(2, 2, 32).all(axis=2).tolist() == [[True, False], [False, True]]
    assert seen.sum() == 64


def test_room_is_aligned():
    assert simulated_fragments.place_of is np.int64
    room = fragments.large_room(1000)
    places = np.zeros(3, np.int64)

    def kernel(places):
        places[cuda.threadIdx.x] = room()

    cuda.jit(kernel)[1, 3](places)
    assert (places % 128 == 0).all() and len(set(places.tolist())) == 1
