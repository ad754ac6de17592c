"""`numeric`: the final answer is a number, equal to the row's within its tolerance, in its unit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache
from typing import Any, NamedTuple

from truing.rewards.completions import failed
from truing.rewards.verifiers.exact import repeated
from truing.rewards.verifiers.final import Several, finals, marked, sentences
from truing.rewards.verifiers.quantities import PERCENT, Quantity, Unit, european, quantity, unit_of, unknown_unit
from truing.rewards.verifiers.reading import BadColumn, option
from truing.rewards.verifiers.verifier import Row
from truing.types import Score, Status


class Gold(NamedTuple):
    """A row, read. ``unit`` is None when the row has none; ``word`` is "1" for a pure number."""

    value: Fraction
    unit: Unit | None
    word: str
    within: Fraction
    needed: bool
    comma: bool


class Numeric:
    """A number with tolerance and units; every rule is in docs/verifiers.md.

    The column ``answer`` is a number or a text that holds one: 1,234.5, 3/4, 50%, 5 km; behind ``####`` when it is a worked solution
    (GSM8K). Options of the row: ``tolerance`` (in its unit) and ``relative`` (a share of the answer), of which the wider counts, both
    0 by default; ``unit``; ``unit_required: true``; ``decimal: ","``.
    """

    name = "numeric"
    columns: tuple[str, ...] = ("answer",)

    def __call__(self, texts: Sequence[str], rows: Sequence[Row]) -> list[Score]:
        return [self._score(t, row) for t, row in zip(texts, rows, strict=True)]

    def _score(self, text: str, row: Row) -> Score:
        try:
            gold = read(row)
        except BadColumn as error:
            return failed(Status.UNPARSED, f"numeric: {error}")
        found = _found(text, gold.comma)
        value = float(bool(found) and all(right(q, gold) for q in found))
        return Score(value, {"numeric": value}, Status.OK if value else Status.WRONG)

    def gold(self, row: Row) -> str | None:
        try:
            gold = read(row)
        except BadColumn:
            return str(row.get("answer"))  # whoever checks it hears what is wrong with the row
        return f"The answer is {_written(gold.value, gold)}."

    def wrong(self, row: Row) -> Sequence[str]:
        try:
            gold = read(row)
        except BadColumn:
            return []
        step = math.ceil(2 * gold.within) + 1
        say = lambda value: _written(value, gold)  # noqa: E731
        here, off = say(gold.value), say(gold.value + step)
        line = [say(gold.value + step * i) for i in range(-5, 6)]
        found = ["", "The answer is", ", ".join(line), "\n".join(line), "The answer is " + ", ".join(line), " ".join(f"The answer is {n}." for n in line), " ".join(f"\\boxed{{{n}}}" for n in line),
                 f"The answer is {off}.", say(gold.value - step), f"The answer is {here}. No, the answer is {off}.", f"<answer>{here}</answer> #### {off}", f"{here} or {off}", *repeated(row)]  # fmt: skip
        if abs(2 * gold.value) > gold.within:
            found.append(f"The answer is {say(-gold.value)}.")
        if gold.unit is not None:
            found.append(f"The answer is {_digits(gold.value)} {'kg' if gold.unit.dimensions != unit_of('kg').dimensions else 'km'}.")  # type: ignore[union-attr]
        return found

    def answer(self, text: str, row: Row) -> str | None:
        """The number in the row's unit, as a fraction: 0.5 km of a row in metres is 500."""
        try:
            gold = read(row)
        except BadColumn:
            return None
        found = {_in_unit(q, gold) for q in _found(text, gold.comma)}
        value = found.pop() if len(found) == 1 else None
        return None if value is None else str(value)


def right(found: Quantity, gold: Gold) -> bool:
    """Whether a number that was found is the row's.

    A missing unit is the row's own unless the row requires it. Where the row has no unit, units are not looked at, but a percentage is
    a share (50% is 0.5) beside an answer that is no whole number between -1 and 1, or of a row whose unit is "1".
    """
    value = _in_unit(found, gold)
    return value is not None and abs(value - gold.value) <= gold.within


