"""CloudWatch's metric math for one minute, as far as the templates use it. A minute without a sample is missing."""

import ast
import operator
from collections.abc import Callable, Mapping
from typing import Any, Final

_OPERATORS: Final[Mapping[type[ast.AST], Callable[[Any, Any], Any]]] = {
    ast.Gt: operator.gt, ast.Lt: operator.lt, ast.Mult: operator.mul, ast.Add: operator.add, ast.Sub: operator.sub,
}  # fmt: skip


def evaluate(expression: str, samples: Mapping[str, float | None]) -> float | None:
    """The expression's point, or None where it has none: an operation on a missing point has no result."""
    return _evaluate(ast.parse(" ".join(expression.split()), mode="eval").body, samples)


def _evaluate(node: ast.expr, samples: Mapping[str, float | None]) -> float | None:
    match node:
        case ast.Constant(value=int() | float() as value):
            return value
        case ast.Name(id=name):
            return samples[name]
        case ast.BinOp(left=left, op=kind, right=right):
            return _combine(kind, _evaluate(left, samples), _evaluate(right, samples))
        case ast.Compare(left=left, ops=[kind], comparators=[right]):
            return _combine(kind, _evaluate(left, samples), _evaluate(right, samples))
        case ast.Call(func=ast.Name(id="IF"), args=[condition, then, otherwise]):
            chosen = _evaluate(condition, samples)
            return None if chosen is None else _evaluate(then if chosen else otherwise, samples)
        case ast.Call(func=ast.Name(id="FILL"), args=[value, filler]):
            found = _evaluate(value, samples)
            return _evaluate(filler, samples) if found is None else found
    raise NotImplementedError(ast.dump(node))


def _combine(kind: ast.AST, left: float | None, right: float | None) -> float | None:
    if left is None or right is None:
        return None
    return float(_OPERATORS[type(kind)](left, right))
