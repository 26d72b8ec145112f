"""The atlas in ``patterns/dynamic/``: a card, a stored example and a picture for every selection by content.

    python reports/make_selections.py

Made like the atlas of patterns (`make_atlas.py`): texts from docstrings, stored examples from the
definition in plain NumPy and not from the function that they are there to check.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import scipy.sparse

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from numba_sparse_attn import dynamic  # noqa: E402
from numba_sparse_attn.dynamic.catalogue import SELECTIONS, Case, Entry  # noqa: E402
from reports.make_atlas import (  # noqa: E402
    LENGTH,
    Docstring,
    parameter_table,
    percent,
    read_docstring,
    signature_of,
    write_golden,
    write_picture,
)

FOLDER = ROOT / "patterns" / "dynamic"
#: The label that starts each paragraph of a selection's Notes, and its heading on the card.
NOTES = {"Pairs": "Pairs", "Cost": "Cost", "Use": "Use it", "Avoid": "Avoid it"}
#: (known as, selection here, how)
OTHER_NAMES = (
    ("heavy hitters (H2O)", "landmarks_by_importance", ""),
    ("MInference", "vertical_slash", ""),
    ("mixture of block attention (MoBA)", "moba", ""),
    ("native sparse attention (NSA)", "nsa_blocks", "and `nsa_branches`, `gated_sum`"),
    ("Quest", "quest", ""),
    ("Reformer", "lsh", ""),
    ("routing transformer", "kmeans_routing", "with `kmeans_update`"),
    ("SeerAttention", "learned_blocks", "with `BlockPredictor`"),
    ("SnapKV", "landmarks_by_importance", "with `last=`"),
)


def docstring(entry: Entry) -> Docstring:
    """What the card says, from the function; other selections become links."""
    return read_docstring(entry.select, SELECTIONS)


def density(entry: Entry, case: Case) -> tuple[int, float]:
    """(pairs, sparsity) over all heads."""
    heads = entry.patterns(case)
    pairs = sum(head.nnz for head in heads)
    return pairs, 1 - pairs / (len(heads) * case.n_q * case.n_k)


def card(entry: Entry) -> str:
    """The card of one selection."""
    doc = docstring(entry)
    rows = []
    for label, case in (("picture", entry.examples()[0]), (f"{LENGTH} tokens", entry.scaled(LENGTH))):
        pairs, share = density(entry, case)
        size = f"{case.n_q} x {case.n_k} | {case.heads} over {case.kv_heads}"
        rows.append(f"| {label} | `{entry.call(case)}` | {size} | {pairs} | {percent(share)} |")
    file = f"numba_sparse_attn/dynamic/{entry.name}.py"
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
            f"{entry.name}{signature_of(entry.select)}",
            "```",
            "",
            *parameter_table(doc),
            "",
            *(f"- **{heading}:** {doc.notes[label]}" for label, heading in NOTES.items()),
            "",
            "| | call | shape | heads | pairs | sparsity |",
            "|---|---|--:|--:|--:|--:|",
            *rows,
            "",
            "```python",
            doc.example,
            "```",
            "",
            f"[`{entry.name}.npz`]({entry.name}.npz) holds the masks of the picture, the heads below one",
            "another, written from the definition with dense arrays; `scipy.sparse.load_npz` reads it. The",
            f"function is in [`{file}`](../../{file}).",
            "",
        ]
    )


def index() -> str:
    """The README of the folder."""
    lines = [
        "# The atlas of selections by content",
        "",
        "This folder holds cards and stored examples, no importable code. The functions are in",
        "[`numba_sparse_attn/dynamic/`](../../numba_sparse_attn/dynamic/) and are called as",
        "`numba_sparse_attn.dynamic.top_k(q, k, 64)`. They look at q and k and give a pattern, or one for",
        "every head. `make atlas` writes everything here from their docstrings and definitions, and tests",
        "compare it with what the functions give.",
        "",
        "In the pictures rows are queries, columns are keys, selected pairs are dark, and two heads stand",
        f"side by side. Sparsity is the share of pairs that is *not* selected, at {LENGTH} tokens in the",
        "setting that the card gives, on arrays made from a seed.",
        "",
        "| | selection | what a query sees | sparsity |",
        "|---|---|---|--:|",
    ]
    for entry in sorted(SELECTIONS.values(), key=lambda entry: entry.name):
        share = density(entry, entry.scaled(LENGTH))[1]
        picture = f'<img src="{entry.name}.png" width="100" alt="">'
        said = f"[`{entry.name}`]({entry.name}.md) | {docstring(entry).summary}"
        lines.append(f"| {picture} | {said} | {percent(share)} |")
    lines += ["", "## Known under other names", "", "| elsewhere | here |", "|---|---|"]
    lines += [f"| {known} | [`{name}`]({name}.md){how and ' ' + how} |" for known, name, how in OTHER_NAMES]
    helpers = [name for name in dynamic.__all__ if name not in SELECTIONS]
    lines += ["", f"Beside them: {', '.join(f'`{name}`' for name in helpers)}.", ""]
    return "\n".join(lines)


def cards() -> dict[str, str]:
    """File name -> text, of everything in the folder that is text."""
    return {"README.md": index(), **{f"{entry.name}.md": card(entry) for entry in SELECTIONS.values()}}


def golden(entry: Entry) -> scipy.sparse.csr_array:
    """The stored example: the card's picture by definition, heads below one another."""
    return scipy.sparse.csr_array(np.concatenate(entry.brute_force(entry.examples()[0])))


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for name, text in cards().items():
        (FOLDER / name).write_text(text, "utf-8")
    for entry in SELECTIONS.values():
        write_golden(FOLDER / f"{entry.name}.npz", golden(entry))
        write_picture(FOLDER / f"{entry.name}.png", entry.patterns(entry.examples()[0]))
    print(f"{len(SELECTIONS)} selections in {FOLDER.relative_to(ROOT)}/")


if __name__ == "__main__":
    main()
