"""`truing verify`: gold answers earn 1, made-up ones do not, and each disagreement is named by its file and line."""

from __future__ import annotations

import json
import math

import pytest
import typer
from typer.testing import CliRunner

from truing.cli.verify import verify
from truing.data.formats import load
from truing.errors import ConfigError, DataError
from truing.rewards import selfcheck
from truing.rewards.completions import failed
from truing.rewards.verifiers import verifier as registry
from truing.types import Score, Status

app = typer.Typer()
app.command("verify")(verify)
app.command("other")(lambda: None)


def write(path, *rows):
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


def run(*argv):
    return CliRunner().invoke(app, ["verify", *map(str, argv)])


TAGS = {"prompt": "Think.", "verifier": "format", "tags": ["think", "answer"], "answer": "7"}
WORDS = {"prompt": "Say a few words.", "verifier": "instructions", "instructions": [{"kind": "length_constraints:number_words", "relation": "at most", "num_words": 3}], "answer": "one two"}


def test_a_file_on_which_all_agree(tmp_path):
    data = write(tmp_path / "a.jsonl", TAGS, {**TAGS, "answer": "8", "prompt": "Again."})
    done = run(data)
    assert done.exit_code == 0, done.output
    head, row, last = done.output.splitlines()
    # per row: the gold answer, and nine texts that are made to cheat with two tags
    assert row.split()[:8] == ["format", "2", "2", "of", "2", "0", "0", "of"] and "2 ok, 18 wrong" in row
    assert last == "no disagreements"


def test_each_disagreement_is_named_and_the_exit_code_is_1(tmp_path):
    rows = [WORDS, {**WORDS, "answer": "one two three four"}, {**WORDS, "answer": None}, {**WORDS, "instructions": []}]
    done = run(write(tmp_path / "b.jsonl", *rows))
    assert done.exit_code == 1
    assert f"{tmp_path}/b.jsonl:2: instructions: the gold answer 'one two three four' earns 0, not 1; the row's answer is 'one two three four'" in done.output
    assert f"{tmp_path}/b.jsonl:4: instructions: the row cannot be used: instructions is []" in done.output
    assert "b.jsonl:1:" not in done.output and "b.jsonl:3:" not in done.output and done.output.splitlines()[-1] == "2 disagreements"
    assert done.output.splitlines()[1].split()[:6] == ["instructions", "4", "1", "of", "2", "1"]  # one row implies no gold answer


def test_json_and_limit(tmp_path):
    data = write(tmp_path / "c.jsonl", TAGS, {**TAGS, "tags": ["a", "a"]})
    assert run(data, "--limit", 1).exit_code == 0
    done = run(data, "--json")
    found = json.loads(done.output)
    assert done.exit_code == 1 and found["ok"] is False
    assert found["verifiers"]["format"]["gold_earned"] == 1 and found["verifiers"]["format"]["statuses"] == {"ok": 1, "wrong": 9}
    assert [(d["source"], d["kind"]) for d in found["disagreements"]] == [(f"{data}:2", "row")]


def test_by_takes_one_verifier_for_all_rows(tmp_path):
    data = write(tmp_path / "d.jsonl", {"prompt": "Think.", "tags": ["answer"]})
    assert run(data).exit_code == 1 and "names no verifier" in run(data).output
    assert run(data, "--by", "format").exit_code == 0
    with pytest.raises(ConfigError, match="did you mean 'format'"):
        CliRunner().invoke(app, ["verify", str(data), "--by", "fromat"], catch_exceptions=False)


class Gullible:
    """Pays whatever speaks of money, and cannot judge the empty text."""

    name = "gullible"
    columns = ("answer",)

    def __call__(self, texts, rows):
        return [failed(Status.CRASHED, "nothing there") if not t else Score(float("$" in t), {"gullible": float("$" in t)}, Status.OK if "$" in t else Status.WRONG) for t in texts]

    def gold(self, row):
        return f"${row['answer']}"

    def wrong(self, row):
        return ("", "$0", "0")

    def answer(self, text, row):
        return None


@pytest.fixture
def gullible(monkeypatch):
    monkeypatch.setattr("truing.rewards.verified.open_verifier", lambda name: Gullible())


def test_a_verifier_that_pays_a_wrong_answer_or_cannot_judge_one_is_found_out(tmp_path, gullible):
    prompts = load(write(tmp_path / "e.jsonl", {"prompt": "How much?", "answer": "5", "verifier": "gullible"}), "prompts").records
    proof = selfcheck.prove(prompts)
    tally = proof.tallies["gullible"]
    assert (tally.rows, tally.gold, tally.gold_earned, tally.wrong, tally.wrong_earned) == (1, 1, 1, 3, 1)
    assert dict(tally.statuses) == {"ok": 2, "crashed": 1, "wrong": 1}
    assert [d.message for d in proof.disagreements] == ["the wrong answer '' could not be judged: crashed (nothing there)", "the wrong answer '$0' earns 1"]


def test_selfcheck_stops_a_run_before_it_starts(tmp_path):
    good, bad = TAGS, {**TAGS, "tags": "think"}
    prompts = load(write(tmp_path / "f.jsonl", *([good] * 64), bad, bad), "prompts").records
    assert selfcheck.selfcheck(prompts[:64], most=16).tallies["format"].rows == 16
    with pytest.raises(DataError) as error:
        selfcheck.selfcheck(prompts, most=100)
    assert str(error.value).startswith(f"{tmp_path}/f.jsonl:65: format: the row cannot be used: tags is 'think'; write a list")
    assert "(1 more in the 66 rows of 66 that were checked); `truing verify DATA` lists them all" in str(error.value)


def test_tallies_without_checks_have_no_time():
    assert math.isnan(selfcheck.Tally().milliseconds)
    assert selfcheck.Tally(gold=1, wrong=3, seconds=0.2).milliseconds == pytest.approx(50)


def test_every_registered_verifier_names_itself():
    for name in registry.VERIFIERS:
        try:
            opened = registry.open_verifier(name)
        except ConfigError as error:  # what it needs is not installed
            assert "PATH" in str(error) or "install" in str(error)
            continue
        assert opened.name == name and isinstance(opened.columns, tuple)
