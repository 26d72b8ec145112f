"""PTX of kernels as text, for reading; what runs is a cubin that never passes through it."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from importlib.metadata import files

from numba import cuda

_OPCODE = re.compile(r"(?:^|[;{])\s*(?:@!?%p\d+\s+)?([a-z][a-z0-9]*(?:(?:\.|::)[a-z0-9_]+)*)(?=[\s;])", re.M)


def ptx_of(kernel, signature, threads):
    return cuda.compile(
        kernel,
        signature,
        device=False,
        cc=(9, 0, "a"),
        output="ptx",
        abi="numba",
        launch_bounds=(threads, 1),
    )[0]


def instructions(text):
    """How often each instruction stands in the text of a kernel, by its full name."""
    body = text[text.index(".entry") :]
    body = re.sub(r"//.*", "", body[body.index("{") + 1 :])
    return Counter(_OPCODE.findall(body))


def disassembled(cubin):
    """Machine code of a cubin as text."""
    program = next(
        path for path in files("nvidia-cuda-nvdisasm") or () if path.name.partition(".")[0] == "nvdisasm"
    )
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        found = subprocess.run(
            [str(program.locate()), "-c", file.name], capture_output=True, text=True, check=True
        )
    return found.stdout
