"""Text beside an image, with regions that the text refers to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import PatternError
from ..formats.pieces import PieceArray, make_pieces, transpose_pieces
from ._arguments import check_int, check_ints, check_shape, title
from ._grids import MOST_LEVELS, Level, cell_of_token, is_neighbor, link_rows, neighborhood_pieces, pyramid
from ._spans import runs, spread
from .catalogue import Integers, entry
from .pattern import Pattern

__all__ = ["multimodal"]


def _member(
    i: int,
    j: int,
    text: int,
    grid: Sequence[int],
    regions: Sequence[Sequence[int]],
    levels: int = 2,
    window: int = 3,
) -> bool:
    if max(i, j) < text:
        return True
    if min(i, j) < text:
        word = min(i, j)
        level, y, x = cell_of_token(max(i, j) - text, grid, levels)
        boxes = [region[2:] for region in regions if region[0] <= word < region[1]]
        side = 2**level
        patches = [
            any(top <= row < bottom and left <= column < right for top, left, bottom, right in boxes)
            for row in range(y * side, min((y + 1) * side, grid[0]))
            for column in range(x * side, min((x + 1) * side, grid[1]))
        ]
        return all(patches) if level == 0 else level == levels - 1 and not all(patches)
    (own, y, x), (other, key_y, key_x) = (
        cell_of_token(i - text, grid, levels),
        cell_of_token(j - text, grid, levels),
    )
    if own != other:
        up, key_up = max(other - own, 0), max(own - other, 0)
        return (y >> up, x >> up) == (key_y >> key_up, key_x >> key_up)
    height, width = (math.ceil(length / 2**own) for length in grid)
    return is_neighbor(y, key_y, height, window, 1) and is_neighbor(x, key_x, width, window, 1)


def _sample(integers: Integers) -> dict[str, Any]:
    text, height, width = integers(0, 6), integers(0, 5), integers(0, 5)

    def span(length: int) -> tuple[int, int]:
        begin = integers(0, length)
        return begin, integers(begin, length)

    regions = []
    for _ in range(integers(0, 3)):
        (begin, end), (top, bottom), (left, right) = span(text), span(height), span(width)
        regions.append((begin, end, top, left, bottom, right))
    return {
        "text": text,
        "grid": (height, width),
        "regions": regions,
        "levels": integers(1, 3),
        "window": integers(1, 4),
    }


def _figure(length: int) -> dict[str, Any]:
    """An image and a text whose halves refer to the upper left and the lower right of it."""
    side, text = math.isqrt(length * 2 // 3) // 4 * 4, length // 8
    regions = [
        (0, text // 2, 0, 0, side // 2, side // 2),
        (text // 2, text, side // 4, side // 4, side, side),
    ]
    return {"text": text, "grid": (side, side), "regions": regions}


@entry(
    examples=[
        {"text": 16, "grid": (8, 8), "regions": [(3, 7, 0, 0, 4, 4), (9, 13, 2, 4, 8, 8)]},
        {"text": 6, "grid": (5, 7), "regions": [(0, 6, 1, 1, 4, 6)], "levels": 3, "window": 2},
        {"text": 6, "grid": (4, 4), "regions": [(0, 3, 0, 0, 4, 4), (2, 5, 0, 0, 1, 1)], "levels": 1},
        {"text": 4, "grid": (0, 0), "regions": []},
        {"text": 0, "grid": (3, 3), "regions": []},
    ],
    member=_member,
    sample=_sample,
    scaled=_figure,
)
def multimodal(
    text: int, grid: Sequence[int], regions: npt.ArrayLike, *, levels: int = 2, window: int = 3
) -> Pattern:
    """Text and an image: words see the regions they refer to in full and the rest of the image coarsely.

    The tokens are the text, then the patches of the image in C order (level 0), then the coarser levels
    of a pyramid over it, as in :func:`multiscale_grid`. The set is the union of

    ::

        text  -> text     everything
        text <-> patch    a region of the word holds the patch
        text <-> cell     the cell is of the coarsest level, not level 0, and holds a patch that
                          is in no region of the word
        cell  -> cell     same level, j in the window x window neighborhood of i
        cell <-> cell     different levels, one lies over the other

    where <-> stands for both directions.

    Parameters
    ----------
    text : int
        Number of text tokens.
    grid : (height, width)
        Patches of the image.
    regions : int array (regions, 6)
        Rows (begin, end, top, left, bottom, right): the words begin <= i < end refer to the patches with
        top <= y < bottom and left <= x < right. Regions may overlap.
    levels : int
        Levels of the pyramid, the patches included; from 1 to 32. 1 is no pyramid: words see their
        regions only.
    window : int
        Side of the neighborhood, at least 1.

    Returns
    -------
    Pattern
        Of shape ``(n, n)`` with n the text tokens and the cells of all levels.

    Notes
    -----
    Pairs: at most ``text**2 + 2 * text * (p + c) + m * (window**2 + 2 * (levels - 1))`` with p the
    patches in the regions of a word on average, c the coarsest cells and m the cells of all levels.

    Cost: O((text * (text + p + c) + m * (window**2 + levels)) * d) time; the pattern is two pieces for
    every line of a region and those of the neighborhoods, and the rows of the links between levels are
    made when they are needed.

    Reach: from a word to any patch in two layers, by way of a coarse cell; between far patches in four,
    by way of a word.

    Use: for captions, visual questions and documents with figures, where words are grounded in boxes.

    Avoid: where nothing is known about regions; then the coarse cells alone connect text and image.

    Examples
    --------
    >>> from numba_sparse_attn import patterns
    >>> pattern = patterns.multimodal(32, (24, 24), [(4, 9, 0, 0, 12, 12)], levels=3)
    >>> pattern.shape, round(pattern.sparsity, 3)
    ((788, 788), 0.977)
    """
    text = check_int("text", text)
    height, width = check_shape("grid", grid, ranks=(2,))
    boxes = _check_regions(regions, text, height, width)
    levels = check_int("levels", levels, low=1, high=MOST_LEVELS)
    window = check_int("window", window, low=1)
    stack = pyramid((height, width), levels, first_token=text)
    n = text + sum(math.prod(size) for _, size in stack)
    crossing = _region_pieces(boxes, stack[0])
    if levels > 1:
        crossing = np.concatenate([crossing, _rest_pieces(boxes, text, stack)])
    pieces = [make_pieces(rows=(0, text), columns=(0, text)), crossing, transpose_pieces(crossing)]
    pieces += [
        neighborhood_pieces(size, (window, window), (1, 1), first_token=first) for first, size in stack
    ]
    name = title(multimodal, text=text, grid=(height, width), regions=boxes, levels=levels, window=window)
    pattern = Pattern.from_pieces((n, n), np.concatenate(pieces), name=name)
    if levels > 1:
        pattern |= Pattern.from_rows((n, n), partial(link_rows, n, stack), name="links")
        pattern.name = name
    return pattern


def _check_regions(regions: npt.ArrayLike, text: int, height: int, width: int) -> npt.NDArray[np.int64]:
    boxes = check_ints("regions", regions, columns=6)
    for begin, end, limit in ((0, 1, text), (2, 4, height), (3, 5, width)):
        wrong = (boxes[:, begin] > boxes[:, end]) | (boxes[:, end] > limit)
        if wrong.any():
            number = int(np.argmax(wrong))
            region = tuple(boxes[number].tolist())
            raise PatternError(
                f"region {number}, {region}, for {text} words and {height} x {width} patches",
                "(begin, end, top, left, bottom, right) with begin <= end <= text, top <= bottom <= height "
                "and left <= right <= width",
                "correct that region",
            )
    return boxes


def _region_pieces(boxes: npt.NDArray[np.int64], patches: Level) -> PieceArray:
    """Words see the lines of their regions."""
    begin, end, top, left, bottom, right = boxes.T
    first, (_, width) = patches
    region, number = spread(bottom - top)
    line = first + (top[region] + number) * width
    return make_pieces(rows=(begin[region], end[region]), columns=(line + left[region], line + right[region]))


def _rest_pieces(boxes: npt.NDArray[np.int64], text: int, stack: list[Level]) -> PieceArray:
    """Words see the coarsest cells that their regions do not cover."""
    height, width = stack[0][1]
    first, (_, coarse_width) = stack[-1]
    side = len(stack) - 1
    y, x = np.arange(height), np.arange(width)
    cell = (y[:, None] >> side) * coarse_width + (x >> side)
    pieces = [make_pieces(rows=(0, 0), columns=(0, 0))]
    cuts = np.unique(np.concatenate([boxes[:, 0], boxes[:, 1], [0, text]]))
    for begin, end in zip(cuts[:-1].tolist(), cuts[1:].tolist(), strict=True):  # words with the same regions
        rest = np.ones((height, width), np.bool_)
        for first_word, end_word, top, left, bottom, right in boxes.tolist():
            if first_word <= begin and end <= end_word:
                rest[top:bottom, left:right] = False
        spans = runs(first + cell[rest])
        pieces.append(make_pieces(rows=(begin, end), columns=spans))
    return np.concatenate(pieces)
