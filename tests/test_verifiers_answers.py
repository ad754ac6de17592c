"""Verifiers of answers: hundreds of cases decided by hand, random rows whose adversaries must earn nothing, and expressions that blow up."""

from __future__ import annotations

import doctest
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from truing.errors import DataError
from truing.models.pack import Pack
from truing.rewards.completions import Completions
from truing.rewards.verified import Verified
from truing.rewards.verifiers import choice, exact, final, latex, quantities
from truing.rewards.verifiers.final import marked
from truing.rewards.verifiers.maths import Math
from truing.rewards.verifiers.verifier import Verifier, open_verifier
from truing.types import Score, Status

CASES = [json.loads(line) for line in (Path(__file__).parent / "data" / "answers.jsonl").read_text(encoding="utf-8").splitlines()]
NAMES = ("exact", "normalised", "numeric", "choice", "math")


@pytest.fixture(scope="module")
def opened() -> dict[str, Verifier]:
    return {name: open_verifier(name) for name in NAMES}


def row_of(case: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in case.items() if k not in ("verifier", "completion", "right", "why")}


def one(verifier: Verifier, text: str, **row: Any) -> Score:
    return verifier([text], [row])[0]


def reason(score: Score) -> str:
    return next(iter(score.parts))


# -- the cases -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", NAMES)
def test_no_verifier_disagrees_with_a_case_decided_by_hand(name: str, opened: dict[str, Verifier]) -> None:
    cases = [c for c in CASES if c["verifier"] == name]
    scores = opened[name]([c["completion"] for c in cases], [row_of(c) for c in cases])
    assert [(c["answer"], c["completion"], c["why"]) for c, s in zip(cases, scores, strict=True) if s.value != float(c["right"])] == []
    assert all(s.status == (Status.OK if c["right"] else Status.WRONG) and dict(s.parts) == {name: s.value} for c, s in zip(cases, scores, strict=True))


def test_the_cases_are_many_different_and_balanced() -> None:
    assert len(CASES) >= 500 and all(c["why"] for c in CASES)
    assert len({json.dumps({k: v for k, v in c.items() if k not in ("why", "right")}, sort_keys=True) for c in CASES}) == len(CASES)
    assert 0.4 < sum(c["right"] for c in CASES) / len(CASES) < 0.6


def test_the_usual_ways_of_reading_an_answer_fail_on_them() -> None:
    """The last number, the last box, the gold answer anywhere: each is wrong on many cases, most of them paid for spam."""
    numbers = re.compile(r"-?\d[\d,]*(?:\.\d+)?")
    cases = [c for c in CASES if c["verifier"] == "numeric" and isinstance(c["answer"], str) and numbers.fullmatch(c["answer"])]
    last = lambda c: (numbers.findall(c["completion"]) or [""])[-1].replace(",", "") == c["answer"].replace(",", "")  # noqa: E731
    inside = lambda c: c["answer"] in c["completion"]  # noqa: E731
    for naive in (last, inside):
        paid = [c for c in cases if naive(c) and not c["right"]]
        missed = [c for c in cases if not naive(c) and c["right"]]
        assert len(paid) > 10 and len(missed) > 10


# -- rows at random ------------------------------------------------------------------------------------------------------
WORDS = "amber basil cedar delta ember fjord grove hazel ivory jade knoll lilac maple north olive pearl quartz raven slate thyme".split()


def rows(name: str, count: int = 200) -> list[dict[str, Any]]:
    dice = random.Random(f"rows of {name}")
    if name == "math":  # gold answers of the cases, and as many numbers and polynomials
        kinds = [c["answer"] for c in CASES if c["verifier"] == "math"]
        made = [lambda: str(dice.randint(-99, 999)), lambda: rf"\frac{{{dice.randint(1, 40)}}}{{{dice.randint(2, 40)}}}", lambda: f"{dice.randint(2, 9)}x^2+{dice.randint(1, 9)}", lambda: rf"{dice.randint(2, 9)}\sqrt{{{dice.choice([2, 3, 5])}}}"]  # fmt: skip
        return [{"answer": dice.choice(kinds) if i % 2 else dice.choice(made)()} for i in range(count)]
    if name == "choice":
        options = [dice.sample(WORDS, dice.randint(3, 6)) for _ in range(count)]
        return [{"answer": dice.choice("ABCDEF"[: len(o)]), "options": o, "question": f"Which of {' '.join(o)} is it?"} for o in options]
    if name == "numeric":
        return [_numeric(dice) for _ in range(count)]
    return [{"answer": " ".join(dice.sample(WORDS, dice.randint(1, 3))), "question": "What is it?"} for _ in range(count)]


