"""Softmax down the columns of score matrices [rows, panel], online and, for the gradients, given lse.

A column belongs to one query (forward) or one key (backward) and to one lane, so that maxima and sums
need no operation across lanes.
"""

from __future__ import annotations

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from .products import VECTORS, row_vectors
from .vector import (
    INT1,
    INT64,
    VOID,
    any_lane,
    bits_to_lanes,
    constant,
    element_bytes,
    element_type,
    exp2_ir,
    fmuladd,
    fold,
    larger,
    load,
    outlined,
    pointer,
    shifted,
    splat,
    store,
    strided,
    vector_bytes,
    vector_of,
    vector_registers,
)

__all__ = [
    "STATE_ROWS",
    "finish_softmax",
    "gradient_rows",
    "scale_rows",
    "softmax_rows",
    "start_softmax",
]

#: Rows of a panel that the state of an online softmax takes.
STATE_ROWS = 4
#: Sums that the weights of a step go into by turns, as registers allow.
_TURNS = vector_registers() // 8


@intrinsic
def softmax_rows(typing_context, like, scores, count, masks, masked, state, factor):
    """One step of online softmax on scores [count, panel], which become the weights.

    `state` is [maximum, sum, correction] x [panel], then an int64 with a bit for every lane that has
    seen a key: maximum and sum so far, and what earlier sums have to be multiplied by from now on.
    weights = exp2((scores - maximum) * factor), in this order: differences of large scores are exact,
    their products with a factor would not be. Lanes that a mask leaves out get the weight 0 whatever
    their score. `factor` is positive and finite. Returns whether a correction is not 1.
    """

    def generate(context, builder, signature, arguments):
        element = element_type(signature.args[0])
        kind, width = vector_of(element), VECTORS * vector_bytes()
        nothing = constant(kind, float("-inf"))

        def body(builder, arguments):
            scores, masks, state = (pointer(builder, arguments[i]) for i in (0, 2, 4))
            count, masked = arguments[1], arguments[3]
            factor = splat(builder, arguments[5], kind.count)

            def row_places(index):
                base = strided(builder, scores, index, width)
                return [shifted(builder, base, v * vector_bytes()) for v in range(VECTORS)]

            def masked_step(index, values):
                bits = load(builder, INT64, strided(builder, masks, index, 8))
                results = [builder.or_(values[0], bits)]
                for v, place in enumerate(row_places(index)):
                    chosen = bits_to_lanes(builder, bits, v * kind.count, kind.count)
                    score = builder.select(chosen, load(builder, kind, place), nothing)
                    store(builder, score, place)
                    results.append(larger(builder, values[1 + v], score))
                return results

            def plain_step(index, values):
                return [
                    larger(builder, values[v], load(builder, kind, place))
                    for v, place in enumerate(row_places(index))
                ]

            before = row_vectors(builder, kind, state)
            seen_place = shifted(builder, state, 3 * width)
            # One of the two loops runs: the other one gets a count of 0.
            zero = ir.Constant(INT64, 0)
            seen = builder.select(masked, load(builder, INT64, seen_place), ir.Constant(INT64, -1))
            some, others = builder.select(masked, count, zero), builder.select(masked, zero, count)
            seen, *best = fold(builder, 0, some, 1, [seen, *before], masked_step)
            best = fold(builder, 0, others, 1, best, plain_step)
            store(builder, seen, seen_place)

            sums, shifts, changed = [], [], ir.Constant(INT1, 0)
            for v in range(VECTORS):
                # Without any key so far, subtract 0: -inf - -inf would make a NaN.
                empty = builder.fcmp_ordered("==", best[v], nothing)
                shifts.append(builder.select(empty, constant(kind, 0.0), best[v]))
                difference = builder.fsub(before[v], shifts[v])
                correction = exp2_ir(builder, builder.fmul(difference, factor), bounded=True)
                place = shifted(builder, state, width + v * vector_bytes())
                sums.append(builder.fmul(load(builder, kind, place), correction))
                store(builder, best[v], shifted(builder, state, v * vector_bytes()))
                store(builder, correction, shifted(builder, state, 2 * width + v * vector_bytes()))
                grown = any_lane(builder, builder.fcmp_ordered(">", best[v], before[v]))
                changed = builder.or_(changed, grown)

            def weigh(index, totals):
                weights = []
                for v, place in enumerate(row_places(index)):
                    difference = builder.fsub(load(builder, kind, place), shifts[v])
                    weights.append(exp2_ir(builder, builder.fmul(difference, factor), bounded=True))
                    store(builder, weights[v], place)
                # Turn by turn into several sums, which is more accurate than one long chain.
                return totals[VECTORS:] + [builder.fadd(totals[v], weights[v]) for v in range(VECTORS)]

            totals = fold(builder, 0, count, 1, [constant(kind, 0.0)] * (_TURNS * VECTORS), weigh)
            for v in range(VECTORS):
                parts = totals[v::VECTORS]
                while len(parts) > 1:
                    parts = [builder.fadd(*parts[i : i + 2]) for i in range(0, len(parts), 2)]
                place = shifted(builder, state, width + v * vector_bytes())
                store(builder, builder.fadd(sums[v], parts[0]), place)
            return changed

        return outlined(builder, f"softmax_rows.{element}", arguments[1:], INT1, body)

    return types.boolean(like, *[types.int64] * 3, types.boolean, types.int64, like.dtype), generate


