"""The command line that every scenario has, and the runs that it asks for."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from .families import DENSE, DENSITIES, SEEDED
from .runs import RESULTS, Row

__all__ = ["cells", "parse_options", "trained_cells"]

#: Small enough for the tests, large enough to go through everything.
_QUICK = {
    "lengths": [256],
    "documents": 2,
    "densities": [0.25],
    "families": ["window", "sink_window"],
    "seeds": [0],
    "steps": 10,
}


def parse_options(
    name: str,
    families: Sequence[str],
    lengths: Sequence[int],
    arguments: Sequence[str] | None,
    *,
    densities: Sequence[float] = DENSITIES,
    seeds: Sequence[int] = (0,),
    steps: int | None = None,
    source: tuple[str, str] | None = ("--model", "a GGUF file in place of the installed package's"),
    quick: Mapping[str, Any] = MappingProxyType({}),
) -> argparse.Namespace:
    """Read the command line of a scenario.

    Parameters
    ----------
    name : str
        Of the scenario and of its results file.
    families : sequence of str
        That it runs unless told otherwise, and may be told to.
    lengths : sequence of int
        Tokens of a document unless told otherwise; no such option if there are none.
    arguments : sequence of str, optional
        In place of those of the process.
    densities : sequence of float
        Budgets unless told otherwise.
    seeds : sequence of int
        Of what draws lots, unless told otherwise.
    steps : int, optional
        Of training, unless told otherwise; there is no such option if it is left out.
    source : (str, str), optional
        The option that names a file or folder to be read, and its help.
    quick : mapping
        What ``--quick`` means here and not elsewhere.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m reports.scenarios.{name}",
        description="Rows that the results file has already are not run again: interrupt it at any time.",
    )
    parser.add_argument("--quick", action="store_true", help="two short documents, two patterns, one density")
    if source is not None:
        parser.add_argument(source[0], type=Path, help=source[1])
    parser.add_argument("--output", type=Path, help=f"results file; {RESULTS.name}/{name}.json if not given")
    if lengths:
        parser.add_argument("--lengths", type=int, nargs="+", help=f"tokens of a document; {[*lengths]}")
    parser.add_argument("--documents", type=int, help="only so many documents")
    parser.add_argument("--densities", type=float, nargs="+", help="shares of the dense causal pairs")
    parser.add_argument("--families", nargs="+", choices=list(families))
    parser.add_argument("--seeds", type=int, nargs="+", help=f"of what draws lots; {[*seeds]}")
    if steps is not None:
        parser.add_argument("--steps", type=int, help=f"of training; {steps}")
    options = parser.parse_args(arguments)
    wanted: dict[str, Any] = {
        "lengths": lengths,
        "documents": None,
        "densities": densities,
        "families": families,
        "seeds": seeds,
        "steps": steps,
    }
    if options.quick:
        wanted |= _QUICK | dict(quick)
    for option, value in wanted.items():
        if getattr(options, option, None) is None:
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


def trained_cells(options: argparse.Namespace) -> Iterator[Row]:
    """Dense attention, then every family, seed by seed: what is trained differs from one to the next."""
    for seed in options.seeds:
        yield {"family": DENSE, "density": 1.0, "seed": seed}
        for density in options.densities:
            for family in options.families:
                yield {"family": family, "density": density, "seed": seed}
