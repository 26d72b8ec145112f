"""Changes of scores inside of tile kernels: what the scores of a product go through before they are weighed.

Scores lie in the registers that ``ptx/wgmma.py`` and ``ptx/mma.py`` leave them in: a thread has two rows, 8
apart, and of every eight columns two neighbours. Queries are rows, or columns in the transposed products that
make gradients of keys. Which steps there are is known when a kernel is compiled; their numbers are read from
the settings of ``changes.py``, behind which stand n_q and n_k.

Scores come as products and leave in base 2, the kernel's factor included: from there on its factor is 1. They
are changed before masks are applied, so whatever a function makes of a pair that is not selected is dropped;
it is never asked about queries or keys beyond the last.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

from numba import cuda, float32, int32, int64

from . import lanes
from .changes import STEP_WORDS, unknown_derivative

__all__ = ["TileChangeTools", "bends", "pair_change", "tile_change_tools"]

_DATA, _STARTS, _QUERY_PLACES, _KEY_PLACES, _SIZE = range(5)
#: What a thread keeps of a step: in float32 two numbers for either row; in int64 as many, and three for both,
#: which are read anew for every step, because registers are short while products are under way.
_HELD, _KEPT = 4, 7
#: Times eight columns that a loop over a function has: of 16, with a tanh of float64 and its derivative, the
#: compiler writes out all, of 32 none; then scores lie in memory.
_FUNCTION_QUADS = 4
_LOG2_E, _NATURAL = 1.0 / math.log(2.0), math.log(2.0)


class TileChangeTools(NamedTuple):
    """Device functions; see :func:`tile_change_tools`."""

    start: Callable[..., Any]
    enter: Callable[..., Any]
    bend: Callable[..., Any]
    unbend: Callable[..., Any]


def bends(kinds: tuple[Any, ...]) -> bool:
    """Whether some step has a derivative other than 1."""
    return any(kind[0] in ("softcap", "modify") for kind in kinds)


@functools.cache
def tile_change_tools(
    kinds: tuple[Any, ...], columns: int, *, by_key: bool = False, steep: bool = False, stacked: bool = False
) -> TileChangeTools:
    """Device functions for scores of `columns` columns; `kinds` as in ``changes.py``, no bias among them.

    ``start()`` makes what the others take as `state`. ``enter(settings, head, row, rows, state)`` is about
    the thread's upper row; by key, rows are keys. If `stacked`, the `rows` are queries of several heads
    behind one another, and `head` counts such stacks (see ``tile/packing.py``). ``bend(settings, scores,
    slopes, factor, first, state)`` changes scores in place, `first` being the number of the thread's first
    column, and, if derivatives are wanted (`steep`) and are not 1, stores these for ``unbend(weights,
    slopes)``, which multiplies by them. Without any kinds they do nothing.
    """
    if not kinds:
        return _nothing()
    count, quads, bending = len(kinds), columns // 8, steep and bends(kinds)
    functions = any(kind[0] == "modify" for kind in kinds)
    held_numbers, kept_words, header = _HELD * count, _KEPT * count, 8 * STEP_WORDS * count
    links = [_make_link(number, kind, by_key, stacked) for number, kind in enumerate(kinds)]
    enter_all = functools.reduce(_both_enter, [link.enter for link in links])
    # Steps one after the other, each for all scores: a loop over all steps of a score would be too long for
    # the compiler to write out, and scores would lie in memory.
    bend_all = functools.reduce(
        _both_bend, [_make_bend(link, quads, bending, number == 0) for number, link in enumerate(links)]
    )
    load_int32 = lanes.load_int32

    @cuda.jit(device=True, inline="always")
    def start():
        # Heads of both rows, the rows.
        spot = cuda.local.array(4, int32)
        held = cuda.local.array(held_numbers, float32)
        kept = cuda.local.array(kept_words, int64)
        met = cuda.local.array(count, int32)
        return spot, held, kept, met

    @cuda.jit(device=True, inline="always")
    def enter(settings, head, row, rows, state):
        spot, held, kept, met = state
        queries, keys = load_int32(settings + header), load_int32(settings + (header + 8))
        last = int32((rows if stacked else keys if by_key else queries) - 1)
        for r in range(2):
            number, owner = int32(min(int32(row + 8 * r), last)), int32(head)
            if stacked:
                member = int32(number // queries)
                owner = int32(owner * int32(rows // queries) + member)
                number = int32(number - member * queries)
            spot[r], spot[2 + r] = owner, number
            enter_all(settings, owner, number, r, held, kept)

    @cuda.jit(device=True, inline="always")
    def bend(settings, scores, slopes, factor, first, state):
        last = int32(load_int32(settings + (header if by_key else header + 8)) - 1)
        for i in range(4 * quads):
            scores[i] = scores[i] * factor
        bend_all(settings, scores, slopes, first, last, state)

    @cuda.jit(device=True, inline="always")
    def unbend(weights, slopes):
        if bending:
            for i in range(4 * quads):
                weight = weights[i] * slopes[i]
                if functions:
                    # Pairs that are not selected have weight 0, and functions may have any derivative there.
                    weight = weight if weights[i] != float32(0.0) else float32(0.0)
                weights[i] = weight

    return TileChangeTools(start, enter, bend, unbend)


def _nothing() -> TileChangeTools:
    @cuda.jit(device=True, inline="always")
    def start():
        return int32(0)

    @cuda.jit(device=True, inline="always")
    def enter(settings, head, row, rows, state):
        pass

    @cuda.jit(device=True, inline="always")
    def bend(settings, scores, slopes, factor, first, state):
        pass

    @cuda.jit(device=True, inline="always")
    def unbend(weights, slopes):
        pass

    return TileChangeTools(start, enter, bend, unbend)


@functools.cache
def pair_change(kinds: tuple[Any, ...], *, stacked: bool) -> Callable[..., Any]:
    """Device function ``(score, settings, head, row, rows, key)`` -> changed score, derivative.

    For a single pair, head and row as in :func:`tile_change_tools`; scores are in base 2 before and after.
    """
    if not kinds:

        @cuda.jit(device=True, inline="always")
        def keep(score, settings, head, row, rows, key):
            return score, float32(1.0)

        return keep

    start, enter, _, _ = tile_change_tools(kinds, 8, stacked=stacked)
    links = [_make_link(number, kind, False, stacked) for number, kind in enumerate(kinds)]
    begin_all = functools.reduce(_both_begin, [link.begin for link in links])
    meet_all = functools.reduce(_both_meet, [link.meet for link in links])
    apply_all = functools.reduce(_both_apply, [link.apply for link in links])

    @cuda.jit(device=True, inline="always")
    def change(score, settings, head, row, rows, key):
        state = start()
        enter(settings, int32(head), int32(row), int32(rows), state)
        spot, held, kept, met = state
        begin_all(settings, held, kept)
        meet_all(int32(key), kept, met)
        place = spot[0], spot[2], int32(key), int32(key), 0, 0
        return apply_all(score, place, held, kept, met)

    return change


class _Link(NamedTuple):
    """One step: for a row; for a product; for a column; for a pair."""

    enter: Callable[..., Any]
    begin: Callable[..., Any]
    meet: Callable[..., Any]
    apply: Callable[..., Any]
    is_long: bool


def _make_link(number: int, kind: tuple[Any, ...], by_key: bool, stacked: bool) -> _Link:
    name = kind[0]
    load_int32, load_int64, load_real = lanes.load_int32, lanes.load_int64, lanes.load_element("float32")
    first_held, first_kept, words = _HELD * number, _KEPT * number, 8 * STEP_WORDS * number
    row_places, column_places = (_KEY_PLACES, _QUERY_PLACES) if by_key else (_QUERY_PLACES, _KEY_PLACES)

    @cuda.jit(device=True, inline="always")
    def enter(settings, head, row, r, held, kept):
        at = settings + words
        if name == "alibi":
            if r == 0 or stacked:
                offset = load_int32(at + 8 * _SIZE)
                slope = load_real(load_int64(at + 8 * _DATA) + 4 * int64(head))
                held[first_held + r] = slope * float32(_LOG2_E)
                held[first_held + 2 + r] = float32(int32(row - offset) if by_key else int32(row + offset))
            else:
                held[first_held + 1] = held[first_held]
                held[first_held + 3] = held[first_held + 2] + float32(8.0)
        elif name == "relative":
            if r == 0 or stacked:
                kept[first_kept + r] = int64(load_int32(load_int64(at + 8 * _STARTS) + 8 * int64(head)))
            else:
                kept[first_kept + 1] = kept[first_kept]
            # Of places the lower halves, which is all that there is: see ``scores/relative.py``.
            kept[first_kept + 2 + r] = int64(load_int32(load_int64(at + 8 * row_places) + 8 * int64(row)))

    @cuda.jit(device=True, inline="always")
    def begin(settings, held, kept):
        at = settings + words
        if name == "softcap":
            cap = load_real(load_int64(at + 8 * _DATA)) * float32(_LOG2_E)
            held[first_held], held[first_held + 1] = cap, float32(1.0) / cap
        elif name == "relative":
            kept[first_kept + 4] = load_int64(at + 8 * column_places)
            kept[first_kept + 5] = int64(load_int32(at + 8 * _SIZE) - 1)
            kept[first_kept + 6] = load_int64(at + 8 * _DATA)

    @cuda.jit(device=True, inline="always")
    def meet(column, kept, met):
        if name == "relative":
            met[number] = load_int32(kept[first_kept + 4] + 8 * int64(column))

    if name == "alibi":

        @cuda.jit(device=True, inline="always")
        def apply(score, place, held, kept, met):
            first, delta, r = place[3], place[4], place[5]
            distance = abs((held[first_held + 2 + r] - float32(first)) - float32(delta))
            return score - held[first_held + r] * distance, float32(1.0)

    elif name == "softcap":
        tanh = math.tanh

        @cuda.jit(device=True, inline="always")
        def apply(score, place, held, kept, met):
            bent = float32(tanh(score * held[first_held + 1]))
            return held[first_held] * bent, float32(1.0) - bent * bent

    elif name == "relative":

        @cuda.jit(device=True, inline="always")
        def apply(score, place, held, kept, met):
            r = place[5]
            difference = int32(int32(kept[first_kept + 2 + r]) - met[number])
            if by_key:
                difference = int32(-difference)
            at = int32(min(max(difference, int32(0)), int32(kept[first_kept + 5])))
            entry_at = kept[first_kept + 6] + 4 * int64(int32(int32(kept[first_kept + r]) + at))
            return score + load_real(entry_at) * float32(_LOG2_E), float32(1.0)

    else:
        function = cuda.jit(device=True, inline="always")(kind[1].function)
        derivative = cuda.jit(device=True, inline="always")(kind[1].derivative or unknown_derivative)

        @cuda.jit(device=True, inline="always")
        def apply(score, place, held, kept, met):
            head, row, column = int64(place[0]), int64(place[1]), int64(place[2])
            i, j = (column, row) if by_key else (row, column)
            plain = float32(score * float32(_NATURAL))
            changed = float32(function(plain, head, i, j)) * float32(_LOG2_E)
            return changed, float32(derivative(plain, head, i, j))

    return _Link(enter, begin, meet, apply, name == "modify")


def _make_bend(link: _Link, quads: int, steep: bool, is_first: bool) -> Any:
    """One step for all scores of a thread."""
    begin, meet, apply = link.begin, link.meet, link.apply
    a_loop = min(quads, _FUNCTION_QUADS if link.is_long else quads)

    def after(before: Any, number: int) -> Any:
        """Some columns after others."""

        @cuda.jit(device=True, inline="always")
        def bend_some(scores, slopes, first, last, state):
            spot, held, kept, met = state
            if number > 0:
                before(scores, slopes, first, last, state)
            for q in range(number * a_loop, (number + 1) * a_loop):
                for e in range(2):
                    delta = 8 * q + e
                    column = int32(min(int32(first + delta), last))
                    meet(column, kept, met)
                    for r in range(2):
                        at = 4 * q + 2 * r + e
                        place = spot[r], spot[2 + r], column, first, delta, r
                        score, slope = apply(scores[at], place, held, kept, met)
                        scores[at] = score
                        if steep:
                            slopes[at] = slope if is_first else slopes[at] * slope

        return bend_some

    bend_all = functools.reduce(after, range(quads // a_loop), None)

    @cuda.jit(device=True, inline="always")
    def bend(settings, scores, slopes, first, last, state):
        spot, held, kept, met = state
        begin(settings, held, kept)
        bend_all(scores, slopes, first, last, state)

    return bend


def _both_bend(first_bend: Any, second_bend: Any) -> Any:
    @cuda.jit(device=True, inline="always")
    def both(settings, scores, slopes, first, last, state):
        first_bend(settings, scores, slopes, first, last, state)
        second_bend(settings, scores, slopes, first, last, state)

    return both


def _both_enter(first: Any, second: Any) -> Any:
    @cuda.jit(device=True, inline="always")
    def both(settings, head, row, r, held, kept):
        first(settings, head, row, r, held, kept)
        second(settings, head, row, r, held, kept)

    return both


def _both_begin(first: Any, second: Any) -> Any:
    @cuda.jit(device=True, inline="always")
    def both(settings, held, kept):
        first(settings, held, kept)
        second(settings, held, kept)

    return both


def _both_meet(first: Any, second: Any) -> Any:
    @cuda.jit(device=True, inline="always")
    def both(column, kept, met):
        first(column, kept, met)
        second(column, kept, met)

    return both


def _both_apply(first: Any, second: Any) -> Any:
    @cuda.jit(device=True, inline="always")
    def both(score, place, held, kept, met):
        once, slope = first(score, place, held, kept, met)
        twice, further = second(once, place, held, kept, met)
        return twice, slope * further

    return both
