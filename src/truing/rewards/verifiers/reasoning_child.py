"""reasoning-gym's own scorers, in a process of their own.

Some of them hand the completion to ``eval`` or to sympy's parser, which evaluates it: a completion could run any code. Here both
are replaced: ``eval`` reads literals and whole-number arithmetic only, and the parser is given nothing but numbers, operators and
known mathematical names. ``Integral`` is none of them: it would let the question stand as its own answer.
"""

from __future__ import annotations

import ast
import functools
import json
import operator
import re
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import sympy
from reasoning_gym.factory import DATASETS
from sympy.parsing import sympy_parser

from truing.rewards.verifiers.limits import limit_memory, processor_time

SECONDS = 3.0  # of processor time an answer

limit_memory()

Entry = Mapping[str, Any]

_NAMES = frozenset(
    "abs Abs sqrt cbrt root exp log ln sin cos tan cot sec csc asin acos atan acot sinh cosh tanh asinh acosh atanh erf Ei Si Ci li pi E I oo Rational Integer Float Symbol gamma".split()
)
_CHARACTERS = re.compile(r"[0-9A-Za-z+\-*/^()., \t\n!=]*")


def safe(text: str) -> bool:
    """Whether a text is arithmetic: no quotes, brackets or underscores, no attribute of anything, no name that sympy does not mean as mathematics."""
    if not _CHARACTERS.fullmatch(text) or re.search(r"[A-Za-z)]\s*\.|\.\s*[A-Za-z(]", text):
        return False
    return all(len(name) == 1 or name in _NAMES or re.fullmatch(r"[a-z]\d+|[eE]\d*", name) for name in re.findall(r"[A-Za-z][A-Za-z0-9]*", text))


_OPERATIONS: dict[type[ast.AST], Callable[..., Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod,
    ast.BitAnd: operator.and_, ast.BitOr: operator.or_, ast.BitXor: operator.xor, ast.LShift: operator.lshift, ast.RShift: operator.rshift,
    ast.Invert: operator.invert, ast.USub: operator.neg, ast.UAdd: operator.pos,
}  # fmt: skip


def literal(text: str) -> Any:
    """A Python literal, or arithmetic of whole numbers. Raises ValueError or SyntaxError for anything else.

    >>> literal("[1, 'a']"), literal("(0x0f + 1) * -2")
    ([1, 'a'], -32)
    """
    try:
        return ast.literal_eval(text)
    except ValueError:
        return _calculated(ast.parse(text, mode="eval").body)


def _calculated(node: ast.AST) -> int:
    if isinstance(node, ast.Constant) and type(node.value) is int:
        return node.value
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATIONS:
        return int(_OPERATIONS[type(node.op)](_calculated(node.left), _calculated(node.right)))
    if isinstance(node, ast.UnaryOp) and type(node.op) in _OPERATIONS:
        return int(_OPERATIONS[type(node.op)](_calculated(node.operand)))
    raise ValueError(f"{type(node).__name__} is no arithmetic of whole numbers")


def _puzzle24(answer: str, entry: Entry) -> bool:
    """Its scorer takes any four numbers in range; they must be the puzzle's, with + - * / between."""
    return _four_operations(answer, entry) and Counter(map(int, re.findall(r"\d+", answer))) == Counter(map(int, entry["metadata"]["numbers"]))


def _four_operations(answer: str, entry: Entry) -> bool:
    return re.fullmatch(r"[\d+\-*/() \t\n]+", answer) is not None and "**" not in answer and "//" not in answer


def _truth(answer: str, entry: Entry) -> bool:
    """Its scorer looks for "True" somewhere, and takes all other texts as False."""
    return answer.strip() in ("True", "False")


STRICTER: dict[str, Callable[[str, Entry], bool]] = {"puzzle24": _puzzle24, "countdown": _four_operations, "game_of_life_halting": _truth}
"""What a data set's scorer lets pass and its question does not."""


def score(items: Sequence[str], texts: Sequence[str]) -> list[list[float]]:
    """The data set's score of each answer. Raises ValueError for a row that is none of its."""
    return [[_score(item, text)] for item, text in zip(items, texts, strict=True)]


def _score(item: str, answer: str) -> float:
    dataset, entry = _entry(item)
    stricter = STRICTER.get(json.loads(item)["dataset"])
    if not answer.strip() or (stricter and not stricter(answer, entry)):
        return 0.0
    with processor_time(SECONDS):
        return float(dataset.score_answer(answer, entry))


@lru_cache(maxsize=512)
def _entry(item: str) -> tuple[Any, Entry]:
    row = json.loads(item)
    metadata = row["metadata"]
    if isinstance(metadata, str):
        try:
            metadata = ast.literal_eval(metadata)
        except (ValueError, SyntaxError, RecursionError, MemoryError) as error:
            raise ValueError("metadata is a text, and no Python literal; write what the data set made, as an object or as its repr") from error
    if not isinstance(metadata, dict):
        raise ValueError(f"metadata is {type(metadata).__name__}; write an object")
    return _dataset(row["dataset"], json.dumps(row["options"], sort_keys=True)), {"question": "", "answer": row["answer"], "metadata": metadata}


@lru_cache(maxsize=128)
def _dataset(name: str, options: str) -> Any:
    if name not in DATASETS or name == "composite":
        raise ValueError(f"dataset {name!r} is none of reasoning-gym's")
    kind, config = DATASETS[name]
    try:
        made = kind(config=config(**json.loads(options)))
    except (AssertionError, TypeError) as error:
        raise ValueError(f"options {options}: {error or type(error).__name__}") from error
    _disarm(sys.modules[kind.__module__])
    return made


def _disarm(module: Any) -> None:
    """Nothing that a completion says is run as code. (The scorers of this process make no rows, so no generator misses its eval.)"""
    if not hasattr(sympy.parse_expr, "guarded"):
        sympy.parse_expr = sympy_parser.parse_expr = sympy.parsing.parse_expr = _guarded(sympy.parse_expr)
        sympy.sympify = sympy.S = _guarded(sympy.sympify)
    module.eval = literal
    for name in ("parse_expr", "sympify"):
        if getattr(getattr(module, name, None), "__module__", "").startswith("sympy."):
            setattr(module, name, getattr(sympy, name))


def _guarded(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def guarded(text: Any, *more: Any, **named: Any) -> Any:
        if isinstance(text, str) and not safe(text):
            raise ValueError("not arithmetic")
        return function(text, *more, **named)

    guarded.guarded = True  # type: ignore[attr-defined]
    return guarded
