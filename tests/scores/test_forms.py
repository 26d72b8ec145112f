"""What goes in as ``scores=`` and what comes back: forms, finite differences, laws, refusals."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st
from scipy import sparse

import numba_sparse_attn as nsa
from numba_sparse_attn import cpu, scores
from numba_sparse_attn.scores._calls import CallScores
from numba_sparse_attn.testing import budget_for, random_problem, request_for, run_call

from .twins import tilted, tilted_slope

RNG = np.random.default_rng(5)
WINDOW = nsa.patterns.sliding_window(12, 2)


def inputs(heads=2, n=12, d=4):
    return np.random.default_rng(1).standard_normal((4, heads, n, d))


def attend(change, pattern=WINDOW, **options):
    q, k, v, _ = inputs()
    return nsa.sparse_attention(q, k, v, pattern, scores=change, **options)


def gradients(change, pattern=WINDOW, **options):
    q, k, v, dout = inputs()
    _, pullback = nsa.vjp(q, k, v, pattern, scores=change, **options)
    return pullback(dout)


# Forms


def stored(values):
    """A SciPy array of WINDOW's pairs, its rows backwards and every pair stored twice."""
    rows = WINDOW.rows()
    order = np.concatenate(
        [np.arange(b, e)[::-1].repeat(2) for b, e in zip(rows.indptr, rows.indptr[1:], strict=False)]
    )
    return sparse.csr_array((values[order] / 2, rows.indices[order], 2 * rows.indptr), shape=(12, 12)), order


def test_a_bias_is_the_same_in_every_form():
    values = RNG.standard_normal(WINDOW.nnz)
    shuffled, order = stored(values)
    plain = attend(scores.bias(values))
    for change in (
        scores.bias(sparse.csr_array((values, WINDOW.rows().indices, WINDOW.rows().indptr), shape=(12, 12))),
        scores.bias(np.stack([values, values])),
        scores.bias([values, values]),
        scores.bias(shuffled),
        scores.bias(sparse.csr_matrix(shuffled)),
        scores.bias(values.tolist()),
    ):
        np.testing.assert_allclose(attend(change), plain, rtol=1e-14)
    # Plain numbers beside a SciPy array stand in the order of that.
    np.testing.assert_allclose(attend(scores.bias(values[order] / 2), shuffled), plain, rtol=1e-14)


def test_the_gradient_of_a_bias_comes_back_as_it_came():
    values = RNG.standard_normal(WINDOW.nnz)
    (by_head,) = gradients(scores.bias(np.stack([values, values])))[3]
    (for_all,) = gradients(scores.bias(values))[3]
    assert by_head.shape == (2, WINDOW.nnz)
    np.testing.assert_allclose(by_head.sum(axis=0), for_all, rtol=1e-12)
    (in_list,) = gradients(scores.bias([values, values]))[3]
    np.testing.assert_array_equal(np.stack(in_list), by_head)
    shuffled, order = stored(values)
    for kind in (sparse.csr_array, sparse.csr_matrix):
        (found,) = gradients(scores.bias(kind(shuffled)))[3]
        assert isinstance(found, kind) and found.dtype == shuffled.dtype
        np.testing.assert_array_equal(found.indices, shuffled.indices)
        np.testing.assert_allclose(found.data, for_all[order], rtol=1e-12)
    (bound,) = gradients(scores.bias(values[order] / 2), shuffled)[3]
    np.testing.assert_allclose(bound, for_all[order], rtol=1e-12)


def test_a_bias_is_a_matrix_whose_other_entries_are_0():
    some = sparse.csr_array(np.diag(np.arange(12.0)) + np.tri(12, k=-8))
    dense = some.toarray()[WINDOW.toarray()]
    np.testing.assert_allclose(attend(scores.bias(some)), attend(scores.bias(dense)), rtol=1e-14)
    (found,) = gradients(scores.bias(some))[3]
    unselected = ~WINDOW.toarray()[tuple(found.tocoo().coords)]
    assert unselected.any() and (found.data[unselected] == 0).all() and found.nnz == some.nnz


