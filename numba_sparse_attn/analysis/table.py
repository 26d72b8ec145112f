"""Results in rows: printed in aligned columns, written as CSV."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

__all__ = ["Table"]


class Table:
    """Rows of named values.

    Attributes
    ----------
    rows : list of dict
        Everything that is known, at full precision.

    Examples
    --------
    >>> print(Table([{"name": "causal", "pairs": 10.0}, {"name": "full", "pairs": None}]))
    name    pairs
    ------  -----
    causal     10
    full
    """

    #: name -> (heading, format) of the columns that are printed; all of them, plainly, if empty.
    columns: ClassVar[Mapping[str, tuple[str, str]]] = {}

    def __init__(self, rows: Sequence[dict[str, Any]]) -> None:
        self.rows = list(rows)

    def __len__(self) -> int:
        return len(self.rows)

    def column(self, name: str) -> list[Any]:
        """The values of one column.

        Examples
        --------
        >>> Table([{"pairs": 10}, {"pairs": 16}]).column("pairs")
        [10, 16]
        """
        return [row[name] for row in self.rows]

    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """Write all values of all rows, numbers at full precision.

        Examples
        --------
        >>> import pathlib, tempfile
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "table.csv"
        >>> Table([{"name": "causal", "recall": 0.25}]).to_csv(path)
        >>> path.read_text().splitlines()
        ['name,recall', 'causal,0.25']
        """
        names = list(dict.fromkeys(name for row in self.rows for name in row))
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows(self.rows)

    def __str__(self) -> str:
        shown = self.columns or {name: (name, "g") for row in self.rows for name in row}
        present = {name: style for name, style in shown.items() if any(name in row for row in self.rows)}
        lines = [[heading for heading, _ in present.values()]]
        lines += [[_text(row.get(name), form) for name, (_, form) in present.items()] for row in self.rows]
        if not present:
            return "no rows"
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        lines.insert(1, ["-" * width for width in widths])
        # Names to the left, numbers to the right.
        texts = [any(isinstance(row.get(name), str) for row in self.rows) for name in present]
        return "\n".join(
            "  ".join(
                cell.ljust(width) if left else cell.rjust(width)
                for cell, width, left in zip(line, widths, texts, strict=True)
            ).rstrip()
            for line in lines
        )

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {len(self)} rows>\n{self}"


def _text(value: Any, form: str) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "*" if value else ""
    return value if isinstance(value, str) else format(value, form)
