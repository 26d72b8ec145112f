"""Checks of the parameters of patterns, and the name that a pattern gets from them."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import PatternError

__all__ = [
    "check_alignment",
    "check_choice",
    "check_flag",
    "check_int",
    "check_ints",
    "check_per_axis",
    "check_shape",
    "title",
]

#: Numbers beyond this are taken for mistakes: no sequence is that long, and products must fit int64.
_LIMIT = 1 << 40
#: Sequences up to this length are written out in the name of a pattern.
_WRITTEN_OUT = 4


def check_int(name: str, value: Any, *, low: int = 0, high: int | None = None) -> int:
    """A whole number in the closed interval [low, high]; floats and bools are refused."""
    try:
        number = None if isinstance(value, bool | np.bool_) else operator.index(value)
    except TypeError:
        number = None
    if high is None and number is not None and number > _LIMIT:
        high = _LIMIT
    supported = f"a whole number {_interval(low, high)}"
    if number is None:
        raise PatternError(
            f"{name}={_shown(value)} of type {type(value).__name__}", supported, f"pass {name} as an int"
        )
    if number < low or (high is not None and number > high):
        raise PatternError(f"{name}={number}", supported, f"choose {name} {_interval(low, high)}")
    return number


def check_ints(
    name: str, values: Any, *, low: int = 0, high: int | None = None, columns: int | None = None
) -> npt.NDArray[np.int64]:
    """Whole numbers in [low, high], one axis (or two, with `columns` of them), as int64.

    Always a copy: a pattern must not follow what its caller does to an array afterwards.
    """
    supported = f"a sequence of whole numbers {_interval(low, high)}"
    if columns is not None:
        supported += f", {columns} in every row"
    try:
        array = np.array(list(values) if isinstance(values, set | frozenset | range) else values)
    except ValueError:  # rows of different lengths
        array = np.array(None)
    if array.size == 0 and array.ndim == 1:
        array = array.astype(np.int64).reshape((0,) if columns is None else (0, columns))
    fits = array.ndim == 1 if columns is None else array.ndim == 2 and array.shape[1] == columns
    if not fits or not np.issubdtype(array.dtype, np.integer):
        raise PatternError(
            f"{name}={_shown(values)}", supported, "pass a list or an integer array of that shape"
        )
    wrong = (array < low) | (array > (_LIMIT if high is None else high))
    if wrong.any():
        position = int(np.argmax(wrong.reshape(-1)))
        raise PatternError(
            f"{name} with the value {int(array.reshape(-1)[position])} at position {position}",
            supported,
            f"keep every value of {name} {_interval(low, high)}",
        )
    return array.astype(np.int64)


def check_flag(name: str, value: Any) -> bool:
    """True or False, and nothing that merely converts to one of them."""
    if not isinstance(value, bool | np.bool_):
        raise PatternError(f"{name}={_shown(value)}", "True or False", f"pass {name}=True or {name}=False")
    return bool(value)


def check_choice(name: str, value: Any, choices: Sequence[str]) -> str:
    """One of a few words."""
    if not isinstance(value, str) or value not in choices:
        words = ", ".join(repr(choice) for choice in choices)
        raise PatternError(f"{name}={_shown(value)}", f"one of {words}", f"choose one of them as {name}")
    return value


def check_shape(name: str, value: Any, *, ranks: Sequence[int] = ()) -> tuple[int, ...]:
    """Lengths of the axes of a grid; `ranks` lists how many axes are allowed (empty: any, at least one)."""
    shape = tuple(int(length) for length in check_ints(name, value))
    if len(shape) not in (ranks or range(1, len(shape) + 1)):
        counted = " or ".join(str(rank) for rank in ranks) or "at least 1"
        raise PatternError(f"{name}={shape}", f"a grid of {counted} axes", "give one length for every axis")
    return shape


def check_per_axis(name: str, value: Any, rank: int, *, low: int = 0) -> tuple[int, ...]:
    """One whole number for every axis, or a single one for all of them."""
    if np.ndim(value) == 0:
        return (check_int(name, value, low=low),) * rank
    numbers = tuple(int(number) for number in check_ints(name, value, low=low))
    if len(numbers) != rank:
        raise PatternError(
            f"{name}={numbers} for a grid of {rank} axes",
            "one number, or one for every axis",
            f"give {rank} numbers",
        )
    return numbers


def check_alignment(n: int, n_keys: int, align: Any) -> int:
    """Which diagonal j - i is "the present" where the numbers of queries and keys differ."""
    return n_keys - n if check_choice("align", align, ("bottom-right", "top-left")) == "bottom-right" else 0


def title(function: Callable[..., Any], **arguments: Any) -> str:
    """The call that makes a pattern, without what is left at its default, long sequences cut short."""
    parameters = inspect.signature(function).parameters
    given = (
        f"{name}={_shown(value)}"
        for name, value in arguments.items()
        if np.ndim(value) > 0 or value != parameters[name].default
    )
    return f"{function.__name__}({', '.join(given)})"


def _interval(low: int, high: int | None) -> str:
    return f"of at least {low}" if high is None else f"from {low} to {high}"


def _shown(value: Any) -> str:
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, list | tuple | set | frozenset | range) and len(value) > _WRITTEN_OUT:
        return f"[{', '.join(repr(item) for item in list(value)[:2])}, ... {len(value)} values]"
    return repr(value)