def test_every_batch_element_may_have_a_bias_of_its_own():
    q, k, v, dout = np.random.default_rng(2).standard_normal((4, 3, 2, 12, 4))
    values = RNG.standard_normal((3, 1, WINDOW.nnz))
    out, pullback = nsa.vjp(q, k, v, WINDOW, scores=scores.bias(values))
    *_, (found,) = pullback(dout)
    assert found.shape == values.shape
    for item in range(3):
        one, back = nsa.vjp(q[item], k[item], v[item], WINDOW, scores=scores.bias(values[item, 0]))
        np.testing.assert_array_equal(out[item], one)
        np.testing.assert_array_equal(found[item, 0], back(dout[item])[3][0])


def test_gradients_are_one_item_a_change():
    change = (
        scores.alibi(2),
        scores.sink([0.1, 0.2]),
        scores.softcap(2.0),
        scores.relative(np.zeros((2, 5), np.float32)),
        scores.sink(0.0, learnable=False),
    )
    learnt = gradients(change[:4])[3]
    assert [None if one is None else (one.shape, one.dtype) for one in learnt] == [
        None,
        ((2,), np.float64),
        None,
        ((2, 5), np.float32),
    ]
    assert len(gradients((change[0], change[2], change[4]))) == 3
    assert len(gradients(())) == len(gradients(None)) == 3


def test_flat_arrays():
    q, k, v, dout = (array[0] for array in inputs())
    change = scores.alibi([0.5], learnable=True), scores.sink(0.3)
    out, pullback = nsa.vjp(q, k, v, WINDOW, scores=change)
    *_, (slopes, logit) = pullback(dout)
    assert out.shape == (12, 4) and slopes.shape == (1,) and logit.shape == ()


def test_plans_keep_kinds_and_not_numbers():
    first = nsa.plan(WINDOW, heads=2, head_dim=4, scores=scores.alibi([1.0, 2.0]))
    second = nsa.plan(WINDOW, heads=2, head_dim=4, scores=scores.alibi([3.0, 4.0]))
    assert first._requests is second._requests and first.scores is not second.scores
    assert "scores: ALiBi: slopes 3 to 4 of 2 heads" in second.explain()
    assert "path rows: scores are changed pair by pair" in second.explain()
    q, k, v, _ = inputs()
    plan = nsa.plan(
        WINDOW, heads=2, head_dim=4, dtype="float64", scores=(scores.softcap(1.0), scores.sink(0.0))
    )
    np.testing.assert_array_equal(plan(q, k, v), attend((scores.softcap(1.0), scores.sink(0.0))))


def test_results_may_go_where_the_caller_wants():
    target = np.full((2, 12, 4), np.nan)
    assert attend(scores.sink(1.0), out=target) is target
    np.testing.assert_array_equal(target, attend(scores.sink(1.0)))


# Gradients


def differences(make, numbers, engine="cpu"):
    """Finite differences of sum(dout * out) with respect to the numbers of ``make(numbers)``."""
    dout = inputs()[3]
    found = np.zeros(numbers.shape)
    for place in np.ndindex(numbers.shape):
        ends = []
        for step in (1e-5, -1e-5):
            moved = numbers.copy()
            moved[place] += step
            ends.append((dout * attend(make(moved), engine=engine)).sum())
        found[place] = (ends[0] - ends[1]) / 2e-5
    return found


