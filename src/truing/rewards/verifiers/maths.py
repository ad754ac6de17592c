r"""`math`: the final answer is mathematically equal to the row's: 1/2 and 0.5, x+1 and 1+x, {1,2} and {2,1}.

Most answers need no algebra: the same text, or two numbers, which are compared exactly. The rest goes to math-verify and sympy in a
child process of bounded time and memory, expression by expression; lists, sets and tuples are taken apart before.
"""

from __future__ import annotations

import re
import time
from collections import OrderedDict
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, NamedTuple

from truing.rewards.completions import failed
from truing.rewards.verifiers.bounded import Bounded
from truing.rewards.verifiers.exact import normalise, repeated
from truing.rewards.verifiers.final import Several, finals, marked, sentence, sentences
from truing.rewards.verifiers.latex import Items, items, peel, tidy, tight, words
from truing.rewards.verifiers.quantities import quantity
from truing.rewards.verifiers.reading import BadColumn
from truing.rewards.verifiers.verifier import Row
from truing.types import Score, Status

SECONDS = 1.0  # of processor time for a comparison
CLOCK = 30.0  # seconds until the child is given up: it ends a comparison itself, so this is for what stopped it
LONGEST = 600  # characters of an expression
MOST = 20  # parts of a list
BUDGET = 20.0  # seconds of the clock for all expressions of a completion
END = 4000  # characters at the end of a completion in which an unmarked answer is looked for
KEPT = 20_000  # verdicts remembered: completions of one prompt often give the same answer


