"""Vision: a small transformer trained on handwritten digits with every pattern, from the same seeds.

    python -m reports.scenarios.vision [--quick]

Every pixel is a token. The pixels of a coarser level of a pyramid are the means of those below. Whatever a
model has seen, it says which digit it was from the mean of the image's own tokens, so that a pyramid is a way
for them to see one another and no other way to an answer.
"""

from __future__ import annotations

import gzip
import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from numba_sparse_attn.dynamic import Adam

from .families import DENSE
from .grids import GRID_FAMILIES, Grid, make_grid
from .layers import Floats, cross_entropy, linear
from .options import parse_options, trained_cells
from .runs import Job, Results, Row, run_missing
from .transformer import Shape, blocks, gradient_norms, initial, learning_rate

__all__ = ["CLASSES", "FAMILIES", "Images", "VisionModel", "images_path", "load_images", "pyramid", "run"]

#: A PyPI package that carries the images. It is looked into, never imported.
_PACKAGE = "sklearn"
_FILE = Path("datasets", "data", "digits.csv.gz")
CLASSES = 10
#: What the brightest pixel is in the file.
_BRIGHTEST = 16.0

FAMILIES = tuple(name for name in GRID_FAMILIES if name != DENSE)
STEPS = 400
DENSITIES = (0.25,)
SEEDS = (0, 1, 2, 3, 4)

_SHAPE = Shape(layers=4, width=32, heads=4)
#: One image in so many is kept from training, the last ones: other people wrote them.
_TEST_SHARE = 3
_BATCH = 32
_RATE = 4e-3
#: Steps that are one point of a curve.
_POINT = 20


@dataclass(frozen=True)
class Images:
    """Square images and what they show.

    Parameters
    ----------
    pixels : float32 array (images, side, side)
        From 0 to 1.
    labels : int array (images,)
    digest : str
        Of the file.
    """

    pixels: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]
    digest: str

    @property
    def test(self) -> int:
        """Number of the first image that is kept from training."""
        return len(self.labels) - len(self.labels) // _TEST_SHARE


def images_path(given: Path | None) -> Path:
    """The file that was given, or the one in the installed package ``scikit-learn``."""
    if given is not None:
        return given
    spec = find_spec(_PACKAGE)
    folders = spec.submodule_search_locations if spec else None
    found = [Path(folder) / _FILE for folder in folders or ()]
    if not found or not found[0].exists():
        raise FileNotFoundError(
            f"no {_FILE} in the package scikit-learn: pip install --no-deps scikit-learn, or name a file "
            "with --images"
        )
    return found[0]


def load_images(path: Path) -> Images:
    """Lines of pixels in C order with the label behind them, as compressed text."""
    data = path.read_bytes()
    table = np.loadtxt(gzip.decompress(data).decode("ascii").splitlines(), np.int64, delimiter=",", ndmin=2)
    side = round((table.shape[1] - 1) ** 0.5)
    if side * side != table.shape[1] - 1:
        raise ValueError(f"{path} has {table.shape[1]} numbers a line; a square and a label are read here")
    pixels = (table[:, :-1] / _BRIGHTEST).astype(np.float32).reshape(-1, side, side)
    return Images(pixels, table[:, -1], hashlib.sha256(data).hexdigest())