def _numeric(dice: random.Random) -> dict[str, Any]:
    number = dice.choice([str(dice.randint(-50, 5000)), f"{dice.uniform(-9, 99):.2f}", f"{dice.randint(1, 30)}/{dice.randint(2, 30)}", f"{dice.randint(1000, 99999):,}"])
    row: dict[str, Any] = {"answer": dice.choice([number, f"{number} km", f"{number}%", f"${number.lstrip('-')}", f"{number} m/s", f"Work.\n#### {number}"]), "question": f"How many are {number} + 0?"}
    row |= dice.choice([{}, {}, {"tolerance": 0.01}, {"relative": 0.05}, {"tolerance": 3}])
    return row


@pytest.mark.parametrize("name", NAMES)
def test_gold_earns_and_adversaries_never_do(name: str, opened: dict[str, Verifier]) -> None:
    verifier, given = opened[name], rows(name)
    golds = verifier([verifier.gold(r) or "" for r in given], given)
    assert [(r, s) for r, s in zip(given, golds, strict=True) if s.value != 1.0] == []
    tries = [(text, r) for r in given for text in verifier.wrong(r)]
    found = verifier([t for t, _ in tries], [r for _, r in tries])
    assert len(tries) > 5 * len(given)
    assert [(t, r) for (t, r), s in zip(tries, found, strict=True) if not (s.value == 0.0 and s.status == Status.WRONG)] == []


PROBES = {
    "every number": lambda right, n: " ".join(str(i) for i in range(n)),
    "every number, with commas": lambda right, n: ", ".join(str(i) for i in range(n)),
    "every number, a line each": lambda right, n: "\n".join(str(i) for i in range(n)),
    "every number, the right one last": lambda right, n: ", ".join([*(str(i) for i in range(n) if i != right), str(right)]),
    "the phrase with every number": lambda right, n: " ".join(f"The answer is {i}." for i in range(n)),
    "the phrase, the right number last": lambda right, n: " ".join(f"The answer is {i}." for i in [*(j for j in range(n) if j != right), right]),
    "a box for every number": lambda right, n: " ".join(f"\\boxed{{{i}}}" for i in range(n)),
    "one box for all": lambda right, n: "\\boxed{" + ", ".join(str(i) for i in range(n)) + "}",
    "a tag for every number": lambda right, n: "".join(f"<answer>{i}</answer>" for i in range(n)),
    "a mark of GSM8K for every number": lambda right, n: "\n".join(f"#### {i}" for i in range(n)),
    "all kinds of marks": lambda right, n: f"The answer is {right}. \\boxed{{{right + 1}}} <answer>{right + 2}</answer>\n#### {right + 3}",
    "a wrong one, then the right one": lambda right, n: f"The answer is {right + 1}. No, wait, the answer is {right}.",
    "the right one, then a wrong one": lambda right, n: f"The answer is {right}. No, wait, the answer is {right + 1}.",
    "a range": lambda right, n: f"The answer is {right - 1} to {right + 1}.",
    "an inequality": lambda right, n: f"\\boxed{{x \\le {right}}}",
    "the right one in a question": lambda right, n: f"Is it {right}?",
    "thought only": lambda right, n: f"<think>\\boxed{{{right}}}",
}


@pytest.mark.parametrize("probe", PROBES)
@pytest.mark.parametrize("name", ["numeric", "math"])
def test_probes_for_reward_hacks_earn_nothing(name: str, probe: str, opened: dict[str, Verifier]) -> None:
    for right, n in ((7, 12), (42, 100), (99, 100)):
        assert one(opened[name], PROBES[probe](right, n), answer=str(right)).value == 0.0, right


