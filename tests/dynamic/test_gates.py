"""Gates on blocks: soft ones against differences, hard ones against the choice, both through attention."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import event, given
from hypothesis import strategies as st

import numba_sparse_attn as nsa
from numba_sparse_attn import dynamic

from .test_learned import HEADS, WIDTH, arrays, assert_gradients, differences, moved

SIZES = [(40, 40, None), (23, 50, 3), (50, 23, 1)]
by_size = pytest.mark.parametrize(("n_q", "n_k", "query_block"), SIZES)


def gated_attention(q: Any, k: Any, v: Any, gates: Any, block: int, query_block: int, causal: bool) -> Any:
    """Out and lse with a gate a pair, in n x n arrays; a query without keys gives 0 and -inf."""
    n_q, n_k = q.shape[1], k.shape[1]
    wide = np.repeat(np.repeat(gates, query_block, axis=1)[:, :n_q], block, axis=2)[:, :, :n_k]
    wide = wide * (np.tri(n_q, n_k, n_k - n_q) if causal else 1.0)
    keys, values = (np.repeat(array, len(q) // len(array), axis=0) for array in (k, v))
    weights = wide * np.exp(q @ keys.swapaxes(1, 2) / np.sqrt(q.shape[2]))
    totals = weights.sum(axis=2, keepdims=True)
    out = np.divide(weights @ values, totals, out=np.zeros((*q.shape[:2], v.shape[2])), where=totals > 0.0)
    return out, np.log(totals[..., 0], out=np.full(q.shape[:2], -np.inf), where=totals[..., 0] > 0.0)


@given(
    sizes=st.tuples(st.integers(1, 40), st.integers(0, 40)),
    blocks=st.tuples(st.integers(1, 7), st.integers(1, 7)),
    budget=st.integers(1, 7),
    always=st.tuples(st.integers(0, 2), st.integers(1, 2)),
    causal=st.booleans(),
    seed=st.integers(0, 99),
)
def test_hard_gates_are_the_choice_and_soft_ones_are_near(sizes, blocks, budget, always, causal, seed):
    q, k = arrays(seed, *sizes, heads=2)
    predictor = moved(seed, blocks[0], heads=1, query_block=blocks[1])
    options = {"first": always[0], "local": always[1], "causal": causal}
    hard = dynamic.block_gates(q, k, predictor, budget, **options)
    chosen = dynamic.learned_blocks(q, k, predictor, budget, **options)
    soft = dynamic.block_gates(q, k, predictor, budget, hard=False, **options)
    cold = dynamic.block_gates(q, k, predictor, budget, hard=False, temperature=1e-9, **options)
    assert ((hard.values == 0.0) | (hard.values == 1.0)).all()
    np.testing.assert_array_equal(soft.values > 0.5, hard.values == 1.0)
    np.testing.assert_allclose(cold.values, hard.values, atol=1e-6)
    wide = np.repeat(np.repeat(hard.values, blocks[1], axis=1)[:, : sizes[0]], blocks[0], axis=2)
    wide = wide[:, :, : sizes[1]] * (np.tri(*sizes, sizes[1] - sizes[0]) if causal else 1.0)
    for head in range(2):
        assert hard.pattern[head].equals(chosen[head])
        np.testing.assert_array_equal(wide[head], chosen[head].toarray())
    event("some are open a little" if (soft.values % 1.0).any() else "no choice")


@by_size
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("heads", [1, HEADS])
def test_gradients_through_soft_gates_are_slopes(
    n_q: int, n_k: int, query_block: int | None, causal: bool, heads: int
) -> None:
    predictor = moved(1, 5, heads=heads, query_block=query_block)
    q, k = arrays(2, n_q, n_k)
    arguments = {"temperature": 0.7, "hard": False, "causal": causal}
    gates = dynamic.block_gates(q, k, predictor, [2, 3, 3, 4], **arguments)
    weight = np.cos(np.arange(gates.values.size)).reshape(gates.values.shape)

    def loss() -> float:
        return float((weight * dynamic.block_gates(q, k, predictor, [2, 3, 3, 4], **arguments).values).sum())

    assert_gradients(gates.pullback(weight), differences(loss, predictor.parameters))
    straight = dynamic.block_gates(q, k, predictor, [2, 3, 3, 4], temperature=0.7, causal=causal)
    for name, gradient in straight.pullback(weight).items():
        np.testing.assert_array_equal(gradient, gates.pullback(weight)[name])


@by_size
@pytest.mark.parametrize("causal", [False, True])
def test_gradients_of_gates_are_slopes_of_gated_attention(
    n_q: int, n_k: int, query_block: int | None, causal: bool
) -> None:
    """With gates between 0 and 1, and with those of a pattern, on attention that the engine computed."""
    block, rows = 5, query_block or 5
    q, k = arrays(3, n_q, n_k)
    v, dout = np.sin(k[..., :4]), np.cos(q[..., :4])
    predictor = moved(4, block, query_block=query_block)
    hard = dynamic.block_gates(q, k, predictor, 2, causal=causal)
    out, lse = nsa.sparse_attention(q, k, v, hard.pattern, return_lse=True)
    dense = gated_attention(q, k, v, hard.values, block, rows, causal)
    np.testing.assert_allclose(out, dense[0], atol=1e-12)
    soft = np.abs(np.sin(1.0 + np.arange(hard.values.size))).reshape(hard.values.shape)
    for gates, result, sums in (
        (hard.values, out, lse),
        (soft, *gated_attention(q, k, v, soft, block, rows, causal)),
    ):
        found = dynamic.gate_gradients(
            dout, q, k, v, result, sums, block, query_block=query_block, causal=causal
        )

        def loss(gates: Any = gates) -> float:
            return float((dout * gated_attention(q, k, v, gates, block, rows, causal)[0]).sum())

        assert_gradients({"gates": found}, differences(loss, {"gates": gates}))


def test_the_way_from_a_loss_to_the_parameters() -> None:
    """All of it at once, through soft gates."""
    q, k = arrays(5, 30, 30)
    v, goal = np.sin(k), np.cos(q)
    predictor = moved(6, 5)

    def forward() -> Any:
        gates = dynamic.block_gates(q, k, predictor, 3, hard=False, causal=True)
        return gates, *gated_attention(q, k, v, gates.values, 5, 5, True)

    gates, out, lse = forward()
    dgates = dynamic.gate_gradients(out - goal, q, k, v, out, lse, 5, causal=True)
    slopes = differences(lambda: float(0.5 * ((forward()[1] - goal) ** 2).sum()), predictor.parameters)
    assert_gradients(gates.pullback(dgates), slopes)


def test_fine_tuning_brings_outputs_nearer_to_those_of_dense_attention() -> None:
    q, k = arrays(7, 96, 96)
    v = np.random.default_rng(0).standard_normal(k.shape)
    predictor = dynamic.BlockPredictor.create(WIDTH, 6, heads=HEADS, dtype=np.float64)
    adam = dynamic.Adam(predictor.parameters)
    dense = nsa.sparse_attention(q, k, v, nsa.patterns.causal(96))
    losses = []
    for _ in range(60):
        gates = dynamic.block_gates(q, k, predictor, 4, causal=True)
        out, lse = nsa.sparse_attention(q, k, v, gates.pattern, return_lse=True)
        dout = out - dense
        losses.append(float((dout**2).sum()))
        adam.step(gates.pullback(dynamic.gate_gradients(dout, q, k, v, out, lse, 6, causal=True)), 3e-3)
    assert np.mean(losses[-10:]) < 0.9 * losses[0]


def test_blocks_that_outweigh_the_chosen_ones_by_far_have_finite_gradients() -> None:
    q, k = np.full((8, WIDTH), 20.0, np.float32), np.zeros((8, WIDTH), np.float32)
    k[0] = 20.0  # 980 nats above all others
    v = np.sin(np.arange(8.0, dtype=np.float32))[:, None]
    out, lse = nsa.sparse_attention(q, k, v, nsa.patterns.sliding_window(8, 0), return_lse=True)
    found = dynamic.gate_gradients(np.ones_like(out), q, k, v, out, lse, 2)
    assert np.isfinite(found).all() and (np.abs(found[1:, 0]) > 1e18).all()


def test_half_precision_and_batches() -> None:
    q, k = arrays(8, 32, 32)
    v = np.sin(k)
    predictor = moved(9, 4, heads=1)
    batch = [np.stack([array, array[::-1]]).astype(np.float16) for array in (q, k, v)]
    gates = dynamic.block_gates(*batch[:2], predictor, 3, causal=True)
    assert gates.values.shape == (2, HEADS, 8, 8) and gates.values.dtype == np.float32
    out, lse = nsa.sparse_attention(*batch, gates.pattern, return_lse=True)
    dgates = dynamic.gate_gradients(out, *batch, out, lse, 4, causal=True)
    alone = dynamic.gate_gradients(out[1], *(array[1] for array in batch), out[1], lse[1], 4, causal=True)
    np.testing.assert_array_equal(dgates[1], alone)
    both = gates.pullback(dgates)
    parts = [
        dynamic.block_gates(batch[0][at], batch[1][at], predictor, 3, causal=True).pullback(dgates[at])
        for at in range(2)
    ]
    for name, gradient in both.items():
        np.testing.assert_allclose(gradient, parts[0][name] + parts[1][name], rtol=1e-6, atol=1e-9)


def test_keys_that_are_not_numbers_move_nothing() -> None:
    """One key of NaN: its block is not chosen while there are others, and spoils no gradient."""
    q, k = arrays(0, 48, 48)
    k[:, 13] = np.nan
    predictor = moved(0, 6)
    gates = dynamic.block_gates(q, k, predictor, 3, hard=False, causal=True)
    assert np.isfinite(gates.values).all() and not gates.values[:, 5:, 2].any()
    # With room for all but one, that one is the block of NaN: there is no threshold.
    full = dynamic.block_gates(q, k, predictor, 7, hard=False, causal=True)
    assert set(np.unique(full.values[:, 7])) == {0.0, 1.0}
    for made in (gates, full):
        gradients = made.pullback(np.ones_like(made.values) / (1.0 + made.values))
        assert all(np.isfinite(gradient).all() for gradient in gradients.values())
        assert gradients["query_weight"].any() == (made is gates)
    hard = dynamic.block_gates(q, k, predictor, 3, causal=True)
    v = np.where(np.isnan(k), np.nan, np.cos(q[:2]))
    chosen = hard.pattern - nsa.patterns.global_tokens(48, [13])
    out, lse = nsa.sparse_attention(q, k, v, chosen, return_lse=True)
    dgates = dynamic.gate_gradients(np.cos(out), q, k, v, out, lse, 6, causal=True)
    assert np.isnan(dgates[:, 2:, 2]).all()
    assert all(np.isfinite(gradient).all() for gradient in hard.pullback(dgates).values())


def test_refusals() -> None:
    q, k = arrays(0, 20, 20)
    predictor = moved(0, 4)
    with pytest.raises(nsa.ArgumentError, match="temperature=0"):
        dynamic.block_gates(q, k, predictor, 2, temperature=0.0)
    with pytest.raises(nsa.PatternError, match="hard=1"):
        dynamic.block_gates(q, k, predictor, 2, hard=1)
    gates = dynamic.block_gates(q, k, predictor, 2)
    with pytest.raises(nsa.ShapeError, match="pass that of the values"):
        gates.pullback(np.zeros((HEADS, 5, 4)))
    out, lse = nsa.sparse_attention(q, k, k, gates.pattern, return_lse=True)
    with pytest.raises(nsa.ShapeError, match="dout with shape"):
        dynamic.gate_gradients(out[..., :1], q, k, k, out, lse, 4)
    with pytest.raises(nsa.ShapeError, match="lse with shape"):
        dynamic.gate_gradients(out, q, k, k, out, lse[..., None], 4)
