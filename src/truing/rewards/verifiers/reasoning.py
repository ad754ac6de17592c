"""`reasoning_gym`: the data set's own scorer says whether the answer solves the task."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

from truing.errors import MissingExtraError
from truing.rewards.completions import failed
from truing.rewards.verifiers.bounded import Bounded
from truing.rewards.verifiers.final import said as spoken
from truing.rewards.verifiers.reading import BadColumn, credit, last_tag, text
from truing.rewards.verifiers.verifier import Row
from truing.types import Score, Status

SECONDS = 60.0  # of the clock; processor time is limited to far less
_LEAD = re.compile(r"(?:(?:the\s+)?(?:final\s+)?answer(?:\s+is)?\s*[:=]|(?:the\s+)?(?:final\s+)?answer\s+is\b)\s*", re.IGNORECASE)


class ReasoningGym:
    """Rows of ``reasoning-gym:NAME(...)``: the columns ``dataset`` and ``metadata`` (an object, or its repr), ``answer`` and ``options``.

    Solved is what the data set scores 1. A wrong answer may score more than 0 there (0.01 for the trying, or a share): it is
    ``WRONG`` and earns 0, or with ``credit: share`` that score. Parts: ``reasoning_gym``, and ``dataset_score``.

    The answer is what stands in the last ``<answer>``; without one, the completion's last lines, as many as the gold answer has
    (all of it when there is no gold answer), without "The answer is" before them. An empty answer earns nothing, whatever the scorer says.
    """

    name = "reasoning_gym"
    columns = ("dataset", "metadata")

    def __init__(self) -> None:
        if find_spec("reasoning_gym") is None:
            raise MissingExtraError("the verifier reasoning_gym needs the package reasoning-gym; pip install reasoning-gym")
        self.bounded = Bounded("truing.rewards.verifiers.reasoning_child:score", SECONDS, (0.0,))

    def __call__(self, texts: Sequence[str], rows: Sequence[Row]) -> list[Score]:
        return [self._score(text, row) for text, row in zip(texts, rows, strict=True)]

    def _score(self, text: str, row: Row) -> Score:
        try:
            item, pay = _item(row), credit(row)
        except BadColumn as error:
            return failed(Status.UNPARSED, f"reasoning_gym: {error}")
        found = self.bounded(item, answer_in(text, row), item["answer"] or "")
        if isinstance(found, Score):
            return found
        given = found[0]
        if not 0 <= given <= 1:  # NaN too
            return failed(Status.NON_FINITE, f"reasoning_gym: {item['dataset']} scored {given}")
        value = given if pay == "share" else float(given == 1)
        return Score(value, {"reasoning_gym": value, "dataset_score": given}, Status.OK if given == 1 else Status.WRONG)

    def gold(self, row: Row) -> str | None:
        """The data set's answer; None where it has none (a maze with many ways out, say)."""
        answer = _item(row)["answer"]
        return None if answer is None else f"<answer>{answer}</answer>"

    def wrong(self, row: Row) -> Sequence[str]:
        answer = _item(row)["answer"] or "1"
        return (
            "", "<answer></answer>", "I do not know.", f"{answer}\n<answer></answer>", f"<answer>{answer}</answer>\n<answer>I do not know.</answer>",
            " ".join(map(str, range(200))), "<answer>" + " or ".join(map(str, range(-100, 200))) + "</answer>", "<answer>" + "(" * 3000 + "</answer>",
        )  # fmt: skip

    def answer(self, text: str, row: Row) -> str | None:
        return " ".join(answer_in(text, row).split()) or None


def answer_in(text: str, row: Row) -> str:
    """What is scored. Example: of "4 + 3 is 7.\\nAnswer: 7" it is "7", when the gold answer has one line."""
    said, gold = spoken(text).strip(), row.get("answer")
    tagged = last_tag(said, "answer")
    if tagged is not None:
        return tagged
    if isinstance(gold, str):
        said = "\n".join(said.split("\n")[-len(gold.strip().split("\n")) :]).strip()
    return _LEAD.sub("", said, count=1).strip() if _LEAD.match(said) else said


def _item(row: Row) -> dict[str, Any]:
    answer, options, metadata = row.get("answer"), row.get("options") or {}, row.get("metadata")
    if answer is not None and not isinstance(answer, str):
        raise BadColumn(f"answer is {answer!r}; write the data set's answer, a text or null")
    if not isinstance(options, dict) or not isinstance(metadata, str | dict):
        raise BadColumn("options and metadata must be what the data set was made with and what it made; write objects")
    return {"dataset": text(row, "dataset"), "metadata": metadata, "answer": answer, "options": options}
