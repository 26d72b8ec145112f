"""Byte-pair encoding as GPT-2 does it, with SmolLM2's rule that every digit stands alone."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any

__all__ = ["Tokenizer"]

#: What the words of a text are, on its shadow (see `_shadow`); digits were cut out before.
_WORDS = re.compile(r"'(?:s|t|re|ve|m|ll|d)| ?[A-Za-z]+| ?[^\sA-Za-z]+|\s+(?!\S)|\s+")
_DIGITS = re.compile(r"[0-9]|[^0-9]+")

#: ASCII characters that stand for all others of their kind. None of them can be part of a contraction.
_LETTER, _NUMBER, _SPACE, _OTHER = "A", "0", "\t", "!"


def _shadow(text: str) -> str:
    """`text` with a stand-in for every character beyond ASCII: `re` knows no Unicode categories."""
    if text.isascii():
        return text

    def stand_in(character: str) -> str:
        if character.isascii():
            return character
        if character.isspace():
            return _SPACE
        return {"L": _LETTER, "N": _NUMBER}.get(unicodedata.category(character)[0], _OTHER)

    return "".join(map(stand_in, text))


def _byte_letters() -> list[str]:
    """GPT-2's printable letter for every byte: itself if it prints, else one from 256 on."""
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), 256)}
    others = iter(range(256, 512))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


class Tokenizer:
    """Text to token numbers and back.

    Parameters
    ----------
    metadata : dict
        Of a GGUF file, with ``tokenizer.ggml.tokens`` and ``tokenizer.ggml.merges``.
    """

    def __init__(self, metadata: dict[str, Any]) -> None:
        rule = metadata["tokenizer.ggml.model"], metadata["tokenizer.ggml.pre"]
        if rule != ("gpt2", "smollm"):
            raise ValueError(f"the tokenizer is {rule}; ('gpt2', 'smollm') is known here")
        self._tokens: list[str] = metadata["tokenizer.ggml.tokens"]
        self._numbers = {token: number for number, token in enumerate(self._tokens)}
        merges = metadata["tokenizer.ggml.merges"]
        self._ranks = {tuple(merge.split(" ")): rank for rank, merge in enumerate(merges)}
        self._letters = _byte_letters()
        self._bytes = {letter: byte for byte, letter in enumerate(self._letters)}
        self._encode_word = lru_cache(maxsize=1 << 16)(self._merge)

    def encode(self, text: str) -> list[int]:
        """Token numbers. Text that looks like a special token is text."""
        shadow = _shadow(text)
        found: list[int] = []
        for piece in _DIGITS.finditer(shadow):
            for word in _WORDS.finditer(piece.group()):
                begin, end = (piece.start() + edge for edge in word.span())
                found += self._encode_word(text[begin:end])
        return found

    def _merge(self, word: str) -> tuple[int, ...]:
        """The pair that was learnt first is joined first, wherever it stands."""
        parts = [self._letters[byte] for byte in word.encode("utf-8")]
        never = len(self._ranks)
        while len(parts) > 1:
            ranks = [self._ranks.get(pair, never) for pair in pairwise(parts)]
            best = min(ranks)
            if best == never:
                break
            joined: list[str] = []
            for part in parts:
                # The part before is still the left half exactly if it was not joined itself.
                if joined and self._ranks.get((joined[-1], part)) == best:
                    joined[-1] += part
                else:
                    joined.append(part)
            parts = joined
        unknown = [part for part in parts if part not in self._numbers]
        if unknown:
            raise ValueError(
                f"no token for byte {self._bytes[unknown[0]]} in {word!r}; remove it from the text"
            )
        return tuple(self._numbers[part] for part in parts)

    def bytes_of(self, token: int) -> bytes:
        """The bytes that a token stands for."""
        return bytes(self._bytes[letter] for letter in self._tokens[token])

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of some tokens; a character cut in two shows as a replacement character."""
        return b"".join(map(self.bytes_of, tokens)).decode("utf-8", "replace")
