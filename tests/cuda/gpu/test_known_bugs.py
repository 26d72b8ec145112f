"""Failures that attention libraries have shipped, each as a test of the GPU engines.

They carry the numbers of the project's list of known failures of the field, as ``tests/test_known_bugs.py``
does for the CPU engine. Number 15 (streams) has a file of its own, ``test_calls.py``; 18 (a stale kernel
cache) needs no GPU and is tested in ``tests/test_jit.py``.
"""

from __future__ import annotations

from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
from scipy import sparse

import numba_sparse_attn as nsa
from numba_sparse_attn import Pattern, as_pattern, patterns
from numba_sparse_attn.formats import canonical
from numba_sparse_attn.testing import DTYPES, Problem, budget_for, random_problem, run_call

from ...hard_cases import LAYOUTS, MALFORMED, causal_window, relaid, same_bits

pytestmark = pytest.mark.gpu

#: Element types that each engine takes. The tile engine's gradients are the warp engine's, from its results.
KINDS = {"cuda-warp": tuple(DTYPES), "cuda-tile": ("float16", "bfloat16")}
every_engine = pytest.mark.parametrize("engine", KINDS)
every_kind = pytest.mark.parametrize(
    ("engine", "dtype"), [(engine, dtype) for engine, dtypes in KINDS.items() for dtype in dtypes]
)


def checked(problem: Problem, engine: str, pattern=None, *, poison=np.nan):
    """Results that have kept the error rule; `poison` lies in rows that no pair needs."""
    pattern = as_pattern(problem.mask) if pattern is None else pattern
    results = run_call(problem, pattern, engine=engine, poison=poison)
    budget_for(problem).check(**results)
    return results


def on_gpu(problem: Problem):
    import torch

    def moved(array):
        if array.dtype == ml_dtypes.bfloat16:
            return torch.from_numpy(np.ascontiguousarray(array).view(np.int16)).view(torch.bfloat16).cuda()
        return torch.from_numpy(np.ascontiguousarray(array)).cuda()

    return [moved(array) for array in problem.arrays]


def plan_for(problem: Problem, engine: str, pattern=None):
    return nsa.plan(
        as_pattern(problem.mask) if pattern is None else pattern,
        heads=problem.q.shape[-3],
        kv_heads=problem.k.shape[-3],
        head_dim=problem.q.shape[-1],
        value_dim=problem.v.shape[-1],
        dtype=problem.dtype,
        scale=problem.scale,
        engine=engine,
        device="cuda",
    )


@every_engine
@pytest.mark.parametrize("head_dim", [16, 32, 64, 96, 128, 192, 256])
def test_block_sparse_backward_at_every_head_dimension(engine, head_dim):
    """Known failure 1 of the field: a block-sparse backward wrong at d 64 only, its forward exact."""
    pattern = patterns.bigbird(256, block=32, window_blocks=1, global_blocks=1, random_blocks=1, seed=0)
    for dtype in KINDS[engine]:
        problem = random_problem(pattern.toarray(), heads=1, head_dim=head_dim, dtype=DTYPES[dtype])
        checked(problem, engine, pattern)


@every_kind
def test_a_thousand_repeats_in_dirty_memory(engine, dtype):
    """Known failures 2 and 13 of the field: a race or a dirty workspace gives garbage now and then."""
    import torch

    pattern = patterns.random_keys(600, 40, seed=1) | patterns.sliding_window(600, 30)
    pattern |= patterns.global_tokens(600, [5])
    problem = random_problem(pattern.toarray(), heads=4, kv_heads=2, head_dim=64, dtype=DTYPES[dtype])
    q, k, v, dout = on_gpu(problem)
    plan = plan_for(problem, engine, pattern)
    first = None
    noise = torch.empty(1 << 20, device="cuda")
    for turn in range(1000):
        dirt = [torch.full_like(q, torch.nan) for _ in range(4)]  # freed here, given out again below
        del dirt
        if turn % 3:
            noise.normal_()  # other work beside and before ours, of other lengths
        out, lse = plan(q, k, v, return_lse=True)
        results = [out, lse, *plan.backward(dout, q, k, v, out, lse)]
        if first is None:
            first = [result.clone() for result in results]
        same = [torch.equal(one, other) for one, other in zip(first, results, strict=True)]
        assert all(same), f"turn {turn}: {same}"


@every_kind
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_poison_that_nobody_selects(engine, dtype, value):
    """Known failure 3 of the field: NaN in unselected keys or in padding leaks as 0 * NaN."""
    mask = causal_window(150, 200)
    mask[:, 40:60], mask[20:30] = False, False
    problem = random_problem(mask, heads=2, kv_heads=1, head_dim=16, dtype=DTYPES[dtype])
    checked(problem, engine, poison=value)


