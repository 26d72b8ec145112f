"""The cases of a GPU: graphs, goals, the gather kernel, and the masks that FlexAttention is given."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import numba_sparse_attn as nsa
from benchmarks import gather_kernel, gpu_cases, graphs, kinds
from benchmarks.peers import flex_masks, jax_attention
from benchmarks.peers.own import Own
from benchmarks.workload import Host, Workload, make_workload
from numba_sparse_attn.cuda.launch import Target, compile_kernel

from .fake_gpu import FakeGpu


def workload_of(function: str, **arguments: Any) -> Workload:
    spec = kinds.PatternSpec(function, arguments)
    return make_workload(kinds.AttentionCase("gpu/case", spec, head_dim=8, device="gpu"), 0, FakeGpu())


def test_a_power_law_graph_is_one() -> None:
    pattern = graphs.power_law_graph(4000, 20, 2.1, 0)
    csr = pattern.rows()
    dense = pattern.toarray()
    assert pattern.nnz == 4000 * 20 and (dense == dense.T).all() and not dense.diagonal().any()
    degrees = np.sort(np.diff(csr.indptr))[::-1]
    assert degrees[0] > 40 * np.median(degrees)
    # Of ranks 10 to 1000 the degree falls as rank ** (-1 / (exponent - 1)).
    ranks = np.arange(10, 1000)
    slope = np.polyfit(np.log(ranks), np.log(degrees[ranks]), 1)[0]
    assert slope == pytest.approx(-1 / 1.1, abs=0.15)
    again = graphs.power_law_graph(4000, 20, 2.1, 0).rows()
    assert (again.indices == csr.indices).all()


def test_code_is_taken_from_pythons_library() -> None:
    pattern = graphs.code_indentation(3000, 8)
    assert pattern.shape == (3000, 3000) and 0.2 < pattern.sparsity < 0.95
    with pytest.raises(ValueError, match="lines asked for"):
        graphs.code_indentation(10**6, 8)


def test_goals_on_a_gpu_are_not_loosened() -> None:
    goals = {
        case.name: [goal.label for goal in case.goals]
        for case in gpu_cases.gpu_cases()
        if getattr(case, "goals", ())
    }
    for dtype in ("float32", "float16"):
        assert goals[f"gpu/random_graph_{dtype}_forward"] == [
            "share_of_gather >= 0.6",
            "speedup over torch_unfused >= 4",
            "speedup over flex_cuda >= 1",
        ]
        assert goals[f"gpu/random_graph_{dtype}_training"][0] == "speedup over torch_unfused >= 4"
    assert goals["gpu/power_law_forward"] == ["slowdown over regular <= 1.3"]
    for table, heads in (
        ("gpu/window_{}_1_heads", 1),
        ("gpu/window_{}_16_heads", 16),
        ("tile/window_128_{}", 16),
    ):
        for n, ratio in ((512, 1.7), (1024, 2.5), (2048, 3.2)):
            assert goals[table.format(n)][0] == f"speedup_dense >= {ratio}", heads
    for share, forward, training in (("50_percent_4096", 1.9, 1.8), ("10_percent_16384", 9, 8)):
        label = f"tile/blocks_{share}"
        assert goals[f"{label}_forward"][0] == f"speedup_all_pairs over sdpa_cudnn >= {forward}"
        assert goals[f"{label}_training"][0] == f"speedup_all_pairs over sdpa_cudnn >= {training}"
    assert goals["tile/dense_16384_d64_float16_forward"] == ["speedup over sdpa_cudnn >= 1"]
    assert goals["tile/dense_4096_d256_bfloat16_forward"] == ["speedup over sdpa_cudnn >= 0.9"]
    assert goals["tile/causal_16384_backward"] == ["speedup over sdpa_cudnn >= 0.85"]
    for name in ("window_256_16384", "documents_16384", "bigbird_4096", "indentation_4096"):
        assert goals[f"tile/{name}_training"][0] == "speedup over flex_cuda >= 2"
    for name in ("dilated_window", "strided", "lsh"):
        for which in ("d128_forward", "d128_training", "d64_forward", "d64_training"):
            assert goals[f"order/{name}_{which}"] == ["alternatives over cuda-tile-natural >= 3"]
    assert goals["tile/longformer_4096_forward"][1] == "speedup_dense >= 1"
    assert goals["gpu/host_launch"] == ["seconds <= 1e-05"]
    assert goals["gpu/host_forward"] == ["seconds <= 2.5e-05"]


def test_cases_cross_process_borders() -> None:
    for case in [*gpu_cases.gpu_quick_cases(), *gpu_cases.gpu_cases()]:
        assert kinds.device_of(case) == "gpu"
        if not isinstance(case, kinds.RateCase | kinds.SelectCase) and not case.name.startswith(
            "gpu-catalogue"
        ):
            json.dumps({"function": case.spec.function, "arguments": case.spec.arguments})


# Kernel and masks ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("row_bytes", [16, 128, 256, 512, 1024])
@pytest.mark.parametrize("target", [Target(8, 0), Target(9, 0, "a")], ids=lambda target: target.architecture)
def test_the_gather_kernel_keeps_its_loads_in_registers(row_bytes: int, target: Target) -> None:
    shape = gather_kernel.gather_shape(row_bytes)
    kernel = gather_kernel.make_gather(shape)
    compiled = compile_kernel(kernel, gather_kernel.GATHER_SIGNATURE, target, gather_kernel.THREADS)
    assert " 0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads" in compiled.report


def test_the_gather_kernel_takes_rows_that_fill_lanes() -> None:
    assert [gather_kernel.gather_shape(size)[:2] for size in (16, 128, 384, 2048)] == [
        (1, 1),
        (8, 1),
        (8, 3),
        (32, 4),
    ]
    for size in (0, 8, 24, 4096):
        with pytest.raises(ValueError, match=f"rows of {size} bytes"):
            gather_kernel.gather_shape(size)


@pytest.mark.parametrize("n_keys", [40, 43])
def test_pairs_are_found_in_their_bits(n_keys: int) -> None:
    mask = np.random.default_rng(0).random((30, n_keys)) < 0.3
    mask[3] = False
    bits = flex_masks._bits_of(nsa.as_pattern(mask))
    i, j = np.indices(mask.shape)
    assert (((bits[i, j // 8] >> (j % 8)) & 1).astype(bool) == mask).all()


FORMULAS = [
    ("full", {"n": 40}),
    ("causal", {"n": 40}),
    ("causal", {"n": 40, "n_keys": 50}),
    ("causal", {"n": 40, "n_keys": 50, "align": "top-left"}),
    ("sliding_window", {"n": 40, "window": 5}),
    ("sliding_window", {"n": 40, "window": 5, "causal": True}),
    ("dilated_window", {"n": 40, "window": 3, "dilation": 4}),
    ("strided", {"n": 40, "stride": 6, "window": 3}),
    ("strided", {"n": 40, "stride": 6, "window": 3, "causal": True}),
    ("document_qa", {"n": 40, "question": 6, "window": 3}),
]


@pytest.mark.parametrize(("function", "arguments"), FORMULAS)
def test_formulas_of_masks_are_the_patterns(function: str, arguments: dict[str, Any]) -> None:
    """They are arithmetic, so NumPy's indices do as well as PyTorch's."""
    workload = workload_of(function, **arguments)
    mask_mod = flex_masks.arithmetic_mask(workload, "cpu")
    assert mask_mod is not None
    i, j = np.indices(workload.pattern.shape)
    with np.errstate(all="ignore"):
        found = mask_mod(0, 0, AbsArray(i), AbsArray(j))
    assert (np.asarray(found) == workload.masks[0]).all()


class AbsArray(np.ndarray):
    """NumPy arrays with the method that PyTorch's have and NumPy's lack."""

    def __new__(cls, values: Any) -> AbsArray:
        return np.asarray(values).view(cls)

    def abs(self) -> Any:
        return np.abs(self)


def test_patterns_without_a_formula_are_looked_up() -> None:
    assert flex_masks.arithmetic_mask(workload_of("random_keys", n=40, per_query=3, seed=0), "cpu") is None


@pytest.mark.parametrize(
    ("function", "arguments", "form"),
    [
        ("full", {"n": 40}, {}),
        ("causal", {"n": 40}, {"is_causal": True}),
        ("causal", {"n": 40, "n_keys": 50}, None),
        ("sliding_window", {"n": 40, "window": 5}, {"local_window_size": (5, 5), "is_causal": False}),
        (
            "sliding_window",
            {"n": 40, "window": 5, "causal": True},
            {"local_window_size": (5, 0), "is_causal": True},
        ),
        ("strided", {"n": 40, "stride": 6, "window": 3}, None),
    ],
)
def test_jax_s_cudnn_is_given_what_it_has_a_form_for(
    function: str, arguments: dict[str, Any], form: dict[str, Any] | None
) -> None:
    workload = replace(workload_of(function, **arguments), dtype=np.dtype(np.float16))
    assert jax_attention._form(workload) == form
    refusal = "" if form is not None else "knows dense and causal attention and windows only"
    assert jax_attention.Cudnn().why_not(workload) == refusal
    assert "float16 and bfloat16 only" in jax_attention.Cudnn().why_not(workload_of("full", n=40))


def test_jax_refuses_what_it_would_lose_by_its_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = kinds.PatternSpec("causal", {"n": 40})
    workload = make_workload(kinds.AttentionCase("host/case", spec, head_dim=8), 0, Host())
    peer = jax_attention.Xla()
    monkeypatch.setattr(jax_attention, "_cores", lambda: 3)
    monkeypatch.setenv("NSA_NUM_THREADS", "3")
    assert peer.why_not(workload) == ""
    monkeypatch.setenv("NSA_NUM_THREADS", "2")
    assert peer.why_not(workload) == "uses all 3 cores, and our engine is told to use 2"
    assert "float64" in peer.why_not(replace(workload, dtype=np.dtype(np.float64)))
    assert "float16" in peer.why_not(replace(workload, dtype=np.dtype(np.float16)))
    monkeypatch.setenv("NSA_NUM_THREADS", "3")
    monkeypatch.setitem(jax_attention.MOST_SCORE_BYTES, False, 1000)
    assert "stores the scores" in peer.why_not(workload)


@pytest.mark.parametrize("engine", ["auto", "cuda-warp", "cuda-tile"])
def test_an_engine_that_is_here_is_not_called_absent(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tile engine takes 16-bit elements only, and that is no reason to skip it everywhere."""
    pytest.importorskip("numba_cuda", reason="numba-cuda is not installed")
    monkeypatch.setattr("numba_sparse_attn.cuda.calls.why_unavailable", lambda name, device: None)
    monkeypatch.setattr("numba_sparse_attn.cuda.tile.has_wgmma", lambda device: True)
    assert Own(engine=engine, device="cuda").why_absent() == ""
