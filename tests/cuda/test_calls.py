"""A call on its way to an engine and back, without a GPU: what is checked, remembered, made and given back.

The engine is the float64 oracle on NumPy memory that stands for the GPU's.
"""

from __future__ import annotations

import contextlib
import copy
import ctypes
import pickle
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import numba_sparse_attn as nsa
from numba_sparse_attn import arrays, planner
from numba_sparse_attn.cuda import calls, interchange, memory, staging, streams
from numba_sparse_attn.cuda.view import DeviceView
from numba_sparse_attn.reference_engine import ReferenceEngine

from . import fake_libraries as fake

FLOAT32 = np.dtype(np.float32)


def seen(view: DeviceView) -> np.ndarray:
    """The memory that a view stands for."""
    if not view.size:
        return np.empty(view.shape, view.dtype)
    low, high = view.extent()
    raw = (ctypes.c_uint8 * (high - low)).from_address(low)
    return np.ndarray(view.shape, view.dtype, raw, view.address - low, view.strides)


class Engine:
    """As an engine's module: the oracle, and the requests that it was given."""

    def __init__(self) -> None:
        self.beside_capture = 0
        self.first_calls: list[bool] = []
        self.requests: list[Any] = []
        self.backward_requests: list[Any] = []

    @staticmethod
    def why_not(request: Any) -> list[str]:
        return []

    def forward(self, request: Any, q: Any, k: Any, v: Any, out: Any, lse: Any) -> None:
        self.requests.append(request)
        self.first_calls.append(self.beside_capture > 0)
        assert all(view.ndim >= 3 for view in (q, k, v, out)) and (lse is None or lse.ndim >= 2)
        results = [seen(out), np.empty(out.shape[:-1], request.accumulator) if lse is None else seen(lse)]
        ReferenceEngine().forward(request, seen(q), seen(k), seen(v), *results)

    def backward(self, request: Any, *views: Any) -> None:
        self.backward_requests.append(request)
        self.first_calls.append(self.beside_capture > 0)
        assert len(views) == 9
        ReferenceEngine().backward(request, *map(seen, views))


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    """PyTorch on stream 70; `cuda-warp` is the oracle, and copies to the GPU are copies."""
    engine = Engine()

    @contextlib.contextmanager
    def on_device(device: int) -> Iterator[None]:
        yield

    def to_device(array: np.ndarray, device: int, stream: int) -> DeviceView:
        held = np.array(array, order="C")
        return DeviceView(held.ctypes.data, held.shape, held.strides, held.dtype, 0, stream, "other", held)

    def from_pool(nbytes: int, device: int, stream: int) -> Any:
        held = np.empty(max(nbytes, 1), np.uint8)
        return SimpleNamespace(handle=held.ctypes.data, held=held)

    @contextlib.contextmanager
    def beside_capture() -> Iterator[None]:
        engine.beside_capture += 1
        yield
        engine.beside_capture -= 1

    monkeypatch.setitem(sys.modules, "torch", fake.torch_module({0: 70}))
    monkeypatch.setattr(interchange, "_require_cuda", lambda: None)
    monkeypatch.setattr(streams, "on_device", on_device)
    monkeypatch.setattr(streams, "beside_capture", beside_capture)
    monkeypatch.setattr(streams, "own_stream", lambda device: 90)
    monkeypatch.setattr(streams, "is_capturing", lambda handle: False)
    monkeypatch.setattr(staging, "to_device", to_device)
    monkeypatch.setattr(staging, "to_host", lambda view, array, stream: np.copyto(array, seen(view)))
    monkeypatch.setattr(memory, "_PoolMemory", from_pool)
    engines = planner._engine
    monkeypatch.setattr(planner, "_engine", lambda name: engine if name == "cuda-warp" else engines(name))
    monkeypatch.setattr(
        calls, "why_unavailable", lambda name, device: None if name == "cuda-warp" else "not here"
    )
    cached = (interchange._torch_stream, memory._torch_dtype, memory._torch_device)
    for function in cached:
        function.cache_clear()
    yield engine
    for function in cached:
        function.cache_clear()
    interchange._READERS.clear()
    interchange._READERS[np.ndarray] = interchange._host


PATTERN = nsa.patterns.sliding_window(12, 3)


