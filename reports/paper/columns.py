"""Boxes into the columns of pages.

Text flows down the left column, then the right one. A float stands where it is met if there is room, else on
top of the next column; one over both columns stands on top of the next page. What is left over at the foot of
a column goes into the spaces between its blocks. The columns of the last page are made equally long.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from .shapes import Box, Float

__all__ = ["Barrier", "Format", "Item", "Placed", "compose"]

#: Most that a space between blocks grows by, in points.
_MOST_STRETCH = 4.0
_BALANCE_STEPS = 12


class Barrier(NamedTuple):
    """No float that comes before may stand behind it."""


Item = Box | Float | Barrier


class Format(NamedTuple):
    """Sizes in points. Columns lie `gap` apart."""

    width: float = 595.3
    height: float = 841.9
    side: float = 48.0
    top: float = 50.0
    foot: float = 58.0
    gap: float = 17.0

    @property
    def body(self) -> float:
        """Width of both columns."""
        return self.width - 2 * self.side

    @property
    def column(self) -> float:
        """Width of a column."""
        return (self.body - self.gap) / 2

    @property
    def length(self) -> float:
        """Height of a column."""
        return self.height - self.top - self.foot


class Placed(NamedTuple):
    """A box with its page, and its upper left corner measured from that of the page."""

    page: int
    x: float
    y: float
    box: Box


@dataclass
class _Setter:
    """Fills columns; pages from `short_page` on have columns of `short_length` only."""

    form: Format
    short_page: int
    short_length: float
    placed: list[Placed] = field(default_factory=list)
    page: int = -1
    side: int = 1
    #: Where the columns of the page begin, and how much of the current one is full.
    begin: float = 0.0
    y: float = 0.0
    column: list[Placed] = field(default_factory=list)
    waiting: list[Float] = field(default_factory=list)

    @property
    def length(self) -> float:
        whole = self.form.length
        return min(whole, self.begin + self.short_length) if self.page >= self.short_page else whole

    def run(self, flow: Sequence[Item]) -> None:
        """Place everything."""
        self.next_column([item for item in flow[:1] if isinstance(item, Float) and item.wide])
        at = 1 if self.placed else 0
        while at < len(flow):
            item = flow[at]
            if isinstance(item, Barrier):
                while self.waiting:
                    self.next_column()
                at += 1
                continue
            if isinstance(item, Float):
                self.float_here(item)
                at += 1
                continue
            end = at
            group = [item]
            while group[-1].keep and end + 1 < len(flow) and isinstance(following := flow[end + 1], Box):
                group.append(following)
                end += 1
            while not self.fits(group):
                self.next_column()
            for box in group:
                self.put(box)
            at = end + 1
        while self.waiting:
            self.next_column()
        self.end_column(stretched=False)

    def fits(self, group: Sequence[Box]) -> bool:
        """A column that is empty from the top of the page on takes anything."""
        height = sum(box.above + box.height for box in group) - (0 if self.column else group[0].above)
        return (not self.column and not self.begin) or self.y + height <= self.length + 0.01

    def float_here(self, item: Float) -> None:
        """Now, or on top of a later column."""
        if not item.wide and not self.waits(wide=False) and self.fits([item.box]):
            self.put(item.box)
        else:
            self.waiting.append(item)

    def waits(self, *, wide: bool) -> bool:
        """Floats of one width keep their order; others may overtake them."""
        return any(item.wide == wide for item in self.waiting)

    def put(self, box: Box) -> None:
        """Below what is there."""
        self.y += box.above if self.column else 0.0
        x = self.form.side + self.side * (self.form.column + self.form.gap)
        self.column.append(Placed(self.page, x, self.form.top + self.y, box))
        self.y += box.height

    def next_column(self, wide: Sequence[Float] = ()) -> None:
        """Begin a column, with the floats that wait on top of it."""
        self.end_column(stretched=True)
        if self.side == 0:
            self.side = 1
        else:
            self.side, self.page, self.begin = 0, self.page + 1, 0.0
            for item in [*wide, *(item for item in self.waiting if item.wide)]:
                if self.begin and self.begin + item.box.height > 0.7 * self.form.length:
                    break
                self.placed.append(Placed(self.page, self.form.side, self.form.top + self.begin, item.box))
                self.begin += item.box.height + item.box.above
                if item in self.waiting:
                    self.waiting.remove(item)
        self.y = self.begin
        for item in [item for item in self.waiting if not item.wide]:
            if not self.fits([item.box]):
                break
            self.put(item.box)
            self.waiting.remove(item)

    def end_column(self, *, stretched: bool) -> None:
        """Spread what is left over."""
        spaces = [number for number, item in enumerate(self.column) if number and item.box.above]
        extra = 0.0
        if stretched and spaces:
            extra = min(_MOST_STRETCH, max(0.0, self.length - self.y) / len(spaces))
        down = 0.0
        for number, item in enumerate(self.column):
            down += extra if number in spaces else 0.0
            self.placed.append(item._replace(y=item.y + down))
        self.column = []


def compose(flow: Sequence[Item], form: Format) -> list[Placed]:
    """Every box with its place; a wide float in the first place stands on top of the first page."""

    def composed(short_page: int, short_length: float) -> _Setter:
        setter = _Setter(form, short_page, short_length)
        setter.run(flow)
        return setter

    whole = composed(1 << 30, 0.0)
    last = whole.page
    low, high, best = 0.0, form.length, whole
    for _ in range(_BALANCE_STEPS):
        middle = (low + high) / 2
        tried = composed(last, middle)
        if tried.page == last:
            high, best = middle, tried
        else:
            low = middle
    return best.placed
