"""The bridges in ``examples/``: gradients through them are the engine's, bit by bit, and the pages run.

Collected where PyTorch, or JAX, is installed.
"""

from __future__ import annotations

import gc
import importlib
import re
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

import numba_sparse_attn as nsa

from .cuda.gpu.libraries import DTYPES, fetch, modules, needs, put

ROOT = Path(__file__).resolve().parent.parent
N = 40
PATTERN = nsa.patterns.sliding_window(N, 5) - nsa.patterns.global_tokens(N, [7])
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def problem(dtype, heads=4, kv_heads=2, d=16, d_v=8):
    """q, k, v and dout."""
    rng = np.random.default_rng(0)
    shapes = (heads, N, d), (kv_heads, N, d), (kv_heads, N, d_v), (heads, N, d_v)
    return [rng.standard_normal(shape).astype(dtype) for shape in shapes]


def expected(q, k, v, dout, **settings):
    """out, dq, dk and dv of the engine that computes for such arrays."""
    out, lse = nsa.sparse_attention(q, k, v, PATTERN, return_lse=True, **settings)
    return out, *nsa.sparse_attention_backward(dout, q, k, v, out, lse, PATTERN, **settings)


def assert_same(found, wanted):
    for one, other in zip(found, wanted, strict=True):
        assert one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()


def test_every_example_is_on_the_page_and_is_tested():
    page = (ROOT / "examples" / "README.md").read_text("utf-8")
    files = sorted(path.name for path in (ROOT / "examples").glob("*.py"))
    assert sorted(set(re.findall(r"\]\((\w+\.py)\)", page))) == files
    here = Path(__file__).read_text("utf-8")
    assert all(f'"{name.removesuffix(".py")}"' in here for name in files)


# PyTorch


def torch_bridge():
    return importlib.import_module("examples." + "torch_autograd")


def torch_tensors(arrays, device):
    """Tensors that want gradients, and dout."""
    bfloat16 = arrays[0].dtype == ml_dtypes.bfloat16
    torch = modules("torch")
    tensors = [torch.from_numpy(array.view(np.int16) if bfloat16 else array) for array in arrays]
    tensors = [(tensor.view(torch.bfloat16) if bfloat16 else tensor).to(device) for tensor in tensors]
    return [*(tensor.requires_grad_() for tensor in tensors[:3]), tensors[3]]


def torch_gradients(arrays, device, **settings):
    q, k, v, dout = torch_tensors(arrays, device)
    out = torch_bridge().sparse_attention(q, k, v, PATTERN, **settings)
    out.backward(dout)
    return [fetch("torch", tensor.detach()) for tensor in (out, q.grad, k.grad, v.grad)]


@needs("torch")
@every_dtype
def test_torch_on_the_cpu(dtype):
    arrays = problem(dtype)
    assert_same(torch_gradients(arrays, "cpu", scale=0.3), expected(*arrays, scale=0.3))


@needs("torch")
def test_torch_agrees_with_its_own_check_of_gradients():
    torch = modules("torch")
    q, k, v, _ = torch_tensors(problem(np.float64), "cpu")
    attention = torch_bridge().sparse_attention
    assert torch.autograd.gradcheck(lambda q, k, v: attention(q, k, v, PATTERN), (q, k, v), fast_mode=True)


@needs("torch")
def test_torch_takes_any_strides_and_a_gradient_that_is_one_number():
    torch = modules("torch")
    arrays = problem(np.float32)
    q, k, v, _ = (tensor.detach().mT.contiguous().mT for tensor in torch_tensors(arrays, "cpu"))
    leaves = [tensor.requires_grad_() for tensor in (q, k, v)]
    torch_bridge().sparse_attention(*leaves, PATTERN).sum().backward()
    ones = np.ones_like(arrays[3])
    for leaf, gradient in zip(leaves, expected(*arrays[:3], ones)[1:], strict=True):
        np.testing.assert_allclose(leaf.grad.numpy(), gradient, rtol=1e-4, atol=1e-5)
    assert torch.isfinite(leaves[0].grad).all()


