"""What a reward expression is made of, and how it is written down. No torch: the pipeline and recipes use it.

A tree of five kinds of node: `Number`, `Name` (an earlier stage or a folder), `Atom` (something that scores), `Operation`
(+ - * / and unary minus) and `Combination` (minimum, maximum, mean, std, clip). `write` is the inverse of `expression.parse`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import urlsplit

from truing.errors import ConfigError

FUNCTION = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*|<local>:\w+")
Value = str | float | int | None


@dataclass(frozen=True, slots=True)
class Number:
    value: float


@dataclass(frozen=True, slots=True)
class Name:
    name: str


@dataclass(frozen=True, slots=True)
class Atom:
    """``excess_tokens(150)`` is ``Atom("excess_tokens", (150,))``; every argument is filled in."""

    kind: str
    arguments: tuple[Value, ...] = ()


@dataclass(frozen=True, slots=True)
class Operation:
    """``sign`` is one of + - * /; unary minus has one part."""

    sign: str
    parts: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Combination:
    """minimum, maximum, mean and std of the parts; clip of one part to ``bounds``."""

    kind: str
    parts: tuple[Node, ...]
    bounds: tuple[float, ...] = ()


Node = Number | Name | Atom | Operation | Combination


# -- the words -----------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Parameter:
    """An argument: a text, a number, or a whole number of at least ``least``. ``default`` is ... when it must be given."""

    name: str
    kind: Literal["text", "number", "whole"]
    default: Any = ...
    least: int = 0


ATOMS: dict[str, tuple[Parameter, ...]] = {
    "learned": (Parameter("folder", "text"),),
    "function": (Parameter("name", "text"),),
    "http": (Parameter("url", "text"), Parameter("timeout", "number", None)),
    "verified": (Parameter("by", "text", None),),
    "environment": (),
    "tokens": (),
    "excess_tokens": (Parameter("n", "whole"),),
    "cut_off": (),
    "soft_overlong": (Parameter("max_tokens", "whole", ..., 1), Parameter("margin", "whole", ..., 1)),
    "repetition": (Parameter("n", "whole", 2, 1),),
}
SHAPING = ("tokens", "excess_tokens", "cut_off", "soft_overlong", "repetition")
COMBINATIONS = {"minimum": 1, "maximum": 1, "mean": 1, "std": 2, "clip": 1}  # kind -> fewest parts
WORDS = (*ATOMS, *COMBINATIONS)


def atom(kind: str, given: Sequence[Any] = (), named: dict[str, Any] | None = None) -> Atom:
    """An atom of checked arguments. Raises ConfigError that names the argument, its value and the remedy."""
    parameters, named = ATOMS[kind], dict(named or {})
    usage = f"{kind}({', '.join(p.name if p.default is ... else f'{p.name}={p.default}' for p in parameters)})"
    if len(given) > len(parameters):
        raise ConfigError(f"{kind} takes {len(parameters)} arguments and was given {len(given)}; write {usage}")
    values: list[Value] = []
    for i, p in enumerate(parameters):
        if i < len(given) and p.name in named:
            raise ConfigError(f"{kind}: {p.name} is given twice; write {usage}")
        value = given[i] if i < len(given) else named.pop(p.name, p.default)
        if value is ...:
            raise ConfigError(f"{kind}: {p.name} is missing; write {usage}")
        values.append(value if value is p.default else _checked(kind, p, value))
    if named:
        raise ConfigError(f"{kind} has no argument {next(iter(named))!r}; write {usage}")
    made = Atom(kind, tuple(values))
    _check(made)
    return made


def _checked(kind: str, p: Parameter, value: Any) -> Value:
    if p.kind == "text":
        if not isinstance(value, str) or not value.strip():
            raise ConfigError(f"{kind}: {p.name}={value!r} must be a text in quotes")
        return str(value)
    number_ = number(value, f"{kind}: {p.name}")
    if p.kind == "number":
        if number_ <= 0:
            raise ConfigError(f"{kind}: {p.name}={value!r} must be above 0")
        return number_
    if number_ != int(number_) or number_ < p.least:
        raise ConfigError(f"{kind}: {p.name}={value!r} must be a whole number, {p.least} or more")
    return int(number_)


def number(value: Any, where: str = "a constant") -> float:
    """A finite float. Raises ConfigError for anything else, True and False included."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigError(f"{where}: {value!r} is not a number")
    try:
        found = float(value)
    except OverflowError:
        found = math.inf
    if not math.isfinite(found):
        raise ConfigError(f"{where}: {value if isinstance(value, float) else 'an integer of hundreds of digits'} is not a finite number")
    return found


