"""Order: which query and which key of the caller stand at each place."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import ArgumentError, ShapeError
from ..formats.permuted import inverse

__all__ = ["Order", "Recipe", "as_order"]

Places = npt.NDArray[np.int32]


class Order:
    """A permutation of queries and one of keys.

    Parameters
    ----------
    queries : int array (n_q,)
        ``queries[p]`` is the caller's query at place p: every number from 0 to n_q - 1 once.
    keys : int array (n_k,), optional
        Likewise for keys; the same as `queries` if not given.
    name : str
        What :meth:`numba_sparse_attn.Plan.explain` calls it.

    Examples
    --------
    >>> order = Order([2, 0, 1])
    >>> order.shape, order.query_places.tolist()
    ((3, 3), [1, 2, 0])
    """

    def __init__(self, queries: npt.ArrayLike, keys: npt.ArrayLike | None = None, *, name: str = "") -> None:
        self.queries = _permutation(queries, "queries")
        self.keys = self.queries if keys is None else _permutation(keys, "keys")
        self.name = name or "given by the caller"

    @classmethod
    def natural(cls, shape: tuple[int, int]) -> Order:
        """Everything where it is.

        Examples
        --------
        >>> Order.natural((2, 3)).keys.tolist()
        [0, 1, 2]
        """
        return cls(np.arange(shape[0]), np.arange(shape[1]), name="natural")

    @property
    def shape(self) -> tuple[int, int]:
        """(n_q, n_k)."""
        return len(self.queries), len(self.keys)

    @cached_property
    def query_places(self) -> Places:
        """Where every query of the caller stands."""
        return inverse(self.queries)

    @cached_property
    def key_places(self) -> Places:
        """Where every key of the caller stands."""
        return self.query_places if self.keys is self.queries else inverse(self.keys)

    @property
    def T(self) -> Order:
        """Queries and keys exchanged."""
        return Order(self.keys, self.queries, name=self.name)

    def __repr__(self) -> str:
        return f"<Order {self.name}: {len(self.queries)} x {len(self.keys)}>"

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if not isinstance(other, Order):
            return NotImplemented
        return np.array_equal(self.queries, other.queries) and np.array_equal(self.keys, other.keys)

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        return hash((self.queries.tobytes(), self.keys.tobytes()))


class Recipe:
    """An order that is made when it is needed: a function of this package and its arguments."""

    def __init__(self, make: Callable[..., Order], *arguments: Any, **keywords: Any) -> None:
        self._make, self._arguments, self._keywords = make, arguments, keywords

    def __call__(self) -> Order:
        """Make it."""
        return self._make(*self._arguments, **self._keywords)

    @classmethod
    def of(cls, order: Order) -> Recipe:
        """One whose order has been made."""
        return cls(_itself, order)

    def turned(self) -> Recipe:
        """One for queries in the place of keys."""
        return Recipe(_transposed, self)

    def same(self, other: Recipe) -> bool:
        """Whether both surely make the same order."""
        mine, its = ((*one._arguments, *one._keywords.items()) for one in (self, other))
        return (
            self._make is other._make
            and len(mine) == len(its)
            and all(
                a is b or (not isinstance(a, np.ndarray) and a == b) for a, b in zip(mine, its, strict=True)
            )
        )


def _itself(order: Order) -> Order:
    return order


def _transposed(recipe: Recipe) -> Order:
    return recipe().T


def as_order(value: Any, shape: tuple[int, int]) -> Order:
    """An order of `shape` from an Order or a pair of permutations.

    Examples
    --------
    >>> as_order(([1, 0], [2, 0, 1]), (2, 3))
    <Order given by the caller: 2 x 3>
    """
    if isinstance(value, Order):
        order = value
    elif isinstance(value, tuple | list) and len(value) == 2 and not isinstance(value[0], int | np.integer):
        order = Order(*value)
    else:
        raise ArgumentError(
            f"order={value!r:.60}",
            "'auto', 'natural', None, an Order, or a pair of permutations (queries, keys)",
            "pass two integer arrays that hold every query and every key once",
        )
    if order.shape != shape:
        raise ShapeError(
            f"an order of {order.shape[0]} queries and {order.shape[1]} keys for a pattern of shape {shape}",
            "an order of the pattern's shape",
            "make it for these lengths",
        )
    return order


def _permutation(values: npt.ArrayLike, name: str) -> Places:
    """Checked, copied and frozen."""
    array = np.asarray(values)
    whole = array.ndim == 1 and (np.issubdtype(array.dtype, np.integer) or not array.size)
    if whole and array.size < 2**31:
        places = array.astype(np.int32)
        if np.array_equal(np.sort(array), np.arange(array.size)):
            places.flags.writeable = False
            return places
    raise ArgumentError(
        f"{name} of an order as {array.dtype.name} of shape {array.shape}" + (", no permutation" * whole),
        "one axis of whole numbers that holds every number from 0 to its length - 1 once",
        f"make {name} with numpy.argsort or numpy.random.Generator.permutation",
    )