# -- rows that are broken ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("name", "row", "why"),
    [
        ("numeric", {"answer": "forty-two"}, "answer is 'forty-two'; write one number"),
        ("numeric", {"answer": "1 or 2"}, "answer is '1 or 2'; write one number"),
        ("numeric", {"answer": float("nan")}, "answer is 'nan'; write one number"),
        ("numeric", {"answer": True}, "write one number"),
        ("numeric", {"answer": [1]}, "answer is [1]; write one number"),
        ("numeric", {"answer": "5 km", "unit": "kg"}, "in another unit than 'kg'"),
        ("numeric", {"answer": 5, "tolerance": -1}, "tolerance is -1; write a number, 0 or more"),
        ("numeric", {"answer": 5, "relative": "some"}, "relative is some"),
        ("numeric", {"answer": 5, "tolerance": float("inf")}, "tolerance is inf"),
        ("numeric", {"answer": 5, "unit_required": "maybe"}, "unit_required is maybe; write true or false"),
        ("numeric", {"answer": 5, "decimal": ";"}, "decimal is ';'; use one of ., ,"),
        ("choice", {"answer": "E", "options": ["x", "y"]}, "answer is 'E', which is none of the options A, B"),
        ("choice", {"answer": "A", "options": ["x"]}, "options is ['x']; write a list of 2 to 10 texts"),
        ("choice", {"answer": "A", "options": "x y"}, "options is x y"),
        ("exact", {"answer": {}}, "answer is {}; write a text, or a list"),
        ("exact", {"answer": []}, "answer is []"),
        ("normalised", {"answer": "the"}, "nothing is left of the answer 'the'"),
        ("normalised", {"answer": "x", "articles": "some"}, "articles is 'some'; use one of drop, keep"),
        ("math", {"answer": ""}, "answer is '', in which there is no expression"),
        ("math", {"answer": ["1"]}, "answer is ['1']; write a text"),
        ("math", {"answer": "\\frac{1"}, "the answer '\\\\frac{1' cannot be read as an expression"),
        ("math", {"answer": "1/0"}, "cannot be read as an expression"),
    ],
)
def test_a_broken_gold_answer_is_a_status_and_says_why(name: str, row: dict[str, Any], why: str, opened: dict[str, Verifier]) -> None:
    score = one(opened[name], "x+1", **row)
    assert score.status == Status.UNPARSED and why in reason(score) and score.value != score.value
    text = opened[name].gold(row)
    assert isinstance(text, str) and isinstance(opened[name].wrong(row), list | tuple)  # neither raises: `truing verify` asks them


# -- what is read --------------------------------------------------------------------------------------------------------
def test_answers_of_majority_votes_are_equal_texts_for_equal_answers(opened: dict[str, Verifier]) -> None:
    said = lambda name, text, **row: opened[name].answer(text, row)  # noqa: E731
    assert {said("numeric", t, answer="5 km") for t in ("5 km", "The answer is 5000 m.", "#### 5", "\\boxed{5.0}")} == {"5"}
    assert said("numeric", "5 kg", answer="5 km") is None and said("numeric", "4 or 5", answer="5") is None and said("numeric", "0.50", answer="1") == "1/2"
    assert {said("choice", t, answer="A", options=["Rome", "Paris"]) for t in ("(b)", "Paris", "The answer is B.")} == {"B"}
    assert said("choice", "A or B", answer="A") is None
    assert said("math", "\\boxed{\\frac{2}{4}}", answer="x") == said("math", "The answer is $0.5$.", answer="x") == "1/2"
    assert said("math", "\\boxed{x + 1}", answer="x") == "x+1" and said("math", "\\boxed{1}\\boxed{2}", answer="x") is None
    assert said("normalised", "The  Answer!", answer="x") == "answer" and said("exact", " A b ", answer="x") == "A b" and said("exact", "", answer="x") is None


