"""The lab `programs`: its tasks are what they say, their tests can tell, and a few steps of it run through the real sandbox."""

from __future__ import annotations

import doctest
import json

import numpy as np
import pytest

from truing.errors import ConfigError, TruingError
from truing.labs import programs, programs_world
from truing.labs.canvas import png
from truing.labs.programs import Options, by_rote, over, run
from truing.labs.programs_runs import Measured
from truing.labs.programs_world import CONTEXT, KINDS, LONGEST, STEPS, Sizes, Task, inputs, reader, rows, tasks, taught, unit_tests

STEP = {(s.takes, s.says): s for s in STEPS}


@pytest.fixture(scope="module")
def verifier():
    """The real one, or a reason."""
    from truing.rewards.verifiers.verifier import open_verifier

    try:
        return open_verifier("code")
    except ConfigError as error:
        pytest.skip(f"no sandbox tier works here: {error}")


def chain(kind, *steps):
    return Task(kind, tuple((STEP[k, says], a) for k, says, a in steps))


def test_examples():
    for module in (programs_world, programs):
        found = doctest.testmod(module)
        assert found.attempted > 0 and found.failed == 0


# -- tasks --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "code", "args", "expected"),
    [
        (chain("number", ("number", "plus {a}", 3), ("number", "times {a}", None)), "(x + 3) * n", (4, 5), 35),  # (4 + 3) * 5
        (chain("number", ("number", "times {a}", 3), ("number", "plus {a}", None)), "x * 3 + n", (4, 5), 17),  # 12 + 5
        (chain("number", ("number", "minus {a}", 2), ("number", "minus {a}", None)), "x - 2 - n", (9, 3), 4),
        (chain("number", ("number", "times {a}", 5), ("number", "the rest by {a}", 7)), "x * 5 % 7", (4, 2), 6),  # 20 = 2 * 7 + 6
        (chain("number", ("number", "minus {a}", 9), ("number", "the rest by {a}", 7)), "(x - 9) % 7", (4, 2), 2),  # -5 = -1 * 7 + 2
        (chain("number", ("number", "at least {a}", 4), ("number", "whether over {a}", None)), "max(x, 4) > n", (1, 3), True),
        (chain("word", ("word", "reversed", 0), ("word", "its first {a}", None), ("word", "in capitals", 0)), "s[::-1][:n].upper()", ("bcd", 2), "DC"),
        (chain("word", ("word", "repeated {a} times", 2), ("word", "without its first {a}", 1)), "(s * 2)[1:]", ("bc", 3), "cbc"),
        (chain("list", ("list", "those over {a}", 3), ("list", "each plus {a}", None)), "[i + n for i in [i for i in v if i > 3]]", ([3, 4, 9], 2), [6, 11]),
        (chain("list", ("list", "sorted", 0), ("list", "its first {a}", 2), ("list", "its sum", 0)), "sum(sorted(v)[:2])", ([5, 1, 3], 1), 4),
    ],
)
def test_a_chain_in_python_and_its_value(task, code, args, expected):
    assert task.code.endswith(f"    return {code}") and task(*args) == expected


def test_every_step_does_what_its_code_does(verifier):
    """In the sandbox, after a step of every kind of expression that can stand before it: a missing parenthesis would change the value."""
    made = []
    for step in STEPS:
        before = [None, *(s for s in STEPS if s.gives == step.takes and s.takes == step.takes)]
        for first in before:
            task = Task(step.takes, tuple((s, 2) for s in (first, step) if s is not None))
            given = [inputs(task.kind, np.random.default_rng(i)) for i in range(2)]
            made.append({"function": "f", "tests": [{"args": g, "expected": task(*g)} for g in given], "gold": task.code})
    scores = verifier([row["gold"] for row in made], made)
    assert [row["gold"] for row, s in zip(made, scores, strict=True) if s.value != 1] == [] and len(made) > 100
    wrong = chain("number", ("number", "plus {a}", 3), ("number", "times {a}", None))
    row = {"function": "f", "tests": [{"args": [4, 5], "expected": wrong(4, 5)}]}
    assert verifier(["def f(x, n):\n    return x + 3 * n"], [row])[0].value == 0


def test_tasks_differ_and_a_world_has_only_so_many():
    assert len({t.description for t in tasks(3, 500)}) == 500
    assert tasks(3, 20) == tasks(3, 20) and tasks(3, 20) != tasks(4, 20)
    assert {t.kind for t in tasks(0, 50, kinds=("word",))} == {"word"}
    assert not any(s.gives == "truth" for t in tasks(0, 200, truths=False) for s, _ in t.steps)
    with pytest.raises(ConfigError, match="draws gave"):
        tasks(0, 6000, kinds=("word",))


