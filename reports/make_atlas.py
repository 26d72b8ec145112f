"""The atlas in ``patterns/``: a card, a stored pattern and a picture for every entry of the catalogue.

    python reports/make_atlas.py                   write all of it
    python reports/make_atlas.py --cards           only the texts, which follow the rows in reports/results
    python reports/make_atlas.py --record-levels   read the indentation of the running Python's modules anew

Cards and index are made from docstrings, from the entry's examples, from computed numbers and, in what they
say of quality, from the rows in ``reports/results``; a test compares them with the files. Stored patterns are
written from the entry's definition, pair by pair, and not from the function that they are there to check.
"""

from __future__ import annotations

import argparse
import inspect
import json
import platform
import re
import sys
import sysconfig
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from numba_sparse_attn import Pattern, patterns  # noqa: E402
from numba_sparse_attn.patterns.catalogue import CATALOGUE, Entry  # noqa: E402
from reports.paper.quality import pattern_lines  # noqa: E402

ATLAS = ROOT / "patterns"
LEVELS = ATLAS / "cpython_levels.json"
#: The label that starts each paragraph of a pattern's Notes, and its heading on the card.
NOTES = {
    "Pairs": "Pairs",
    "Cost": "Cost",
    "Reach": "Reach with depth",
    "Use": "Use it",
    "Avoid": "Avoid it",
}
LENGTH = 4096
#: Modules whose indentation is recorded.
MODULES = (
    "argparse.py",
    "ast.py",
    "asyncio/base_events.py",
    "dataclasses.py",
    "inspect.py",
    "json/decoder.py",
    "subprocess.py",
    "typing.py",
)
#: (known as, pattern here, how)
OTHER_NAMES = (
    ("A-shape, StreamingLLM", "sink_window", ""),
    ("block-causal", "chunked_causal", "with `past=None, lookahead=True`"),
    ("chunked attention (Llama 4)", "chunked_causal", "in some layers, `causal` in others"),
    ("criss-cross", "axial", 'with `axis="all"`'),
    ("LogSparse", "exponential_offsets", "and its `.causal()`"),
    ("lower-right and upper-left causal", "causal", "with `align=`"),
    ("MInference", "vertical_slash", "a set a head"),
    ("neighborhood attention (NATTEN)", "neighborhood", ""),
    ("packed sequences, varlen, block-diagonal", "documents", ""),
    ("Sparse Transformer", "strided_heads", "or `strided` and `fixed`, with `causal=True`"),
    ("Swin", "shifted_windows", ""),
    ("token trees of speculative decoding", "tree", 'with `["self", "ancestors"]`'),
)


@dataclass(frozen=True)
class Docstring:
    """A numpydoc docstring, cut into its parts; texts are Markdown."""

    summary: str
    text: str
    parameters: list[tuple[str, str, str]]
    notes: dict[str, str]
    example: str


def read_docstring(build: Callable[..., Any], cards: Collection[str] = CATALOGUE) -> Docstring:
    """The docstring of a pattern, which must have all of these parts; names with `cards` become links."""

    def markdown(text: str) -> str:
        return _markdown(text, cards)

    lines = (inspect.getdoc(build) or "").splitlines()
    bounds = [number - 1 for number, line in enumerate(lines) if line and not line.strip("-")]
    sections = {
        lines[begin]: lines[begin + 2 : end]
        for begin, end in zip(bounds, [*bounds[1:], len(lines)], strict=True)
    }
    notes = {}
    for paragraph in "\n".join(sections["Notes"]).strip().split("\n\n"):
        label, _, text = paragraph.partition(":")
        notes[label] = markdown(" ".join(text.split()))
    return Docstring(
        summary=markdown(lines[0]),
        text=_fence(lines[1 : bounds[0]], markdown),
        parameters=list(_definitions(sections["Parameters"], markdown)),
        notes=notes,
        example="\n".join(sections["Examples"]).strip(),
    )


def _markdown(text: str, cards: Collection[str]) -> str:
    """Inline reStructuredText as Markdown."""

    def link(match: re.Match[str]) -> str:
        name = match.group(1)
        return f"[`{name}`]({name}.md)" if name in cards else f"`{name}`"

    text = re.sub(r":func:`([\w.]+)`", link, text).replace("``", "`")
    # A cost is code, too: its stars must not become emphasis.
    return re.sub(r"\bO\((?:[^()`]|\((?:[^()`]|\([^()`]*\))*\))*\)", r"`\g<0>`", text)


def _fence(lines: Sequence[str], markdown: Callable[[str], str]) -> str:
    """Indented blocks become fenced ones."""
    blocks = []
    for block in re.split(
        r"\n\n(?! )", "\n".join(line for line in lines if line.strip() != "::").strip("\n")
    ):
        if block.lstrip("\n").startswith("    "):
            body = "\n".join(line[4:] for line in block.strip("\n").splitlines())
            blocks.append(f"```text\n{body}\n```")
        elif block.strip():
            blocks.append(markdown(block.strip()))
    return "\n\n".join(blocks)


