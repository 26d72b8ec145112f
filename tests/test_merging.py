"""Parts of attention put together equal one call, forward and backward, whatever empty parts hold."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import event, given
from hypothesis import strategies as st

import numba_sparse_attn as nsa
from numba_sparse_attn import as_pattern, reference
from numba_sparse_attn.cuda import dlpack
from numba_sparse_attn.testing import budget_for, nan_filled, random_problem, strategies

from .cuda.fake_libraries import ArrayImpl, DlpackArray, ShardedArrayImpl, Tensor

wide = strategies.problems(names=["float64"], largest=140)


def attend(problem, keys):
    """(out, lse) over some of the keys."""
    mask = as_pattern(problem.mask[..., keys])
    k, v = problem.k[..., keys, :], problem.v[..., keys, :]
    return nsa.sparse_attention(problem.q, k, v, mask, scale=problem.scale, return_lse=True)


def cut(data, length):
    """Keys of consecutive parts, some of them empty."""
    cuts = sorted(data.draw(st.lists(st.integers(0, length), max_size=4), label="cuts"))
    return [slice(a, b) for a, b in zip([0, *cuts], [*cuts, length], strict=True)]


@given(strategies.problems(largest=140), st.data())
def test_splitting_the_keys_over_calls_equals_one_call(problem, data):
    """Rounding a part is one more rounding than one call has: judged is, in float32, a merge in float64."""
    exact = problem.cast(np.float64)
    parts = [attend(exact, keys) for keys in cut(data, problem.k.shape[-2])]
    event(f"{len(parts)} parts")
    out, lse = nsa.merge(*zip(*parts, strict=True))
    assert (out.dtype, lse.dtype) == (np.float64, np.float64)
    rough = problem.cast(np.float32)
    budget = budget_for(rough, gradients=False)
    whole = reference.forward(*exact.arrays[:3], exact.selected, exact.scale)
    judged = replace(budget, expected=dict(zip(("out", "lse"), whole, strict=True)))
    judged.check(out=out.astype(np.float32), lse=lse.astype(np.float32))


@given(wide, st.data())
def test_gradients_of_the_parts_with_the_merged_out_and_lse_are_those_of_the_whole(problem, data):
    slices = cut(data, problem.k.shape[-2])
    out, lse = nsa.merge(*zip(*(attend(problem, keys) for keys in slices), strict=True))
    dq, dk, dv = np.zeros_like(problem.q), np.zeros_like(problem.k), np.zeros_like(problem.v)
    for keys in slices:
        k, v = problem.k[..., keys, :], problem.v[..., keys, :]
        part = nsa.sparse_attention_backward(
            problem.dout, problem.q, k, v, out, lse, as_pattern(problem.mask[..., keys]), scale=problem.scale
        )
        dq += part[0]
        dk[..., keys, :], dv[..., keys, :] = part[1:]
    expected = reference.backward(problem.dout, *problem.arrays[:3], problem.selected, problem.scale)
    for found, exact in zip((dq, dk, dv), expected, strict=True):
        size = np.abs(exact).max(initial=1.0)
        np.testing.assert_allclose(found, exact, rtol=0, atol=1e-12 * size)


def scalar(outs, lses, dout, dlse):
    """What the gradients below are those of."""
    out, lse = nsa.merge(outs, lses)
    return np.sum(out * dout) + np.sum(np.where(np.isneginf(lse), 0.0, lse) * dlse)


def test_gradients_through_the_merge_are_differences_of_it():
    rng = np.random.default_rng(0)
    outs, lses = list(rng.standard_normal((3, 2, 4, 5))), list(rng.standard_normal((3, 2, 4)))
    lses[1][0, 1:] = -np.inf
    lses[0][0, 2] = lses[2][0, 2] = -np.inf  # row 2 of head 0 has no keys at all
    dout, dlse = rng.standard_normal((2, 4, 5)), rng.standard_normal((2, 4))
    out, lse = nsa.merge(outs, lses)
    douts, dlses = nsa.merge_backward(dout, outs, lses, out, lse, dlse=dlse)
    step = 1e-6
    for arrays, gradients in ((outs, douts), (lses, dlses)):
        for array, gradient in zip(arrays, gradients, strict=True):
            for place in np.ndindex(array.shape):
                kept = array[place]
                if np.isneginf(kept):
                    assert gradient[place] == 0.0
                    continue
                ends = []
                for moved in (kept + step, kept - step):
                    array[place] = moved
                    ends.append(scalar(outs, lses, dout, dlse))
                array[place] = kept
                assert gradient[place] == pytest.approx((ends[0] - ends[1]) / (2 * step), abs=1e-8)


def test_gradients_through_the_merge_agree_with_those_past_it():
    """The chain rule in full: softmax over a part has the gradient weights * (dweights - delta + dlse)."""
    problem = random_problem(
        np.random.default_rng(1).random((9, 14)) < 0.6, heads=1, head_dim=6, dtype=np.float64
    )
    slices = [slice(0, 5), slice(5, 5), slice(5, 14)]
    parts = [attend(problem, keys) for keys in slices]
    out, lse = nsa.merge(*zip(*parts, strict=True))
    douts, dlses = nsa.merge_backward(problem.dout, *zip(*parts, strict=True), out, lse)
    dq = np.zeros_like(problem.q[0])
    exact = reference.backward(problem.dout, *problem.arrays[:3], problem.selected, problem.scale)
    for keys, (part, _), dpart, dsum in zip(slices, parts, douts, dlses, strict=True):
        k, v, mask = problem.k[0, keys], problem.v[0, keys], problem.mask[:, keys]
        weights = nsa.attention_weights(problem.q[0], k, mask, scale=problem.scale).toarray()
        delta = np.sum(dpart[0] * part[0], axis=1, keepdims=True)
        dscores = weights * (dpart[0] @ v.T - delta + dsum[0][:, None])
        dq += problem.scale * dscores @ k
        np.testing.assert_allclose(problem.scale * dscores.T @ problem.q[0], exact[1][0, keys], atol=1e-13)
        np.testing.assert_allclose(weights.T @ dpart[0], exact[2][0, keys], atol=1e-13)
    np.testing.assert_allclose(dq, exact[0][0], atol=1e-13)


@given(wide, st.permutations(range(3)))
def test_the_order_of_the_parts_does_not_matter(problem, order):
    third = problem.k.shape[-2] // 3
    slices = [slice(0, third), slice(third, 2 * third), slice(2 * third, None)]
    parts = [attend(problem, keys) for keys in slices]
    out, lse = nsa.merge(*zip(*parts, strict=True))
    other, again = nsa.merge(*zip(*(parts[i] for i in order), strict=True))
    np.testing.assert_allclose(other, out, rtol=0, atol=1e-13)
    np.testing.assert_allclose(again, lse, rtol=1e-13, atol=1e-13)


@given(wide)
def test_one_part_and_parts_without_keys_change_nothing(problem):
    out, lse = attend(problem, slice(None))
    nothing = np.full_like(lse, -np.inf)
    for parts in (([out], [lse]), ([out, nan_filled(out.shape, out.dtype)], [lse, nothing])):
        same, total = nsa.merge(*parts)
        np.testing.assert_allclose(same, out, rtol=1e-15, atol=0)
        np.testing.assert_array_equal(total, lse)
        douts, dlses = nsa.merge_backward(problem.dout, *parts, same, total)
        rows = ~np.isneginf(lse)[..., None]
        np.testing.assert_allclose(douts[0], np.where(rows, problem.dout, 0.0), rtol=1e-15, atol=0)
        for array in (*douts[1:], *dlses[1:]):
            assert not array.any()


def test_rows_without_keys_give_zero_and_minus_infinity():
    out, lse = nsa.merge([np.full((2, 3), np.nan)] * 2, [np.full(2, -np.inf)] * 2)
    assert not out.any() and (lse == -np.inf).all()
    douts, dlses = nsa.merge_backward(np.full((2, 3), np.nan), [out] * 2, [lse] * 2, out, lse)
    assert not np.any(douts) and not np.any(dlses)


def test_nan_stays_in_its_row():
    outs, lses = [np.ones((3, 2)), np.ones((3, 2))], [np.zeros(3), np.zeros(3)]
    outs[0][1, 0] = np.nan
    lses[1][2] = np.nan
    out, lse = nsa.merge(outs, lses)
    np.testing.assert_array_equal(np.isnan(out), [[False, False], [True, False], [True, True]])
    np.testing.assert_array_equal(np.isnan(lse), [False, False, True])


@pytest.mark.parametrize("dtype", strategies.DTYPES.values(), ids=str)
def test_results_have_the_types_of_the_parts(dtype):
    problem = random_problem(np.ones((5, 8), bool), heads=2, head_dim=16, dtype=dtype)
    parts = [attend(problem, keys) for keys in (slice(3), slice(3, 8))]
    out, lse = nsa.merge(*zip(*parts, strict=True))
    assert out.dtype == dtype and lse.dtype == problem.accumulator
    douts, dlses = nsa.merge_backward(problem.dout, *zip(*parts, strict=True), out, lse)
    assert {array.dtype for array in douts} == {np.dtype(dtype)}
    assert {array.dtype for array in dlses} == {problem.accumulator}
    stacked, _ = nsa.merge(*(np.stack(arrays) for arrays in zip(*parts, strict=True)))
    assert stacked.tobytes() == out.tobytes()


def test_arrays_of_other_libraries_on_the_host_are_taken():
    out, lse = np.ones((2, 3)), np.zeros(2)
    merged, _ = nsa.merge([DlpackArray(out, kind=dlpack.CPU)], [DlpackArray(lse, kind=dlpack.CPU)])
    np.testing.assert_array_equal(merged, out)


def test_scores_far_apart_do_not_overflow():
    out, lse = nsa.merge([np.array([[1.0]]), np.array([[2.0]])], [np.array([-1e4]), np.array([1e4])])
    assert out.item() == 2.0 and lse.item() == 1e4


@pytest.mark.parametrize(
    ("outs", "lses", "error", "words"),
    [
        ([], [], nsa.ArgumentError, "0 outs and 0 lses"),
        ([np.zeros((2, 3))], [], nsa.ArgumentError, "1 outs and 0 lses"),
        ([np.zeros((2, 3)), np.zeros((2, 4))], [np.zeros(2)] * 2, nsa.ShapeError, r"outs\[1\] of float64"),
        ([np.zeros((2, 3))], [np.zeros(3)], nsa.ShapeError, r"lses\[0\] of float64 with shape \(3,\)"),
        ([np.zeros(3)], [np.zeros(())], nsa.ShapeError, r"outs\[0\]"),
        ([np.zeros((2, 3), int)], [np.zeros(2)], nsa.DtypeError, r"outs\[0\] of type int64"),
        ([Tensor(np.zeros((2, 3)))], [np.zeros(2)], nsa.EngineError, r"outs\[0\] in GPU memory"),
        ([np.zeros((2, 3))], [ArrayImpl(np.zeros(2))], nsa.EngineError, r"lses\[0\] in GPU memory"),
        ([np.zeros((2, 3))], [ShardedArrayImpl(np.zeros(2))], nsa.EngineError, "copy lses.0. to a NumPy"),
    ],
)
def test_refusals(outs, lses, error, words):
    with pytest.raises(error, match=words):
        nsa.merge(outs, lses)
