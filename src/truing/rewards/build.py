"""Reward expressions in Python: ``learned("runs/x/reward/model") - 0.01 * excess_tokens(150)``.

A `Reward` is its text, the very text a recipe holds, with arithmetic on it; so it can be given wherever a recipe takes a
reward, and what was written in Python is what the run folder says.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from typing import Any, NoReturn

from truing.errors import ConfigError
from truing.rewards import expression, grammar
from truing.rewards.grammar import Node, Number, Operation

LOCAL: dict[str, Callable[..., Any]] = {}  # functions that only this process has, by the name their expressions use


class Reward(str):
    """A reward expression. ``+ - * /`` build larger ones; numbers stand for constants, texts for what they name."""

    __slots__ = ()

    @property
    def tree(self) -> Node:
        return expression.parse(str(self))

    def __add__(self, other: Any) -> Reward:
        return _operation("+", self, other)

    def __radd__(self, other: Any) -> Reward:
        return _operation("+", other, self)

    def __sub__(self, other: Any) -> Reward:
        return _operation("-", self, other)

    def __rsub__(self, other: Any) -> Reward:
        return _operation("-", other, self)

    def __mul__(self, other: Any) -> Reward:
        return _operation("*", self, other)

    def __rmul__(self, other: Any) -> Reward:
        return _operation("*", other, self)

    def __truediv__(self, other: Any) -> Reward:
        return _operation("/", self, other)

    def __rtruediv__(self, other: Any) -> Reward:
        return _operation("/", other, self)

    def __neg__(self) -> Reward:
        return _made(grammar.negative(self.tree))

    def __pos__(self) -> Reward:
        return self

    def _compared(self, other: object) -> NoReturn:
        raise ConfigError("rewards are not known yet and cannot be compared; use minimum(a, b) or maximum(a, b) of truing.rewards")

    __lt__ = __le__ = __gt__ = __ge__ = _compared


def parse(text: str) -> Reward:
    """The expression behind a text, written out: ``parse("package.module:f")`` is ``function("package.module:f")``."""
    return _made(expression.parse(text))


def learned(folder: str | os.PathLike[str]) -> Reward:
    """A reward model: a folder that `truing reward` wrote, or a classifier of one number (folder or hub id)."""
    return _made(grammar.atom("learned", (os.fspath(folder),)))


def function(what: str | Callable[..., Any]) -> Reward:
    """A Python function of ``(prompts, completions)`` that returns a number a completion: ``"module:name"``, or the function.

    A function that can be imported under its own name is written that way. A lambda, or one defined in the running script or
    in another function, exists in this process only: its expression says ``<local>:name``, it runs without a time limit, and a
    run is resumed by the same script.
    """
    if isinstance(what, str):
        return _made(grammar.atom("function", (what,)))
    if not callable(what):
        raise ConfigError(f"function: {what!r} of type {type(what).__name__} is neither a function nor module:name")
    return _made(grammar.atom("function", (_importable(what) or _local(what),)))


def http(url: str, timeout: float | None = None) -> Reward:
    """A service that answers ``POST {"prompts": [...], "completions": [...]}`` with ``{"scores": [...]}``, within `timeout` seconds."""
    return _made(grammar.atom("http", (url, timeout)))


def verified(by: str | None = None) -> Reward:
    """What a verifier makes of the completion, 0 to 1: the one that the prompt's row names, or ``by`` for all rows."""
    return _made(grammar.atom("verified", (by,)))


def environment() -> Reward:
    """What the environment makes of the episode."""
    return _made(grammar.atom("environment"))


def tokens() -> Reward:
    """Tokens of the completion, its end-of-turn token included."""
    return _made(grammar.atom("tokens"))


def excess_tokens(n: int) -> Reward:
    """``max(0, tokens - n)``."""
    return _made(grammar.atom("excess_tokens", (n,)))


def cut_off() -> Reward:
    """1 when the completion did not end by itself, else 0."""
    return _made(grammar.atom("cut_off"))


def soft_overlong(max_tokens: int, margin: int) -> Reward:
    """0 up to ``max_tokens - margin`` tokens, then down in a straight line to -1 at ``max_tokens``, and -1 beyond (DAPO, equation 13)."""
    return _made(grammar.atom("soft_overlong", (max_tokens, margin)))


def repetition(n: int = 2) -> Reward:
    """Share of the completion's n-grams of words that repeat an earlier one: 0 none, near 1 a loop."""
    return _made(grammar.atom("repetition", (n,)))


def minimum(*parts: Any) -> Reward:
    """The least of the parts: the worst case of several reward models (Coste et al. 2023)."""
    return _combined("minimum", parts)


def maximum(*parts: Any) -> Reward:
    return _combined("maximum", parts)


def mean(*parts: Any) -> Reward:
    return _combined("mean", parts)


def std(*parts: Any) -> Reward:
    """Standard deviation of the parts for one completion, ``sqrt(mean((x - mean(x))^2))``: how far they disagree."""
    return _combined("std", parts)


def clip(x: Any, low: float, high: float) -> Reward:
    """x limited to ``low .. high``."""
    return _made(grammar.combination("clip", [_node(x)], (low, high)))


def _made(node: Node) -> Reward:
    return Reward(grammar.write(node))


def _node(value: Any) -> Node:
    if isinstance(value, os.PathLike):
        return grammar.atom("learned", (os.fspath(value),))
    if isinstance(value, str):
        return expression.parse(value)
    return Number(grammar.number(value, "a part of a reward"))


def _operation(sign: str, left: Any, right: Any) -> Reward:
    return _made(Operation(sign, (_node(left), _node(right))))


def _combined(kind: str, parts: tuple[Any, ...]) -> Reward:
    return _made(grammar.combination(kind, [_node(p) for p in parts]))


def _importable(what: Callable[..., Any]) -> str | None:
    module, name = getattr(what, "__module__", None), getattr(what, "__qualname__", "")
    if module in (None, "__main__") or not grammar.FUNCTION.fullmatch(f"{module}:{name}"):
        return None
    found: Any = importlib.import_module(str(module))
    for step in name.split("."):
        found = getattr(found, step, None)
    return f"{module}:{name}" if found is what else None


def _local(what: Callable[..., Any]) -> str:
    base = getattr(what, "__name__", type(what).__name__)
    base = base if base.isidentifier() else "lambda"
    for n in range(1, len(LOCAL) + 2):
        name = f"<local>:{base}" + (f"_{n}" if n > 1 else "")
        if LOCAL.setdefault(name, what) is what:
            return name
    raise ConfigError(f"function: no name is left for {what!r}")  # cannot be reached: there is one name more than functions