def _definitions(lines: Sequence[str], markdown: Callable[[str], str]) -> Iterator[tuple[str, str, str]]:
    """(name, type, meaning) of every parameter."""
    for item in re.split(r"\n(?=\S)", "\n".join(lines).strip()):
        head, _, body = item.partition("\n")
        name, _, kind = head.partition(" : ")
        yield name, kind, markdown(" ".join(body.split()))


def percent(share: float) -> str:
    """A share as a percentage with one digit."""
    return f"{100 * share:.1f} %"


def sparsity(entry: Entry, arguments: dict[str, object]) -> tuple[tuple[int, int], int, float]:
    """(shape, pairs, sparsity) over all heads."""
    heads = entry.patterns(arguments)
    pairs = sum(head.nnz for head in heads)
    size = len(heads) * heads[0].shape[0] * heads[0].shape[1]
    return heads[0].shape, pairs, 1 - pairs / size


def signature_of(build: Callable[..., Any]) -> str:
    """Arguments and their types, as they stand in the source."""
    return re.sub(r"(: |-> )'([^']*)'", r"\1\2", str(inspect.signature(build)))


def parameter_table(doc: Docstring) -> list[str]:
    """The table of a card that says what each argument means."""
    rows = (f"| `{name}` | {kind} | {meaning} |" for name, kind, meaning in doc.parameters)
    return ["| parameter | | meaning |", "|---|---|---|", *rows]


def card(entry: Entry) -> str:
    """The card of one pattern."""
    doc = read_docstring(entry.build)
    rows = []
    for label, arguments in (
        ("picture", entry.examples[0]),
        (f"about {LENGTH} tokens", entry.scaled(LENGTH)),
    ):
        shape, pairs, share = sparsity(entry, arguments)
        rows.append(
            f"| {label} | `{entry.call(arguments)}` | {shape[0]} x {shape[1]} | {pairs} | {percent(share)} |"
        )
    heads = f", the {entry.heads} heads below one another" if entry.heads else ""
    signature = signature_of(entry.build)
    return "\n".join(
        [
            f"# {entry.name}",
            "",
            doc.summary,
            "",
            f"![{entry.name}: rows are queries, columns are keys]({entry.name}.png)",
            "",
            doc.text,
            "",
            "```python",
            f"{entry.name}{signature}",
            "```",
            "",
            *parameter_table(doc),
            "",
            *(f"- **{heading}:** {doc.notes[label]}" for label, heading in NOTES.items()),
            *(
                f"- **Quality ({budget}):** a pretrained model, {text}."
                for budget, text in pattern_lines(entry.name)
            ),
            "",
            "| | call | shape | pairs | sparsity |",
            "|---|---|--:|--:|--:|",
            *rows,
            "",
            "```python",
            doc.example,
            "```",
            "",
            f"[`{entry.name}.npz`]({entry.name}.npz) holds the pattern of the picture{heads},",
            "written from the definition pair by pair; `scipy.sparse.load_npz` reads it. The function is in",
            f"[`numba_sparse_attn/patterns/{entry.name}.py`](../numba_sparse_attn/patterns/{entry.name}.py).",
            "",
        ]
    )


def recorded_levels() -> dict[str, list[int]]:
    """Indentation levels of the recorded modules, a digit a line in the file."""
    stored = json.loads(LEVELS.read_text("utf-8"))
    return {name: [int(digit, 36) for digit in digits] for name, digits in stored["levels"].items()}


