r"""Numbers with units as people and models write them: 1,234.5, -3/4, 1 1/2, 50%, $18, 3 × 10^8, 60 km/h, 1 h 30 min, \frac{3}{4}\text{ cm}.

Values are exact: 0.1 is 1/10. What is no number (2x, 5!, 10^9^9, 1/0) is not read.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

from truing.rewards.verifiers.final import Several

DIGITS = 300  # of a number, and the largest power of ten

# -- units ---------------------------------------------------------------------------------------------------------------
_TABLE: dict[str, tuple[str, dict[str, str]]] = {  # dimension -> its spellings, a factor each
    "m": ("length", {"m meter meters metre metres": "1", "mm millimeter millimeters millimetre millimetres": "1/1000", "cm centimeter centimeters centimetre centimetres": "1/100",
                     "dm": "1/10", "km kilometer kilometers kilometre kilometres": "1000", "in inch inches": "0.0254", "ft foot feet": "0.3048", "yd yard yards": "0.9144", "mi mile miles": "1609.344"}),
    "g": ("mass", {"g gram grams": "1", "mg milligram milligrams": "1/1000", "kg kilogram kilograms kilo kilos": "1000", "tonne tonnes": "1000000",
                   "lb lbs pound pounds": "453.59237", "oz ounce ounces": "28.349523125"}),
    "s": ("time", {"s sec secs second seconds": "1", "ms millisecond milliseconds": "1/1000", "min mins minute minutes": "60", "h hr hrs hour hours": "3600", "day days": "86400", "week weeks": "604800"}),
    "l": ("volume", {"l L liter liters litre litres": "1/1000", "ml mL milliliter milliliters millilitre millilitres": "1/1000000"}),
    "%": ("percent", {"% percent percentage pct": "1"}),
    "°": ("angle", {"° deg degree degrees": "1"}),
    "rad": ("radian", {"rad radian radians": "1"}),
    "°C": ("celsius", {"°C celsius": "1"}),
    "°F": ("fahrenheit", {"°F fahrenheit": "1"}),
    "$": ("dollar", {"$ USD usd dollar dollars": "1", "¢ cent cents": "1/100"}),
    "€": ("euro", {"€ EUR eur euro euros": "1"}),
    "£": ("pound sterling", {"£ GBP gbp": "1"}),
    "¥": ("yen", {"¥ JPY jpy yen": "1"}),
}  # fmt: skip


class Unit(NamedTuple):
    """``Unit(Fraction(1000, 3600), (("length", 1), ("time", -1)))`` is km/h."""

    factor: Fraction
    dimensions: tuple[tuple[str, int], ...]


_NAMES: dict[str, tuple[str, Fraction]] = {
    name: (dimension, Fraction(factor)) for dimension, spellings in _TABLE.values() for names, factor in spellings.items() for name in names.split()
}
_WORD = r"(?:°\s?[CF]\b|[%°$€£¥¢]|[A-Za-z]+)"
_FACTOR = re.compile(rf"\s*(square|sq\.?|cubic|cu\.?)?\s*({_WORD})(?:\s*\^\s*([23])|([²³]))?")
_PREPOSITION = re.compile(r"\s+\w")  # 72 in total
_PER = re.compile(r"\s*(?:/|\bper\b|\ban?\b)\s*")


@lru_cache(maxsize=4096)
def leading_unit(text: str) -> tuple[Unit, int] | None:
    """The unit at the beginning of a text and where it ends; None when there is none of the table.

    >>> leading_unit(" cm^2 of cloth")[1], leading_unit("apples")
    (5, None)
    """
    factor, dimensions, at, sign = Fraction(1), dict[str, int](), 0, 1
    while (m := _FACTOR.match(text, at)) is not None:
        named = _NAMES.get(m[2].replace(" ", "")) or _NAMES.get(m[2].lower())
        if named is None or (m[2] == "in" and _PREPOSITION.match(text, m.end())):
            break
        power = sign * (int(m[3]) if m[3] else {"²": 2, "³": 3}[m[4]] if m[4] else {"s": 2, "c": 3}[m[1][0]] if m[1] else 1)
        name, one = ("length", Fraction(1, 10)) if named[0] == "volume" else named  # a litre is a cubic decimetre
        power, one = (3 * power, one) if named[0] == "volume" else (power, one)
        factor *= (named[1] ** (power // 3)) if named[0] == "volume" else one**power
        dimensions[name] = dimensions.get(name, 0) + power
        at = m.end()
        if sign < 0 or (per := _PER.match(text, at)) is None:
            return Unit(factor, tuple(sorted(dimensions.items()))), at
        after, at, sign = at, per.end(), -1
    return (Unit(factor, tuple(sorted(dimensions.items()))), after) if sign < 0 else None


def unit_of(text: str) -> Unit | None:
    """The unit that a text is, all of it.

    >>> unit_of("cubic cm") == unit_of("ml"), unit_of("km/h").factor, unit_of("apples")
    (True, Fraction(5, 18), None)
    """
    found = leading_unit(text.strip())
    return found[0] if found and found[1] == len(text.strip()) else None


# -- numbers -------------------------------------------------------------------------------------------------------------
class Quantity(NamedTuple):
    """A number, the unit of the table behind (or, of money, before) it, and whether it is written as a percentage."""

    value: Fraction
    unit: Unit | None = None


PERCENT = unit_of("%")
_SPACES = "\u00a0\u202f\u2009\u2007\u2006\u200a"
_CHARACTERS = str.maketrans({"−": "-", "–": "-", "—": "-", "﹣": "-", "－": "-", "⁄": "/", "∕": "/", "×": "*", "·": "*", "⋅": "*", "≈": "=", "≃": "=", "≅": "=", "％": "%", "º": "°",
                             "’": "'", **dict.fromkeys(_SPACES, "\u2009"), **dict(zip("０１２３４５６７８９", "0123456789", strict=True)),
                             **{c: f" {f} " for c, f in zip("½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞", "1/2 1/3 2/3 1/4 3/4 1/5 2/5 3/5 4/5 1/6 5/6 1/8 3/8 5/8 7/8".split(), strict=True)},
                             **{c: f"^{d}" for c, d in zip("⁴⁵⁶⁷⁸⁹", "456789", strict=True)}})  # fmt: skip
_LATEX: list[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]]] = [
    (re.compile(r"\\(?:left|right|displaystyle|!)|\{,\}(?=\d)|\\,(?=\d{3}(?!\d))"), ""),
    (re.compile(r"\\[dtc]?frac\s*(?:\{([^{}]*)\}|(\d))\s*(?:\{([^{}]*)\}|(\d))"), lambda m: f" {m[1] or m[2]}/{m[3] or m[4]} "),
    (re.compile(r"\\(?:text(?:bf|it|rm)?|mathrm|mathbf|mbox|operatorname)\s*\{([^{}]*)\}"), r" \1 "),
    (re.compile(r"\^\s*(?:\{\s*\\circ\s*\}|\\circ)|\\degree"), "°"),
    (re.compile(r"\\(?:times|cdot)\b"), "*"),
    (re.compile(r"\\(?:approx|simeq)\b"), "="),
    (re.compile(r"\^\s*\{\s*(-?\d+)\s*\}"), r"^\1"),
    (re.compile(r"\\([%$])"), r"\1"),
    (re.compile(r"\\[,;: ]|~"), " "),
    (re.compile(r"\\[()\[\]]|(?<![\d)])\*\*|\*\*(?![\d(])|__|(?<=[\d)])\$(?!\s*\d)|`"), " "),
]
_INT = r"(?:\d{1,3}(?:,\d{3})+(?![\d,])|\d{1,3}(?:[ '\u2009]\d{3})+(?!\d)|\d+)"
_NUMBER = re.compile(
    rf"(?<![\w.^])(?=[-+\s$€£¥]{{0,5}}\.?\d)(?P<sign>(?<!\d )(?<![\d)])[-+])?\s?(?P<money>[$€£¥])?\s?(?P<minus>-)?"
    rf"(?:(?P<mixed>{_INT})\s+(?=\d+\s?/\s?\d))?(?P<whole>{_INT})?(?P<decimals>\.\d*(?=$|\D))?"
    rf"(?:\s?/\s?(?P<below>\d+(?![\d./])))?(?:[eE](?P<e>[-+]?\d+)(?!\w)|\s?\*\s?10\s?(?:\^|\*\*)\s?(?P<ten>[-+]?\d+))?(?P<scale>\s+(?:hundred|thousand|million|billion|trillion)\b)?",
    re.I,
)  # fmt: skip
_SCALES = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
_GOES_ON = re.compile(r"\s?[\^!√π*+(\\_=]|\s?/\s?[\d(]|[A-Za-z]\w*\s?[\^(]|\s?-\s?[\dA-Za-z(]|\.\d")  # behind a number: part of something larger
_CLAUSES = re.compile(r"[;\n]|,(?!\d{3}\b)|\b(?:and|or|but|to|vs|versus)\b", re.I)
_UNEQUAL = re.compile(r"[<>≤≥≠]|\\(?:le|ge|leq|geq|lt|gt|ne|neq)(?![a-zA-Z])")
_BEHIND = re.compile(r"\s*(?!(?:at|by|for|in|of|on)\b)([^\W\d_]+)")  # 5 in total has no unit
_UNDER = re.compile(r"\s*/\s*([^\W\d_]+)")
_CALCULATED = re.compile(r"<<[^<>]*>>")  # how GSM8K notes its calculator's work
_REASONS = re.compile(r"\b(?:because|since|given that|which|i\.e\.)", re.I)
_PLAIN = re.compile(r"\$?(-?\d{1,15})\.?")
_PAIRED = re.compile(r"\$([^$\n]*[\\=^][^$\n]*|[-+]?[\d.,/]+)\$")


def tidy(text: str) -> str:
    """Plain characters in place of typographical ones and of LaTeX."""
    text = text.translate(_CHARACTERS) if not text.isascii() else text
    text = _CALCULATED.sub("", text) if "<<" in text else text
    if "\\" in text or "{" in text or "$" in text or "*" in text or "`" in text or "^" in text or "~" in text:
        text = _PAIRED.sub(r" \1 ", text)
        for pattern, by in _LATEX:
            text = pattern.sub(by, text)
    return text


def european(text: str) -> str:
    """1.234,5 and 1 234,5 as 1,234.5: for rows that say so."""
    return re.sub(r"[\d.,]*\d", lambda m: m[0].translate(str.maketrans(".,", ",.")), text)


def quantity(text: str) -> Quantity | None:
    """The one quantity that a text holds; None for none. Raises Several for different ones.

    >>> str(quantity("about $1,234.50 in total").value), str(quantity("16 - 3 - 4 = 9 eggs").value), str(quantity("-1 1/2").value)
    ('2469/2', '9', '-3/2')
    >>> quantity("2x") is None
    True
    """
    if (m := _PLAIN.fullmatch(text)) is not None:  # what most answers are
        return Quantity(Fraction(int(m[1])), _DOLLAR if text[0] == "$" else None)
    cut = _REASONS.search(text := tidy(text[:2000]))
    text = text[: cut.start()] if cut and cut.start() else text
    if (whole := _compound(text)) is not None:
        return whole
    found: dict[Quantity, None] = {}
    for clause in _CLAUSES.split(text):
        found.update(dict.fromkeys(_of_clause(clause)))
    if len(found) > 1:
        raise Several
    return next(iter(found), None)


def unknown_unit(text: str) -> str | None:
    """The word behind a text's number that is no unit of the table; None when there is none.

    >>> unknown_unit("5 parsecs"), unknown_unit("60 kmh"), unknown_unit("5 km/fortnight"), unknown_unit("5 km"), unknown_unit("5 in total")
    ('parsecs', 'kmh', 'fortnight', None, None)
    """
    cut = _REASONS.search(text := tidy(text[:2000]))
    for clause in _CLAUSES.split(text[: cut.start()] if cut and cut.start() else text):
        for q, _, end in quantities(clause)[-1:]:
            behind = _UNDER if q is not None and q.unit is not None and not clause[end - 1].isdigit() else _BEHIND if q is not None and q.unit is None else None
            if behind is not None and (m := behind.match(clause, end)) is not None:
                return m[1]
    return None


def _of_clause(clause: str) -> list[Quantity]:
    """Its quantities; of an equation those on the right. None when one is part of something larger: 5 - 10 is no number."""
    if _UNEQUAL.search(clause):  # a bound is no value
        return []
    if "=" in clause:
        left, _, right = clause.rpartition("=")
        clause = right if any(c.isdigit() for c in right) else left
    found = [q for q, _, _ in quantities(clause)]
    return [] if None in found else [q for q in found if q is not None]


def quantities(text: str) -> list[tuple[Quantity | None, int, int]]:
    """Every number in a tidy text and where it stands; None for what is no number by itself, as in 2x."""
    found: list[tuple[Quantity | None, int, int]] = []
    at = 0
    while (m := _NUMBER.search(text, at)) is not None:
        if not (m["whole"] or m["decimals"]):  # blanks or signs that lead up to one
            at = m.start() + 1
            continue
        end = m.end()
        value = _value(m)
        unit = leading_unit(text[end : end + 60])
        if unit is not None and not _GOES_ON.match(text, end + unit[1]):
            end += unit[1]
        elif _GOES_ON.match(text, end) or re.match(r"[A-Za-z]\b(?!')", text[end : end + 3]):
            value, unit = None, None
        money = _NAMES_OF_MONEY.get(m["money"] or "")
        found.append((None if value is None else Quantity(value, money or (unit[0] if unit else None)), m.start(), end))
        at = end
    return found


def _value(m: re.Match[str]) -> Fraction | None:
    whole = re.sub(r"[, '\u2009]", "", m["whole"] or "0")
    decimals = (m["decimals"] or ".")[1:]
    power = int((m["e"] or m["ten"] or "0")[:8]) + (_SCALES[m["scale"].strip().lower()] if m["scale"] else 0)
    if len(whole) + len(decimals) > DIGITS or abs(power) > DIGITS or len(m["below"] or "") > DIGITS or len(m["mixed"] or "") > DIGITS:
        return None
    value = Fraction(int(whole + decimals), 10 ** len(decimals)) if decimals else Fraction(int(whole))
    if m["below"]:
        if int(m["below"]) == 0:
            return None
        value /= int(m["below"])
    if m["mixed"]:
        value += int(re.sub(r"\D", "", m["mixed"]))
    value = value * Fraction(10) ** power if power else value
    return -value if (m["sign"] == "-") != bool(m["minus"]) else value


_NAMES_OF_MONEY = {sign: unit_of(sign) for sign in "$€£¥"}
_DOLLAR = _NAMES_OF_MONEY["$"]
_JOINS = re.compile(r"\s*,?\s*(?:and)?\s*")


def _compound(text: str) -> Quantity | None:
    """1 h 30 min, 5 ft 3 in: amounts of one kind, each of a smaller unit than the one before."""
    if len(found := quantities(text)) < 2 or "=" in text:
        return None
    total, last, end = Fraction(0), None, None
    for q, start, stop in found:
        if q is None or q.unit is None or q.unit == PERCENT or q.value < 0 or (end is not None and not _JOINS.fullmatch(text, end, start)):
            return None
        if last is not None and (q.unit.dimensions != last.dimensions or q.unit.factor >= last.factor or q.value * q.unit.factor >= last.factor):
            return None
        total, last, end = total + q.value * q.unit.factor, q.unit, stop
    first = found[0][0].unit  # type: ignore[union-attr]
    return Quantity(total / first.factor, first)  # type: ignore[union-attr]


def same(a: Quantity, b: Quantity) -> bool:
    """Whether two quantities of known units are equal, unit conversions included."""
    if a.unit is None or b.unit is None:
        return a.unit is b.unit and a.value == b.value
    return a.unit.dimensions == b.unit.dimensions and a.value * a.unit.factor == b.value * b.unit.factor


def spelt(unit: Unit) -> str:
    """A unit as the table spells it, powers and quotients included.

    >>> spelt(unit_of("miles per hour")), spelt(unit_of("square cm")), spelt(unit_of("€"))
    ('mi / h', 'cm^2', '€')
    """
    for name in _NAMES:
        for power in ("", "^2", "^3"):
            if unit_of(name + power) == unit:
                return name + power
    return next((f"{a} / {b}" for a in _NAMES for b in _NAMES if unit_of(f"{a} / {b}") == unit), "")
