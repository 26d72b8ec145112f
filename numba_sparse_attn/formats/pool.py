"""The pool of unique masks: every 128 x 128 bit mask is stored once and known by its number.

Interning is what keeps long regular patterns small: a window of any length has a handful of masks.
Two tables find a mask again: one keyed by its 2048 bytes, and one (`signatures`) keyed by a short
description of the mask, so that tiles that look alike are recognised without drawing their bits.
Both compare what they find in full; a hash alone decides nothing.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ..jit import inlined, kernel
from .tiles import FULL, TILE, WORDS

__all__ = ["EMPTY", "MaskPool", "find_signature", "intern_mask", "mix", "store_signature"]

#: What interning the all-zero mask returns: it has no number, because empty tiles are not listed.
EMPTY = -1

#: Tiles with more entries than this are drawn without looking for a signature first.
_SIGNATURE_LIMIT = 24
_SIGNATURE_WORDS = 1 << 15
_SIGNATURE_SLOTS = 1 << 13


class MaskPool:
    """Growable arrays behind :func:`intern_mask`; kernels receive them through :attr:`arrays`.

    Kernels cannot grow an array that Python holds, so they stop between tile rows when `room` is
    short, and their caller calls :meth:`reserve` and resumes.
    """

    def __init__(self) -> None:
        self.masks = np.zeros((64, TILE * WORDS), np.uint64)
        self.table = np.full(256, -1, np.int32)
        #: [masks stored, signatures stored, signature words stored]
        self.counts = np.zeros(3, np.int64)
        self.signature_table = np.full(_SIGNATURE_SLOTS, -1, np.int32)
        #: [first word, number of words, mask id] of every signature
        self.signatures = np.empty((_SIGNATURE_SLOTS // 2, 3), np.int32)
        self.signature_words = np.empty(_SIGNATURE_WORDS, np.uint64)
        #: Scratch: the signature of the tile at hand.
        self.signature = np.empty(_SIGNATURE_LIMIT, np.uint64)
        self.masks[FULL] = ~np.uint64(0)  # known without the table
        self.counts[0] = 1

    @property
    def count(self) -> int:
        """Number of masks, the full mask included."""
        return int(self.counts[0])

    def reserve(self, room: int) -> None:
        """Make sure that `room` further masks fit."""
        needed = self.count + room
        if needed > len(self.masks):
            capacity = max(needed, 2 * len(self.masks))
            masks = np.empty((capacity, TILE * WORDS), np.uint64)
            masks[: self.count] = self.masks[: self.count]
            self.masks = masks
        if 2 * len(self.masks) > len(self.table):
            self.table = np.full(1 << int(2 * len(self.masks) - 1).bit_length(), -1, np.int32)
            _rebuild_table(self.masks, self.table, self.count)

    def stored(self) -> npt.NDArray[np.uint64]:
        """The masks as ``Tiles.pool`` has them, ``uint64 [count, TILE, WORDS]``; a view."""
        return self.masks[: self.count].reshape(-1, TILE, WORDS)

    @property
    def arrays(self) -> tuple[npt.NDArray[Any], ...]:
        """What kernels take: masks, table, counts, and the four signature arrays."""
        return (
            self.masks,
            self.table,
            self.counts,
            self.signature_table,
            self.signatures,
            self.signature_words,
            self.signature,
        )


@inlined
def _hash_mask(mask):
    """Mix the words of a mask in four independent chains (their multiplies overlap)."""
    a = np.uint64(0x243F6A8885A308D3)
    b = np.uint64(0x13198A2E03707344)
    c = np.uint64(0xA4093822299F31D0)
    d = np.uint64(0x082EFA98EC4E6C89)
    for position in range(0, TILE * WORDS, 4):
        a = mix(a, mask[position])
        b = mix(b, mask[position + 1])
        c = mix(c, mask[position + 2])
        d = mix(d, mask[position + 3])
    return _finish(mix(mix(mix(a, b), c), d))


@inlined
def mix(state, word):
    """One step of a 64-bit hash; its high bits are better than its low ones."""
    state = (state ^ word) * np.uint64(0x9E3779B97F4A7C15)
    return state ^ (state >> np.uint64(29))


@inlined
def _finish(state):
    """Let the high bits reach the low ones, which choose the slot."""
    return mix(state ^ (state >> np.uint64(32)), np.uint64(0)) >> np.uint64(8)


@inlined
def intern_mask(masks, table, counts, mask):
    """Number of a mask (uint64 [TILE * WORDS]); stored if new. The caller has reserved room."""
    any_bit = np.uint64(0)
    every_bit = ~np.uint64(0)
    for word in range(TILE * WORDS):
        any_bit |= mask[word]
        every_bit &= mask[word]
    if any_bit == 0:
        return np.int64(EMPTY)
    if every_bit == ~np.uint64(0):
        return np.int64(FULL)
    slots = len(table)
    slot = np.int64(_hash_mask(mask) & np.uint64(slots - 1))
    while True:
        found = np.int64(table[slot])
        if found < 0:
            break
        same = np.uint64(0)
        for word in range(TILE * WORDS):
            same |= masks[found, word] ^ mask[word]
        if same == 0:
            return found
        slot = (slot + 1) & (slots - 1)
    number = counts[0]
    for word in range(TILE * WORDS):
        masks[number, word] = mask[word]
    table[slot] = number
    counts[0] = number + 1
    return number


@kernel
def _rebuild_table(masks, table, count):
    """Enter masks 1 .. count - 1, known to differ, into an empty table."""
    slots = len(table)
    for number in range(1, count):
        slot = np.int64(_hash_mask(masks[number]) & np.uint64(slots - 1))
        while table[slot] >= 0:
            slot = (slot + 1) & (slots - 1)
        table[slot] = number


@inlined
def find_signature(signature_table, signatures, signature_words, words, count, digest):
    """(mask id, slot): the id stored for a signature with this hash, or (-2, free slot)."""
    slots = len(signature_table)
    slot = np.int64(_finish(digest) & np.uint64(slots - 1))
    while True:
        found = signature_table[slot]
        if found < 0:
            return np.int64(-2), slot
        if signatures[found, 1] == count:
            first = signatures[found, 0]
            same = True
            for position in range(count):
                if signature_words[first + position] != words[position]:
                    same = False
                    break
            if same:
                return np.int64(signatures[found, 2]), slot
        slot = (slot + 1) & (slots - 1)


@inlined
def store_signature(counts, signature_table, signatures, signature_words, slot, words, count, mask_id):
    """Remember a signature; silently forgets it when the tables are full (it only saves time)."""
    number = counts[1]
    first = counts[2]
    if number >= len(signatures) or first + count > len(signature_words):
        return
    for position in range(count):
        signature_words[first + position] = words[position]
    signatures[number, 0] = first
    signatures[number, 1] = count
    signatures[number, 2] = mask_id
    signature_table[slot] = number
    counts[1] = number + 1
    counts[2] = first + count
