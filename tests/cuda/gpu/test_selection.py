"""Selection by content on a GPU: every library and element type, as the definition says up to rounding."""

from __future__ import annotations

import numpy as np
import pytest

import numba_sparse_attn as nsa
from numba_sparse_attn import dynamic

from ..selected import assert_attended, assert_chosen
from .libraries import each_dtype, each_library, each_of, fetch, modules, put, random_array

pytestmark = pytest.mark.gpu

N_Q, N_K, WIDTH = 700, 900, 64
#: Arguments of each selection, and what `assert_chosen` wants to know of them.
CASES = {
    "block_top_k": ({"block": 128}, {"block": 128, "query_block": 128}),
    "block_top_k, other blocks": ({"block": 32, "query_block": 50}, {"block": 32, "query_block": 50}),
    "moba": ({"block": 64}, {"block": 64}),
    "quest": ({"page": 16}, {"block": 16}),
    "quest, shared": ({"page": 128, "query_block": 128}, {"block": 128, "query_block": 128}),
    "top_k": ({}, {}),
}
each_case = pytest.mark.parametrize("case", CASES)


def arrays_of(dtype, lead=(2,)):
    q, k = (random_array(dtype, (*lead, heads, n, WIDTH)) for heads, n in ((4, N_Q), (2, N_K)))
    return q, (k.astype(np.float32) + np.float32(0.25)).astype(dtype)


def check(case, q, k, there, causal, budget=4):
    arguments, told = CASES[case]
    name = case.partition(",")[0]
    made = getattr(dynamic, name)(*there, budget, causal=causal, **arguments)
    members = [made] if isinstance(made, nsa.Pattern) else [made.members[i] for i in made.member_of.flat]
    assert_chosen(name, q, k, members, budget=budget, causal=causal, **told)
    return made


@each_library
@each_dtype
@each_case
@pytest.mark.parametrize("causal", [False, True])
def test_what_is_chosen(case, dtype, library, causal):
    q, k = arrays_of(dtype)
    check(case, q, k, (put(library, q), put(library, k)), causal)


@each_library
@each_dtype
@pytest.mark.parametrize("query_block", [1, 64])
def test_blocks_by_attention(library, dtype, query_block):
    q, k = arrays_of(dtype)
    sizes = {"block": 64, "length": 32, "stride": 16, "query_block": query_block}
    made = dynamic.nsa_blocks(put(library, q), put(library, k), 5, **sizes, causal=True)
    members = [made.members[i] for i in made.member_of.flat]
    assert_attended(q, k, members, budget=5, causal=True, **sizes)


@each_library
@each_dtype
@pytest.mark.parametrize("causal", [False, True])
def test_lines(library, dtype, causal):
    """Sums of 64 weights each, of which those at the edge of the choice are percents apart."""
    q, k = arrays_of(dtype)
    made = dynamic.vertical_slash(put(library, q), put(library, k), 12, 20, causal=causal)
    expected = dynamic.vertical_slash(q, k, 12, 20, causal=causal)
    assert all(made.members[i].equals(expected.members[i]) for i in made.member_of.flat)


@each_of("torch", "cupy", "jax")
def test_compressed_keys(library):
    _, k = arrays_of(np.dtype(np.float32))
    made = dynamic.compress(put(library, k), 32, 16)
    assert type(made) is type(put(library, k))
    error = np.abs(fetch(library, made) - dynamic.compress(k.astype(np.float64), 32, 16)).max()
    assert error <= 33 * 2.0**-24 * np.abs(k).max()


@each_of("torch", "cupy")
@each_case
def test_other_strides_and_axes(case, library):
    """Heads behind tokens, every second column, and batch axes that no single stride goes through."""
    dtype = np.dtype(np.float16)
    q, k = (random_array(dtype, (2, 3, n, heads, 2 * WIDTH)) for heads, n in ((4, N_Q), (2, N_K)))

    def seen(array):
        turned = array.swapaxes(2, 3) if isinstance(array, np.ndarray) or library == "cupy" else None
        turned = array.transpose(2, 3) if turned is None else turned
        turned = turned.swapaxes(0, 1)
        return turned[..., ::2]

    check(case, seen(q), seen(k), (seen(put(library, q)), seen(put(library, k))), True)


@each_of("torch", "cupy")
def test_flat_arrays_and_a_budget_for_every_head(library):
    q, k = arrays_of(np.dtype(np.float32), ())
    there = put(library, q), put(library, k)
    made = dynamic.block_top_k(*there, [1, 2, 3, 9], 128, causal=True)
    for head, budget in enumerate([1, 2, 3, 9]):
        own = {"budget": budget, "causal": True, "block": 128, "query_block": 128}
        assert_chosen("block_top_k", q[head : head + 1], k[head // 2 : head // 2 + 1], [made[head]], **own)
    flat = dynamic.moba(there[0][0], there[1][0], 3, 64)
    assert_chosen("moba", q[0], k[0], [flat], budget=3, causal=False, block=64)


@each_of("torch")
def test_q_is_read_in_the_order_of_its_stream(library):
    """On a side stream, behind a kernel that takes milliseconds and before which q is zero."""
    torch = modules(library)
    q, k = arrays_of(np.dtype(np.float16))
    there = put(library, q), put(library, k)
    late = torch.zeros_like(there[0])
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda._sleep(20_000_000)
        late.copy_(there[0])
        check("block_top_k", q, k, (late, there[1]), False)


@each_of("torch")
def test_attention_over_what_was_chosen(library):
    """The plan of 128 x 128 blocks is for Tensor Cores, and the result is that of the same pairs by rows."""
    q, k = arrays_of(np.dtype(np.float16))
    there = put(library, q), put(library, k)
    made = check("block_top_k", q, k, there, True)
    by_tiles, by_rows = (
        nsa.sparse_attention(there[0], there[1], there[1], made, engine=engine, return_lse=True)[1]
        for engine in ("cuda-tile", "cuda-warp")
    )
    # lse is float32 in both: a sum of at most 900 terms, and scores of 64.
    scale = float(np.abs(by_rows.cpu().numpy()[np.isfinite(by_rows.cpu().numpy())]).max())
    assert float((by_tiles - by_rows).nan_to_num().abs().max()) <= 1000 * 2.0**-24 * max(1.0, scale)


@each_of("torch")
def test_no_selection_while_a_graph_is_captured(library):
    torch = modules(library)
    q, k = arrays_of(np.dtype(np.float16))
    there = put(library, q), put(library, k)
    with pytest.raises(nsa.EngineError, match="captured into a CUDA graph"):
        with torch.cuda.graph(torch.cuda.CUDAGraph()):
            dynamic.moba(*there, 2, 64)
