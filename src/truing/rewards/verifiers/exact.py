"""`exact` and `normalised`: the final answer is the row's answer, to the letter or but for case, blanks, punctuation and articles."""

from __future__ import annotations

import re
from collections.abc import Sequence

from truing.rewards.completions import failed
from truing.rewards.verifiers.final import finals
from truing.rewards.verifiers.reading import BadColumn, option
from truing.rewards.verifiers.verifier import Row
from truing.types import Score, Status


class Exact:
    """The answer character for character, blanks around it aside: what a mark holds (see `final`), or without marks the whole completion.

    The column ``answer`` is a text, or a list of texts of which each is right.
    """

    name = "exact"
    columns: tuple[str, ...] = ("answer",)

    def __call__(self, texts: Sequence[str], rows: Sequence[Row]) -> list[Score]:
        return [self._score(t, row) for t, row in zip(texts, rows, strict=True)]

    def _score(self, text: str, row: Row) -> Score:
        try:
            right = {self._form(a, row) for a in answers(row)}
            found = self._found(text, row)
        except BadColumn as error:
            return failed(Status.UNPARSED, f"{self.name}: {error}")
        if "" in right:
            return failed(Status.UNPARSED, f"{self.name}: nothing is left of the answer {row['answer']!r}; write one that has letters or digits")
        value = float(self._form(text, row) in right or (bool(found) and right.issuperset(found)))
        return Score(value, {self.name: value}, Status.OK if value else Status.WRONG)

    def _found(self, text: str, row: Row) -> list[str]:
        return finals(text, lambda mark: self._form(mark, row) or None, lambda whole: [self._form(whole, row)])

    def _form(self, text: str, row: Row) -> str:
        return text.strip()

    def gold(self, row: Row) -> str | None:
        try:
            return answers(row)[0]
        except BadColumn:
            return str(row.get("answer"))  # whoever checks it hears what is wrong with the row

    def wrong(self, row: Row) -> Sequence[str]:
        try:
            gold = answers(row)[0].strip()
        except BadColumn:
            return []
        listed = [f"no {gold}", "none of these", gold, "all of these"]
        return ["", f"{gold} or not {gold}", ", ".join(listed), " ".join(f"<answer>{a}</answer>" for a in listed), "\n".join(f"The answer is {a}." for a in listed),
                f"The answer is {gold}.\nThe answer is none of these.", f"\\boxed{{{gold}}} \\boxed{{none of these}}", f"<answer>{gold}</answer>\n#### (none)", *repeated(row)]  # fmt: skip

    def answer(self, text: str, row: Row) -> str | None:
        try:
            found = set(self._found(text, row)) - {""}
        except BadColumn:
            return None
        return found.pop() if len(found) == 1 else None


class Normalised(Exact):
    """The same but for case, blanks, punctuation and the articles a, an and the (``articles: keep`` keeps them), as in SQuAD's exact match (Rajpurkar et al. 2016).

    Unlike there, what belongs to a number stays: the sign and the point of -3.5; commas between thousands go.
    """

    name = "normalised"

    def _form(self, text: str, row: Row) -> str:
        return normalise(text, articles=option(row, "articles", ("drop", "keep"), "drop") == "keep")


_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_APOSTROPHE = re.compile(r"(?<=[^\W\d])['’](?=[^\W\d])")
_TOKENS = re.compile(r"(?<![\w.])-?\d+(?:[.,]\d+)*|[^\W_]+|[$€£¥%°+/*^=<>]")  # numbers whole; words; signs that change a meaning
_ARTICLES = ("a", "an", "the")
_DASHES = str.maketrans({"−": "-", "–": "-", "—": "-", "“": '"', "”": '"', "\u00a0": " "})


def normalise(text: str, articles: bool = False) -> str:
    """Lower case, no punctuation, single blanks, no articles unless `articles`.

    >>> normalise(" The  Eiffel-Tower! "), normalise("It's -3.50, or 1,000."), normalise("the", articles=True)
    ('eiffel tower', 'its -3.50 or 1000', 'the')
    """
    text = _THOUSANDS.sub("", text.translate(_DASHES).casefold())
    return " ".join(t for t in _TOKENS.findall(_APOSTROPHE.sub("", text)) if articles or t not in _ARTICLES)


def answers(row: Row) -> list[str]:
    """The right answers of a row. Raises BadColumn."""
    given = row.get("answer")
    found = given if isinstance(given, list | tuple) else [given]
    if not found or any(isinstance(a, bool) or not isinstance(a, str | int | float) for a in found):
        raise BadColumn(f"answer is {given!r}; write a text, or a list of texts of which each is right")
    return [str(a) for a in found]


def repeated(row: Row) -> list[str]:
    """The row's question, should it be among its columns: who repeats it has said nothing."""
    return [q for key in ("question", "prompt", "problem") if isinstance(q := row.get(key), str) and q.rstrip().endswith("?")]