def test_marks_are_found_wherever_they_stand() -> None:
    assert marked("The answer is 41. No: \\boxed{42}, so\n#### 43") == ["42", "43", "41"]
    assert marked("\\boxed{\\frac{1}{\\sqrt{2}}} and <ANSWER>x</ANSWER>") == ["x", "\\frac{1}{\\sqrt{2}}"]
    assert marked("**Final Answer:**\n$$\n\\boxed{7}\n$$") == ["7"]  # the box, not the headline a second time
    assert marked("The unanswered question, whose answer nobody knows, is 5") == []


def test_a_batch_of_many_verifiers_goes_to_each_and_comes_back_in_order() -> None:
    table = [{"verifier": "numeric", "answer": "7"}, {"verifier": "math", "answer": "x+1"}, {"verifier": "choice", "answer": "B"}, {"verifier": "numeric", "answer": "?"}]
    texts = ["#### 7", "\\boxed{1+x}", "(c)", "7"]
    scores = Verified("verified")(Completions(["p"] * 4, texts, Pack([[1, 2]] * 4), [1] * 4, [True] * 4, rows=table))
    assert [s.status for s in scores] == [Status.OK, Status.OK, Status.WRONG, Status.UNPARSED] and dict(scores[0].parts) == {"verified": 1.0}
    with pytest.raises(DataError, match="no column 'answer'"):
        Verified("math", "math")(Completions(["p"], ["7"], Pack([[1, 2]]), [1], [True], rows=[{"question": "?"}]))


PIECES = [*"0123456789 -+/*^.,;:%$€°()[]{}<>=!?_\\\n½π−x²A", "answer is ", "\\boxed{", "\\frac{", "}{", "####", "<answer>", "</answer>", "km", " per ", " or ", "\\text{", "\\pm", "\\{", "e9", "×10^", "\ud800", "٣", "million", "sqrt(", "$$"]


def test_no_text_makes_a_verifier_fail(opened: dict[str, Verifier]) -> None:
    dice = random.Random("texts without sense")
    texts = ["".join(dice.choices(PIECES, k=dice.randint(1, 30))) for _ in range(3000)]
    given: dict[str, dict[str, Any]] = {"numeric": {"answer": "7 km"}, "choice": {"answer": "B", "options": ["7", "8 km"]}, "normalised": {"answer": "x"}, "exact": {"answer": "x"}, "math": {"answer": "no such"}}
    for name, row in given.items():
        assert all(s.status.usable for s in opened[name](texts, [row] * len(texts)))
        assert all(isinstance(opened[name].answer(t, row), str | None) for t in texts[:500])
    for text in texts[:1000]:  # nor does any gold answer
        for name in ("numeric", "choice", "normalised", "exact"):
            assert one(opened[name], "7", answer=text).status in (Status.OK, Status.WRONG, Status.UNPARSED)
    assert {s.status for s in opened["math"](["\\boxed{x+y}"] * 150, [{"answer": t} for t in texts[:150]])} <= {Status.OK, Status.WRONG, Status.UNPARSED}


@pytest.mark.parametrize("module", [exact, choice, latex, final, quantities])
def test_the_examples_in_the_docstrings_hold(module: ModuleType) -> None:
    found = doctest.testmod(module)
    assert found.failed == 0 < found.attempted


# -- the child -----------------------------------------------------------------------------------------------------------
def quick() -> Math:
    verifier = Math()
    verifier.seconds = 0.3
    return verifier


BLOWUPS = ["9^{9^{9}}", "1000000000!", "10^{10^{10}}", "2^{2^{2^{2^{2^{2}}}}}", "(x+1)^{100000}", "\\sum_{k=1}^{1000000000} k!"]