def make_plan(**changes: Any) -> nsa.Plan:
    return nsa.plan(PATTERN, **{"heads": 4, "kv_heads": 2, "head_dim": 8, "device": "cuda", **changes})


def random_arrays(lead: tuple[int, ...] = (), dtype: Any = np.float32) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.standard_normal((*lead, heads, 12, 8)).astype(dtype) for heads in (4, 2, 2)]


def on_gpu(values: list[np.ndarray]) -> list[Any]:
    return [fake.Tensor(value) for value in values]


def test_results_are_right_and_of_the_callers_kind(engine: Engine) -> None:
    host = random_arrays((3,))
    expected, expected_lse = nsa.sparse_attention(*host, PATTERN, engine="reference", return_lse=True)
    plan = make_plan()
    tensors = on_gpu(host)
    out, lse = plan(*tensors, return_lse=True)
    assert isinstance(out, fake.Tensor) and isinstance(lse, fake.Tensor)
    np.testing.assert_allclose(out.array, expected, rtol=1e-6)
    np.testing.assert_allclose(lse.array, expected_lse, rtol=1e-6)
    gradients = plan.backward(out, *tensors, out, lse)
    wanted = nsa.sparse_attention_backward(
        expected, *host, expected, expected_lse, PATTERN, engine="reference"
    )
    for gradient, want in zip(gradients, wanted, strict=True):
        np.testing.assert_allclose(gradient.array, want, rtol=1e-4, atol=1e-6)
    target = fake.Tensor(np.full((3, 4, 12, 8), np.nan, np.float32))
    assert plan(*tensors, out=target) is target and target.versions == 1
    np.testing.assert_allclose(target.array, expected, rtol=1e-6)


def test_flat_arrays(engine: Engine) -> None:
    q, k, v = (array[0] for array in random_arrays())
    plan = make_plan(heads=1, kv_heads=1)
    out, lse = plan(*on_gpu([q, k, v]), return_lse=True)
    assert out.shape == (12, 8) and lse.shape == (12,)
    np.testing.assert_allclose(
        out.array, nsa.sparse_attention(q, k, v, PATTERN, engine="reference"), rtol=1e-6
    )
    dq, dk, dv = plan.backward(out, *on_gpu([q, k, v]), out, lse)
    assert dq.shape == dk.shape == dv.shape == (12, 8)


