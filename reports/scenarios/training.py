"""Training: a small language model of bytes with every pattern, from the same seeds, on Python's own modules.

    python -m reports.scenarios.training [--quick]

A pattern and dense attention begin with the same parameters and see the same batches. They are compared after
the same steps, and after the time that dense attention took for them. Time is that of the CPU, all threads
together: it hardly notices who else is on the machine.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from numba_sparse_attn import Pattern
from numba_sparse_attn.dynamic import Adam

from . import documents
from .documents import Document
from .families import DENSE, Text, make_pattern
from .layers import Floats, cross_entropy, embed, linear, rotation
from .options import parse_options, trained_cells
from .runs import Job, Results, Row, run_missing
from .transformer import Shape, blocks, gradient_norms, initial, learning_rate

__all__ = ["FAMILIES", "LENGTH", "STEPS", "ByteModel", "run"]

FAMILIES = ("window", "strided", "bigbird")
#: Bytes of a sequence.
LENGTH = 2048
STEPS = 600
DENSITIES = (0.125,)
SEEDS = (0, 1, 2)

_SHAPE = Shape(layers=3, width=64, heads=4)
#: Sequences of a step, and of a document that the model has not seen.
_BATCH = 1
_HELD_OUT = 4
_RATE = 4e-3
#: Steps that are one point of a curve.
_POINT = 10


class _Bytes:
    """Text to the numbers of its bytes."""

    def encode(self, text: str) -> list[int]:
        return list(text.encode("utf-8"))


@dataclass(frozen=True)
class ByteModel:
    """A causal transformer over bytes, with rotary positions."""

    shape: Shape

    def parameters(self, seed: int, dtype: type = np.float32) -> dict[str, Floats]:
        """To begin with."""
        ends = {"bytes.table": (256, self.shape.width), "readout.weight": (self.shape.width, 256)}
        return initial({**ends, "readout.bias": (256,), **self.shape.parameter_shapes()}, seed, dtype)

    def losses(
        self, parameters: dict[str, Floats], sequences: npt.NDArray[np.int64], pattern: Pattern
    ) -> tuple[Floats, Callable[[Floats], dict[str, Floats]]]:
        """-log p of every byte but a sequence's first, and the way back to the parameters.

        Parameters
        ----------
        parameters : dict of arrays
        sequences : int array (batch, n + 1)
        pattern : Pattern
            Of shape (n, n).
        """
        x, back_embed = embed(parameters["bytes.table"], sequences[:, :-1])
        turn = rotation(x.shape[1], self.shape.width // self.shape.heads, x.dtype)
        x, through = blocks(x, parameters, self.shape, [pattern] * self.shape.layers, turn)
        logits, back_readout = linear(x, parameters["readout.weight"], parameters["readout.bias"])
        found, back_losses = cross_entropy(logits, sequences[:, 1:])

        def back(dlosses: Floats) -> dict[str, Floats]:
            gradients: dict[str, Floats] = {}
            dx, gradients["readout.weight"], gradients["readout.bias"] = back_readout(*back_losses(dlosses))
            (gradients["bytes.table"],) = back_embed(through(dx, gradients))
            return gradients

        return found, back


@dataclass
class _Run:
    """One model on its way."""

    model: ByteModel
    pattern: Pattern
    text: npt.NDArray[np.int64]
    seed: int
    steps: int = 0
    seconds: float = 0.0
    points: list[Row] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._parameters = self.model.parameters(self.seed)
        self._optimiser = Adam(self._parameters)
        self._draw = np.random.default_rng(self.seed)
        self._recent: list[float] = []
        # Whoever runs first would pay for loading kernels: that is done here, outside of the time.
        losses, back = self.model.losses(self._parameters, self.text[None, : self._length + 1], self.pattern)
        back(losses)

    @property
    def _length(self) -> int:
        return self.pattern.shape[0]

    def step(self) -> None:
        """Train on a batch that only the seed and the number of the step decide."""
        begins = self._draw.integers(len(self.text) - self._length, size=_BATCH)
        batch = self.text[begins[:, None] + np.arange(self._length + 1)]
        begin = time.process_time()
        losses, back = self.model.losses(self._parameters, batch, self.pattern)
        gradients = back(np.full_like(losses, 1.0 / losses.size))
        self._optimiser.step(gradients, learning_rate(self.steps, _RATE))
        self.seconds += time.process_time() - begin
        self.steps += 1
        self._recent.append(float(losses.mean()))
        if self.steps % _POINT == 0:
            norms = {name: round(norm, 5) for name, norm in gradient_norms(gradients).items()}
            point = {"step": self.steps, "seconds": round(self.seconds, 3), "gradient_norms": norms}
            self.points.append({**point, "loss": round(float(np.mean(self._recent)), 5)})
            self._recent.clear()

    def held_out(self, unseen: Sequence[Document]) -> dict[str, float]:
        """Mean loss on every document, a position's context being its sequence."""
        found = {}
        for document in unseen:
            windows = np.lib.stride_tricks.sliding_window_view(document.tokens, self._length + 1)
            sequences = windows[:: self._length]
            losses, _ = self.model.losses(self._parameters, sequences, self.pattern)
            found[document.name] = round(float(losses.mean()), 5)
        return found


