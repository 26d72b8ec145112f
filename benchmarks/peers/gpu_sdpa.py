"""PyTorch's scaled_dot_product_attention on a GPU, each of its kernels forced by itself.

Three are fused; the fourth are the plain products that it falls back to.

cuDNN and FlashAttention know all pairs and causal pairs. For any other pattern cuDNN is timed on all pairs,
and its row says so: that is what the fastest dense kernel needs, whatever the pattern. The memory-efficient
kernel and the plain products take a mask.
"""

from __future__ import annotations

from typing import Any, ClassVar

from ..workload import Workload
from . import Prepared
from .torch_arrays import cuda_torch_absent, torch_version, with_autograd

__all__ = ["Cudnn", "Efficient", "Flash", "Math"]

#: A dense mask of bias numbers is n x n times the element size.
LONGEST_MASK = 16_384
#: Of the scores of all heads, of which the plain products store several copies, in bytes.
MOST_SCORE_BYTES = 16 << 30


def _form(workload: Workload) -> str:
    """ "dense" or "causal" where a kernel has a form of its own for the pattern, else an empty string."""
    spec = workload.spec
    square = workload.pattern.shape[0] == workload.pattern.shape[1]
    if spec.function == "full":
        return "dense"
    return "causal" if spec.function == "causal" and square else ""


class _Sdpa:
    """One of the kernels; the others are switched off at every call, by four assignments in C++."""

    name: ClassVar[str]
    switch: ClassVar[str]
    #: Whether it takes masks.
    masked: ClassVar[bool] = False

    def why_absent(self) -> str:
        """PyTorch has to be installed, and to reach the GPU."""
        return cuda_torch_absent()

    def why_not(self, workload: Workload) -> str:
        """Element types of the kernels."""
        if workload.dtype.name not in {"float16", "bfloat16"}:
            return "takes float16 and bfloat16 only"
        return ""

    def version(self) -> dict[str, str]:
        """PyTorch and cuDNN."""
        import torch

        return {**torch_version(), "cudnn": str(torch.backends.cudnn.version())}

    def prepare(self, workload: Workload) -> Prepared:
        """Views of the case's tensors; for the backward pass, a graph that is kept."""
        import torch

        switches = {
            name: getattr(torch.backends.cuda, f"enable_{name}_sdp")
            for name in ("cudnn", "flash", "mem_efficient", "math")
        }
        options: dict[str, Any] = {
            "scale": workload.scale,
            "enable_gqa": workload.heads != workload.kv_heads,
            "is_causal": _form(workload) == "causal",
        }
        if not _form(workload) and self.masked:
            options["attn_mask"] = _mask(workload)

        def attention(*inputs: Any) -> Any:
            for name, enable in switches.items():
                enable(name == self.switch)
            return torch.nn.functional.scaled_dot_product_attention(*inputs, **options)

        inputs = [array[None] for array in (workload.q, workload.k, workload.v)]
        prepared = with_autograd(attention, inputs, workload)
        if not _form(workload) and not self.masked:
            n_q, n_k = workload.pattern.shape
            prepared.checked, prepared.computes = False, "all pairs"
            prepared.flops = workload.flops * (workload.heads * n_q * n_k) // workload.nnz
        return prepared


def _mask(workload: Workload) -> Any:
    """The mask as numbers to add, -inf for what is not selected: the kernel takes no Booleans, and SDPA would
    convert them at every call."""
    import torch

    selected = torch.from_numpy(workload.masks).to(workload.q.device)
    bias = torch.zeros(selected.shape, dtype=workload.q.dtype, device=workload.q.device)
    return bias.masked_fill_(~selected, -torch.inf)[None].expand(1, workload.heads, -1, -1)


class Cudnn(_Sdpa):
    """cuDNN's fused attention; all pairs where the pattern is neither dense nor causal."""

    name, switch = "sdpa_cudnn", "cudnn"


class Flash(_Sdpa):
    """FlashAttention as PyTorch ships it."""

    name, switch = "sdpa_flash", "flash"

    def why_not(self, workload: Workload) -> str:
        """It takes no mask."""
        if not _form(workload):
            return "knows dense and causal attention only"
        return super().why_not(workload)


class Efficient(_Sdpa):
    """The memory-efficient kernel, with a dense mask where the pattern is neither dense nor causal."""

    name, switch, masked = "sdpa_efficient", "mem_efficient", True

    def why_not(self, workload: Workload) -> str:
        """A mask is n x n, and heads cannot be grouped."""
        if not _form(workload) and max(workload.pattern.shape) > LONGEST_MASK:
            return f"takes an n x n mask; measured up to n = {LONGEST_MASK}"
        if workload.heads != workload.kv_heads:
            return "takes as many key heads as query heads"
        return "" if workload.dtype.name in {"float16", "bfloat16", "float32"} else "takes no float64"


class Math(_Sdpa):
    """Products and softmax one after the other, with a dense mask: what runs where nothing else does."""

    name, switch, masked = "sdpa_math", "math", True

    def why_not(self, workload: Workload) -> str:
        """It stores the scores."""
        n_q, n_k = workload.pattern.shape
        if workload.heads * n_q * n_k * workload.dtype.itemsize > MOST_SCORE_BYTES:
            return (
                f"stores the scores of all pairs; measured up to {MOST_SCORE_BYTES / 2**30:.0f} GiB of them"
            )
        return ""
