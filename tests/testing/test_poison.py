"""Poison lies where it should, and the guards notice what they are for."""

from __future__ import annotations

import numpy as np
import pytest

from numba_sparse_attn import reference
from numba_sparse_attn.testing import (
    DTYPES,
    assert_margins_untouched,
    nan_filled,
    poisoned,
    random_problem,
    surrounded,
)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("batch", [(), (2,)])
def test_poison_lies_in_idle_rows_and_changes_no_result(dtype, batch):
    mask = np.random.default_rng(0).random((4, 9, 11)) < 0.3
    mask[:, 5], mask[:2, :, 7], mask[:, :, 3] = False, False, False
    clean = random_problem(mask, heads=4, kv_heads=2, head_dim=3, dtype=dtype, batch=batch)
    dirty = poisoned(clean)
    assert np.isnan(dirty.q[..., 5, :]).all() and np.isnan(dirty.dout[..., 5, :]).all()
    assert np.isnan(dirty.k[..., 3, :]).all() and np.isnan(dirty.v[..., 3, :]).all()
    assert np.isnan(dirty.k[..., 0, 7, :]).all()  # no head of the first group looks at key 7
    assert np.isnan(dirty.k[..., 1, 7, :]).all() == (not mask[2:, :, 7].any())
    for one, other in zip(
        (
            *reference.forward(clean.q, clean.k, clean.v, mask, 1.0),
            *reference.backward(clean.dout, clean.q, clean.k, clean.v, mask, 1.0),
        ),
        (
            *reference.forward(dirty.q, dirty.k, dirty.v, mask, 1.0),
            *reference.backward(dirty.dout, dirty.q, dirty.k, dirty.v, mask, 1.0),
        ),
        strict=True,
    ):
        np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-13)


def test_poison_of_a_problem_without_a_heads_axis():
    problem = random_problem([[True, False], [True, False]], head_dim=2)
    flat = problem.with_arrays(*(array[0] for array in problem.arrays))
    assert np.isnan(poisoned(flat).k).tolist() == [[False, False], [True, True]]


def test_poison_keeps_strides_and_leaves_shared_rows_alone():
    clean = random_problem(np.tri(6, 8, -1, dtype=bool), heads=2, head_dim=3)
    rng = np.random.default_rng(0)
    odd = [rng.standard_normal((3, n, 2)).astype(np.float32).T[:, ::-1] for n in (6, 8, 8, 6)]
    clean = clean.with_arrays(*odd)
    dirty = poisoned(clean)
    assert [array.strides for array in dirty.arrays] == [array.strides for array in clean.arrays]
    np.testing.assert_array_equal(dirty.q[:, 1:], clean.q[:, 1:])
    assert (
        np.isnan(dirty.q[:, 0]).all() and np.isnan(dirty.k[:, 5:]).all() and np.isfinite(dirty.k[:, :5]).all()
    )
    shared = np.broadcast_to(clean.k[:, :1], clean.k.shape)
    assert poisoned(clean.with_arrays(clean.q, shared, clean.v, clean.dout)).k is shared


def test_the_margins_notice_a_write_on_either_side():
    array = np.arange(6.0).reshape(2, 3)
    for place in (-1, 6):
        view = surrounded(array)
        assert_margins_untouched(view)
        np.testing.assert_array_equal(view, array)
        view.base[256 + place] = 1.0
        with pytest.raises(AssertionError, match="outside of the array"):
            assert_margins_untouched(view)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_nan_filled(dtype):
    array = nan_filled((2, 3), dtype)
    assert array.dtype == dtype and np.isnan(array.astype(float)).all()
