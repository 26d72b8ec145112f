"""Changes of scores on the row path: what a piece of a list goes through between products and softmax.

The steps of :mod:`numba_sparse_attn.formats.changes` become a table of numbers and addresses, a row of it for
every head and step, which the kernels read at run time: built-in changes need no compiling of their own. A
user's function becomes a C function of a whole piece, which the kernel calls through its address.

Every step leaves its derivative beside the scores, if that is asked for. Gradients of parameters are sums
over pairs of what the backward sweep writes down for every pair of a wave, formed in the order of the lists.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import carray, cfunc, types
from numba.extending import intrinsic

from ..formats.changes import Changes, Function, PairBias, Relative, Slopes, SoftCap
from ..formats.pair_gradients import PairGradients
from ..formats.work import Request
from ..jit import compiled_by_user, inlined
from .elements import FLOAT32, load_row, store_row
from .gather import gather_elements
from .lists import read_int32, read_int64
from .operands import aligned_empty
from .row_work import LISTED, Wave
from .vector import INT64, VOID, address_of, pointer

__all__ = [
    "STEP_ROOM",
    "PairRoom",
    "change_scores",
    "list_columns_of",
    "room_for",
    "settings_of",
    "slopes_to_scores",
]

#: Columns of the table: kind of step, address of numbers, a number, two more addresses, number of the query
#: head, and where to write down what every pair contributes to the gradient of the step (0 for nowhere).
_KIND, _NUMBERS, _NUMBER, _QUERY_PLACES, _KEY_PLACES, _HEAD, _PAIRS = range(7)
_COLUMNS = 7

#: Kinds of steps; those up to _ADDITIVE leave the derivative 1.
_BIAS, _SLOPES, _RELATIVE, _SOFTCAP, _FUNCTION = range(5)
_ADDITIVE = _RELATIVE

#: Elements of scratch memory for a batch of pieces: numbers of the step at hand; and a derivative a step.
STEP_ROOM = LISTED


@intrinsic
def _call_change(typing_context, function, scores, slopes, columns, count, head, row, by_key, sloping):
    """Call ``void (*)(scores, slopes, columns, count, head, row, by_key, sloping)`` at an address."""

    def generate(context, builder, signature, arguments):
        address, scores, slopes, columns = arguments[:4]
        pointers = [pointer(builder, value) for value in (scores, slopes, columns)]
        kinds = [value.type for value in pointers] + [INT64] * 5
        kind = ir.FunctionType(VOID, kinds).as_pointer()
        builder.call(builder.inttoptr(address, kind), [*pointers, *arguments[4:]])
        return context.get_dummy_value()

    return types.void(*[types.int64] * 9), generate


@inlined
def list_columns_of(columns, place, indices, index_bytes, begin, count):
    """The indices of a piece, as int64, from `place` on."""
    if index_bytes == 4:
        for t in range(count):
            columns[place + t] = read_int32(indices, begin + t)
    else:
        for t in range(count):
            columns[place + t] = read_int64(indices, begin + t)


@inlined
def change_scores(
    settings, head, scratch, scores, values, slopes, columns, bins, place, entries, begin, count, row, by_key
):
    """Send the scores of a piece through all steps, in place.

    `scores`, `values` and `slopes` are numbers of elements of `scratch`: the scores, room for as many, and
    room for the derivatives of all steps, STEP_ROOM apart, or -1. `columns` has the other side's numbers from
    `place` on, `bins` is room for as many integers. `entries` is 0 or, by key, the address of the numbers of
    the entries in their rows.
    """
    kind = scratch.dtype.type
    size = scratch.itemsize
    base = address_of(scratch)
    for step in range(settings.shape[1]):
        what = settings[head, step, _KIND]
        numbers = settings[head, step, _NUMBERS]
        if what == _BIAS:
            if entries != 0:
                gather_elements(scratch, numbers, entries, 8, begin, count, base + values * size)
            else:
                load_row(FLOAT32, numbers + begin * size, size, count, scratch, values)
            for t in range(count):
                scratch[scores + t] += scratch[values + t]
        elif what == _SLOPES:
            load_row(FLOAT32, numbers, size, 1, scratch, values)
            slope = scratch[values]
            # With i the row and j a column, or the other way round: i + offset - j.
            origin = row + settings[head, step, _NUMBER]
            if by_key:
                origin = row - settings[head, step, _NUMBER]
            for t in range(count):
                scratch[scores + t] -= slope * kind(abs(origin - columns[place + t]))
        elif what == _RELATIVE:
            last = settings[head, step, _NUMBER] - 1
            mine = read_int64(settings[head, step, _KEY_PLACES if by_key else _QUERY_PLACES], row)
            others = settings[head, step, _QUERY_PLACES if by_key else _KEY_PLACES]
            for t in range(count):
                other = read_int64(others, columns[place + t])
                bins[place + t] = min(max(other - mine if by_key else mine - other, 0), last)
            gather_elements(scratch, numbers, address_of(bins), 8, place, count, base + values * size)
            for t in range(count):
                scratch[scores + t] += scratch[values + t]
        elif what == _SOFTCAP:
            load_row(FLOAT32, numbers, size, 1, scratch, values)
            cap = scratch[values]
            for t in range(count):
                bent = kind(math.tanh(scratch[scores + t] / cap))
                scratch[scores + t] = cap * bent
                if slopes >= 0:
                    scratch[slopes + step * STEP_ROOM + t] = kind(1.0) - bent * bent
        else:
            sloping = slopes >= 0
            target = base + (slopes + step * STEP_ROOM if sloping else scores) * size
            listed = address_of(columns) + 8 * place
            number = settings[head, step, _HEAD]
            _call_change(numbers, base + scores * size, target, listed, count, number, row, by_key, sloping)


@inlined
def slopes_to_scores(settings, head, scratch, gradients, slopes, begin, count, keep):
    """Gradients of the changed scores of a piece to those of the scores, in place, step by step backwards.

    With `keep`, what a step's parameters need is written down on the way.
    """
    size = scratch.itemsize
    for back in range(settings.shape[1]):
        step = settings.shape[1] - 1 - back
        pairs = settings[head, step, _PAIRS]
        if keep and pairs != 0:
            store_row(FLOAT32, pairs + begin * size, size, count, scratch, gradients)
        if settings[head, step, _KIND] > _ADDITIVE:
            for t in range(count):
                scratch[gradients + t] *= scratch[slopes + step * STEP_ROOM + t]


@functools.lru_cache(maxsize=256)
def _c_function(function: Callable[..., Any], derivative: Callable[..., Any] | None, kind: str) -> Any:
    """A user's function, and its derivative if there is one, over a piece."""
    call = compiled_by_user(function, "score_mod")
    slope = compiled_by_user(derivative or _unknown, "derivative")
    made = _make_piece_function(call, slope)
    number = types.CPointer(getattr(types, kind))
    signature = types.void(number, number, types.CPointer(types.int64), *[types.int64] * 5)
    return cfunc(signature, error_model="numpy", boundscheck=False)(made)


