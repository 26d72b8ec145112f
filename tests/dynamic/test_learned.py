"""The predictor of block masses: what it learns from, its gradients, what it keeps of a budget, its files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import event, given
from hypothesis import strategies as st

import numba_sparse_attn as nsa
from numba_sparse_attn import dynamic
from numba_sparse_attn.dynamic import BlockPredictor, _dense
from numba_sparse_attn.dynamic._seeded import normals
from numba_sparse_attn.dynamic.catalogue import Case

HEADS, WIDTH = 4, 6


def arrays(seed: int, n_q: int, n_k: int, heads: int = HEADS, kv_heads: int = 2) -> Any:
    return Case(n_q, n_k, heads=heads, kv_heads=kv_heads, head_dim=WIDTH, seed=seed).arrays()


def moved(seed: int, block: int, heads: int = HEADS, width: int = WIDTH, **sizes: Any) -> BlockPredictor:
    """A predictor in double precision that is not where training begins."""
    made = BlockPredictor.create(width, block, heads=heads, dtype=np.float64, **sizes)
    for number, value in enumerate(made.parameters.values()):
        value += 0.1 * normals(seed + number, value.shape)
    return made


def dense_masses(q: Any, k: Any, block: int, query_block: int, causal: bool, scale: float) -> Any:
    n_q, n_k, found = q.shape[1], k.shape[1], []
    for head, queries in enumerate(q):
        scores = scale * queries @ k[head * len(k) // len(q)].T
        weights = _dense.probabilities(scores, _dense.seen(n_q, n_k, causal))
        found.append(
            [
                [weights[np.ix_(rows, keys)].sum() / len(rows) for keys in _dense.ranges(n_k, block)]
                for rows in _dense.ranges(n_q, query_block)
            ]
        )
    return np.array(found)


@pytest.mark.parametrize(
    ("n_q", "n_k", "block", "query_block"),
    [(30, 30, 7, 7), (45, 20, 6, 4), (9, 50, 8, 1), (700, 700, 64, 96)],
)
@pytest.mark.parametrize("causal", [False, True])
def test_masses_are_those_of_dense_attention(
    n_q: int, n_k: int, block: int, query_block: int, causal: bool
) -> None:
    q, k = arrays(1, n_q, n_k)
    found = dynamic.block_masses(q, k, block, query_block=query_block, causal=causal, scale=0.3)
    np.testing.assert_allclose(found, dense_masses(q, k, block, query_block, causal, 0.3), atol=1e-12)
    half = dynamic.block_masses(q[0].astype(np.float16), k[0].astype(np.float16), block, causal=causal)
    assert half.dtype == np.float32 and half.shape == (-(-n_q // block), -(-n_k // block))
    some = np.minimum(np.arange(n_q) + n_k - n_q + 1, n_k) > 0 if causal else np.ones(n_q, bool)
    shares = [some[list(rows)].mean() for rows in _dense.ranges(n_q, block)]
    np.testing.assert_allclose(half.sum(axis=1), shares, rtol=1e-5)


def test_masses_of_nothing() -> None:
    q, k = arrays(0, 5, 0)
    assert dynamic.block_masses(q, k, 4).shape == (HEADS, 2, 0)
    q, k = arrays(0, 0, 5)
    assert dynamic.block_masses(q, k, 4).shape == (HEADS, 0, 2)
    q, k = arrays(0, 8, 8)
    assert dynamic.block_masses(q[None, :, :][:0], k[None][:0], 4).shape == (0, HEADS, 2, 2)
    assert moved(0, 4).predict(q[None][:0], k[None][:0]).shape == (0, HEADS, 2, 2)


def differences(loss: Any, parameters: dict[str, Any], step: float = 1e-6) -> dict[str, Any]:
    """Central differences of a loss with respect to some entries of every parameter: others are NaN."""
    found = {}
    for name, value in parameters.items():
        flat, slopes = value.reshape(-1), np.full(value.size, np.nan)
        for place in range(0, value.size, max(1, value.size // 12)):
            before = flat[place]
            ends = []
            for sign in (1.0, -1.0):
                flat[place] = before + sign * step
                ends.append(loss())
            flat[place] = before
            slopes[place] = (ends[0] - ends[1]) / (2.0 * step)
        found[name] = slopes.reshape(value.shape)
    return found


def assert_gradients(gradients: Any, slopes: Any) -> None:
    assert gradients.keys() == slopes.keys()
    for name, slope in slopes.items():
        some = ~np.isnan(slope)
        assert gradients[name].shape == slope.shape
        np.testing.assert_allclose(gradients[name][some], slope[some], rtol=1e-5, atol=1e-8, err_msg=name)


@pytest.mark.parametrize("heads", [1, HEADS])
@pytest.mark.parametrize(("n_q", "n_k", "query_block"), [(40, 40, None), (23, 50, 3), (50, 23, 1)])
@pytest.mark.parametrize("causal", [False, True])
def test_gradients_of_the_loss_are_its_slopes(
    heads: int, n_q: int, n_k: int, query_block: int | None, causal: bool
) -> None:
    predictor = moved(3, 5, heads=heads, query_block=query_block)
    q, k = arrays(2, n_q, n_k)
    (lesson,) = predictor.lessons(q, k, causal=causal)
    _, gradients = predictor.loss(lesson)
    slopes = differences(lambda: HEADS * predictor.loss(lesson)[0], predictor.parameters)
    assert_gradients(gradients, slopes)


@pytest.mark.parametrize("causal", [False, True])
def test_the_loss_is_the_cross_entropy_of_what_is_predicted(causal: bool) -> None:
    predictor, (q, k) = moved(4, 6), arrays(5, 31, 40)
    (lesson,) = predictor.lessons(q, k, causal=causal)
    predicted = predictor.predict(q, k, causal=causal)
    np.testing.assert_allclose(predicted.sum(axis=2), 1.0)
    true = dynamic.block_masses(q, k, 6, causal=causal)
    assert (true[predicted == 0.0] == 0.0).all()
    logs = np.log(predicted, out=np.zeros_like(predicted), where=predicted > 0.0)
    assert predictor.loss(lesson)[0] == pytest.approx(-(true * logs).sum(axis=2).mean())


def hidden_keys(seed: int) -> Any:
    """Every third block has a key that all queries look for, and that the mean of its block hides."""
    q, k = normals(seed, (2, 120, WIDTH)), 0.3 * normals(seed + 1, (2, 120, WIDTH))
    q[..., 0] = 3.0
    for begin in range(0, 120, 18):
        place = begin + seed % 6
        k[:, begin : begin + 6, 0] = -0.8
        k[:, place, 0] = 4.0
    return q, k


def test_training_begins_with_block_top_k_and_learns_what_a_mean_hides() -> None:
    predictor = BlockPredictor.create(WIDTH, 6, heads=2)
    q, k = hidden_keys(30)
    start = dynamic.learned_blocks(q, k, predictor, 4, causal=True)
    for head, same in enumerate(dynamic.block_top_k(q, k, 4, 6, causal=True)):
        assert start[head].equals(same)
    causal = nsa.patterns.causal(120)
    before = nsa.analysis.recall(q, k, start, baseline=causal).mean()
    lessons = [predictor.lessons(*hidden_keys(seed), causal=True) for seed in (3, 10, 22)]
    losses = predictor.fit([lesson for (lesson,) in lessons])
    learned = dynamic.learned_blocks(q, k, predictor, 4, causal=True)
    after = nsa.analysis.recall(q, k, learned, baseline=causal).mean()
    assert np.mean(losses[-3:]) < np.mean(losses[:3]) - 0.05
    assert after > before + 0.1, "on a text that was not learned from"


def test_a_head_learns_as_if_there_was_no_other() -> None:
    q, k = arrays(0, 60, 60, kv_heads=4)
    order = [2, 0, 3, 1]

    def trained(heads: list[int]) -> BlockPredictor:
        predictor = BlockPredictor.create(WIDTH, 5, heads=len(heads), dtype=np.float64)
        predictor.fit(predictor.lessons(q[heads], k[heads], causal=True), steps=20)
        return predictor

    together, permuted, alone = trained([0, 1, 2, 3]), trained(order), trained([2])
    for name, value in together.parameters.items():
        np.testing.assert_allclose(permuted.parameters[name], value[order], rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(alone.parameters[name], value[2:3], rtol=1e-9, atol=1e-12)


def test_the_same_lessons_make_the_same_predictor() -> None:
    q, k = (array.astype(np.float32) for array in arrays(0, 60, 60))
    made = []
    for _ in range(2):
        predictor = BlockPredictor.create(WIDTH, 5)
        predictor.fit(predictor.lessons(q, k), steps=15)
        made.append(predictor)
    for name, value in made[0].parameters.items():
        assert value.dtype == np.float32 and value.shape[0] == 1
        np.testing.assert_array_equal(value, made[1].parameters[name])


@given(
    sizes=st.tuples(st.integers(1, 50), st.integers(1, 50)),
    blocks=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    share=st.floats(0.01, 1.0),
    first=st.integers(0, 2),
    local=st.integers(1, 3),
    causal=st.booleans(),
    seed=st.integers(0, 99),
)
def test_a_share_is_spent_to_less_than_a_block(sizes, blocks, share, first, local, causal, seed):
    q, k = arrays(seed, *sizes, heads=2, kv_heads=1)
    predictor = moved(seed, blocks[0], heads=1, query_block=blocks[1])
    always = {"first": first, "local": local, "causal": causal}
    forced = dynamic.learned_blocks(q, k, predictor, 1, **always) if first or causal else None
    seen = _dense.seen(*sizes, causal).sum()
    for head, pattern in enumerate(dynamic.learned_blocks(q, k, predictor, None, share=share, **always)):
        mask = pattern.toarray()
        assert mask.sum() == pattern.nnz and not (mask & ~_dense.seen(*sizes, causal)).any()
        budget = int(share * seen)
        over = pattern.nnz > budget
        if over:
            assert forced is not None and pattern.nnz <= forced[head].nnz
        elif pattern.nnz < seen:
            assert pattern.nnz + blocks[0] * blocks[1] > budget
        event("what is always in is more" if over else "everything" if mask.sum() == seen else "within")


@given(
    shares=st.tuples(st.floats(0.01, 1.0), st.floats(0.01, 1.0)),
    seed=st.integers(0, 99),
    causal=st.booleans(),
)
def test_a_larger_share_keeps_what_a_smaller_one_chose(shares, seed, causal):
    q, k = arrays(seed, 40, 33, heads=2)
    predictor = moved(seed, 4, heads=2)
    low, high = sorted(shares)
    small, large, mixed = (
        [p.toarray() for p in dynamic.learned_blocks(q, k, predictor, None, share=share, causal=causal)]
        for share in (low, high, [low, high])
    )
    assert all((less <= more).all() for less, more in zip(small, large, strict=True))
    np.testing.assert_array_equal(mixed[0], small[0])
    np.testing.assert_array_equal(mixed[1], large[1])


@given(order=st.permutations(range(HEADS)), seed=st.integers(0, 99), share=st.booleans())
def test_heads_in_another_order_choose_the_same(order, seed, share):
    q, k = arrays(seed, 30, 41, kv_heads=HEADS)
    predictor = moved(seed, 5)
    parameters = {name: value[order] for name, value in predictor.parameters.items()}
    permuted = BlockPredictor(parameters, 5)
    for name in predictor.parameters:
        assert not np.shares_memory(permuted.parameters[name], parameters[name])
    shares = [0.2, 0.4, 0.6, 0.8]

    def budget(heads: Any) -> Any:
        if share:
            return {"budget": None, "share": [shares[head] for head in heads]}
        return {"budget": [1 + head for head in heads]}

    straight = dynamic.learned_blocks(q, k, predictor, causal=True, **budget(range(HEADS)))
    other = dynamic.learned_blocks(q[order], k[order], permuted, causal=True, **budget(order))
    for at, head in enumerate(order):
        np.testing.assert_array_equal(other[at].toarray(), straight[head].toarray())


def test_the_first_and_the_latest_blocks_are_always_in() -> None:
    q, k = arrays(0, 60, 60)
    for arguments in ({"budget": 4}, {"budget": None, "share": 0.05}):
        made = dynamic.learned_blocks(q, k, moved(0, 6), **arguments, first=1, local=2, causal=True)
        inside = nsa.patterns.block_local(60, 6)
        for pattern in made:
            mask = pattern.toarray()
            assert mask[:, 0].all() and mask[inside.causal().toarray()].all()
            assert all(mask[row, row - 6] for row in range(6, 60))


def test_keys_that_are_not_numbers_come_last() -> None:
    q, k = arrays(0, 48, 48)
    k[:, 13] = np.nan
    for arguments in ({"budget": 3}, {"budget": None, "share": 0.3}):
        for pattern in dynamic.learned_blocks(q, k, moved(0, 6), **arguments, causal=True):
            assert not pattern.toarray()[18:, 12:18].any()
    predicted = moved(0, 6).predict(q, k, causal=True)
    assert np.isfinite(predicted).all() and not predicted[:, 3:, 2].any()


def test_files_hold_the_predictor(tmp_path: Path) -> None:
    predictor = moved(0, 6, query_block=2)
    predictor.save(tmp_path / "predictor")  # no ending is added
    same = BlockPredictor.load(tmp_path / "predictor")
    assert repr(same) == repr(predictor) == "BlockPredictor(heads=4, head_dim=6, block=6, query_block=2)"
    for name, value in predictor.parameters.items():
        np.testing.assert_array_equal(same.parameters[name], value)
        assert same.parameters[name].flags.writeable


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "predictor.npz"
    predictor = BlockPredictor.create(WIDTH, 6)
    predictor.save(path)
    with np.load(path) as file:
        good = dict(file)
    nsa.patterns.causal(4).save(tmp_path / "pattern.npz")
    with pytest.raises(nsa.FormatError, match="of kind 'none' with"):
        BlockPredictor.load(tmp_path / "pattern.npz")
    (tmp_path / "text.npz").write_text("words")
    with pytest.raises(nsa.FormatError, match="no readable"):
        BlockPredictor.load(tmp_path / "text.npz")
    (tmp_path / "short.npz").write_bytes(path.read_bytes()[:-60])
    with pytest.raises(nsa.FormatError, match="no readable"):
        BlockPredictor.load(tmp_path / "short.npz")
    np.save(tmp_path / "array.npz", np.zeros(3))
    (tmp_path / "array.npz.npy").rename(tmp_path / "array.npz")
    with pytest.raises(nsa.FormatError, match="no readable"):
        BlockPredictor.load(tmp_path / "array.npz")
    bad: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"kind": np.array("other")}, nsa.FormatError, "of kind 'other'"),
        ({"blocks": np.array([1.5, 2.0])}, nsa.FormatError, "sizes of blocks"),
        ({"blocks": np.array([6])}, nsa.FormatError, "1 sizes of blocks"),
        ({"blocks": np.array([0, 6])}, nsa.PatternError, "block=0"),
        ({"key_bias": good["key_bias"].astype(np.float64)}, nsa.FormatError, "key_bias float64"),
        ({"key_bias": good["key_bias"][:, :2]}, nsa.FormatError, r"key_bias float32 \(1, 2\)"),
        ({"more": np.zeros(2, np.float32)}, nsa.FormatError, "more float32"),
        ({"start": np.full((1, 1), np.nan, np.float32)}, nsa.FormatError, "not finite"),
        ({"start": np.array([[None]])}, nsa.FormatError, "no readable"),
    ]
    for change, error, words in bad:
        np.savez(path, **{**good, **change})
        with pytest.raises(error, match=words):
            BlockPredictor.load(path)
    del good["start"]
    np.savez(path, **good)
    with pytest.raises(nsa.FormatError, match="names and shapes"):
        BlockPredictor.load(path)


def test_refusals() -> None:
    q, k = arrays(0, 20, 20)
    predictor = BlockPredictor.create(WIDTH, 4, heads=3)
    with pytest.raises(nsa.ShapeError, match=r"4 query heads of 6 channels for BlockPredictor\(heads=3"):
        dynamic.learned_blocks(q, k, predictor, 2)
    with pytest.raises(nsa.ShapeError, match="any number of heads of 5 channels"):
        dynamic.learned_blocks(q, k, BlockPredictor.create(5, 4), 2)
    shared = BlockPredictor.create(WIDTH, 4)
    with pytest.raises(nsa.ArgumentError, match="budget=2 and share"):
        dynamic.learned_blocks(q, k, shared, 2, share=0.5)
    with pytest.raises(nsa.ArgumentError, match="budget=None and share=None"):
        dynamic.learned_blocks(q, k, shared, None)
    for share in (0.0, 1.5, np.nan, [0.5, 0.5, 0.5, 0.0]):
        with pytest.raises(nsa.ArgumentError, match="share="):
            dynamic.learned_blocks(q, k, shared, None, share=share)
    with pytest.raises(nsa.ArgumentError, match="predictor of type dict"):
        dynamic.learned_blocks(q, k, {}, 2)
    with pytest.raises(nsa.ArgumentError, match="no lessons"):
        shared.fit([])
    with pytest.raises(nsa.ArgumentError, match="q or k with NaN or infinity"):
        shared.lessons(q, np.where(k == k[0, 3, 1], np.inf, k))
    with pytest.raises(nsa.FormatError, match="parameters of a predictor none"):
        BlockPredictor({}, 4)
    with pytest.raises(nsa.PatternError, match="block=0"):
        BlockPredictor.create(WIDTH, 0)