@every_kind
def test_poison_in_a_selected_key_reaches_only_its_rows(engine, dtype):
    """Known failure 3 of the field, the other half: a selected NaN has to arrive, and nowhere else."""
    mask = causal_window(150, 150, reach=19)
    problem = random_problem(mask, heads=1, head_dim=16, dtype=DTYPES[dtype])
    k = problem.k.copy()
    k[0, 70] = np.nan
    results = run_call(replace(problem, k=k), as_pattern(mask), engine=engine)
    sees = mask[:, 70]
    for name in ("out", "dq"):
        found = np.isnan(results[name][0].astype(float)).any(axis=1)
        np.testing.assert_array_equal(found, sees, err_msg=name)
    np.testing.assert_array_equal(np.isnan(results["lse"][0]), sees)
    touched = mask[sees].any(axis=0)
    for name in ("dk", "dv"):
        found = np.isnan(results[name][0].astype(float)).any(axis=1)
        np.testing.assert_array_equal(found, touched, err_msg=name)


@every_kind
def test_every_output_is_written(engine, dtype):
    """Known failures 4 and 5 of the field: empty rows never written, or NaN."""
    mask = np.zeros((130, 140), bool)
    mask[5, 7] = True
    results = checked(random_problem(mask, heads=1, head_dim=24, dtype=DTYPES[dtype]), engine)
    idle = np.arange(130) != 5
    for name in ("out", "dq"):
        assert not results[name][0, idle].astype(float).any(), name
    for name in ("dk", "dv"):
        assert not results[name][0, np.arange(140) != 7].astype(float).any(), name
    assert (results["lse"][0, idle] == -np.inf).all()
    nothing = random_problem(np.zeros((129, 130), bool), heads=2, head_dim=16, dtype=DTYPES[dtype])
    checked(nothing, engine)


@every_kind
@pytest.mark.parametrize("n", [(1, 1000), (100, 129), (129, 100), (255, 257), (383, 1)], ids=str)
def test_lengths_that_no_tile_divides(engine, dtype, n):
    """Known failure 6 of the field: a length that is no multiple of the tile, or n_q != n_k."""
    checked(random_problem(causal_window(*n), heads=1, head_dim=16, dtype=DTYPES[dtype]), engine)


@every_kind
def test_every_head_and_batch_element_has_its_own_mask(engine, dtype):
    """Known failure 8 of the field: masks of batch > 0 or head > 0 are ignored, also with grouped heads."""
    rng = np.random.default_rng(0)
    masks = rng.random((2, 4, 60, 70)) < np.array([0.05, 0.3, 0.6, 0.9])[:, None, None]
    problem = random_problem(masks, heads=4, kv_heads=2, batch=(2,), head_dim=16, dtype=DTYPES[dtype])
    checked(problem, engine)
    nested = [[sparse.csr_array(mask) for mask in heads] for heads in masks]
    checked(problem, engine, nested)


@every_engine
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("layout", (*LAYOUTS, "one token"))
@pytest.mark.parametrize("name", ["q", "k", "v", "dout"])
def test_strides(engine, dtype, layout, name):
    """Known failure 9 of the field: strided or expanded q, k, v or dout; k and v with different strides."""
    import torch

    if dtype not in KINDS[engine]:
        dtype = "float16"
    problem = random_problem(causal_window(150, 140), heads=4, kv_heads=2, head_dim=16, dtype=DTYPES[dtype])
    if layout == "backwards":  # PyTorch has no negative strides; NumPy's are staged
        changed = replace(problem, **{name: relaid(getattr(problem, name), layout)})
        checked(changed, engine)
        return
    arrays = dict(zip(("q", "k", "v", "dout"), on_gpu(problem), strict=True))
    plan = plan_for(problem, engine)

    def run(arrays):
        out, lse = plan(arrays["q"], arrays["k"], arrays["v"], return_lse=True)
        return [out, lse, *plan.backward(arrays["dout"], arrays["q"], arrays["k"], arrays["v"], out, lse)]

    array = arrays[name]
    if layout == "transposed":
        other = array.transpose(-1, -2).contiguous().transpose(-1, -2)
    elif layout == "heads last":
        other = array.transpose(-2, -3).contiguous().transpose(-2, -3)
    elif layout == "every second":
        wide = torch.full(
            (*array.shape[:-1], 2 * array.shape[-1]), torch.nan, device="cuda", dtype=array.dtype
        )
        wide[..., ::2] = array
        other = wide[..., ::2]
    else:
        other = array[:1].expand_as(array) if layout == "one head" else array[:, :1].expand_as(array)
    straight = run(arrays | {name: other.contiguous()})
    for one, two in zip(run(arrays | {name: other}), straight, strict=True):
        torch.testing.assert_close(one, two, rtol=2e-2 if dtype != "float32" else 1e-5, atol=1e-3)


