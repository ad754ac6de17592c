"""Rows that nobody could satisfy, or that would end a run late, are found before it begins and named by their place."""

from __future__ import annotations

import json

import pytest
import typer
from typer.testing import CliRunner

from truing.cli.verify import verify
from truing.data.formats import load
from truing.errors import ConfigError, DataError
from truing.rewards import selfcheck
from truing.rewards.verifiers.verifier import open_verifier
from truing.types import Status

app = typer.Typer()
app.command()(verify)


def write(path, *rows):
    path.write_text("".join(json.dumps({"prompt": f"Say {i}.", **r}) + "\n" for i, r in enumerate(rows)))
    return path


def prompts(path, *rows):
    return load(write(path, *rows), "prompts").records


def score(name, text, **row):
    return open_verifier(name)([text], [row])[0]


def why(found):
    return next(iter(found.parts))


NUMBER = {"verifier": "numeric", "answer": "7"}
TAGS = {"verifier": "format", "tags": ["think", "answer"]}


# -- the start of a run --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("bad", "error", "message"), [
    ({"verifier": "numeric"}, DataError, "has no column 'answer', which this verifier needs; it has 'verifier'"),
    ({"verifier": "numeric", "answer": None}, DataError, "has null in its column 'answer', which this verifier needs; it has 'verifier'"),
    ({"answer": "7"}, DataError, "names no verifier"),
    ({"verifier": "numerik", "answer": "7"}, ConfigError, "verifier 'numerik' does not exist; did you mean 'numeric'?"),
])  # fmt: skip
def test_a_row_far_down_that_has_no_verifier_or_column_stops_the_start_with_its_place(tmp_path, bad, error, message):
    found = prompts(tmp_path / "a.jsonl", *[NUMBER] * 70, bad, *[NUMBER] * 200)
    with pytest.raises(error) as stopped:
        selfcheck.selfcheck(found, most=4)  # of 271 rows it judges the 1st, 91st, 181st and 271st; row 71 is seen all the same
    assert str(stopped.value).startswith(f"{tmp_path}/a.jsonl:71: ") and message in str(stopped.value)


def test_one_column_is_absent_and_another_null():
    from truing.rewards.verified import Verified

    with pytest.raises(DataError, match=r"has no column 'function' and has null in its column 'tests', which this verifier needs; it has 'verifier'$"):
        Verified("verified").of({"verifier": "code", "tests": None})


def test_rows_are_drawn_from_the_whole_file_and_each_verifier(tmp_path):
    rows = [NUMBER] * 300 + [TAGS] * 3 + [{"verifier": "exact", "answer": "x"}] * 90
    found = selfcheck.selfcheck(prompts(tmp_path / "a.jsonl", *rows), most=30)
    # 3 of the format's 3 rows; the other 27 are shared by exact (27 // 2 = 13) and numeric (the 14 that are left)
    assert {name: t.rows for name, t in found.tallies.items()} == {"numeric": 14, "format": 3, "exact": 13}
    with pytest.raises(DataError, match=r"b\.jsonl:100: numeric: the gold answer 'many' earns unparsed"):
        selfcheck.selfcheck(prompts(tmp_path / "b.jsonl", *[NUMBER] * 99, {**NUMBER, "answer": "many"}))  # the last row is always drawn


@pytest.mark.parametrize(("sizes", "most", "counts"), [
    ([10], 4, [4]), ([10], 100, [10]), ([5, 1], 4, [3, 1]), ([3, 3, 3], 1, [1, 1, 1]), ([0], 3, [0]), ([], 3, []), ([2, 50, 50], 12, [2, 5, 5]),
])  # fmt: skip
def test_spread_takes_an_even_share_of_each_group(sizes, most, counts):
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    groups = [list(range(a, a + n)) for a, n in zip(starts, sizes, strict=True)]
    chosen = selfcheck.spread(groups, most)
    assert chosen == sorted(set(chosen)) and [sum(i in g for i in chosen) for g in groups] == counts
    for group, count in zip(groups, counts, strict=True):
        assert count < 2 or {group[0], group[-1]} <= set(chosen)
        own = [i for i in chosen if i in group]
        gaps = {b - a for a, b in zip(own, own[1:], strict=False)}
        assert not gaps or max(gaps) - min(gaps) <= 1


