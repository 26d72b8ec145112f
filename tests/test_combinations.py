"""What a call may ask for at once: an order of tokens, changes of scores, another normaliser."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import numba_sparse_attn as nsa
from numba_sparse_attn.errors import EngineError

N = 96
PATTERN = nsa.patterns.dilated_window(N, 9, 4)
BACKWARDS = np.arange(N)[::-1].copy()
ORDER = (BACKWARDS, np.roll(BACKWARDS, 5))


def results(**settings: Any) -> list[Any]:
    q, k, v, dout = np.random.default_rng(0).standard_normal((4, 2, N, 16))
    out, pullback = nsa.vjp(q, k, v, PATTERN, **settings)
    dq, dk, dv, *learnt = pullback(dout)
    return [out, dq, dk, dv, *(learnt[0] if learnt else ())]


@pytest.mark.parametrize(
    "settings",
    [
        {"scores": nsa.scores.sink(np.array([0.3, -1.0]))},
        {"normaliser": nsa.normalisers.softmax_plus_one()},
    ],
    ids=["sink", "plus one"],
)
def test_what_only_rescales_rows_works_in_any_order(settings: dict[str, Any]) -> None:
    natural, ordered = results(**settings, order=None), results(**settings, order=ORDER)
    plain = results(order=None)
    assert np.abs(natural[0] - plain[0]).max() > 1e-3
    for one, other in zip(natural, ordered, strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    "settings",
    [{"scores": nsa.scores.softcap(3.0)}, {"normaliser": nsa.normalisers.sparsemax()}],
    ids=["changed scores", "sparsemax"],
)
def test_what_goes_by_rows_keeps_the_natural_order(settings: dict[str, Any]) -> None:
    plan = nsa.plan(PATTERN, heads=2, head_dim=16, **settings)
    assert plan.orders == () and plan.fold == 1 and "order natural: " in plan.explain()
    with pytest.raises(EngineError, match="order= where"):
        nsa.plan(PATTERN, heads=2, head_dim=16, order=ORDER, **settings)


@pytest.mark.parametrize(
    "scores", [nsa.scores.softcap(3.0), nsa.scores.sink(np.zeros(2))], ids=["cap", "sink"]
)
def test_changed_scores_are_for_softmax(scores: Any) -> None:
    with pytest.raises(EngineError, match="scores= beside normaliser=entmax"):
        nsa.plan(PATTERN, heads=2, head_dim=16, scores=scores, normaliser=nsa.normalisers.entmax(1.3))
