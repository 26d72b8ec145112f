"""The warp kernels in Numba's simulator; ``test_simulator.py`` runs this file, or by hand:

    NUMBA_ENABLE_CUDASIM=1 python -m pytest tests/cuda/simulator_cases.py

The simulator has to be chosen before ``numba.cuda`` is imported, hence in a process of its own.
"""

from __future__ import annotations

import os

import numpy as np
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st
from numba import cuda

from numba_sparse_attn.cuda.device import lanes, simulated
from numba_sparse_attn.testing import (
    DTYPES,
    assert_margins_untouched,
    budget_for,
    random_problem,
    run_engine,
    surrounded,
)

from .launching import SimulatedEngine, run, small_problems, structures_of

#: A problem takes a second here, forward and backward.
few_examples = settings(max_examples=max(1, settings().max_examples // 2))
every_dtype = pytest.mark.parametrize("dtype", DTYPES)


@pytest.fixture(scope="module", autouse=True)
def one_core():
    """Lanes are threads that take turns; to hand the turn to another core takes three times as long."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(before)})
    yield
    os.sched_setaffinity(0, before)


# The engine


@few_examples
@given(small_problems(), st.booleans(), st.sampled_from([2, 100]), st.sampled_from([np.nan, np.inf]))
def test_small_problems(problem, wide, part_keys, poison):
    seen = problem.selected.sum(axis=-1)
    event(f"rows without keys: {bool((seen == 0).any())}, rows in parts: {bool((seen > part_keys).any())}")
    results = run(problem, structures_of(problem, wide), part_keys=part_keys, poison=poison)
    budget_for(problem).check(**results)


@every_dtype
@pytest.mark.parametrize(("head_dim", "value_dim"), [(16, 16), (5, 3), (8, 264), (136, 8)])
def test_every_layout_of_lanes(dtype, head_dim, value_dim):
    """Rows that are read in chunks and by elements, of fewer chunks than lanes and of more."""
    mask = np.array([[True, False, True], [False, False, False], [False, True, False]])
    problem = random_problem(mask, head_dim=head_dim, value_dim=value_dim, dtype=DTYPES[dtype])
    budget_for(problem).check(**run(problem, structures_of(problem)))


@every_dtype
def test_warps_of_a_block_with_rows_of_very_different_length(dtype):
    lengths = np.array([70, 0, 1, 33, 0, 2])
    problem = random_problem(np.arange(70) < lengths[:, None], head_dim=8, dtype=DTYPES[dtype])
    budget_for(problem, gradients=False).check(**run(problem, structures_of(problem), gradients=False))


def test_key_0_fills_idle_lanes_without_a_trace():
    """Beside its score, the scores of the keys that were asked for would vanish."""
    problem = random_problem([[False, True, True], [True, False, False]], head_dim=8)
    problem.k[0, 0] = 1000.0 * problem.q[0, 0]
    budget_for(problem).check(**run(problem, structures_of(problem)))


@pytest.mark.parametrize(("n_q", "n_k"), [(0, 3), (3, 0), (0, 0)])
def test_nothing_at_all(n_q, n_k):
    problem = random_problem(np.ones((n_q, n_k), bool), heads=2, kv_heads=1, head_dim=8)
    budget_for(problem).check(**run(problem, structures_of(problem)))


def test_the_same_bits_every_time():
    mask = np.arange(12) < np.array([[0], [12], [3], [7], [1]])
    problem = random_problem(mask, heads=2, kv_heads=1, head_dim=8, dtype=DTYPES["bfloat16"])
    budget_for(problem).check(**run_engine(SimulatedEngine(part_keys=5), problem, structures_of(problem)))


def test_batch_axes_that_no_single_stride_reaches():
    mask = np.array([[True, False], [True, True]])
    problem = random_problem(mask, batch=(2, 3), head_dim=8, dtype=DTYPES["float16"])
    swapped = [np.ascontiguousarray(array.swapaxes(0, 1)).swapaxes(0, 1) for array in problem.arrays]
    problem = problem.with_arrays(*swapped)
    budget_for(problem).check(**run(problem, structures_of(problem)))


@pytest.mark.parametrize("part_keys", [2, 100])
def test_patterns_that_differ_inside_of_a_group(part_keys):
    mask = np.array([[[True, False]], [[True, True]], [[False, False]], [[False, True]]])
    mask = np.concatenate([mask, ~mask, mask | True], axis=1)
    problem = random_problem(mask, heads=4, kv_heads=2, head_dim=8)
    budget_for(problem).check(**run(problem, structures_of(problem), part_keys=part_keys))


#: Windows, wide and narrow, with a far key for one row and another run for a second.
RUNS = (
    np.abs(np.arange(8, 75) - 4 * np.arange(6)[:, None] - 40) < np.array([24, 24, 9, 1, 30, 17])[:, None]
) | (np.arange(67) == np.array([66, -1, -1, 3, 0, 66])[:, None])


@pytest.mark.parametrize(
    ("mask", "head_dim", "value_dim", "heads", "staging"),
    [
        (RUNS, 16, 16, 1, {"shared make_forward", "shared make_query_backward"}),
        (RUNS.T, 8, 24, 2, {"shared make_key_backward"}),
    ],
)
@pytest.mark.parametrize(("dtype", "part_keys"), [("float16", 23), ("bfloat16", 100), ("float32", 23)])
def test_runs_that_rows_have_in_common_are_staged(
    mask, head_dim, value_dim, heads, staging, dtype, part_keys
):
    problem = random_problem(
        mask, heads=heads, kv_heads=1, head_dim=head_dim, value_dim=value_dim, dtype=DTYPES[dtype]
    )
    engine = SimulatedEngine(part_keys)
    budget_for(problem).check(**run(problem, structures_of(problem), engine=engine))
    assert {name for name in engine.launched if name.startswith("shared")} == staging
    assert any(name in engine.launched for name in ("make_merge", "make_add")) == (part_keys < 50)


# What the simulator stands on: collectives and memory


def address_of(array):
    return array.__array_interface__["data"][0]


def launch(kernel, threads, *arguments):
    cuda.jit(kernel)[2, threads](*arguments)


def test_lanes_exchange_values_whatever_the_other_warps_do():
    """Warp w makes w rounds: the first leaves at once."""
    seen = np.full((2, 96), -1)

    def kernel(seen):
        mine = cuda.threadIdx.x
        number = mine
        for distance in range(mine // 32):
            number = lanes.xor_lane(number, 1 << distance)
        if mine >= 32:
            number = 1000 * number + lanes.from_lane(mine, 31 - mine % 32)
        seen[cuda.blockIdx.x, mine] = number

    launch(kernel, 96, seen)
    mine = np.arange(32)
    assert (seen[:, :32] == mine).all()
    assert (seen[:, 32:64] == 1000 * (32 + (mine ^ 1)) + 63 - mine).all()
    assert (seen[:, 64:] == 1000 * (64 + (mine ^ 3)) + 95 - mine).all()


def test_warps_may_meet_at_a_barrier_of_the_block_between_collectives():
    seen = np.zeros(64, np.int64)

    def kernel(seen):
        mine = cuda.threadIdx.x
        total = mine
        if mine < 32:
            for distance in range(5):
                total += lanes.xor_lane(total, 1 << distance)
        cuda.syncthreads()
        seen[mine] = lanes.from_lane(total, 7)

    launch(kernel, 64, seen)
    assert (seen[:32] == 31 * 16).all()
    assert (seen[32:] == 39).all()


def test_a_lane_that_misses_a_collective_is_an_error(monkeypatch):
    monkeypatch.setattr(simulated, "_PATIENCE", 0.1)

    def kernel():
        if cuda.threadIdx.x != 3:
            lanes.xor_lane(1, 1)

    with pytest.raises(RuntimeError, match="waited for lanes of its warp that did not come"):
        launch(kernel, 32)


@every_dtype
def test_memory_holds_what_was_stored(dtype):
    kind = DTYPES[dtype]
    count = 16 // kind.itemsize
    real = np.float64 if dtype == "float64" else np.float32
    values = np.array([1 / 3, -1e30, 0.0, 70000.0, 1e-7, np.inf, -5.0, np.nan], real)[:count]
    with np.errstate(over="ignore"):
        rounded = values.astype(kind)
    array, target = surrounded(np.zeros(2 * count, kind)), np.zeros(3 * count, real)
    lanes.store_chunk(dtype)(address_of(array) + 16, np.concatenate((target, values)), 3 * count)
    lanes.store_element(dtype)(address_of(array), values[0])
    np.testing.assert_array_equal(array[count:].astype(real), rounded.astype(real))
    assert array[0] == rounded[0]
    assert_margins_untouched(array)
    lanes.load_chunk(dtype)(address_of(array) + 16, target, count)
    np.testing.assert_array_equal(target[count : 2 * count], rounded.astype(real))
    assert not target[:count].any()
    element = lanes.load_element(dtype)(address_of(array))
    assert element == rounded[0] and element.dtype == real


def test_indices_and_exponentials():
    assert lanes.load_int32(address_of(np.array([-7], np.int32))) == -7
    assert lanes.load_int64(address_of(np.array([1 << 40]))) == 1 << 40
    for kind, real in (("float16", np.float32), ("float64", np.float64)):
        powers = [lanes.exp2(kind)(real(x)) for x in (-np.inf, -1.0, 0.0, 10.0, np.inf)]
        assert powers == [0.0, 0.5, 1.0, 1024.0, np.inf]
        assert {power.dtype for power in powers} == {np.dtype(real)}


def test_addresses_have_to_be_aligned():
    array = np.zeros(16, np.float16)
    with pytest.raises(RuntimeError, match=r"16 bytes at .*, which is no multiple of 16"):
        lanes.load_chunk("float16")(address_of(array) + 2, np.zeros(8, np.float32), 0)
    with pytest.raises(RuntimeError, match=r"2 bytes at .*, which is no multiple of 2"):
        lanes.store_element("float16")(address_of(array) + 1, np.float32(1.0))


def test_copies_to_shared_memory_arrive_when_they_are_waited_for():
    source, seen = np.arange(8, dtype=np.float32), np.zeros((3, 4), np.float32)
    room, load, wait = lanes.shared_room(32), lanes.load_shared_chunk("float32"), lanes.wait_for_copies(1)

    def kernel(address, seen):
        place = room()
        lanes.copy_chunk(place, address + 16, 16)
        lanes.commit_copies()
        load(place, seen[0], 0)
        lanes.copy_chunk(place + 16, address, 8)
        lanes.commit_copies()
        wait()
        load(place, seen[1], 0)
        lanes.commit_copies()
        wait()
        load(place + 16, seen[2], 0)

    cuda.jit(kernel)[1, 1](address_of(source), seen)
    assert not np.array_equal(seen[0], source[4:])
    assert seen[1:].tolist() == [[4, 5, 6, 7], [0, 1, 0, 0]]


def test_guarded_memory_is_all_that_can_be_touched():
    read, written = np.ones(4, np.float32), np.zeros(4, np.float32)
    load, store = lanes.load_element("float32"), lanes.store_element("float32")
    with simulated.guarded([read], [written]):
        store(address_of(written) + 12, load(address_of(read)))
        for address in (address_of(read) - 4, address_of(read) + 16, address_of(written)):
            with pytest.raises(RuntimeError, match="4 bytes read outside of the arrays"):
                load(address)
        with pytest.raises(RuntimeError, match="4 bytes written outside of the arrays"):
            store(address_of(read), np.float32(0.0))
    load(address_of(written))
    assert written.tolist() == [0.0, 0.0, 0.0, 1.0]
