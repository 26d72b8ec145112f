"""Adam, for the few parameters that a selection may have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Adam"]

_Floats = npt.NDArray[np.floating[Any]]


class Adam:
    """Adam (2015), for parameters that are changed in place.

    Parameters
    ----------
    parameters : dict of arrays
    decay : (float, float)
        Of the means of gradients and of their squares, a step.
    clip : float
        Gradients are scaled down to this norm, all of them together, if theirs is larger.

    Examples
    --------
    >>> import numpy as np, numba_sparse_attn as nsa
    >>> parameters = {"x": np.array([3.0])}
    >>> adam = nsa.dynamic.Adam(parameters)
    >>> for step in range(200):
    ...     adam.step({"x": 2 * (parameters["x"] - 1.0)}, rate=0.1)
    >>> parameters["x"].round(2).tolist()
    [1.0]
    """

    def __init__(
        self,
        parameters: Mapping[str, _Floats],
        *,
        decay: tuple[float, float] = (0.9, 0.99),
        clip: float = 1.0,
    ) -> None:
        self._parameters = parameters
        self._decay = decay
        self._clip = clip
        self._steps = 0
        self._mean = {name: np.zeros_like(value) for name, value in parameters.items()}
        self._square = {name: np.zeros_like(value) for name, value in parameters.items()}

    def step(self, gradients: Mapping[str, _Floats], rate: float) -> None:
        """Move every parameter against its gradient."""
        self._steps += 1
        first, second = self._decay
        norm = float(np.sqrt(sum(float(np.vdot(value, value)) for value in gradients.values())))
        scale = min(1.0, self._clip / max(norm, 1e-12))
        # Both means begin at zero; dividing by these undoes that.
        pace = rate / (1.0 - first**self._steps)
        correction = 1.0 - second**self._steps
        for name, value in self._parameters.items():
            gradient = gradients[name] * value.dtype.type(scale)
            mean, square = self._mean[name], self._square[name]
            mean += (1.0 - first) * (gradient - mean)
            square += (1.0 - second) * (gradient * gradient - square)
            value -= (pace * mean / (np.sqrt(square / correction) + 1e-8)).astype(value.dtype)
