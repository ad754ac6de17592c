"""What the verifiers of code have in common: a row's tests, run in the sandbox, held against what was expected, and made a score.

The answers stay here. The sandbox gets the code and one input at a time, and gives back a value.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from truing.rewards.completions import failed
from truing.rewards.sandbox import Job, Outcome, Ran, Sandbox, shared
from truing.rewards.verifiers.verifier import Row
from truing.types import Score, Status

_TAGGED = re.compile(r"```[ \t]*(?:python3?|py)[ \t]*\r?\n(.*?)(?:```|\Z)", re.DOTALL | re.IGNORECASE)
_BARE = re.compile(r"```[ \t]*\r?\n(.*?)(?:```|\Z)", re.DOTALL)


class BadRow(ValueError):
    """A row of data that cannot be judged by; the message says why and what to write."""


@dataclass(frozen=True)
class Case:
    """One test: what goes in, what must come out, and whether it is kept from the reward."""

    given: Any
    expected: Any
    hidden: bool


def code_in(text: str) -> str:
    """The code of a completion: its last fenced Python block, an unfinished one too; without one the last bare block; else all of it.

    >>> code_in("First:\\n```python\\na = 1\\n```\\nBetter:\\n```python\\na = 2\\n```")
    'a = 2\\n'
    >>> code_in("    return 1")
    '    return 1'
    """
    found = _TAGGED.findall(text) or _BARE.findall(text)
    return str(found[-1]) if found else text


def choice(row: Row, column: str, options: Sequence[str]) -> str:
    """The value of an optional column, the first option when there is none. Raises BadRow for any other."""
    value = row.get(column)
    if value is None:
        return options[0]
    if value not in options:
        raise BadRow(f"{column}: {value!r} is none of {', '.join(options)}")
    return str(value)


class UnitTests:
    """Runs the tests of rows. A subclass says how code and a case become a job, and when an outcome is right."""

    name = ""
    columns: tuple[str, ...] = ("tests",)

    def __init__(self, sandbox: Sandbox | None = None) -> None:
        self.sandbox = sandbox or shared()  # refuses now, not in the middle of a run

    def describe(self) -> str:
        """Where code runs, for a run's header and its report."""
        return self.sandbox.describe()

    def __call__(self, texts: Sequence[str], rows: Sequence[Row]) -> list[Score]:
        jobs: list[Job] = []
        plans: list[tuple[list[Case], range] | BadRow] = []
        for group, (text, row) in enumerate(zip(texts, rows, strict=True)):
            try:
                cases = self.cases(row)
                new = [self.job(text, row, case, group) for case in cases]
            except BadRow as error:
                plans.append(error)
                continue
            plans.append((cases, range(len(jobs), len(jobs) + len(new))))
            jobs += new
        outcomes = self.sandbox.run(jobs)
        return [
            failed(Status.UNPARSED, f"{self.name}: {plan}") if isinstance(plan, BadRow) else self._score(row, plan[0], [outcomes[i] for i in plan[1]])
            for row, plan in zip(rows, plans, strict=True)
        ]

    def _score(self, row: Row, cases: list[Case], outcomes: list[Outcome]) -> Score:
        for outcome in outcomes:
            if outcome.ran.infrastructure:
                return failed(Status.TIMED_OUT if outcome.ran == Ran.HUNG else Status.CRASHED, f"{self.name}: {outcome.note}")
        passed = [outcome.ran == Ran.VALUE and self.right(row, case, outcome.value) for case, outcome in zip(cases, outcomes, strict=True)]
        seen = [ok for ok, case in zip(passed, cases, strict=True) if not case.hidden]
        kept = [ok for ok, case in zip(passed, cases, strict=True) if case.hidden]
        counted = seen if choice(row, "reward_on", ("visible", "all")) == "visible" else passed
        value = _share(counted) if choice(row, "credit", ("all", "share")) == "share" else float(all(counted))
        parts = {self.name: value, "visible_tests": _share(seen)} | ({"hidden_tests": _share(kept)} if kept else {})
        parts["timed_out"] = float(any(outcome.ran == Ran.TIMED_OUT for outcome in outcomes))
        return Score(value, parts, Status.OK if value == 1 else Status.WRONG)

    def cases(self, row: Row) -> list[Case]:
        """The tests of a row. Raises BadRow."""
        tests = row.get("tests")
        if not isinstance(tests, list | tuple) or not tests:
            raise BadRow("the row has no tests; give a list of them")
        found = []
        for i, test in enumerate(tests):
            if not isinstance(test, dict) or "expected" not in test or type(test.get("hidden", False)) is not bool:
                raise BadRow(f"tests[{i}] is {str(test)[:80]}; a test has an input, expected, and perhaps hidden: true")
            found.append(Case(self.given(test, i), test["expected"], test.get("hidden", False)))
        if choice(row, "reward_on", ("visible", "all")) == "visible" and all(case.hidden for case in found):
            raise BadRow("all tests are hidden, so nothing is left to reward; show some, or write reward_on: all")
        choice(row, "credit", ("all", "share"))
        return found

    def given(self, test: dict[str, Any], i: int) -> Any:
        raise NotImplementedError

    def job(self, text: str, row: Row, case: Case, group: int) -> Job:
        raise NotImplementedError

    def right(self, row: Row, case: Case, value: Any) -> bool:
        raise NotImplementedError

    def gold(self, row: Row) -> str | None:
        """The row's column ``gold``, in a fence. Raises BadRow, as `wrong` does, for a row that cannot be judged by."""
        self.cases(row)
        gold = row.get("gold")
        if not isinstance(gold, str | None):
            raise BadRow(f"gold: {gold!r} is no code")
        return None if gold is None else gold if "```" in gold else f"```python\n{gold}\n```"

    def answer(self, text: str, row: Row) -> str | None:
        """The code, without blank lines and trailing spaces; None when there is none. Programs that differ in wording count as different."""
        lines = [line.rstrip() for line in code_in(text).splitlines() if line.strip()]
        return "\n".join(lines) or None


def _share(passed: Iterable[bool]) -> float:
    passed = list(passed)
    return sum(passed) / len(passed)
