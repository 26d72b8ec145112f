"""Which order of tokens a call is computed in, what moving the tokens costs, and why it pays or does not."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from .choices import Kind
from .orders.order import Order, as_order
from .patterns.pattern import Pattern

__all__ = ["Arrangement", "Call", "arrange", "as_wish", "natural"]

#: What a caller asks for: "auto", "natural", or an order.
Wish = str | Order
#: Predicted seconds of the forward pass of a pattern, in the order it is given in.
Predict = Callable[[Pattern, Kind], float]

#: An order that should save less than a quarter is not taken: predictions are of the forward pass and not
#: that good. (CPU, neighborhood of 13 x 13 on 64 x 64: predicted 0.85 of the time; measured 0.98 forward and
#: 1.3 backward.)
_WORTH = 0.75


@dataclass(frozen=True)
class Call:
    """What the cost of moving tokens depends on.

    Attributes
    ----------
    index : int32 [..., heads]
        Which pattern each head has.
    heads, kv_heads : int
    width : int
        Elements of a query and its output, or of a key and its value.
    itemsize : int
    """

    index: npt.NDArray[np.int32]
    heads: int
    kv_heads: int
    width: int
    itemsize: int

    def moved_bytes(self, shape: tuple[int, int]) -> int:
        """Size of q, k, v and out of a batch element; each is read once and written once more."""
        return (self.heads * shape[0] + self.kv_heads * shape[1]) * self.width * self.itemsize

    def shares_keys(self, orders: Sequence[Order]) -> bool:
        """Whether query heads that read one key head agree on the order of its keys."""
        groups = np.unique(self.index.reshape(-1, self.heads // self.kv_heads), axis=0)
        return all(
            orders[group[0]].keys is orders[other].keys
            or np.array_equal(orders[group[0]].keys, orders[other].keys)
            for group in groups
            for other in group
        )


@dataclass(frozen=True)
class Arrangement:
    """The patterns of a call in the order that an engine is to see them in.

    Attributes
    ----------
    members : tuple of Pattern
    orders : tuple of Order
        One a member; none, if everything stays where it is.
    seconds : float
        Predicted forward pass, moving included; 0 where nobody predicts.
    reason : str
    fold : int
        Into how many classes tokens fall that are computed where they lie; members are then those of a class.
    """

    members: tuple[Pattern, ...]
    orders: tuple[Order, ...]
    seconds: float
    reason: str
    fold: int = 1


def as_wish(value: Any, shape: tuple[int, int]) -> Wish:
    """What the keyword `order` asks for: "auto", "natural", or an order of that shape."""
    if value is None:
        return "natural"
    return value if isinstance(value, str) and value in ("auto", "natural") else as_order(value, shape)


def natural(members: tuple[Pattern, ...], reason: str, seconds: float = 0.0) -> Arrangement:
    """Everything where it is."""
    return Arrangement(members, (), seconds, f"natural: {reason}")


def arrange(
    wish: Wish,
    members: tuple[Pattern, ...],
    kinds: Sequence[Kind],
    call: Call,
    *,
    predict: Predict,
    moving: Callable[[int], float],
    folds: bool = False,
) -> Arrangement:
    """The order that is asked for, or the one that the predictions say is cheapest.

    Parameters
    ----------
    wish : "auto", "natural" or Order
    members, kinds
        The distinct patterns of a call, and its sizes for each.
    call : Call
    predict : callable
    moving : callable
        Predicted seconds of moving so many bytes.
    folds : bool
        Whether rows that are some rows apart are read as fast as others.
    """
    shape = members[0].shape
    moved = call.moved_bytes(shape)
    cost = moving(moved)
    before = sum(predict(member, kind) for member, kind in zip(members, kinds, strict=True))
    moves = f"moving {moved / 1e6:.3g} MB of q, k, v and out takes {cost * 1e3:.3g} ms"
    if isinstance(wish, Order):
        ordered = tuple(member.permuted(wish) for member in members)
        after = cost + sum(predict(member, kind) for member, kind in zip(ordered, kinds, strict=True))
        reason = f"{wish.name}: asked for; predicted {after * 1e3:.3g} ms, of which {moves}; natural"
        return Arrangement(ordered, (wish,) * len(members), after, f"{reason} {before * 1e3:.3g} ms")
    if wish == "natural":
        return natural(members, "asked for", before)
    period = math.gcd(*(member.period for member in members)) if folds else 1
    if period > 1:
        classes = tuple(member.folded(period) for member in members)
        of_lse = 4 * call.heads * shape[0]
        after = moving(of_lse) + sum(
            predict(member, replace(kind, heads=kind.heads * period))
            for member, kind in zip(classes, kinds, strict=True)
        )
        saying = f"residues mod {period}, where they lie: predicted {after * 1e3:.3g} ms"
        if after <= _WORTH * before:
            return Arrangement(classes, (), after, f"{saying}; natural {before * 1e3:.3g} ms", period)
    if not any(member.orders for member in members):
        return natural(members, "the pattern declares no other", before)
    if cost > _WORTH * before:  # no need to look at any tile
        return natural(members, f"predicted {before * 1e3:.3g} ms; {moves}", before)
    found = [_best(member, kind, predict) for member, kind in zip(members, kinds, strict=True)]
    after = cost + sum(seconds for _, _, seconds in found)
    orders = tuple(order for order, _, _ in found)
    names = ", ".join(dict.fromkeys(order.name for order in orders))
    saying = f"predicted {after * 1e3:.3g} ms, of which {moves}"
    if not any(ordered is not member for (_, ordered, _), member in zip(found, members, strict=True)):
        return natural(members, "tiles of none of the declared orders cost less", before)
    if after > _WORTH * before:
        return natural(members, f"predicted {before * 1e3:.3g} ms; {names}: {saying}", before)
    if not call.shares_keys(orders):
        reason = "query heads that share a key head would need its keys in several orders"
        return natural(members, reason, before)
    ordered = tuple(member for _, member, _ in found)
    return Arrangement(ordered, orders, after, f"{names}: {saying}; natural {before * 1e3:.3g} ms")


def _best(member: Pattern, kind: Kind, predict: Predict) -> tuple[Order, Pattern, float]:
    """The order of a pattern that costs least without counting the moving; the natural one among them."""
    seconds = predict(member, kind)
    best = Order.natural(member.shape), member, seconds
    if member.orders and kind.heads:
        for order, ordered in zip(member.orders, member.in_orders, strict=True):
            seconds = predict(ordered, kind)
            if seconds < best[2]:
                best = order, ordered, seconds
    return best