def test_a_repeated_call_checks_nothing_again(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = make_plan()
    tensors = on_gpu(random_arrays((2,)))
    out, lse = plan(*tensors, return_lse=True)
    plan.backward(out, *tensors, out, lse)
    monkeypatch.setattr(arrays, "check_arrays", lambda *arrays: pytest.fail("checked again"))
    again, lse = plan(*on_gpu(random_arrays((2,))), return_lse=True)
    plan.backward(again, *tensors, again, lse)
    requests = engine.requests + engine.backward_requests
    assert len(requests) == 4 and len({id(request) for request in requests}) == 1
    # What an engine prepares when it first meets a request may be prepared while a graph is captured.
    assert engine.first_calls == [True, True, False, False]


def test_what_is_refused_is_refused_again(engine: Engine) -> None:
    plan = make_plan()
    q, k, v = on_gpu(random_arrays())
    wide = fake.Tensor(np.zeros((4, 12, 9), np.float32))
    for _ in range(2):
        with pytest.raises(nsa.ShapeError, match="one head dimension"):
            plan(wide, k, v)
        with pytest.raises(nsa.ShapeError, match="the pattern and plan have 4"):
            plan(k, k, v)
        with pytest.raises(nsa.ShapeError, match="dout with shape"):
            plan.backward(wide, q, k, v, q, q)
        with pytest.raises(nsa.DtypeError, match="lse of type"):
            half = fake.Tensor(np.zeros((4, 12), np.float16))
            plan.backward(q, q, k, v, q, half)
    assert engine.requests == []


def test_host_arrays_are_refused_before_anything_is_copied(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(staging, "to_device", lambda *arguments: pytest.fail("copied"))
    plan = make_plan()
    q, k, v = random_arrays()
    with pytest.raises(nsa.DtypeError):
        plan(q.astype(int), k, v)
    with pytest.raises(nsa.ShapeError, match="queries"):
        plan(q[:, :5], k, v)
    with pytest.raises(nsa.ShapeError, match="overlaps"):
        plan(q, k, v, out=q)
    with pytest.raises(nsa.ShapeError, match="out with shape"):
        plan(q, k, v, out=np.empty((4, 12, 7), np.float32))
    with pytest.raises(nsa.ShapeError, match="lse with shape"):
        plan.backward(q, q, k, v, q, np.zeros((4, 11), np.float32))


def test_host_arrays_come_back_as_host_arrays(engine: Engine) -> None:
    host = random_arrays((2,))
    plan = make_plan()
    out, lse = plan(*host, return_lse=True)
    expected = nsa.sparse_attention(*host, PATTERN, engine="reference")
    np.testing.assert_allclose(out, expected, rtol=1e-6)
    target = np.full((2, 4, 12, 16), np.nan, np.float32)[..., ::2]
    assert plan(*host, out=target) is target
    np.testing.assert_array_equal(target, out)
    gradients = plan.backward(out, *host, out, lse)
    assert [type(gradient) for gradient in gradients] == [np.ndarray] * 3


@pytest.mark.parametrize(("n_q", "n_k"), [(0, 12), (12, 0), (0, 0)])
def test_nothing_to_attend(engine: Engine, n_q: int, n_k: int) -> None:
    plan = nsa.plan(np.ones((n_q, n_k), bool), heads=4, kv_heads=2, head_dim=8, device="cuda")
    tensors = on_gpu([np.ones((4, n_q, 8), np.float32), *[np.ones((2, n_k, 8), np.float32)] * 2])
    out, lse = plan(*tensors, return_lse=True)
    assert out.shape == (4, n_q, 8) and (out.array == 0).all() and (lse.array == -np.inf).all()
    assert len(engine.requests) == (n_q > 0)
    for gradient, tensor in zip(plan.backward(out, *tensors, out, lse), tensors, strict=True):
        assert gradient.shape == tensor.shape and (gradient.array == 0).all()


def test_an_empty_batch_launches_nothing(engine: Engine) -> None:
    plan = make_plan()
    tensors = on_gpu(random_arrays((0, 3)))
    out, lse = plan(*tensors, return_lse=True)
    assert out.shape == (0, 3, 4, 12, 8) and lse.shape == (0, 3, 4, 12)
    plan.backward(out, *tensors, out, lse)
    assert engine.requests == engine.backward_requests == []


class TestRequests:
    """What a plan remembers of its calls."""

    @staticmethod
    def dimensions(batch: int) -> arrays.Dimensions:
        return arrays.Dimensions((batch,), 4, 2, 12, 12, 8, 8, FLOAT32, False)

    def test_equal_sizes_have_one_request(self, engine: Engine) -> None:
        plan = make_plan()
        first = plan._request(self.dimensions(3))
        first.memo["launch"] = "prepared"
        assert plan._request(self.dimensions(3)) is first
        assert plan._request(self.dimensions(4)) is not first
        assert make_plan() is plan and make_plan(scale=2.0)._request(self.dimensions(3)) is not first

    def test_only_so_many_are_kept(self, engine: Engine) -> None:
        plan = make_plan()
        for batch in range(3 * planner._REQUESTS_KEPT):
            assert plan._request(self.dimensions(batch)).batch == batch
            assert len(plan._requests) <= planner._REQUESTS_KEPT

    def test_threads_share_one_request(self, engine: Engine) -> None:
        plan = make_plan()
        start = threading.Barrier(8)
        found = []

        def work() -> None:
            start.wait()
            found.append(plan._request(self.dimensions(5)))

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len({id(request) for request in found}) == 1

    def test_copies_start_without_memory(self, engine: Engine) -> None:
        """What an engine keeps are addresses and loaded kernels: of no use to others, and no pickle."""
        plan = make_plan()
        request = plan._request(self.dimensions(2))
        request.memo["lock"] = threading.Lock()
        assert replace(request, scale=2.0).memo == {}
        for other in (pickle.loads(pickle.dumps(plan)), copy.deepcopy(plan), replace(plan, scale=2.0)):
            assert other._requests == {} and other._request(self.dimensions(2)).memo == {}
        assert plan._request(self.dimensions(2)) is request
