"""Native sparse attention: compressed tokens, blocks that a group chooses, three branches with gates."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import numba_sparse_attn as nsa
from numba_sparse_attn import dynamic, reference
from numba_sparse_attn.dynamic.catalogue import Case
from numba_sparse_attn.testing import strategies

SIZES = {"block": 8, "length": 6, "stride": 3}


@given(st.integers(0, 40), st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**32 - 1))
def test_compressed_tokens_are_means_and_their_gradients_the_transpose(n, length, stride, seed):
    x = np.random.default_rng(seed).standard_normal((2, n, 3))
    found = dynamic.compress(x, length, stride)
    starts = range(0, n - length + 1, stride)
    assert found.shape == (2, len(starts), 3)
    for number, start in enumerate(starts):
        np.testing.assert_allclose(found[:, number], x[:, start : start + length].mean(axis=1), atol=1e-14)
    dout = np.random.default_rng(seed + 1).standard_normal(found.shape)
    dx = dynamic.compress_backward(dout, n, length, stride)
    assert dx.shape == x.shape
    assert np.sum(dx * x) == pytest.approx(np.sum(dout * found), abs=1e-10)


@pytest.mark.parametrize("dtype", strategies.DTYPES.values(), ids=str)
def test_compressed_tokens_keep_their_type(dtype):
    x = np.ones((5, 2), dtype)
    assert dynamic.compress(x, 2, 1).dtype == dtype
    assert dynamic.compress_backward(dynamic.compress(x, 2, 1), 5, 2, 1).dtype == dtype


def test_heads_of_a_group_share_their_blocks():
    case = Case(60, 60, heads=4, kv_heads=2)
    made = dynamic.nsa_blocks(*case.arrays(), 4, causal=True, **SIZES)
    assert made.member_of.tolist() == [0, 0, 1, 1]
    own = np.arange(60) // 8
    for pattern in made:
        mask = pattern.toarray()
        touched = np.add.reduceat(mask, np.arange(0, 60, 8), axis=1) > 0
        assert touched.sum(axis=1).max() <= 4
        assert touched[:, 0].all() and touched[np.arange(60), own].all()
        assert touched[np.arange(8, 60), own[8:] - 1].all()


def test_stretches_and_blocks_of_one_size_choose_by_attention_weight():
    q, k = np.random.default_rng(0).standard_normal((2, 64, 8))
    made = dynamic.nsa_blocks(q, k, 3, block=8, length=8, stride=8, first=0)
    weights = nsa.attention_weights(q, dynamic.compress(k, 8, 8), nsa.patterns.full(64, n_keys=8)).toarray()
    best = np.argsort(-weights, axis=1)[:, :3]
    chosen = np.zeros((64, 8), bool)
    np.put_along_axis(chosen, best, True, axis=1)
    np.testing.assert_array_equal(made.toarray(), np.repeat(chosen, 8, axis=1))


def test_compressed_keys_of_ones_own_decide():
    q, k = Case(60, 60, heads=4, kv_heads=2).arrays()
    means = dynamic.compress(k, 6, 3)
    default = dynamic.nsa_blocks(q, k, 3, **SIZES)
    same = dynamic.nsa_blocks(q, k, 3, compressed=means, **SIZES)
    other = dynamic.nsa_blocks(q, k, 3, compressed=-means, **SIZES)
    assert all(a.equals(b) for a, b in zip(default, same, strict=True))
    assert not any(a.equals(b) for a, b in zip(default, other, strict=True))
    with pytest.raises(nsa.ShapeError, match=r"compressed of float64 with shape \(2, 18, 16\)"):
        dynamic.nsa_blocks(q, k, 3, compressed=means[:, 1:], **SIZES)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("n_q", "n_k"), [(60, 60), (20, 45), (45, 20), (3, 2)])
def test_patterns_of_the_branches(n_q, n_k, causal):
    q, k = Case(n_q, n_k).arrays()
    found = dynamic.nsa_branches(q, k, 3, 5, causal=causal, **SIZES)
    here = np.arange(n_q)[:, None] + n_k - n_q
    last = np.arange(found.keys.shape[-2]) * 3 + 5
    np.testing.assert_array_equal(
        found.compressed.toarray(), np.broadcast_to(last <= here if causal else True, (n_q, len(last)))
    )
    keys = np.arange(n_k)
    near = (here - 5 < keys) & (keys <= here if causal else keys < here + 5)
    np.testing.assert_array_equal(found.window.toarray(), near)
    selected = dynamic.nsa_blocks(q, k, 3, causal=causal, **SIZES)
    assert all(a.equals(b) for a, b in zip(found.selected, selected, strict=True))


def branches(q, k, v, gates, found):
    """The whole thing by the oracle, dense and in float64, with its loss."""
    values = np.stack([v[:, c * 3 : c * 3 + 6].mean(axis=1) for c in range(found.keys.shape[-2])], axis=1)
    keys = np.stack([k[:, c * 3 : c * 3 + 6].mean(axis=1) for c in range(found.keys.shape[-2])], axis=1)
    selected = np.stack([pattern.toarray() for pattern in found.selected])
    scale = q.shape[-1] ** -0.5
    return sum(
        gates[..., number, None] * reference.forward(q, *arrays, mask, scale)[0]
        for number, (arrays, mask) in enumerate(
            [
                ((keys, values), found.compressed.toarray()),
                ((k, v), selected),
                ((k, v), found.window.toarray()),
            ]
        )
    )


def test_gradients_of_the_gated_sum_of_branches():
    """All the way: three calls, gates, compression; against differences of the oracle."""
    rng = np.random.default_rng(0)
    q, k = Case(24, 24, head_dim=4).arrays()
    v, gates = rng.standard_normal(k.shape), rng.random((2, 24, 3))
    found = dynamic.nsa_branches(q, k, 3, 5, causal=True, **SIZES)
    values = dynamic.compress(v, 6, 3)
    calls = [(found.keys, values, found.compressed), (k, v, found.selected), (k, v, found.window)]
    results = [nsa.sparse_attention(q, *call, return_lse=True) for call in calls]
    outs = [out for out, _ in results]
    out = nsa.gated_sum(outs, gates)
    np.testing.assert_allclose(out, branches(q, k, v, gates, found), atol=1e-12)
    dout = rng.standard_normal(out.shape)
    douts, dgates = nsa.gated_sum_backward(dout, outs, gates)
    parts = [
        nsa.sparse_attention_backward(dpart, q, *call[:2], *result, call[2])
        for dpart, call, result in zip(douts, calls, results, strict=True)
    ]
    gradients = {
        "q": sum(part[0] for part in parts),
        "k": parts[1][1] + parts[2][1] + dynamic.compress_backward(parts[0][1], 24, 6, 3),
        "v": parts[1][2] + parts[2][2] + dynamic.compress_backward(parts[0][2], 24, 6, 3),
        "gates": dgates,
    }
    arrays = {"q": q, "k": k, "v": v, "gates": gates}
    for name, array in arrays.items():
        for _ in range(12):
            place = tuple(rng.integers(size) for size in array.shape)
            kept, ends = array[place], []
            for moved in (kept + 1e-5, kept - 1e-5):
                array[place] = moved
                ends.append(np.sum(dout * branches(q, k, v, gates, found)))
            array[place] = kept
            assert gradients[name][place] == pytest.approx((ends[0] - ends[1]) / 2e-5, abs=1e-7), name


@pytest.mark.parametrize("dtype", strategies.DTYPES.values(), ids=str)
def test_gated_sums_keep_their_type(dtype):
    outs, gates = [np.ones((2, 5, 3), dtype)] * 2, np.full((2, 5, 2), 0.5, dtype)
    out = nsa.gated_sum(outs, gates)
    assert out.dtype == dtype and (out == 1).all()
    douts, dgates = nsa.gated_sum_backward(out, outs, gates)
    assert {array.dtype for array in (*douts, dgates)} == {np.dtype(dtype)}
    assert (dgates == 3).all()


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: nsa.gated_sum([np.ones((4, 2))], np.ones((4, 2))), nsa.ArgumentError, "1 outs and 2 gates"),
        (lambda: nsa.gated_sum([np.ones((4, 2))], np.ones((5, 1))), nsa.ShapeError, r"gates\[0\]"),
        (
            lambda: nsa.gated_sum([np.ones((4, 2))], np.ones((4, 1), np.float32)),
            nsa.DtypeError,
            "gates of float32 and outs of float64",
        ),
        (lambda: dynamic.compress(np.ones(4), 2, 1), nsa.ShapeError, r"x \(\.\.\., n, d\)"),
        (lambda: dynamic.compress(np.ones((4, 2)), 0, 1), nsa.PatternError, "length=0"),
        (lambda: dynamic.compress_backward(np.ones((4, 2)), 9, 2, 1), nsa.ShapeError, "each of 8 stretches"),
        (
            lambda: dynamic.nsa_blocks(np.ones((2, 4, 2)), np.ones((1, 4, 2)), [1, 2]),
            nsa.ArgumentError,
            "they choose together",
        ),
    ],
)
def test_refusals(call, error, words):
    with pytest.raises(error, match=words):
        call()
