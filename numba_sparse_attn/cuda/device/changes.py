"""Changes of scores inside of warp kernels: what a score goes through between product and softmax.

Which steps there are is known when a kernel is compiled; their numbers are read, once a warp, from a block of
settings in global memory (``cuda/changes.py`` writes it). Scores are in base 2 here, log2(e) times what users
see, so numbers that are added are scaled once, and a kernel whose steps add 0 has the bits of one without
any.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

from numba import cuda, float32, float64, int32, int64

from . import lanes as device

__all__ = ["STEP_WORDS", "ChangeTools", "change_tools", "unknown_derivative"]

#: int64 words of settings a step: addresses of the numbers and of where each head's begin; of places of
#: queries and of keys; size or offset; address of a single number; addresses of what pairs contribute to the
#: gradient, and of where each head's contributions begin.
STEP_WORDS = 8
_DATA, _STARTS, _QUERY_PLACES, _KEY_PLACES, _SIZE, _NUMBER, _PAIRS, _PAIR_STARTS = range(STEP_WORDS)

#: What a warp keeps of a step: addresses of numbers and places, size or offset, address of contributions.
_KEPT = 5


class ChangeTools(NamedTuple):
    """Device functions; see :func:`change_tools`."""

    start: Callable[..., Any]
    enter: Callable[..., Any]
    bend: Callable[..., Any]
    back: Callable[..., Any]


@functools.cache
def change_tools(
    kinds: tuple[Any, ...], real_kind: str, steps: int, a_step: int, by_key: bool
) -> ChangeTools:
    """Device functions for kernels whose warps use `steps` rows at a time, `a_step` apart in their lists.

    Parameters
    ----------
    kinds : tuple
        One item a step: ("bias", element type, wanted), ("alibi", wanted), ("relative", wanted), ("softcap",)
        or ("modify", function, derivative or None), a function of (score, head, i, j). Wanted is whether
        pairs write down what they contribute to the gradient of the step's numbers.
    by_key : bool
        Whether a warp's row is a key and the rows that it reads are queries.

    Returns
    -------
    ``start(row, finish)`` makes what the others take as `where`: the warp's row, and the end of its list.
    ``enter(settings, flat, head, where)`` reads the settings for a query head, `flat` counted through
    batches. ``bend(scores, rows, left, entries, where)`` changes the scores of a round in place.
    ``back(slope, s, left, writes, where)`` is the gradient of score s of the round from that of the changed
    one. Without any kinds they do nothing.
    """
    if not kinds:
        return _nothing()
    real = float64 if real_kind == "float64" else float32
    count = len(kinds)
    load_int64 = device.load_int64
    links = [_make_link(number, kind, real_kind, by_key) for number, kind in enumerate(kinds)]
    enter_all, apply_all = _chained([link[0] for link in links]), _applied([link[1] for link in links])
    back_all = _returned([link[2] for link in reversed(links)])
    kept_words, bends_words = _KEPT * count, steps * count
    needs_entries = by_key and any(kind[0] == "bias" for kind in kinds)

    @cuda.jit(device=True, inline="always")
    def start(row, finish):
        spot = cuda.local.array(3, int64)
        kept = cuda.local.array(kept_words, int64)
        numbers = cuda.local.array(count, real)
        bends = cuda.local.array(bends_words, real)
        spot[0], spot[1], spot[2] = row, finish, int64(0)
        return spot, kept, numbers, bends

    @cuda.jit(device=True, inline="always")
    def enter(settings, flat, head, where):
        spot, kept, numbers, bends = where
        spot[2] = head
        enter_all(settings, flat, head, kept, numbers)

    @cuda.jit(device=True, inline="always")
    def bend(scores, rows, left, entries, where):
        spot, kept, numbers, bends = where
        for s in range(steps):
            if s * a_step < left:
                entry = spot[1] - left + s * a_step
                if needs_entries:
                    entry = load_int64(entries + 8 * entry)
                i, j = spot[0], int64(rows[s])
                if by_key:
                    i, j = int64(rows[s]), spot[0]
                scores[s] = apply_all(scores[s], spot[2], i, j, entry, kept, numbers, bends, s * count)

    @cuda.jit(device=True, inline="always")
    def back(slope, s, left, writes, where):
        spot, kept, numbers, bends = where
        return back_all(slope, spot[1] - left + s * a_step, writes, kept, bends, s * count)

    return ChangeTools(start, enter, bend, back)


def _nothing() -> ChangeTools:
    @cuda.jit(device=True, inline="always")
    def start(row, finish):
        return int32(0)

    @cuda.jit(device=True, inline="always")
    def enter(settings, flat, head, where):
        pass

    @cuda.jit(device=True, inline="always")
    def bend(scores, rows, left, entries, where):
        pass

    @cuda.jit(device=True, inline="always")
    def back(slope, s, left, writes, where):
        return slope

    return ChangeTools(start, enter, bend, back)


def _make_link(number: int, kind: tuple[Any, ...], real_kind: str, by_key: bool) -> tuple[Any, Any, Any]:
    """(enter, apply, back) of one step."""
    real = float64 if real_kind == "float64" else float32
    real_bytes = 8 if real_kind == "float64" else 4
    name = kind[0]
    log2_e, natural = 1.0 / math.log(2.0), math.log(2.0)
    load_int64, load_real = device.load_int64, device.load_element(real_kind)
    store_real, tanh = device.store_element(real_kind), math.tanh
    first, words = _KEPT * number, 8 * STEP_WORDS * number
    wanted = name in ("bias", "alibi", "relative") and kind[-1] and not by_key
    bending = name in ("softcap", "modify")

    @cuda.jit(device=True, inline="always")
    def enter(settings, flat, head, kept, numbers):
        at = settings + words
        data = load_int64(at + 8 * _DATA)
        if name == "bias":
            start = load_int64(load_int64(at + 8 * _STARTS) + 8 * flat)
            kept[first] = data + start * real_bytes
        elif name == "relative":
            start = load_int64(load_int64(at + 8 * _STARTS) + 8 * head)
            kept[first] = data + start * real_bytes
            kept[first + 1] = load_int64(at + 8 * _QUERY_PLACES)
            kept[first + 2] = load_int64(at + 8 * _KEY_PLACES)
            kept[first + 3] = load_int64(at + 8 * _SIZE) - 1
        elif name == "alibi":
            numbers[number] = load_real(data + head * real_bytes) * real(log2_e)
            kept[first + 3] = load_int64(at + 8 * _SIZE)
        elif name == "softcap":
            numbers[number] = load_real(data) * real(log2_e)
        if wanted:
            start = load_int64(load_int64(at + 8 * _PAIR_STARTS) + 8 * flat)
            kept[first + 4] = load_int64(at + 8 * _PAIRS) + start * real_bytes

    if name == "bias":

        @cuda.jit(device=True, inline="always")
        def apply(score, head, i, j, entry, kept, numbers, bends, place):
            return score + load_real(kept[first] + entry * real_bytes) * real(log2_e)

    elif name == "alibi":

        @cuda.jit(device=True, inline="always")
        def apply(score, head, i, j, entry, kept, numbers, bends, place):
            return score - numbers[number] * real(abs(i + kept[first + 3] - j))

    elif name == "relative":

        @cuda.jit(device=True, inline="always")
        def apply(score, head, i, j, entry, kept, numbers, bends, place):
            at = load_int64(kept[first + 1] + 8 * i) - load_int64(kept[first + 2] + 8 * j)
            at = min(max(at, int64(0)), kept[first + 3])
            return score + load_real(kept[first] + at * real_bytes) * real(log2_e)

    elif name == "softcap":

        @cuda.jit(device=True, inline="always")
        def apply(score, head, i, j, entry, kept, numbers, bends, place):
            bent = real(tanh(score / numbers[number]))
            bends[place + number] = real(1.0) - bent * bent
            return numbers[number] * bent

    else:
        function = cuda.jit(device=True, inline="always")(kind[1].function)
        derivative = cuda.jit(device=True, inline="always")(kind[1].derivative or unknown_derivative)

        @cuda.jit(device=True, inline="always")
        def apply(score, head, i, j, entry, kept, numbers, bends, place):
            plain = real(score * real(natural))
            bends[place + number] = real(derivative(plain, head, i, j))
            return real(function(plain, head, i, j)) * real(log2_e)

    @cuda.jit(device=True, inline="always")
    def back(slope, entry, writes, kept, bends, place):
        if wanted and writes:
            store_real(kept[first + 4] + entry * real_bytes, slope)
        if bending:
            slope = slope * bends[place + number]
        return slope

    return enter, apply, back


def unknown_derivative(score: float, head: int, i: int, j: int) -> float:
    """In place of a derivative that there is not: nobody goes back through such a function."""
    return math.nan


def _chained(links: list[Any]) -> Any:
    """All of `enter`, one after the other."""
    chain = links[0]
    for link in links[1:]:
        chain = _make_both(chain, link)
    return chain


def _make_both(first: Any, second: Any) -> Any:
    @cuda.jit(device=True, inline="always")
    def both(settings, flat, head, kept, numbers):
        first(settings, flat, head, kept, numbers)
        second(settings, flat, head, kept, numbers)

    return both


def _applied(links: list[Any]) -> Any:
    chain = links[0]
    for link in links[1:]:
        chain = _make_applied(chain, link)
    return chain


def _make_applied(first: Any, second: Any) -> Any:
    @cuda.jit(device=True, inline="always")
    def both(score, head, i, j, entry, kept, numbers, bends, place):
        changed = first(score, head, i, j, entry, kept, numbers, bends, place)
        return second(changed, head, i, j, entry, kept, numbers, bends, place)

    return both


def _returned(links: list[Any]) -> Any:
    chain = links[0]
    for link in links[1:]:
        chain = _make_returned(chain, link)
    return chain


def _make_returned(first: Any, second: Any) -> Any:
    @cuda.jit(device=True, inline="always")
    def both(slope, entry, writes, kept, bends, place):
        return second(first(slope, entry, writes, kept, bends, place), entry, writes, kept, bends, place)

    return both
