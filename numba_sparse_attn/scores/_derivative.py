"""Derivatives of users' functions, from their source: forward mode, statement by statement.

Beside every variable x that depends on the score stands its tangent, d x / d score, and every assignment is
preceded by that of the tangent. Conditions, loops and arrays that the function reads stay as they are. The
result is a Python function like the given one, so that Numba compiles it for whatever compiles that.
"""

from __future__ import annotations

import ast
import builtins
import inspect
import math
import types
from collections.abc import Callable
from typing import Any

import numpy as np

__all__ = ["NotDerived", "derivative_of"]

#: d f(x) / d x of functions of one number, with x for the argument and y for the value.
_OUTER = {
    "exp": "{y}",
    "exp2": "{y} * 0.6931471805599453",
    "expm1": "{y} + 1.0",
    "log": "1.0 / {x}",
    "log2": "1.4426950408889634 / {x}",
    "log10": "0.4342944819032518 / {x}",
    "log1p": "1.0 / (1.0 + {x})",
    "sqrt": "0.5 / {y}",
    "cbrt": "1.0 / (3.0 * {y} * {y})",
    "sin": "_nsa_math.cos({x})",
    "cos": "-_nsa_math.sin({x})",
    "tan": "1.0 + {y} * {y}",
    "sinh": "_nsa_math.cosh({x})",
    "cosh": "_nsa_math.sinh({x})",
    "tanh": "1.0 - {y} * {y}",
    "atan": "1.0 / (1.0 + {x} * {x})",
    "arctan": "1.0 / (1.0 + {x} * {x})",
    "asin": "1.0 / _nsa_math.sqrt(1.0 - {x} * {x})",
    "arcsin": "1.0 / _nsa_math.sqrt(1.0 - {x} * {x})",
    "acos": "-1.0 / _nsa_math.sqrt(1.0 - {x} * {x})",
    "arccos": "-1.0 / _nsa_math.sqrt(1.0 - {x} * {x})",
    "erf": "1.1283791670955126 * _nsa_math.exp(-{x} * {x})",
    "erfc": "-1.1283791670955126 * _nsa_math.exp(-{x} * {x})",
    "square": "2.0 * {x}",
    "reciprocal": "-{y} * {y}",
    "fabs": "(1.0 if {x} > 0.0 else -1.0)",
    "abs": "(1.0 if {x} > 0.0 else -1.0)",
    "absolute": "(1.0 if {x} > 0.0 else -1.0)",
    "float": "1.0",
    "negative": "-1.0",
}
#: Functions with steps, whose derivative is 0 wherever there is one.
_FLAT = {"int", "round", "floor", "ceil", "trunc", "sign", "bool", "len", "range", "isnan", "isinf"}
_LARGER, _SMALLER = {"max", "maximum", "fmax"}, {"min", "minimum", "fmin"}
_MODULES = (math, np, builtins)
_TANGENT = "__tangent"


class NotDerived(Exception):
    """Why there is no derivative: what stands in the way, in the function's own words."""


def derivative_of(function: Callable[..., Any]) -> Callable[..., Any]:
    """``d function / d score`` with the same arguments, (score, head, i, j).

    Examples
    --------
    >>> slope = derivative_of(lambda score, head, i, j: 30.0 * math.tanh(score / 30.0) - 0.5 * abs(i - j))
    >>> round(slope(0.0, 0, 1, 2), 6)
    1.0
    """
    plain = getattr(function, "py_func", function)
    if not isinstance(plain, types.FunctionType):
        raise NotDerived(f"{plain!r} is no Python function; pass derivative=")
    node = _syntax_of(plain)
    arguments = [argument.arg for argument in node.args.args]
    if node.args.vararg or node.args.kwarg or node.args.kwonlyargs or node.args.defaults or not arguments:
        raise NotDerived("it takes other arguments than (score, head, i, j); pass derivative=")
    names = {**plain.__globals__, **inspect.getclosurevars(plain).nonlocals}
    body: list[ast.stmt] = [ast.Return(node.body)] if isinstance(node, ast.Lambda) else node.body
    statements = _Forward(arguments[0], body, names).statements(body)
    head = ast.parse(f"def derivative({', '.join(arguments)}): pass").body[0]
    assert isinstance(head, ast.FunctionDef)
    head.body = [*ast.parse(f"{arguments[0]}{_TANGENT} = 1.0").body, *statements]
    module = ast.fix_missing_locations(ast.Module([head], []))
    names["_nsa_math"] = math
    exec(compile(module, f"<derivative of {plain.__name__}>", "exec"), names)
    made: Callable[..., Any] = names["derivative"]
    return made


