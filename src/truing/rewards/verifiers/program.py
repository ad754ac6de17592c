"""The verifier ``program``: a Python program that reads standard input and prints the right answer.

A row has ``tests``, each ``{"input": "3 4\\n", "expected": "7"}``, some perhaps with ``"hidden": true``; ``credit``, ``reward_on`` and ``gold`` are
those of ``code``. What is printed is compared line by line, runs of spaces as one and blank lines at the end left out. A
program must also leave with status 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from truing.rewards.sandbox import Job
from truing.rewards.verifiers.unit_tests import BadRow, Case, UnitTests, code_in
from truing.rewards.verifiers.verifier import Row

_CHEATS = ("import sys\nsys.exit(0)", "import os\nos._exit(0)", "print('OK')\nprint('all tests passed')")


class Program(UnitTests):
    """Judges programs."""

    name = "program"

    def cases(self, row: Row) -> list[Case]:
        found = super().cases(row)
        for i, case in enumerate(found):
            if not isinstance(case.expected, str):
                raise BadRow(f"tests[{i}].expected: {case.expected!r} is no text; write what is printed in quotes")
        return found

    def given(self, test: dict[str, Any], i: int) -> str:
        if not isinstance(test.get("input", ""), str):
            raise BadRow(f"tests[{i}].input: {test['input']!r} is no text; write what is read in quotes")
        return str(test.get("input", ""))

    def job(self, text: str, row: Row, case: Case, group: int) -> Job:
        return Job(code_in(text), None, stdin=case.given, group=group)

    def right(self, row: Row, case: Case, value: Any) -> bool:
        return type(value) is str and lines_of(case.expected) == lines_of(value)  # a program can write into the pipe for values, too

    def wrong(self, row: Row) -> Sequence[str]:
        """Programs that print nothing, or what a test runner might."""
        blank = all(not lines_of(case.expected) for case in self.cases(row))
        return [] if blank else ["", *(f"```python\n{cheat}\n```" for cheat in _CHEATS)]


def lines_of(text: str) -> list[str]:
    """Lines with their words a space apart, without blank ones at the end.

    >>> lines_of(" 1  2 \\n\\n3\\n\\n")
    ['1 2', '', '3']
    """
    lines = [" ".join(line.split()) for line in text.split("\n")]
    while lines and not lines[-1]:
        lines.pop()
    return lines