def test_what_blows_up_is_wrong_in_bounded_time_and_harms_nobody_else() -> None:
    verifier = quick()
    texts = [t for blowup in BLOWUPS for t in (f"\\boxed{{{blowup}}}", "\\boxed{1+x}")]
    start = time.process_time(), time.monotonic()
    scores = verifier(texts, [{"answer": "x+1"}] * len(texts))
    assert [s.value for s in scores] == [0.0, 1.0] * len(BLOWUPS) and [s.status for s in scores] == [Status.WRONG, Status.OK] * len(BLOWUPS)
    assert time.process_time() - start[0] < 1.0  # nothing is evaluated here
    assert time.monotonic() - start[1] < 20.0 * len(BLOWUPS)  # about a second each on a free machine


def test_only_the_first_blow_up_of_a_completion_is_paid_for() -> None:
    verifier = quick()
    start = time.monotonic()
    hungry = ", ".join(f"{i}^{{9^{{9^{{9}}}}}}+x" for i in range(2, 12))
    assert one(verifier, f"\\boxed{{{hungry}}}", answer=", ".join(f"x+{i}" for i in range(10))).value == 0.0
    assert time.monotonic() - start < 20.0


def test_a_gold_answer_that_blows_up_is_no_zero() -> None:
    verifier = quick()
    scores = verifier(["\\boxed{5}", "\\boxed{6}", "\\boxed{1+x}"], [{"answer": "9^{9^{9}}"}, {"answer": "9^{9^{9}}"}, {"answer": "x+1"}])
    assert [s.status for s in scores] == [Status.UNPARSED, Status.UNPARSED, Status.OK] and "takes too long to evaluate" in reason(scores[0])


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_child_that_somebody_killed_or_stopped_costs_no_reward(how: signal.Signals) -> None:
    verifier = Math()
    assert one(verifier, "\\boxed{1+x}", answer="x+1").value == 1.0
    pid = verifier.bounded.process.pid
    assert pid is not None
    os.kill(pid, how)
    verifier.bounded.seconds = 2.0
    assert one(verifier, "\\boxed{2+x}", answer="x+2").value == 1.0 and verifier.bounded.process.pid != pid


def test_a_child_that_cannot_work_is_a_status() -> None:
    verifier = Math()
    verifier.bounded.process.target = "truing.rewards.verifiers.no_such_module:equal"
    assert one(verifier, "\\boxed{1+x}", answer="x+1").status == Status.CRASHED
    assert one(verifier, "\\boxed{7}", answer="7").value == 1.0  # which needs no algebra
    verifier.bounded.process.target = "truing.rewards.verifiers.equivalence:equal"
    assert one(verifier, "\\boxed{1+x}", answer="x+1").value == 1.0  # and is not remembered


def test_what_no_exception_can_interrupt_ends_with_the_process() -> None:
    code = "from truing.rewards.verifiers.equivalence import limited; limited(lambda: sum(range(10**12)), None, 0.5)"  # one call of C code, for hours
    found = subprocess.run([sys.executable, "-c", code], check=False, timeout=120, stderr=subprocess.DEVNULL)
    assert found.returncode == -signal.SIGXCPU


NASTY = ["1,", "1 000 ", "answer is ", "answer\n", "#### 1\n", "\\boxed{", "$$a", "<answer>", "\\frac{1", "1\n", "1.", "a ", "\\sqrt(", "1/", "**", "(", "5 m per ", "<think>"]


@pytest.mark.parametrize("name", NAMES)
def test_reading_takes_time_in_proportion_to_the_text(name: str, opened: dict[str, Verifier]) -> None:
    row = {"answer": "x+1" if name == "math" else "B" if name == "choice" else "7"}
    for piece in NASTY:
        start = time.process_time()
        assert one(opened[name], piece * (100_000 // len(piece)), **row).value == 0.0
        assert time.process_time() - start < 2.0, piece


def test_a_number_is_verified_in_less_than_a_tenth_of_a_millisecond(opened: dict[str, Verifier]) -> None:
    text, row = "She sold 48 / 2 = 24 clips in May. In all that is 48 + 24 = 72 clips.\n#### 72", {"answer": "Work.\n#### 72"}
    times = []
    for _ in range(20):
        start = time.perf_counter()
        opened["numeric"]([text] * 200, [row] * 200)
        times.append((time.perf_counter() - start) / 200)
    assert min(times) < 1e-4