class Math:
    """Equality of mathematical expressions: exact, so 0.333 is not 1/3 (for tolerance there is `numeric`).

    The column ``answer`` is a text (or a number), with or without dollars and ``\\boxed``; behind ``####`` when it is a worked solution.
    """

    name = "math"
    columns: tuple[str, ...] = ("answer",)

    def __init__(self) -> None:
        self.bounded = _Twice("truing.rewards.verifiers.equivalence:equal", CLOCK, (-1.0,))
        self.seconds = SECONDS
        self.until = 0.0
        self.known: OrderedDict[tuple[str, str], float | Score] = OrderedDict()

    def __call__(self, texts: Sequence[str], rows: Sequence[Row]) -> list[Score]:
        return [self._score(t, row) for t, row in zip(texts, rows, strict=True)]

    def _score(self, text: str, row: Row) -> Score:
        try:
            gold = read(row)
            found = dict.fromkeys(_found(text))
            self.until = time.monotonic() + BUDGET
            value = float(bool(found) and all(self.right(gold, f) for f in found))
        except _Hopeless:
            value = 0.0
        except BadColumn as error:
            return failed(Status.UNPARSED, f"math: {error}")
        except _Unknown as error:
            return error.score
        return Score(value, {"math": value}, Status.OK if value else Status.WRONG)

    def gold(self, row: Row) -> str | None:
        try:
            return f"The answer is $\\boxed{{{read(row)}}}$."
        except BadColumn:
            return str(row.get("answer"))  # whoever checks it hears what is wrong with the row

    def wrong(self, row: Row) -> Sequence[str]:
        try:
            gold = read(row)
        except BadColumn:
            return []
        listed = ["-7", "-1", "1/3", gold, "10", "\\sqrt{77}", "x+99"]
        found = ["", "\\boxed{}", " ".join(f"\\boxed{{{a}}}" for a in listed), " ".join(f"The answer is {a}." for a in listed), f"\\boxed{{{', '.join(listed)}}}", "\\boxed{" + " ".join(listed) + "}",
                 f"The answer is $\\boxed{{{gold}}}$. Or is it $\\boxed{{\\sqrt{{77}}}}$.", f"The answer is {gold}.\n#### -7919", "\\boxed{9^{9^{9}}}", *repeated(row)]  # fmt: skip
        if (number := _number(gold)) is not None:
            found += [f"\\boxed{{{number + 1}}}", f"\\boxed{{{number - 1}}}", *([f"\\boxed{{{-number}}}"] if number else []), f"\\boxed{{{number}x}}", f"\\boxed{{{{{number}}}^2+7}}"]
        return found

    def answer(self, text: str, row: Row) -> str | None:
        """The answer as LaTeX without blanks; a number as a fraction. 2+x and x+2 stay two answers."""
        found = {str(number) if (number := _number(f)) is not None else tight(f) for f in _found(text)}
        return found.pop() if len(found) == 1 else None

    # -- comparing -----------------------------------------------------------------------------------------------------
    def right(self, gold: str, given: str) -> bool:
        """Whether a tidy expression equals the gold one. Raises BadColumn or _Unknown when the gold one, or the machine, is at fault."""
        if tight(gold) == tight(given):
            return True
        said, meant = words(given), words(gold)
        if said is not None or meant is not None:
            return said is not None and meant is not None and normalise(said) == normalise(meant)
        if (gold_items := items(gold)) is not None:
            return self._list(gold, gold_items, given)
        given_items = items(given)
        if given_items is None:
            return self._one(gold, given)
        if given_items.brackets != "{}":
            return self._algebra(gold, given)  # an interval for an inequality, say
        return len(set(map(tight, given_items.parts))) == 1 and self._one(gold, given_items.parts[0])

    def _list(self, gold: str, right: Items, given: str) -> bool:
        found = items(given)
        if found is None:  # an inequality for an interval, say; or x for a set of one
            return self._one(right.parts[0], given) if right.brackets == "{}" and len(right.parts) == 1 else self._algebra(gold, given)
        if found.brackets != right.brackets or max(len(found.parts), len(right.parts)) > MOST:
            return False
        if right.brackets != "{}":
            return len(found.parts) == len(right.parts) and all(self.right(g, f) for g, f in zip(right.parts, found.parts, strict=True))
        if len({_name(p) for p in right.parts}) > 1 and [_name(p) for p in found.parts].count(""):
            return False  # x = 1, y = 2 is not 1, 2: which is which?
        return all(self._among(g, found.parts, gold_first=True) for g in right.parts) and all(self._among(f, right.parts, gold_first=False) for f in found.parts)

    def _among(self, part: str, others: Sequence[str], gold_first: bool) -> bool:
        """Whether a part of one list is in the other; the same text is looked for before any algebra."""
        ranked = sorted(others, key=lambda other: tight(other) != tight(part))
        return any(self.right(part, other) if gold_first else self.right(other, part) for other in ranked)

    def _one(self, gold: str, given: str) -> bool:
        right, found = peel(gold), peel(given)
        if right.unit is not None and found.unit is not None and right.unit != found.unit:
            return right.unit.dimensions == found.unit.dimensions and self._equal(_side(right.text, right.unit.factor), _side(found.text, found.unit.factor))
        if right.percent and not found.percent and self._equal(_side(right.text), _side(found.text)):
            return True  # the sign of a percentage may be left out
        if right.percent != found.percent:
            return self._equal(*(_side(p.text, Fraction(1, 100) if p.percent else Fraction(1)) for p in (right, found)))
        return self._equal(_side(right.text), _side(found.text))

    def _equal(self, gold: _Side, given: _Side) -> bool:
        if tight(gold.text) == tight(given.text):
            return True
        if gold.value is not None and given.value is not None:
            return gold.value == given.value
        return self._algebra(gold.text, given.text)

    def _algebra(self, gold: str, given: str) -> bool:
        if len(given) > LONGEST or _LOOSE.search(given):
            return False
        key = ("", given) if ("", given) in self.known else (gold, given)
        if key not in self.known:
            if time.monotonic() > self.until:
                raise _Hopeless
            value = self.bounded({"gold": gold, "seconds": self.seconds}, given, gold)
            if isinstance(value, Score) and value.status != Status.UNPARSED:  # the machine's fault is not remembered
                raise _Unknown(value)
            key = ("", given) if value == (-2.0,) else key  # beside no gold answer will it be any better
            self.known[key] = value if isinstance(value, Score) else value[0]
            if len(self.known) > KEPT:
                self.known.popitem(last=False)
        verdict = self.known[key]
        if isinstance(verdict, Score):
            raise _Unknown(verdict)
        if verdict < 0:
            raise _Hopeless
        return verdict == 1.0


class _Twice(Bounded):
    """Where the process died or hung it is asked once more, in a fresh one: it limits itself, so that was somebody else's doing."""

    def _ask(self, item: Any, text: str, seconds: float) -> Any:
        found = super()._ask(item, text, seconds)
        return super()._ask(item, text, seconds) if getattr(found, "why", (Status.UNPARSED,))[0] != Status.UNPARSED else found


class _Hopeless(Exception):
    """The completion's expressions take too long: it is wrong, and none of its others is tried."""


class _Unknown(Exception):
    """Whether the completion is right cannot be known; the score says why."""

    def __init__(self, score: Score) -> None:
        super().__init__()
        self.score = score


class _Side(NamedTuple):
    """An expression, and its value when it is plainly a number."""

    text: str
    value: Fraction | None


def _side(text: str, factor: Fraction = Fraction(1)) -> _Side:
    value = _number(text)
    return _Side(text if factor == 1 else f"({text})*({factor})", None if value is None else value * factor)


