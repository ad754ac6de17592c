"""The verifier ``code``: a Python function that must return the right value for each of a row's inputs.

A row has ``function`` (its name) and ``tests``, each ``{"args": [...], "expected": value}``, some perhaps with ``"hidden": true``. It may have

- ``prefix``: code that stands before the completion (the head of a function that it goes on with),
- ``credit``: ``all`` (1 when every test passes, else 0) or ``share`` (of the tests that pass),
- ``reward_on``: ``visible`` (hidden tests are only logged, so that cheating on the visible ones shows as a gap) or ``all``,
- ``tolerance``: by how much floats may differ; ``numbers``: ``typed`` (1 is not 1.0) or ``equal``,
- ``gold``: code that passes.

Values are compared with their types. Tuples, sets and dicts with other keys than texts are written ``{"$tuple": [1, 2]}``,
``{"$set": [1, 2]}`` and ``{"$dict": [[key, value], ...]}``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from truing.rewards.sandbox import Job, values
from truing.rewards.verifiers.unit_tests import BadRow, Case, UnitTests, choice, code_in
from truing.rewards.verifiers.verifier import Row

_CHEATS = (
    "import sys\nsys.exit(0)",
    "import os\nos._exit(0)",
    "def {f}(*args):\n    return None",
    "def {f}(*args):\n    raise AssertionError",
    "class Yes:\n    def __eq__(self, other):\n        return True\n    __hash__ = object.__hash__\n\ndef {f}(*args):\n    return Yes()",
    "class Yes(int):\n    def __eq__(self, other):\n        return True\n    __hash__ = int.__hash__\n\ndef {f}(*args):\n    return Yes()",
    "print('OK')\nprint('all tests passed')",
)


class Code(UnitTests):
    """Judges functions."""

    name = "code"
    columns = ("function", "tests")

    def cases(self, row: Row) -> list[Case]:
        function, tolerance = row.get("function"), row.get("tolerance")
        if not isinstance(function, str) or not function.isidentifier():
            raise BadRow(f"function: {function!r} is no name of a function")
        if tolerance is not None and (type(tolerance) not in (int, float) or not 0 <= tolerance < math.inf):
            raise BadRow(f"tolerance: {tolerance!r} is no number of 0 or more")
        if not isinstance(row.get("prefix") or "", str):
            raise BadRow(f"prefix: {row.get('prefix')!r} is no code")
        choice(row, "numbers", ("typed", "equal"))
        found = super().cases(row)
        for i, case in enumerate(found):
            _check(case.expected, f"tests[{i}].expected")
            _check(case.given, f"tests[{i}].args")
        return found

    def given(self, test: dict[str, Any], i: int) -> list[Any]:
        args = test.get("args", test.get("input"))
        if not isinstance(args, list | tuple):
            raise BadRow(f"tests[{i}] has no args; give the list of the function's arguments")
        return list(args)

    def job(self, text: str, row: Row, case: Case, group: int) -> Job:
        code, prefix = code_in(text), row.get("prefix") or ""
        return Job(f"{prefix.rstrip()}\n{code}" if prefix else code, row["function"], case.given, group=group)

    def right(self, row: Row, case: Case, value: Any) -> bool:
        return values.same(case.expected, value, row.get("tolerance") or 0.0, loose=row.get("numbers") == "equal")

    def wrong(self, row: Row) -> Sequence[str]:
        """Code that leaves early, lies about equality, says nothing, or prints what a test runner might."""
        expects_nothing = all(case.expected is None for case in self.cases(row))
        cheats = [cheat.replace("{f}", row["function"]) for cheat in _CHEATS if not (expects_nothing and "None" in cheat)]
        return [*([] if expects_nothing else [""]), *(f"```python\n{cheat}\n```" for cheat in cheats)]


def _check(value: Any, where: str) -> None:
    """Refuse what a sandboxed function can never have returned, so that a row cannot be silently impossible."""
    kind = type(value)
    if kind is float and not math.isfinite(value):
        raise BadRow(f"{where} holds {value}, and only finite numbers come out of a sandbox")
    if kind is list:
        for v in value:
            _check(v, where)
    elif kind is dict:
        for k, v in value.items():
            if type(k) is not str:
                raise BadRow(f'{where} has the key {k!r}; write {{"$dict": [[key, value], ...]}}')
            _check(v, where)
    elif kind not in (int, float, str, bool, type(None)):
        raise BadRow(f'{where} holds a {kind.__name__}, which is no JSON; write {{"$tuple": [...]}} and {{"$set": [...]}}')
