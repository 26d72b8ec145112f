"""Changes of scores on a GPU: numbers and settings in its memory, gradients from what pairs left there.

Numbers come from the host and gradients go back there: they are those of SciPy arrays and of small tables.
A settings block is as ``cuda/device/changes.py`` and ``tile_changes.py`` read it. What every pair
contributes to the gradient of a step comes back and is added up by the same code as on the CPU, in the order
of the lists.
"""

from __future__ import annotations

import functools
import hashlib
import pickle
import types
import uuid
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..formats.changes import Changes, Function, PairBias, Relative, Slopes, SoftCap
from ..formats.csr import Csr
from ..formats.pair_gradients import PairGradients
from ..formats.work import Request
from . import memory, staging
from .view import DeviceView

__all__ = ["CompiledFunction", "DeviceChanges", "device_changes", "pair_gradients"]

_Array = npt.NDArray[Any]
#: Words of a step, as in ``cuda/device/changes.py``, which knows what they mean.
_WORDS = 8


class CompiledFunction:
    """A user's function as a part of a kernel: equal, and one cubin on disk, if it computes the same."""

    def __init__(self, function: Callable[..., Any], derivative: Callable[..., Any] | None) -> None:
        self.function = getattr(function, "py_func", function)
        self.derivative = getattr(derivative, "py_func", derivative)
        self._digest = f"{_digest_of(self.function)}-{_digest_of(self.derivative)}"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CompiledFunction) and other._digest == self._digest

    def __hash__(self) -> int:
        return hash(self._digest)

    def __repr__(self) -> str:
        return f"function {self._digest}"


def _digest_of(function: Callable[..., Any] | None) -> str:
    """Of the code and of every value that it reads; one of its own where that is not to be had."""
    try:
        return hashlib.sha256(pickle.dumps(_contents(function, set()))).hexdigest()[:20]
    except Exception:  # values that do not pickle, or no Python function
        return uuid.uuid4().hex


def _contents(value: Any, seen: set[int]) -> Any:
    """What a value consists of, with functions taken apart."""
    value = getattr(value, "py_func", value)
    if isinstance(value, types.ModuleType):
        return value.__name__
    if not isinstance(value, types.FunctionType):
        return value
    if id(value) in seen:
        return value.__qualname__
    seen.add(id(value))
    names = {name: value.__globals__[name] for name in _names(value.__code__) if name in value.__globals__}
    cells = [cell.cell_contents for cell in value.__closure__ or ()]
    read = [_contents(found, seen) for found in [*names.values(), *cells]]
    return _code(value.__code__), sorted(names), read, value.__defaults__


def _names(code: types.CodeType) -> list[str]:
    inner = [const for const in code.co_consts if isinstance(const, types.CodeType)]
    return sorted({*code.co_names, *(name for each in inner for name in _names(each))})


def _code(code: types.CodeType) -> tuple[Any, ...]:
    constants = [_code(const) if isinstance(const, types.CodeType) else const for const in code.co_consts]
    return code.co_code, constants, code.co_names, code.co_varnames, code.co_freevars


class DeviceChanges(NamedTuple):
    """A call's changes on a device.

    Attributes
    ----------
    kinds : tuple
        What kernels are compiled for; see ``cuda/device/changes.py``.
    settings : int
        Address of the settings block: a row for every step, and n_q and n_k behind them.
    pairs : tuple of (DeviceView or None)
        What the pairs of every step contribute to its gradient.
    hold : tuple
        Keeps all memory alive.
    """

    kinds: tuple[Any, ...]
    settings: int
    pairs: tuple[DeviceView | None, ...]
    hold: tuple[DeviceView, ...]

    @property
    def by_entry(self) -> bool:
        """Whether kernels need to know which entry of its row a pair is."""
        return any(kind[0] == "bias" or kind[-1] is True for kind in self.kinds)


@functools.lru_cache(maxsize=256)
def _compiled(function: Callable[..., Any], derivative: Callable[..., Any] | None) -> CompiledFunction:
    return CompiledFunction(function, derivative)


def _kind_of(step: Any, gradients: bool) -> tuple[Any, ...]:
    wanted = gradients and step.wanted
    if isinstance(step, PairBias):
        return "bias", wanted
    if isinstance(step, Slopes):
        return "alibi", wanted
    if isinstance(step, Relative):
        return "relative", wanted
    if isinstance(step, SoftCap):
        return ("softcap",)
    assert isinstance(step, Function)
    return "modify", _compiled(step.function, step.derivative)


def device_changes(
    changes: Changes, request: Request, device: int, stream: int, *, gradients: bool
) -> DeviceChanges:
    """Copy a call's changes to a device, in the order of a stream; with room for what pairs contribute."""
    real = request.accumulator
    starts = pair_starts(request)
    hold: list[DeviceView] = []

    def copied(array: _Array) -> int:
        view = staging.to_device(np.ascontiguousarray(array), device, stream)
        hold.append(view)
        return view.address

    words = np.zeros((len(changes.steps) + 1, _WORDS), np.int64)
    words[-1, :2] = request.n_q, request.n_k
    pairs: list[DeviceView | None] = []
    for row, step in zip(words, changes.steps, strict=False):
        if isinstance(step, PairBias):
            row[:2] = copied(step.data), copied(step.starts)
        elif isinstance(step, Slopes):
            row[0], row[4] = copied(step.slopes), step.offset
        elif isinstance(step, Relative):
            row[:5] = (
                copied(step.table),
                copied(step.starts),
                copied(step.query_places),
                copied(step.key_places),
                step.size,
            )
        elif isinstance(step, SoftCap):
            row[0] = copied(np.array([step.cap], real))
        room = None
        if gradients and step.wanted:
            room = memory.scratch(max(1, int(starts[-1])) * real.itemsize, device, stream)
            row[6:8] = room.address, copied(starts[:-1])
        pairs.append(room)
    settings = copied(words)
    hold += [room for room in pairs if room is not None]
    kinds = tuple(_kind_of(step, gradients) for step in changes.steps)
    return DeviceChanges(kinds, settings, tuple(pairs), tuple(hold))


def pair_starts(request: Request) -> npt.NDArray[np.int64]:
    """Where the pairs of every head begin, heads counted through batches; and where the last ones end."""
    sizes = np.array([structure.nnz for structure in request.structures], np.int64)
    lengths = sizes[request.which.reshape(-1)] if request.which.size else np.zeros(0, np.int64)
    return np.concatenate((np.zeros(1, np.int64), np.cumsum(lengths)))


def pair_gradients(
    changes: Changes, on_device: DeviceChanges, request: Request, stream: int
) -> list[_Array | None]:
    """Gradients of the numbers of all steps that want one, added up on the host."""
    starts = pair_starts(request)
    found = []
    for room in on_device.pairs:
        host = None
        if room is not None:
            host = np.empty(int(starts[-1]), request.accumulator)
            view = DeviceView(
                room.address, host.shape, host.strides, host.dtype, room.device, stream, "other", room
            )
            staging.to_host(view, host, stream)
        found.append(host)
    sums = PairGradients(request, changes)
    for flat, number in enumerate(request.which.reshape(-1).tolist()):
        csr = request.structures[number]
        assert isinstance(csr, Csr)
        span = slice(int(starts[flat]), int(starts[flat + 1]))
        sums.add(flat, csr, [None if part is None else part[span] for part in found])
    return sums.totals
