"""Selection by content in GPU memory, with its kernels in Numba's simulator; see ``test_simulator.py``.

The host side runs as it is; only what needs a device is replaced. While a kernel runs it may write what it is
launched for, read all else, and nothing beside; new memory is NaN.
"""

from __future__ import annotations

import contextlib
import os
import sys
import weakref
from dataclasses import replace
from unittest import mock

import ml_dtypes
import numpy as np
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st
from numba import cuda

import numba_sparse_attn as nsa
from numba_sparse_attn.cuda import interchange, staging, streams
from numba_sparse_attn.cuda.device.simulated import guarded
from numba_sparse_attn.cuda.selection import blocks, place, tools
from numba_sparse_attn.cuda.selection.attended import make_lines, make_masses, make_weights
from numba_sparse_attn.cuda.selection.best import make_best
from numba_sparse_attn.cuda.selection.products import ProductsShape
from numba_sparse_attn.cuda.view import DeviceView
from numba_sparse_attn.dynamic.catalogue import SELECTIONS, Case
from numba_sparse_attn.testing import DTYPES, dirty_memory, nan_filled

from ..dynamic.test_selections import ON_DEVICE, masks
from . import fake_libraries as fake
from .selected import assert_chosen
from .test_calls import seen

#: A call takes a second here.
few_examples = settings(max_examples=max(1, settings().max_examples // 4))
EXAMPLES = [
    pytest.param(SELECTIONS[name], case, id=f"{name}-{number}")
    for name in sorted(ON_DEVICE)
    for number, case in enumerate(SELECTIONS[name].examples())
]


#: Which arguments are addresses that a kernel writes to; the last of those that are not here.
WRITTEN = {make_best: (1,), make_masses: (1,), make_lines: (1, 2), make_weights: (0,)}


class Memory:
    """Arrays that stand for GPU memory, and launches over them."""

    def __init__(self):
        self._arrays = []
        self.launched = []
        self.fetched = 0

    def _known(self):
        return [array for reference in self._arrays if (array := reference()) is not None]

    def view(self, array):
        self._arrays.append(weakref.ref(array))
        address = array.__array_interface__["data"][0]
        return DeviceView(address, array.shape, array.strides, array.dtype, 0, 70, "other", array)

    def scratch(self, nbytes, device, stream, library):
        return self.view(nan_filled((-(-nbytes // 8),), np.float64))

    def allocate(self, library, shape, dtype, device, stream):
        array = nan_filled(shape, dtype)
        return replace(self.view(array), library=library, owner=fake.Tensor(array))

    def to_host(self, view, array, stream):
        array[...] = seen(view)
        self.fetched += array.nbytes

    def launch(self, kernel, grid, threads, stream, arguments):
        make, shape, signature = kernel
        self.launched.append(make.__name__)
        written = [arguments[place] for place in WRITTEN.get(make, (-1,))]
        typed = [kind(argument) for kind, argument in zip(signature.args, arguments, strict=True)]
        readable, writable = [], []
        for array in self._known():
            low, high = np.lib.array_utils.byte_bounds(array)
            changes = any(low <= address < high for address in written)
            if changes:
                writable.append(array)
            if not changes or make is make_weights:
                readable.append(array)
        with guarded(readable, writable), dirty_memory(), np.errstate(all="ignore"):
            cuda.jit(make(shape))[grid, threads](*typed)


@pytest.fixture(scope="module", autouse=True)
def one_core():
    """Lanes are threads that take turns; to hand the turn to another core takes three times as long."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(before)})
    yield
    os.sched_setaffinity(0, before)


def loaded(make, shape, signature, threads, device, blocks=1):
    return make, shape, signature


@contextlib.contextmanager
def simulated(scores_bytes=4096):
    """PyTorch on stream 70; `scores_bytes` of scores exist at a time."""
    memory = Memory()
    kept = []

    def tensor(array):
        """An array in GPU memory."""
        kept.append(array)
        memory.view(array)
        return fake.Tensor(array)

    memory.tensor = tensor
    with (
        mock.patch.dict(sys.modules, torch=fake.torch_module({0: 70})),
        mock.patch.object(interchange, "_require_cuda", lambda: None),
        mock.patch.dict(interchange._READERS, {np.ndarray: interchange._host}, clear=True),
        mock.patch.multiple(
            streams,
            on_device=lambda device: contextlib.nullcontext(),
            stream_object=lambda handle, device: handle,
            is_capturing=lambda handle: False,
        ),
        mock.patch.multiple(
            staging, to_device=lambda array, device, stream: memory.view(array), to_host=memory.to_host
        ),
        mock.patch.multiple(place.memory, scratch=memory.scratch, allocate=memory.allocate),
        # Threads are dear here: fewer, and smaller squares.
        mock.patch.multiple(place, load_kernel=loaded, launch=memory.launch, BLOCKS_THREADS=32),
        mock.patch.object(blocks, "BLOCKS_THREADS", 32),
        mock.patch.multiple(
            tools,
            load_kernel=loaded,
            products_shape=lambda left, right: ProductsShape(left, right, 16, 4),
            _ROWS=16,
            _MASSES_WARPS=2,
            _SCORES_BYTES=scores_bytes,
        ),
    ):
        interchange._torch_stream.cache_clear()
        yield memory
        interchange._torch_stream.cache_clear()


def select(name, q, k, arguments, **settings):
    with simulated(**settings) as memory:
        made = SELECTIONS[name].select(memory.tensor(q), memory.tensor(k), **arguments)
    return made, memory


@pytest.mark.parametrize(("entry", "case"), EXAMPLES)
def test_examples_are_what_the_definition_says(entry, case):
    q, k = case.arrays()
    made, memory = select(entry.name, q, k, case.arguments)
    np.testing.assert_array_equal(masks(made), entry.brute_force(case))
    # Lists of blocks only, or a number a token; what top_k chooses are keys.
    assert memory.fetched < q.nbytes or entry.name == "top_k"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("lead", [(), (2,), (2, 1, 2)])
def test_compressed_arrays_are_the_callers(dtype, lead):
    x = np.random.default_rng(0).standard_normal((*lead, 21, 8)).astype(DTYPES[dtype])
    expected = nsa.dynamic.compress(x, 4, 3)
    with simulated() as memory:
        made = nsa.dynamic.compress(memory.tensor(x), 4, 3)
        nothing = nsa.dynamic.compress(memory.tensor(x), 40, 3)
    assert isinstance(made, fake.Tensor) and made.array.dtype == x.dtype
    # Sums of four in another order, and rounded once.
    error = np.abs(made.array.astype(np.float64) - expected.astype(np.float64)).max()
    assert error <= 2 * np.abs(expected.astype(np.float64)).max() * ml_dtypes.finfo(x.dtype).eps
    assert nothing.array.shape == (*lead, 0, 8)


def test_the_three_branches():
    q, k = Case(24, 24).arrays()
    arguments = {"block": 4, "length": 4, "stride": 2, "causal": True}
    with simulated() as memory:
        made = nsa.dynamic.nsa_branches(memory.tensor(q), memory.tensor(k), 3, 5, **arguments)
    expected = nsa.dynamic.nsa_branches(q, k, 3, 5, **arguments)
    np.testing.assert_array_equal(masks(made.selected), masks(expected.selected))
    assert made.window.equals(expected.window) and made.compressed.equals(expected.compressed)
    np.testing.assert_allclose(made.keys.array, expected.keys, rtol=1e-15, atol=1e-15)


def test_compressed_keys_of_the_users_own():
    q, k = Case(24, 24).arrays()
    tokens = nsa.dynamic.compress(np.roll(k, 1, axis=-1), 4, 2)
    arguments = {"block": 4, "length": 4, "stride": 2, "causal": True}
    with simulated() as memory:
        there = [memory.tensor(array) for array in (q, k, tokens)]
        made = nsa.dynamic.nsa_blocks(*there[:2], 3, **arguments, compressed=there[2])
        with pytest.raises(nsa.EngineError, match="compressed in host memory"):
            nsa.dynamic.nsa_blocks(*there[:2], 3, **arguments, compressed=tokens)
        with pytest.raises(nsa.ShapeError, match="one token a stretch"):
            nsa.dynamic.nsa_blocks(*there[:2], 3, **arguments, compressed=there[1])
    expected = nsa.dynamic.nsa_blocks(q, k, 3, **arguments, compressed=tokens)
    np.testing.assert_array_equal(masks(made), masks(expected))


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        (name, list(DTYPES)[(turn + more) % 4])
        for turn, name in enumerate(sorted(ON_DEVICE))
        for more in (0, 2)
    ],
)
def test_the_same_pairs_as_on_the_host(name, dtype):
    """Whatever the element type, with lead axes and strides that no copy has straightened out."""
    entry = SELECTIONS[name]
    case = entry.examples()[0]
    if "strength" not in case.arguments:  # which has a number a key
        case = replace(case, n_q=20, n_k=24)
    pairs = [replace(case, seed=seed).arrays() for seed in (0, 20)]
    q, k = (np.stack(arrays)[:, None].astype(DTYPES[dtype]) for arrays in zip(*pairs, strict=True))
    q, k = (array.swapaxes(-1, -2).copy().swapaxes(-1, -2) for array in (q, k))
    expected = entry.select(q, k, **case.arguments)
    made, _ = select(name, q, k, case.arguments)
    assert made.member_of.shape == (2, 1, case.heads)
    np.testing.assert_array_equal(masks(made.members), masks(expected.members))


def test_batch_elements_that_no_stride_leads_to():
    case = SELECTIONS["moba"].examples()[0]
    q, k = (np.random.default_rng(0).standard_normal((3, 2, heads, 16, 8)) for heads in (2, 1))
    q, k = q.transpose(1, 0, 2, 3, 4), k.transpose(1, 0, 2, 3, 4)
    made, _ = select("moba", q, k, case.arguments)
    expected = nsa.dynamic.moba(q, k, **case.arguments)
    np.testing.assert_array_equal(masks(made.members), masks(expected.members))


@few_examples
@given(st.data())
def test_any_sizes_and_many_ties(data):
    """Whole numbers and blocks of powers of two: means are exact, and many scores are tied."""
    name = data.draw(st.sampled_from(sorted(ON_DEVICE & {"block_top_k", "moba", "quest"})))
    n_q, n_k = data.draw(st.integers(0, 12)), data.draw(st.integers(0, 24))
    block, budget = data.draw(st.sampled_from([1, 2, 4])), data.draw(st.integers(1, 6))
    causal = data.draw(st.booleans())
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    n_k -= n_k % block
    q, k = (rng.integers(-2, 3, (1, n, 3)).astype(np.float32) for n in (n_q, n_k))
    if data.draw(st.booleans()) and k.size:
        k[0, -1, 1] = np.nan
    arguments = {"budget": budget, ("page" if name == "quest" else "block"): block, "causal": causal}
    if name == "block_top_k":
        arguments["query_block"] = data.draw(st.sampled_from([1, 2, 4]))
    made, _ = select(name, q, k, arguments)
    np.testing.assert_array_equal(masks(made), masks(SELECTIONS[name].select(q, k, **arguments)))
    event(f"{name}, {'causal' if causal else 'all'}, NaN: {bool(np.isnan(k).any())}")


def test_flat_arrays_and_rows_in_panels():
    q, k = Case(40, 44, heads=1).arrays()
    made, memory = select("moba", q[0], k[0], {"budget": 2, "block": 4}, scores_bytes=1024)
    assert isinstance(made, nsa.Pattern)
    assert memory.launched == ["make_blocks"] + 3 * ["make_products", "make_best"]
    assert made.equals(nsa.dynamic.moba(q[0], k[0], 2, 4))


def test_no_selection_while_a_graph_is_captured():
    q, k = Case(8, 8).arrays()
    with simulated() as memory, mock.patch.object(streams, "is_capturing", lambda handle: True):
        with pytest.raises(nsa.EngineError, match="captured into a CUDA graph"):
            nsa.dynamic.moba(memory.tensor(q), memory.tensor(k), 1, 4)


def test_arrays_in_two_memories():
    q, k = Case(8, 8).arrays()
    with simulated() as memory, pytest.raises(nsa.EngineError, match="k in host memory"):
        nsa.dynamic.moba(memory.tensor(q), k, 1, 4)


@pytest.mark.parametrize(
    ("name", "arguments", "told"),
    [
        ("block_top_k", {"block": 4, "query_block": 2}, {"block": 4, "query_block": 2}),
        ("quest", {"page": 4, "query_block": 4}, {"block": 4, "query_block": 4}),
        ("top_k", {}, {}),
    ],
)
def test_what_rounding_may_change_and_what_not(name, arguments, told):
    """The check that the tests on a GPU use, and that it sees a choice that is wrong."""
    q, k = (array.astype(np.float16) for array in Case(16, 24).arrays())
    made, _ = select(name, q, k, {"budget": 3, "causal": True, **arguments})
    assert_chosen(name, q, k, made, budget=3, causal=True, **told)
    with pytest.raises(AssertionError):
        assert_chosen(name, -q, k, made, budget=3, causal=True, **told)
