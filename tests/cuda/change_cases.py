"""Changes of scores in the warp kernels, in Numba's simulator; ``test_simulator.py`` runs this file."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from unittest import mock

import ml_dtypes
import numpy as np
import pytest
from numba import cuda

from numba_sparse_attn import reference, scores
from numba_sparse_attn.cuda import sinks
from numba_sparse_attn.cuda.view import DeviceView
from numba_sparse_attn.reference_scores import DenseBias
from numba_sparse_attn.scores.sink import sink_gradient, with_sink
from numba_sparse_attn.testing import DTYPES, budget_for, random_problem

from ..scores.twins import EVERY
from .launching import SimulatedEngine, run, structures_of
from .simulator_cases import RUNS, one_core

__all__ = ["one_core"]

MASK = np.array([[1, 0, 1, 1, 0, 0, 1], [0, 0, 0, 0, 0, 0, 0], [1, 1, 0, 1, 1, 0, 1]], bool)
#: What a bias is for the tests here: one a head, whose gradient has a place for every pair.
NAMES = [name for name in EVERY if name != "bias for all"]


def problem_with(names, mask, heads, **sizes):
    rng = np.random.default_rng(3)
    pairs = [EVERY[name](mask, heads, rng) for name in names]
    problem = random_problem(mask, heads=heads, **sizes)
    return replace(problem, changes=tuple(twin for _, twin in pairs)), tuple(change for change, _ in pairs)


def check(problem, changes, **options):
    found = run(problem, structures_of(problem), scores=changes, **options)
    budget = budget_for(problem)
    for number, change in enumerate(changes):
        gradient = found.pop(f"dscores{number}", None)
        if change.kind == "bias":
            gradient = as_matrices(gradient, problem, budget.expected[f"dchange{number}"].shape)
        if gradient is not None:
            budget.check(**{f"dchange{number}": gradient})
    budget.check(**found)


def as_matrices(gradient, problem, shape):
    """The gradient of a bias, a number a pair and head, as the matrices that the oracle has."""
    dense = np.zeros(shape, np.float32)
    for head, numbers in enumerate(gradient):
        dense[0, head][problem.selected.reshape(-1, *shape[2:])[head]] = numbers
    return dense


@pytest.mark.parametrize(
    ("name", "dtype"), list(zip(NAMES, ["float16", "float64", "bfloat16", "float32", "float16"], strict=True))
)
def test_every_change(name, dtype):
    problem, changes = problem_with([name], MASK, 2, kv_heads=1, head_dim=8, dtype=DTYPES[dtype])
    check(problem, changes)


@pytest.mark.parametrize("part_keys", [2, 100])
def test_all_of_them_in_a_row(part_keys):
    problem, changes = problem_with(NAMES, MASK, 2, kv_heads=2, head_dim=5, value_dim=3)
    check(problem, changes, part_keys=part_keys)


def test_patterns_that_differ_inside_of_a_group():
    masks = np.stack([MASK, ~MASK, MASK & False, MASK | True])
    problem, changes = problem_with(["bias by head", "relative", "alibi"], masks, 4, kv_heads=2, head_dim=8)
    check(problem, changes)


def test_batches_share_numbers():
    problem, changes = problem_with(["bias by head", "alibi"], MASK, 2, kv_heads=1, head_dim=8, batch=(2,))
    check(problem, changes)


def test_batch_axes_that_no_single_stride_reaches():
    """Every batch element has a bias of its own, and they are launched one by one."""
    mask = MASK[:, :4]
    dense = np.random.default_rng(0).standard_normal((4, 2, *mask.shape)).astype(np.float32)
    problem = random_problem(mask, batch=(2, 2), heads=2, kv_heads=1, head_dim=8)
    swapped = [np.ascontiguousarray(array.swapaxes(0, 1)).swapaxes(0, 1) for array in problem.arrays]
    problem = replace(problem.with_arrays(*swapped), changes=(DenseBias(dense),))
    change = scores.bias(dense.reshape(2, 2, 2, *mask.shape)[..., mask])
    found = run(problem, structures_of(problem), scores=(change,))
    gradient = np.zeros(dense.shape, np.float32)
    gradient[..., mask] = found.pop("dscores0").reshape(4, 2, -1)
    budget_for(problem).check(**found, dchange0=gradient)


@pytest.mark.parametrize("names", [["alibi", "softcap", "modify", "relative"], ["bias by head"]])
def test_runs_are_staged_where_nobody_asks_for_entries(names):
    problem, changes = problem_with(names, RUNS[:2], 1, head_dim=16, dtype=DTYPES["float16"])
    for change in changes:
        change.learnable = False
    engine = SimulatedEngine()
    found = run(problem, structures_of(problem), scores=changes, engine=engine)
    budget_for(problem).check(**found)
    assert any(made.startswith("shared") for made in engine.launched) == (len(names) > 1)


def test_a_bias_of_zeros_changes_no_bit():
    problem = random_problem(MASK, heads=2, head_dim=7)
    zero = scores.bias(np.zeros((2, MASK.sum()), np.float32))
    plain = run(problem, structures_of(problem))
    found = run(problem, structures_of(problem), scores=(zero,))
    assert all(found[name].tobytes() == plain[name].tobytes() for name in plain)


# Sinks


def view_of(array):
    return DeviceView(array.ctypes.data, array.shape, array.strides, array.dtype, 0, 0, "other", array)


@pytest.fixture
def simulated_sinks(monkeypatch):
    """``cuda/sinks.py`` with its kernels in the simulator, on host memory."""
    kept = []

    def copied(array, device, stream):
        kept.append(array)
        return view_of(array)

    def room(nbytes, device, stream):
        kept.append(np.full(nbytes // 8 + 1, np.nan))
        return view_of(kept[-1])

    def launched(kernel, grid, threads, stream, arguments):
        make, kind, signature = kernel
        typed = [one(argument) for one, argument in zip(signature.args, arguments, strict=True)]
        cuda.jit(make(kind))[grid, threads](*typed)

    def fetched(view, array, stream):
        array[...] = view.owner.owner[: array.size]

    monkeypatch.setattr(
        sinks, "load_kernel", lambda make, kind, signature, threads, device: (make, kind, signature)
    )
    monkeypatch.setattr(sinks, "launch", launched)
    monkeypatch.setattr(sinks, "streams", mock.MagicMock())
    monkeypatch.setattr(sinks, "staging", SimpleNamespace(to_device=copied, to_host=fetched))
    monkeypatch.setattr(sinks, "memory", SimpleNamespace(scratch=room))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("merges", [True, False])
def test_sinks(dtype, merges, simulated_sinks):
    """The same as on the host, for rows without keys, infinite logits and batches that no stride reaches."""
    batch = (2,) if merges else (2, 2)
    problem = random_problem(MASK, heads=3, head_dim=8, value_dim=5, batch=batch, dtype=DTYPES[dtype])
    logits = np.array([0.5, -np.inf, 4.0], problem.accumulator)
    out, lse = (array.copy() for array in reference.forward(*problem.arrays[:3], MASK, problem.scale))
    out, lse = out.astype(problem.dtype), lse.astype(problem.accumulator)
    dout = problem.dout
    if not merges:
        out, dout = (np.ascontiguousarray(array.swapaxes(0, 1)).swapaxes(0, 1) for array in (out, dout))
    expected, expected_lse = np.array(out), lse.copy()
    with_sink(expected, expected_lse, logits)
    sinks.add_sink(view_of(out), view_of(lse), logits, 0)
    eps = 4 * float(ml_dtypes.finfo(problem.dtype).eps)
    np.testing.assert_allclose(out.astype(float), expected.astype(float), rtol=eps, atol=eps)
    np.testing.assert_allclose(lse, expected_lse, rtol=1e-6)
    assert (out[..., 1, :] == 0).all() and (lse[..., 1] == logits).all()
    gradient = sinks.sink_gradient(view_of(dout), view_of(out), view_of(lse), logits, 0)
    np.testing.assert_allclose(gradient, sink_gradient(dout, out, lse, logits), rtol=1e-5, atol=1e-6)