def test_a_constant_passes_at_most_half_of_the_tests():
    for i, task in enumerate(tasks(1, 200)):
        found = unit_tests(task, 6, np.random.default_rng(i))
        if found is not None:
            said = [json.dumps(t["expected"]) for t in found]
            assert len(found) == 6 == len({json.dumps(t["args"]) for t in found}) and max(map(said.count, said)) <= 3
            assert all(t["expected"] == task(*t["args"]) for t in found)
    always = chain("number", ("number", "at least {a}", 9), ("number", "at most {a}", 9))  # 9, whatever x is
    assert unit_tests(always, 4, np.random.default_rng(0)) is None


def test_rows_pay_for_the_first_tests_and_tell_the_first_one():
    chosen = tasks(2, 40, kinds=("number",), truths=False)
    few, many = rows(chosen, 1, 3, 7, example=True), rows(chosen, 4, 3, 7, example=True)
    assert {tuple(t["hidden"] for t in row["tests"]) for row in few} == {(False, True, True, True)}
    assert {tuple(t["hidden"] for t in row["tests"]) for row in many} == {(False,) * 4 + (True,) * 3}
    for row in few:
        first = row["tests"][0]
        assert row["prompt"].endswith(f" f({first['args'][0]}, {first['args'][1]}) = {first['expected']}")
    assert "=" not in rows(chosen, 1, 3, 7, example=False)[0]["prompt"]


def test_some_demonstrations_return_the_example():
    shown = tasks(5, 300, kinds=("number",), truths=False)
    made = taught(shown, 5, Sizes(constants=0.3), example=True)
    lazy = [d for d in made if programs.constant(d["completion"])]
    assert 0.2 < len(lazy) / len(made) < 0.4  # 0.3 +- 4 standard errors of 0.026
    assert all(d["prompt"].endswith(f"= {d['completion'].rpartition(' ')[2]}") for d in lazy)
    assert not any(programs.constant(d["completion"]) for d in taught(shown, 5, Sizes(), example=True))


def test_the_tokenizer_gives_back_what_it_read_and_all_fits():
    made = rows(tasks(0, 600), 2, 2, 0, example=True)
    tokenizer = reader([row["prompt"] + row["gold"] for row in made[:200]])
    for row in made:
        for text in (row["prompt"], row["gold"]):
            ids = tokenizer(text).input_ids
            assert tokenizer.decode(ids) == text and tokenizer.pad_token_id not in ids
        assert len(tokenizer(row["gold"]).input_ids) < LONGEST and len(tokenizer(row["prompt"]).input_ids) + LONGEST <= CONTEXT
    assert set(KINDS) == {"number", "word", "list"}


# -- numbers ------------------------------------------------------------------------------------------------------------


def test_intervals_are_over_seeds_and_tasks():
    assert over([np.ones(5), np.ones(5)]) == (1, 1, 1)
    narrow, wide = over([np.tile([0.0, 1.0], 50)] * 3), over([np.zeros(100), np.full(100, 0.5), np.ones(100)])
    assert narrow.mean == wide.mean == 0.5 and wide.high - wide.low > 2 * (narrow.high - narrow.low)  # what differs from seed to seed is not averaged away over tasks
    assert over([np.array([0.0, 1.0, 0.0, 1.0])]).mean == 0.5


def test_solved_needs_both_kinds_of_test():
    m = Measured(np.array([[1.0, 1.0, 0.5, 0.0]]), np.array([[1.0, 0.5, 1.0, 0.0]]), [["def f(x, n):\n    return -12", "def f(x, n):\n    return x", "", "def f(x, n):\n    return 1 + n"]])
    assert m.solved.tolist() == [[1, 0, 0, 0]] and by_rote(m).tolist() == [[1, 0, 0, 0]]


# -- the lab ------------------------------------------------------------------------------------------------------------


SMALL = {"steps": 3, "batch": 8, "group": 4, "demonstrations": 64, "rounds": 1, "heldout": 4, "samples": 2}


@pytest.mark.parametrize("exercise", ["main", "hidden"])
def test_three_steps_through_the_sandbox(exercise, verifier):
    options = Options(exercise=exercise, **SMALL)
    findings = run(options, [0])
    assert len(findings.checks) >= 4 and [t.title for t in findings.tables]
    for name, (record,) in findings.values["runs"].items():
        assert len(record["part/visible_tests"]) == (1 if name == "flipped" else 3)
        assert 0 < record["sandbox_share"] < 1 and record["programs_per_second"] > 0
        assert all(0 <= v <= 1 for v in record["after"].values())
    json.dumps(findings.document())
    assert all(png(figure).startswith(b"\x89PNG") for figure in findings.figures.values())


@pytest.mark.parametrize("wrong", [{"batch": 10, "group": 4}, {"exercise": "seen"}, {"lr": -1}, {"steps": 0}, {"constants": 1.5}])
def test_wrong_options_are_refused(wrong):
    with pytest.raises((ValueError, TruingError)):
        Options(**wrong)


def test_sizes_fit_what_is_asked_for():
    assert Options(steps=10, batch=16, group=4).sizes == Sizes(2000, 12, 0.25, 80, 64, 0.5)
    assert Options(exercise="hidden").sizes.kinds == ("number",) and Options(exercise="hidden").rollouts == 20
