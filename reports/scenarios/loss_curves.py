"""The figure of the training scenario: loss over steps, and over the time of the CPU."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from reports.drawing import look_of, new_figure

from .comparison import whole_seeds
from .families import DENSE
from .runs import Row
from .tables import density_and_family, groups

__all__ = ["draw_losses"]

#: Points of a curve that are averaged: losses of single batches differ by more than patterns do.
_SMOOTHED = 5


def draw_losses(rows: Sequence[Row]) -> Figure:
    """A line a family: the mean over seeds of the loss on batches, in a band from the least to the most.

    A band ends with its shortest run: after the same time, seeds are not at the same step.
    """
    figure, (over_steps, over_time) = new_figure(8.0, 3.5, 2)
    for number, ((density, family), cell) in enumerate(groups(whole_seeds(rows), density_and_family)):
        points = min(len(row["curve"]) for row in cell)
        steps = _smooth([point["step"] for point in cell[0]["curve"][:points]])
        losses, seconds = (
            np.array([_smooth([point[name] for point in row["curve"][:points]]) for row in cell])
            for name in ("loss", "seconds")
        )
        look = look_of(number)
        label = family if family == DENSE else f"{family}, {-density:g}"
        for axes, places in ((over_steps, steps), (over_time, seconds.mean(axis=0))):
            axes.fill_between(places, losses.min(axis=0), losses.max(axis=0), color=look.color, alpha=0.15)
            axes.plot(places, losses.mean(axis=0), color=look.color, linestyle=look.line, label=label)
    over_steps.set_xlabel("steps")
    over_time.set_xlabel("seconds of the CPU, mean over seeds")
    for axes in (over_steps, over_time):
        axes.set_ylabel("loss on batches, nats a byte")
    over_time.legend(frameon=False)
    return figure


def _smooth(values: Sequence[float]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Means of as many neighbors, or of all if they are fewer."""
    width = min(_SMOOTHED, len(values))
    return np.convolve(np.asarray(values, np.float64), np.full(width, 1 / width), mode="valid")
