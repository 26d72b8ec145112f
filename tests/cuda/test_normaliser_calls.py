"""Other normalisers on their way to an engine and back, without a GPU: see ``test_calls.py``."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import numba_sparse_attn as nsa
from numba_sparse_attn.cuda import plus_one
from numba_sparse_attn.normalisers.softmax_plus_one import add_one
from numba_sparse_attn.reference_engine import ReferenceEngine

from ..normaliser_cases import NORMALISERS, learned
from . import fake_libraries as fake
from .test_calls import PATTERN, Engine, engine, make_plan, on_gpu, random_arrays, seen

__all__ = ["engine"]  # the fixture


def test_one_is_added_to_what_the_engine_has_made(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine computes softmax; out and lse are changed afterwards, also where nobody asked for lse."""
    forward = Engine.forward

    def softmax(self: Engine, request: Any, *views: Any) -> None:
        forward(self, replace(request, normaliser=None), *views)

    monkeypatch.setattr(Engine, "forward", softmax)
    monkeypatch.setattr(plus_one, "add_one", lambda request, out, lse: add_one(seen(out), seen(lse)))
    normaliser = NORMALISERS["softmax_plus_one"]
    plan = make_plan(normaliser=normaliser)
    for lead in ((), (3,)):
        host = random_arrays(lead)
        settings: dict[str, Any] = {"normaliser": normaliser, "engine": "reference", "return_lse": True}
        expected = nsa.sparse_attention(*host, PATTERN, **settings)
        for given in (host, on_gpu(host)):
            out, lse = plan(*given, return_lse=True)
            alone = plan(*given)
            for found, want in ((out, expected[0]), (lse, expected[1]), (alone, expected[0])):
                array = found.array if isinstance(found, fake.Tensor) else found
                np.testing.assert_allclose(array, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("strided", [False, True])
def test_rows_are_found_by_their_strides(strided: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Axes that one stride reaches are one launch, others one each; every row has its lse."""
    from numba_sparse_attn.cuda.view import DeviceView

    launched: list[tuple[int, ...]] = []
    monkeypatch.setattr(plus_one, "load_kernel", lambda *arguments: None)
    monkeypatch.setattr(plus_one.streams, "stream_object", lambda *arguments: None)
    monkeypatch.setattr(
        plus_one, "launch", lambda kernel, grid, threads, stream, arguments: launched.append(arguments)
    )
    out = np.zeros((2, 3, 4, 5, 8), np.float32)
    if strided:
        out = np.zeros((3, 2, 4, 5, 8), np.float32).swapaxes(0, 1)
    lse = np.zeros(out.shape[:-1], np.float32)

    def view(array: np.ndarray) -> DeviceView:
        return DeviceView(array.ctypes.data, array.shape, array.strides, array.dtype, 0, 0, "other", array)

    request = make_request(n_q=5, value_dim=8)
    plus_one.add_one(request, view(out), view(lse))
    found = set()
    for address, lse_address, rows, n_q, value_dim, head, row, column in launched:
        assert (n_q, value_dim, column) == (5, 8, 4)
        for item in range(rows):
            place = address + item // n_q * head + item % n_q * row
            found.add((place - out.ctypes.data, (lse_address - lse.ctypes.data) // 4 + item))
    expected = {
        (int(np.dot(place, out.strides[:-1])), number)
        for number, place in enumerate(np.ndindex(out.shape[:-1]))
    }
    assert found == expected
    assert len(launched) == (6 if strided else 1)


def make_request(*, n_q: int, value_dim: int) -> Any:
    plan = nsa.plan(nsa.patterns.full(n_q), heads=4, head_dim=8, value_dim=value_dim)
    q = np.zeros((2, 3, 4, n_q, 8), np.float32)
    from numba_sparse_attn import arrays

    return plan._request(arrays.check_arrays(q, q, q[..., :value_dim]))


@pytest.mark.parametrize("lead", [(), (3,)])
def test_the_gradient_of_alpha_is_a_fourth_result(
    engine: Engine, lead: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    def backward(self: Engine, request: Any, *views: Any, dalpha: Any) -> None:
        assert len(views) == 9
        ReferenceEngine().backward(request, *map(seen, views), seen(dalpha))

    monkeypatch.setattr(Engine, "backward", backward)
    plan = make_plan(normaliser=learned(4))
    host = random_arrays(lead)
    settings: dict[str, Any] = {"normaliser": learned(4), "engine": "reference"}
    out, lse = nsa.sparse_attention(*host, PATTERN, return_lse=True, **settings)
    expected = nsa.sparse_attention_backward(out, *host, out, lse, PATTERN, **settings)
    found = plan.backward(out, *host, out, lse)
    tensors = on_gpu([out, *host, out, lse])
    on_device = plan.backward(*tensors)
    assert len(found) == len(on_device) == len(expected) == 4
    for one, other, want in zip(found, on_device, expected, strict=True):
        np.testing.assert_allclose(one, want, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(other.array, want, rtol=1e-5, atol=1e-6)
