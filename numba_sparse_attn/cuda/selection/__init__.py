"""Selection by content where q and k lie in GPU memory; the twin of ``HostTools`` in ``dynamic/_tools.py``.

Kernels read q and k where they are, of all heads and batch elements in one launch each, in the order of the
stream on which they are ready. What comes to the host is what was chosen, and for that the call waits: a
pattern is an object of the host.
"""

from __future__ import annotations

from .compress import compress_view
from .tools import DeviceTools

__all__ = ["DeviceTools", "compress_view"]