def _unknown(score: float, head: int, i: int, j: int) -> float:
    """In place of a derivative that there is not: nobody goes back through such a function."""
    return math.nan


def _make_piece_function(call: Callable[..., Any], slope: Callable[..., Any]) -> Callable[..., None]:
    def over_piece(scores, slopes, columns, count, head, row, by_key, sloping):
        values = carray(scores, count)
        others = carray(columns, count)
        for t in range(count):
            i = others[t] if by_key else row
            j = row if by_key else others[t]
            score = values[t]
            values[t] = call(score, head, i, j)
            if sloping:
                carray(slopes, count)[t] = slope(score, head, i, j)

    return over_piece


def _address(array: npt.NDArray[Any]) -> int:
    return int(array.__array_interface__["data"][0])


@dataclass(frozen=True, eq=False)
class Settings:
    """The table of a wave, and what it points at."""

    table: npt.NDArray[np.int64]
    hold: list[Any]


def settings_of(request: Request, changes: Changes, wave: Wave, pairs: PairRoom | None = None) -> Settings:
    """int64 [heads of the wave, steps, _COLUMNS] for the kernels."""
    kind = request.accumulator
    table = np.zeros((wave.heads.size, len(changes.steps), _COLUMNS), np.int64)
    heads = wave.heads % request.heads
    hold: list[Any] = []
    for number, step in enumerate(changes.steps):
        column = table[:, number]
        column[:, _HEAD] = heads
        if isinstance(step, PairBias):
            column[:, _KIND] = _BIAS
            column[:, _NUMBERS] = _address(step.data) + kind.itemsize * step.starts[wave.heads]
        elif isinstance(step, Slopes):
            column[:, _KIND], column[:, _NUMBER] = _SLOPES, step.offset
            column[:, _NUMBERS] = _address(step.slopes) + kind.itemsize * heads
        elif isinstance(step, Relative):
            column[:, _KIND], column[:, _NUMBER] = _RELATIVE, step.size
            column[:, _NUMBERS] = _address(step.table) + kind.itemsize * step.starts[heads]
            column[:, _QUERY_PLACES] = _address(step.query_places)
            column[:, _KEY_PLACES] = _address(step.key_places)
        elif isinstance(step, SoftCap):
            cap = np.array([step.cap], kind)
            hold.append(cap)
            column[:, _KIND], column[:, _NUMBERS] = _SOFTCAP, _address(cap)
        elif isinstance(step, Function):
            compiled = _c_function(step.function, step.derivative, kind.name)
            hold.append(compiled)
            column[:, _KIND], column[:, _NUMBERS] = _FUNCTION, compiled.address
        if pairs is not None and step.wanted:
            column[:, _PAIRS] = pairs.addresses(number, wave)
    return Settings(table, hold)