def record_levels() -> None:
    """Write the levels of the running Python's own modules."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    levels = {
        name: "".join(
            np.base_repr(level, 36)
            for level in patterns.indentation_levels((folder / name).read_text("utf-8"))
        )
        for name in MODULES
    }
    text = json.dumps({"python": platform.python_version(), "levels": levels}, indent=1)
    LEVELS.write_text(text + "\n", "utf-8")


def brief_settings() -> Iterator[tuple[str, str, Pattern]]:
    """(setting, what was expected of it, pattern)"""
    for window in (256, 128):
        qa = patterns.document_qa(LENGTH, 64, window)
        setting = f"document QA, L = {LENGTH}, K = 64, {window} keys"
        yield f"{setting} on each side", "92 to 95 %", qa
        yield f"{setting} before the query (`.causal()`)", "92 to 95 %", qa.causal()
    for name, levels in recorded_levels().items():
        yield (
            f"indentation of `{name}`, {len(levels)} lines, window 8",
            "about 90 %",
            patterns.indentation(levels, 8),
        )
    for patch in (1, 4, 8, 16):
        side = 256 // patch
        unit = "a token a pixel" if patch == 1 else f"patches of {patch} x {patch}"
        yield (
            f"multiscale, 256 x 256 image, {unit}, 3 levels",
            "about 80 %",
            patterns.multiscale_grid((side, side), 3),
        )


def index() -> str:
    """The README of the folder."""
    entries = sorted(CATALOGUE.values(), key=lambda entry: entry.name)
    lines = [
        "# The pattern atlas",
        "",
        "This folder holds cards and stored patterns, no importable code. The functions are in",
        "[`numba_sparse_attn/patterns/`](../numba_sparse_attn/patterns/) and are called as",
        "`numba_sparse_attn.patterns.sliding_window(4096, 256)`. `make atlas` writes everything here from",
        "their docstrings and definitions, and tests compare it with what the functions give.",
        "",
        "In the pictures rows are queries, columns are keys and selected pairs are dark. Sparsity is",
        f"the share of pairs that is *not* selected, in a usual setting of about {LENGTH} tokens that the",
        "card gives. Patterns that are not here are as welcome: any SciPy sparse array is one, the",
        "adjacency of a graph, say. Patterns that are chosen by looking at q and k have",
        "[an atlas of their own](dynamic/README.md).",
        "",
        "| | pattern | what a query sees | sparsity |",
        "|---|---|---|--:|",
    ]
    for entry in entries:
        share = sparsity(entry, entry.scaled(LENGTH))[2]
        picture = f'<img src="{entry.name}.png" width="100" alt="">'
        summary = read_docstring(entry.build).summary
        lines.append(f"| {picture} | [`{entry.name}`]({entry.name}.md) | {summary} | {percent(share)} |")
    lines += ["", "## Known under other names", "", "| elsewhere | here |", "|---|---|"]
    lines += [f"| {known} | [`{name}`]({name}.md){how and ' ' + how} |" for known, name, how in OTHER_NAMES]
    stored = json.loads(LEVELS.read_text("utf-8"))
    lines += [
        "",
        "## Sparsity of the brief's settings",
        "",
        "What the project's brief expected, and what the definitions give. The levels of indentation, those",
        f"of modules of CPython {stored['python']}, are in [`cpython_levels.json`](cpython_levels.json).",
        "",
        "| setting | expected | tokens | pairs | sparsity |",
        "|---|--:|--:|--:|--:|",
    ]
    for setting, expected, pattern in brief_settings():
        tokens, pairs = pattern.shape[0], pattern.nnz
        lines.append(f"| {setting} | {expected} | {tokens} | {pairs} | {percent(pattern.sparsity)} |")
    lines += [
        "",
        "Document QA comes into the range with a window of 256 keys before the query; one of 256 keys on",
        "each side is an eighth of 4096 tokens by itself. Source code stays well below: lines of one",
        "level see each other anywhere in the file, and a sixth to a third of all pairs of lines are on",
        "one level. The image passes 80 % between patches of 16 x 16 and of 8 x 8: what a cell sees grows",
        "with the side of the image, the number of cells with its square.",
        "",
    ]
    return "\n".join(lines)


def cards() -> dict[str, str]:
    """File name -> text, of everything in the folder that is text and made here."""
    return {"README.md": index(), **{f"{entry.name}.md": card(entry) for entry in CATALOGUE.values()}}


def golden(entry: Entry) -> scipy.sparse.csr_array:
    """The stored pattern: the card's example by definition."""
    arguments = entry.examples[0]
    return scipy.sparse.csr_array(entry.brute_force(arguments, entry.patterns(arguments)[0].shape))


def write_golden(path: Path, array: scipy.sparse.csr_array) -> None:
    """Write a stored pattern, unless the file has it already."""
    if path.exists():
        stored = scipy.sparse.load_npz(path)
        if stored.shape == array.shape and (stored != array).nnz == 0:
            return
    scipy.sparse.save_npz(path, array)


def write_picture(path: Path, heads: Sequence[Pattern]) -> None:
    """Draw a card's example, 300 pixels wide."""
    from matplotlib.figure import Figure

    from numba_sparse_attn.plot import plot_pattern

    figure = Figure(figsize=(3, 1.8 if len(heads) > 1 else 3), dpi=100, layout="constrained")
    for ax, head in zip(np.atleast_1d(figure.subplots(1, len(heads))), heads, strict=True):
        plot_pattern(head, ax)
        ax.set_title("")
        ax.label_outer()
        ax.tick_params(labelsize=7)
    figure.savefig(path, metadata={"Software": None})


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cards", action="store_true", help="write the texts only")
    parser.add_argument("--record-levels", action="store_true", help="read CPython's indentation anew")
    options = parser.parse_args(arguments)
    ATLAS.mkdir(exist_ok=True)
    if options.record_levels:
        record_levels()
    for name, text in cards().items():
        (ATLAS / name).write_text(text, "utf-8")
    if options.cards:
        return
    for entry in CATALOGUE.values():
        write_golden(ATLAS / f"{entry.name}.npz", golden(entry))
        write_picture(ATLAS / f"{entry.name}.png", entry.patterns(entry.examples[0]))
    print(f"{len(CATALOGUE)} patterns in {ATLAS.relative_to(ROOT)}/")


if __name__ == "__main__":
    main()
