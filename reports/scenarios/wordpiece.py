"""WordPiece as uncased BERT models have it: words without case and accents, cut into long known pieces."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from functools import lru_cache

__all__ = ["WordPiece"]

#: Letters of a word that is looked at; longer ones are unknown as a whole.
_LONGEST = 100
#: What a piece begins with that is not the first of its word.
_INSIDE = "##"
#: Ideographs, each a word of its own; the first and the last of every range.
_IDEOGRAPHS = (
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x20000, 0x2A6DF),
    (0x2A700, 0x2CEAF),
    (0x2F800, 0x2FA1F),
)


def _stands_alone(character: str) -> bool:
    """Punctuation, with every ASCII character that is neither letter, digit nor space; ideographs."""
    if character.isascii():
        return character.isprintable() and not character.isalnum() and character != " "
    code = ord(character)
    return unicodedata.category(character).startswith("P") or any(
        first <= code <= last for first, last in _IDEOGRAPHS
    )


def _is_dropped(character: str) -> bool:
    """Control characters and the like, and what stands for an unreadable one."""
    if character in "\t\n\r":
        return False
    return character == "\ufffd" or unicodedata.category(character).startswith("C")


def _words(text: str) -> Iterator[str]:
    kept = "".join(character for character in text if not _is_dropped(character))
    for spaced in kept.lower().split():
        plain = unicodedata.normalize("NFD", spaced)
        word = ""
        for character in plain:
            if unicodedata.category(character) == "Mn":
                continue
            if _stands_alone(character):
                yield from filter(None, (word, character))
                word = ""
            else:
                word += character
        if word:
            yield word


class WordPiece:
    """Text to token numbers.

    Parameters
    ----------
    vocabulary : sequence of str
        The pieces by their numbers.
    """

    def __init__(self, vocabulary: Sequence[str]) -> None:
        self._numbers = {piece: number for number, piece in enumerate(vocabulary)}
        missing = [piece for piece in ("[UNK]", "[CLS]", "[SEP]") if piece not in self._numbers]
        if missing:
            raise ValueError(f"the vocabulary has no {missing[0]}; take the vocab.txt of a BERT model")
        self._unknown = self._numbers["[UNK]"]
        self.first = self._numbers["[CLS]"]
        self.last = self._numbers["[SEP]"]
        self._encode_word = lru_cache(maxsize=1 << 16)(self._pieces)

    def encode(self, text: str) -> list[int]:
        """Token numbers, without those that begin and end a sequence."""
        return [number for word in _words(text) for number in self._encode_word(word)]

    def _pieces(self, word: str) -> tuple[int, ...]:
        """The longest piece that begins the word, then the longest that goes on, and so on."""
        if len(word) > _LONGEST:
            return (self._unknown,)
        found: list[int] = []
        begin = 0
        while begin < len(word):
            prefix = _INSIDE if begin else ""
            ends = (end for end in range(len(word), begin, -1) if prefix + word[begin:end] in self._numbers)
            end = next(ends, None)
            if end is None:
                return (self._unknown,)
            found.append(self._numbers[prefix + word[begin:end]])
            begin = end
        return tuple(found)
