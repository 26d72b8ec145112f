"""What every selection does first, check q and k, and what it does last, stack a pattern a head."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import numpy as np

from .. import arrays
from ..errors import ArgumentError, ShapeError
from ..formats.limits import limits_of
from ..formats.pieces import UNBOUNDED, make_pieces
from ..patterns._arguments import check_flag, check_int, title
from ..patterns.heads import HeadPatterns
from ..patterns.pattern import Pattern
from ._panels import Floats, Integers
from ._tools import HostTools, Tools

__all__ = ["Call", "Floats", "Integers", "named"]

_Made = TypeVar("_Made")


class _Words:
    """Stands for an argument in the name of a pattern."""

    def __init__(self, words: str) -> None:
        self._words = words

    def __repr__(self) -> str:
        return self._words


def named(select: Callable[..., Any], **arguments: Any) -> str:
    """The call that selects, as a pattern's name: without q and k, arrays by their shape."""
    return title(select, **{name: _shown(value) for name, value in arguments.items()})


def _shown(value: Any) -> Any:
    if hasattr(value, "shape") and value.shape:
        return _Words(f"<{' x '.join(map(str, value.shape))}>")
    if isinstance(value, list | tuple) and not all(map(np.isscalar, value)):
        return _Words(f"<{len(value)} layers>")
    return value


