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

from ..workload import Array, Workload

__all__ = ["GPU_PEERS", "PEERS", "Array", "Contender", "Prepared", "load_peer"]


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
    training : callable, optional
        ``training(dout) -> (out, dq, dk, dv)``, both passes; on a GPU only.
    setup : dict
        Seconds that were spent before the first timed call, by what they were spent on, and what was chosen.
    flops : int, optional
        Operations of one run, where they are not those of the workload.
    checked : bool
        False for what does not compute the case's attention: the machine's own rates, or all pairs.
    computes : str
        What a contender computes that is not checked.
    engine : str
        Which of our engines runs.
    bare : callable, optional
        What is timed, where the three above hand inputs and results over to another library first: the
        same pass on its own arrays.
    wait : callable, optional
        Waits for calls that return before they are done, and are in none of our streams.
    memory_counted : bool
        False for a library whose memory nobody here counts.
    """

    forward: Callable[[], Any]
    backward: Callable[[Any], tuple[Any, ...]] | None = None
    training: Callable[[Any], tuple[Any, Any, Any, Any]] | None = None
    setup: dict[str, Any] = field(default_factory=dict)
    flops: int | None = None
    checked: bool = True
    computes: str = ""
    engine: str = ""
    bare: Callable[[], object] | None = None
    wait: Callable[[], object] | None = None
    memory_counted: bool = True

    def runner(self, workload: Workload) -> Callable[[], object]:
        """What is timed."""
        if self.bare is not None:
            return self.bare
        passes = {"forward": None, "backward": self.backward, "training": self.training}
        chosen, dout = passes[workload.direction], workload.dout
        return self.forward if chosen is None else lambda: chosen(dout)


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


#: name -> module of this package, whose class is ``Peer`` unless it is named behind a colon.
HOST_PEERS = {
    "torch_flex": "torch_flex",
    "torch_sdpa": "torch_sdpa",
    "scipy_unfused": "scipy_unfused",
    "numpy_dense": "numpy_dense",
    "jax_xla": "jax_attention:Xla",
    "numpy_sgemm": "numpy_sgemm",
}
#: The same for peers that run on a GPU.
GPU_PEERS = {
    "sdpa_cudnn": "gpu_sdpa:Cudnn",
    "sdpa_flash": "gpu_sdpa:Flash",
    "sdpa_efficient": "gpu_sdpa:Efficient",
    "sdpa_math": "gpu_sdpa:Math",
    "flex_cuda": "gpu_flex",
    "flex_cuda_alibi": "gpu_flex:Alibi",
    "flex_cuda_softcap": "gpu_flex:SoftCap",
    "torch_unfused": "gpu_unfused",
    "flashinfer": "gpu_flashinfer",
    "pyg": "gpu_graph:Pyg",
    "dgl": "gpu_graph:Dgl",
    "jax_cudnn": "jax_attention:Cudnn",
    "gather_only": "gpu_gather",
}
PEERS = HOST_PEERS | GPU_PEERS


def load_peer(name: str) -> Contender:
    """The adapter of that name."""
    module, _, kind = PEERS[name].partition(":")
    peer: Contender = getattr(importlib.import_module(f".{module}", __name__), kind or "Peer")()
    return peer
