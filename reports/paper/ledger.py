"""Which numbers the report shows, and where each comes from."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["UNBREAKABLE", "Ledger", "Source"]

#: Between a number and its unit: a space at which no line ends.
UNBREAKABLE = "\N{NO-BREAK SPACE}"


@dataclass(frozen=True)
class Source:
    """A place in a file that numbers are read from.

    Attributes
    ----------
    file : str
        Relative to the root of the checkout.
    place : str
        A case, a comparison, or the name of a constant.
    command : str
        What makes the file's rows; ``<place>`` in it stands for the place. Empty for what is written by hand.
    """

    file: str
    place: str
    command: str = ""


@dataclass
class Ledger:
    """Sources in the order in which they are first used, each with its numbers: field -> number as shown."""

    entries: dict[Source, dict[str, str]] = field(default_factory=dict)

    def mark(self, source: Source, **shown: str) -> str:
        """Note down numbers, by field, and return the mark that leads to their source.

        >>> ledger = Ledger()
        >>> ledger.mark(Source("rows.jsonl", "case/a"), seconds="2 s")
        '^1^'
        """
        return self.note(source, shown)

    def note(self, source: Source, shown: dict[str, str]) -> str:
        """As `mark`, for fields whose names are no Python names."""
        self.entries.setdefault(source, {}).update(shown)
        return f"^{list(self.entries).index(source) + 1}^"

    def numbered(self) -> list[tuple[int, Source, dict[str, str]]]:
        """Every source with its number and its fields."""
        return [(number, *entry) for number, entry in enumerate(self.entries.items(), 1)]
