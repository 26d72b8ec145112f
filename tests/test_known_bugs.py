"""Failures that attention libraries have shipped, each as a test of the CPU engine.

They carry the numbers of the project's list of known failures of the field. Number 15 (a stream baked into
a compiled kernel) needs a GPU; number 18 (a stale kernel cache) is tested in tests/test_jit.py, by
``test_an_edited_helper_in_another_file_is_seen``.
"""

from __future__ import annotations

from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
from scipy import sparse

import numba_sparse_attn as nsa
from numba_sparse_attn import Pattern, as_pattern, cpu, patterns
from numba_sparse_attn.formats import Tiles, canonical, from_mask
from numba_sparse_attn.testing import (
    DTYPES,
    Problem,
    budget_for,
    random_problem,
    request_for,
    run_call,
    run_engine,
)

from .hard_cases import LAYOUTS, MALFORMED, causal_window, relaid, same_bits

every_dtype = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
every_path = pytest.mark.parametrize("structure", [Pattern.tiles, Pattern.rows], ids=["tiles", "rows"])


def run(problem: Problem, pattern=None):
    return run_call(problem, as_pattern(problem.mask) if pattern is None else pattern, engine="cpu")


@every_path
@pytest.mark.parametrize("head_dim", [16, 32, 64, 96, 128, 192, 256])
def test_block_sparse_backward_at_every_head_dimension(head_dim, structure):
    """Known failure 1 of the field: a block-sparse backward wrong at d 64 only, its forward exact."""
    pattern = patterns.bigbird(256, block=32, window_blocks=1, global_blocks=1, random_blocks=1, seed=0)
    problem = random_problem(pattern.toarray(), heads=1, head_dim=head_dim)
    budget_for(problem).check(**run_engine(cpu, problem, structure(pattern)))


@every_path
def test_dirty_memory_and_repeats(structure):
    """Known failure 2 of the field: a race or a workspace that is not cleared gives garbage now and then."""
    problem = random_problem(causal_window(200, 200), heads=4, kv_heads=2, head_dim=16)
    pattern = structure(as_pattern(problem.mask))
    first = run_engine(cpu, problem, pattern)
    budget_for(problem).check(**first)
    for _ in range(50):  # each runs twice, the second time in dirty memory
        same_bits(first, run_engine(cpu, problem, pattern))


@every_path
@every_dtype
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_poison_that_nobody_selects(value, dtype, structure):
    """Known failure 3 of the field: NaN in unselected keys or in padding leaks as 0 * NaN."""
    mask = causal_window(150, 200)
    mask[:, 40:60], mask[20:30] = False, False
    problem = random_problem(mask, heads=2, kv_heads=1, head_dim=16, dtype=dtype)
    assert not mask[:, :10].any()
    results = run_engine(cpu, problem, structure(as_pattern(mask)), poison=value)
    budget_for(problem).check(**results)


@every_path
def test_poison_in_a_selected_key_reaches_only_its_rows(structure):
    """Known failure 3 of the field, the other half: a selected NaN has to arrive, and nowhere else."""
    mask = causal_window(150, 150, reach=9)
    problem = random_problem(mask, heads=1, head_dim=8)
    k = problem.k.copy()
    k[0, 70] = np.nan
    problem = replace(problem, k=k)
    results = run_engine(cpu, problem, structure(as_pattern(mask)))
    sees = mask[:, 70]
    for name in ("out", "dq"):
        np.testing.assert_array_equal(np.isnan(results[name][0]).any(axis=1), sees, err_msg=name)
    np.testing.assert_array_equal(np.isnan(results["lse"][0]), sees)
    touched = mask[sees].any(axis=0)
    for name in ("dk", "dv"):
        np.testing.assert_array_equal(np.isnan(results[name][0]).any(axis=1), touched, err_msg=name)


@every_path
@every_dtype
def test_every_output_is_written(dtype, structure):
    """Known failure 4 of the field: outputs or gradients of empty rows and padding are never written."""
    mask = np.zeros((130, 140), bool)
    mask[5, 7] = True
    problem = random_problem(mask, heads=1, head_dim=24, dtype=dtype)
    results = run_engine(cpu, problem, structure(as_pattern(mask)))  # into NaN
    idle = np.arange(130) != 5
    for name in ("out", "dq"):
        assert not results[name][0, idle].astype(float).any(), name
    for name in ("dk", "dv"):
        assert not results[name][0, np.arange(140) != 7].astype(float).any(), name
    assert (results["lse"][0, idle] == -np.inf).all()


