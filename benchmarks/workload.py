"""The arrays of one attention case, the same for everyone who is measured on it, and where they lie."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, Protocol, TypeVar

import ml_dtypes
import numpy as np
import numpy.typing as npt

import numba_sparse_attn as nsa
from numba_sparse_attn.formats.pieces import make_pieces

from . import measure
from .kinds import NORMALISERS, AttentionCase, GatherCase, HostCase, MemoryCase, PatternSpec

__all__ = ["Array", "Host", "NotHere", "Place", "Workload", "element_type", "host_random", "make_workload"]

Array = npt.NDArray[Any]
_Result = TypeVar("_Result")


class NotHere(Exception):
    """This machine cannot make a measurement: a library lacks an element type, or an operation."""


class Place(Protocol):
    """Where arrays lie and how time is taken there: :class:`Host`, or :class:`benchmarks.gpu.Gpu`."""

    @property
    def gpu(self) -> bool:
        """Whether calls are queued and memory is counted."""

    @property
    def device(self) -> str:
        """As :func:`numba_sparse_attn.plan` spells it."""

    @property
    def facts(self) -> dict[str, Any]:
        """Row fields of everything that is measured there."""

    def random(self, seed: int, dtype: str, *shapes: tuple[int, ...]) -> list[Any]:
        """Standard-normal arrays that depend on the seed only."""

    def zeros_like(self, array: Any) -> Any:
        """Zeros of the shape and type of `array`."""

    def fetch(self, array: Any) -> Array:
        """The array as NumPy's."""

    def synchronize(self) -> None:
        """Wait until every call is done."""

    def usage(self, call: Callable[[], _Result]) -> tuple[_Result, measure.Usage | None]:
        """The result of a call and the memory that it took, where that can be told."""

    def interleave(
        self,
        runners: Mapping[str, Callable[[], object]],
        *,
        seconds_each: float,
        waits: Mapping[str, Callable[[], object]] | None = None,
    ) -> dict[str, measure.Timing]:
        """Time contenders in turns; `waits` are for those whose calls return before they are done."""

    def energy(self, run: Callable[[], object], wait: Callable[[], object] | None = None) -> dict[str, Any]:
        """Row fields with the energy of a call, where somebody counts it."""


class Host:
    """NumPy arrays and the host's clock."""

    @property
    def gpu(self) -> bool:
        """No."""
        return False

    @property
    def device(self) -> str:
        """The host."""
        return "cpu"

    @property
    def facts(self) -> dict[str, Any]:
        """The processor is in every row anyway."""
        return {}

    def random(self, seed: int, dtype: str, *shapes: tuple[int, ...]) -> list[Any]:
        """NumPy arrays."""
        return [host_random(seed + number, shape, dtype) for number, shape in enumerate(shapes)]

    def zeros_like(self, array: Any) -> Any:
        """Zeros."""
        return np.zeros_like(array)

    def fetch(self, array: Any) -> Array:
        """The array itself."""
        found: Array = array
        return found

    def synchronize(self) -> None:
        """Calls return when they are done."""

    def usage(self, call: Callable[[], _Result]) -> tuple[_Result, None]:
        """Not told: a process' own memory is measured by :mod:`benchmarks.probe`, in a fresh one."""
        return call(), None

    def interleave(
        self,
        runners: Mapping[str, Callable[[], object]],
        *,
        seconds_each: float,
        waits: Mapping[str, Callable[[], object]] | None = None,
    ) -> dict[str, measure.Timing]:
        """By the clock on the wall, every call until it is done."""

        def done(run: Callable[[], object], wait: Callable[[], object]) -> None:
            run()
            wait()

        waited = {name: partial(done, runners[name], wait) for name, wait in (waits or {}).items()}
        return measure.interleave({**runners, **waited}, seconds_each=seconds_each)

    def energy(self, run: Callable[[], object], wait: Callable[[], object] | None = None) -> dict[str, Any]:
        """Nobody counts that of a process here: a processor's counter is the administrator's to read."""
        return {}


