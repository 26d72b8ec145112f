"""The table of all numbers: which source each mark stands for, and what was read there."""

from __future__ import annotations

from itertools import groupby

from reports.report_tables import markdown_table

from .ledger import Ledger

__all__ = ["APPENDIX", "appendix"]

APPENDIX = "Where each number comes from"

_INTRODUCTION = (
    "A raised number leads to an entry here: a file, the place in it, and the fields with the numbers as they "
    "are shown. Before the entries of a file stands the command that makes its rows, in which `<place>` is the "
    "place."
)


def appendix(ledger: Ledger) -> str:
    """The section, as text of the kind that :mod:`document` reads."""
    parts = [f"## {APPENDIX}", _INTRODUCTION]
    entries = sorted(ledger.numbered(), key=lambda entry: (not entry[1].command, entry[1].file, entry[0]))
    for (file, command), group in groupby(entries, key=lambda entry: (entry[1].file, entry[1].command)):
        if not command:
            continue
        lines = [
            [f"{number}", f"`{source.place}`", ", ".join(f"{name} {text}" for name, text in shown.items())]
            for number, source, shown in group
        ]
        parts.append(_table(f"`{file}`, by `{command}`", "place", lines))
    lines = [
        [f"{number}", f"`{source.file}`", f"`{source.place}`: {', '.join(shown.values())}"]
        for number, source, shown in entries
        if not source.command
    ]
    if lines:
        parts.append(_table("Read from the source", "file", lines))
    return "\n\n".join(parts) + "\n"


def _table(caption: str, place: str, lines: list[list[str]]) -> str:
    body = markdown_table(["mark", place, "field and number"], lines).replace("--:", "---")
    return f":::longtable sources\n{caption}\n{body}\n:::"
