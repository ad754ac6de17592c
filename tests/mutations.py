"""Every small wrong version of a Python file, as data: what `make mutate` runs the tests of the mathematics against.

A mutation changes one number, operator, condition, call or statement. Not touched, because they change no number: docstrings
and other strings, annotations, decorators, imports, and whatever stands after `raise` (removing the raise itself is a mutation:
the condition before it is set to False).
"""

from __future__ import annotations

import ast
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.MatMult: ast.Mult, ast.FloorDiv: ast.Div,
    ast.Mod: ast.Mult, ast.Pow: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.BitXor: ast.BitOr,
}  # fmt: skip
COMPARISONS: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Lt: (ast.LtE, ast.GtE), ast.LtE: (ast.Lt, ast.Gt), ast.Gt: (ast.GtE, ast.LtE), ast.GtE: (ast.Gt, ast.Lt), ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,), ast.Is: (ast.IsNot,), ast.IsNot: (ast.Is,), ast.In: (ast.NotIn,), ast.NotIn: (ast.In,),
}  # fmt: skip
_PAIRS = "min max, minimum maximum, amin amax, argmin argmax, any all, sum mean, ones zeros, ones_like zeros_like, floor ceil, cumsum cumprod, log exp, sin cos"
NAMES = {a: b for pair in _PAIRS.split(", ") for a, b in (pair.split(), pair.split()[::-1])}
UNWRAPPED = set(
    "abs ceil clamp clamp_max clamp_min clip cumsum detach exp expm1 flip floor log log1p log_softmax logsigmoid masked_fill maximum minimum neg round rsqrt sigmoid softmax"
    " sqrt square tanh tril triu".split()
)
COMMUTATIVE = {"min", "max", "minimum", "maximum", "isinstance", "dict", "logaddexp"}
HEADED = (ast.If, ast.While, ast.For, ast.With, ast.FunctionDef, ast.ClassDef)


@dataclass(frozen=True, eq=False)
class Mutation:
    """One change. ``lines`` are those that run it (empty: it runs at import); ``was`` and ``now`` are the statement's text."""

    function: str
    line: int
    lines: frozenset[int]
    was: str
    now: str
    holder: Any
    key: Any
    node: Any


@contextmanager
def applied(change: Mutation | tuple[Any, Any, Any]) -> Iterator[None]:
    """The tree with the change made; afterwards as before."""
    holder, key, node = (change.holder, change.key, change.node) if isinstance(change, Mutation) else change
    before = _get(holder, key)
    _set(holder, key, node)
    try:
        yield
    finally:
        _set(holder, key, before)


def mutations(tree: ast.Module) -> list[Mutation]:
    """All mutations of a file, in the order of its lines."""
    found: list[Mutation] = []
    _statements(tree.body, "", None, set(), found)
    return found


def _statements(body: list[ast.stmt], scope: str, function: ast.FunctionDef | None, bound: set[str], found: list[Mutation]) -> None:
    for i, statement in enumerate(body):
        if _says_nothing(statement):
            continue
        changes: list[tuple[Any, Any, Any]] = []
        if _deletable(statement, bound):
            changes.append((body, i, ast.copy_location(ast.Pass(), statement)))
        if isinstance(statement, ast.Break | ast.Continue):
            changes.append((body, i, ast.copy_location(ast.Continue() if isinstance(statement, ast.Break) else ast.Break(), statement)))
        _expressions(statement, changes)
        seen = {text(statement)}
        for holder, key, node in changes:
            with applied((holder, key, node)):
                now = text(body[i])
            if now not in seen:
                seen.add(now)
                found.append(Mutation(scope, statement.lineno, _lines(statement, function), text(statement), now, holder, key, node))
        bound |= _names(statement)
        if isinstance(statement, ast.FunctionDef):
            inside = {a.arg for a in ast.walk(statement.args) if isinstance(a, ast.arg)}
            _statements(statement.body, f"{scope}.{statement.name}".strip("."), function or statement, inside, found)
        elif isinstance(statement, ast.ClassDef):
            _statements(statement.body, f"{scope}.{statement.name}".strip("."), function, set(), found)
        else:
            for field in ("body", "orelse", "finalbody"):
                _statements(getattr(statement, field, []), scope, function, bound, found)


def _says_nothing(statement: ast.stmt) -> bool:
    if isinstance(statement, ast.Import | ast.ImportFrom | ast.Raise | ast.Pass):
        return True
    if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
        return True
    if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Call) and _called(statement.value) in ("TypeVar", "NewType", "ParamSpec"):
        return True
    return isinstance(statement, ast.If) and "TYPE_CHECKING" in ast.dump(statement.test)


def _deletable(statement: ast.stmt, bound: set[str]) -> bool:
    """A statement whose loss would not be noticed as an unknown name."""
    if isinstance(statement, ast.Assign):
        return all(isinstance(t, ast.Subscript | ast.Attribute) or (isinstance(t, ast.Name) and t.id in bound) for t in statement.targets)
    return isinstance(statement, ast.AugAssign | ast.Delete) or (isinstance(statement, ast.Expr) and not isinstance(statement.value, ast.Yield))


def _names(statement: ast.stmt) -> set[str]:
    targets = statement.targets if isinstance(statement, ast.Assign) else []
    return {n.id for target in targets for n in ast.walk(target) if isinstance(n, ast.Name)}


