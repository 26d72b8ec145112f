"""Instructions on fragments, alone, against NumPy on a GPU."""

from __future__ import annotations

import numpy as np
import pytest

from numba_sparse_attn.cuda import streams
from numba_sparse_attn.cuda.launch import launch, load_kernel
from numba_sparse_attn.testing import DTYPES

from ..fragment_products import PRODUCTS_SIGNATURE, SHARED_BYTES, make_products, operands
from .tile_calls import on_gpu, to_host

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_products(dtype, seed):
    """Products of 16-bit numbers are exact in float32; only sums of them are rounded."""
    import torch

    arrays, expected = operands(DTYPES[dtype], seed)
    tensors = [on_gpu(array) for array in arrays]
    kernel = load_kernel(make_products, dtype, PRODUCTS_SIGNATURE, 32, 0, shared_bytes=SHARED_BYTES)
    stream = streams.stream_object(torch.cuda.current_stream().cuda_stream, 0)
    launch(kernel, 1, 32, stream, tuple(tensor.data_ptr() for tensor in tensors), shared_bytes=SHARED_BYTES)
    torch.cuda.synchronize()
    np.testing.assert_allclose(to_host(tensors[3], np.float32), expected, rtol=2e-6, atol=2e-6)