@every_path
def test_fully_masked_rows_and_calls(structure):
    """Known failure 5 of the field: a fully masked row gives NaN."""
    for mask in (
        np.zeros((129, 130), bool),
        np.repeat([[True], [False], [True]], 43, axis=0).repeat(129, axis=1),
    ):
        problem = random_problem(mask, heads=2, head_dim=16)
        results = run_engine(cpu, problem, structure(as_pattern(mask)))
        assert not any(np.isnan(array).any() for array in results.values())
        budget_for(problem).check(**results)


@every_path
@pytest.mark.parametrize(("n_q", "n_k"), [(1, 1000), (100, 129), (129, 100), (255, 257), (383, 1)])
def test_lengths_that_no_tile_divides(n_q, n_k, structure):
    """Known failure 6 of the field: a length that is no multiple of the tile, or n_q != n_k."""
    problem = random_problem(causal_window(n_q, n_k), heads=1, head_dim=16)
    budget_for(problem).check(**run_engine(cpu, problem, structure(as_pattern(problem.mask))))


def test_a_mask_larger_than_the_sequence():
    """Known failure 6 of the field: a mask larger than the sequence is cropped or read out of bounds."""
    q = np.zeros((1, 100, 8), np.float32)
    for shape in ((128, 128), (100, 128), (128, 100), (99, 100)):
        with pytest.raises(nsa.ShapeError, match="for 100 queries and 100 keys"):
            nsa.sparse_attention(q, q, q, np.ones(shape, bool), engine="cpu")


def as_partial(tiles: Tiles) -> Tiles:
    """The same pattern with its full tiles listed under another number, with a mask of ones."""
    ones = np.int32(len(tiles.pool))
    changed = {
        name: np.where(getattr(tiles, name) == 0, ones, getattr(tiles, name))
        for name in ("mask_ids", "transposed_mask_ids")
    }
    return replace(tiles, pool=np.concatenate([tiles.pool, tiles.pool[:1]]), **changed)


@every_dtype
def test_full_tiles_listed_as_partial_tiles(dtype):
    """Known failure 7 of the field: the same mask as full or as partial tiles gives another answer."""
    pattern = patterns.causal(400)
    problem = random_problem(pattern.toarray(), heads=1, head_dim=32, dtype=dtype)
    tiles = pattern.tiles()
    assert tiles.full_count
    same_bits(run_engine(cpu, problem, tiles), run_engine(cpu, problem, as_partial(tiles)))


@every_path
def test_every_head_and_batch_element_has_its_own_mask(structure):
    """Known failure 8 of the field: masks of batch > 0 or head > 0 are ignored, also with grouped heads."""
    rng = np.random.default_rng(0)
    masks = rng.random((2, 4, 60, 70)) < np.array([0.05, 0.3, 0.6, 0.9])[:, None, None]
    problem = random_problem(masks, heads=4, kv_heads=2, batch=(2,), head_dim=16)
    budget = budget_for(problem)
    budget.check(**run(problem))
    nested = [[sparse.csr_array(mask) for mask in heads] for heads in masks]
    budget.check(**run(problem, nested))
    for head in range(4):
        one = random_problem(masks[0, head], heads=4, kv_heads=2, batch=(2,), head_dim=16)
        results = run_engine(cpu, one, structure(as_pattern(masks[0, head])))
        budget_for(one).check(**results)


@every_path
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("names", "layout"),
    [((name,), layout) for name in ("q", "k", "v", "dout") for layout in (*LAYOUTS, "one token")]
    + [(("q", "k", "v", "dout"), layout) for layout in LAYOUTS],
)
def test_strides(names, layout, dtype, structure):
    """Known failure 9 of the field: strided or expanded q, k, v or dout; k and v with different strides."""
    problem = random_problem(causal_window(150, 140), heads=4, kv_heads=2, head_dim=16, dtype=DTYPES[dtype])
    problem = replace(problem, **{name: relaid(getattr(problem, name), layout) for name in names})
    budget_for(problem).check(**run_engine(cpu, problem, structure(as_pattern(problem.mask))))