def _lines(statement: ast.stmt, function: ast.FunctionDef | None) -> frozenset[int]:
    if isinstance(statement, ast.FunctionDef):  # its default values: whoever runs it
        return frozenset(range(statement.body[0].lineno, (statement.end_lineno or 0) + 1))
    if function is None:
        return frozenset()
    end = statement.body[0].lineno - 1 if isinstance(statement, HEADED) else statement.end_lineno or 0
    return frozenset(range(statement.lineno, max(end, statement.lineno) + 1))


def text(statement: ast.stmt) -> str:
    """A statement on one line, a compound one without its body."""
    lines = ast.unparse(statement).splitlines()
    return next(line for line in lines if not line.startswith("@")).rstrip(":") if isinstance(statement, HEADED) else "\n".join(lines)


def _expressions(node: ast.AST, changes: list[tuple[Any, Any, Any]]) -> None:
    """The changes inside a node, without the statements of a body."""
    _own(node, changes)
    for name, value in ast.iter_fields(node):
        skipped = name in ("annotation", "returns", "decorator_list", "bases", "keywords") and not isinstance(node, ast.Call)
        if skipped or isinstance(value, ast.JoinedStr):
            continue
        for i, child in enumerate(value if isinstance(value, list) else [value]):
            if isinstance(child, ast.AST) and not isinstance(child, ast.stmt | ast.JoinedStr):
                place = (value, i) if isinstance(value, list) else (node, name)
                changes += [(*place, ast.copy_location(new, child)) for new in _replacements(child)]
                _expressions(child, changes)


def _own(node: ast.AST, changes: list[tuple[Any, Any, Any]]) -> None:
    """Changes of a node's fields."""
    if isinstance(node, ast.BinOp | ast.AugAssign) and type(node.op) in OPERATORS:
        changes.append((node, "op", OPERATORS[type(node.op)]()))
    elif isinstance(node, ast.Compare):
        changes += [(node.ops, i, new()) for i, op in enumerate(node.ops) for new in COMPARISONS[type(op)]]
    elif isinstance(node, ast.BoolOp):
        changes.append((node, "op", ast.Or() if isinstance(node.op, ast.And) else ast.And()))
    elif isinstance(node, ast.If | ast.IfExp | ast.While):
        changes += [(node, "test", ast.copy_location(ast.Constant(value), node.test)) for value in ((False,) if isinstance(node, ast.While) else (False, True))]
    elif isinstance(node, ast.comprehension):
        changes += [(node, "ifs", node.ifs[:i] + node.ifs[i + 1 :]) for i in range(len(node.ifs))]
    elif isinstance(node, ast.Slice):
        changes += [(node, part, None) for part in ("lower", "upper", "step") if getattr(node, part) is not None]
    elif isinstance(node, ast.Call):
        _calls(node, changes)


def _calls(node: ast.Call, changes: list[tuple[Any, Any, Any]]) -> None:
    name = _called(node)
    if name in NAMES:
        changes.append((node.func, "id" if isinstance(node.func, ast.Name) else "attr", NAMES[name]))
    changes += [(node, "keywords", [k for k in node.keywords if k is not kept]) for kept in node.keywords if kept.arg not in (None, "strict")]
    if name not in COMMUTATIVE and not any(isinstance(a, ast.Starred) for a in node.args):
        swapped = [[*node.args[:i], node.args[i + 1], node.args[i], *node.args[i + 2 :]] for i in range(len(node.args) - 1)]
        changes += [(node, "args", args) for args in swapped]


def _called(node: ast.Call) -> str:
    return node.func.id if isinstance(node.func, ast.Name) else node.func.attr if isinstance(node.func, ast.Attribute) else ""


def _replacements(node: ast.AST) -> Iterator[ast.AST]:
    """Nodes that take a node's place."""
    if isinstance(node, ast.Constant):
        if isinstance(node.value, bool):
            yield ast.Constant(not node.value)
        elif isinstance(node.value, int):
            yield ast.Constant(node.value + 1)
        elif isinstance(node.value, float) and math.isfinite(node.value):
            yield ast.Constant(2 * node.value or 1.0)
    elif isinstance(node, ast.UnaryOp) and not isinstance(node.op, ast.UAdd):
        yield node.operand
    elif isinstance(node, ast.BoolOp):
        for i in range(len(node.values)):
            rest = node.values[:i] + node.values[i + 1 :]
            yield ast.BoolOp(node.op, rest) if len(rest) > 1 else rest[0]
    elif isinstance(node, ast.Call):
        name = _called(node)
        of_module = isinstance(node.func, ast.Name) or (isinstance(node.func, ast.Attribute) and ast.unparse(node.func.value) in MODULES)
        if name == "where" and of_module:
            yield from node.args[1:]
        elif name in UNWRAPPED or (name in ("min", "max") and of_module and len(node.args) > 1):
            if of_module:
                yield from node.args[:1]
            elif isinstance(node.func, ast.Attribute):
                yield node.func.value


MODULES = {"np", "torch", "math", "F", "torch.nn.functional", "functional"}


def _get(holder: Any, key: Any) -> Any:
    return getattr(holder, key) if isinstance(key, str) else holder[key]


def _set(holder: Any, key: Any, value: Any) -> None:
    if isinstance(key, str):
        setattr(holder, key, value)
    else:
        holder[key] = value
