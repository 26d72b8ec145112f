"""The table of all numbers: which source each mark stands for, and what was read there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePosixPath

from reports.report_tables import markdown_table

from .ledger import Ledger, Source

__all__ = ["APPENDIX", "appendix"]

APPENDIX = "Where each number comes from"

_INTRODUCTION = (
    "A raised number leads to an entry here: the short name of a file of rows with a place in it, or a "
    "source file with a name in it, and behind it the fields with their numbers as they are shown. The files "
    "of rows come first, with the commands that make them; `<place>` is the place."
)


def appendix(ledger: Ledger) -> str:
    """The section, as text of the kind that :mod:`document` reads."""
    entries = ledger.numbered()
    commands = {_short(source): source for _, source, _ in entries if source.command}
    files = [[name, f"`{source.file}`", f"`{source.command}`"] for name, source in sorted(commands.items())]
    marks = [
        [
            f"{number}",
            _short(source) if source.command else f"`{source.file}`",
            f"`{source.place}`",
            ", ".join(f"{field} {text}" for field, text in shown.items()),
        ]
        for number, source, shown in entries
    ]
    return "\n\n".join(
        [
            f"## {APPENDIX}",
            _INTRODUCTION,
            _table("Files of rows:", ["name", "file", "command"], files),
            _table("Numbers:", ["mark", "file", "place", "fields and numbers"], marks),
        ]
    )


def _short(source: Source) -> str:
    return PurePosixPath(source.file).stem.lower()


def _table(caption: str, header: Sequence[str], lines: list[list[str]]) -> str:
    body = markdown_table(header, lines).replace("--:", "---")
    return f":::longtable sources\n{caption}\n{body}\n:::"
