"""The forward pass, against a second one written in plain loops and double precision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from numba_sparse_attn import Pattern, patterns
from reports.scenarios.gguf import GgufFile
from reports.scenarios.llama import Llama

from . import tiny_model
from .tiny_model import HEAD_DIM, HEADS, KV_HEADS, LAYERS

N = 40
TOKENS = np.random.default_rng(1).integers(0, len(tiny_model.tokens()), N)
CAUSAL = patterns.causal(N)


def plain_logits(
    weights: dict[str, npt.NDArray[Any]], tokens: npt.NDArray[Any], mask: npt.NDArray[np.bool_], dtype: type
) -> npt.NDArray[Any]:
    """Logits of the architecture as its authors describe it, every head and row on its own."""
    w = {name.removesuffix(".weight"): values.astype(dtype) for name, values in weights.items()}

    def norm(x: npt.NDArray[Any], gain: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + dtype(1e-5)) * gain

    def rotate(x: npt.NDArray[Any]) -> npt.NDArray[Any]:
        turned = np.empty_like(x)
        for position in range(len(x)):
            for pair in range(HEAD_DIM // 2):
                angle = position * 1000.0 ** (-2 * pair / HEAD_DIM)
                a, b = x[position, 2 * pair], x[position, 2 * pair + 1]
                turned[position, 2 * pair] = a * dtype(np.cos(angle)) - b * dtype(np.sin(angle))
                turned[position, 2 * pair + 1] = a * dtype(np.sin(angle)) + b * dtype(np.cos(angle))
        return turned

    x = w["token_embd"][tokens]
    for layer in range(LAYERS):
        at = f"blk.{layer}."
        h = norm(x, w[at + "attn_norm"])
        q, k, v = (h @ w[at + name].T for name in ("attn_q", "attn_k", "attn_v"))
        seen = np.zeros_like(q)
        for head in range(HEADS):
            own = slice(head * HEAD_DIM, (head + 1) * HEAD_DIM)
            group = head // (HEADS // KV_HEADS)
            shared = slice(group * HEAD_DIM, (group + 1) * HEAD_DIM)
            scores = rotate(q[:, own]) @ rotate(k[:, shared]).T / dtype(np.sqrt(HEAD_DIM))
            for row in range(len(tokens)):
                chosen = scores[row, mask[row]]
                share = np.exp(chosen - chosen.max())
                seen[row, own] = share @ v[mask[row], shared] / share.sum()
        x = x + seen @ w[at + "attn_output"].T
        h = norm(x, w[at + "ffn_norm"])
        gate = h @ w[at + "ffn_gate"].T
        x = x + (gate / (1 + np.exp(-gate)) * (h @ w[at + "ffn_up"].T)) @ w[at + "ffn_down"].T
    return norm(x, w["output_norm"]) @ w["token_embd"].T


@pytest.fixture(scope="module")
def model_and_weights(tmp_path_factory: pytest.TempPathFactory) -> tuple[Llama, dict[str, Any]]:
    path = tmp_path_factory.mktemp("model") / "tiny.gguf"
    weights = tiny_model.write(path)
    return Llama.from_gguf(GgufFile(path)), weights


@pytest.mark.parametrize("pattern", [CAUSAL, patterns.sink_window(N, 2, 5)], ids=["dense", "sparse"])
def test_logits_are_those_of_the_plain_model(
    model_and_weights: tuple[Llama, dict[str, Any]], pattern: Pattern
) -> None:
    """At most twice the error of the plain model in single precision, plus the rounding of the output."""
    model, weights = model_and_weights
    mask = pattern.toarray()
    exact = plain_logits(weights, TOKENS, mask, np.float64)
    single = plain_logits(weights, TOKENS, mask, np.float32)
    ours = model.logits(model.hidden(TOKENS, pattern))
    rounding = np.finfo(np.float32).eps * np.abs(exact).max()
    assert ours.dtype == np.float32
    assert np.abs(ours - exact).max() <= 2 * np.abs(single - exact).max() + rounding


def test_what_comes_later_changes_nothing(model_and_weights: tuple[Llama, dict[str, Any]]) -> None:
    model, _ = model_and_weights
    changed = TOKENS.copy()
    changed[30:] = 7
    first, second = (model.hidden(tokens, CAUSAL) for tokens in (TOKENS, changed))
    np.testing.assert_array_equal(first[:30], second[:30])
    assert not np.array_equal(first[30:], second[30:])


def test_scores_are_losses_and_ranks(model_and_weights: tuple[Llama, dict[str, Any]]) -> None:
    """More rows than one chunk of logits has."""
    model, _ = model_and_weights
    rng = np.random.default_rng(2)
    hidden = rng.standard_normal((1100, tiny_model.WIDTH)).astype(np.float32)
    targets = rng.integers(0, len(tiny_model.tokens()), 1100)
    logits = model.logits(hidden).astype(np.float64)
    own = logits[np.arange(1100), targets]
    expected = np.log(np.exp(logits).sum(axis=1)) - own
    found = model.score(hidden, targets)
    np.testing.assert_allclose(found.loss, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(found.rank, (logits > own[:, None]).sum(axis=1))


def test_models_that_are_not_computed_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.gguf"
    tiny_model.write(path, facts={"general.architecture": "mamba"})
    with pytest.raises(ValueError, match="mamba"):
        Llama.from_gguf(GgufFile(path))
    tiny_model.write(path, facts={"llama.context_length": N - 1})
    with pytest.raises(ValueError, match="40 tokens; the model was trained for up to 39"):
        Llama.from_gguf(GgufFile(path)).hidden(TOKENS, CAUSAL)