def pyramid(pixels: Floats, levels: int) -> Floats:
    """Pixels, and above them the means of ever larger squares, level behind level: (images, tokens)."""
    found = [pixels]
    for _ in range(levels - 1):
        count, side, _ = found[-1].shape
        if side % 2:
            raise ValueError(f"a level of {side} cells a side has no level of half as many above it")
        found.append(found[-1].reshape(count, side // 2, 2, side // 2, 2).mean(axis=(2, 4)))
    return np.concatenate([level.reshape(len(pixels), -1) for level in found], axis=1)


@dataclass(frozen=True)
class VisionModel:
    """A transformer over the cells of a grid, with a learnt position for each."""

    shape: Shape
    grid: Grid
    cells: int

    def parameters(self, seed: int, dtype: type = np.float32) -> dict[str, Floats]:
        """To begin with."""
        width = self.shape.width
        ends = {
            "pixels.weight": (1, width),
            "pixels.bias": (width,),
            "positions.table": (self.grid.tokens, width),
            "readout.weight": (width, CLASSES),
            "readout.bias": (CLASSES,),
        }
        return initial({**ends, **self.shape.parameter_shapes()}, seed, dtype)

    def logits(
        self, parameters: dict[str, Floats], values: Floats
    ) -> tuple[Floats, Callable[[Floats], dict[str, Floats]]]:
        """Of every class, and the way back to the parameters.

        Parameters
        ----------
        parameters : dict of arrays
        values : array (images, tokens)
            See `pyramid`.
        """
        x, back_pixels = linear(values[..., None], parameters["pixels.weight"], parameters["pixels.bias"])
        x, through = blocks(x + parameters["positions.table"], parameters, self.shape, self.grid.patterns)
        mean = x[:, : self.cells].mean(axis=1)
        found, back_readout = linear(mean, parameters["readout.weight"], parameters["readout.bias"])

        def back(dlogits: Floats) -> dict[str, Floats]:
            gradients: dict[str, Floats] = {}
            dmean, gradients["readout.weight"], gradients["readout.bias"] = back_readout(dlogits)
            dx = np.zeros_like(x)
            dx[:, : self.cells] = dmean[:, None] / self.cells
            dx = through(dx, gradients)
            gradients["positions.table"] = dx.sum(axis=0)
            _, gradients["pixels.weight"], gradients["pixels.bias"] = back_pixels(dx)
            return gradients

        return found, back


def _measure(images: Images, steps: int, tested: int, cell: Row) -> Row:
    side = images.pixels.shape[1]
    grid = make_grid(cell["family"], side, _SHAPE.layers, cell["density"], cell["seed"])
    model = VisionModel(_SHAPE, grid, side * side)
    values = pyramid(images.pixels, grid.levels)
    parameters = model.parameters(cell["seed"])
    optimiser = Adam(parameters)
    draw = np.random.default_rng(cell["seed"])
    curve: list[Row] = []
    recent: list[float] = []
    begin = time.process_time()
    for step in range(1, steps + 1):
        batch = draw.integers(images.test, size=_BATCH)
        logits, back = model.logits(parameters, values[batch])
        losses, back_losses = cross_entropy(logits, images.labels[batch])
        gradients = back(*back_losses(np.full_like(losses, 1.0 / _BATCH)))
        optimiser.step(gradients, learning_rate(step - 1, _RATE, steps))
        recent.append(float(losses.mean()))
        if step % _POINT == 0:
            norms = {name: round(norm, 5) for name, norm in gradient_norms(gradients).items()}
            curve.append({"step": step, "loss": round(float(np.mean(recent)), 5), "gradient_norms": norms})
            recent.clear()
    seconds = time.process_time() - begin
    unseen = slice(images.test, images.test + tested)
    logits, _ = model.logits(parameters, values[unseen])
    losses, _ = cross_entropy(logits, images.labels[unseen])
    hits = logits.argmax(axis=1) == images.labels[unseen]
    return {
        "pairs": grid.pairs,
        "sequence": grid.tokens,
        "hits": "".join("01"[hit] for hit in hits.astype(int)),
        "test_loss": round(float(losses.mean()), 5),
        "cpu_seconds": round(seconds, 3),
        "curve": curve,
    }


def run(arguments: Sequence[str] | None = None) -> Path:
    """Train what the command line asks for and is not there yet; returns the results file."""
    quick: dict[str, Any] = {"families": ["multiscale", "axial"], "documents": 100}
    options = parse_options(
        "vision",
        FAMILIES,
        (),
        arguments,
        densities=DENSITIES,
        seeds=SEEDS,
        steps=STEPS,
        source=("--images", "a file in place of the installed package's"),
        quick=quick,
    )
    path = images_path(options.images)
    images = load_images(path)
    tested = min(options.documents or len(images.labels), len(images.labels) - images.test)
    recipe = f"{_SHAPE}, batches of {_BATCH}, Adam at {_RATE:g}"
    results = Results(
        options.output,
        "vision",
        {
            "name": "A transformer over pixels",
            "file": path.name,
            "trained": f"{recipe}, on the first {images.test} images",
            "sha256": hashlib.sha256((recipe + images.digest).encode()).hexdigest(),
        },
    )
    cells = images.pixels[0].size
    jobs = []
    for cell in trained_cells(options):
        key = {"tokens": cells, "steps": options.steps, "documents": tested, **cell}
        jobs.append(Job(key, options.steps, partial(_measure, images, options.steps, tested, cell)))
    run_missing(jobs, results)
    return Path(options.output)


if __name__ == "__main__":
    run()