def _syntax_of(function: types.FunctionType) -> ast.FunctionDef | ast.Lambda:
    """The function in the syntax tree of its file, found by name, line and, for a lambda, columns."""
    code = function.__code__
    try:
        lines, _ = inspect.findsource(function)
        tree = ast.parse("".join(lines))
    except (OSError, TypeError, SyntaxError) as error:
        raise NotDerived(f"its source is not there ({error}); pass derivative=") from None
    found: list[ast.FunctionDef | ast.Lambda] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.name == code.co_name:
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            if first == code.co_firstlineno:
                found.append(node)
        elif isinstance(node, ast.Lambda) and code.co_name == "<lambda>" and _holds(node, code):
            found = [node]  # the tree is walked from outside in: a lambda inside of a lambda comes later
    if len(found) != 1:
        raise NotDerived("its source is not found, or not the one it was compiled from; pass derivative=")
    return found[0]


def _holds(node: ast.Lambda, code: types.CodeType) -> bool:
    """Whether all of a code's instructions come from a lambda's body."""
    body = node.body
    begin, end = (body.lineno, body.col_offset), (body.end_lineno, body.end_col_offset)
    places = [
        ((line, column), (end_line, end_column))
        for line, end_line, column, end_column in code.co_positions()
        if None not in (line, end_line, column, end_column) and (line, column) != (end_line, end_column)
    ]
    return bool(places) and all(begin <= first and last <= end for first, last in places)


def _expression(text: str, **parts: ast.expr) -> ast.expr:
    """An expression of Python in which names in capitals stand for other expressions."""

    class Fill(ast.NodeTransformer):
        def visit_Name(self, node: ast.Name) -> ast.expr:
            return parts.get(node.id, node)

    made = Fill().visit(ast.parse(text, mode="eval").body)
    assert isinstance(made, ast.expr)
    return made


def _targets(statement: ast.stmt) -> list[ast.expr]:
    if isinstance(statement, ast.Assign):
        return statement.targets
    if isinstance(statement, ast.AugAssign | ast.AnnAssign):
        return [statement.target]
    return []