@every_engine
def test_keys_beyond_two_billion_elements(engine):
    """Known failure 10 of the field: element offsets beyond 2**31."""
    import torch

    n_k, head_dim, dtype = 2**25 + 300, 64, KINDS[engine][0]
    kind = getattr(torch, dtype)
    k = torch.zeros(1, n_k, head_dim, device="cuda", dtype=kind)
    assert k.numel() > 2**31
    last = torch.randn(1, 4, head_dim, device="cuda").to(kind)
    k[:, -4:] = last
    q, dout = torch.randn(2, 1, 2, head_dim, device="cuda").to(kind)
    rows = canonical((2, n_k), np.array([0, 4, 6]), n_k - np.array([4, 3, 2, 1, 3, 1]))
    pattern = Pattern.from_csr(rows)
    mask = np.array([[True] * 4, [False, True, False, True]])
    small = Problem(*(array.cpu().numpy() for array in (q, last, last, dout)), mask, 0.125)
    plan = nsa.plan(
        pattern, heads=1, head_dim=head_dim, dtype=dtype, scale=0.125, engine=engine, device="cuda"
    )
    out, lse = plan(q, k, k, return_lse=True)
    dq, dk, dv = plan.backward(dout, q, k, k, out, lse)
    assert not dk[:, :-4].any() and not dv[:, :-4].any()
    results = {"out": out, "lse": lse, "dq": dq, "dk": dk[:, -4:], "dv": dv[:, -4:]}
    budget_for(small).check(**{name: value.cpu().numpy() for name, value in results.items()})


@every_engine
def test_nothing_is_carried_from_call_to_call(engine):
    """Known failure 11 of the field: a counter that is not reset between calls."""
    dtype = DTYPES[KINDS[engine][0]]
    one = random_problem(causal_window(200, 200), heads=2, head_dim=16, dtype=dtype)
    other = random_problem(causal_window(90, 300, reach=80), heads=3, head_dim=40, dtype=dtype)
    first = [checked(problem, engine) for problem in (one, other)]
    for _ in range(3):
        for problem, expected in zip((one, other), first, strict=True):
            same_bits(run_call(problem, as_pattern(problem.mask), engine=engine), expected)


@every_kind
def test_results_lie_where_they_belong(engine, dtype):
    """Known failure 12 of the field: the right norm in the wrong layout."""
    heads, n = 4, 192
    problem = random_problem(causal_window(n, n), heads=heads, batch=(2,), head_dim=16, dtype=DTYPES[dtype])
    # Values that say where they come from, and that every type holds exactly.
    v = problem.v.copy()
    place = 8 * np.arange(heads)[:, None] + 64 * np.arange(2)[:, None, None]
    v[..., 0] = place
    results = checked(replace(problem, v=v), engine)
    np.testing.assert_allclose(
        results["out"][..., 0].astype(float), np.broadcast_to(place, (2, heads, n)), rtol=1e-2
    )


@every_engine
def test_malformed_arrays_are_an_error_and_disorder_is_none(engine):
    """Known failure 14 of the field: malformed CSR crashes; duplicates and disorder are undefined."""
    q = np.random.default_rng(0).standard_normal((1, 3, 16)).astype(KINDS[engine][0])

    def attend(indptr, indices):
        matrix = sparse.csr_array(np.ones((3, 3)))
        matrix.indptr, matrix.indices = np.array(indptr), np.array(indices)
        matrix.data = np.ones(len(indices))
        return nsa.sparse_attention(q, q, q, matrix, engine=engine)

    for indptr, indices in MALFORMED:
        with pytest.raises(nsa.FormatError):
            attend(indptr, indices)
    tidy = attend([0, 2, 3, 3], [0, 2, 1])
    np.testing.assert_array_equal(attend([0, 5, 7, 7], [2, 0, 2, 0, 0, 1, 1]), tidy)


@every_engine
def test_bfloat16_is_not_float16(engine):
    """Known failure 16 of the field: bfloat16 read as float16, since both have two bytes."""
    import torch

    problem = random_problem(causal_window(40, 40), heads=2, head_dim=16, dtype=ml_dtypes.bfloat16)
    q, k, v, _ = on_gpu(problem)
    out = nsa.sparse_attention(q, k, v, problem.mask, scale=problem.scale, engine=engine)
    assert out.dtype == torch.bfloat16
    result = out.view(torch.int16).cpu().numpy().view(ml_dtypes.bfloat16)
    budget_for(problem, gradients=False).check(out=result)


@every_kind
@pytest.mark.parametrize(
    ("size", "scale"), [(100.0, 1.0), (1.0, 1e6), (1.0, 1e-30), (1.0, -3.0), (1e-4, 1.0), (1.0, 0.0)]
)
def test_scores_of_any_size(engine, dtype, size, scale):
    """Known failure 17 of the field: scores of 1e4 and more, a scale that is huge, tiny, negative or zero."""
    problem = random_problem(causal_window(100, 130), heads=1, head_dim=16, dtype=DTYPES[dtype], scale=scale)
    q, k = (np.asarray(size * array.astype(float)).astype(problem.dtype) for array in (problem.q, problem.k))
    results = checked(replace(problem, q=q, k=k), engine)
    assert np.isfinite(results["out"].astype(float)).all()


@every_kind
def test_backward_with_a_partial_tile_in_every_place(engine, dtype):
    """Known failure 20 of the field: a backward mask on partial tiles that nearly all tests missed."""
    mask = causal_window(300, 290, reach=129)  # partial tiles on both edges of the band and of the matrix
    mask[64:70] = False
    mask[:, 130] = False
    checked(random_problem(mask, heads=2, kv_heads=1, head_dim=48, dtype=DTYPES[dtype]), engine)
