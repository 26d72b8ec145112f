"""Laws that hold whatever the problem: what attention over a set of pairs has to satisfy.

Where a law is exact, bits are compared. Where it holds up to rounding, the problem's error budget decides.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, event, given
from hypothesis import strategies as st
from scipy import special

import numba_sparse_attn as nsa
from numba_sparse_attn import Pattern, as_pattern, cpu
from numba_sparse_attn.formats import FULL, TILE, Tiles, from_mask
from numba_sparse_attn.testing import Problem, budget_for, random_problem, run_call, run_engine, strategies

NAMES = ("out", "lse", "dq", "dk", "dv")
seeds = st.integers(0, 2**32 - 1)
wide = strategies.problems(names=["float32", "float64"], largest=140)


def report(problem):
    """Say which rare cases a problem has."""
    selected = problem.selected
    rows = selected.any(axis=-1)
    if not rows.all():
        event("rows without keys")
    if rows.size and not selected.any(axis=-2).all():
        event("keys without queries")
    if selected.shape[-1] % TILE and selected.shape[-1] > TILE:
        event("ragged last tile")
    if selected.shape[-2] != selected.shape[-1]:
        event("n_q != n_k")
    if problem.q.shape[-3] != problem.k.shape[-3]:
        event("grouped heads")
    if not all(array.flags.c_contiguous for array in problem.arrays):
        event("strided arrays")
    event(f"pattern per {'head' if problem.mask.ndim > 2 else 'call'}")


def run(problem):
    return run_call(problem, as_pattern(problem.mask), engine="cpu")


def same_bits(one, other):
    for name in one:
        assert one[name].tobytes() == other[name].tobytes(), f"{name} differs"


@given(st.data())
def test_formats_make_the_round_trip(data):
    n_q, n_k = data.draw(strategies.lengths(200)), data.draw(strategies.lengths(200))
    mask = data.draw(strategies.bool_masks(n_q, n_k))
    sources = [mask, data.draw(strategies.scipy_arrays(mask)), data.draw(strategies.index_tables(mask))]
    for source in sources:
        pattern = as_pattern(source, keys=n_k)
        assert pattern.shape == mask.shape and pattern.nnz == mask.sum()
        np.testing.assert_array_equal(pattern.toarray(), mask)
        for back in (pattern.tocsr(), pattern.tocoo(), pattern.tobsr((1, 1)), pattern.toindices()):
            np.testing.assert_array_equal(as_pattern(back, keys=n_k).toarray(), mask)
        np.testing.assert_array_equal(mask_of_tiles(pattern.tiles()), mask)


def mask_of_tiles(tiles):
    """The dense mask, read off the tile lists bit by bit."""
    n_q, n_k = tiles.shape
    mask = np.zeros((-(-n_q // TILE) * TILE, -(-n_k // TILE) * TILE), bool)
    for row in range(tiles.indptr.size - 1):
        for place in range(tiles.indptr[row], tiles.indptr[row + 1]):
            bits = tiles.pool[tiles.mask_ids[place]].astype("<u8").view(np.uint8)
            column = tiles.columns[place] * TILE
            mask[row * TILE : (row + 1) * TILE, column : column + TILE] = np.unpackbits(
                bits, axis=1, bitorder="little"
            )
    assert not mask[n_q:].any() and not mask[:, n_k:].any(), "bits beyond the matrix"
    return mask[:n_q, :n_k]


@given(strategies.problems(largest=140))
def test_any_problem_is_within_its_budget(problem):
    report(problem)
    event(problem.dtype.name)
    budget_for(problem).check(**run(problem))


@given(wide, seeds)
def test_permuting_keys_and_pattern_together_changes_nothing(problem, seed):
    report(problem)
    order = np.random.default_rng(seed).permutation(problem.k.shape[-2])
    back = np.argsort(order)
    permuted = replace(
        problem, k=problem.k[..., order, :], v=problem.v[..., order, :], mask=problem.mask[..., order]
    )
    results = run(permuted)
    results |= {name: results[name][..., back, :] for name in ("dk", "dv")}
    budget_for(problem).check(**results)


@given(wide, seeds)
def test_permuting_queries_and_pattern_together_changes_nothing(problem, seed):
    order = np.random.default_rng(seed).permutation(problem.q.shape[-2])
    back = np.argsort(order)
    permuted = replace(
        problem,
        q=problem.q[..., order, :],
        dout=problem.dout[..., order, :],
        mask=problem.mask[..., order, :],
    )
    results = run(permuted)
    results |= {name: results[name][..., back, :] for name in ("out", "dq")}
    results["lse"] = results["lse"][..., back]
    budget_for(problem).check(**results)


@given(strategies.lengths(200, smallest=1), strategies.lengths(200, smallest=1), seeds)
def test_a_full_pattern_is_dense_softmax(n_q, n_k, seed):
    problem = random_problem(np.ones((n_q, n_k), bool), heads=2, head_dim=16, seed=seed)
    budget = budget_for(problem, gradients=False)
    q, k, v = (array.astype(float) for array in (problem.q, problem.k, problem.v))
    scores = problem.scale * q @ k.swapaxes(1, 2)
    np.testing.assert_allclose(budget.expected["out"], special.softmax(scores, axis=2) @ v, atol=1e-12)
    np.testing.assert_allclose(budget.expected["lse"], special.logsumexp(scores, axis=2), atol=1e-12)
    out, lse = nsa.sparse_attention(
        problem.q, problem.k, problem.v, nsa.patterns.full(n_q, n_keys=n_k), return_lse=True, engine="cpu"
    )
    budget.check(out=out, lse=lse)


@given(wide)
def test_values_of_one_give_one(problem):
    report(problem)
    ones = replace(problem, v=np.ones_like(problem.v))
    out = run(ones)["out"]
    rows = np.broadcast_to(ones.selected.any(axis=-1)[..., None], out.shape)
    expected = rows.astype(float)
    np.testing.assert_array_equal(budget_for(ones, gradients=False).expected["out"].round(12), expected)
    budget_for(ones, gradients=False).check(out=out)
    assert not out[~rows].any()


@given(strategies.problems(largest=140))
def test_what_is_masked_has_exactly_zero_gradient(problem):
    report(problem)
    results = run(problem)
    selected = problem.selected
    idle_queries = ~selected.any(axis=-1)
    kv_lead = problem.k.shape[:-2]
    group = selected.shape[-3] // kv_lead[-1]
    idle_keys = ~selected.reshape(*kv_lead, group, *selected.shape[-2:]).any(axis=(-3, -2))
    assert not results["dq"][idle_queries].any() and not results["out"][idle_queries].any()
    assert (results["lse"][idle_queries] == -np.inf).all()
    assert not results["dk"][idle_keys].any() and not results["dv"][idle_keys].any()


@given(strategies.problems(largest=140))
def test_no_incoming_gradient_gives_exact_zeros(problem):
    results = run(replace(problem, dout=np.zeros_like(problem.dout)))
    for name in ("dq", "dk", "dv"):
        assert not results[name].any(), name


@given(st.data())
def test_union_is_commutative_and_monotone(data):
    n_q, n_k = data.draw(strategies.lengths(150)), data.draw(strategies.lengths(150))
    one, other = (as_pattern(data.draw(strategies.bool_masks(n_q, n_k))) for _ in range(2))
    union = one | other
    assert union.equals(other | one)
    assert (union & one).equals(one) and (union & other).equals(other)
    assert max(one.nnz, other.nnz) <= union.nnz == one.nnz + other.nnz - (one & other).nnz
    event("overlap" if (one & other).nnz else "disjoint")
    problem = random_problem(union.toarray(), heads=1, head_dim=8)
    for structure in (Pattern.tiles, Pattern.rows):
        same_bits(
            run_engine(cpu, problem, structure(union)), run_engine(cpu, problem, structure(other | one))
        )


@given(wide, st.sampled_from([0.25, 2.0, 8.0]))
def test_powers_of_two_pass_through_without_rounding(problem, factor):
    assume(all(problem.q.shape) and all(problem.k.shape))
    # In one layout: other strides may sum in another order.
    problem = problem.with_arrays(*(np.ascontiguousarray(array) for array in problem.arrays))
    base = run(problem)
    moved = run(replace(problem, q=problem.q * factor, scale=problem.scale / factor))
    for name in ("out", "lse", "dk", "dv"):
        assert moved[name].tobytes() == base[name].tobytes(), name
    np.testing.assert_array_equal(moved["dq"] * factor, base["dq"])
    louder = run(replace(problem, dout=problem.dout * factor))
    for name in ("dq", "dk", "dv"):
        np.testing.assert_array_equal(louder[name], base[name] * factor)


@given(wide, st.sampled_from([Pattern.tiles, Pattern.rows]))
def test_heads_and_batch_elements_do_not_know_of_each_other(problem, structure):
    report(problem)
    heads = problem.q.shape[-3]
    group = heads // problem.k.shape[-3]
    masks = np.broadcast_to(problem.mask, (heads, *problem.mask.shape[-2:]))
    structures = [structure(as_pattern(mask)) for mask in masks]
    together = run_engine(cpu, problem, structures)
    for place in np.ndindex(problem.q.shape[:-2]):
        *batch, head = place
        shared = (*batch, head // group)
        arrays = (problem.q[place], problem.k[shared], problem.v[shared], problem.dout[place])
        one = Problem(*(array[None] for array in arrays), masks[head], problem.scale)
        alone = run_engine(cpu, one, structures[head])
        for name in ("out", "lse", "dq"):
            np.testing.assert_array_equal(alone[name][0], together[name][place])


@given(wide, st.sampled_from([2, 3, 5]))
def test_the_number_of_threads_does_not_show(problem, threads):
    report(problem)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NSA_NUM_THREADS", "1")
        alone = run(problem)
        patch.setenv("NSA_NUM_THREADS", str(threads))
        same_bits(alone, run(problem))


def as_partial(tiles: Tiles) -> Tiles:
    """The same pattern with every full tile listed as a partial one, whose mask happens to be all ones."""
    ones = len(tiles.pool)
    return replace(
        tiles,
        pool=np.concatenate([tiles.pool, tiles.pool[:1]]),
        mask_ids=np.where(tiles.mask_ids == FULL, ones, tiles.mask_ids).astype(np.int32),
        transposed_mask_ids=np.where(
            tiles.transposed_mask_ids == FULL, ones, tiles.transposed_mask_ids
        ).astype(np.int32),
    )


@given(st.data(), strategies.dtypes())
def test_full_tiles_and_partial_tiles_give_the_same_bits(data, dtype):
    n_q, n_k = data.draw(st.integers(128, 400)), data.draw(st.integers(128, 400))
    mask = data.draw(strategies.bool_masks(n_q, n_k))
    mask[: data.draw(st.sampled_from([TILE, 2 * TILE])), : data.draw(st.sampled_from([TILE, 3 * TILE]))] = (
        True
    )
    tiles = Pattern.from_csr(from_mask(mask)).tiles()
    event("several full tiles" if tiles.full_count > 1 else "one full tile")
    if tiles.partial_count:
        event("and partial ones")
    problem = random_problem(mask, heads=1, head_dim=data.draw(st.sampled_from([16, 64])), dtype=dtype)
    same_bits(run_engine(cpu, problem, tiles), run_engine(cpu, problem, as_partial(tiles)))
