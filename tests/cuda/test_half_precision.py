"""Why products of 16-bit rows are summed in float32: what ``cuda.fp16`` offers breaks the error rule.

Numba's ``cuda.fp16`` is arithmetic whose results are float16 (``hmul``, ``hfma``). It would halve the
instructions of the warp kernels, which convert every element of K and V before they use it. These are the
kernels' sums as it would compute them; that they fail is the reason why conversions are all that the kernels
do in half precision.
"""

from __future__ import annotations

import numpy as np
import pytest

from numba_sparse_attn.testing import budget_for, random_problem


def attention(q, k, v, scale, score, add):
    """Rows of one head with a plain softmax; `score` and `add` are the two sums of products."""
    scores = np.array([[score(row, key) for key in k] for row in q]) * scale
    weights = np.exp(scores - scores.max(axis=1, keepdims=True))
    total = weights.sum(axis=1)
    out = np.array([add(row, v) for row in weights]) / total[:, None]
    return out.astype(q.dtype), (scores.max(axis=1) + np.log(total)).astype(np.float32)


def in_float32(row, key):
    return float(np.sum(row.astype(np.float32) * key.astype(np.float32), dtype=np.float32))


def in_float16_by_lanes(row, key):
    """Eight elements a lane, summed in float16; lanes among themselves in float32."""
    total = np.float32(0)
    for begin in range(0, len(row), 8):
        part = np.float16(0)
        for left, right in zip(row[begin : begin + 8], key[begin : begin + 8], strict=True):
            part = np.float16(np.float64(left) * np.float64(right) + np.float64(part))  # one rounding, as fma
        total += np.float32(part)
    return float(total)


def add_in_float32(weights, v):
    return np.sum(weights.astype(np.float32)[:, None] * v.astype(np.float32), axis=0, dtype=np.float32)


def add_in_float16(weights, v):
    total = np.zeros(v.shape[1], np.float16)
    for weight, value in zip(weights, v, strict=True):
        total = (np.float64(np.float16(weight)) * value.astype(np.float64) + total).astype(np.float16)
    return total.astype(np.float32)


@pytest.mark.parametrize(
    ("score", "add", "keeps"),
    [
        (in_float32, add_in_float32, True),
        (in_float16_by_lanes, add_in_float32, False),
        (in_float32, add_in_float16, False),
    ],
    ids=["float32", "scores in float16", "values in float16"],
)
def test_the_error_rule(score, add, keeps):
    problem = random_problem(np.ones((24, 200), bool), heads=1, head_dim=64, dtype=np.float16)
    out, lse = attention(problem.q[0], problem.k[0], problem.v[0], problem.scale, score, add)
    budget = budget_for(problem, gradients=False)
    if keeps:
        budget.check(out=out[None], lse=lse[None])
    else:
        with pytest.raises(AssertionError):
            budget.check(out=out[None], lse=lse[None])