# -- rows that nothing can satisfy ---------------------------------------------------------------------------------------
@pytest.mark.parametrize(("row", "message"), [
    ({"verifier": "regex", "pattern": "[0-9"}, "regex: the row cannot be judged: unparsed (the pattern '[0-9' is not one of Python's"),
    ({"verifier": "regex", "pattern": "[0-9", "tag": "answer"}, "the wrong answer '' could not be judged: unparsed (the pattern '[0-9' is not one of Python's"),
    ({"verifier": "json", "schema": {"type": "objct"}}, "the wrong answer '' could not be judged: unparsed (the schema is none: 'objct'"),
    ({"verifier": "json", "schema": {"type": "objct"}, "answer": "{}"}, "the gold answer '{}' earns unparsed (the schema is none: 'objct'"),
])  # fmt: skip
def test_a_row_that_nothing_can_satisfy_is_one_disagreement(tmp_path, row, message):
    data = write(tmp_path / "a.jsonl", row)
    done = CliRunner().invoke(app, [str(data)])
    assert done.exit_code == 1 and f"{data}:1: " in done.output and message in done.output
    assert done.output.splitlines()[-1] == "1 disagreements"


def test_a_row_without_gold_and_wrong_texts_that_can_be_judged_agrees(tmp_path):
    proof = selfcheck.prove(prompts(tmp_path / "a.jsonl", {"verifier": "regex", "pattern": "[0-9]+"}, {"verifier": "regex", "pattern": ".*"}))
    tally = proof.tallies["regex"]
    assert proof.ok and (tally.rows, tally.without, tally.gold, tally.wrong, dict(tally.statuses)) == (2, 2, 0, 0, {})


@pytest.mark.parametrize(("name", "text", "row"), [
    ("json", "no JSON at all", {"schema": {"type": "objct"}}), ("json", "{}", {"schema": {"type": "objct"}}), ("regex", "no tag", {"pattern": "[0-9", "tag": "answer"}),
])  # fmt: skip
def test_a_broken_row_is_no_zero_whatever_the_completion(name, text, row):
    assert score(name, text, **row).status == Status.UNPARSED


def test_a_good_row_still_finds_the_completion_at_fault():
    said = score("json", "no JSON", schema={"type": "object"})
    assert (said.value, said.status, said.parts) == (0.0, Status.WRONG, {"json": 0.0, "parses": 0.0})
    without = score("regex", "7", pattern="[0-9]+", tag="answer", answer="<answer>7</answer>")  # the gold answer matches: none of it may be lent to the completion
    assert (without.value, without.status, without.parts) == (0.0, Status.WRONG, {"regex": 0.0})
    assert score("regex", "<answer>7</answer>", pattern="[0-9]+", tag="answer").value == 1


# -- rows of code --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("row", "message"), [
    ({"verifier": "program", "tests": [{"input": "3 4", "expected": 7}]}, "tests[0].expected: 7 is no text; write what is printed in quotes"),
    ({"verifier": "program", "tests": ["3 4"]}, "tests[0] is 3 4; a test has an input, expected"),
    ({"verifier": "code", "function": "f", "tests": ["assert f(1) == 2"]}, "tests[0] is assert f(1) == 2; a test has an input, expected"),
    ({"verifier": "code", "function": "f", "tests": "assert f(1) == 2"}, "the row has no tests; give a list of them"),
    ({"verifier": "code", "function": "f", "tests": [{"args": [1], "expected": 2}], "gold": 5}, "gold: 5 is no code"),
])  # fmt: skip
def test_tests_that_are_none_are_named_with_their_row(tmp_path, row, message):
    found = prompts(tmp_path / "a.jsonl", row)
    (said,) = selfcheck.prove(found).disagreements
    assert str(said).startswith(f"{tmp_path}/a.jsonl:1: {row['verifier']}: the row cannot be used: {message}")
    with pytest.raises(DataError, match=r"a\.jsonl:1: "):
        selfcheck.selfcheck(found)


