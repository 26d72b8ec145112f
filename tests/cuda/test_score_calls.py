"""Changed scores on their way to a GPU engine and back, without a GPU: numbers, room for gradients, sinks.

As in ``test_calls.py``, the engine is the oracle on memory that stands for the GPU's; kernels of sinks are
their twins on the host.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import numba_sparse_attn as nsa
from numba_sparse_attn import planner, scores
from numba_sparse_attn.cuda import calls, sinks, tile
from numba_sparse_attn.cuda import changes as device_side
from numba_sparse_attn.formats.work import Request
from numba_sparse_attn.reference_engine import ReferenceEngine
from numba_sparse_attn.scores.sink import sink_gradient, with_sink
from numba_sparse_attn.testing import DTYPES

from . import test_calls
from .test_calls import PATTERN, engine, on_gpu, random_arrays, seen

__all__ = ["engine"]

LOGITS = np.arange(4.0, dtype=np.float32)


@pytest.fixture
def scored(engine: test_calls.Engine, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The engine changes scores, and notes what it was handed."""
    made: list[Any] = []
    copy = device_side.device_changes

    def copied(changes: Any, *rest: Any, **settings: Any) -> Any:
        made.append((changes, copy(changes, *rest, **settings)))
        return made[-1][1]

    def forward(request: Any, q: Any, k: Any, v: Any, out: Any, lse: Any, changes: Any = None) -> None:
        assert changes is None or changes is made[-1][1]
        told = [] if changes is None else [made[-1][0]]
        results = [seen(out), np.empty(out.shape[:-1], request.accumulator) if lse is None else seen(lse)]
        ReferenceEngine().forward(request, seen(q), seen(k), seen(v), *results, *told)

    def backward(request: Any, *views: Any, changes: Any = None) -> None:
        # The oracle forms its own probabilities, and has to be told of the sink for that.
        told = {} if changes is None else {"changes": replace(made[-1][0], sink=LOGITS)}
        found = ReferenceEngine().backward(request, *map(seen, views), **told)
        for room, total in zip(changes.pairs if changes else (), found, strict=False):
            if room is not None:  # a bias for every head: its gradient is what pairs contribute
                np.frombuffer(room.owner.held, request.accumulator)[: total.size] = total

    monkeypatch.setattr(device_side, "device_changes", copied)
    monkeypatch.setattr(engine, "forward", forward)
    monkeypatch.setattr(engine, "backward", backward)
    monkeypatch.setattr(
        sinks, "add_sink", lambda out, lse, logits, stream: with_sink(seen(out), seen(lse), logits)
    )
    monkeypatch.setattr(
        sinks,
        "sink_gradient",
        lambda dout, out, lse, logits, stream: sink_gradient(seen(dout), seen(out), seen(lse), logits),
    )
    return made


@pytest.mark.parametrize("lead", [(), (2,)])
@pytest.mark.parametrize("place", ["host", "gpu"])
def test_results_and_gradients_are_those_of_the_host(
    scored: list[Any], place: str, lead: tuple[int, ...]
) -> None:
    q, k, v = random_arrays(lead)
    dout = 0.5 + q
    data = np.random.default_rng(0).standard_normal((*lead, 4, PATTERN.nnz)).astype(np.float32)
    change = (
        scores.alibi(4),
        scores.bias(data),
        scores.softcap(2.0),
        scores.sink(LOGITS),
    )
    expected, pullback = nsa.vjp(q, k, v, PATTERN, scores=change, engine="cpu")
    *gradients, learnt = pullback(dout)
    arrays = [q, k, v, dout] if place == "host" else on_gpu([q, k, v, dout])
    out, pullback = nsa.vjp(*arrays[:3], PATTERN, scores=change, engine="cuda-warp")
    *found, also_learnt = pullback(arrays[3])
    results = [out, *found] if place == "host" else [one.array for one in (out, *found)]
    for one, other in zip([expected, *gradients], results, strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-4, atol=1e-5)
    assert also_learnt[0] is None and also_learnt[2] is None
    np.testing.assert_allclose(also_learnt[1], learnt[1], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(also_learnt[3], learnt[3], rtol=1e-4, atol=1e-5)
    kinds = [made.kinds for _, made in scored]
    assert kinds == [
        (("alibi", False), ("bias", False), ("softcap",)),
        (("alibi", False), ("bias", True), ("softcap",)),
    ]


def test_the_tile_engine_says_who_takes_changes() -> None:
    pattern = nsa.patterns.causal(128)
    half = np.dtype(np.float16)
    settings = (np.zeros((1, 1), np.int32), 1, 1, 128, 128, 64, 64, half, 0.125)
    assert not tile.why_not(Request((pattern.tiles(),), *settings))
    assert not tile.why_not(Request((pattern.tiles(),), *settings, changed=("softcap", "alibi")))
    (reason,) = tile.why_not(Request((pattern.tiles(),), *settings, changed=("bias", "softcap")))
    assert reason.startswith("changes of scores (bias); the tile engine takes sinks, and alibi, softcap, ")
    wide = (np.zeros((1, 1), np.int32), 1, 1, 128, 128, 256, 64, half, 0.125)
    (reason,) = tile.why_not(Request((pattern.tiles(),), *wide, changed=("softcap",)))
    assert reason.startswith("changes of scores and head dimension 256; the tile engine takes up to 192")


@pytest.mark.parametrize(
    ("change", "dtype", "engine"),
    [
        (scores.alibi(4), "float16", "cuda-tile"),
        (scores.softcap(30.0), "bfloat16", "cuda-tile"),
        (scores.alibi(4), "float32", "cuda-warp"),
        (scores.alibi(4, learnable=True), "float16", "cuda-warp"),
        (scores.relative(np.zeros(9, np.float32)), "float16", "cuda-warp"),
        (scores.relative(np.zeros(9, np.float32), learnable=False), "float16", "cuda-tile"),
        (scores.bias(np.zeros(1000, np.float32), learnable=False), "float16", "cuda-warp"),
    ],
)
def test_the_planner_takes_tiles_where_nothing_is_learned(
    change: Any, dtype: str, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calls, "why_unavailable", lambda name, device: None)
    pattern = nsa.patterns.sliding_window(4096, 256)
    plan = planner.make_plan(
        pattern, heads=4, kv_heads=4, head_dim=64, value_dim=64, dtype=DTYPES[dtype], scale=0.125,
        engine="auto", gpu=0, order="auto", scores=(change,),
    )  # fmt: skip
    said = plan.explain()
    assert plan.engine == engine and "order natural: scores are changed pair by pair" in said
    if engine == "cuda-tile":
        assert f"changes of scores ({change.kind}): about" in said
    elif dtype == "float16":
        learned = "learned " if change.learnable else ""
        assert f"the tile engine cannot run this call: changes of scores ({learned}{change.kind})" in said
