"""The technical report: `reports/report.md` and `reports/report.pdf`, from the text and the result files.

python -m reports.paper.build             write both, and the pictures of the former
python -m reports.paper.build --check     change nothing; status 1 if one of them does not follow the files
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.rows import ROOT
from reports.make_report import FIGURES as PICTURES

from .appendix import appendix
from .document import Block, Figure, parse
from .evidence import Evidence
from .ledger import Ledger
from .markdown import markdown
from .template import REFERENCES, TEXT, filled, read_sections

__all__ = ["MARKDOWN", "PDF", "blocks_of", "digest", "main"]

MARKDOWN = ROOT / "reports" / "report.md"
PDF = ROOT / "reports" / "report.pdf"
TITLE = "Exact sparse attention in Python"


def blocks_of(evidence: Evidence, folder: Path = TEXT) -> list[Block]:
    """The whole document, its placeholders filled."""
    ledger = Ledger()
    references = (folder / REFERENCES).read_text("utf-8")
    text = filled(read_sections(folder), references, evidence, ledger)
    return parse(f"{text}\n{appendix(ledger)}")


def digest(text: str, evidence: Evidence) -> str:
    """What a PDF carries to say which text and which rows it is of."""
    return hashlib.sha256((text + evidence.fingerprint()).encode()).hexdigest()[:20]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m reports.paper.build",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--check", action="store_true", help="change nothing; fail if something is stale")
    options = parser.parse_args(arguments)
    evidence = Evidence()
    blocks = blocks_of(evidence)
    text = markdown(blocks)
    key = digest(text, evidence)
    if options.check:
        stale = [MARKDOWN] if not MARKDOWN.exists() or MARKDOWN.read_text("utf-8") != text else []
        # The drawing of a page is matplotlib's and differs from version to version: the text decides.
        stale += [PDF] if not PDF.exists() or key.encode() not in PDF.read_bytes() else []
        for path in stale:
            print(f"{path.relative_to(ROOT)} does not follow the result files: run make report")
        return 1 if stale else 0

    from reports import drawing

    from . import graphics, pdf

    MARKDOWN.write_text(text, "utf-8")
    for block in blocks:
        if isinstance(block, Figure):
            drawing.save(graphics.picture(evidence, block.name), PICTURES / f"paper_{block.name}.png")
    facts = {"Title": TITLE, "Author": "The numba_sparse_attn developers", "Keywords": key}
    count = pdf.write_pdf(PDF, blocks, graphics.drawings(evidence), facts)
    print(f"{MARKDOWN.relative_to(ROOT)}, {PDF.relative_to(ROOT)}: {count} pages")
    return 0


if __name__ == "__main__":
    sys.exit(main())