@pytest.mark.parametrize("engine", ["cpu", "reference"])
@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (scores.bias, (WINDOW.nnz,)),
        (lambda slopes: scores.alibi(slopes, learnable=True), (2,)),
        (scores.relative, (2, 3)),
        (lambda table: scores.relative(table, (3, 4)), (5, 7)),
        (scores.sink, (2,)),
        (lambda logit: scores.sink(logit[0]), (1,)),
        (
            lambda slopes: (scores.softcap(0.9), scores.alibi(slopes, learnable=True), scores.modify(tilted)),
            (2,),
        ),
    ],
)
def test_gradients_of_numbers_are_those_of_finite_differences(make, shape, engine):
    numbers = np.random.default_rng(8).standard_normal(shape)
    learnt = [one for one in gradients(make(numbers), engine=engine)[3] if one is not None]
    expected = differences(make, numbers, engine)
    np.testing.assert_allclose(np.reshape(learnt[0], shape), expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("derivative", [None, tilted_slope])
def test_gradients_of_q_k_and_v_are_those_of_finite_differences(derivative):
    arrays = inputs()
    dout = arrays[3]
    change = scores.modify(tilted, derivative), scores.softcap(1.5), scores.sink(0.2), scores.alibi(2)
    found = gradients(change)
    for number in range(3):
        for place in [(0, 0, 0), (1, 5, 2), (1, 11, 3)]:
            ends = []
            for step in (1e-5, -1e-5):
                moved = [array.copy() for array in arrays[:3]]
                moved[number][place] += step
                ends.append((dout * nsa.sparse_attention(*moved, WINDOW, scores=change)).sum())
            assert found[number][place] == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-6, abs=1e-8)


# Laws


masks = st.integers(0, 2**32 - 1).map(lambda seed: np.random.default_rng(seed).random((17, 23)) < 0.4)


