"""The warp engine on NumPy arrays, with its kernels in Numba's simulator, and problems that are small enough.

The host side of the engine runs as it is; only what needs a device is replaced: copies to it, temporary
memory, loading and launching. While a kernel runs it may read and write what its part in the engine asks
for and nothing else, and new memory is NaN.
"""

from __future__ import annotations

import warnings
import weakref
from types import SimpleNamespace
from unittest import mock

import numpy as np
from hypothesis import strategies as st
from numba import cuda

from numba_sparse_attn.cuda import changes as device_side
from numba_sparse_attn.cuda import warp
from numba_sparse_attn.cuda.device.simulated import guarded
from numba_sparse_attn.cuda.view import DeviceView
from numba_sparse_attn.cuda.warp import lists, normalised
from numba_sparse_attn.cuda.warp.backward import make_key_backward, make_query_backward
from numba_sparse_attn.cuda.warp.forward import make_forward
from numba_sparse_attn.cuda.warp.merge import make_add, make_merge
from numba_sparse_attn.cuda.warp.normalised_backward import (
    make_alpha_sum,
    make_normalised_key_backward,
    make_normalised_query_backward,
)
from numba_sparse_attn.cuda.warp.normalised_forward import make_normalised_forward
from numba_sparse_attn.cuda.warp.schedule import PART_KEYS
from numba_sparse_attn.formats import Csr, from_mask
from numba_sparse_attn.scores._calls import CallScores
from numba_sparse_attn.testing import (
    DTYPES,
    assert_margins_untouched,
    dirty_memory,
    nan_filled,
    poisoned,
    random_problem,
    request_for,
    surrounded,
)
from numba_sparse_attn.testing.strategies import views

#: What each kernel writes; all else that it is given it reads. Nothing is both: loads are not coherent.
WRITES = {
    make_forward: {"out", "lse", "scratch"},
    make_merge: {"out", "lse"},
    make_query_backward: {"dq", "scratch", "pairs"},
    make_key_backward: {"dk", "dv", "scratch"},
    make_add: {"dq", "dk", "dv"},
    make_normalised_forward: {"out", "lse", "scratch"},
    make_normalised_query_backward: {"dq", "scratch"},
    make_normalised_key_backward: {"dk", "dv", "scratch"},
    make_alpha_sum: {"dalpha"},
}
#: Temporary memory holds delta and partial sums: this kernel reads the one and writes the other.
READS_TOO = {make_key_backward: {"scratch"}, make_normalised_key_backward: {"scratch"}}

#: Arrays that stand for device memory, each with its part in the engine, by identity.
_known = {}


def _copied_back(view, array, stream):
    array[...] = view.owner.owner


