"""A small call of every kernel, for compute-sanitizer; ``test_sanitizer.py`` runs this file.

Staged runs and gathered keys, long rows in parts, groups whose heads differ, rows of odd length read by
elements, and tiles, full and partial.
"""

from __future__ import annotations

import sys
from unittest import mock

import numpy as np
import torch

import numba_sparse_attn as nsa
from numba_sparse_attn import patterns
from numba_sparse_attn.cuda import tile
from numba_sparse_attn.cuda.warp import lists


def attend(pattern, n, engine, *, heads=4, head_dim=64, dtype=torch.float16, normaliser=None):
    q, dout = torch.randn(2, heads, n, head_dim, device="cuda").to(dtype)
    k, v = torch.randn(2, heads // 2, n, head_dim, device="cuda").to(dtype)
    settings = {"engine": engine, "normaliser": normaliser}
    out, lse = nsa.sparse_attention(q, k, v, pattern, return_lse=True, **settings)
    nsa.sparse_attention_backward(dout, q, k, v, out, lse, pattern, **settings)
    torch.cuda.synchronize()
    assert torch.isfinite(out).all()


def attend_with_tiles(window, n):
    for head_dim in (64, 128, 192):
        attend(window, n, "cuda-tile", head_dim=head_dim)
        attend(patterns.full(n), n, "cuda-tile", head_dim=head_dim)


def attend_with_parts_of_rows():
    """Few queries and many keys: parts of a tile row on many multiprocessors, and the kernel that merges."""
    for head_dim in (64, 256):
        q = torch.randn(4, 20, head_dim, device="cuda", dtype=torch.float16)
        k, v = torch.randn(2, 2, 1600, head_dim, device="cuda", dtype=torch.float16)
        v[:, 5] = float("nan")  # selected by nobody, so that rows are computed pair by pair, too
        mask = np.ones((20, 1600), bool)
        mask[:, 5] = False
        out, lse = nsa.sparse_attention(q, k, v, mask, engine="cuda-tile", return_lse=True)
        torch.cuda.synchronize()
        assert torch.isfinite(out).all() and torch.isfinite(lse).all()


def attend_with_warps(window, n):
    scattered = patterns.random_keys(n, per_query=20, seed=0)
    for dtype in (torch.float16, torch.float32):
        attend(window, n, "cuda-warp", dtype=dtype)
        attend(scattered, n, "cuda-warp", dtype=dtype, head_dim=33)
    attend([window, scattered, scattered, window], n, "cuda-warp")
    for normaliser in (
        nsa.normalisers.softmax_plus_one(),
        nsa.normalisers.sigmoid(),
        nsa.normalisers.entmax([1.2, 1.5, 1.8, 2.0]),
    ):
        attend(window, n, "cuda-warp", normaliser=normaliser)
        attend(scattered, n, "cuda-warp", normaliser=normaliser, head_dim=33)
    lists.PART_KEYS = 16
    attend(nsa.as_pattern(np.ones((n, n), bool)), n, "cuda-warp")
    attend(patterns.random_keys(n, per_query=40, seed=1), n, "cuda-warp")


def select():
    """Every selection that reads a GPU's arrays: whole words and single elements, odd sizes, few rows."""
    for dtype, width in ((torch.float16, 64), (torch.float32, 33), (torch.float64, 16)):
        q = torch.randn(4, 90, width, device="cuda").to(dtype)
        k = torch.randn(2, 130, width, device="cuda").to(dtype)
        weight = np.ones(2 * width)
        nsa.dynamic.block_top_k(q, k, 2, 16, causal=True)
        nsa.dynamic.moba(q, k, [1, 2, 3, 4], 8)
        nsa.dynamic.quest(q, k, 2, 8, query_block=5)
        nsa.dynamic.top_k(q, k, 9, causal=True)
        nsa.dynamic.nsa_branches(q, k, 4, 8, block=16, length=8, stride=4, query_block=3)
        nsa.dynamic.vertical_slash(q, k, 3, 4, last=20)
        nsa.dynamic.landmarks_by_importance(q, k, 3, 2)
        nsa.dynamic.adaptive(q, k, weight, 0.0, 0.5)


def main():
    torch.manual_seed(0)
    n = 200
    window = patterns.sliding_window(n, 20) | patterns.global_tokens(n, [3])
    if sys.argv[1] in ("all", "mma.sync"):
        with mock.patch.object(tile, "has_wgmma", lambda device: False):
            attend_with_tiles(window, n)
    if sys.argv[1] == "all" and torch.cuda.get_device_capability()[0] == 9:
        attend_with_tiles(window, n)
        attend_with_parts_of_rows()
    if sys.argv[1] in ("all", "cuda-warp"):
        attend_with_warps(window, n)
    if sys.argv[1] in ("all", "selection"):
        select()


if __name__ == "__main__":
    main()
    print("done")
