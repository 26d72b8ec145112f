"""Which path a pattern takes on a GPU, and that a plan says so and is made once; no GPU is needed to plan."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest

import numba_sparse_attn as nsa
from numba_sparse_attn import choices, patterns
from numba_sparse_attn.choices import Kind, predict_gpu
from numba_sparse_attn.cuda import calls
from numba_sparse_attn.formats import Csr, Tiles

pytest.importorskip("numba_cuda", reason="numba-cuda is not installed")

CALL = {"heads": 8, "head_dim": 128, "dtype": "float16", "device": "cuda"}


@pytest.fixture
def hopper(monkeypatch):
    """A machine whose GPU can run every engine."""
    monkeypatch.setattr(calls, "why_unavailable", lambda name, device: None)


@pytest.fixture
def older(monkeypatch):
    monkeypatch.setattr(
        calls, "why_unavailable", lambda name, device: "it is old" if name == "cuda-tile" else None
    )


DENSE = {
    "window": lambda: patterns.sliding_window(8192, 256),
    "causal": lambda: patterns.causal(4096),
    "bigbird": lambda: patterns.bigbird(
        8192, block=64, window_blocks=1, global_blocks=1, random_blocks=2, seed=0
    ),
}
SCATTERED = {
    "random keys": lambda: patterns.random_keys(8192, per_query=16, seed=0),
    "mesh": lambda: patterns.neighborhood((96, 96), kernel=3),
}


@pytest.mark.parametrize("name", DENSE)
def test_tiles_that_are_full_go_to_tensor_cores(hopper, name):
    plan = nsa.plan(DENSE[name](), **CALL)
    assert plan.engine == "cuda-tile" and isinstance(plan._choices[0].structure, Tiles)
    assert plan.explain().startswith("engine cuda-tile: whole tiles")
    workspace = 8 * CALL["heads"] * len(plan.pattern.rows().indptr[:-1])
    assert f"a workspace of {workspace} bytes a batch element" in plan.explain()


@pytest.mark.parametrize("name", SCATTERED)
def test_scattered_pairs_go_to_warps(hopper, name):
    pattern = SCATTERED[name]()
    plan = nsa.plan(pattern, **CALL)
    assert plan.engine == "cuda-warp" and isinstance(plan._choices[0].structure, Csr)
    assert "single pairs cost less" in plan.explain() and "fill" in plan.explain()
    if not pattern.regular:
        assert "_tiles" not in pattern.__dict__  # what is not used is not built


@pytest.mark.parametrize(
    "changes", [{"dtype": "float32"}, {"dtype": "float64"}, {"head_dim": 320}, {"value_dim": 512}]
)
def test_what_tiles_cannot_do_goes_to_warps(hopper, changes):
    plan = nsa.plan(patterns.causal(512), **(CALL | changes))
    assert plan.engine == "cuda-warp" and "the tile engine cannot run this call" in plan.explain()


def test_an_older_gpu_has_warps(older):
    plan = nsa.plan(patterns.causal(512), **CALL)
    assert plan.engine == "cuda-warp" and "it is old" in plan.explain()
    with pytest.raises(nsa.EngineError, match="it is old"):
        nsa.plan(patterns.causal(512), **CALL, engine="cuda-tile")


@pytest.mark.parametrize("windows", [0, 1, 7])
def test_the_sum_over_heads_decides(hopper, windows):
    window, scattered = DENSE["window"](), SCATTERED["random keys"]()
    tiles, rows = 0.0, 0.0
    for pattern, heads in ((window, windows), (scattered, 8 - windows)):
        if heads:
            _, by_tiles, by_rows = predict_gpu(pattern, Kind(heads, 128, 128, np.dtype(np.float16)))
            tiles, rows = tiles + by_tiles, rows + by_rows
    plan = nsa.plan([window] * windows + [scattered] * (8 - windows), **CALL)
    assert plan.engine == ("cuda-tile" if tiles <= rows else "cuda-warp")
    assert (plan.engine == "cuda-tile") == (windows == 7)


def test_a_prediction_grows_with_the_work():
    kind = Kind(8, 128, 128, np.dtype(np.float16))
    windows = [predict_gpu(patterns.sliding_window(4096, width), kind) for width in (64, 256, 1024)]
    for number in (1, 2):
        assert sorted(entry[number] for entry in windows) == [entry[number] for entry in windows]
    for wider in (Kind(64, 128, 128, kind.dtype), Kind(8, 256, 256, kind.dtype)):
        other = predict_gpu(patterns.sliding_window(4096, 256), wider)
        assert other[1] > windows[1][1] and other[2] > windows[1][2]


def test_a_plan_is_kept_with_its_pattern(hopper, monkeypatch):
    pattern = DENSE["window"]()
    plan = nsa.plan(pattern, **CALL)
    assert nsa.plan(pattern, **CALL) is plan
    assert nsa.plan(pattern, **(CALL | {"heads": 4})) is not plan
    assert nsa.plan(pattern, **(CALL | {"device": "cuda:1"})) is not plan
    assert nsa.plan(DENSE["window"](), **CALL) is not plan
    monkeypatch.setenv("NSA_ENGINE", "cuda-warp")
    assert nsa.plan(pattern, **CALL).engine == "cuda-warp"
    monkeypatch.delenv("NSA_ENGINE")
    for other in (pickle.loads(pickle.dumps(pattern)), copy.deepcopy(pattern)):
        assert other.memo == {} and nsa.plan(other, **CALL).engine == "cuda-tile"


def test_a_pattern_keeps_only_so_many_plans():
    pattern = patterns.causal(64)
    for heads in range(1, 100):
        nsa.plan(pattern, heads=heads, head_dim=8)
    assert 0 < len(pattern.memo) <= 32


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:x", "cuda0", 0])
def test_devices_have_names(device):
    with pytest.raises(nsa.ArgumentError, match="say where the arrays lie"):
        nsa.plan(patterns.causal(64), heads=1, head_dim=8, device=device)


def test_rates_are_there_for_every_type_and_padded_dimension():
    for name, size in (("float16", 2), ("float32", 4), ("float64", 8)):
        assert np.dtype(name).itemsize == size and size in choices._STAGED_RATES
    for head_dim in (1, 64, 65, 192, 256, 512):
        predict_gpu(patterns.causal(64), Kind(1, head_dim, head_dim, np.dtype(np.float16)))