class _Forward:
    """Tangents of the statements of one function."""

    def __init__(self, score: str, body: list[ast.stmt], names: dict[str, Any]) -> None:
        self._names = names
        self._active = {score}
        everything = [node for statement in body for node in ast.walk(statement)]
        for node in everything:
            if isinstance(node, ast.NamedExpr | ast.Try | ast.With | ast.FunctionDef | ast.Lambda):
                raise NotDerived(f"line {node.lineno} has {type(node).__name__}; pass derivative=")
        before = 0
        while len(self._active) > before:  # whatever is assigned from something active is so, too
            before = len(self._active)
            for node in everything:
                if isinstance(node, ast.Assign | ast.AugAssign | ast.AnnAssign) and node.value is not None:
                    used = ast.walk(node) if isinstance(node, ast.AugAssign) else ast.walk(node.value)
                    if any(isinstance(name, ast.Name) and name.id in self._active for name in used):
                        for target in _targets(node):
                            self._active |= {n.id for n in ast.walk(target) if isinstance(n, ast.Name)}

    # Statements

    def statements(self, body: list[ast.stmt]) -> list[ast.stmt]:
        """The same statements, with those of tangents before them."""
        return [made for statement in body for made in self._statement(statement)]

    def _statement(self, node: ast.stmt) -> list[ast.stmt]:
        if isinstance(node, ast.Return):
            return [ast.Return(self._tangent_or_zero(node.value or ast.Constant(0.0)))]
        if isinstance(node, ast.Assign | ast.AugAssign | ast.AnnAssign):
            return self._assignment(node)
        if isinstance(node, ast.If | ast.While):
            return [
                type(node)(
                    test=node.test, body=self.statements(node.body), orelse=self.statements(node.orelse)
                )
            ]
        if isinstance(node, ast.For):
            if self._is_active(node.iter):
                raise NotDerived(f"line {node.lineno} loops over what depends on the score; pass derivative=")
            body, orelse = self.statements(node.body), self.statements(node.orelse)
            return [ast.For(target=node.target, iter=node.iter, body=body, orelse=orelse)]
        if isinstance(node, ast.Pass | ast.Break | ast.Continue):
            return [node]
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            return []  # a docstring
        raise NotDerived(f"line {node.lineno} has {type(node).__name__}; pass derivative=")

    def _assignment(self, node: ast.Assign | ast.AugAssign | ast.AnnAssign) -> list[ast.stmt]:
        target, value = _targets(node)[0], node.value
        if value is None:
            return []
        if isinstance(node, ast.AugAssign):
            assert isinstance(target, ast.Name | ast.Attribute | ast.Subscript)
            if isinstance(target, ast.Name):
                value = ast.BinOp(ast.Name(target.id, ast.Load()), node.op, value)
        if len(_targets(node)) > 1 or not isinstance(target, ast.Name):
            if any(isinstance(name, ast.Name) and name.id in self._active for name in ast.walk(node)):
                raise NotDerived(f"line {node.lineno} assigns to more than a name; pass derivative=")
            return [node]
        plain = ast.Assign([ast.Name(target.id, ast.Store())], value)
        if target.id not in self._active:
            return [plain]
        tangent = ast.Assign([ast.Name(target.id + _TANGENT, ast.Store())], self._tangent_or_zero(value))
        return [tangent, plain]

    # Expressions

    def _is_active(self, node: ast.expr) -> bool:
        return any(isinstance(name, ast.Name) and name.id in self._active for name in ast.walk(node))

    def _tangent_or_zero(self, node: ast.expr) -> ast.expr:
        return self._tangent(node) or ast.Constant(0.0)

    def _tangent(self, node: ast.expr) -> ast.expr | None:
        """The tangent of an expression; None where it is 0."""
        if not self._is_active(node) or isinstance(node, ast.Compare | ast.Subscript):
            return None  # a comparison and a look-up are steps
        if isinstance(node, ast.Name):
            return ast.Name(node.id + _TANGENT, ast.Load())
        if isinstance(node, ast.UnaryOp):
            inner = self._tangent(node.operand)
            if inner is None or isinstance(node.op, ast.Not):
                return None
            return ast.UnaryOp(node.op, inner)
        if isinstance(node, ast.BinOp):
            return self._of_operation(node)
        if isinstance(node, ast.IfExp):
            return ast.IfExp(node.test, self._tangent_or_zero(node.body), self._tangent_or_zero(node.orelse))
        if isinstance(node, ast.BoolOp):
            if all(self._tangent(value) is None for value in node.values):
                return None
        elif isinstance(node, ast.Call):
            return self._of_call(node)
        raise NotDerived(f"line {node.lineno} has {ast.unparse(node)!r}; pass derivative=")

    def _of_operation(self, node: ast.BinOp) -> ast.expr | None:
        a, b, da, db = node.left, node.right, self._tangent(node.left), self._tangent(node.right)
        zero: ast.expr = ast.Constant(0.0)
        parts = {"A": a, "B": b, "DA": da or zero, "DB": db or zero}
        if (da is None and db is None) or isinstance(node.op, ast.FloorDiv):
            return None
        if isinstance(node.op, ast.Add):
            text = "DA + DB" if da and db else "DA" if da else "DB"
        elif isinstance(node.op, ast.Sub):
            text = "DA - DB" if da and db else "DA" if da else "-DB"
        elif isinstance(node.op, ast.Mult):
            text = "DA * B + A * DB" if da and db else "DA * B" if da else "A * DB"
        elif isinstance(node.op, ast.Div):
            text = "(DA - A / B * DB) / B" if db else "DA / B"
        elif isinstance(node.op, ast.Mod):
            text = "DA - A // B * DB" if db else "DA"
        elif isinstance(node.op, ast.Pow):
            first, second = "B * A ** (B - 1) * DA", "A ** B * _nsa_math.log(A) * DB"
            text = f"{first} + {second}" if da and db else first if da else second
        else:
            raise NotDerived(f"line {node.lineno} has {ast.unparse(node)!r}; pass derivative=")
        return _expression(text, **parts)

    def _of_call(self, node: ast.Call) -> ast.expr | None:
        name = self._known(node.func)
        if name is None or node.keywords:
            raise NotDerived(
                f"line {node.lineno} calls {ast.unparse(node.func)} with the score; pass derivative="
            )
        if name in _FLAT:
            return None
        if name in _OUTER and len(node.args) == 1:
            inner = self._tangent(node.args[0])
            if inner is None:
                return None
            outer = _OUTER[name].format(x="X", y="Y")
            return _expression(f"({outer}) * INNER", X=node.args[0], Y=node, INNER=inner)
        if name in _LARGER | _SMALLER and len(node.args) >= 2:
            sign = ">=" if name in _LARGER else "<="
            best, tangent = node.args[0], self._tangent_or_zero(node.args[0])
            for other in node.args[1:]:
                parts = {"A": best, "B": other, "DA": tangent, "DB": self._tangent_or_zero(other)}
                tangent = _expression(f"DA if A {sign} B else DB", **parts)
                best = _expression(f"A if A {sign} B else B", **parts)
            return tangent
        if name == "where" and len(node.args) == 3:
            chosen, kept, other = node.args
            return ast.IfExp(chosen, self._tangent_or_zero(kept), self._tangent_or_zero(other))
        if name in ("pow", "power") and len(node.args) == 2:
            return self._of_operation(ast.BinOp(node.args[0], ast.Pow(), node.args[1]))
        if name == "copysign" and len(node.args) == 2:
            inner = self._tangent(node.args[0])
            return (
                None
                if inner is None
                else _expression(
                    "DA if (A >= 0.0) == (WHOLE >= 0.0) else -DA", DA=inner, A=node.args[0], WHOLE=node
                )
            )
        raise NotDerived(f"line {node.lineno} calls {ast.unparse(node)}; pass derivative=")

    def _known(self, called: ast.expr) -> str | None:
        """The name of a function of math, NumPy or Python itself; None for any other."""
        try:
            found = eval(compile(ast.Expression(called), "<called>", "eval"), {**self._names})
        except Exception:  # a name that is only known inside
            return None
        name = getattr(found, "__name__", "")
        known = any(getattr(module, name, None) is found for module in _MODULES if name)
        kind = type(found) is type and found.__module__ == "numpy"
        return "float" if kind and issubclass(found, np.floating) else name if known else None
