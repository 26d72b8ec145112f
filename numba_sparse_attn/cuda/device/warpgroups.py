"""Barriers of a multiplying warpgroup among itself, by its number, which the code of both shares."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

from numba import cuda

from ..ptx.barriers import named_barrier

__all__ = ["GroupBarriers", "group_barriers"]

_THREADS = 128


class GroupBarriers(NamedTuple):
    """Device functions; see :func:`group_barriers`."""

    sync: Callable[..., None]
    any: Callable[..., Any]


@functools.cache
def group_barriers() -> GroupBarriers:
    """Device functions of warpgroup 0 or 1: ``sync(group)`` waits for its threads; ``any(group, condition)``
    does, too, and says whether the condition holds for one of them.
    """
    first, second = named_barrier(1, _THREADS), named_barrier(2, _THREADS)
    first_sync, first_any, second_sync, second_any = first.sync, first.any, second.sync, second.any

    @cuda.jit(device=True, inline="always")
    def sync(group):
        if group == 0:
            first_sync()
        else:
            second_sync()

    @cuda.jit(device=True, inline="always")
    def any_of(group, condition):
        if group == 0:
            return first_any(condition)
        return second_any(condition)

    return GroupBarriers(sync, any_of)
