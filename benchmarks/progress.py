"""A progress bar on the terminal, with the time left; silent where there is no terminal."""

from __future__ import annotations

import shutil
import sys
import time
from typing import TextIO

__all__ = ["Progress", "duration"]

WIDTH = 24


def duration(seconds: float) -> str:
    """Seconds for people.

    >>> duration(9.6), duration(75), duration(4000)
    ('10 s', '1 min 15 s', '1 h 06 min')
    """
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


class Progress:
    """Steps of unequal weight. The time left is the weight left at the pace so far.

    Parameters
    ----------
    total : float
        Sum of the weights; expected seconds are a good weight.
    stream : file, optional
        Standard error, so that a redirected table stays clean.
    """

    def __init__(self, total: float, stream: TextIO | None = None) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._total = max(total, 1e-9)
        self._done = 0.0
        self._start = time.perf_counter()
        self._active = self._stream.isatty()

    def show(self, label: str) -> None:
        """Draw the bar with what is being done now."""
        if not self._active:
            return
        share = min(1.0, self._done / self._total)
        elapsed = time.perf_counter() - self._start
        left = elapsed * (self._total - self._done) / self._done if self._done else self._total
        filled = round(share * WIDTH)
        line = f"[{'#' * filled}{'.' * (WIDTH - filled)}] {share:4.0%}  {duration(left)} left  {label}"
        columns = shutil.get_terminal_size().columns - 1
        self._stream.write("\r" + line[:columns].ljust(columns))
        self._stream.flush()

    def step(self, weight: float) -> None:
        """A step of this weight is done."""
        self._done += weight

    def message(self, text: str) -> None:
        """A line above the bar; without a terminal, just the line."""
        self.clear()
        self._stream.write(text + "\n")
        self._stream.flush()

    def clear(self) -> None:
        """Wipe the bar."""
        if self._active:
            self._stream.write("\r" + " " * (shutil.get_terminal_size().columns - 1) + "\r")
            self._stream.flush()