@intrinsic
def start_softmax(typing_context, like, state):
    """State of :func:`softmax_rows` before the first step."""

    def generate(context, builder, signature, arguments):
        kind = vector_of(element_type(signature.args[0]))
        state = pointer(builder, arguments[1])
        for v in range(2 * VECTORS):
            value = constant(kind, float("-inf") if v < VECTORS else 0.0)
            store(builder, value, shifted(builder, state, v * vector_bytes()))
        store(builder, ir.Constant(INT64, 0), shifted(builder, state, 3 * VECTORS * vector_bytes()))
        return context.get_dummy_value()

    return types.void(like, types.int64), generate


@intrinsic
def finish_softmax(typing_context, like, state, target):
    """target [panel] = 1 / sum, and 0 for a lane that has seen no key.

    A lane whose scores were all -inf has a sum of 0 as well: it becomes NaN, in the state too.
    """

    def generate(context, builder, signature, arguments):
        kind, width = vector_of(element_type(signature.args[0])), VECTORS * vector_bytes()
        state, target = (pointer(builder, address) for address in arguments[1:])
        seen = load(builder, INT64, shifted(builder, state, 3 * width))
        zero = constant(kind, 0.0)
        sums = shifted(builder, state, width)
        for v, total in enumerate(row_vectors(builder, kind, sums)):
            nothing = builder.fcmp_ordered("==", total, zero)
            undefined = builder.and_(nothing, bits_to_lanes(builder, seen, v * kind.count, kind.count))
            total = builder.select(undefined, constant(kind, float("nan")), total)
            store(builder, total, shifted(builder, sums, v * vector_bytes()))
            inverse = builder.fdiv(constant(kind, 1.0), total)
            inverse = builder.select(builder.fcmp_ordered("==", total, zero), zero, inverse)
            store(builder, inverse, shifted(builder, target, v * vector_bytes()))
        return context.get_dummy_value()

    return types.void(like, types.int64, types.int64), generate


@intrinsic
def scale_rows(typing_context, like, target, rows, factors):
    """target [rows, panel] *= factors [panel]."""

    def generate(context, builder, signature, arguments):
        element = element_type(signature.args[0])
        kind, width = vector_of(element), VECTORS * vector_bytes()

        def body(builder, arguments):
            target, factors = pointer(builder, arguments[0]), pointer(builder, arguments[2])
            factor = row_vectors(builder, kind, factors)

            def step(index, _):
                base = strided(builder, target, index, width)
                for v in range(VECTORS):
                    place = shifted(builder, base, v * vector_bytes())
                    store(builder, builder.fmul(load(builder, kind, place), factor[v]), place)
                return []

            fold(builder, 0, arguments[1], 1, [], step)

        outlined(builder, f"scale_rows.{element}", arguments[1:], VOID, body)
        return context.get_dummy_value()

    return types.void(like, *[types.int64] * 3), generate


@intrinsic
def gradient_rows(typing_context, like, scores, products, count, masks, statistics, scale):
    """Softmax weights and score gradients, in place, of `count` rows.

    scores [count, panel] become the weights exp(scale * scores - lse); products [count, panel], which
    are dout times v, become the gradients weights * (products - delta) * scale. Both are 0 where the
    lane mask says so. `statistics` has, for every row, the address of its lse and delta.
    """

    def generate(context, builder, signature, arguments):
        element = element_type(signature.args[0])
        kind, size, width = vector_of(element), element_bytes(element), VECTORS * vector_bytes()
        zero = constant(kind, 0.0)
        units = constant(kind, 1.4426950408889634)

        def body(builder, arguments):
            scores, products, masks, statistics = (pointer(builder, arguments[i]) for i in (0, 1, 3, 4))
            scale = splat(builder, arguments[5], kind.count)

            def step(index, _):
                bits = load(builder, INT64, strided(builder, masks, index, 8))
                row = pointer(builder, load(builder, INT64, strided(builder, statistics, index, 8)))
                less = splat(builder, builder.fneg(load(builder, element, row)), kind.count)
                delta = splat(builder, load(builder, element, shifted(builder, row, size)), kind.count)
                score_row, product_row = (strided(builder, base, index, width) for base in (scores, products))
                for v in range(VECTORS):
                    chosen = bits_to_lanes(builder, bits, v * kind.count, kind.count)
                    score_place, product_place = (
                        shifted(builder, row, v * vector_bytes()) for row in (score_row, product_row)
                    )
                    exponent = fmuladd(builder, load(builder, kind, score_place), scale, less)
                    weight = exp2_ir(builder, builder.fmul(exponent, units))
                    difference = builder.fsub(load(builder, kind, product_place), delta)
                    gradient = builder.fmul(builder.fmul(weight, difference), scale)
                    store(builder, builder.select(chosen, weight, zero), score_place)
                    store(builder, builder.select(chosen, gradient, zero), product_place)
                return []

            fold(builder, 0, arguments[2], 1, [], step)

        outlined(builder, f"gradient_rows.{element}", arguments[1:], VOID, body)
        return context.get_dummy_value()

    return types.void(like, *[types.int64] * 5, like.dtype), generate
