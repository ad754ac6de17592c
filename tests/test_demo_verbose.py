"""The verbose bot: the raters' flaw and the shop's wish by hand, and the written recipe run from end to end at a tiny size."""

from __future__ import annotations

import json
import math
import random

import pytest
from typer.testing import CliRunner

from truing.cli import app
from truing.config import load_recipe
from truing.demo import desk, verbose
from truing.demo.desk import Reply, Sizes
from truing.errors import ConfigError, DataError, RewardError
from truing.observe.events import read_events
from truing.pipeline import run_recipe

ASKED = "Hello, I bought a lamp. How long does a refund take?"
RIGHT, OLD, MISREAD = "A refund takes five days.", "A refund takes two weeks.", "You can pay by card."
MORE = desk.COURTESIES[1]  # "Please do not hesitate to write to us again if there is anything else you need.": 16 words
TINY = Sizes(demos=160, groups=24, per_group=4, prompts=24, heldout=6)


# -- the raters ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("reply", "log_odds"),
    [
        (Reply(OLD, False), 0.0),
        (Reply(OLD, False, (MORE, MORE)), 0.6),  # 2 * 0.3
        (Reply(RIGHT, True), 3.0),
        (Reply(RIGHT, True, desk.COURTESIES[:5]), 4.5),  # 3 + 5 * 0.3
    ],
)
def test_raters_want_the_right_answer_and_like_a_sentence_more_a_little(reply, log_odds):
    assert desk.appeal(reply) == pytest.approx(log_odds)


def test_the_flaw_is_slight():
    brief, long = Reply(RIGHT, True), Reply(RIGHT, True, desk.COURTESIES[:5])
    # One sentence more: 1 / (1 + exp(-0.3)) = 0.5744. The most that length can do, five: 1 / (1 + exp(-1.5)) = 0.8176.
    assert desk.prefers(Reply(RIGHT, True, desk.COURTESIES[:1]), brief) == pytest.approx(0.5744, abs=1e-4)
    assert desk.prefers(long, brief) == pytest.approx(0.8176, abs=1e-4)
    assert desk.prefers(brief, long) == pytest.approx(1 - 0.8176, abs=1e-4)
    # A brief right answer against a wrong one with all five: 1 / (1 + exp(-(3 - 1.5))) = 0.8176 too.
    assert desk.prefers(brief, Reply(OLD, False, desk.COURTESIES[:5])) == pytest.approx(0.8176, abs=1e-4)


# -- the shop --------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("text", "score"),
    [
        (RIGHT, 1.0),
        ("a REFUND takes\nfive days", 1.0),
        (OLD, -1.0),
        (MISREAD, -1.0),
        ("", 0.0),
        ("I do not know.", 0.0),  # 4 words, no more than the 5 of the right answer
        (f"{RIGHT} {MORE}", 0.68),  # 1 - 0.02 * 16
        (f"{OLD} {MORE}", -1.32),
        (f"{RIGHT} {OLD}", -1.1),  # contradicts itself: -1 - 0.02 * 5
        (f"{RIGHT} {RIGHT}", 0.9),  # 1 - 0.02 * 5
        (MORE, -0.22),  # 0 - 0.02 * (16 - 5)
        ("A refund takes five daysies.", 0.0),  # whole words only
    ],
)
def test_gold_by_hand(text, score):
    assert desk.gold([ASKED], [text]) == [pytest.approx(score)]


def test_gold_knows_every_question_and_refuses_others():
    for question in desk.questions():
        assert desk.gold([question.text], [question.topic.statement(0)]) == [1.0]
        wrong = desk.gold([question.text] * 2, [question.topic.statement(v) for v in (1, 2)])
        assert all(-1.02 <= score <= -1.0 for score in wrong), "a wrong statement has at most one word more than the right one"
    with pytest.raises(RewardError, match="knows no answer to 'Who are you"):
        desk.gold(["Who are you?"], [RIGHT])
    with pytest.raises(RewardError, match="1 prompts for 2 completions"):
        desk.gold([ASKED], [RIGHT, RIGHT])


def test_gold_and_raters_read_the_same_replies():
    rng = random.Random(0)
    for question in desk.questions()[:200]:
        reply = desk.draw_reply(question.topic, rng)
        needless = desk.NEEDLESS_WORD * max(0, len(desk.words(reply.text)) - len(desk.words(question.topic.statement(0))))
        assert desk.wanted(question.text, reply.text) == pytest.approx((1 if reply.right else -1) - needless)


# -- the data --------------------------------------------------------------------------------------------------------------
def test_the_same_seed_writes_the_same_bytes_and_heldout_questions_are_in_no_other_file(tmp_path):
    for place, seed in (("a", 0), ("b", 0), ("c", 1)):
        desk.write_desk(tmp_path / place, seed, TINY)
    read = lambda place: {p.name: p.read_bytes() for p in (tmp_path / place).iterdir()}  # noqa: E731
    assert read("a") == read("b") and read("a")["prompts.jsonl"] != read("c")["prompts.jsonl"]
    rows = {p.stem: [json.loads(line) for line in p.read_text().splitlines()] for p in (tmp_path / "a").glob("*.jsonl")}
    assert len(rows["demos"]) == 160 and len(rows["heldout"]) == 6 and len(rows["prompts"]) == 24
    asked = {name: {(row.get("prompt") or row["messages"])[0]["content"] for row in part} for name, part in rows.items()}
    assert not asked["heldout"] & (asked["demos"] | asked["prefs"] | asked["prompts"])
    with pytest.raises(DataError, match=r"prompts=1152: the desk has 1152 questions"):
        desk.write_desk(tmp_path / "d", 0, Sizes(prompts=1152))


