"""The encoder against a second one in plain loops and double precision; its files and its tokenizer."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from numba_sparse_attn import patterns
from reports.scenarios import bert
from reports.scenarios.bert import Embedder, load_embedder
from reports.scenarios.safetensors import SafetensorsFile
from reports.scenarios.wordpiece import WordPiece

from . import tiny_bert
from .tiny_bert import CONTEXT, HEADS, LAYERS, VOCABULARY, WIDTH

N = 30
SEQUENCES = np.random.default_rng(1).integers(len(VOCABULARY), size=(9, N))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("bert")
    tiny_bert.write(found)
    return found


@pytest.fixture(scope="module")
def embedder(folder: Path) -> Embedder:
    return load_embedder(folder)


def plain_vector(
    w: dict[str, npt.NDArray[np.float64]], tokens: npt.NDArray[np.int64], mask: npt.NDArray[np.bool_]
) -> npt.NDArray[np.float64]:
    """The mean over positions, of length 1; every head and row on its own, as BERT's authors describe it."""

    def norm(x: npt.NDArray[np.float64], name: str) -> npt.NDArray[np.float64]:
        rows = [(row - row.mean()) / math.sqrt(row.var() + 1e-12) for row in x]
        return np.array(rows) * w[f"{name}.weight"] + w[f"{name}.bias"]

    def dense(x: npt.NDArray[np.float64], name: str) -> npt.NDArray[np.float64]:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    positions = w["embeddings.position_embeddings.weight"][: len(tokens)]
    x = w["embeddings.word_embeddings.weight"][tokens] + positions
    x = norm(x + w["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
    for layer in range(LAYERS):
        at = f"encoder.layer.{layer}."
        q, k, v = (dense(x, f"{at}attention.self.{name}") for name in ("query", "key", "value"))
        seen = np.zeros_like(x)
        size = WIDTH // HEADS
        for head in range(HEADS):
            own = slice(head * size, (head + 1) * size)
            for row in range(len(tokens)):
                scores = k[mask[row], own] @ q[row, own] / math.sqrt(size)
                share = np.exp(scores - scores.max())
                seen[row, own] = share @ v[mask[row], own] / share.sum()
        x = norm(x + dense(seen, f"{at}attention.output.dense"), f"{at}attention.output.LayerNorm")
        inner = dense(x, f"{at}intermediate.dense")
        inner = np.array([[y * 0.5 * (1 + math.erf(y / math.sqrt(2))) for y in row] for row in inner])
        x = norm(x + dense(inner, f"{at}output.dense"), f"{at}output.LayerNorm")
    mean = x.mean(axis=0)
    return mean / np.linalg.norm(mean)


@pytest.mark.parametrize("pattern", [patterns.full(N), patterns.sliding_window(N, 4)], ids=["full", "window"])
def test_vectors_are_those_of_the_plain_encoder(embedder: Embedder, folder: Path, pattern: Any) -> None:
    found = embedder.model.embed(SEQUENCES, pattern)
    wanted = [plain_vector(tiny_bert.weights(folder), row, pattern.toarray() > 0) for row in SEQUENCES]
    assert found.shape == (9, WIDTH) and found.dtype == np.float32
    np.testing.assert_allclose(found, wanted, rtol=0, atol=5e-6)


@pytest.mark.parametrize(("prefix", "stored"), [("bert.", "F32"), ("", "F16")])
def test_names_may_have_a_prefix_and_weights_be_shorter(tmp_path: Path, prefix: str, stored: str) -> None:
    tiny_bert.write(tmp_path, prefix=prefix, stored=stored)
    pattern = patterns.sliding_window(N, 4)
    (found,) = load_embedder(tmp_path).model.embed(SEQUENCES[:1], pattern)
    weights = {name.removeprefix("bert."): w for name, w in tiny_bert.weights(tmp_path).items()}
    np.testing.assert_allclose(
        found, plain_vector(weights, SEQUENCES[0], pattern.toarray() > 0), rtol=0, atol=5e-6
    )


def test_what_is_not_computed_here_is_refused(
    embedder: Embedder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match=f"was trained for up to {CONTEXT}"):
        embedder.model.embed(np.zeros((1, CONTEXT + 1), np.int64), patterns.full(CONTEXT + 1))
    monkeypatch.setattr(bert, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match="or name with --model a folder"):
        load_embedder(None)
    with pytest.raises(FileNotFoundError, match=r"vocab\.txt"):
        load_embedder(tmp_path)
    tiny_bert.write(tmp_path, config={"hidden_act": "relu"})
    with pytest.raises(ValueError, match="hidden_act is relu; gelu is computed here"):
        load_embedder(tmp_path)
    tiny_bert.write(tmp_path)
    entry = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    tiny_bert.write_tensors(tmp_path / "model.safetensors", {"other": entry}, bytes(4))
    with pytest.raises(ValueError, match="take the weights of a BERT model"):
        load_embedder(tmp_path)


def test_tensors_are_read_as_they_are_stored(tmp_path: Path) -> None:
    path = tmp_path / "some.safetensors"
    numbers = np.arange(6, dtype="<i8").reshape(2, 3)
    header = {
        "a": {"dtype": "F16", "shape": [1], "data_offsets": [0, 2]},
        # Behind two bytes: at no multiple of its items.
        "b": {"dtype": "I64", "shape": [2, 3], "data_offsets": [2, 50]},
        "c": {"dtype": "F8_E4M3", "shape": [1], "data_offsets": [50, 51]},
    }
    tiny_bert.write_tensors(path, header, np.float16(0.5).tobytes() + numbers.tobytes() + b"\0")
    file = SafetensorsFile(path)
    assert file.names == ["a", "b", "c"]
    assert file.tensor("a").tolist() == [0.5] and np.array_equal(file.tensor("b"), numbers)
    with pytest.raises(ValueError, match="of type F8_E4M3; F64, F32"):
        file.tensor("c")
    path.write_bytes(b"GGUF" + bytes(16))
    with pytest.raises(ValueError, match="no header of a safetensors file"):
        SafetensorsFile(path)


def pieces(text: str, vocabulary: list[str] = VOCABULARY) -> list[str]:
    return [vocabulary[number] for number in WordPiece(vocabulary).encode(text)]


def test_the_longest_piece_comes_first() -> None:
    assert pieces("understanding") == ["under", "##standing"]
    assert pieces("Understands, the") == ["under", "##stand", "##s", ",", "the"]
    assert pieces("then") == ["the", "##n"]


def test_words_lose_case_accents_and_control_characters() -> None:
    assert pieces("É\tTHE\u200bre\ufffd\n ñ") == ["e", "the", "##r", "##e", "n"]
    # Composed and decomposed letters are the same.
    assert pieces("e\u0301") == pieces("\u00e9") == ["e"]


def test_marks_stand_alone_and_what_is_not_known_is_one_token() -> None:
    assert pieces("a_b(c$)") == ["a", "_", "b", "(", "c", "$", ")"]
    # Punctuation beyond ASCII stands alone, too; a word with one unknown letter is unknown as a whole.
    assert pieces("the\u2014the \u03b1the") == ["the", "[UNK]", "the", "[UNK]"]
    vocabulary = [*VOCABULARY, "\u5317", "\u4eac"]
    assert pieces("\u5317\u4eacthe", vocabulary) == ["\u5317", "\u4eac", "the"]
    assert pieces("a" * 100)[0] == "a" and pieces("a" * 101) == ["[UNK]"]
    with pytest.raises(ValueError, match=r"the vocabulary has no \[CLS\]"):
        WordPiece(["[UNK]"])