def _check(made: Atom) -> None:
    if made.kind == "soft_overlong":
        longest, margin = made.arguments
        if margin > longest:  # type: ignore[operator]
            raise ConfigError(f"soft_overlong: margin={margin} exceeds max_tokens={longest}; the penalty begins at max_tokens - margin")
    if made.kind == "function" and not FUNCTION.fullmatch(str(made.arguments[0])):
        raise ConfigError(f"function: {made.arguments[0]!r} does not name one; write package.module:function")
    if made.kind == "http":
        try:
            url = urlsplit(str(made.arguments[0]))
            fine = url.scheme in ("http", "https") and bool(url.hostname) and (url.port is None or url.port > 0)
        except ValueError:
            url, fine = urlsplit(""), False
        if not fine:
            raise ConfigError(f"http: {made.arguments[0]!r} is not an address; write http://host:port/path or https://...")
        if url.username or url.password:
            raise ConfigError(f"http: the address of {url.hostname} carries a user or password, which would be written into the run folder; set TRUING_REWARD_TOKEN instead")


def combination(kind: str, parts: Sequence[Node], bounds: Sequence[Any] = ()) -> Combination:
    """Raises ConfigError for too few parts, or bounds of clip that are not two numbers in order."""
    if len(parts) < COMBINATIONS[kind]:
        raise ConfigError(f"{kind} of {len(parts)} parts says nothing; give it {COMBINATIONS[kind]} or more")
    if kind == "clip":
        low, high = (number(b, f"clip: {name}") for b, name in zip(bounds, ("low", "high"), strict=True))
        if low >= high:
            raise ConfigError(f"clip: low={low:g} is not below high={high:g}")
        return Combination(kind, tuple(parts), (low, high))
    return Combination(kind, tuple(parts))


def negative(x: Node) -> Node:
    """Minus x; of a number it is the number."""
    return Number(-x.value) if isinstance(x, Number) else Operation("-", (x,))


# -- writing and walking -------------------------------------------------------------------------------------------------
def write(node: Node) -> str:
    """The expression's text; `expression.parse` of it gives the same tree."""
    if isinstance(node, Number):
        return _digits(node.value)
    if isinstance(node, Name):
        return node.name
    if isinstance(node, Atom):
        given = list(node.arguments)
        while given and given[-1] is None:
            given.pop()
        return f"{node.kind}({', '.join(_quoted(v) if isinstance(v, str) else _digits(v or 0.0) for v in given)})"
    if isinstance(node, Combination):
        return f"{node.kind}({', '.join([*map(write, node.parts), *map(_digits, node.bounds)])})"
    if len(node.parts) == 1:
        return "-" + _within(node.parts[0], 3)
    left, right = node.parts
    rank = _rank(node)
    return f"{_within(left, rank)} {node.sign} {_within(right, rank + 1)}"


def _rank(node: Node) -> int:
    if not isinstance(node, Operation):
        return 4
    return 3 if len(node.parts) == 1 else 2 if node.sign in "*/" else 1


def _within(node: Node, rank: int) -> str:
    return f"({write(node)})" if _rank(node) < rank else write(node)


def _digits(value: float) -> str:
    return str(int(value)) if value == int(value) and abs(value) < 1e15 and not (value == 0 and math.copysign(1, value) < 0) else repr(float(value))


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\r", "\\r").replace("\0", "\\x00") + '"'


def walk(node: Node) -> Iterator[Node]:
    """The node and everything below it, from left to right."""
    yield node
    if isinstance(node, Operation | Combination):
        for part in node.parts:
            yield from walk(part)


def atoms(node: Node) -> list[Atom]:
    """The distinct atoms, in the order in which they are written."""
    return list(dict.fromkeys(n for n in walk(node) if isinstance(n, Atom)))


# -- names of the parts --------------------------------------------------------------------------------------------------
def labels(found: Sequence[Atom]) -> dict[Atom, str]:
    """A short name for each atom, by which its part of the score is logged; longer where two would be the same.

    ``learned("runs/film/reward/model")`` is "reward", ``learned("org/judge")`` is "judge", ``function("package.module:clear")``
    is "clear", ``http("http://host:8000/score")`` is "host:8000/score"; the others are written out: "excess_tokens(150)".
    """
    options = {a: [*_short(a), write(a)] for a in found}
    depth = dict.fromkeys(found, 0)
    while True:
        named = {a: options[a][depth[a]] for a in found}
        clash = [a for a in found if list(named.values()).count(named[a]) > 1 and depth[a] < len(options[a]) - 1]
        if not clash:
            return named
        for a in clash:
            depth[a] += 1


def _short(a: Atom) -> list[str]:
    if a.kind == "learned":
        steps = [s for s in re.split(r"[/\\]", str(a.arguments[0])) if s not in ("", ".", "..")]
        steps = steps[:-1] if len(steps) > 1 and steps[-1] == "model" else steps
        return ["/".join(steps[-n:]) for n in range(1, len(steps) + 1)]
    if a.kind == "function":
        whole = str(a.arguments[0])
        return [whole.rpartition(":")[2], whole]
    if a.kind == "verified":
        return ["verified" if a.arguments[0] is None else str(a.arguments[0])]
    if a.kind == "environment":
        return ["environment"]
    if a.kind == "http":
        url = urlsplit(str(a.arguments[0]))
        return [url.netloc + url.path.rstrip("/")]
    return []
