"""Kernels whose threads dawdle wherever they wait for one another: the same bits, whoever comes first."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("numba_cuda", reason="numba-cuda is not installed")

from numba import cuda, types, uint32

from numba_sparse_attn import patterns
from numba_sparse_attn.cuda import tile
from numba_sparse_attn.cuda.device import lanes
from numba_sparse_attn.cuda.ptx.instructions import instruction
from numba_sparse_attn.cuda.tile import (
    backward_sm80,
    backward_sm90,
    forward_sm80,
    forward_sm90,
    launch_sm80,
    prepared,
    prepared_backward,
)
from numba_sparse_attn.testing import random_problem

from .tile_calls import run, run_gradients

pytestmark = pytest.mark.gpu

REPEATS = 300

_clock = instruction("mov.u32 $0, %clock;", "=r", (), types.uint32)
_sleep = instruction("nanosleep.u32 $0;", "r", (types.uint32,))


@cuda.jit(device=True, inline="always")
def dawdle():
    """Every fourth time, for up to a microsecond: about what a step takes."""
    lot = uint32(uint32((_clock() >> uint32(4)) * uint32(2654435761)) >> uint32(20))
    if lot < uint32(1024):
        _sleep(lot)


@cuda.jit(device=True, inline="always")
def late_wait(address, parity):
    dawdle()
    barrier_wait(address, parity)
    dawdle()


@cuda.jit(device=True, inline="always")
def late_arrive(address):
    dawdle()
    barrier_arrive(address)


barrier_wait, barrier_arrive = forward_sm90.barrier_wait, forward_sm90.barrier_arrive


def late_wait_for_copies(count):
    wait = lanes.wait_for_copies(count)

    @cuda.jit(device=True, inline="always")
    def late():
        dawdle()
        wait()
        dawdle()

    return late


#: Where the four kernels are made anew, under names of their own: compiled kernels are kept by name.
def dawdling_forward_sm90(shape):
    return forward_sm90.make_forward.__wrapped__(shape)


def dawdling_backward_sm90(shape):
    return backward_sm90.make_backward.__wrapped__(shape)


def dawdling_forward_sm80(shape):
    return forward_sm80.make_forward.__wrapped__(shape)


def dawdling_backward_sm80(shape):
    return backward_sm80.make_backward.__wrapped__(shape)


def install(monkeypatch):
    for module in (forward_sm90, backward_sm90):
        monkeypatch.setattr(module, "barrier_wait", late_wait)
        monkeypatch.setattr(module, "barrier_arrive", late_arrive)
    late_lanes = SimpleNamespace(**{name: getattr(lanes, name) for name in lanes.__all__})
    late_lanes.wait_for_copies = late_wait_for_copies
    for module in (forward_sm80, backward_sm80):
        monkeypatch.setattr(module, "lanes", late_lanes)
    monkeypatch.setattr(prepared, "make_forward", dawdling_forward_sm90)
    monkeypatch.setattr(prepared_backward, "make_backward", dawdling_backward_sm90)
    monkeypatch.setattr(launch_sm80, "make_forward", dawdling_forward_sm80)
    monkeypatch.setattr(launch_sm80, "make_backward", dawdling_backward_sm80)


@pytest.mark.parametrize("head_dim", [64, 128, 256])
@pytest.mark.parametrize("path", ["wgmma", "mma.sync"])
def test_the_same_bits(path, head_dim, monkeypatch):
    if path == "mma.sync":
        monkeypatch.setattr(tile, "has_wgmma", lambda device: False)
    pattern = patterns.sliding_window(1500, 200) | patterns.random_keys(1500, 20, seed=1)
    structure = pattern.tiles()
    problem = random_problem(pattern.toarray(), heads=4, kv_heads=2, head_dim=head_dim, dtype=np.float16)
    expected = run(problem, structure) | run_gradients(problem, structure)
    install(monkeypatch)
    late = run(problem, structure, repeats=REPEATS) | run_gradients(problem, structure, repeats=REPEATS)
    for name, array in expected.items():
        assert late[name].tobytes() == array.tobytes(), name