# -- files with several verifiers ----------------------------------------------------------------------------------------
def test_prompts_may_mix_verifiers_with_columns_of_their_own(tmp_path):
    code = {"verifier": "code", "function": "add", "tests": [{"args": [1, 2], "expected": 3}]}
    found = prompts(tmp_path / "a.jsonl", NUMBER, code, {"verifier": "program", "tests": [{"input": "1 2\n", "expected": "3"}]}, {**NUMBER, "tolerance": 0.1})
    assert [set(p.extra) for p in found] == [{"verifier", "answer"}, {"verifier", "function", "tests"}, {"verifier", "tests"}, {"verifier", "answer", "tolerance"}]
    with pytest.raises(DataError, match=r"b\.jsonl:2: unknown_format"):
        (tmp_path / "b.jsonl").write_text('{"prompt": "a"}\n{"verifier": "numeric"}\n')
        load(tmp_path / "b.jsonl", "prompts")


def test_other_kinds_keep_their_columns(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "a", "completion": "b", "topic": "x"}\n{"prompt": "c", "completion": "d"}\n')
    with pytest.raises(DataError, match=r"a\.jsonl:2: columns: column topic is missing"):
        load(path, "sft")
    assert [p.extra for p in load(path, "prompts").records] == [{"completion": "b", "topic": "x"}, {"completion": "d"}]


# -- units ---------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("row", "text", "message"), [
    ({"answer": 5, "unit": "kmh"}, "5 km/h", "unit is 'kmh', which is not known here; write one of"),  # was 0 for the right answer
    ({"answer": 5, "unit": "apples"}, "5 apples", "unit is 'apples'"),
    ({"answer": "5 parsecs"}, "5 km", "answer is '5 parsecs', and 'parsecs' is no unit"),  # was right in any unit
    ({"answer": "5 parsecs", "unit": "km"}, "5 km", "'parsecs' is no unit"),
    ({"answer": "x = 5\\text{ parsecs}"}, "5 km", "'parsecs' is no unit"),
    ({"answer": "60 km/fortnight"}, "60 km", "'fortnight' is no unit"),
    ({"answer": "So far.\n#### 5 parsecs"}, "5", "'parsecs' is no unit"),
    ({"answer": "1,5 Ω", "decimal": ","}, "1,5", "'Ω' is no unit"),
])  # fmt: skip
def test_a_unit_that_is_not_known_is_said(row, text, message):
    found = score("numeric", text, **row)
    assert found.status == Status.UNPARSED and message in why(found)


@pytest.mark.parametrize("row", [
    {"answer": "5 km"}, {"answer": "5", "unit": "1"}, {"answer": 5, "unit": 1}, {"answer": "$5 each"}, {"answer": "$15/hr"}, {"answer": "5 in total"}, {"answer": "x = 5"}, {"answer": "about 5"},
    {"answer": "5 because it is odd"}, {"answer": "1 h 30 min"}, {"answer": "3 million"}, {"answer": "50%"}, {"answer": "90°"}, {"answer": "5", "unit": ""}, {"answer": "She had 5.\n#### 5"},
])  # fmt: skip
def test_what_is_known_or_no_unit_is_still_read(row):
    verifier = open_verifier("numeric")
    (found,) = verifier([verifier.gold(row)], [row])
    assert (found.value, found.status) == (1.0, Status.OK)


def test_the_same_text_is_right_beside_an_answer_that_cannot_be_evaluated():
    tower = "9^{9^{9}}"  # as docs/verifiers.md says of `math`
    assert score("math", f"\\boxed{{{tower}}}", answer=tower).value == 1
    assert score("math", "\\boxed{x+1}", answer=tower).status == Status.UNPARSED
