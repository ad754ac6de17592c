r"""Mathematical answers as texts: LaTeX out of whatever people write, units and percent signs taken off, lists taken apart. No sympy."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from truing.rewards.verifiers.quantities import Unit, unit_of

_CHARACTERS = str.maketrans({
    "−": "-", "–": "-", "﹣": "-", "－": "-", "×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ", "÷": "/", "⁄": "/", "∕": "/", "π": r"\pi ", "∞": r"\infty ", "≤": r"\le ", "≥": r"\ge ",
    "≠": r"\ne ", "≈": r"\approx ", "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "∅": r"\emptyset ", "±": r"\pm ", "°": r"^\circ ", "º": r"^\circ ", "ℝ": r"\mathbb{R}", "θ": r"\theta ",
    "√": r"\sqrt", "′": "'", "％": r"\%", **dict.fromkeys("\u00a0\u202f\u2009\u200a", " "), **{c: f"^{{{d}}}" for c, d in zip("⁰¹²³⁴⁵⁶⁷⁸⁹", "0123456789", strict=True)},
    **{c: rf"\frac{{{f[0]}}}{{{f[1]}}}" for c, f in zip("½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞", "12 13 23 14 34 15 25 35 45 16 56 18 38 58 78".split(), strict=True)},
})  # fmt: skip
_FUNCTIONS = "sqrt|arcsin|arccos|arctan|sin|cos|tan|cot|sec|csc|log|ln|exp|pi|infinity|infty|alpha|beta|theta|lambda"
_REWRITE = [
    (re.compile(r"\\(?:left|right|displaystyle|bigl?|bigr?|Bigl?|Bigr?|!|limits)(?![a-zA-Z])|\\(?:text|mathrm|textbf|mathbf|mbox)\s*\{\s*\}"), ""),
    (re.compile(r"\{,\}(?=\d{3})|(?<=\d)\\,(?=\d{3}(?!\d))"), ""),
    (re.compile(r"\\[,;: ]|\\q?quad(?![a-zA-Z])|~"), " "),
    (re.compile(r"\\[dtc]frac(?![a-zA-Z])"), r"\\frac"),
    (re.compile(r"\\(frac|binom)\s*(\d)\s*(\d)"), r"\\\1{\2}{\3}"),
    (re.compile(r"_(\d)(?=\s+\d)"), r"_{\1}"),
    (re.compile(r"\\varnothing|\\\{\s*\\\}"), r"\\emptyset "),
    (re.compile(r"\\leq(?![a-zA-Z])|<=|=<"), r"\\le "),
    (re.compile(r"\\geq(?![a-zA-Z])|>="), r"\\ge "),
    (re.compile(r"\\neq(?![a-zA-Z])|!="), r"\\ne "),
    (re.compile(r"\+/-|\+-"), r"\\pm "),
    (re.compile(r"\*\*"), "^"),
    (re.compile(rf"(?<![\\a-zA-Z{{])({_FUNCTIONS})(?![a-zA-Z])"), r"\\\1"),
    (re.compile(r"\\infinity"), r"\\infty"),
    (re.compile(r"\\sqrt\s*(\d+|[a-z])(?![\w{\[])"), r"\\sqrt{\1}"),
    (re.compile(r"\\text\s*\{\s*(and|or)\s*\}"), r" \1 "),
    (re.compile(r"\s+"), " "),
]
_SHELLS = (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"), ("**", "**"), ("`", "`"))


def tidy(text: str) -> str:
    r"""One way of writing: LaTeX commands, no frames, no thin spaces, no full stop.

    >>> tidy("$\\dfrac12$."), tidy("sqrt(2)**(1/2)"), tidy("x ≤ 3π")
    ('\\frac{1}{2}', '\\sqrt{2}^{1/2}', 'x \\le 3\\pi')
    """
    text = text.strip().rstrip(".,;: ")
    shelled = True
    while shelled:
        shelled = False
        for left, right in _SHELLS:
            if text.startswith(left) and text.endswith(right) and len(text) > len(left) + len(right) and left not in text[len(left) : -len(right)]:
                text, shelled = text[len(left) : -len(right)].strip().rstrip(".,;: "), True
    text = text if text.isascii() else text.translate(_CHARACTERS)
    for pattern, by in _REWRITE:
        text = pattern.sub(by, text)
    text = _braced(_braced(text, r"\sqrt"), "^").strip()
    return rf"\{text[:-1]}\}}" if text.startswith("{") and _close(text, 0) == len(text) - 1 and "," in text else text  # {1, 2} as people write it


def _braced(text: str, before: str) -> str:
    """The balanced parentheses behind `before` as braces: sqrt((1+x)/2) and x^(1/2)."""
    at = 0
    while (at := text.find(before, at)) >= 0:
        at += len(before)
        start = at + (text[at : at + 1] == " ")
        if text[start : start + 1] == "(" and (end := _close(text, start)) is not None:
            text = f"{text[:start]}{{{text[start + 1 : end]}}}{text[end + 1 :]}"
    return text


def _close(text: str, start: int) -> int | None:
    depth = 0
    for i in range(start, len(text)):
        depth += (text[i] in "([{") - (text[i] in ")]}")
        if depth == 0:
            return i
    return None


def tight(text: str) -> str:
    """Without blanks, but for those between digits."""
    return _BLANKS.sub("", text)


_BLANKS = re.compile(r"(?<!\d)\s+|\s+(?!\d)")


# -- what is not the expression itself -----------------------------------------------------------------------------------
class Peeled(NamedTuple):
    """An expression without what stands behind it. ``unit`` is of the table; other words are just gone."""

    text: str
    percent: bool = False
    unit: Unit | None = None


_PERCENT = re.compile(r"\s*(?:\\?%|\\text\s*\{\s*(?:%|\\%|percent)\s*\}|percent|per cent)$")
_DEGREES = re.compile(r"\s*(?:\^\s*\{?\s*\\circ\s*\}?|\\text\s*\{\s*(?:degrees?|deg)\s*\}|\\degree|(?<=[\d ])degrees?)$")
_TEXT = re.compile(r"\s*\\(?:text|textrm|textbf|mathrm|mbox)\s*\{([^{}]*)\}(?:\s*\^\s*\{?([23])\}?)?(?:\s*/\s*\\(?:text|mathrm)\s*\{([^{}]*)\}(?:\s*\^\s*\{?([23])\}?)?)?$")
_WORDS = re.compile(r"(?<=[\d})])\s*((?:[A-Za-z]{2,}|(?<=\d )[a-z](?=/)|(?<=\d )[mglsh](?=$|\^\s*\{?[23]\}?$))(?:[\s/]+(?:per )?[A-Za-z]+)*)(?:\s*\^\s*\{?([23])\}?)?$")
_MONEY = re.compile(r"^(-?)\s*(\\?\$|€|£)\s*(-?)(?=[\d.\\])")
_NO_WORDS = re.compile(r"\b(?:and|or|if|where|for|mod)\b|[=<>]")


def peel(text: str) -> Peeled:
    r"""Takes off a percent sign, a unit, the sign of a currency, trailing words.

    >>> peel("5\\text{ cm}").text, peel("50\\%").percent, peel("12 apples").text, peel("2x").text
    ('5', True, '12', '2x')
    """
    unit, percent = None, False
    if (m := _MONEY.match(text)) is not None:
        text, unit = m[1] + m[3] + text[m.end() :], unit_of(m[2][-1])
    if (m := _PERCENT.search(text)) is not None and m.start():
        return Peeled(text[: m.start()], True)
    if (m := _DEGREES.search(text)) is not None and m.start():
        return Peeled(text[: m.start()], False, unit_of("°"))
    if (m := _TEXT.search(text)) is not None and m.start() and not _NO_WORDS.search(m[1]):
        words = m[1].strip() + (f"^{m[2]}" if m[2] else "") + (f"/{m[3].strip()}" + (f"^{m[4]}" if m[4] else "") if m[3] else "")
        return Peeled(text[: m.start()].strip(), False, unit_of(words) or unit)
    if (m := _WORDS.search(text)) is not None and not _NO_WORDS.search(m[1]) and "\\" not in m[1]:
        return Peeled(text[: m.start()].strip(), False, unit_of(m[1] + (f"^{m[2]}" if m[2] else "")) or unit)
    return Peeled(text, percent, unit)


_COMMAND = re.compile(r"\\(?:text|textbf|mathrm|mathbf|mbox|textrm)\s*\{([^{}]*)\}")


def words(text: str) -> str | None:
    r"""The words of an answer that is nothing else; None for mathematics.

    >>> words("\\text{No solution}"), words("even"), words("2x"), words("xy")
    ('No solution', 'even', None, None)
    """
    bare = _COMMAND.sub(lambda m: m[1], text).strip()
    if re.fullmatch(r"[A-Za-z][A-Za-z' -]*[A-Za-z]", bare) and (len(bare) > 2 or bare != text.strip()) and (bare != text.strip() or re.search(r"[a-z]{3}", bare)):
        return bare
    return None


# -- lists ---------------------------------------------------------------------------------------------------------------
class Items(NamedTuple):
    """The parts of a list: ``{}`` for a set or a bare list, else its brackets: ``()``, ``[)``."""

    brackets: str
    parts: Sequence[str]


_SEPARATORS = re.compile(r"\s*(?:,\s*(?:and|or)\b|,|;|\band\b|\bor\b)\s*")
_THOUSANDS = re.compile(r"(?<![\d.])\d{1,3}(?:,\d{3})+(?!\d)")


def items(text: str) -> Items | None:
    r"""A list taken apart at its own level; None for what is none.

    >>> items("(1, (2, 3))"), items("x = 1 or x = 2"), items("1,000"), items(r"\{5\}")
    (Items(brackets='()', parts=['1', '(2, 3)']), Items(brackets='{}', parts=['x = 1', 'x = 2']), None, Items(brackets='{}', parts=['5']))
    """
    if text.startswith(r"\{") and text.endswith(r"\}") and _closing_set(text) == len(text) - 2:
        inner = text[2:-2].strip()
        return None if "|" in inner or ":" in inner or r"\mid" in inner else Items("{}", _split(inner))
    if text[:1] in "([" and text[-1:] in ")]" and text and _close(text, 0) == len(text) - 1:
        parts = _split(text[1:-1])
        return Items(text[0] + text[-1], parts) if len(parts) > 1 else None
    if r"\begin" in text:
        return None
    parts = _split(_THOUSANDS.sub(lambda m: m[0].replace(",", ""), text))
    if len(parts) > 1:
        return Items("{}", parts)
    if text.count(r"\pm") == 1 and r"\mp" not in text:
        return Items("{}", [text.replace(r"\pm", "+"), text.replace(r"\pm", "-")])
    return None


def _closing_set(text: str) -> int:
    depth = 0
    for m in re.finditer(r"\\[{}]", text):
        depth += 1 if m[0] == r"\{" else -1
        if depth == 0:
            return m.start()
    return -1


def _split(text: str) -> list[str]:
    parts, depth, start = [], 0, 0
    for m in re.finditer(r"\\?[(\[{]|\\?[)\]}]|" + _SEPARATORS.pattern, text):
        if m[0][-1:] in "([{":
            depth += 1
        elif m[0][-1:] in ")]}":
            depth -= 1
        elif depth == 0:
            parts.append(text[start : m.start()].strip())
            start = m.end()
    parts.append(text[start:].strip())
    return [p for p in parts if p]
