"""`choice`: multiple choice. The final answer names one option, by its letter, its text or both."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache

from truing.rewards.completions import failed
from truing.rewards.verifiers.exact import normalise, repeated
from truing.rewards.verifiers.final import Several, finals, sentences
from truing.rewards.verifiers.reading import BadColumn
from truing.rewards.verifiers.verifier import Row
from truing.types import Score, Status

LETTERS = "ABCDEFGHIJ"


class Choice:
    """One of several options.

    The column ``answer`` is a letter, or the text of an option; ``options`` (or ``choices``) a list of texts, lettered from A, or a
    mapping from letters to texts. Without options there are the letters A to J. "B", "(b)", "B. Paris", "option b" and "Paris" name the
    same option; a letter with the text of another one names none, and so do several.
    """

    name = "choice"
    columns: tuple[str, ...] = ("answer",)

    def __call__(self, texts: Sequence[str], rows: Sequence[Row]) -> list[Score]:
        return [self._score(t, row) for t, row in zip(texts, rows, strict=True)]

    def _score(self, text: str, row: Row) -> Score:
        try:
            options = read(row)
            right = gold(row, options)
        except BadColumn as error:
            return failed(Status.UNPARSED, f"choice: {error}")
        found = _found(text, options)
        value = float(bool(found) and all(letter == right for letter in found))
        return Score(value, {"choice": value}, Status.OK if value else Status.WRONG)

    def gold(self, row: Row) -> str | None:
        try:
            return f"The answer is {gold(row, read(row))}."
        except BadColumn:
            return str(row.get("answer"))  # whoever checks it hears what is wrong with the row

    def wrong(self, row: Row) -> Sequence[str]:
        try:
            options = read(row)
            right = gold(row, options)
        except BadColumn:
            return []
        letters = list(options) if any(options.values()) else list("ABCD" if right in "ABCD" else LETTERS)
        others = [letter for letter in letters if letter != right]
        found = ["", ", ".join(letters), " ".join(f"({letter})" for letter in letters), "\n".join(f"The answer is {letter}." for letter in letters),
                 " ".join(f"\\boxed{{{letter}}}" for letter in letters), *(f"The answer is {letter}." for letter in others), *(f"({letter.lower()})" for letter in others),
                 *(f"The answer is {right}. The answer is {letter}." for letter in others), *(f"{right} or {letter}" for letter in others), *repeated(row)]  # fmt: skip
        return [*found, *(text for letter, text in options.items() if letter in others and text)]

    def answer(self, text: str, row: Row) -> str | None:
        """The letter."""
        try:
            found = set(_found(text, read(row)))
        except BadColumn:
            return None
        return found.pop() if len(found) == 1 else None


def read(row: Row) -> Mapping[str, str]:
    """The options: letter -> text. Raises BadColumn."""
    given = row.get("options") if row.get("options") is not None else row.get("choices")
    if given is None:
        return dict.fromkeys(LETTERS, "")
    if isinstance(given, Mapping):
        found = {str(k).strip().upper(): str(v) for k, v in given.items()}
    elif isinstance(given, list | tuple) and len(given) <= len(LETTERS):
        found = dict(zip(LETTERS, map(str, given), strict=False))
    else:
        found = {}
    if len(found) < 2 or any(len(k) != 1 or not k.isalpha() for k in found):
        raise BadColumn(f"options is {str(given)[:80]}; write a list of 2 to {len(LETTERS)} texts, or a mapping from letters to texts")
    return {k: re.sub(rf"^\s*\(?{k}[).:]\s+", "", v) for k, v in found.items()}


def gold(row: Row, options: Mapping[str, str]) -> str:
    """The right letter. Raises BadColumn."""
    answer = str(row.get("answer")).strip()
    letter = answer.strip("().: ").upper()
    texts = [k for k, v in options.items() if v and normalise(v) == normalise(answer)]
    if len(texts) == 1:
        return texts[0]
    if letter in options:
        return letter
    raise BadColumn(f"answer is {answer!r}, which is none of the options {', '.join(options)}")


def _found(text: str, options: Mapping[str, str]) -> list[str]:
    reading = lambda mark: letter_of(mark, options)  # noqa: E731
    return finals(text, reading, lambda whole: _unmarked(whole, options))


def _unmarked(text: str, options: Mapping[str, str]) -> list[str]:
    """The whole completion when it names an option; else its last statement. Lines that are a letter each are marks of their own."""
    lines = {found for line in text.splitlines() if (found := _whole(_plain(line), options)) is not None}
    if len(lines) > 1:
        raise Several
    for statement in sentences(text):
        found = letter_of(statement, options)
        return [] if found is None else [found]
    return []


_REASONS = re.compile(r"\b(?:because|since|as)\b", re.I)
_FRAME = re.compile(r"\\(?:text|textbf|mathrm|mathbf)\s*\{([^{}]*)\}|\*\*|[$`]|\\[()\[\]]|__")


def _plain(text: str) -> str:
    return _FRAME.sub(lambda m: m[1] or "", text).strip().rstrip(".,;!: ")


def letter_of(text: str, options: Mapping[str, str]) -> str | None:
    """The one letter that a text names; None for none. Raises Several.

    >>> letter_of("option (b)", {"A": "Rome", "B": "Paris"}), letter_of("It is Rome", {"A": "Rome", "B": "Paris"}), letter_of("B. Rome", {"A": "Rome", "B": "Paris"})
    ('B', 'A', None)
    """
    text = _plain(text)
    if (whole := _whole(text, options)) is not None:
        return whole
    cut = _REASONS.search(text)
    text = text[: cut.start()] if cut and cut.start() else text
    upper = "".join(options)
    named = {m[1].upper() for m in _patterns(upper)[1].finditer(text)} or set(_patterns(upper)[2].findall(text))
    texts = _texts(text, options)
    if not named:
        if len(texts) > 1:
            raise Several
        return next(iter(texts), None)
    if len(named) > 1:
        raise Several
    return next(iter(named)) if not texts or texts == named else None


def _whole(text: str, options: Mapping[str, str]) -> str | None:
    """The option when a text is its letter or its text, and nothing else."""
    if (m := _patterns("".join(options))[0].fullmatch(text)) is not None:
        return m[1].upper()
    form = normalise(text)
    found = [k for k, v in options.items() if v and form and normalise(v) == form]
    return found[0] if len(found) == 1 else None


@lru_cache(maxsize=64)
def _patterns(letters: str) -> tuple[re.Pattern[str], re.Pattern[str], re.Pattern[str]]:
    """A letter alone; a letter in parentheses, or behind the word option; a capital that is a word, but no article and no I."""
    some = f"[{letters}]"
    alone = "".join(letter for letter in letters if letter not in "AI")
    return (
        re.compile(rf"(?:(?:option|choice|answer)\s+)?[(\[]?({some})[)\]]?", re.I),
        re.compile(rf"(?:\(|\b(?:option|choice)\s+\(?)({some})(?![\w'])", re.I),
        re.compile(rf"(?<![\w'])([{alone}]|[AI](?=$|[.):,]|\s+(?:is|or|and|,)))(?![\w'])"),
    )


def _texts(text: str, options: Mapping[str, str]) -> set[str]:
    """The options whose text occurs as words; one inside a longer one that occurs as well does not count."""
    form = f" {normalise(text)} "
    there = {k: w for k, v in options.items() if v and (w := f" {normalise(v)} ") in form}
    return {k for k, w in there.items() if not any(w in other and w != other for other in there.values())}