@needs("torch")
@pytest.mark.parametrize("position", range(4))
def test_torch_notices_what_was_changed_before_the_gradient_was_taken(position):
    q, k, v, dout = torch_tensors(problem(np.float32), "cpu")
    moved = [tensor * 1 for tensor in (q, k, v)]
    out = torch_bridge().sparse_attention(*moved, PATTERN)
    [*moved, out][position].mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.backward(dout)


@needs("torch")
def test_torch_example_runs(capsys):
    torch_bridge().main()
    losses = re.findall(r"loss ([\d.]+)", capsys.readouterr().out)
    assert len(losses) == 5 and float(losses[-1]) < 0.8 * float(losses[0])


@needs("torch")
@pytest.mark.gpu
@every_dtype
def test_torch_on_a_gpu(dtype):
    arrays = problem(dtype)
    on_gpu = [put("torch", array) for array in arrays]
    wanted = [fetch("torch", tensor) for tensor in expected(*on_gpu)]
    assert_same(torch_gradients(arrays, "cuda"), wanted)


@needs("torch")
@pytest.mark.gpu
def test_torch_holds_no_memory_once_results_are_dropped():
    torch = modules("torch")
    q, k, v, dout = torch_tensors(problem(np.float32), "cuda")
    attention = torch_bridge().sparse_attention
    attention(q, k, v, PATTERN).backward(dout)
    before = torch.cuda.memory_allocated()
    gc.disable()
    try:
        for _ in range(3):
            attention(q, k, v, PATTERN)
        assert torch.cuda.memory_allocated() == before
    finally:
        gc.enable()


# JAX


def jax_bridge():
    return importlib.import_module("examples." + "jax_custom_vjp")


def jax_gradients(function, q, k, v, dout):
    out, pullback = modules("jax").vjp(function, q, k, v)
    return [np.asarray(array) for array in (out, *pullback(dout))]


def jax_arrays(arrays, platform):
    jax = modules("jax")
    return [jax.device_put(array, jax.devices(platform)[0]) for array in arrays]


@needs("jax")
@every_dtype
@pytest.mark.parametrize("compiled", [False, True])
def test_jax_on_the_cpu(dtype, compiled):
    arrays = problem(dtype)
    attention = jax_bridge().sparse_attention(PATTERN, scale=0.3)
    function = modules("jax").jit(attention) if compiled else attention
    assert_same(jax_gradients(function, *jax_arrays(arrays, "cpu")), expected(*arrays, scale=0.3))


@needs("jax")
def test_jax_maps_over_a_batch():
    jax = modules("jax")
    arrays = [np.stack([array, array[::-1]]) for array in problem(np.float32)]
    attention = jax.jit(jax.vmap(jax_bridge().sparse_attention(PATTERN)))
    assert_same(jax_gradients(attention, *jax_arrays(arrays, "cpu")), expected(*arrays))


@needs("jax")
def test_jax_agrees_with_its_own_check_of_gradients():
    modules("jax")
    check_grads = importlib.import_module("jax.test_util").check_grads
    q, k, v, _ = jax_arrays(problem(np.float64), "cpu")
    check_grads(jax_bridge().sparse_attention(PATTERN), (q, k, v), order=1, modes=["rev"])


@needs("jax")
def test_jax_example_runs(capsys):
    modules("jax")
    jax_bridge().main()
    losses = re.findall(r"loss ([\d.]+)", capsys.readouterr().out)
    assert len(losses) == 5 and float(losses[-1]) < 0.9 * float(losses[0])


@needs("jax")
@pytest.mark.gpu
@every_dtype
def test_jax_on_a_gpu(dtype):
    arrays = problem(dtype)
    on_gpu = jax_arrays(arrays, "gpu")
    wanted = [np.asarray(array) for array in expected(*on_gpu)]
    assert_same(jax_gradients(jax_bridge().sparse_attention(PATTERN), *on_gpu), wanted)


@needs("jax")
@pytest.mark.gpu
def test_jax_compiled_for_a_gpu_calls_back_to_the_host():
    arrays = problem(np.float32)
    attention = modules("jax").jit(jax_bridge().sparse_attention(PATTERN))
    assert_same(jax_gradients(attention, *jax_arrays(arrays, "gpu")), expected(*arrays))
