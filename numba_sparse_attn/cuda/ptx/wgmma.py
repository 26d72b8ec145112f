"""Products of a warpgroup (wgmma): scores of two matrices and sums of weighted values, apart or overlapping.

A warpgroup is four consecutive warps. It multiplies 64 rows at a time; the product lies in registers:
thread ``32 * warp + lane`` holds of row ``16 * warp + lane // 4`` (elements e with e // 2 even) and of the
row 8 further down (e // 2 odd) the columns ``8 * (e // 4) + 2 * (lane % 4) + e % 2``.

Matrices in shared memory are cut into chunks of 64 columns, rows of 128 bytes behind one another in the
128-byte swizzle that the copy engine writes, aligned to 1024 bytes. An operand is named by its address
in units of 16 bytes. Scores are ``left @ right.T`` with both operands in shared memory; sums are those of
``weights @ values`` with the weights in registers, in the layout of scores, rounded and packed.

One piece of text has to hold everything from the first instruction that writes accumulators to the wait: what
the compiler puts between makes the assembler wait after every instruction (warnings C7510 to C7515).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

from llvmlite import ir
from numba.core import types

from .inline import FLOAT32, INT32, assemble, element_pointer
from .instructions import with_operands

__all__ = ["CHUNK", "Chain", "Products", "Score", "Sum", "finish", "products", "start"]

#: Columns of a chunk, all of 16 bits.
CHUNK = 64
#: Depth of one instruction.
_STEP = 16
_ROW_UNITS = CHUNK * 2 // 16  # of 16 bytes
#: Upper half of a descriptor: 8 rows are 1024 bytes; swizzle of 128 bytes.
_DESCRIPTOR = 1024 // 16 | 1 << 30
_TYPES = {"float16": "f16", "bfloat16": "bf16"}


class Chain(NamedTuple):
    """Sizes of ``scores = left @ right.T`` (64, columns) and ``sums += weights @ values`` (64, width).

    Attributes
    ----------
    kind : {"float16", "bfloat16"}
    depth : int
        Columns of left and right; a multiple of 16.
    columns : int
        Rows of right and of values; a multiple of 16.
    width : int
        Columns of values; a multiple of 8.
    left_rows : int
        Rows from one chunk of the left operand to the next.
    negate : bool
        Whether the scores are -left @ right.T.
    """

    kind: str
    depth: int
    columns: int
    width: int
    left_rows: int
    negate: bool


class Score(NamedTuple):
    """``scores = left @ right.T``, or ``-left @ right.T`` if `negate`; sizes as in :class:`Chain`."""

    kind: str
    depth: int
    columns: int
    left_rows: int
    negate: bool = False


class Sum(NamedTuple):
    """``sums += weights @ values``; sizes as in :class:`Chain`."""

    kind: str
    columns: int
    width: int


class Products(NamedTuple):
    """Intrinsics of a chain; all names of operands are in units of 16 bytes.

    Arrays: scores float32 [columns / 2], sums float32 [width / 2], weights int32 [columns / 4].
    """

    #: (scores, left, right): the first product, waited for.
    score: Any
    #: (sums, weights, values): the second product, waited for.
    add: Any
    #: (scores, sums, weights, left, right, values): start both, wait for the first.
    score_and_add: Any
    #: (sums, weights): wait for the second; nothing touches either array before.
    wait: Any


@functools.cache
def products(chain: Chain) -> Products:
    """The intrinsics of a chain."""
    score = Score(chain.kind, chain.depth, chain.columns, chain.left_rows, chain.negate)
    add = Sum(chain.kind, chain.columns, chain.width)
    return Products(start(score), start(add), start(score, add, unfinished=1), finish(add))


@functools.cache
def start(*products: Score | Sum, unfinished: int = 0, before: tuple[Score | Sum, ...] = ()) -> Any:
    """Intrinsic that starts products in this order, and waits for all but the last `unfinished`.

    Its operands are the arrays of all products (scores; or sums and weights), those of products that were
    started `before` and may end here, and then the addresses of all products that it starts (left and right;
    or values). Nothing touches the arrays of an unfinished product until they have passed a later wait.
    """

    def generate(context: Any, builder: Any, signature: Any, operands: Any) -> Any:
        block = _Block(context, builder)
        given = list(zip(signature.args, operands, strict=True))
        arrays = [block.arrays(product, given, new=True) for product in products]
        for product in before:
            block.arrays(product, given, new=False)
        names = iter(block.uniform([value for _, value in given]))
        for product, (target, *weights) in zip(products, arrays, strict=True):
            if isinstance(product, Score):
                block.text += _scores(product, target, next(names), next(names))
            else:
                block.text += _sums(product, target, weights[0], next(names))
            block.text.append("wgmma.commit_group.sync.aligned;")
        block.run(f"wgmma.wait_group.sync.aligned {unfinished};")
        return context.get_dummy_value()

    addresses = sum(2 if isinstance(product, Score) else 1 for product in products)
    return _intrinsic((*products, *before), addresses, generate)


@functools.cache
def finish(*products: Score | Sum, unfinished: int = 0) -> Any:
    """Intrinsic that waits for all products started before but the last `unfinished`.

    Its operands are the arrays of those that end here.
    """

    def generate(context: Any, builder: Any, signature: Any, operands: Any) -> Any:
        block = _Block(context, builder, fenced=False)
        given = list(zip(signature.args, operands, strict=True))
        for product in products:
            block.arrays(product, given, new=False)
        block.run(f"wgmma.wait_group.sync.aligned {unfinished};")
        return context.get_dummy_value()

    return _intrinsic(products, 0, generate)


def _intrinsic(products: Sequence[Score | Sum], addresses: int, generate: Any) -> Any:
    """What takes the arrays of products and so many addresses."""
    arrays = sum(1 if isinstance(product, Score) else 2 for product in products)

    def typed(typing_context: Any, *arguments: Any) -> Any:
        return types.void(*arguments[:arrays], *[types.uint32] * addresses), generate

    return with_operands(typed, arrays + addresses)


class _Block:
    """One piece of text whose operands are elements of register arrays and scalars.

    LLVM numbers results first, then the operands that share a register with a result, then the others.
    """

    def __init__(self, context: Any, builder: Any, *, fenced: bool = True) -> None:
        self._context, self._builder = context, builder
        self._results: list[Any] = []  # pointers
        self._tied: list[tuple[int, Any]] = []
        self._inputs: list[tuple[str, Any]] = []
        self.text: list[str] = ["wgmma.fence.sync.aligned;"] if fenced else []

    def fresh(self, kind: Any, array: Any, count: int) -> list[str]:
        """Names of elements that the text overwrites."""
        first = len(self._results)
        self._results += self._pointers(kind, array, count)
        return [f"%result{number}" for number in range(first, first + count)]

    def changed(self, kind: Any, array: Any, count: int) -> list[str]:
        """Names of elements that the text reads and overwrites."""
        first = len(self._results)
        names = self.fresh(kind, array, count)
        pointers = self._results[first:]
        self._tied += [(first + i, self._builder.load(pointer)) for i, pointer in enumerate(pointers)]
        return names

    def read(self, kind: Any, array: Any, count: int) -> list[str]:
        """Names of elements that the text reads."""
        first = len(self._inputs)
        self._inputs += [("r", self._builder.load(pointer)) for pointer in self._pointers(kind, array, count)]
        return [f"%input{number}" for number in range(first, first + count)]

    def arrays(self, product: Score | Sum, given: list[Any], *, new: bool) -> list[list[str]]:
        """Names of the elements of a product's arrays, which are taken from the front of `given`."""
        kind, array = given.pop(0)
        if isinstance(product, Score):
            name = self.fresh if new else self.changed
            return [name(kind, array, product.columns // 2)]
        sums = self.changed(kind, array, product.width // 2)
        kind, array = given.pop(0)
        return [sums, self.read(kind, array, product.columns // 4)]

    def uniform(self, values: Sequence[Any]) -> list[str]:
        """Names of 32-bit scalars that are the same for all lanes.

        They are lane 0's, from a shuffle: the assembler then knows, and computes descriptors once a warp
        instead of moving each from a lane. It has to be here, behind the fence: elsewhere in a loop with
        waits the assembler asks first whether the warp is together.
        """
        first = len(self._inputs)
        self._inputs += [("r", value) for value in values]
        names = [f"uniform{number}" for number in range(len(values))]
        for number, name in enumerate(names, first):
            self.text.append(f".reg .b32 {name}; shfl.sync.idx.b32 {name}, %input{number}, 0, 31, -1;")
        return names

    def run(self, *ending: str) -> None:
        """Emit the text and store its results."""
        lines = [*self.text, *ending]
        shift = len(self._results) + len(self._tied)
        text = (
            "{ .reg .pred never, always; .reg .b32 low; .reg .b64 a, b;\n"
            "setp.ne.b32 never, 0, 0; setp.eq.b32 always, 0, 0;\n"
        )
        for line in lines:
            for word, offset in (("%result", 0), ("%input", shift)):
                pieces = line.split(word)
                line = pieces[0] + "".join(_renumbered(piece, offset) for piece in pieces[1:])
            text += line + "\n"
        constraints = ["=f"] * len(self._results)
        constraints += [str(place) for place, _ in self._tied]
        constraints += [letter for letter, _ in self._inputs]
        operands = [value for _, value in self._tied] + [value for _, value in self._inputs]
        result = ir.LiteralStructType([FLOAT32] * len(self._results))
        values = assemble(self._builder, result, text + "}", ",".join(constraints), operands, volatile=True)
        for place, pointer in enumerate(self._results):
            self._builder.store(self._builder.extract_value(values, place), pointer)

    def _pointers(self, kind: Any, array: Any, count: int) -> list[Any]:
        return [
            element_pointer(self._context, self._builder, kind, array, ir.Constant(INT32, number))
            for number in range(count)
        ]


def _renumbered(piece: str, offset: int) -> str:
    """``"12, ..."`` after a placeholder as LLVM's ``"$<12 + offset>, ..."``."""
    digits = len(piece) - len(piece.lstrip("0123456789"))
    return f"${int(piece[:digits]) + offset}{piece[digits:]}"


def _descriptor(target: str, name: str, offset: int) -> str:
    return f"add.u32 low, {name}, {offset}; mov.b64 {target}, {{low, {_DESCRIPTOR}}};"


def _scores(product: Score, into: list[str], left: str, right: str) -> list[str]:
    """``into = left @ right.T``, both operands with their depth along the rows of 128 bytes."""
    kind = _TYPES[product.kind]
    sign = -1 if product.negate else 1
    lines = []
    for step in range(product.depth // _STEP):
        chunk, within = divmod(step * _STEP, CHUNK)
        columns = within * 2 // 16
        lines += [
            _descriptor("a", left, chunk * product.left_rows * _ROW_UNITS + columns),
            _descriptor("b", right, chunk * product.columns * _ROW_UNITS + columns),
            f"wgmma.mma_async.sync.aligned.m64n{product.columns}k16.f32.{kind}.{kind} "
            f"{{{', '.join(into)}}}, a, b, {'always' if step else 'never'}, {sign}, 1, 0, 0;",
        ]
    return lines


def _sums(product: Sum, onto: list[str], factors: list[str], values: str) -> list[str]:
    """``onto += factors @ values``; the values' rows are the depth, so the operand is transposed."""
    kind = _TYPES[product.kind]
    between_chunks = product.columns * _ROW_UNITS
    lines = []
    for step in range(product.columns // _STEP):
        lines += [
            # Where a column-major operand has its next chunk stands in the lower half of its descriptor.
            _descriptor("b", values, (between_chunks << 16) + step * _STEP * _ROW_UNITS),
            f"wgmma.mma_async.sync.aligned.m64n{product.width}k16.f32.{kind}.{kind} "
            f"{{{', '.join(onto)}}}, {{{', '.join(factors[4 * step : 4 * step + 4])}}}, b, always, 1, 1, 1;",
        ]
    return lines
