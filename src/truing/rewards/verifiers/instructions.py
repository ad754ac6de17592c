"""`instructions`: the completion does what it was told about its form: how long, which words, what case, how it starts and ends."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from truing.rewards.completions import failed
from truing.rewards.verifiers.constraints import CONSTRAINTS, Arguments
from truing.rewards.verifiers.final import said as spoken
from truing.rewards.verifiers.reading import BadColumn, credit, gold_text
from truing.rewards.verifiers.verifier import Row
from truing.types import Score, Status


class Instructions:
    """The column ``instructions``, a list of ``{"kind": "length_constraints:number_words", "relation": "at least", "num_words": 10}``; or
    IFEval's own columns ``instruction_id_list`` and ``kwargs``, whose nulls are left out.

    All must be followed to the letter (IFEval's strict accuracy of prompts); ``credit: share`` pays the share that is. Parts:
    ``instructions``, and ``followed``, that share. An empty completion follows none.
    """

    name = "instructions"
    columns = ()

    def __call__(self, texts: Sequence[str], rows: Sequence[Row]) -> list[Score]:
        return [self._score(text, row) for text, row in zip(texts, rows, strict=True)]

    def _score(self, text: str, row: Row) -> Score:
        try:
            wanted, pay, said = _wanted(row), credit(row), spoken(text)
            followed = [CONSTRAINTS[kind](said, arguments) and bool(said.strip()) for kind, arguments in wanted]
        except BadColumn as error:
            return failed(Status.UNPARSED, f"instructions: {error}")
        share = sum(followed) / len(followed)
        value = share if pay == "share" else float(all(followed))
        return Score(value, {"instructions": value, "followed": share}, Status.OK if all(followed) else Status.WRONG)

    def gold(self, row: Row) -> str | None:
        """The row's ``answer``: a list of demands names no text that meets them."""
        return gold_text(row)

    def wrong(self, row: Row) -> Sequence[str]:
        gold = gold_text(row) or "word"
        spoilt = (_spoilt(kind, arguments, gold) for kind, arguments in _wanted(row))
        return ["", " \n", *(text for text in spoilt if text is not None)]

    def answer(self, text: str, row: Row) -> str | None:
        return text.strip() or None


def _wanted(row: Row) -> list[tuple[str, Arguments]]:
    listed, kinds, arguments = row.get("instructions"), row.get("instruction_id_list"), row.get("kwargs")
    if listed is None and kinds is not None:
        if not isinstance(kinds, list) or not isinstance(arguments, list) or len(kinds) != len(arguments):
            raise BadColumn(f"instruction_id_list names {len(kinds) if isinstance(kinds, list) else kinds!r} and kwargs holds {len(arguments) if isinstance(arguments, list) else arguments!r}; write one object of arguments a name")
        listed = [{**(a or {}), "kind": k} for k, a in zip(kinds, arguments, strict=True)]
    if not isinstance(listed, list) or not listed or not all(isinstance(i, dict) for i in listed):
        raise BadColumn(f'instructions is {listed!r}; write a list like [{{"kind": "punctuation:no_comma"}}], or IFEval\'s instruction_id_list and kwargs')
    found: list[tuple[str, Arguments]] = []
    for i in listed:
        kind = i.get("kind")
        if kind not in CONSTRAINTS:
            close = difflib.get_close_matches(str(kind), CONSTRAINTS, n=1)
            raise BadColumn(f"the instruction {kind!r} does not exist; " + (f"did you mean {close[0]!r}?" if close else f"there are {', '.join(CONSTRAINTS)}"))
        found.append((str(kind), {k: v for k, v in i.items() if k != "kind" and v is not None}))
    return found


def _spoilt(kind: str, arguments: Arguments, gold: str) -> str | None:
    """The gold answer with this instruction broken, where that is easily said."""
    name = kind.partition(":")[2]
    relation = str(arguments.get("relation"))
    if name == "number_words" and relation in ("less than", "at most", "exactly"):
        return "word " * (int(arguments.get("num_words") or 0) + 1)
    if name == "number_sentences" and relation in ("less than", "at most", "exactly"):
        return "Yes. " * (int(arguments.get("num_sentences") or 0) + 1)
    spoilt = {
        "no_comma": gold + ", no", "forbidden_words": " ".join([gold, *arguments.get("forbidden_words", ())]), "english_capital": gold + " a", "english_lowercase": gold + " A",
        "end_checker": gold + " And more", "quotation": gold + " x", "json_format": gold + " x", "title_case": gold + " word", "start_checker": "x" + gold,
        "number_bullet_lists": gold + "\n* one more", "number_paragraphs": gold + "\n***\nOne more.",
    }  # fmt: skip
    return spoilt.get(name)
