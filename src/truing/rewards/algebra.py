"""Evaluating a reward expression: every atom scores the batch once, then each completion's numbers are put together.

A dense score (one with a ``spread``, a number a token) goes through what is linear in it: sums, differences, means, and
products and quotients with constants. A number without a place then stands at the last token. What is not linear has no meaning
token by token, and is refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from truing.errors import ConfigError, RewardError
from truing.rewards.completions import Completions, Scorer
from truing.rewards.grammar import Atom, Combination, Name, Node, Number, Operation, atoms, walk, write
from truing.types import Score, Status


class Amount(NamedTuple):
    """A number, and how it spreads over the completion's tokens (nothing = it stands at the last one)."""

    value: float
    spread: tuple[float, ...] = ()


class NotFinite(ArithmeticError):
    """A result that is no number; the message names the part of the expression and why."""


@dataclass(frozen=True)
class Expression:
    """The scorer of an expression. ``Score.parts`` has every atom's own number, before weights, under ``names[atom]``, and what else it tells."""

    tree: Node
    scorers: Mapping[Atom, Scorer]
    names: Mapping[Atom, str]

    def __call__(self, batch: Completions) -> list[Score]:
        columns = {atom: scorer(batch) for atom, scorer in self.scorers.items()}
        return [self._combined({atom: column[i] for atom, column in columns.items()}) for i in range(len(batch))]

    def _combined(self, scores: Mapping[Atom, Score]) -> Score:
        parts = {self.names[atom]: score.value for atom, score in scores.items()}
        for atom, score in scores.items():  # what a scorer tells beside its number: shares of visible and hidden tests, say
            parts |= {name: value for name, value in score.parts.items() if name != self.names[atom] and score.status.usable}
        for atom, score in scores.items():
            if not score.status.usable:
                reason = next(iter(score.parts), score.status.value)
                return Score(math.nan, {_named(reason, self.names[atom]): math.nan} | parts, score.status)
        try:
            total = evaluate(self.tree, {atom: Amount(score.value, score.spread) for atom, score in scores.items()})
        except NotFinite as problem:
            return Score(math.nan, {str(problem): math.nan} | parts, Status.NON_FINITE)
        status = next((s.status for s in scores.values() if s.status != Status.OK), Status.OK)
        return Score(total.value, parts, status, total.spread)


def _named(reason: str, name: str) -> str:
    return reason if name in reason else f"{name}: {reason}"


def check_dense(tree: Node, dense: set[Atom]) -> None:
    """Raises ConfigError when the expression does to these atoms' scores what cannot be done to dense ones."""
    try:
        evaluate(tree, {atom: Amount(1.0, (1.0,)) if atom in dense else Amount(1.0) for atom in atoms(tree)})
    except RewardError as error:
        raise ConfigError(str(error)) from None
    except NotFinite:
        pass  # of the numbers made up here; the real ones are looked at as they come


def evaluate(node: Node, amounts: Mapping[Atom, Amount]) -> Amount:
    """The expression's value. Raises NotFinite, or RewardError for a non-linear operation on a dense score."""
    if isinstance(node, Number):
        return Amount(node.value)
    if isinstance(node, Atom):
        return amounts[node]
    if isinstance(node, Name):
        raise ConfigError(f"{node.name!r} in a reward was never resolved to a folder")
    found = [evaluate(part, amounts) for part in node.parts]
    try:
        out = _operation(node, found) if isinstance(node, Operation) else _combination(node, found)
    except ZeroDivisionError:
        raise NotFinite(f"{write(node)}: division by zero") from None
    except OverflowError:
        raise NotFinite(f"{write(node)}: overflow") from None
    if not (math.isfinite(out.value) and all(map(math.isfinite, out.spread))):
        raise NotFinite(f"{write(node)}: overflow")
    return out


def _operation(node: Operation, found: list[Amount]) -> Amount:
    if len(found) == 1:
        return _each(found[0], lambda v: -v)
    left, right = found
    if node.sign == "+":
        return _sum(left, right)
    if node.sign == "-":
        return _sum(left, _each(right, lambda v: -v))
    if left.spread and right.spread:
        raise _not_linear(node, "multiplies or divides two dense scores")
    if node.sign == "*":
        dense, scale, other = (left, right, node.parts[1]) if left.spread else (right, left, node.parts[0])
        if dense.spread and not _constant(other):
            raise _not_linear(node, f"multiplies a dense score by {write(other)}")
        return _each(dense, lambda v: v * scale.value) if dense.spread else Amount(left.value * right.value)
    if right.spread or (left.spread and not _constant(node.parts[1])):
        raise _not_linear(node, "divides with a dense score by something that is no constant")
    return _each(left, lambda v: v / right.value)


def _combination(node: Combination, found: list[Amount]) -> Amount:
    values = [a.value for a in found]
    if node.kind == "mean":
        total = found[0]
        for one in found[1:]:
            total = _sum(total, one)
        return _each(total, lambda v: v / len(found))
    if any(a.spread for a in found):
        raise _not_linear(node, f"takes the {node.kind} of a dense score" if node.kind != "clip" else "clips a dense score")
    if node.kind == "minimum":
        return Amount(min(values))
    if node.kind == "maximum":
        return Amount(max(values))
    if node.kind == "clip":
        return Amount(min(max(values[0], node.bounds[0]), node.bounds[1]))
    centre = math.fsum(values) / len(values)
    return Amount(math.sqrt(math.fsum((v - centre) ** 2 for v in values) / len(values)))


def _each(x: Amount, change: Callable[[float], float]) -> Amount:
    return Amount(change(x.value), tuple(map(change, x.spread)))


def _sum(left: Amount, right: Amount) -> Amount:
    if left.spread and right.spread:
        if len(left.spread) != len(right.spread):
            raise RewardError(f"two dense scores of one completion have {len(left.spread)} and {len(right.spread)} tokens; each needs one number a token")
        return Amount(left.value + right.value, tuple(a + b for a, b in zip(left.spread, right.spread, strict=True)))
    dense, flat = (left, right) if left.spread else (right, left)
    return Amount(left.value + right.value, (*dense.spread[:-1], dense.spread[-1] + flat.value) if dense.spread else ())


def _constant(node: Node) -> bool:
    return not any(isinstance(n, Atom | Name) for n in walk(node))


def _not_linear(node: Node, what: str) -> RewardError:
    return RewardError(f"reward: {write(node)} {what}, which has no meaning token by token; use scores.at: last (one number a completion), or only +, -, mean and constant factors")
