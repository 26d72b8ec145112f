"""The tokenizer: where words are cut, which pairs are joined first, and that nothing is lost."""

from __future__ import annotations

import pytest
from hypothesis import event, given
from hypothesis import strategies as st

from reports.scenarios.tokenizer import Tokenizer

from . import tiny_model

TOKENIZER = Tokenizer(tiny_model.metadata())
TOKENS = tiny_model.tokens()


def with_tokens(words: list[str]) -> Tokenizer:
    """A tokenizer that joins each of these words whole, letter by letter from the left."""
    merges = []
    for word in words:
        for end in range(1, len(word)):
            merge = f"{word[:end]} {word[end]}"
            if merge not in merges:
                merges.append(merge)
    known = [*tiny_model.letters(), *(merge.replace(" ", "") for merge in merges)]
    facts = {"tokenizer.ggml.tokens": list(dict.fromkeys(known)), "tokenizer.ggml.merges": merges}
    return Tokenizer({**tiny_model.metadata(), **facts})


def pieces(tokenizer: Tokenizer, text: str) -> list[str]:
    return [tokenizer.bytes_of(token).decode("utf-8", "replace") for token in tokenizer.encode(text)]


def test_pairs_that_were_learnt_first_are_joined_first() -> None:
    # "h e" comes before "t h" in the list, and "Ġ t" before both.
    assert pieces(TOKENIZER, "the the") == ["t", "he", " the"]
    assert pieces(TOKENIZER, "thin thing") == ["th", "in", " t", "h", "ing"]
    assert pieces(TOKENIZER, "tth") == ["t", "th"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # A digit is cut out before anything else is looked at, so the space before it stands alone ...
        ("x 12", ["x", " ", "1", "2"]),
        # ... with all the white space there is, where before a letter the last space belongs to the word.
        ("\n   1", ["\n   ", "1"]),
        ("\n   x", ["\n  ", " x"]),
        ("it's", ["it", "'s"]),
        ("a_b", ["a", "_", "b"]),
        ("x...", ["x", "..."]),
        # Roman twelve is a number to Unicode, and the superior two as well.
        ("xⅫ²", ["x", "Ⅻ", "²"]),
    ],
)
def test_words_are_cut_as_the_model_learnt_them(text: str, expected: list[str]) -> None:
    letters = tiny_model.letters()
    words = ["".join(letters[byte] for byte in piece.encode("utf-8")) for piece in expected]
    # Pieces that only a cut can have made: across it, the tokenizer could join as well.
    whole = "".join(letters[byte] for byte in text.encode("utf-8"))
    assert pieces(with_tokens([*words, whole]), text) == expected


@given(st.text())
def test_nothing_is_lost(text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return
    event("ascii" if text.isascii() else "beyond ascii")
    assert TOKENIZER.decode(TOKENIZER.encode(text)) == text


def test_unknown_rules_and_bytes_are_refused() -> None:
    with pytest.raises(ValueError, match="'gpt2', 'smollm'"):
        Tokenizer({**tiny_model.metadata(), "tokenizer.ggml.pre": "llama-bpe"})
    known = [token for token in TOKENS if token != tiny_model.letters()[4]]
    short = Tokenizer({**tiny_model.metadata(), "tokenizer.ggml.tokens": known})
    with pytest.raises(ValueError, match="no token for byte 4"):
        short.encode("a\x04")