def room_for(settings: Settings | None) -> Any:
    """Columns and bins of a batch of pieces, for a kernel with these settings."""
    return (None, None) if settings is None else np.empty((2, LISTED), np.int64)


class PairRoom:
    """Room for what the pairs of a wave contribute to gradients of numbers, and what that adds up to.

    Waves follow each other, and within a wave heads do, so that all sums are formed in one order.
    """

    def __init__(self, request: Request, changes: Changes) -> None:
        self._request = request
        self._sums = PairGradients(request, changes)
        self._room = {
            number: np.empty(0, request.accumulator)
            for number, step in enumerate(changes.steps)
            if step.wanted
        }

    @property
    def totals(self) -> list[npt.NDArray[Any] | None]:
        """Gradients of the numbers of every step."""
        return self._sums.totals

    @property
    def bytes_per_head(self) -> int:
        """What a wave needs for one more head."""
        most = max((structure.nnz for structure in self._request.structures), default=0)
        return len(self._room) * most * self._request.accumulator.itemsize

    def addresses(self, number: int, wave: Wave) -> npt.NDArray[np.int64]:
        """Where the pairs of every head of a wave write what they contribute to a step."""
        if wave.pairs > self._room[number].size:
            self._room[number] = aligned_empty(wave.pairs, self._request.accumulator)
        lengths = np.array([csr.nnz for csr in wave.lists], np.int64)
        return _address(self._room[number]) + self._request.accumulator.itemsize * (
            np.cumsum(lengths) - lengths
        )

    def add(self, wave: Wave) -> None:
        """Add up what the pairs of a wave have written."""
        start = 0
        for flat, csr in zip(wave.heads.tolist(), wave.lists, strict=True):
            span = slice(start, start + csr.nnz)
            rooms = [self._room.get(number) for number in range(len(self.totals))]
            self._sums.add(flat, csr, [None if room is None else room[span] for room in rooms])
            start += csr.nnz
