"""Every refusal: what was given, what is supported, what to do.

All of them derive from :class:`SparseAttentionError` and from the built-in exception that a NumPy
user would expect, so both ``except nsa.SparseAttentionError`` and ``except ValueError`` work.
"""

from __future__ import annotations

__all__ = [
    "ArgumentError",
    "DtypeError",
    "EngineError",
    "FormatError",
    "PatternError",
    "ShapeError",
    "SparseAttentionError",
]


class SparseAttentionError(Exception):
    """Base of every exception that this package raises on purpose.

    Parameters
    ----------
    given, supported, advice : str
        Three short clauses without a closing full stop. They are kept as attributes, so that a
        caller can show only one of them.
    """

    def __init__(self, given: str, supported: str, advice: str) -> None:
        super().__init__(f"given: {given}; supported: {supported}; what to do: {advice}.")
        self.given = given
        self.supported = supported
        self.advice = advice

    def __reduce__(self) -> tuple[type, tuple[str, str, str]]:
        return type(self), (self.given, self.supported, self.advice)


class ShapeError(SparseAttentionError, ValueError):
    """Arrays whose shapes do not fit each other or the pattern."""


class DtypeError(SparseAttentionError, TypeError):
    """An element type that attention is not defined for, or a mixture of them."""


class PatternError(SparseAttentionError, ValueError):
    """A pattern whose parameters do not describe a set of (query, key) pairs."""


class FormatError(SparseAttentionError, ValueError):
    """A sparse array, mask or index array that is malformed."""


class ArgumentError(SparseAttentionError, ValueError):
    """A keyword with a value outside its range (a NaN scale, an unknown pattern name)."""


class EngineError(SparseAttentionError, RuntimeError):
    """An engine that cannot run this call, or does not exist on this machine."""