def _measure(
    text: npt.NDArray[np.int64],
    unseen: Sequence[Document],
    results: Results,
    length: int,
    steps: int,
    cell: Row,
) -> Row:
    pattern = make_pattern(cell["family"], Text(length), cell["density"], cell["seed"])
    run = _Run(ByteModel(_SHAPE), pattern, text, cell["seed"])
    budget = _dense_seconds(results, length, steps, cell)
    row: Row = {"pairs": pattern.nnz}
    while "at_steps" not in row or "at_time" not in row:
        run.step()
        # Dense attention's own time is over with its last step.
        timed_out = run.steps == steps if budget is None else run.seconds >= budget
        if timed_out and "at_time" not in row:
            row |= {"at_time": run.held_out(unseen), "steps_in_time": run.steps}
        if run.steps == steps:
            row |= {"at_steps": run.held_out(unseen), "cpu_seconds": round(run.seconds, 3)}
    return {**row, "curve": run.points}


def _dense_seconds(results: Results, length: int, steps: int, cell: Row) -> float | None:
    """What dense attention took from the same seed; None if it is what is run."""
    if cell["family"] == DENSE:
        return None
    wanted = {"tokens": length, "steps": steps, "family": DENSE, "seed": cell["seed"]}
    (row,) = (row for row in results.rows if all(row[name] == value for name, value in wanted.items()))
    return float(row["cpu_seconds"])


def run(arguments: Sequence[str] | None = None) -> Path:
    """Train what the command line asks for and is not there yet; returns the results file."""
    options = parse_options(
        "training",
        FAMILIES,
        (LENGTH,),
        arguments,
        densities=DENSITIES,
        seeds=SEEDS,
        steps=STEPS,
        source=None,
        quick={"families": ["window", "strided"]},
    )
    text = np.frombuffer(documents.training_code(), np.uint8).astype(np.int64)
    recipe = f"{_SHAPE}, batches of {_BATCH}, Adam at {_RATE:g}"
    results = Results(
        options.output,
        "training",
        {
            "name": "A causal transformer over bytes",
            "trained": f"{recipe}, on {len(text)} bytes of the standard library",
            "sha256": hashlib.sha256(recipe.encode() + text.astype(np.uint8).tobytes()).hexdigest(),
        },
    )

    def jobs() -> Iterator[Job]:
        for length in options.lengths:
            unseen = documents.code(_Bytes(), _HELD_OUT * length + 1)[: options.documents]
            for cell in trained_cells(options):
                key = {"tokens": length, "steps": options.steps, "documents": len(unseen), **cell}
                work = partial(_measure, text, unseen, results, length, options.steps, cell)
                yield Job(key, options.steps * length, work)

    run_missing(list(jobs()), results)
    return Path(options.output)


if __name__ == "__main__":
    run()