@settings(max_examples=max(1, settings().max_examples // 4))
@given(masks, st.sampled_from([16, 64]))
def test_a_bias_of_zeros_changes_no_bit_of_the_row_path(mask, head_dim):
    """1 / sqrt(head_dim) is a power of two here, by which any number may be multiplied without rounding."""
    problem = random_problem(mask, heads=2, head_dim=head_dim)
    event(f"rows without keys: {bool((~mask.any(axis=1)).any())}")
    pattern = nsa.as_pattern(mask)
    request = request_for(problem, pattern.rows())
    results = []
    for change in ((), (scores.bias(np.zeros(pattern.nnz, np.float32)),)):
        scored = CallScores(change, "cpu").of(request, ())
        out, lse = np.empty_like(problem.q), np.empty(problem.q.shape[:-1], np.float32)
        cpu.forward(request, *problem.arrays[:3], out, lse, *scored.changes)
        found = [np.empty_like(array) for array in problem.arrays[:3]]
        cpu.backward(request, problem.dout, *problem.arrays[:3], out, lse, *found, *scored.changes)
        results.append([array.tobytes() for array in (out, lse, *found)])
    assert results[0] == results[1]


@settings(max_examples=max(1, settings().max_examples // 4))
@given(masks, st.integers(0, 99))
def test_laws(mask, seed):
    """ALiBi is a bias with its numbers, a cap far away is none, and so is a sink that weighs nothing."""
    rng = np.random.default_rng(seed)
    pattern = nsa.as_pattern(mask)
    problem = random_problem(mask, heads=2, head_dim=8, seed=seed)
    budget = budget_for(problem)
    budget.check(**run_call(problem, pattern, scores=scores.softcap(1e6)))
    nothing = scores.sink([-math.inf, -math.inf], learnable=False)
    plain, same = run_call(problem, pattern), run_call(problem, pattern, scores=nothing)
    assert all(plain[name].tobytes() == same[name].tobytes() for name in plain)
    slopes = rng.random(2).astype(np.float32)
    rows, columns = np.nonzero(mask)
    far = -slopes[:, None] * np.abs(rows + 6 - columns).astype(np.float32)
    one = run_call(problem, pattern, scores=scores.alibi(slopes))
    other = run_call(problem, pattern, scores=scores.bias(far, learnable=False))
    for name in one:
        np.testing.assert_allclose(one[name], other[name], rtol=1e-5, atol=1e-6)


def test_a_sink_of_0_is_softmax_plus_one():
    q, k, v, _ = inputs()
    out, lse = nsa.sparse_attention(q, k, v, WINDOW, return_lse=True)
    found, total = nsa.sparse_attention(q, k, v, WINDOW, return_lse=True, scores=scores.sink(0.0))
    np.testing.assert_allclose(total, np.log1p(np.exp(lse)))
    np.testing.assert_allclose(found, out * (np.exp(lse) / (1 + np.exp(lse)))[..., None])


def test_the_slopes_of_the_paper():
    np.testing.assert_allclose(scores.alibi(8).slopes, 2.0 ** -np.arange(1.0, 9.0))
    np.testing.assert_allclose(scores.alibi(6).slopes, [2**-2, 2**-4, 2**-6, 2**-8, 2**-1, 2**-3])


# Functions


def test_a_function_reads_what_it_closes_over():
    table = np.linspace(0.0, 1.0, 12)
    closed = scores.modify(lambda score, head, i, j: score + table[j] * head)
    dense = np.broadcast_to(table, (12, 12))[WINDOW.toarray()]
    expected = attend(scores.bias(np.stack([0 * dense, dense])))
    np.testing.assert_allclose(attend(closed), expected, rtol=1e-13)


def test_without_a_derivative_there_is_a_way_forward_only():
    change = scores.modify(underivable_compiled())
    assert "no derivative: line" in change.describe()
    np.testing.assert_allclose(attend(change), attend(scores.modify(tilted)), rtol=1e-14)
    with pytest.raises(nsa.ArgumentError, match="calls twice with the score"):
        gradients(change)


def underivable_compiled():
    """Calls another compiled function, into which the derivation does not look."""
    import numba

    twice = numba.njit(tilted)
    return lambda score, head, i, j: twice(score, head, i, j)


# Refusals


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: attend(lambda score, head, i, j: score), "wrap a function in scores.modify"),
        (lambda: attend([scores.sink(0.0), scores.sink(1.0)]), "several sinks"),
        (lambda: attend(scores.sink([0.0, 1.0, 2.0])), "logits of 3 heads for 2 query heads"),
        (lambda: attend(scores.alibi(3)), "slopes of 3 heads for 2"),
        (
            lambda: attend(scores.bias(np.zeros(5))),
            f"a bias of 5 numbers a head for a pattern of {WINDOW.nnz} pairs",
        ),
        (lambda: attend(scores.bias(np.zeros((3, WINDOW.nnz)))), "axes that broadcast"),
        (lambda: attend(scores.bias([np.zeros(WINDOW.nnz)])), "1 biases for 2 heads"),
        (lambda: attend(scores.bias(sparse.csr_array((3, 4)))), "a bias of shape"),
        (lambda: attend(scores.relative(np.zeros((3, 5)))), "relative tables of 3 heads"),
        (lambda: attend(scores.relative(np.zeros((5, 5)), (3, 3))), "on a grid of"),
        (lambda: scores.relative(np.zeros((2, 4))), "relative table of shape"),
        (lambda: scores.relative(np.zeros((3, 3)), (3, 2)), "at least 2"),
        (lambda: scores.relative(np.zeros((3, 3, 3, 3)), (1, 1, 1, 1)), "one to three positive lengths"),
        (lambda: scores.bias(sparse.coo_array((3, 3))), "call .tocsr"),
        (lambda: scores.bias(3.0), "a number for every pair"),
        (lambda: scores.bias([np.zeros((2, 3))]), "in a list"),
        (lambda: scores.bias(np.zeros(3, complex)), "floating-point numbers"),
        (lambda: scores.softcap(0), "a positive finite number"),
        (lambda: scores.softcap(math.inf), "leave the change out"),
        (lambda: scores.alibi(0), "at least one head"),
        (lambda: scores.alibi(np.zeros((2, 2))), "a slope a head"),
        (lambda: scores.sink(np.zeros((2, 2))), "sink logits of shape"),
        (lambda: scores.modify(lambda score, head, i, j: undefined + score), "does not compile: .*undefined"),  # noqa: F821
        (lambda: scores.modify(lambda score: score), "takes 1 arguments"),
        (lambda: scores.modify(tilted, lambda score: 1.0), "derivative"),
        (
            lambda: attend(scores.bias(np.zeros(3)), nsa.patterns.causal(12).heads(1) + WINDOW.heads(1)),
            "a list",
        ),
    ],
)
def test_refusals(make, said):
    with pytest.raises(nsa.SparseAttentionError, match=said) as caught:
        make()
    assert "supported:" in str(caught.value) and "what to do:" in str(caught.value)
