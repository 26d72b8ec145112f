"""What the tile engine does on the host, with a driver that only notes what it is asked: needs no GPU."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("numba_cuda", reason="numba-cuda is not installed")

from numba_sparse_attn import as_pattern, patterns
from numba_sparse_attn.choices import most_parts
from numba_sparse_attn.cuda import tile
from numba_sparse_attn.cuda.device.row_parts import row_bytes
from numba_sparse_attn.cuda.tile import dealing, schedule
from numba_sparse_attn.cuda.tile.copies import COPY_SIGNATURE
from numba_sparse_attn.cuda.tile.forward_sm90 import FORWARD_SIGNATURE
from numba_sparse_attn.cuda.tile.merge import MERGE_SIGNATURE
from numba_sparse_attn.cuda.tile.operands import Operand, parts_of
from numba_sparse_attn.cuda.tile.shape import MOST_HEAD_DIM, tile_shape
from numba_sparse_attn.testing import random_problem, request_for
from numba_sparse_attn.testing.strategies import views

from .noting_device import HALF, MULTIPROCESSORS, Device, view_of

ITEM_COST = 2


def call(problem, structures, device, addresses=(1 << 20, 2 << 20, 3 << 20, 4 << 20)):
    request = request_for(problem, structures)
    out = np.empty((*problem.q.shape[:-1], problem.v.shape[-1]), problem.dtype)
    arrays = [view_of(a, at) for a, at in zip((*problem.arrays[:3], out), addresses, strict=True)]
    tile.forward(request, *arrays, None)
    return request, arrays


# Work ----------------------------------------------------------------------------------------------------


def items_of(order, begins):
    """What each block takes: the item with its number, and those between its bounds."""
    order = np.asarray(order)
    return [
        np.concatenate([order[block : block + 1], order[first:last]])
        for block, (first, last) in enumerate(itertools.pairwise(begins))
    ]


@given(st.lists(st.integers(1, 200), max_size=400), st.integers(1, 140))
def test_every_item_is_dealt_once_and_blocks_are_even(costs, blocks):
    costs = np.array(costs, np.int64)
    order, begins = dealing.assign(costs, blocks)
    assert sorted(order.tolist()) == list(range(len(costs)))
    assert begins[0] == min(blocks, len(costs)) and begins[-1] == len(costs) and len(begins) == blocks + 1
    dealt = [costs[items] for items in items_of(order, begins)]
    loads = [(items + ITEM_COST).sum() for items in dealt]
    assert max(loads) - min(loads) <= costs.max(initial=0) + ITEM_COST


@given(st.lists(st.integers(0, 300), min_size=1, max_size=200), st.integers(1, 140))
def test_what_is_cut_is_all_there_once(lengths, blocks):
    items = [(number, length, 10_000 * number, 7, 1250 * number) for number, length in enumerate(lengths)]
    work, long_rows = dealing.cut(np.array(items, np.int64), 8, blocks)
    parts = {}
    for place, word, address, masks, entry in work.tolist():
        assert address == 8 * entry
        parts.setdefault(place, []).append((word >> 32, word & 0xFFFFFFFF, address))
        assert masks == 7
    described = {place: rest for place, *rest in long_rows.tolist()}
    slots = []
    for number, length in enumerate(lengths):
        pieces = parts.pop(number)
        if number not in described:
            assert pieces == [(0, length, 10_000 * number)]
            continue
        first, count, *rest = described[number]
        assert rest == [10_000 * number, length, 7] and count == len(pieces) > 1
        assert [slot - 1 for slot, _, _ in pieces] == list(range(first, first + count))
        at = 10_000 * number
        for _, tiles, address in pieces:
            assert tiles > 0 and address == at
            at += 8 * tiles
        assert at == 10_000 * number + 8 * length
        slots += [slot for slot, _, _ in pieces]
    assert not parts and sorted(slots) == list(range(1, len(slots) + 1))


@given(st.lists(st.integers(0, 3000), min_size=1, max_size=300), st.integers(1, 20))
def test_a_plan_says_how_many_parts_there_are_at_most(lengths, times):
    lengths = np.tile(np.array(lengths, np.int64), times)
    work = np.stack([np.arange(len(lengths)), lengths, *[0 * lengths] * 3], axis=1)
    parts = dealing.cut(work, 8, MULTIPROCESSORS)[1][:, 2].sum()
    assert parts <= most_parts(len(lengths))


def test_rows_are_cut_where_they_would_be_waited_for():
    def longest(pattern, heads):
        lengths = np.tile(np.diff(pattern.tiles().indptr), heads)
        work = np.stack([np.arange(len(lengths)), lengths, *[0 * lengths] * 3], axis=1)
        work, long_rows = dealing.cut(work, 8, MULTIPROCESSORS)
        blocks = min(MULTIPROCESSORS, len(work))
        order, begins = dealing.assign(work[:, 1] & 0xFFFFFFFF, blocks)
        costs = (work[:, 1] & 0xFFFFFFFF) + ITEM_COST
        loads = [costs[items].sum() for items in items_of(order, begins)]
        return max(loads) / (costs.sum() / MULTIPROCESSORS), len(long_rows)

    globals_and_window = patterns.longformer(65_536, window=256, tokens=[0, 1])
    load, cut_rows = longest(globals_and_window, 8)
    assert load < 1.05 and cut_rows == 8
    load, cut_rows = longest(patterns.full(4096), 1)
    assert load < 1.4 and cut_rows == 32
    assert longest(patterns.full(4096), 64)[1] == longest(patterns.sliding_window(4096, 128), 1)[1] == 0


def test_a_cut_row_takes_two_kernels_and_memory_for_its_parts():
    problem = random_problem(np.ones((100, 4096), bool), heads=2, head_dim=64, dtype=HALF)
    with Device().installed() as device:
        call(problem, as_pattern(problem.mask).tiles(), device)
        (first, blocks, arguments), (second, merging, more) = device.launches
        assert (first, second) == ("make_forward", "make_merge")
        assert len(arguments) == len(FORWARD_SIGNATURE.args) and len(more) == len(MERGE_SIGNATURE.args)
        long_rows = device.memory[more[0]]
        assert blocks == long_rows[:, 2].sum() == 16 and merging == 2 * 128 // 4
        assert arguments[4] == more[1] and arguments[5:] == more[3:]
        assert device.room(0) - more[1] >= blocks * 128 * row_bytes(64)


def test_what_runs_at_a_time_is_side_by_side():
    """Rows of documents have 1 to 8 tiles, and still no more than three heads' keys are needed at a time."""
    lengths = np.tile(np.diff(patterns.documents([1024] * 16, causal=True).tiles().indptr), 16)
    order, begins = dealing.assign(lengths, MULTIPROCESSORS)
    starts = np.zeros(len(lengths))
    for items in items_of(order, begins):
        starts[items] = np.cumsum(lengths[items] + ITEM_COST) - lengths[items]
    heads = np.argsort(starts, kind="stable") // 128
    running = np.lib.stride_tricks.sliding_window_view(heads[: len(heads) * 2 // 3], MULTIPROCESSORS)
    assert max(len(np.unique(some)) for some in running[:: MULTIPROCESSORS // 4]) <= 3


def test_a_causal_pattern_is_dealt_evenly():
    lengths = np.tile(np.arange(1, 129), 16)
    order, begins = dealing.assign(lengths, MULTIPROCESSORS)
    loads = [lengths[items].sum() for items in items_of(order, begins)]
    assert max(loads) < 1.02 * np.mean(loads)


def test_sums_that_would_lose_digits_are_cut():
    """Where that takes no more memory than all results: a few rows of a million keys, but not every row."""

    def parts(lengths):
        lengths = np.array(lengths, np.int64)
        work = np.stack([np.arange(len(lengths)), lengths, *[0 * lengths] * 3], axis=1)
        return dealing.cut(work, 8, MULTIPROCESSORS)[1][:, 2].tolist()

    assert parts([8192, 8000] + [5] * 500_000) == [16, 16]
    assert parts([512] * 1000) == parts([1024] * 10_000) == []


def test_work_names_every_tile_of_every_head():
    structures = (patterns.causal(700).tiles(), patterns.full(700).tiles())
    which = np.array([[0, 1, 1], [1, 0, 1]], np.int32)
    with Device().installed() as device:
        result = schedule.schedule_of(structures, which, 0, 4)
        assert result.blocks == 4
        work = device.memory[result.work]
        seen = set()
        for place, tiles, list_at, masks_at, first_entry, *_ in work.tolist():
            entry, row = place >> 32, place & 0xFFFFFFFF
            structure = structures[which.reshape(-1)[entry]]
            first, last = structure.indptr[row : row + 2]
            assert tiles == last - first
            start = max(address for address in device.memory if address <= list_at)
            listed = device.memory[start][(list_at - start) // 8 :][:tiles]
            assert listed[0].tobytes() == np.int64(first_entry).tobytes()
            assert listed[:, 0].tolist() == structure.columns[first:last].tolist()
            assert listed[:, 1].tolist() == structure.mask_ids[first:last].tolist()
            assert np.array_equal(device.memory[masks_at], structure.lanes)
            seen.add((entry, row))
        assert len(seen) == len(work) == 6 * 6


# Arrays --------------------------------------------------------------------------------------------------


@given(st.data())
def test_parts_reach_every_element(data):
    lead = data.draw(st.sampled_from([(), (1,), (3,), (2, 3), (2, 1, 2)]))
    rng = np.random.default_rng(0)
    arrays = [data.draw(views(rng.standard_normal((*lead, 2, 3, d)).astype(HALF))) for d in (8, 5)]
    given_views = tuple(view_of(a, a.__array_interface__["data"][0]) for a in arrays)
    found = [[], []]
    for part in parts_of(given_views):
        for number, operand in enumerate(part.operands):
            assert operand.lengths == (part.length, *arrays[number].shape[-3:])
            for place in np.ndindex(operand.lengths):
                offset = sum(i * s for i, s in zip(place, operand.strides, strict=True))
                found[number].append(operand.address + offset)
    for array, addresses in zip(arrays, found, strict=True):
        base = array.__array_interface__["data"][0]
        expected = [
            base + sum(i * s for i, s in zip(place, array.strides, strict=True))
            for place in np.ndindex(array.shape)
        ]
        assert addresses == expected


@pytest.mark.parametrize(
    ("strides", "address", "boxable"),
    [
        ((0, 512, 128, 2), 0, True),
        ((0, 128, 512, 2), 0, True),  # rows before heads
        ((0, 512, 128, 4), 0, False),
        ((0, 512, 120, 2), 0, False),
        ((0, 512, -128, 2), 0, False),
        ((0, 0, 128, 2), 0, False),
        ((0, 512, 128, 2), 8, False),
        ((0, 1 << 40, 128, 2), 0, False),
    ],
)
def test_what_the_copy_engine_takes(strides, address, boxable):
    assert Operand(address, (1, 4, 4, 64), strides).boxable is boxable


@given(st.tuples(*[st.integers(1, 9)] * 4), st.integers(0, 3))
def test_a_packed_copy_is_boxable_and_big_enough(lengths, place):
    packed = Operand(6, lengths, (1, 2, 3, 4)).packed(4096 * place)
    assert packed.boxable
    end = sum((n - 1) * s for n, s in zip(lengths, packed.strides, strict=True)) + 2
    assert end <= packed.packed_bytes


# Calls ---------------------------------------------------------------------------------------------------


def test_a_further_call_prepares_and_uploads_nothing():
    problem = random_problem(np.ones((200, 200), bool), heads=4, kv_heads=2, head_dim=64, dtype=HALF)
    with Device().installed() as device:
        request, arrays = call(problem, patterns.full(200).tiles(), device)
        uploads = set(device.memory)
        tile.forward(request, *arrays, None)
        assert set(device.memory) == uploads and len(device.launches) == 2
        first, second = device.launches
        assert first == second and first[0] == "make_forward"
        assert len(first[2]) == len(FORWARD_SIGNATURE.args)
        for number, array in enumerate(arrays):
            assert first[2][10 + number] == array.address
            assert first[2][14 + 3 * number : 17 + 3 * number] == (0, *array.strides[-3:-1])
        described = device.memory[first[2][0]].reshape(4, -1)
        assert described[:, 0].tolist() == [array.address for array in arrays]
        moved = [view_of(array.owner, array.address + (1 << 24)) for array in arrays]
        tile.forward(request, *moved, None)
        assert len(set(device.memory) - uploads) == 1  # other descriptions


def test_arrays_that_the_copy_engine_cannot_take_are_copied():
    problem = random_problem(np.ones((20, 30), bool), heads=2, head_dim=20, dtype=HALF)
    with Device().installed() as device:
        _, arrays = call(problem, as_pattern(problem.mask).tiles(), device)
        kernels = [kernel for kernel, _, _ in device.launches]
        assert kernels == ["make_copy"] * 3 + ["make_forward"] + ["make_copy"]
        copies = [arguments for kernel, _, arguments in device.launches if kernel == "make_copy"]
        assert all(len(arguments) == len(COPY_SIGNATURE.args) for arguments in copies)
        places = device.launches[3][2][10:14]
        assert [copy[0] for copy in copies[:3]] == [array.address for array in arrays[:3]]
        assert [copy[1] for copy in copies[:3]] == list(places[:3])
        assert copies[3][:2] == (places[3], arrays[3].address)
        assert copies[3][6:10] != copies[3][10:14] == (0, *arrays[3].strides[-3:])


def test_axes_that_do_not_merge_are_walked_through():
    """Two elements of the first axis, whose three elements of the second are one call."""
    problem = random_problem(np.ones((9, 9), bool), heads=1, head_dim=8, batch=(2, 3), dtype=HALF)
    turned = [np.ascontiguousarray(array.swapaxes(0, 1)).swapaxes(0, 1) for array in problem.arrays]
    with Device().installed() as device:
        call(problem.with_arrays(*turned), patterns.full(9).tiles(), device)
        assert len(device.launches) == 2
        first = [arguments[10] for _, _, arguments in device.launches]
        assert first == [1 << 20, (1 << 20) + turned[0].strides[0]]


def test_without_keys_nothing_of_k_and_v_is_asked():
    problem = random_problem(np.zeros((9, 0), bool), heads=2, head_dim=8, dtype=HALF)
    with Device().installed() as device:
        call(problem, as_pattern(problem.mask).tiles(), device)
        assert [kernel for kernel, _, _ in device.launches] == ["make_forward"]


def test_descriptions_in_graphs_outlive_the_others():
    problem = random_problem(np.ones((9, 9), bool), heads=1, head_dim=8, dtype=HALF)
    with Device(sets=4).installed() as device:
        request, arrays = call(problem, patterns.full(9).tiles(), device)

        def again(shift, capturing=False):
            device.capturing = capturing
            tile.forward(request, *(view_of(a.owner, a.address + shift) for a in arrays), None)
            return device.launches[-1][2][0]

        kept = again(1 << 24, capturing=True)
        bits = device.memory[kept].tolist()
        used = {again(number << 24) for number in range(2, 12)}
        assert device.waits == 3 and kept not in used and len(used) == 3  # 2, 3, 3 and 2 sets
        assert device.memory[kept].tolist() == bits and again(1 << 24) == kept
        again(20 << 24)  # the last place
        assert again(21 << 24, capturing=True) not in used  # while a graph is captured, nothing may wait
        assert device.waits == 3


# Limits --------------------------------------------------------------------------------------------------


@given(st.integers(1, MOST_HEAD_DIM), st.integers(1, MOST_HEAD_DIM), st.booleans())
def test_every_shape_fits_into_shared_memory(head_dim, value_dim, masked):
    shape = tile_shape("float16", head_dim, value_dim, masked=masked, negate=False)
    assert shape.depth >= head_dim and shape.width >= value_dim
    assert shape.shared_bytes <= 227 << 10
    offsets = (shape.query_buffer, shape.keys_at, shape.values_at, shape.key_chunk, shape.query_chunk)
    assert all(offset % 1024 == 0 for offset in offsets)
    assert shape.masks_at % 16 == 0 and shape.barriers_at % 8 == 0
    assert shape.stages.bit_count() == shape.query_buffers.bit_count() == 1


def test_refusals_say_why():
    problem = random_problem(np.ones((3, 3), bool), heads=1, head_dim=300, dtype=np.float32, scale=np.inf)
    reasons = tile.why_not(request_for(problem, as_pattern(problem.mask).rows()))
    assert [reason.split(";")[0] for reason in reasons] == [
        "elements of float32",
        "head dimension 300",
        "structures other than Tiles",
        "scale inf",
    ]