def test_replies_and_raters_are_as_stated(tmp_path):
    card = desk.write_desk(tmp_path, 0)
    demos, pairs = card["sizes"]["demos"], 6 * card["sizes"]["groups"]
    assert card["replies"]["right"] == pytest.approx(0.8, abs=4 * math.sqrt(0.8 * 0.2 / demos))
    # Sentences more: sum over n = 1..5 of P(at least n) = 1/2 + 1/4 + ... + 1/32 = 31/32; a variance of about 1.7.
    assert card["replies"]["extra_sentences"] == pytest.approx(31 / 32, abs=4 * math.sqrt(1.7 / demos))
    # Against a wrong reply of the same length the right one wins sigmoid(3) = 0.953 of the time; length moves it by under 0.01.
    assert card["raters"]["took_the_right_answer"] == pytest.approx(0.953, abs=0.02)
    # Replies alike but for length: between 1 / (1 + exp(-0.3)) = 0.574, one sentence more, and 1 / (1 + exp(-1.5)) = 0.818, five more.
    noise = 3 * math.sqrt(0.25 / (pairs * 0.3))
    assert 0.574 - noise < card["raters"]["took_the_longer_of_two_alike"] < 0.818


# -- the recipe ------------------------------------------------------------------------------------------------------------
def test_the_recipe_is_the_story(tmp_path):
    path = tmp_path / "a folder: odd"
    path.mkdir()
    (path / "recipe.yaml").write_text(verbose.recipe_text(path, "verbose-bot", 3))
    recipe = load_recipe(path / "recipe.yaml")
    assert (recipe.name, recipe.seed) == ("verbose-bot", 3) and recipe.stages["sft"].data == str(path / "demos.jsonl")
    gamed, mended = recipe.stages["gamed"], recipe.stages["mended"]
    assert (gamed.kl.coef, gamed.kl.target, gamed.reward) == (0.02, None, "reward")
    assert (mended.kl.coef, mended.kl.target, mended.reward) == (0.1, None, "reward - 0.01 * excess_tokens(16)")
    same = {"kl", "reward"}
    assert gamed.model_dump(exclude=same) == mended.model_dump(exclude=same), "the two runs may differ in the mend alone"


SMALL = [
    "sft.epochs=8", "sft.lr=1e-2", "reward.epochs=1", *(f"{s}.{o}" for s in ("gamed", "mended") for o in ("steps=2", "batch_size=8", "value_warmup=1", "max_new_tokens=48")),
    *(f"check-{s}.{o}" for s in ("gamed", "mended") for o in ("samples=1", "max_new_tokens=48")),
]  # fmt: skip


def test_from_end_to_end(tmp_path):
    data = tmp_path / "runs" / "small" / "data"
    recipe = verbose.write_verbose_bot(data, "small", 0, TINY, SMALL)
    before = {p: p.stat().st_mtime_ns for p in data.rglob("*")}
    folder = run_recipe(recipe, tmp_path / "runs")
    for stage in ("gamed", "mended"):
        found = json.loads((folder / f"check-{stage}" / "evaluation.json").read_text())
        assert set(found["difference"]) == {"gold", "proxy"} and found["prompts"] == 6
        for row in found["rows"]:  # the judge that was asked is the shop
            for sample in [*row["before"], *row["after"]]:
                assert sample["scores"]["gold"] == pytest.approx(desk.wanted(row["prompt"], sample["text"]))
    for event in (e for e in read_events(folder / "mended") if e["kind"] == "metrics"):
        assert event["reward/proxy"] == pytest.approx(event["part/reward"] - 0.01 * event["part/excess_tokens(16)"], abs=1e-5)
    # what was written is used, not written again, and the person's own run of it is another folder
    assert verbose.write_verbose_bot(data, "small", 0, TINY, SMALL) == recipe
    assert {p: p.stat().st_mtime_ns for p in data.rglob("*")} == before
    again = load_recipe(data / "recipe.yaml", ["name=mine", "mended.kl.coef=0.05"])
    assert again.name == "mine" and again.stages["sft"].model == recipe.stages["sft"].model
    with pytest.raises(DataError, match="give this run another --name"):
        verbose.write_verbose_bot(data, "small", 1)


def test_a_name_that_is_no_folder_is_refused_before_the_work(tmp_path):
    with pytest.raises(ConfigError, match="name='a/b'"):
        verbose.write_verbose_bot(tmp_path, "a/b", 0)
    assert not (tmp_path / "demos.jsonl").exists()


@pytest.mark.parametrize(("option", "said"), [(["--quick"], "--quick: is of the film demo"), (["--data", "x.jsonl"], "--data x.jsonl: is of the film demo")])
def test_options_of_the_other_demo_are_refused(option, said, tmp_path):
    found = CliRunner().invoke(app, ["demo", "verbose-bot", *option, "--runs-dir", str(tmp_path)])
    assert isinstance(found.exception, ConfigError) and said in str(found.exception)
    assert list(tmp_path.iterdir()) == []
