"""``calculator``: a question with a numeric answer, and a tool that calculates."""

from __future__ import annotations

import json
import random
import re
from fractions import Fraction
from typing import Any

from truing.envs.text import TextEnvironment, Turn, after_prompt, earned
from truing.envs.text_arithmetic import Refused, calculate, written
from truing.errors import ConfigError, DataError
from truing.seeds import stream
from truing.types import Message, Messages, Prompt, Score

RULES = "You have a calculator: write <calc>12*7</calc> and stop, and you are told the result. When you know the answer, write <answer>84</answer>."

_CALL = re.compile(r"<calc>(.*?)</calc>|<tool_call>(.*?)</tool_call>", re.DOTALL)
_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_NUMBER = re.compile(r"(?<![\w.])[-−]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:\s*/\s*\d+(?:\.\d+)?)?(?![\w])")


class Calculator(TextEnvironment):
    """The model calls, is told, and goes on; a turn without a call, or with ``<answer>``, ends the episode.

    A call is ``<calc>12*7</calc>``, or what chat templates with tools write:
    ``<tool_call>{"name": "calculator", "arguments": {"expression": "12*7"}}</tool_call>``. The first is answered by a user turn, the
    second by a tool turn. Several calls in one turn are answered in one, in order. What cannot be calculated is told, not punished.

    The answer is what stands in the last ``<answer>``; without one, the last number of the last turn. It is right when it equals the
    row's column ``answer`` within ``tolerance`` (absolute), both read as numbers.

    Args:
        tolerance: the row's column ``tolerance`` goes before it.
        calls: after so many calls the next turn must be the answer: further calls are refused.
        role: who tells results: "user", "tool", or None for the rule above.
        explain: say after the prompt how to call.
    """

    def __init__(self, tolerance: float = 1e-6, calls: int = 8, role: str | None = None, explain: bool = True) -> None:
        if tolerance < 0 or calls < 0:
            raise ConfigError(f"calculator: tolerance={tolerance}, calls={calls}: neither can be negative")
        if role not in (None, "user", "tool"):
            raise ConfigError(f"calculator: role={role!r} does not exist; use 'user', 'tool', or null for the one that fits the call")
        self.tolerance, self.calls, self.role, self.explain = tolerance, calls, role, explain
        self.answer, self.made, self.refused = Fraction(0), 0, 0

    def reset(self, prompt: Prompt, seed: int) -> Messages | None:
        gold = prompt.extra.get("answer")
        try:
            self.answer = calculate(str(gold))
        except Refused as error:
            raise DataError(f"{prompt.source}: column 'answer' is {gold!r}, which is no number ({error}); calculator needs one") from None
        self.tolerance = float(prompt.extra.get("tolerance", self.tolerance))
        return after_prompt(prompt, RULES) if self.explain else None

    def step(self, said: str) -> Turn:
        calls = list(_CALL.finditer(said))
        if not calls or _ANSWER.search(said):
            return Turn(done=True, score=self._score(said))
        told, by_tool = [], False
        for call in calls:
            self.made += 1
            by_tool = by_tool or call[2] is not None
            told.append(self._result(call) if self.made <= self.calls else "No calls are left; write <answer> and the answer.")
        role = self.role or ("tool" if by_tool else "user")
        return Turn((Message(role, "\n".join(told)),))

    def cut(self, said: str) -> Score:
        return self._score(said) if _ANSWER.search(said) else self._parts(0.0)

    def _result(self, call: re.Match[str]) -> str:
        try:
            return written(calculate(call[1] if call[2] is None else _expression(call[2])))
        except Refused as error:
            self.refused += 1
            return f"Error: {error}."

    def _score(self, said: str) -> Score:
        said = (_ANSWER.findall(said) or [said])[-1]
        numbers = _NUMBER.findall(said)
        try:
            found = calculate(numbers[-1]) if numbers else None
        except Refused:
            found = None
        right = found is not None and abs(found - self.answer) <= Fraction(repr(self.tolerance))
        return self._parts(float(right))

    def _parts(self, value: float) -> Score:
        return earned(value, calls=float(self.made), calls_refused=float(self.refused))

    def tasks(self, count: int, seed: int) -> list[dict[str, Any]]:
        """Products of a two- and a three-digit number, with something added: too hard to do in one's head."""
        rows = []
        for i in range(count):
            draw = random.Random(stream(seed, "calculator", i))
            a, b, c = draw.randint(12, 99), draw.randint(101, 999), draw.randint(100, 9999)
            rows.append({"id": f"calculator-{i}", "prompt": f"What is {a} * {b} + {c}?", "answer": a * b + c})
        return rows


def _expression(call: str) -> str:
    """The expression of a call in the form of tools. Raises Refused."""
    try:
        arguments = json.loads(call)["arguments"]
        if isinstance(arguments, str):
            arguments = json.loads(arguments)
        return str(arguments["expression"])
    except (ValueError, TypeError, KeyError, RecursionError):
        raise Refused('a call is {"name": "calculator", "arguments": {"expression": "12*7"}}') from None