@dataclass(frozen=True, eq=False)
class Call:
    """Checked queries and keys.

    Attributes
    ----------
    sizes : Dimensions
    causal : bool
    tools : Tools
        What is computed of q and k, where they lie.
    """

    sizes: arrays.Dimensions
    causal: bool
    tools: Tools

    @classmethod
    def of(cls, q: Any, k: Any, causal: Any, *, on_device: bool = False) -> Call:
        """Check the arrays of a call; those in GPU memory are refused unless `on_device`, and stay there."""
        causal = check_flag("causal", causal)
        if on_device and (arrays.in_device_memory(q) or arrays.in_device_memory(k)):
            from ..cuda.interchange import device_views
            from ..cuda.selection import DeviceTools

            views = device_views(("q", "k"), (q, k))
            if views is not None:
                # Selection reads no values: the keys stand in for them.
                sizes = arrays.check_arrays(views[0], views[1], views[1])
                return cls(sizes, causal, DeviceTools(sizes, views[0], views[1]))
        queries, keys = arrays.host_array(q, "q"), arrays.host_array(k, "k")
        sizes = arrays.check_arrays(queries, keys, keys)
        return cls(sizes, causal, HostTools(sizes, queries, keys))

    def beside(self, value: Any, name: str) -> Any:
        """Another array of the call, which has to lie where q and k do: a NumPy array or a view."""
        if isinstance(self.tools, HostTools):
            return arrays.host_array(value, name)
        from ..cuda.interchange import device_views

        views = device_views(("q", name), (self.tools.queries.hold[0].owner, value))
        assert views is not None  # for q is there
        return views[1]

    @property
    def q(self) -> Floats:
        """``[batch, heads, n_q, d]`` in the type that sums are taken in, on the host."""
        return self._on_host.q

    @property
    def k(self) -> Floats:
        """``[batch, kv_heads, n_k, d]``, likewise."""
        return self._on_host.k

    @property
    def _on_host(self) -> HostTools:
        if not isinstance(self.tools, HostTools):
            raise AssertionError("only selections that say on_device=True get arrays in GPU memory")
        return self.tools

    @property
    def heads(self) -> int:
        """Query heads."""
        return self.sizes.heads

    @property
    def group(self) -> int:
        """Query heads that share one key head."""
        return self.heads // self.sizes.kv_heads

    @property
    def n_q(self) -> int:
        """Queries."""
        return self.sizes.n_q

    @property
    def n_k(self) -> int:
        """Keys."""
        return self.sizes.n_k

    @property
    def offset(self) -> int:
        """Query i stands where key ``i + offset`` does: the last query beside the last key."""
        return self.n_k - self.n_q

    @property
    def differences(self) -> tuple[int, int]:
        """Band of j - i that a query may see, for pieces."""
        return -UNBOUNDED, self.offset if self.causal else UNBOUNDED

    @cached_property
    def visible(self) -> Integers:
        """How many keys, from the first on, each query may see."""
        return limits_of(self.n_q, self.n_k, causal=self.causal).values()

    def queries(self, batch: int, head: int) -> Floats:
        """``[n_q, d]`` of one head."""
        return self._on_host.queries(batch, head)

    def keys(self, batch: int, head: int) -> Floats:
        """``[n_k, d]`` of the key head that a query head reads."""
        return self._on_host.keys(batch, head)

    def per_head(self, name: str, value: Any, *, low: int = 0) -> list[int]:
        """A whole number for every query head, from one for all of them or from as many as there are."""
        return [check_int(name, item, low=low) for item in self._items(name, value)]

    def per_head_float(self, name: str, value: Any) -> list[float]:
        """A finite number for every query head, likewise."""
        numbers = []
        for item in self._items(name, value):
            try:
                number = float(item)
            except (TypeError, ValueError):
                number = math.nan
            if not math.isfinite(number):
                raise ArgumentError(f"{name}={item!r}", "finite numbers", f"correct {name}")
            numbers.append(number)
        return numbers

    def _items(self, name: str, value: Any) -> list[Any]:
        if np.ndim(value) == 0:
            return [value] * self.heads
        items = list(value)
        if len(items) != self.heads:
            raise ArgumentError(
                f"{name} with {len(items)} values for {self.heads} query heads",
                "one number for all heads, or one for every query head",
                f"give {self.heads} values",
            )
        return items

    def head_arrays(self, name: str, value: Any, shape: tuple[int | None, ...]) -> Floats:
        """A parameter as ``[heads, *shape]``, given so or without the heads axis; None is any length."""
        array = arrays.host_array(value, name)
        wanted = [self.heads, *shape][-array.ndim :] if 0 <= array.ndim - len(shape) <= 1 else [None]
        fits = len(wanted) == array.ndim and all(
            want in (None, have) for want, have in zip(wanted, array.shape, strict=True)
        )
        if not fits or array.dtype.kind not in "fiuV" or not np.isfinite(array.astype(np.float64)).all():
            layout = ", ".join("any" if length is None else str(length) for length in shape)
            raise ShapeError(
                f"{name} of {array.dtype.name} with shape {array.shape} for {self.heads} query heads",
                f"finite numbers of shape ({layout}), or ({self.heads}, {layout}) for one set a head",
                f"correct {name}",
            )
        wide = array.astype(np.float64 if self.sizes.dtype == np.float64 else np.float32)
        return np.broadcast_to(wide, (self.heads, *wide.shape[wide.ndim - len(shape) :]))

    def of_heads(self, make: Callable[[int, int], _Made]) -> list[_Made]:
        """``make(batch, head)`` for every query head, in C order."""
        return [make(batch, head) for batch in range(self.sizes.batch) for head in range(self.heads)]

    def stack(self, select: Callable[[int, int], Pattern]) -> Pattern | HeadPatterns:
        """The pattern of every head, ``select(batch, head)``."""
        return self.stacked(self.of_heads(select))

    def stacked(self, made: Sequence[Pattern]) -> Pattern | HeadPatterns:
        """The patterns of all query heads, or of all key heads, as the result of a call."""
        if self.sizes.flat:
            return made[0]
        step = self.sizes.batch * self.heads // max(len(made), 1)
        index = np.repeat(np.arange(len(made)), step).reshape(*self.sizes.lead, self.heads)
        # Without any batch element there still is a shape to remember.
        nothing = Pattern.from_pieces((self.n_q, self.n_k), make_pieces(rows=(0, 0), columns=(0, 0)))
        return HeadPatterns(made or [nothing], index)
