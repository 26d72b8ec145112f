"""The command line that every scenario has, and the runs that it asks for."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

from .families import DENSE, DENSITIES, SEEDED
from .runs import RESULTS, Row

__all__ = ["cells", "parse_options"]

#: Small enough for the tests, large enough to go through everything.
_QUICK = {"lengths": [256], "documents": 2, "densities": [0.25], "families": ["window", "sink_window"]}


def parse_options(
    name: str,
    families: Sequence[str],
    lengths: Sequence[int],
    arguments: Sequence[str] | None,
    *,
    densities: Sequence[float] = DENSITIES,
) -> argparse.Namespace:
    """Read the command line of a scenario.

    Parameters
    ----------
    name : str
        Of the scenario and of its results file.
    families : sequence of str
        That it runs unless told otherwise, and may be told to.
    lengths : sequence of int
        Tokens of a document unless told otherwise.
    arguments : sequence of str, optional
        In place of those of the process.
    densities : sequence of float
        Budgets unless told otherwise.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m reports.scenarios.{name}",
        description="Rows that the results file has already are not run again: interrupt it at any time.",
    )
    parser.add_argument("--quick", action="store_true", help="two short documents, two patterns, one density")
    parser.add_argument("--model", type=Path, help="a GGUF file in place of the installed package's")
    parser.add_argument("--output", type=Path, help=f"results file; {RESULTS.name}/{name}.json if not given")
    parser.add_argument("--lengths", type=int, nargs="+", help=f"tokens of a document; {[*lengths]}")
    parser.add_argument("--documents", type=int, help="only so many documents")
    parser.add_argument("--densities", type=float, nargs="+", help="shares of the dense causal pairs")
    parser.add_argument("--families", nargs="+", choices=list(families))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of the families that draw lots")
    options = parser.parse_args(arguments)
    usual = {"lengths": lengths, "documents": None, "densities": densities, "families": families}
    for option, value in (_QUICK if options.quick else usual).items():
        if getattr(options, option) is None:
            setattr(options, option, value)
    if options.output is None:
        options.output = (RESULTS / "quick" if options.quick else RESULTS) / f"{name}.json"
    return options


def cells(options: argparse.Namespace) -> Iterator[Row]:
    """Dense attention, then every family, density by density: an interrupted run has whole densities."""
    yield {"family": DENSE, "density": 1.0, "seed": 0}
    for density in options.densities:
        for family in options.families:
            for seed in options.seeds if family in SEEDED else [0]:
                yield {"family": family, "density": density, "seed": seed}