@st.composite
def small_problems(draw):
    """Problems of a few dozen pairs: every type, groups, batches, one mask a key head, odd strides."""
    n_q, n_k = draw(st.integers(1, 9)), draw(st.integers(1, 12))
    kv_heads, group = draw(st.sampled_from([(1, 1), (1, 2), (2, 1)]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    # Rows of any length, one warp's beside another's; many of them empty or full.
    share = rng.choice([0.0, 0.1, 0.4, 1.0], (draw(st.sampled_from([1, kv_heads])), n_q, 1))
    mask = rng.random((*share.shape[:2], n_k)) < share
    head_dim = draw(st.sampled_from([1, 3, 8, 16, 40]))
    problem = random_problem(
        np.repeat(mask, group, axis=0) if len(mask) > 1 else mask,
        heads=kv_heads * group,
        kv_heads=kv_heads,
        head_dim=head_dim,
        value_dim=draw(st.sampled_from([head_dim, head_dim, 1, 24])),
        batch=draw(st.sampled_from([(), (), (2,)])),
        dtype=DTYPES[draw(st.sampled_from(list(DTYPES)))],
        scale=draw(st.sampled_from([None, -0.3, 0.0])),
        seed=draw(st.integers(0, 2**32 - 1)),
    )
    if draw(st.sampled_from([False, False, True])):
        problem = problem.with_arrays(*(draw(views(array)) for array in problem.arrays))
    return problem


def structures_of(problem, wide=False):
    """One structure for all heads, or one a head; `wide` ones as for more than 2^31 keys."""
    masks = problem.mask if problem.mask.ndim == 3 else problem.mask[None]
    structures = [from_mask(mask) for mask in masks]
    return [widened(csr) for csr in structures] if wide else structures


def widened(csr):
    result = Csr(csr.shape, csr.indptr, csr.indices.astype(np.int64))
    by_key = csr.transposed
    result.__dict__["transposed"] = Csr(by_key.shape, by_key.indptr, by_key.indices.astype(np.int64))
    return result


def run(
    problem,
    structures,
    *,
    part_keys=PART_KEYS,
    gradients=True,
    poison=np.nan,
    engine=None,
    scores=(),
    normaliser=None,
):
    """Results by name; `poison` in rows that no pair needs, NaN in outputs and around them.

    Gradients of `scores` are "dscores0" and so on, in the form in which users get them.
    """
    problem = poisoned(problem, poison)
    q, k, v, dout = problem.arrays
    request = request_for(problem, structures, normaliser)
    scored = CallScores(scores, "cuda-warp").of(request, q.shape[:-3])
    engine = SimulatedEngine(part_keys) if engine is None else engine
    shapes = {"out": (*q.shape[:-1], v.shape[-1]), "dq": q.shape, "dk": k.shape, "dv": v.shape}
    results = {name: surrounded(nan_filled(shape, problem.dtype)) for name, shape in shapes.items()}
    results["lse"] = surrounded(nan_filled(q.shape[:-1], problem.accumulator))
    forward = {name: results.pop(name) for name in ("out", "lse")}
    if normaliser is not None and normaliser.learnable:
        results["dalpha"] = surrounded(nan_filled(q.shape[-3:-2], problem.accumulator))
    engine.forward(request, q, k, v, **forward, changes=scored.changes)
    learnt = ()
    if gradients:
        found = engine.backward(request, dout, q, k, v, **forward, **results, changes=scored.changes)
        learnt = sum(CallScores(scores, "cuda-warp").learnt(request, scored, found, None), ())
        forward |= results
    for array in forward.values():
        assert_margins_untouched(array)
    return forward | {f"dscores{i}": found for i, found in enumerate(learnt) if found is not None}


class SimulatedEngine:
    """``numba_sparse_attn.cuda.warp`` for NumPy arrays; rows with more than `part_keys` keys are cut.

    Blocks that stage runs have two warps: more threads would show nothing more, and take longer.
    """

    why_not = staticmethod(warp.why_not)

    def __init__(self, part_keys=PART_KEYS):
        self._part_keys = part_keys
        #: Names of the kernels that were launched, "shared" before those that stage.
        self.launched = []

    def forward(self, request, q, k, v, out, lse, changes=()):
        self._run(warp.forward, request, changes, q=q, k=k, v=v, out=out, lse=lse)

    def backward(self, request, dout, q, k, v, out, lse, dq, dk, dv, dalpha=None, changes=()):
        arrays = {"dout": dout, "q": q, "k": k, "v": v, "out": out, "lse": lse, "dq": dq, "dk": dk, "dv": dv}
        if dalpha is not None:
            arrays["dalpha"] = dalpha
        return self._run(warp.backward, request, changes, **arrays)

    def _run(self, function, request, changes, **arrays):
        replaced = {
            "load_kernel": lambda make, shape, signature, threads, device, blocks=1: (make, shape, signature),
            "launch": self._launch,
            "SHARING_WARPS": 2,
            "memory": SimpleNamespace(scratch=self._scratch),
            "streams": mock.MagicMock(),
        }
        lists_replaced = {
            "PART_KEYS": self._part_keys,
            "SHARING_WARPS": 2,
            "staging": SimpleNamespace(to_device=lambda array, device, stream: self._view("list", array)),
            "streams": mock.MagicMock(),
            "_LISTS": weakref.WeakKeyDictionary(),
        }
        changes_replaced = {
            "staging": SimpleNamespace(
                to_device=lambda array, device, stream: self._view("number", array), to_host=_copied_back
            ),
            "memory": SimpleNamespace(scratch=lambda nbytes, device, stream: self._pairs(nbytes, request)),
        }
        with (
            mock.patch.multiple(warp, **replaced),
            mock.patch.multiple(lists, **lists_replaced),
            mock.patch.multiple(device_side, **changes_replaced),
            mock.patch.object(normalised, "load_kernel", replaced["load_kernel"]),
        ):
            backward = "dq" in arrays
            made = [device_side.device_changes(each, request, 0, 0, gradients=backward) for each in changes]
            more = {"changes": made[0]} if made else {}
            function(request, *(self._view(name, array) for name, array in arrays.items()), **more)
            if not (made and backward):
                return []
            return device_side.pair_gradients(changes[0], made[0], request, 0)

    def _view(self, name, array):
        _known[id(array)] = name, weakref.ref(array)
        address = array.__array_interface__["data"][0]
        return DeviceView(address, array.shape, array.strides, array.dtype, 0, 0, "other", array)

    def _pairs(self, nbytes, request):
        return self._view("pairs", nan_filled((nbytes // request.accumulator.itemsize,), request.accumulator))

    def _scratch(self, nbytes, device, stream, library):
        return self._view("scratch", nan_filled((nbytes // 4,), np.float32))

    def _launch(self, kernel, grid, threads, stream, arguments):
        make, shape, signature = kernel
        self.launched.append("shared " * (getattr(shape, "tile", 0) > 0) + make.__name__)
        typed = [kind(argument) for kind, argument in zip(signature.args, arguments, strict=True)]
        readable, writable = [], []
        for name, reference in list(_known.values()):
            array = reference()
            if array is None:
                continue
            low, high = np.lib.array_utils.byte_bounds(array)
            # Numbers and pairs are reached through the settings, which are numbers, too.
            if name in ("number", "pairs"):
                (writable if name in WRITES[make] else readable).append(array)
            elif any(low <= argument < high for argument in arguments):
                if name in WRITES[make]:
                    writable.append(array)
                if name not in WRITES[make] or name in READS_TOO.get(make, ()):
                    readable.append(array)
        with guarded(readable, writable), dirty_memory(), warnings.catch_warnings():
            # What comes of poison until it is masked is no news to a GPU.
            warnings.filterwarnings("ignore", "invalid value encountered", RuntimeWarning)
            cuda.jit(make(shape))[grid, threads](*typed)
