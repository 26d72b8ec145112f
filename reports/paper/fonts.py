"""Fonts that come with matplotlib, by style, and how wide text is in them."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import matplotlib
from matplotlib.font_manager import FontProperties
from matplotlib.mathtext import MathTextParser
from matplotlib.textpath import text_to_path

__all__ = ["extent", "is_math", "properties", "rise", "width"]

#: By style: the file, and the size as a part of that of the text around it.
_FONTS = {
    "plain": ("STIXGeneral.ttf", 1.0),
    "bold": ("STIXGeneralBol.ttf", 1.0),
    "italic": ("STIXGeneralItalic.ttf", 1.0),
    # As high as the small letters of the text.
    "code": ("DejaVuSansMono.ttf", 0.78),
    "math": ("STIXGeneral.ttf", 1.0),
    "mark": ("STIXGeneral.ttf", 0.6),
}


def is_math(style: str) -> bool:
    """Whether text of the style is a formula."""
    return style == "math"


@cache
def properties(style: str, size: float) -> FontProperties:
    """The font, named by its file: what else is installed must not change a page."""
    name, part = _FONTS[style]
    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name
    return FontProperties(fname=path, size=size * part, math_fontfamily="stix")


@cache
def extent(text: str, style: str, size: float) -> tuple[float, float, float]:
    """Width, height and depth below the baseline, in points."""
    shown = f"${text}$" if is_math(style) else text
    found = text_to_path.get_text_width_height_descent(shown, properties(style, size), is_math(style))
    wide, high, deep = map(float, found)
    return wide, high, deep


@cache
def rise(text: str, style: str, size: float) -> float:
    """By how much too high a back end draws a formula, whose height matplotlib rounds up to whole points."""
    if not is_math(style):
        return 0.0
    letters = MathTextParser("path").parse(f"${text}$", 72, properties(style, size)).glyphs
    # Letters on the baseline are those that are raised by less than a point.
    return min((float(letter[-1]) for letter in letters if 0.0 <= letter[-1] < 1.0), default=0.0)


def width(text: str, style: str, size: float) -> float:
    """How far the next letter is."""
    return extent(text, style, size)[0]
