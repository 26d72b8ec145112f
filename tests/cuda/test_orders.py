"""Calls in another order of tokens on a GPU, without one: the way through a call, and the compiled kernel.

The engine is the oracle on NumPy memory that stands for the GPU's; rows are moved by NumPy, as the arguments
of each launch say.
"""

from __future__ import annotations

import ctypes
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("numba_cuda", reason="numba-cuda is not installed")

import numba_sparse_attn as nsa
from numba_sparse_attn import orders
from numba_sparse_attn.cuda import tile
from numba_sparse_attn.cuda.launch import Target, compile_kernel
from numba_sparse_attn.cuda.orders import classes, forward_in_classes, moving
from numba_sparse_attn.cuda.orders.rows import MOVE_SIGNATURE, MOVE_THREADS, RowShape, make_move, row_shape
from numba_sparse_attn.testing import budget_for, random_problem, request_for

from . import fake_libraries as fake
from .compiling import disassembled, instructions, ptx_of
from .noting_device import HALF, Device, view_of
from .test_calls import Engine, engine  # noqa: F401 (a fixture)

N = 40
PATTERN = nsa.patterns.dilated_window(N, 3, 4)
ORDER = orders.Order(
    np.random.default_rng(0).permutation(N), np.random.default_rng(1).permutation(N), name="mixed"
)


def memory_at(address: int, dtype: Any, count: int) -> np.ndarray:
    return np.frombuffer((ctypes.c_char * (count * np.dtype(dtype).itemsize)).from_address(address), dtype)


def moved_by_numpy(
    kernel: RowShape, grid: Any, threads: int, stream: Any, arguments: tuple[Any, ...]
) -> None:
    """What a launch does, element by element."""
    source, target, numbers, lists, entries, heads, rows, count, *strides = arguments
    assert len(arguments) == len(MOVE_SIGNATURE.args) and threads == MOVE_THREADS
    assert grid[0] * kernel.rows >= rows * kernel.parts and grid[1] * grid[2] >= entries
    size = 16 if kernel.words else np.dtype(kernel.kind).itemsize
    for entry in range(entries):
        listed = int(memory_at(lists + 8 * entry, np.int64, 1)[0]) if lists else numbers
        batch, head = divmod(entry, heads)
        for row, taken in enumerate(memory_at(listed, np.int32, rows)):
            for word in range(count):
                ends = [
                    np.dot(place, strides[4 * end : 4 * end + 4])
                    for end, place in enumerate(((batch, head, taken, word), (batch, head, row, word)))
                ]
                ctypes.memmove(target + int(ends[1]), source + int(ends[0]), size)


