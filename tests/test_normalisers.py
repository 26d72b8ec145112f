"""Normalisers through the public functions: laws, weights, plans, gradients, refusals."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import event, given
from hypothesis import strategies as st

import numba_sparse_attn as nsa
from numba_sparse_attn import normalisers
from numba_sparse_attn.testing import random_problem, strategies

from .normaliser_cases import NORMALISERS, learned
from .properties.test_laws import report, same_bits

FAMILY = {
    "sparsemax": normalisers.sparsemax(),
    "entmax15": normalisers.entmax15(),
    "entmax": normalisers.entmax(1.2),
}
every_normaliser = pytest.mark.parametrize("name", NORMALISERS)
problems = strategies.problems(names=["float32", "float64"], largest=60)
members = st.sampled_from(list(FAMILY))
names = st.sampled_from(list(NORMALISERS))


def run(problem, normaliser, **changes):
    """out and lse of the CPU engine."""
    settings = {"scale": problem.scale, "engine": "cpu", "normaliser": normaliser, **changes}
    return nsa.sparse_attention(*problem.arrays[:3], problem.mask, return_lse=True, **settings)


def rounding(problem, steps=64.0):
    """Of sums of a few dozen terms around 1, multiplied with scores."""
    largest = max(1.0, np.abs(np.einsum("...qd->...q", problem.q.astype(float) ** 2)).max(initial=1.0))
    return steps * np.finfo(problem.accumulator).eps * largest * max(1.0, abs(problem.scale))


@given(problems, members)
def test_weights_of_the_entmax_family_sum_to_one(problem, name):
    report(problem)
    ones = problem.with_arrays(problem.q, problem.k, np.ones_like(problem.v), problem.dout)
    out, lse = run(ones, FAMILY[name])
    some = problem.selected.any(axis=-1)
    np.testing.assert_allclose(out, np.broadcast_to(some[..., None], out.shape), atol=rounding(problem))
    assert (np.isneginf(lse) == ~some).all()


@given(problems, names)
def test_weights_times_values_are_attention(problem, name):
    normaliser = NORMALISERS[name]
    wide = problem.cast(np.float64)
    out, _ = run(wide, normaliser)
    weights = nsa.attention_weights(wide.q, wide.k, wide.mask, scale=wide.scale, normaliser=normaliser)
    dense = np.array([[array.toarray() for array in np.ravel([part])] for part in np.ravel([weights])])
    event(f"zeros: {bool((dense == 0).any())}")
    lead = wide.q.shape[:-2]
    dense = (
        dense.reshape(*lead, *wide.mask.shape[-2:])
        if dense.size
        else np.zeros((*lead, *wide.mask.shape[-2:]))
    )
    group = wide.q.shape[-3] // wide.k.shape[-3]
    expected = dense @ np.repeat(wide.v, group, axis=-3)
    np.testing.assert_allclose(
        out, expected, rtol=0, atol=rounding(wide) * (1 + np.abs(wide.v).max(initial=0))
    )


@given(problems)
def test_alpha_names_the_members_of_the_family(problem):
    for alpha, name in ((1.5, "entmax15"), (2.0, "sparsemax")):
        for one, other in zip(
            run(problem, normalisers.entmax(alpha)), run(problem, FAMILY[name]), strict=True
        ):
            assert one.tobytes() == other.tobytes()


@given(problems)
def test_entmax_becomes_softmax_as_alpha_falls_to_one(problem):
    wide = problem.cast(np.float64)
    expected, expected_lse = run(wide, None)
    out, lse = run(wide, normalisers.entmax(1.0 + 1e-8))
    scores = (
        np.abs(wide.scale)
        * np.linalg.norm(wide.q, axis=-1).max(initial=0)
        * np.linalg.norm(wide.k, axis=-1).max(initial=0)
    )
    # Of first order in alpha - 1, times the square of the scores; and rounding over alpha - 1.
    bound = 1e-7 * (1.0 + (scores + np.log1p(wide.mask.shape[-1])) ** 2) * (1 + np.abs(wide.v).max(initial=0))
    np.testing.assert_allclose(out, expected, rtol=0, atol=bound)
    some = np.isfinite(expected_lse)
    np.testing.assert_allclose(lse[some], expected_lse[some], rtol=0, atol=bound)


@given(problems, members, st.floats(-8.0, 8.0))
def test_a_shift_of_all_scores_changes_lse_alone(problem, name, shift):
    """One more column of q and k adds the same number to every score."""
    wide = problem.cast(np.float64)
    scale = wide.scale if abs(wide.scale) > 1e-3 else 0.5
    q = np.concatenate([wide.q, np.full_like(wide.q[..., :1], shift / scale)], axis=-1)
    k = np.concatenate([wide.k, np.ones_like(wide.k[..., :1])], axis=-1)
    out, lse = run(wide, FAMILY[name], scale=scale)
    moved = wide.with_arrays(q, k, wide.v, wide.dout)
    moved_out, moved_lse = run(moved, FAMILY[name], scale=scale)
    bound = rounding(moved, 512.0) * (1 + np.abs(wide.v).max(initial=0)) * (1 + abs(scale))
    np.testing.assert_allclose(moved_out, out, rtol=0, atol=bound)
    np.testing.assert_allclose(moved_lse, lse + shift, rtol=0, atol=bound)


@given(problems, names, st.integers(0, 2**32 - 1))
def test_keys_in_another_order_are_the_same_keys(problem, name, seed):
    wide = problem.cast(np.float64)
    order = np.random.default_rng(seed).permutation(wide.k.shape[-2])
    out, lse = run(wide, NORMALISERS[name])
    settings = {"scale": wide.scale, "engine": "cpu", "normaliser": NORMALISERS[name], "return_lse": True}
    again, again_lse = nsa.sparse_attention(
        wide.q, wide.k[..., order, :], wide.v[..., order, :], wide.mask[..., order], **settings
    )
    bound = rounding(wide) * (1 + np.abs(wide.v).max(initial=0))
    np.testing.assert_allclose(again, out, rtol=0, atol=bound)
    np.testing.assert_allclose(again_lse, lse, rtol=0, atol=bound)


@given(problems, names, st.sampled_from([2, 3]))
def test_the_number_of_threads_does_not_show(problem, name, threads):
    from numba_sparse_attn.testing import run_call

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NSA_NUM_THREADS", "1")
        alone = run_call(problem, problem.mask, engine="cpu", normaliser=NORMALISERS[name])
        patch.setenv("NSA_NUM_THREADS", str(threads))
        same_bits(alone, run_call(problem, problem.mask, engine="cpu", normaliser=NORMALISERS[name]))


def test_keys_without_weight_get_no_gradient():
    problem = random_problem(np.ones((40, 60), bool), heads=2, head_dim=16, scale=1.0)
    normaliser = normalisers.sparsemax()
    weights = nsa.attention_weights(problem.q, problem.k, problem.mask, scale=1.0, normaliser=normaliser)
    unused = [np.flatnonzero(array.toarray().max(axis=0) == 0) for array in weights]
    assert all(len(keys) for keys in unused)
    _, pullback = nsa.vjp(*problem.arrays[:3], problem.mask, scale=1.0, normaliser=normaliser)
    _, dk, dv = pullback(problem.dout)
    for head, keys in enumerate(unused):
        assert not dk[head, keys].any() and not dv[head, keys].any()


def test_softmax_plus_one_is_softmax_beside_a_key_with_score_and_value_0():
    problem = random_problem(np.ones((30, 20), bool), heads=2, head_dim=8, dtype=np.float64)
    beside = problem.with_arrays(
        problem.q,
        np.concatenate([problem.k, np.zeros_like(problem.k[:, :1])], axis=1),
        np.concatenate([problem.v, np.zeros_like(problem.v[:, :1])], axis=1),
        problem.dout,
    )
    expected = nsa.sparse_attention(*beside.arrays[:3], np.ones((30, 21), bool))
    out = nsa.sparse_attention(*problem.arrays[:3], problem.mask, normaliser=normalisers.softmax_plus_one())
    np.testing.assert_allclose(out, expected, rtol=1e-12, atol=1e-14)


@every_normaliser
def test_flat_arrays_plans_and_pullbacks_are_one(name):
    normaliser = NORMALISERS[name]
    problem = random_problem(nsa.patterns.causal(40).toarray(), heads=1, head_dim=8)
    pattern = nsa.patterns.causal(40)
    plan = nsa.plan(pattern, heads=1, head_dim=8, normaliser=normaliser)
    assert f"normaliser {normaliser.name}" in plan.explain().splitlines()
    again = pickle.loads(pickle.dumps(plan))
    q, k, v, dout = (array[0] for array in problem.arrays)
    out, pullback = nsa.vjp(q, k, v, pattern, normaliser=normaliser)
    gradients = pullback(dout)
    assert len(gradients) == 3
    for made in (plan, again):
        whole, lse = made(*problem.arrays[:3], return_lse=True)
        assert whole[0].tobytes() == out.tobytes()
        assert made(*problem.arrays[:3]).tobytes() == whole.tobytes()
        for one, other in zip(
            made.backward(problem.dout, *problem.arrays[:3], whole, lse), gradients, strict=True
        ):
            assert one[0].tobytes() == other.tobytes()


def test_plans_are_kept_apart_by_normaliser():
    pattern = nsa.patterns.sliding_window(300, 20)
    plain = nsa.plan(pattern, heads=2, head_dim=8)
    sparse = nsa.plan(pattern, heads=2, head_dim=8, normaliser=normalisers.sparsemax())
    assert plain is nsa.plan(pattern, heads=2, head_dim=8)
    assert sparse is nsa.plan(pattern, heads=2, head_dim=8, normaliser=normalisers.entmax(2.0))
    assert plain is not sparse and "normaliser" not in plain.explain()
    assert "path tiles" in plain.explain()
    assert "path rows: sparsemax is computed row by row" in sparse.explain()
    plus = nsa.plan(pattern, heads=2, head_dim=8, normaliser=normalisers.softmax_plus_one())
    assert "path tiles" in plus.explain()


def test_gradients_of_alpha_add_up_over_batch_elements():
    problem = random_problem(np.ones((20, 30), bool), heads=3, head_dim=8, batch=(2,), dtype=np.float64)
    normaliser = learned(3)
    dalpha = nsa.vjp(*problem.arrays[:3], problem.mask, normaliser=normaliser)[1](problem.dout)[3]
    parts = [
        nsa.vjp(*(array[item] for array in problem.arrays[:3]), problem.mask, normaliser=normaliser)[1](
            problem.dout[item]
        )[3]
        for item in range(2)
    ]
    assert dalpha.shape == (3,) and dalpha.dtype == np.float64
    np.testing.assert_allclose(dalpha, sum(parts), rtol=1e-12)


@every_normaliser
def test_the_reference_engine_has_them_all(name):
    problem = random_problem(np.tri(12, dtype=bool), heads=2, head_dim=4, dtype=np.float64)
    for engine in ("cpu", "reference"):
        out, lse = run(problem, NORMALISERS[name], engine=engine)
        if engine == "cpu":
            expected = out, lse
    np.testing.assert_allclose(out, expected[0], rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(lse, expected[1], rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("alpha", [1.0, 0.5, 2.1, np.nan, "much", None, [[1.5]], [], [1.5, 1.0]])
def test_alphas_out_of_range_are_refused(alpha):
    with pytest.raises(nsa.ArgumentError, match="alpha="):
        normalisers.entmax(alpha)


def test_other_refusals():
    q = np.zeros((2, 4, 8))
    causal = nsa.patterns.causal(4)
    with pytest.raises(nsa.ArgumentError, match="3 alphas for 2 query heads"):
        nsa.sparse_attention(q, q, q, causal, normaliser=learned(3))
    with pytest.raises(nsa.ArgumentError, match="normaliser='sparsemax'"):
        nsa.sparse_attention(q, q, q, causal, normaliser="sparsemax")
    with pytest.raises(nsa.ArgumentError, match="normaliser=<function"):
        nsa.attention_weights(q, q, causal, normaliser=normalisers.sparsemax)
    with pytest.raises(nsa.ArgumentError, match="bias=nan"):
        normalisers.sigmoid(np.nan)
    with pytest.raises(nsa.ArgumentError, match="2 alphas for 4 query heads"):
        nsa.plan(causal, heads=4, head_dim=8, normaliser=learned(2))