def test_more_than_two_billion_pairs_are_counted():
    """Known failure 10 of the field: more than 2**31 pairs."""
    assert patterns.full(65_536).nnz == 2**32
    assert patterns.causal(131_072).nnz == 131_072 * 131_073 // 2
    tiles = patterns.full(65_536).tiles()
    assert tiles.nnz == 2**32 and tiles.count == 512 * 512


def test_keys_beyond_two_billion_elements(tmp_path):
    """Known failure 10 of the field: element offsets beyond 2**31."""
    n_k, head_dim = 2**25 + 300, 64
    # Keys and values are one array in a file of 8.6 GB that is almost all hole: only the last rows exist.
    k = np.memmap(tmp_path / "keys", np.float32, "w+", shape=(1, n_k, head_dim))
    assert k.size > 2**31
    rng = np.random.default_rng(0)
    last = rng.standard_normal((1, 4, head_dim)).astype(np.float32)
    k[:, -4:] = last
    q = rng.standard_normal((1, 2, head_dim)).astype(np.float32)
    rows = canonical((2, n_k), np.array([0, 4, 6]), n_k - np.array([4, 3, 2, 1, 3, 1]))
    mask = np.array([[True] * 4, [False, True, False, True]])
    small = Problem(q, last, last, np.zeros_like(q), mask, 0.125)
    out, lse = np.full_like(q, np.nan), np.full(q.shape[:-1], np.nan, np.float32)
    cpu.forward(request_for(replace(small, k=k, v=k), rows), q, k, k, out, lse)
    budget_for(small, gradients=False).check(out=out, lse=lse)


def test_nothing_is_carried_from_call_to_call():
    """Known failure 11 of the field: a counter that is not reset between calls."""
    one = random_problem(causal_window(200, 200), heads=2, head_dim=16)
    other = random_problem(causal_window(90, 300, reach=80), heads=3, head_dim=40, dtype=np.float64)
    plans = [
        nsa.plan(
            as_pattern(problem.mask),
            heads=problem.q.shape[0],
            head_dim=problem.q.shape[-1],
            dtype=problem.dtype,
            engine="cpu",
        )
        for problem in (one, other)
    ]
    first = [plan(problem.q, problem.k, problem.v) for plan, problem in zip(plans, (one, other), strict=True)]
    for _ in range(3):
        for plan, problem, expected in zip(plans, (one, other), first, strict=True):
            out, lse = plan(problem.q, problem.k, problem.v, return_lse=True)
            plan.backward(problem.dout, problem.q, problem.k, problem.v, out, lse)
            assert out.tobytes() == expected.tobytes()


@every_path
def test_results_lie_where_they_belong(structure):
    """Known failure 12 of the field: the right norm in the wrong layout."""
    heads, n, head_dim = 4, 192, 8
    problem = random_problem(causal_window(n, n), heads=heads, batch=(2,), head_dim=head_dim)
    # Values that say where they come from: a row can only be in one place.
    v = problem.v.copy()
    v[..., 0] = 100 * np.arange(heads)[:, None] + 1000 * np.arange(2)[:, None, None]
    v[..., 1] = np.arange(n)
    problem = replace(problem, v=v)
    results = run_engine(cpu, problem, structure(as_pattern(problem.mask)))
    budget_for(problem).check(**results)
    place = 100 * np.arange(heads)[:, None] + 1000 * np.arange(2)[:, None, None]
    np.testing.assert_allclose(results["out"][..., 0], np.broadcast_to(place, (2, heads, n)), rtol=1e-5)


@every_path
@every_dtype
def test_the_same_bits_every_time_on_any_number_of_threads(dtype, structure, monkeypatch):
    """Known failure 13 of the field: determinism that is promised and not kept."""
    pattern = structure(patterns.global_tokens(300, [0, 7]) | patterns.sliding_window(300, 11))
    mask = (patterns.global_tokens(300, [0, 7]) | patterns.sliding_window(300, 11)).toarray()
    problem = random_problem(mask, heads=4, kv_heads=1, head_dim=16, dtype=dtype)
    monkeypatch.setenv("NSA_NUM_THREADS", "1")
    first = run_engine(cpu, problem, pattern)
    for threads in ("2", "3", "7"):
        monkeypatch.setenv("NSA_NUM_THREADS", threads)
        for _ in range(3):
            same_bits(first, run_engine(cpu, problem, pattern))