@pytest.fixture
def moves(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Arguments of the launches."""
    seen: list[tuple[Any, ...]] = []

    def launch(kernel: RowShape, grid: Any, threads: int, stream: Any, arguments: tuple[Any, ...]) -> None:
        seen.append(arguments)
        moved_by_numpy(kernel, grid, threads, stream, arguments)

    class Stream:
        def sync(self) -> None:
            pass

    for module in (moving, classes):
        monkeypatch.setattr(module, "load_kernel", lambda make, shape, *rest: shape)
    monkeypatch.setattr(moving, "launch", launch)
    monkeypatch.setattr(moving.streams, "stream_object", lambda handle, device: Stream())
    return seen


def make_plan(pattern: Any = PATTERN, **changes: Any) -> nsa.Plan:
    kind = {"heads": 4, "kv_heads": 2, "head_dim": 8, "device": "cuda", "order": ORDER, **changes}
    return nsa.plan(pattern, **kind)


def problem_of(pattern: Any = PATTERN, **changes: Any) -> Any:
    heads = list(pattern) if isinstance(pattern, nsa.HeadPatterns) else [pattern]
    mask = np.stack([head.toarray() for head in heads])
    sizes = {"heads": 4, "kv_heads": 2, "head_dim": 8, **changes}
    return random_problem(mask if len(heads) > 1 else mask[0], **sizes)


def run(plan: nsa.Plan, problem: Any) -> dict[str, Any]:
    q, k, v, dout = (fake.Tensor(array) for array in problem.arrays)
    out, lse = plan(q, k, v, return_lse=True)
    gradients = plan.backward(dout, q, k, v, out, lse)
    results = (out, lse, *gradients)
    return {name: one.array for name, one in zip(("out", "lse", "dq", "dk", "dv"), results, strict=True)}


@pytest.mark.parametrize("batch", [(), (3,)])
def test_results_come_back_in_the_callers_order(engine: Engine, moves: list[Any], batch: Any) -> None:  # noqa: F811
    problem = problem_of(batch=batch)
    plan = make_plan()
    budget_for(problem).check(**run(plan, problem))
    assert len(moves) == 3 + 2 + 6 + 3
    assert [request.orders for request in engine.requests + engine.backward_requests] == [(), ()]
    assert all(request.structures[0].nnz == PATTERN.nnz for request in engine.requests)
    assert "order mixed: asked for" in plan.explain()


def test_a_repeated_call_prepares_nothing(
    engine: Engine,  # noqa: F811
    moves: list[Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plan, problem = make_plan(), problem_of()
    first = run(plan, problem)
    before = len(moves)
    monkeypatch.setattr(moving, "_moves", lambda *arguments: pytest.fail("prepared again"))
    again = run(plan, problem)
    assert len(moves) == 2 * before
    assert all(first[name].tobytes() == again[name].tobytes() for name in first)
    assert len({id(request) for request in engine.requests + engine.backward_requests}) == 1
    assert engine.first_calls == [True, True, False, False]


def test_every_head_has_its_own_order(engine: Engine, moves: list[Any]) -> None:  # noqa: F811
    """As patterns by hashing have; the planner would choose none for so few tokens."""
    stack = nsa.patterns.dilated_window(N, 3, 4).heads(2) + nsa.patterns.dilated_window(N, 3, 5).heads(2)
    natural = make_plan(stack, order=None)
    chosen = (ORDER, ORDER.T)
    members = tuple(member.permuted(order) for member, order in zip(stack.members, chosen, strict=True))
    plan = make_plan(nsa.HeadPatterns(members, stack.member_of), order=None)
    object.__setattr__(plan, "orders", chosen)
    problem = problem_of(stack, batch=(2,))
    results = run(plan, problem)
    budget_for(problem).check(**results)
    assert natural.orders == () and any(arguments[3] for arguments in moves)


def test_flat_arrays_and_out(engine: Engine, moves: list[Any]) -> None:  # noqa: F811
    problem = problem_of(heads=1, kv_heads=1)
    q, k, v = (array[0] for array in problem.arrays[:3])
    plan = make_plan(heads=1, kv_heads=1)
    target = fake.Tensor(np.full(q.shape, np.nan, np.float32))
    assert plan(*(fake.Tensor(array) for array in (q, k, v)), out=target) is target
    budget_for(problem, gradients=False).check(out=target.array[None])
    assert len(moves) == 4


def test_arrays_on_the_host(engine: Engine, moves: list[Any]) -> None:  # noqa: F811
    problem = problem_of()
    q, k, v = problem.arrays[:3]
    plan = make_plan(device=None, engine="cuda-warp")
    out, lse = plan(q, k, v, return_lse=True)
    budget_for(problem, gradients=False).check(out=out, lse=lse)
    assert isinstance(out, np.ndarray) and len(moves) == 5


# Classes -------------------------------------------------------------------------------------------------


def folded_plan(pattern: Any, fold: int, **changes: Any) -> nsa.Plan:
    """What the planner makes for the tile engine, for the engine that is there."""
    whole, part = (make_plan(one, order=None, **changes) for one in (pattern, pattern.folded(fold)))
    return replace(whole, fold=fold, _choices=part._choices)


@pytest.mark.parametrize("batch", [(), (3,), (2, 2)])
@pytest.mark.parametrize("swapped", [False, True])
def test_classes_are_read_and_written_where_they_lie(
    engine: Engine,  # noqa: F811
    moves: list[Any],
    batch: Any,
    swapped: bool,
) -> None:
    problem = problem_of(batch=batch)
    if swapped:  # heads behind rows
        turned = [np.ascontiguousarray(array.swapaxes(-2, -3)).swapaxes(-2, -3) for array in problem.arrays]
        problem = problem.with_arrays(*turned)
    plan = folded_plan(PATTERN, 4)
    for repeat in (1, 2):
        budget_for(problem).check(**run(plan, problem))
        assert len(moves) == repeat * int(np.prod(batch, dtype=int))  # lse, once a batch element
    (request,) = {id(one): one for one in engine.requests + engine.backward_requests}.values()
    assert request.n_q == N // 4 and request.batch == 4 * int(np.prod(batch, dtype=int))
    q, k, v = (fake.Tensor(array) for array in problem.arrays[:3])
    target = fake.Tensor(np.full(problem.q.shape, np.nan, np.float32))
    before = len(moves)
    assert plan(q, k, v, out=target) is target and len(moves) == before
    budget_for(problem, gradients=False).check(out=target.array)


def test_classes_of_flat_arrays(engine: Engine, moves: list[Any]) -> None:  # noqa: F811
    problem = problem_of(heads=1, kv_heads=1)
    q, k, v, dout = (fake.Tensor(array[0]) for array in problem.arrays)
    plan = folded_plan(PATTERN, 4, heads=1, kv_heads=1)
    out, lse = plan(q, k, v, return_lse=True)
    results = out, lse, *plan.backward(dout, q, k, v, out, lse)
    names = ("out", "lse", "dq", "dk", "dv")
    budget_for(problem).check(**{name: one.array[None] for name, one in zip(names, results, strict=True)})
    assert len(moves) == 1


@pytest.mark.parametrize("batch", [(), (3,)])
def test_classes_are_one_launch_of_the_tile_engine(batch: Any) -> None:
    pattern = nsa.patterns.dilated_window(1024, 20, 8)
    problem = random_problem(np.zeros((1024, 1024), bool), heads=2, head_dim=64, dtype=HALF, batch=batch)
    out = np.empty((*problem.q.shape[:-1], 64), HALF)
    request = replace(request_for(problem, pattern.folded(8).tiles()), fold=8)
    arrays = [view_of(a, at << 28) for at, a in enumerate((*problem.arrays[:3], out), 1)]
    with Device().installed() as device:
        forward_in_classes(tile.forward, request, *arrays, None)
        assert [kernel for kernel, _, _ in device.launches] == ["make_forward"] * max(1, *batch, 1)
        for number, (_, _, arguments) in enumerate(device.launches):
            for place, array in enumerate(arrays):
                # Classes are a row apart, heads as they were, rows eight apart.
                row, head = array.strides[-2:-4:-1]
                assert arguments[14 + 3 * place : 17 + 3 * place] == (row, head, 8 * row)
                assert arguments[10 + place] == array.address + number * (array.strides[0] if batch else 0)


# The kernel ----------------------------------------------------------------------------------------------

_REPORT = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores.*Used (\d+) registers", re.DOTALL)
SHAPES = [
    RowShape("float32", True, 16, 1),
    RowShape("float32", True, 8, 1),
    RowShape("float32", True, 32, 3),
    RowShape("float16", False, 32, 1),
    RowShape("bfloat16", False, 8, 1),
    RowShape("float32", False, 1, 1),
    RowShape("float64", False, 1, 1),
]


@pytest.mark.parametrize("target", [Target(8, 0), Target(9, 0, "a")], ids=lambda target: target.architecture)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_many_threads_have_room(shape: RowShape, target: Target) -> None:
    compiled = compile_kernel(make_move(shape), MOVE_SIGNATURE, target, MOVE_THREADS)
    stack, spills, registers = map(int, _REPORT.search(compiled.report).groups())
    # Twelve blocks of 128 threads a multiprocessor: memory is busy with fewer.
    assert (stack, spills) == (0, 0) and registers <= 42, compiled.report
    if shape.words:
        code = disassembled(compiled.cubin)
        assert len(re.findall(r"LDG\.E\.128", code)) == len(re.findall(r"STG\.E\.128", code)) == 4


def test_words_are_loaded_before_one_is_stored() -> None:
    text = ptx_of(make_move(SHAPES[0]), MOVE_SIGNATURE, MOVE_THREADS)
    found = instructions(text)
    assert found["ld.global.nc.v4.f32"] == found["st.global.v4.f32"] == 4 and ".local" not in text
    assert text.rindex("ld.global.nc.v4.f32") < text.index("st.global.v4.f32")


@pytest.mark.parametrize(
    ("row_bytes", "itemsize", "words", "lanes", "parts", "count"),
    [
        (256, 2, True, 16, 1, 16),
        (128, 2, True, 8, 1, 8),
        (160, 2, True, 16, 1, 10),
        (512, 2, True, 32, 1, 32),
        (1040, 4, True, 32, 3, 65),
        (10, 2, False, 8, 1, 5),
        (4, 4, False, 1, 1, 1),
    ],
)
def test_lanes_share_a_row(
    row_bytes: int, itemsize: int, words: bool, lanes: int, parts: int, count: int
) -> None:
    shape, found = row_shape("float16", row_bytes, itemsize, words=words)
    assert (shape.lanes, shape.parts, found) == (lanes, parts, count)
    assert shape.kind == ("float32" if words else "float16")
