"""Who is measured: one small adapter a contender, ours among them.

An adapter turns a workload into callables and says in one line why it cannot, when it cannot: the
package is missing, or the case is not for it. To add a peer, add a file with a class that has the
four names of :class:`Contender`, and list it in :data:`PEERS`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy.typing as npt

from ..workload import Workload

__all__ = ["PEERS", "Contender", "Prepared", "load_peer"]

Array = npt.NDArray[Any]


@dataclass(eq=False)
class Prepared:
    """A contender ready to be timed on one workload.

    Attributes
    ----------
    forward : callable
        ``forward() -> out``, ``(heads, n_q, d_v)``.
    backward : callable
        ``backward(dout) -> (dq, dk, dv)``; the forward pass that it needs has been run already. None
        only where the result is not checked.
    setup : dict
        Seconds that were spent before the first timed call, by what they were spent on.
    flops : int, optional
        Operations of one run, where they are not those of the workload.
    checked : bool
        False for what computes no attention (the machine's own matrix product).
    """

    forward: Callable[[], Array]
    backward: Callable[[Array], tuple[Array, Array, Array]] | None = None
    setup: dict[str, float] = field(default_factory=dict)
    flops: int | None = None
    checked: bool = True

    def runner(self, workload: Workload) -> Callable[[], object]:
        """What is timed."""
        backward, dout = self.backward, workload.dout
        if workload.direction == "forward" or backward is None:
            return self.forward
        return lambda: backward(dout)


class Contender(Protocol):
    """What an adapter offers."""

    @property
    def name(self) -> str:
        """As it stands in rows."""

    def why_absent(self) -> str:
        """Why it cannot run on this machine, or an empty string."""

    def why_not(self, workload: Workload) -> str:
        """Why it cannot run this workload, or an empty string."""

    def version(self) -> dict[str, str]:
        """Names and versions of the packages behind it."""

    def prepare(self, workload: Workload) -> Prepared:
        """Convert, compile and warm up."""


#: name -> module of this package; each has a class ``Peer``.
PEERS = {
    "torch_flex": "torch_flex",
    "torch_sdpa": "torch_sdpa",
    "scipy_unfused": "scipy_unfused",
    "numpy_dense": "numpy_dense",
    "numpy_sgemm": "numpy_sgemm",
}


def load_peer(name: str) -> Contender:
    """The adapter of that name."""
    peer: Contender = importlib.import_module(f".{PEERS[name]}", __name__).Peer()
    return peer
