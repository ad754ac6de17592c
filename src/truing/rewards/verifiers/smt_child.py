"""z3 in a process of its own: it may take long, take much memory, or fall over."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import z3

from truing.rewards.verifiers.limits import limit_memory

limit_memory()


def check(items: Sequence[str], texts: Sequence[str]) -> list[list[float]]:
    """1 where the values given make the assertions hold; -1 where z3 cannot say. Raises ValueError for assertions that cannot be read.

    A text is a JSON object, name -> value, both SMT-LIB. An item is ``{"smt2": ..., "milliseconds": ...}``; with ``"verdict"`` in it
    the text is "sat" or "unsat", and 1 says that z3 agrees.
    """
    return [[_checked(json.loads(item), text)] for item, text in zip(items, texts, strict=True)]


def _checked(item: dict[str, Any], text: str) -> float:
    try:
        assertions = z3.parse_smt2_string(item["smt2"])
    except z3.Z3Exception as error:
        raise ValueError(f"z3 cannot read smt2: {_said(error)}") from error
    solver = z3.Solver()
    solver.set("timeout", int(item["milliseconds"]))
    solver.add(assertions)
    if item["verdict"]:
        found = solver.check()
        return -1.0 if found == z3.unknown else float(str(found) == text)
    named = constants(assertions)
    values = json.loads(text)
    if set(values) != set(named):
        return 0.0
    try:
        for name, value in values.items():
            (equation,) = z3.parse_smt2_string(f"(assert (= {_symbol(name)} {value}))", decls={name: named[name]})
            solver.add(equation)
    except (z3.Z3Exception, ValueError):
        return 0.0  # a value of another sort
    found = solver.check()
    return -1.0 if found == z3.unknown else float(found == z3.sat)


def solve(items: Sequence[str], texts: Sequence[str]) -> list[list[float]]:
    """A model of each item's assertions as its characters' numbers, one list; empty when there is none."""
    out = []
    for item in map(json.loads, items):
        assertions = z3.parse_smt2_string(item["smt2"])
        solver = z3.Solver()
        solver.set("timeout", int(item["milliseconds"]))
        solver.add(assertions)
        found = solver.check()
        lines = [str(found)]
        if found == z3.sat and not item["verdict"]:
            model = solver.model()
            lines = [f"(define-fun {_symbol(n)} () {c.sort().sexpr()} {model.eval(c, model_completion=True).sexpr()})" for n, c in constants(assertions).items()]
        out.append([float(ord(c)) for c in "\n".join(lines)] if found != z3.unknown else [])
    return out


def constants(assertions: Sequence[Any]) -> dict[str, Any]:
    """The constants that assertions leave open, by name. Raises ValueError where a function of arguments is left open."""
    found: dict[str, Any] = {}
    waiting, seen = list(assertions), set[int]()
    while waiting:
        node = waiting.pop()
        if node.get_id() in seen:
            continue
        seen.add(node.get_id())
        if z3.is_quantifier(node):
            waiting.append(node.body())
        elif z3.is_app(node):
            waiting += node.children()
            if node.decl().kind() == z3.Z3_OP_UNINTERPRETED:
                if node.num_args():
                    raise ValueError(f"smt2 leaves the function {node.decl().name()} open; only constants can be given values")
                found[node.decl().name()] = node
    return dict(sorted(found.items()))


def _symbol(name: str) -> str:
    return name if name and all(c.isalnum() or c in "~!@$%^&*_-+=<>.?/" for c in name) and not name[0].isdigit() else f"|{name}|"


def _said(error: z3.Z3Exception) -> str:
    said = error.args[0] if error.args else ""
    return (said.decode("utf-8", "replace") if isinstance(said, bytes) else str(said)).strip()[:160]