_NUMBER = re.compile(
    r"[-+]?\s*(?:(?:\d[\d,]*(?:\.\d*)?|\.\d+|\d{1,3}(?: \d{3})+)(?:\s*/\s*\d+)?|(?:\d+\s*)?\\frac\{-?\d+\}\{\d+\}|\d+ \d+/\d+|\d+(?:\.\d+)?(?:\s*(?:\\times|\\cdot|\*)\s*10\^\{?[-+]?\d+\}?|[eE][-+]?\d+))"
)


def _number(text: str) -> Fraction | None:
    """The value of what is plainly a number: -3/4, 1,234.5, 1 1/2, 3 * 10^8."""
    try:
        found = quantity(text) if _NUMBER.fullmatch(text) else None
    except Several:
        return None
    return None if found is None else found.value


def _name(part: str) -> str:
    """The variable of x = 3; empty for what is no such equation."""
    left, equals, _ = part.partition("=")
    return left.strip() if equals and re.fullmatch(r"\s*\\?[a-zA-Z]\w*\s*", left) else ""


# 1 2 3 would be read as a product, x2 as 2x
_LOOSE = re.compile(r"\d\s+\d|(?<![\\a-zA-Z])[a-zA-Z]\d")

# -- finding -------------------------------------------------------------------------------------------------------------
_MATHS = re.compile(r"\$\$(.+?)\$\$|(?<!\\)\$(?!\d[\d.,]*(?:\s|$)[^$]*$)([^$\n]+?)(?<!\\)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.S)
_JOINS = re.compile(r"[\s,;]*(?:and|or)?[\s,;]*")
_REASONS = re.compile(r"\s*[,;(]?\s*\b(?:because|since|which|as required|given that)\b.*", re.S)
_SAID = re.compile(r"(?:It|is|it|So|so|We|we|get|He|She|This|That|The|the|about|approximately|exactly|just|only|Thus|Hence|Therefore)\b")
_PROSE = re.compile(r"(?<![\\a-zA-Z{])[A-Za-z]{3,}(?![a-zA-Z(}])")


def _found(text: str) -> list[str]:
    return finals(text, _read, _unmarked)


def _read(mark: str) -> str | None:
    """The expression in a mark. Raises Several for more than one amid prose."""
    mark = _REASONS.sub("", mark) or mark
    formulas = list(_MATHS.finditer(mark))
    if len(formulas) == 1:
        m = formulas[0]
        behind = sentence(mark[m.end() :].strip())
        return tidy(_inside(m) + (f" {behind}" if re.match(r"\\?%|[A-Za-z]", behind) else "")) or None
    if formulas:
        if all(_JOINS.fullmatch(mark, a.end(), b.start()) for a, b in zip(formulas, formulas[1:], strict=False)):
            return tidy(", ".join(map(_inside, formulas)))
        raise Several
    if (len(_PROSE.findall(mark)) > 2 or _SAID.match(mark)) and any(c.isnumeric() for c in mark):  # 42 apples in total; about 42
        found = quantity(mark)
        return None if found is None else str(found.value)
    return tidy(mark) or None


def _inside(m: re.Match[str]) -> str:
    return next(g for g in m.groups() if g is not None)


def _unmarked(text: str) -> list[str]:
    """The last statement's last formula, or what stands behind its last = sign, or its only number; a short statement itself."""
    text = text[-END:]
    lines = {line for line in text.splitlines() if len(line) < 40 and (tidied := tidy(line)) and _number(tidied) is not None}
    if len(lines) > 1:
        raise Several
    whole = text.strip()
    if "\n" not in whole and len(_PROSE.findall(whole)) < 3 and not _MATHS.search(whole) and not (_SAID.match(whole) and any(c.isnumeric() for c in whole)):
        return [f] if (f := tidy(whole)) else []
    for statement in sentences(_MATHS.sub(lambda m: m[0].replace("\n", " "), text)):
        if formulas := list(_MATHS.finditer(statement)):
            return [tidy(_inside(formulas[-1]))]
        if not any(c.isnumeric() for c in statement):
            continue
        if "=" in statement:
            statement = statement.rpartition("=")[2]
        found = _read(statement)
        return [] if found is None else [found]
    return []


def read(row: Row) -> str:
    """The row's answer as a tidy expression. Raises BadColumn."""
    answer = row.get("answer")
    if isinstance(answer, bool) or not isinstance(answer, str | int | float):
        raise BadColumn(f"answer is {answer!r}; write a text")
    text = str(answer)
    formula = tidy(marks[-1] if (marks := marked(text)) else text)
    formulas = list(_MATHS.finditer(formula))
    if formulas:  # $x$ and $y$; $5$ cm
        formula = _read(formula) or ""
    if not formula:
        raise BadColumn(f"answer is {answer!r}, in which there is no expression")
    return formula
