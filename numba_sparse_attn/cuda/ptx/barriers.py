"""Barriers in shared memory (mbarrier), barriers by number, proxy fences, and registers of a warpgroup.

Addresses are 32-bit shared-memory addresses. A phase of an mbarrier ends when all arrivals and all bytes
that were announced have come; a waiting thread names the parity of the phase whose end it waits for.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

from numba.core.types import int32, uint32

from .instructions import instruction

__all__ = [
    "NamedBarrier",
    "barrier_arrive",
    "barrier_expect",
    "barrier_init",
    "barrier_wait",
    "fence_async_proxy",
    "fence_barrier_init",
    "give_registers",
    "named_barrier",
    "take_registers",
]

#: (address, arrivals a phase)
barrier_init = instruction("mbarrier.init.shared::cta.b64 [$0], $1;", "r,r", (uint32, int32))

#: Makes initialised barriers known to the copy engine.
fence_barrier_init = instruction("fence.mbarrier_init.release.cluster;", "", ())

#: (address, bytes): arrive, and let the phase wait for this many bytes.
barrier_expect = instruction("mbarrier.arrive.expect_tx.shared::cta.b64 _, [$0], $1;", "r,r", (uint32, int32))

#: (address)
barrier_arrive = instruction("mbarrier.arrive.shared::cta.b64 _, [$0];", "r", (uint32,))

#: (address, parity): return when the phase with this parity has ended.
barrier_wait = instruction(
    "{ .reg .pred over; AGAIN: mbarrier.try_wait.parity.shared::cta.b64 over, [$0], $1; "
    "@over bra.uni OVER; bra.uni AGAIN; OVER: }",
    "r,r",
    (uint32, int32),
)

#: Orders this thread's ordinary accesses to shared memory before those of the copy engine and wgmma.
fence_async_proxy = instruction("fence.proxy.async.shared::cta;", "", ())


class NamedBarrier(NamedTuple):
    """What threads can do with one of a block's 16 barriers."""

    #: (): wait for all of its threads.
    sync: Any
    #: (condition as int32): wait, and return 1 if the condition holds anywhere, else 0.
    any: Any


@functools.cache
def named_barrier(number: int, threads: int) -> NamedBarrier:
    """Barrier `number` of a block for `threads` threads.

    The number is part of the text: told only at run time, the assembler reserves all 16.
    """
    return NamedBarrier(
        instruction(f"bar.sync {number}, {threads};", "", ()),
        instruction(
            "{ .reg .pred here, anywhere; setp.ne.b32 here, $1, 0; "
            f"bar.red.or.pred anywhere, {number}, {threads}, here; selp.b32 $0, 1, 0, anywhere; }}",
            "=r,r",
            (int32,),
            int32,
        ),
    )


@functools.cache
def take_registers(count: int) -> Any:
    """Intrinsic (): every thread of a warpgroup may use `count` registers, once others have given some."""
    return instruction(f"setmaxnreg.inc.sync.aligned.u32 {count};", "", ())


@functools.cache
def give_registers(count: int) -> Any:
    """Intrinsic (): every thread of a warpgroup keeps `count` registers and gives the others back."""
    return instruction(f"setmaxnreg.dec.sync.aligned.u32 {count};", "", ())
