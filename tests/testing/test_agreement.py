"""The hard conditions notice an engine that breaks the rules."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from numba_sparse_attn import cpu, patterns, reference
from numba_sparse_attn.testing import (
    budget_for,
    dirty_memory,
    random_problem,
    request_for,
    run_call,
    run_engine,
)

PATTERN = patterns.sliding_window(20, 3)
PROBLEM = random_problem(PATTERN.toarray(), heads=2, head_dim=4)


def engine_with(forward_fault=lambda **arrays: None, backward_fault=lambda **arrays: None, reasons=()):
    """The oracle as an engine, and something that it does wrong afterwards."""

    def forward(request, q, k, v, out, lse):
        out[...], lse[...] = reference.forward(q, k, v, PROBLEM.mask, request.scale)
        forward_fault(q=q, k=k, v=v, out=out, lse=lse)

    def backward(request, dout, q, k, v, out, lse, dq, dk, dv):
        dq[...], dk[...], dv[...] = reference.backward(dout, q, k, v, PROBLEM.mask, request.scale)
        backward_fault(dout=dout, out=out, dq=dq, dk=dk, dv=dv)

    return SimpleNamespace(forward=forward, backward=backward, why_not=lambda request: list(reasons))


def run(engine):
    return run_engine(engine, PROBLEM, PATTERN.rows())


def test_an_engine_that_keeps_the_rules_passes():
    budget_for(PROBLEM).check(**run(engine_with()))
    budget_for(PROBLEM).check(**run_call(PROBLEM, PATTERN, engine="reference"))
    budget_for(PROBLEM).check(**run_engine(cpu, PROBLEM, [PATTERN.tiles(), PATTERN.rows()]))


def test_a_write_behind_an_output_is_noticed():
    def behind(out, **_):
        out.base[-256] = 0.0

    with pytest.raises(AssertionError, match="outside of the array"):
        run(engine_with(forward_fault=behind))


def test_a_write_to_an_input_is_noticed():
    def into_keys(k, **_):
        k[0, 0, 0] += 1

    def into_dout(dout, **_):
        dout[0, 0, 0] += 1

    with pytest.raises(AssertionError, match=r"k was written to|depends on"):
        run(engine_with(forward_fault=into_keys))
    with pytest.raises(AssertionError, match=r"dout was written to|depends on"):
        run(engine_with(backward_fault=into_dout))


def test_what_new_memory_holds_must_not_show():
    def dirty(out, **_):
        out[0, 0, 0] += np.empty(1, np.int32)[0] == np.iinfo(np.int32).max

    with pytest.raises(AssertionError, match="out depends on what new memory holds"):
        run(engine_with(forward_fault=dirty))


def test_what_changes_from_call_to_call_is_noticed():
    calls = []

    def counted(dv, **_):
        calls.append(None)
        dv[0, 0, 0] = len(calls)

    with pytest.raises(AssertionError, match="dv depends on"):
        run(engine_with(backward_fault=counted))


def test_an_output_that_is_not_written_stays_nan_and_fails():
    def forgotten(dq, **_):
        dq[0, 3] = np.nan

    results = run(engine_with(backward_fault=forgotten))
    with pytest.raises(AssertionError, match=r"dq: nan at \(0, 3, 0\)"):
        budget_for(PROBLEM).check(**results)


def test_an_engine_that_declines_is_an_error():
    with pytest.raises(AssertionError, match="the engine declines: it is closed"):
        run(engine_with(reasons=["it is closed"]))


def test_dirty_memory_ends_with_its_block():
    with dirty_memory():
        assert np.isnan(np.empty((2, 3), np.float16).astype(float)).all()
        assert np.empty_like(np.zeros(2, np.int64)).max() == np.iinfo(np.int64).max
        assert np.empty(2, np.bool_).shape == (2,)
    assert np.empty.__module__ == "numpy"


def test_requests_name_the_structure_of_every_head():
    one, two = PATTERN.rows(), PATTERN.tiles()
    problem = random_problem(PATTERN.toarray(), heads=2, head_dim=4, batch=(3, 2))
    assert request_for(problem, one).which.tolist() == [[0, 0]] * 6
    request = request_for(problem, [one, two])
    assert request.which.tolist() == [[0, 1]] * 6 and request.structures == (one, two)