def test_malformed_arrays_are_an_error_and_disorder_is_none():
    """Known failure 14 of the field: malformed CSR crashes; duplicates and disorder are undefined."""
    q = np.random.default_rng(0).standard_normal((1, 3, 8)).astype(np.float32)

    def attend(indptr, indices):
        matrix = sparse.csr_array(np.ones((3, 3)))
        matrix.indptr, matrix.indices, matrix.data = (
            np.array(indptr),
            np.array(indices),
            np.ones(len(indices)),
        )
        return nsa.sparse_attention(q, q, q, matrix, engine="cpu")

    for indptr, indices in MALFORMED:
        with pytest.raises(nsa.FormatError):
            attend(indptr, indices)
    tidy = attend([0, 2, 3, 3], [0, 2, 1])
    np.testing.assert_array_equal(attend([0, 5, 7, 7], [2, 0, 2, 0, 0, 1, 1]), tidy)


def test_bfloat16_is_not_float16():
    """Known failure 16 of the field: bfloat16 read as float16, since both have two bytes."""
    problem = random_problem(causal_window(40, 40), heads=2, head_dim=16, dtype=ml_dtypes.bfloat16)
    results = run(problem)
    assert results["out"].dtype == ml_dtypes.bfloat16
    budget_for(problem).check(**results)
    misread = problem.with_arrays(*(array.view(np.float16) for array in problem.arrays))
    assert not np.array_equal(run(misread)["out"].view(np.uint16), results["out"].view(np.uint16))
    bits = [array.view(np.uint16) for array in problem.arrays[:3]]
    with pytest.raises(nsa.DtypeError, match="uint16"):
        nsa.sparse_attention(*bits, problem.mask, engine="cpu")


@every_path
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "float16"])
@pytest.mark.parametrize(
    ("size", "scale"), [(100.0, 1.0), (1.0, 1e6), (1.0, 1e-30), (1.0, -3.0), (1e-4, 1.0), (1.0, 0.0)]
)
def test_scores_of_any_size(size, scale, dtype, structure):
    """Known failure 17 of the field: scores of 1e4 and more, a scale that is huge, tiny, negative or zero."""
    problem = random_problem(causal_window(100, 130), heads=1, head_dim=16, dtype=DTYPES[dtype], scale=scale)
    q, k = (np.asarray(size * array.astype(float)).astype(problem.dtype) for array in (problem.q, problem.k))
    problem = replace(problem, q=q, k=k)
    results = run_engine(cpu, problem, structure(as_pattern(problem.mask)))
    assert np.isfinite(results["out"].astype(float)).all()
    budget_for(problem).check(**results)


def test_windows_are_closed_intervals():
    """Known failure 19 of the field: "window" means two things, off by one, in one library."""
    i, j = np.arange(20)[:, None], np.arange(20)
    np.testing.assert_array_equal(patterns.sliding_window(20, 3).toarray(), np.abs(i - j) <= 3)
    np.testing.assert_array_equal(
        patterns.sliding_window(20, 3, causal=True).toarray(), (i - 3 <= j) & (j <= i)
    )
    np.testing.assert_array_equal(patterns.band(20, 2, 4).toarray(), (i - 2 <= j) & (j <= i + 4))
    assert patterns.sliding_window(1000, 10).nnz == 1000 * 21 - 10 * 11
    assert patterns.sliding_window(1000, 10, causal=True).nnz == 1000 * 11 - 10 * 11 // 2


@every_path
@every_dtype
def test_backward_with_a_partial_tile_in_every_place(dtype, structure):
    """Known failure 20 of the field: a backward mask on partial tiles that nearly all tests missed."""
    mask = causal_window(300, 290, reach=129)  # partial tiles on both edges of the band and of the matrix
    mask[64:70] = False
    mask[:, 130] = False
    problem = random_problem(mask, heads=2, kv_heads=1, head_dim=48, dtype=dtype)
    tiles = Pattern.from_csr(from_mask(mask)).tiles()
    assert tiles.partial_count == tiles.count
    budget_for(problem).check(**run_engine(cpu, problem, structure(as_pattern(mask))))
