"""Arithmetic that people write, worked out exactly and within bounds; nothing is ever executed.

An expression is read into a tree of which only numbers, ``+ - * / // % **``, signs and parentheses are let through. Numbers are
fractions (0.1 + 0.2 is 0.3), none larger than 1e100, so that ``9**9**9`` is refused before anything is computed.
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Callable
from fractions import Fraction

LONGEST = 200  # characters of an expression
LARGEST = 100  # decimal digits of a numerator or denominator

_ALLOWED = "only numbers, + - * / // % **, signs and parentheses can be calculated"
_SIGNS = str.maketrans({"×": "*", "·": "*", "÷": "/", "^": "**", "−": "-", "–": "-"})
_OPERATORS: dict[type[ast.operator], Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: lambda a, b: a + b,
    ast.Sub: lambda a, b: a - b,
    ast.Mult: lambda a, b: a * b,
    ast.Div: lambda a, b: a / b,
    ast.FloorDiv: lambda a, b: Fraction(a // b),
    ast.Mod: lambda a, b: a % b,
}


class Refused(ValueError):
    """The expression is not arithmetic, or too large; the message tells the writer why."""


def calculate(text: str) -> Fraction:
    """The value of an arithmetic expression.

    >>> calculate("12*7"), calculate("(1 + 2) / 4"), calculate("1,200 - 0.1")
    (Fraction(84, 1), Fraction(3, 4), Fraction(11999, 10))

    Raises Refused for anything else than bounded arithmetic on real numbers.
    """
    if len(text) > LONGEST:
        raise Refused(f"longer than {LONGEST} characters")
    plain = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text.translate(_SIGNS)).strip().removesuffix("=").strip()
    if not plain:
        raise Refused("empty")
    if not re.fullmatch(r"[\d.eE+\-*/%()\s]*", plain, re.ASCII):
        raise Refused(_ALLOWED)
    try:
        tree = ast.parse(plain, mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        raise Refused("not an expression") from None
    try:
        return _value(tree)
    except ZeroDivisionError:
        raise Refused("division by zero") from None
    except RecursionError:
        raise Refused("too deeply nested") from None


def written(value: Fraction) -> str:
    """A fraction as people write it: whole, with all its decimals when they end within ten, else to ten significant digits.

    >>> written(Fraction(84)), written(Fraction(-11999, 10)), written(Fraction(2, 3)), written(Fraction(10**20, 3))
    ('84', '-1199.9', '0.6666666667', '3.333333333e+19')
    """
    if value.denominator == 1:
        return str(value.numerator)
    if 10**10 % value.denominator == 0:
        digits = str(abs(value) * 10**10).rjust(11, "0")
        return ("-" if value < 0 else "") + f"{digits[:-10]}.{digits[-10:]}".rstrip("0")
    return f"{float(value):.10g}"


def _value(node: ast.expr) -> Fraction:
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float):  # True and False have letters, which are refused before
        return _bounded(_fraction(node.value))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
        value = _value(node.operand)
        return -value if isinstance(node.op, ast.USub) else value
    if isinstance(node, ast.BinOp):
        left, right = _value(node.left), _value(node.right)
        if isinstance(node.op, ast.Pow):
            return _power(left, right)
        if type(node.op) in _OPERATORS:
            return _bounded(_OPERATORS[type(node.op)](left, right))
    raise Refused(_ALLOWED)


def _power(base: Fraction, exponent: Fraction) -> Fraction:
    if exponent.denominator != 1:
        if base < 0:
            raise Refused("a root of a negative number")
        return _bounded(_fraction(_float_power(base, exponent)))
    power, size = int(exponent), max(abs(base.numerator), base.denominator)
    if base == 0 and power < 0:
        raise ZeroDivisionError
    if size > 1 and abs(power) * math.log10(size) > LARGEST:  # known before it is computed
        raise Refused(f"larger than {LARGEST} digits")
    if size <= 1:  # -1, 0 and 1: only the exponent's parity matters, however large it is
        power = power % 2 if base else min(power, 1)
    return base**power


def _float_power(base: Fraction, exponent: Fraction) -> float:
    try:
        return float(base) ** float(exponent)
    except OverflowError:
        raise Refused(f"larger than {LARGEST} digits") from None


def _fraction(number: float) -> Fraction:
    if isinstance(number, float) and not math.isfinite(number):
        raise Refused(f"larger than {LARGEST} digits")
    return Fraction(number) if isinstance(number, int) else Fraction(repr(number))


def _bounded(value: Fraction) -> Fraction:
    limit = 10**LARGEST
    if abs(value.numerator) > limit or value.denominator > limit:
        raise Refused(f"larger than {LARGEST} digits")
    return value
