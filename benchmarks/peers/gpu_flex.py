"""PyTorch's FlexAttention compiled for the GPU, forward and backward.

Making the block mask and compiling are timed apart from the calls. A pattern without a formula is given as
a look-up in its dense mask, with the block lists made from its rows: the mask function is not run over all
pairs.
"""

from __future__ import annotations

import time
import warnings
from dataclasses import replace
from typing import Any

import numpy as np

import numba_sparse_attn as nsa

from ..workload import Workload
from . import Prepared
from .flex_masks import arithmetic_mask, lookup_mask
from .torch_arrays import cuda_torch_absent, torch_version, with_autograd

__all__ = ["Alibi", "Peer", "SoftCap"]

#: Its default on a GPU, whose kernels work on tiles of 64 or 128.
BLOCK = 128
#: A mask of that length takes 0.5 GB, and its blocks are all computed, sparse as they are.
LONGEST_LOOKUP = 65_536
#: From this length the mask function is compiled over all pairs: run eagerly it would take 8 bytes a pair.
LONG = 16_384


class Peer:
    """Block-sparse attention with a mask function, compiled by Triton."""

    name = "flex_cuda"

    def why_absent(self) -> str:
        """PyTorch has to be installed, and to reach the GPU."""
        return cuda_torch_absent()

    def why_not(self, workload: Workload) -> str:
        """What its kernels do not take."""
        if workload.dtype.name == "float64":
            return "takes no float64"
        if workload.head_dim < 16:
            return "takes head dimensions of at least 16"
        if max(workload.pattern.shape) > LONGEST_LOOKUP and arithmetic_mask(workload, "cpu") is None:
            return f"looks pairs up in an n x n mask; measured up to n = {LONGEST_LOOKUP}"
        return ""

    def version(self) -> dict[str, str]:
        """PyTorch and Triton."""
        from importlib.metadata import version

        return {**torch_version(), "triton": version("triton")}

    def prepare(self, workload: Workload) -> Prepared:
        """The block mask, a compilation, the first call."""
        import torch
        from torch._functorch import config as functorch
        from torch._inductor import config as inductor
        from torch.nn.attention.flex_attention import flex_attention

        torch._dynamo.reset()  # after eight masks it would stop compiling
        inductor.force_disable_caches = True  # compilation is measured, not a look-up of an earlier run's
        functorch.donated_buffer = False  # the backward pass is repeated on one graph
        start = time.perf_counter()
        block_mask = self._block_mask(workload)
        workload.place.synchronize()
        made = time.perf_counter()
        compiled = torch.compile(flex_attention, dynamic=False)
        options = {
            "block_mask": block_mask,
            "score_mod": self._score_mod(workload),
            "scale": workload.scale,
            "enable_gqa": workload.heads != workload.kv_heads,
        }

        def attention(*inputs: Any) -> Any:
            return compiled(*inputs, **options)

        inputs = [array[None] for array in (workload.q, workload.k, workload.v)]
        warnings.filterwarnings("ignore", "dynamo_pgo force disabled")
        prepared = with_autograd(attention, inputs, workload)
        compile_seconds = prepared.setup.pop("first_call_seconds")
        prepared.setup = {"mask_seconds": made - start, "compile_seconds": compile_seconds}
        return prepared

    def _score_mod(self, workload: Workload) -> Any:
        """score_mod(score, batch, head, query, key) -> score, if scores are changed."""
        return None

    def _block_mask(self, workload: Workload) -> Any:
        from torch.nn.attention.flex_attention import create_block_mask

        n_q, n_k = workload.pattern.shape
        device = workload.q.device
        mask_mod = arithmetic_mask(workload, device)
        if mask_mod is not None:
            long = max(n_q, n_k) > LONG
            return create_block_mask(
                mask_mod, None, None, n_q, n_k, device=device, BLOCK_SIZE=BLOCK, _compile=long
            )
        mask_mod = lookup_mask(workload, device)
        if isinstance(workload.pattern, nsa.Pattern):
            return _from_rows(workload.pattern, mask_mod, device)
        return create_block_mask(mask_mod, None, workload.heads, n_q, n_k, device=device, BLOCK_SIZE=BLOCK)


class _Changed(Peer):
    """With a score_mod: what one of our changes computes, which the case's oracle does not."""

    change: str

    def prepare(self, workload: Workload) -> Prepared:
        """As without, and not compared with what the case computes."""
        return replace(super().prepare(workload), checked=False, computes=f"scores through {self.change}")


class Alibi(_Changed):
    """Linear biases with the slopes of our case."""

    name, change = "flex_cuda_alibi", "alibi"

    def _score_mod(self, workload: Workload) -> Any:
        import torch

        slopes = torch.from_numpy(nsa.scores.alibi(workload.heads).slopes).float().to(workload.q.device)
        offset = workload.pattern.shape[1] - workload.pattern.shape[0]
        return lambda score, b, h, i, j: score - slopes[h] * (i + offset - j).abs()


class SoftCap(_Changed):
    """30 * tanh(score / 30)."""

    name, change = "flex_cuda_softcap", "softcap"

    def _score_mod(self, workload: Workload) -> Any:
        import torch

        return lambda score, b, h, i, j: 30.0 * torch.tanh(score / 30.0)


def _from_rows(pattern: nsa.Pattern, mask_mod: Any, device: Any) -> Any:
    """A block mask from CSR: the blocks that hold a pair, and those that hold all of theirs."""
    import torch
    from torch.nn.attention.flex_attention import BlockMask

    csr = pattern.rows()
    down, across = (-(-length // BLOCK) for length in csr.shape)
    lengths = torch.from_numpy(np.diff(csr.indptr)).to(device)
    rows = torch.repeat_interleave(torch.arange(csr.shape[0], device=device), lengths)
    columns = torch.from_numpy(np.array(csr.indices)).to(device)
    pairs = torch.bincount(rows // BLOCK * across + columns // BLOCK, minlength=down * across)
    pairs = pairs.view(1, 1, down, across)

    def lists(chosen: Any) -> tuple[Any, Any]:
        order = torch.argsort(chosen.to(torch.int8), dim=-1, descending=True, stable=True)
        return chosen.sum(dim=-1).to(torch.int32), order.to(torch.int32)

    whole = BLOCK * BLOCK
    return BlockMask.from_kv_blocks(
        *lists((pairs > 0) & (pairs < whole)),
        *lists(pairs == whole),
        BLOCK_SIZE=BLOCK,
        mask_mod=mask_mod,
        seq_lengths=csr.shape,
    )