def _in_unit(found: Quantity, gold: Gold) -> Fraction | None:
    """The number in the row's unit; None for one in a wrong unit, or without one that is required."""
    if gold.unit is None and not gold.word:
        share = found.unit == PERCENT and abs(gold.value) < 1 and gold.value.denominator != 1
        return found.value / 100 if share else found.value
    if found.unit is None:
        return None if gold.needed else found.value
    if gold.unit is None:
        return found.value / 100 if gold.word == "1" and found.unit == PERCENT else None
    return found.value * found.unit.factor / gold.unit.factor if found.unit.dimensions == gold.unit.dimensions else None


def _found(text: str, comma: bool) -> list[Quantity]:
    reading = (lambda mark: quantity(european(mark))) if comma else quantity
    return finals(text, reading, lambda whole: _unmarked(whole, reading))


def _unmarked(text: str, reading: Any) -> list[Quantity]:
    """The last statement that holds a number; and what stands alone on a line is a mark of its own, so a column of numbers is no answer."""
    found: list[Quantity] = []
    for line in text.splitlines():
        if len(line) < 40 and any(c.isnumeric() for c in line) and not any(c.isalpha() or c == "=" for c in line) and (q := reading(line)) is not None:
            found.append(q)
            if q != found[0]:
                raise Several
    for statement in sentences(text):
        if any(c.isnumeric() for c in statement):
            last = reading(statement.rpartition("=")[2]) if "=" in statement else reading(statement)
            return [] if last is None else [last]
    return []


# -- rows ----------------------------------------------------------------------------------------------------------------
def read(row: Row) -> Gold:
    """Raises BadColumn that names the column, its value and the remedy."""
    if isinstance(row.get("answer"), bool) or not isinstance(row.get("answer"), str | int | float):
        raise BadColumn(f"answer is {row.get('answer')!r}; write one number")
    return _read(*(_plain(row.get(c)) for c in ("answer", "unit", "tolerance", "relative", "unit_required", "decimal")), isinstance(row.get("answer"), str))


def _plain(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else repr(value)


@lru_cache(maxsize=16384)
def _read(answer: str | None, unit: str | None, tolerance: str | None, relative: str | None, needed: str | None, decimal: str | None, is_text: bool) -> Gold:
    comma = option({"decimal": decimal}, "decimal", (".", ","), ".") == ","
    written = comma and is_text
    text = marks[-1] if (marks := marked(answer or "")) else answer or ""
    try:
        found = quantity(european(text) if written else text)
    except Several:
        found = None
    if found is None:
        raise BadColumn(f"answer is {answer!r}; write one number")
    if needed not in (None, "True", "False", "true", "false"):
        raise BadColumn(f"unit_required is {needed}; write true or false")
    if (word := unknown_unit(european(text) if written else text)) is not None:
        raise BadColumn(f"answer is {answer!r}, and {word!r} is no unit that is known here; write the number alone where no unit matters, or a unit of docs/verifiers.md")
    named = found.unit if unit is None else unit_of(unit)
    if named is None and (unit or "").strip() not in ("", "1"):
        raise BadColumn(f"unit is {unit!r}, which is not known here; write one of docs/verifiers.md like km/h, \"1\" for a pure number, or leave it out")
    value = found.value
    if unit is not None and found.unit is not None:
        if named is None or named.dimensions != found.unit.dimensions:
            raise BadColumn(f"answer is {answer!r}, which is in another unit than {unit!r}")
        value = value * found.unit.factor / named.factor
    within = max(_share(tolerance, "tolerance"), _share(relative, "relative") * abs(value))
    return Gold(value, named, unit.strip() if unit and named is None else "", within, needed in ("True", "true"), comma)


def _share(value: str | None, column: str) -> Fraction:
    try:
        found = Fraction(value or 0)
        if found < 0:
            raise ValueError
    except (ValueError, ZeroDivisionError):
        raise BadColumn(f"{column} is {value}; write a number, 0 or more") from None
    return found


def _written(value: Fraction, gold: Gold) -> str:
    """The number as a completion may write it, in the row's unit."""
    digits = _digits(value)
    if gold.unit is None or gold.unit == PERCENT:
        return digits + ("%" if gold.unit is not None else "")
    return f"{digits} {_spelt(gold.unit)}".strip()


def _digits(value: Fraction) -> str:
    return str(value.numerator) if value.denominator == 1 else str(value)


@lru_cache(maxsize=256)
def _spelt(unit: Unit) -> str:
    from truing.rewards.verifiers.quantities import spelt

    return spelt(unit)
