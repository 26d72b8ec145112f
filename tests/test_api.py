"""The public calls: what they accept, and what they refuse before anything runs."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import scipy.sparse

import numba_sparse_attn as nsa
from numba_sparse_attn import reference


def arrays(heads=2, n_q=6, n_k=6, d=4, d_v=4, kv_heads=2, dtype=np.float32, seed=0):
    rng = np.random.default_rng(seed)
    shapes = (heads, n_q, d), (kv_heads, n_k, d), (kv_heads, n_k, d_v)
    return tuple(rng.standard_normal(shape).astype(dtype) for shape in shapes)


WINDOW = nsa.patterns.sliding_window(6, 1)


def expected(q, k, v, mask):
    return reference.forward(q, k, v, mask, 1 / np.sqrt(q.shape[-1]))[0]


@pytest.mark.parametrize("engine", ["auto", "cpu", "reference"])
@pytest.mark.parametrize(
    "form",
    [
        lambda p: p,
        lambda p: p.tocsr(),
        lambda p: p.tocoo(),
        lambda p: p.tobsr((2, 3)),
        lambda p: p.tocsr().tocsc(),
        lambda p: scipy.sparse.csr_matrix(p.tocsr()),
        lambda p: p.tocsr().tolil(),
        lambda p: p.toarray(),
        lambda p: p.toindices(),
        lambda p: p.toindices().tolist(),
        lambda p: [p, p.tocsr()],
        lambda p: p.heads(2),
        lambda p: np.stack([p.toarray(), p.toarray()]),
        lambda p: np.stack([p.toindices(), p.toindices()]),
    ],
)
def test_every_form_of_a_pattern_gives_the_same_result(engine, form):
    q, k, v = arrays()
    out = nsa.sparse_attention(q, k, v, form(WINDOW), engine=engine)
    np.testing.assert_allclose(out, expected(q, k, v, WINDOW.toarray()), rtol=1e-5, atol=1e-6)
    assert out.dtype == q.dtype


def test_entries_of_a_sparse_array_are_pairs_whatever_their_value():
    q, k, v = arrays()
    weights = WINDOW.tocsr().astype(np.float64) * -3.5
    np.testing.assert_array_equal(
        nsa.sparse_attention(q, k, v, weights), nsa.sparse_attention(q, k, v, WINDOW)
    )


def test_index_arrays_know_the_number_of_keys_from_k():
    q, k, v = arrays(n_q=3, n_k=9)
    indices = np.array([[8, 0, -1], [-1, -1, -1], [5, 5, 2]])
    mask = np.zeros((3, 9), bool)
    mask[0, [8, 0]] = mask[2, [5, 2]] = True
    np.testing.assert_allclose(
        nsa.sparse_attention(q, k, v, indices), expected(q, k, v, mask), rtol=1e-5, atol=1e-6
    )


def test_heads_and_batch_elements_may_have_patterns_of_their_own():
    q, k, v = (np.stack([array, array[::-1], array + 1]) for array in arrays())
    masks = np.random.default_rng(1).random((3, 2, 6, 6)) < 0.5
    nested = [[masks[batch, head] for head in range(2)] for batch in range(3)]
    for pattern in (masks, nested):
        np.testing.assert_allclose(
            nsa.sparse_attention(q, k, v, pattern), expected(q, k, v, masks), rtol=1e-5, atol=1e-6
        )
    same_in_every_head = masks[:, :1]
    np.testing.assert_allclose(
        nsa.sparse_attention(q, k, v, same_in_every_head),
        expected(q, k, v, same_in_every_head),
        rtol=1e-5,
        atol=1e-6,
    )


def test_arrays_without_heads_and_lse_and_out():
    q, k, v = (array[0] for array in arrays())
    target = np.full((6, 4), np.nan, np.float32)
    out, lse = nsa.sparse_attention(q, k, v, WINDOW, return_lse=True, out=target)
    assert out is target and lse.shape == (6,) and lse.dtype == np.float32
    np.testing.assert_allclose(out, expected(q, k, v, WINDOW.toarray()), rtol=1e-5, atol=1e-6)
    gradients = nsa.sparse_attention_backward(np.ones_like(out), q, k, v, out, lse, WINDOW)
    assert [gradient.shape for gradient in gradients] == [q.shape, k.shape, v.shape]


@pytest.mark.parametrize("engine", ["cpu", "reference"])
@pytest.mark.parametrize("dtype", ["float16", ml_dtypes.bfloat16, np.float32, np.float64])
def test_pullback_is_the_backward_call(engine, dtype):
    q, k, v = arrays(heads=4, n_k=9, d_v=3, dtype=dtype)
    pattern = nsa.as_pattern(np.random.default_rng(2).random((6, 9)) < 0.5)
    settings = {"scale": -0.7, "engine": engine}
    out, lse = nsa.sparse_attention(q, k, v, pattern, return_lse=True, **settings)
    found, pullback = nsa.vjp(q, k, v, pattern, **settings)
    assert found.tobytes() == out.tobytes() and found.dtype == out.dtype
    for dout in (out, np.ones_like(out)):  # as often as one likes
        gradients = pullback(dout)
        wanted = nsa.sparse_attention_backward(dout, q, k, v, out, lse, pattern, **settings)
        for one, other in zip(gradients, wanted, strict=True):
            assert one.tobytes() == other.tobytes() and one.dtype == other.dtype


def test_pullback_refuses_what_the_backward_call_refuses():
    q, k, v = arrays()
    out, pullback = nsa.vjp(q, k, v, WINDOW)
    with pytest.raises(nsa.ShapeError, match="dout with shape"):
        pullback(out[:1])
    with pytest.raises(nsa.DtypeError, match="dout of type float64"):
        pullback(out.astype(np.float64))
    flat, pullback = nsa.vjp(q[0], k[0], v[0], WINDOW)
    assert [gradient.shape for gradient in pullback(flat)] == [q[0].shape, k[0].shape, v[0].shape]


def test_plan_is_reusable_for_any_batch():
    q, k, v = arrays()
    plan = nsa.plan(WINDOW, heads=2, head_dim=4)
    stacked = [np.stack([array] * 3) for array in (q, k, v)]
    once, thrice = plan(q, k, v), plan(*stacked)
    np.testing.assert_array_equal(thrice, np.stack([once] * 3))
    out, lse = plan(q, k, v, return_lse=True)
    for mine, direct in zip(
        plan.backward(out, q, k, v, out, lse),
        nsa.sparse_attention_backward(out, q, k, v, out, lse, WINDOW),
        strict=True,
    ):
        np.testing.assert_array_equal(mine, direct)


@pytest.mark.parametrize("shape", [(0, 2, 6), (2, 0), (2, 2, 0)])
def test_empty_arrays_give_empty_results(shape):
    *lead, heads, n = (1, *shape) if len(shape) == 2 else shape
    q = np.zeros((*lead, max(heads, 1), n, 4), np.float32)
    out, lse = nsa.sparse_attention(q, q, q, nsa.patterns.full(n), return_lse=True)
    assert out.shape == q.shape and lse.shape == q.shape[:-1]
    assert all(
        g.shape == q.shape
        for g in nsa.sparse_attention_backward(out, q, q, q, out, lse, nsa.patterns.full(n))
    )


def test_masks_of_an_empty_batch():
    q, k, v = (np.stack([array])[:0] for array in arrays())
    assert nsa.sparse_attention(q, k, v, np.zeros((0, 2, 6, 6), bool)).shape == q.shape


def test_no_keys_give_zeros_and_minus_infinity():
    q, k, v = arrays(n_k=0)
    out, lse = nsa.sparse_attention(q, k, v, np.zeros((6, 0), bool), return_lse=True)
    assert np.all(out == 0) and np.all(lse == -np.inf)


def test_named_patterns():
    mask = nsa.create_sparse_mask(16, window=2)
    assert mask.dtype == bool and mask.shape == (16, 16)
    indices = nsa.get_sparse_indices(16, "sliding_window", window=2)
    assert indices.shape == (16, 5) and indices[0].tolist() == [0, 1, 2, -1, -1]
    q, k, v = arrays(n_q=16, n_k=16)
    np.testing.assert_array_equal(nsa.sparse_attention(q, k, v, indices), nsa.sparse_attention(q, k, v, mask))


def test_nothing_is_written_to_the_callers_arrays():
    q, k, v = arrays()
    matrix = scipy.sparse.csr_array((np.ones(4), [5, 0, 0, 2], [0, 3, 3, 4, 4, 4, 4]), shape=(6, 6))
    kept = [array.copy() for array in (q, k, v, matrix.data, matrix.indices, matrix.indptr)]
    for array in (q, k, v):
        array.flags.writeable = False
    out, lse = nsa.sparse_attention(q, k, v, matrix, return_lse=True)
    nsa.sparse_attention_backward(out, q, k, v, out, lse, matrix)
    for array, before in zip((q, k, v, matrix.data, matrix.indices, matrix.indptr), kept, strict=True):
        np.testing.assert_array_equal(array, before)


def broken_csr(**parts):
    matrix = WINDOW.tocsr().astype(np.float32)
    for name, value in parts.items():
        setattr(matrix, name, np.asarray(value))
    return matrix


class OnAGpu:
    """What a GPU array looks like from outside."""

    __cuda_array_interface__ = {"shape": (2, 6, 4), "typestr": "<f4", "data": (0, False), "version": 3}


Q, K, V = arrays()
INDPTR, INDICES, DATA = WINDOW.tocsr().indptr, WINDOW.tocsr().indices, np.ones(WINDOW.nnz)

REFUSED = {
    "integers": (Q.astype(int), K.astype(int), V.astype(int), WINDOW, nsa.DtypeError, "float16, bfloat16"),
    "complex": (
        Q.astype(complex),
        K.astype(complex),
        V.astype(complex),
        WINDOW,
        nsa.DtypeError,
        "complex128",
    ),
    "objects": (Q.astype(object), K.astype(object), V.astype(object), WINDOW, nsa.DtypeError, "object"),
    "mixed": (Q, K.astype(np.float64), V, WINDOW, nsa.DtypeError, "one type for all three"),
    "two halves": (Q.astype(np.float16), K.astype(ml_dtypes.bfloat16), V, WINDOW, nsa.DtypeError, "one type"),
    "masked array": (np.ma.masked_array(Q), K, V, WINDOW, nsa.DtypeError, "masked array"),
    "gpu and host": (OnAGpu(), K, V, WINDOW, nsa.EngineError, "GPU"),
    "one axis": (Q[0, 0], K, V, WINDOW, nsa.ShapeError, "add the missing axes"),
    "axes": (Q[None], K, V, WINDOW, nsa.ShapeError, "same number of axes"),
    "batch": (Q[None].repeat(2, 0), K[None], V[None], WINDOW, nsa.ShapeError, "before the heads axis"),
    "heads": (np.repeat(Q, 3, 0)[:3], K, V, WINDOW, nsa.ShapeError, "multiple of kv_heads"),
    "value heads": (Q, K, V[:1], WINDOW, nsa.ShapeError, "as many heads in v as in k"),
    "values": (Q, K, V[:, :5], WINDOW, nsa.ShapeError, "as many values as keys"),
    "head dim": (Q, K[..., :3], V, WINDOW, nsa.ShapeError, "one head dimension"),
    "no head dim": (Q[..., :0], K[..., :0], V, WINDOW, nsa.ShapeError, "at least 1"),
    "pattern shape": (Q, K, V, nsa.patterns.full(7), nsa.ShapeError, "a pattern of shape (7, 7)"),
    "pattern heads": (Q, K, V, WINDOW.heads(3), nsa.ShapeError, "as many patterns as there are query heads"),
    "pattern type": (Q, K, V, "causal", nsa.FormatError, "SciPy sparse array"),
    "no patterns": (Q, K, V, [], nsa.PatternError, "at least one"),
    "float indices": (Q, K, V, np.zeros((6, 2)), nsa.FormatError, "integer"),
    "index too large": (Q, K, V, np.full((6, 2), 6), nsa.FormatError, "6"),
    "index below -1": (Q, K, V, np.full((6, 2), -2), nsa.FormatError, "-2"),
    "decreasing indptr": (Q, K, V, broken_csr(indptr=INDPTR[::-1] - 0), nsa.FormatError, "indptr"),
    "explicit zero": (Q, K, V, broken_csr(data=DATA * 0), nsa.FormatError, "zero"),
    "column out of range": (Q, K, V, broken_csr(indices=INDICES + 1), nsa.FormatError, "columns"),
    "negative column": (Q, K, V, broken_csr(indices=INDICES - 1), nsa.FormatError, "-1"),
    "nan entry": (Q, K, V, broken_csr(data=DATA * np.nan), nsa.FormatError, "nan"),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("engine", ["auto", "reference"])
def test_refusals(case, engine):
    q, k, v, pattern, kind, words = REFUSED[case]
    with pytest.raises(kind) as caught:
        nsa.sparse_attention(q, k, v, pattern, engine=engine)
    message = str(caught.value)
    assert words in message, message
    assert message.startswith("given: ") and "; supported: " in message and "; what to do: " in message


@pytest.mark.parametrize(
    ("keywords", "kind"),
    [
        ({"scale": float("nan")}, nsa.ArgumentError),
        ({"scale": float("inf")}, nsa.ArgumentError),
        ({"scale": "small"}, nsa.ArgumentError),
        ({"engine": "cuda-tile"}, nsa.EngineError),
        ({"engine": "abacus"}, nsa.EngineError),
        ({"out": np.zeros((2, 6, 5), np.float32)}, nsa.ShapeError),
        ({"out": np.zeros((2, 6, 4), np.float64)}, nsa.ShapeError),
        ({"out": [[0.0]]}, nsa.DtypeError),
        ({"out": Q}, nsa.ShapeError),
    ],
)
def test_refused_keywords(keywords, kind):
    with pytest.raises(kind):
        nsa.sparse_attention(Q, K, V, WINDOW, **keywords)


def test_engine_from_the_environment(monkeypatch):
    monkeypatch.setenv("NSA_ENGINE", "reference")
    assert nsa.plan(WINDOW, heads=1, head_dim=4).engine == "reference"
    monkeypatch.setenv("NSA_ENGINE", "abacus")
    with pytest.raises(nsa.EngineError, match="NSA_ENGINE"):
        nsa.plan(WINDOW, heads=1, head_dim=4)


@pytest.mark.parametrize("name", ["dout", "out", "lse"])
def test_backward_refuses_arrays_of_another_call(name):
    out, lse = nsa.sparse_attention(Q, K, V, WINDOW, return_lse=True)
    given = {"dout": out, "out": out, "lse": lse}
    with pytest.raises(nsa.ShapeError, match=name):
        nsa.sparse_attention_backward(q=Q, k=K, v=V, pattern=WINDOW, **given | {name: given[name][:1]})
    with pytest.raises(nsa.DtypeError, match=name):
        nsa.sparse_attention_backward(
            q=Q, k=K, v=V, pattern=WINDOW, **given | {name: given[name].astype("f8")}
        )


@pytest.mark.parametrize(
    ("keywords", "kind"),
    [
        ({"heads": 0}, nsa.ArgumentError),
        ({"heads": 2.0}, nsa.ArgumentError),
        ({"head_dim": -1}, nsa.ArgumentError),
        ({"heads": 3, "kv_heads": 2}, nsa.ShapeError),
        ({"dtype": "int8"}, nsa.DtypeError),
        ({"dtype": "nonsense"}, nsa.DtypeError),
        ({"device": "tpu"}, nsa.ArgumentError),
    ],
)
def test_refused_plans(keywords, kind):
    with pytest.raises(kind):
        nsa.plan(WINDOW, **{"heads": 2, "head_dim": 4, **keywords})


def test_plan_refuses_other_arrays():
    plan = nsa.plan(WINDOW, heads=2, head_dim=4, dtype="bfloat16")
    with pytest.raises(nsa.ShapeError, match="dtype float32"):
        plan(Q, K, V)


def test_unknown_named_pattern():
    with pytest.raises(nsa.ArgumentError, match="sliding_window"):
        nsa.create_sparse_mask(8, "no_such_pattern")


def test_results_in_the_other_byte_order_are_native():
    out = nsa.sparse_attention(Q.astype(">f4"), K.astype(">f4"), V.astype(">f4"), WINDOW)
    assert out.dtype == np.float32 and out.dtype.isnative
    np.testing.assert_array_equal(out, nsa.sparse_attention(Q, K, V, WINDOW))
