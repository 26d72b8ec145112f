"""The text's sections, put together and filled in.

A section is Markdown with a few lines of our own:

- ``{{ name word "more words" }}`` stands for what a method of :class:`facts.Facts` returns.
- ``{{ see figure name }}`` stands for "Figure 2"; tables and equations are numbered likewise.
- ``{{ cite key ... }}`` stands for "[3]", ``{{ dated key }}`` for "(2022) [3]": numbers of ``references.md``.
- ``:::if cases PLACE GLOB``, ``:::if result SCENARIO``, ``:::if lost PLACE FIELD`` and
  ``:::if goals PLACE reached`` (or ``missed``), up to ``:::endif``, keep lines only if there are such rows.
- ``:::figure name``, ``:::table name`` and ``:::equation name`` up to ``:::`` hold what is numbered;
  :mod:`document` reads them.

No number is written by hand, but for years and numbers in code, formulas and names: that is an error.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

from . import grids
from .evidence import Evidence, MissingError
from .facts import Facts
from .ledger import Ledger

__all__ = ["TEXT", "TextError", "filled", "read_sections"]

TEXT = Path(__file__).parent / "text"
REFERENCES = "references.md"

_PLACEHOLDER = re.compile(r"\{\{\s*(.*?)\s*\}\}", re.DOTALL)
_NUMBERED = re.compile(r"^:::(figure|table|equation) (\w+)", re.MULTILINE)
_REFERENCE = re.compile(r"^- (\w+?(\d{4})\w*): (.+(?:\n  .+)*)", re.MULTILINE)
#: What may hold digits: placeholders, formulas, code, the lines of our own.
_NOT_PROSE = re.compile(
    r"\{\{.*?\}\}|:::equation.*?^:::$|\$[^$]+\$|`[^`]+`|^:::.*?$", re.DOTALL | re.MULTILINE
)
#: A digit that does not belong to a name such as H200, sm_90 or FlashAttention-2, to a width such as 16-bit,
#: or to a power of a unit.
_BARE_NUMBER = re.compile(r"(?<![\w.\-])\d[\d.,]*(?!-bit|-D|\w)")


class TextError(ValueError):
    """A mistake in the text itself."""


def read_sections(folder: Path = TEXT) -> str:
    """All sections, in the order of their names; the references are not one."""
    paths = sorted(path for path in folder.glob("*.md") if path.name != REFERENCES)
    return "\n\n".join(path.read_text("utf-8").strip() for path in paths) + "\n"


def filled(text: str, references: str, evidence: Evidence, ledger: Ledger) -> str:
    """The text with conditions decided, placeholders filled and the references that were cited behind it."""
    text = "\n".join(_kept(text.splitlines(), evidence))
    _refuse_bare_numbers(text)
    numbers = _numbers(text)
    facts = Facts(evidence, ledger)
    known = {match[1]: (match[2], " ".join(match[3].split())) for match in _REFERENCE.finditer(references)}
    cited: list[str] = []

    def number_of(key: str) -> int:
        if key not in known:
            raise TextError(f"{key} is not in {REFERENCES}")
        if key not in cited:
            cited.append(key)
        return cited.index(key) + 1

    def fill(match: re.Match[str]) -> str:
        name, *words = shlex.split(match[1])
        if name == "see":
            kind, label = words
            if (kind, label) not in numbers:
                raise TextError(f"there is no {kind} {label}")
            return f"{kind.capitalize()} {numbers[kind, label]}"
        if name == "cite":
            return f"[{', '.join(str(number_of(key)) for key in words)}]"
        if name == "dated":
            return (
                f"({known[words[0]][0]}) [{number_of(words[0])}]"
                if words[0] in known
                else str(number_of(words[0]))
            )
        method = getattr(facts, name, None)
        if name.startswith("_") or method is None:
            raise TextError(f"{{{{ {match[1]} }}}} names nothing that there is")
        try:
            return str(method(*words))
        except (MissingError, TypeError, KeyError) as error:
            raise MissingError(f"{{{{ {match[1]} }}}}: {error}") from error

    text = _PLACEHOLDER.sub(fill, text)
    if unused := sorted(known.keys() - set(cited)):
        raise TextError(f"{REFERENCES} has {', '.join(unused)}, which the text does not cite")
    lines = [f"{number}. {known[key][1]}" for number, key in enumerate(cited, 1)]
    return "\n\n".join([text.rstrip(), "## References", "\n".join(lines)]) + "\n"


def _kept(lines: Sequence[str], evidence: Evidence) -> Iterator[str]:
    """The lines whose conditions hold; conditions may stand inside of one another."""
    open_conditions: list[bool] = []
    for line in lines:
        if line.startswith(":::if "):
            open_conditions.append(_holds(line.split()[1:], evidence))
        elif line == ":::endif":
            if not open_conditions:
                raise TextError("an :::endif without a condition")
            open_conditions.pop()
        elif all(open_conditions):
            yield line
    if open_conditions:
        raise TextError("a condition without its :::endif")


def _holds(condition: Sequence[str], evidence: Evidence) -> bool:
    match condition:
        case ["cases", place, glob]:
            return evidence.has_cases(place, glob)
        case ["result", scenario]:
            return evidence.has_result(scenario)
        case ["lost", place, field]:
            return bool(grids.lost(evidence.machine(place).rows, field)[1])
        case ["goals", place, "reached" | "missed" as outcome]:
            goals = (goal for row in evidence.machine(place).rows for goal in row.get("goals", ()))
            return any(goal["met"] == (outcome == "reached") for goal in goals)
    raise TextError(f"{' '.join(condition)} is no condition")


def _numbers(text: str) -> dict[tuple[str, str], int]:
    """By kind and name, the numbers of what is numbered, each kind by itself."""
    numbers: dict[tuple[str, str], int] = {}
    for match in _NUMBERED.finditer(text):
        numbers[match[1], match[2]] = 1 + sum(other == match[1] for other, _ in numbers)
    return numbers


def _refuse_bare_numbers(text: str) -> None:
    prose = _NOT_PROSE.sub(" ", text)
    if match := _BARE_NUMBER.search(prose):
        around = prose[max(0, match.start() - 40) : match.end() + 40].replace("\n", " ")
        raise TextError(f"a number that comes from nowhere, {match[0]}, in: …{around}…")