@dataclass(frozen=True, eq=False)
class Workload:
    """Inputs of one case; `q`, `k`, `v` and `dout` are ``(heads, n, d)``, arrays of `place`."""

    spec: PatternSpec
    pattern: nsa.Pattern | nsa.HeadPatterns
    direction: str
    dtype: np.dtype[Any]
    place: Place
    q: Any
    k: Any
    v: Any
    dout: Any
    normaliser: nsa.normalisers.Normaliser | None = None

    @property
    def heads(self) -> int:
        """Query heads."""
        return int(self.q.shape[0])

    @property
    def kv_heads(self) -> int:
        """Key heads."""
        return int(self.k.shape[0])

    @property
    def head_dim(self) -> int:
        """Length of a query."""
        return int(self.q.shape[2])

    @property
    def value_dim(self) -> int:
        """Length of a value."""
        return int(self.v.shape[2])

    @property
    def scale(self) -> float:
        """The factor that every contender uses."""
        return 1.0 / math.sqrt(self.head_dim)

    def head_pattern(self, head: int) -> nsa.Pattern:
        """The pattern of one head."""
        return self.pattern if isinstance(self.pattern, nsa.Pattern) else self.pattern[head]

    @cached_property
    def nnz(self) -> int:
        """Selected pairs over all heads."""
        return sum(self.head_pattern(head).nnz for head in range(self.heads))

    @property
    def density(self) -> float:
        """Share of all pairs that is selected."""
        n_q, n_k = self.pattern.shape
        return self.nnz / (self.heads * n_q * n_k)

    @property
    def flops(self) -> int:
        """Useful operations: the products over selected pairs, two forward and five backward."""
        forward = 2 * self.nnz * (self.head_dim + self.value_dim)
        backward = 2 * self.nnz * (3 * self.head_dim + 2 * self.value_dim)
        return {"forward": forward, "backward": backward, "training": forward + backward}[self.direction]

    @property
    def gathered_bytes(self) -> int:
        """Every selected key and value, read once a pair and head."""
        return self.nnz * (self.head_dim + self.value_dim) * self.dtype.itemsize

    @cached_property
    def masks(self) -> npt.NDArray[np.bool_]:
        """Dense masks for contenders that take nothing else: ``(1 or heads, n_q, n_k)``."""
        if isinstance(self.pattern, nsa.Pattern):
            return self.pattern.toarray()[None]
        return np.stack([self.head_pattern(head).toarray() for head in range(self.heads)])

    def mask_rows(self, head: int, ranges: list[tuple[int, int]]) -> npt.NDArray[np.bool_]:
        """Rows of one head's mask without making the others: ``(rows, n_k)``."""
        pattern = self.head_pattern(head)
        rows = np.concatenate([np.arange(begin, end) for begin, end in ranges])
        if pattern.regular:
            begins, ends = np.transpose(ranges)
            chosen = nsa.Pattern.from_pieces(
                pattern.shape, make_pieces(rows=(begins, ends), columns=(0, pattern.shape[1]))
            )
            pattern = pattern & chosen
        csr = pattern.rows()
        mask = np.zeros((len(rows), pattern.shape[1]), np.bool_)
        for line, row in zip(mask, rows, strict=True):
            line[csr.indices[csr.indptr[row] : csr.indptr[row + 1]]] = True
        return mask


def element_type(dtype: str) -> np.dtype[Any]:
    """NumPy's type of that name."""
    return np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)


def host_random(seed: int, shape: tuple[int, ...], dtype: str) -> Array:
    """Standard-normal numbers as a NumPy array."""
    generator = np.random.default_rng(seed)
    return generator.standard_normal(shape, np.float32).astype(element_type(dtype))


def make_workload(
    case: AttentionCase | MemoryCase | HostCase | GatherCase, seed: int, place: Place
) -> Workload:
    """Pattern and arrays of a case; the arrays depend on the seed and the case's name only."""
    pattern = case.spec.build()
    n_q, n_k = pattern.shape
    arrays = place.random(
        (seed << 32) + (zlib.crc32(case.name.encode()) & ~3),  # four arrays from four seeds
        case.dtype,
        (case.heads, n_q, case.head_dim),
        (case.kv_heads, n_k, case.head_dim),
        (case.kv_heads, n_k, case.head_dim),
        (case.heads, n_q, case.head_dim),
    )
    made = Workload(case.spec, pattern, case.direction, element_type(case.dtype), place, *arrays)
    return replace(made, normaliser=NORMALISERS.get(getattr(case, "normaliser", "")))
