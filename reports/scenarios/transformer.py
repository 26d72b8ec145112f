"""A small transformer that is trained here: its parameters, and its blocks forward and backward."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

import numba_sparse_attn as nsa

from .layers import Back, Floats, Turn, attend, gelu, linear, normalise

__all__ = ["WARM_UP", "Shape", "blocks", "gradient_norms", "initial", "learning_rate"]

#: Takes the gradient of a block's result, adds those of its parameters to a dict, returns its input's.
_Through = Callable[[Floats, dict[str, Floats]], Floats]

#: Steps in which the learning rate grows to its full size.
WARM_UP = 20


@dataclass(frozen=True)
class Shape:
    """Sizes of a transformer; the inner layers are four times as wide as the outer ones."""

    layers: int
    width: int
    heads: int

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """Of the blocks and of the normalisation behind them, by name; a layer's begin with its number."""
        wide = 4 * self.width
        block = {
            "attention_norm.gain": (self.width,),
            "attention_norm.bias": (self.width,),
            "qkv.weight": (self.width, 3 * self.width),
            "qkv.bias": (3 * self.width,),
            "output.weight": (self.width, self.width),
            "output.bias": (self.width,),
            "inner_norm.gain": (self.width,),
            "inner_norm.bias": (self.width,),
            "up.weight": (self.width, wide),
            "up.bias": (wide,),
            "down.weight": (wide, self.width),
            "down.bias": (self.width,),
        }
        shapes: dict[str, tuple[int, ...]] = {
            f"layer_{layer}.{name}": shape for layer in range(self.layers) for name, shape in block.items()
        }
        return shapes | {"last_norm.gain": (self.width,), "last_norm.bias": (self.width,)}


def initial(shapes: dict[str, tuple[int, ...]], seed: int, dtype: type = np.float32) -> dict[str, Floats]:
    """Parameters to begin with.

    Every one is drawn from its name and the seed alone: models that differ in one of them, or in the number
    of its rows, begin with the same others and the same rows.
    """
    found: dict[str, Floats] = {}
    for name, shape in shapes.items():
        rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
        kind = name.rpartition(".")[2]
        if kind == "gain":
            found[name] = np.ones(shape, dtype)
        elif kind == "bias":
            found[name] = np.zeros(shape, dtype)
        else:
            spread = shape[0] ** -0.5 if kind == "weight" else 0.1
            found[name] = (spread * rng.standard_normal(shape)).astype(dtype)
    return found


def blocks(
    x: Floats,
    parameters: dict[str, Floats],
    shape: Shape,
    patterns: Sequence[nsa.Pattern],
    turn: Turn | None = None,
) -> tuple[Floats, _Through]:
    """All layers, each with its own pattern, and the normalisation behind them.

    Parameters
    ----------
    x : array (batch, tokens, width)
    patterns : sequence of Pattern
        One a layer.
    turn : complex array, optional
        Rotary positions; without it, `x` has to say where a token stands.
    """
    backs: list[tuple[tuple[str, ...], Back]] = []

    def apply(result: tuple[Floats, Back], *names: str) -> Floats:
        backs.append((names, result[1]))
        return result[0]

    def dense(x: Floats, name: str) -> Floats:
        names = f"{name}.weight", f"{name}.bias"
        return apply(linear(x, parameters[names[0]], parameters[names[1]]), *names)

    def norm(x: Floats, name: str) -> Floats:
        names = f"{name}.gain", f"{name}.bias"
        return apply(normalise(x, parameters[names[0]], parameters[names[1]]), *names)

    # Where the branches begin that are added to what goes past them, and where the last one ends.
    branches = [0]
    for layer, pattern in zip(range(shape.layers), patterns, strict=True):
        own = f"layer_{layer}"
        inner = dense(norm(x, f"{own}.attention_norm"), f"{own}.qkv")
        x = x + dense(apply(attend(inner, shape.heads, pattern, turn)), f"{own}.output")
        branches.append(len(backs))
        inner = dense(norm(x, f"{own}.inner_norm"), f"{own}.up")
        x = x + dense(apply(gelu(inner)), f"{own}.down")
        branches.append(len(backs))
    out = norm(x, "last_norm")

    def through(dout: Floats, gradients: dict[str, Floats]) -> Floats:
        def back_through(dout: Floats, begin: int, end: int) -> Floats:
            for names, back in reversed(backs[begin:end]):
                dout, *own = back(dout)
                gradients.update(zip(names, own, strict=True))
            return dout

        dx = back_through(dout, branches[-1], len(backs))
        for begin, end in reversed(list(pairwise(branches))):
            dx = dx + back_through(dx, begin, end)
        return dx

    return out, through


def gradient_norms(gradients: dict[str, Floats]) -> dict[str, float]:
    """The norm of a layer's gradients, by layer; what belongs to none stands on its own."""
    squares: dict[str, float] = {}
    for name, value in gradients.items():
        layer = name.partition(".")[0]
        squares[layer] = squares.get(layer, 0.0) + float(np.vdot(value, value))
    return {layer: float(np.sqrt(square)) for layer, square in squares.items()}


def learning_rate(step: int, highest: float, steps: int | None = None) -> float:
    """Of step 0, 1, ...: up in a line, then the highest; or half a cosine down to a tenth at `steps`."""
    rate = highest * min(1.0, (step + 1) / WARM_UP)
    if steps is None:
        return rate
    done = min(1.0, max(0, step - WARM_UP) / max(steps - WARM_UP, 1))
    return rate * (0.55 + 0.45 * float(np.cos(np.pi * done)))
