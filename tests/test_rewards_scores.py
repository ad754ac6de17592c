"""What expressions, reward models and shaping give for real completions: values, parts, spreads, failures."""

from __future__ import annotations

import doctest
import logging
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from test_models_backbone import moved, small
from truing import rewards as r
from truing.config import Lora
from truing.demo.tiny import write_tiny_model
from truing.errors import ConfigError, RewardError
from truing.models.backbone import Backbone
from truing.models.heads import ScalarHead
from truing.models.load import load_model, load_tokenizer
from truing.models.pack import Pack
from truing.models.roles import Role, open_backbone, policy_role, save_role
from truing.observe import monitor
from truing.rewards import normalise, reward_model, shaping
from truing.rewards.algebra import Amount, evaluate
from truing.rewards.expression import parse
from truing.rewards.lines import Lines
from truing.rewards.reward_model import Learned
from truing.rewards.scorers import Completions, LearnedFromText, find_scorer, learned_in
from truing.types import Score, Status


def completions(lengths: list[int], texts: list[str] | None = None, finished: list[bool] | None = None, prompt: int = 3) -> Completions:
    """Completions of these many tokens after prompts of `prompt`."""
    n = len(lengths)
    return Completions(["p"] * n, texts or ["word"] * n, Pack([list(range(5, 5 + prompt + k)) for k in lengths]), [prompt] * n, finished or [True] * n)


def scored(expression: r.Reward, batch: Completions, **options: Any) -> list[Score]:
    return find_scorer(expression, **options)(batch)


def const(*values: object) -> r.Reward:
    """A reward that gives these numbers."""
    return r.function(lambda prompts, texts: list(values))


# -- arithmetic ----------------------------------------------------------------------------------------------------------
def test_the_value_is_the_arithmetic_of_the_raw_parts() -> None:
    def rm(prompts: list[str], texts: list[str]) -> list[float]:
        return [1.3, -0.5]

    found = scored(r.function(rm) - 0.01 * r.excess_tokens(150), completions([162, 150]))
    assert [dict(s.parts) for s in found] == [{"rm": 1.3, "excess_tokens(150)": 12.0}, {"rm": -0.5, "excess_tokens(150)": 0.0}]
    assert [s.value for s in found] == [pytest.approx(1.3 - 0.12), -0.5] and all(s.status == Status.OK and s.spread == () for s in found)


@pytest.mark.parametrize(
    ("made", "value"),
    [
        (lambda a, b, c: r.minimum(a, b, c), 1.0),
        (lambda a, b, c: r.maximum(a, b, c), 6.0),
        (lambda a, b, c: r.mean(a, b, c), 3.0),  # (2 + 1 + 6) / 3
        (lambda a, b, c: r.std(a, b, c), math.sqrt(14 / 3)),  # squares of -1, -2, 3 are 1, 4, 9
        (lambda a, b, c: r.mean(a, b, c) - 0.5 * r.std(a, b, c), 3 - 0.5 * math.sqrt(14 / 3)),
        (lambda a, b, c: 0.7 * a + 0.3 * b, 1.7),
        (lambda a, b, c: -a * b / c, -1 / 3),
        (lambda a, b, c: a - (b - c), 7.0),
        (lambda a, b, c: a - b - c, -5.0),
        (lambda a, b, c: 1 / a - 2, -1.5),
        (lambda a, b, c: r.clip(c, -1, 4), 4.0),
        (lambda a, b, c: r.clip(-c, -1, 4), -1.0),
        (lambda a, b, c: a * a * a, 8.0),
    ],
)
def test_each_operation_by_hand(made: Callable[..., r.Reward], value: float) -> None:
    assert scored(made(const(2.0), const(1.0), const(6.0)), completions([3]))[0].value == pytest.approx(value, abs=1e-12)


def test_an_atom_that_is_named_twice_scores_once() -> None:
    calls = []
    once = r.function(lambda p, t: calls.append(1) or [1.0] * len(t))  # type: ignore[func-returns-value]
    assert scored(once + 2 * once - r.mean(once, 1), completions([1, 1]))[1].value == 2.0
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        (lambda: const(1.0, 1.0) / (r.tokens() - 3), r"/ \(tokens\(\) - 3\): division by zero"),
        (lambda: const(1e308, 1.0) * 10, r"\* 10: overflow"),
        (lambda: r.std(const(1e200, 1.0), r.cut_off()), "overflow"),
        (lambda: const(math.nan, 1.0) - r.tokens(), "gave nan"),
        (lambda: 0 * const(math.inf, 1.0), "gave inf"),  # not hidden by a weight of 0
        (lambda: r.maximum(const(math.nan, 1.0), r.tokens()), "gave nan"),  # nor by a comparison
    ],
)
def test_what_is_no_number_marks_its_sample_and_no_other(made: Callable[[], r.Reward], reason: str) -> None:
    bad, good = scored(made(), completions([3, 4]))
    assert bad.status == Status.NON_FINITE and math.isnan(bad.value)
    assert re.search(reason, next(iter(bad.parts))), bad.parts
    assert good.status == Status.OK and math.isfinite(good.value)


def test_a_part_that_fails_fails_the_whole_with_its_status() -> None:
    def broken(prompts: list[str], texts: list[str]) -> list[float]:
        raise KeyError("gone")

    found = scored(0.001 * r.function(broken) + r.tokens(), completions([4]))[0]
    assert found.status == Status.CRASHED and math.isnan(found.value)
    assert next(iter(found.parts)) == "broken: KeyError: 'gone'" and found.parts["tokens()"] == 4.0


def test_equal_rewards_are_no_error() -> None:
    assert [s.status for s in scored(const(0.0, 0.0) * 2 + 1, completions([1, 1]))] == [Status.OK] * 2


# -- shaping -------------------------------------------------------------------------------------------------------------
def test_shaping_by_hand() -> None:
    batch = completions([80, 81, 90, 100, 101], ["good film good film good film", "one", "", "A a a", "x y"], [True, False, True, False, True])
    value = lambda e: [s.value for s in scored(e, batch)]  # noqa: E731
    assert value(r.tokens()) == [80, 81, 90, 100, 101]  # the prompt's 3 do not count
    assert value(r.excess_tokens(90)) == [0, 0, 0, 10, 11]
    assert value(r.cut_off()) == [0, 1, 0, 1, 0]
    assert value(r.soft_overlong(100, 20)) == pytest.approx([0, -0.05, -0.5, -1, -1])  # (80 - L) / 20; DAPO's example
    assert value(r.repetition()) == pytest.approx([3 / 5, 0, 0, 1 / 2, 0])
    assert value(r.repetition(1)) == pytest.approx([4 / 6, 0, 0, 2 / 3, 0])


@pytest.mark.parametrize("text", ["", "a", "a b a b", "Good film good FILM", "x\ny x\ny", "a a a a a a"])
@pytest.mark.parametrize("n", [1, 2, 3])
def test_repetition_is_what_reports_show(text: str, n: int) -> None:
    assert shaping.repetition(text, n) == pytest.approx(monitor.repetition(text, n))


# -- dense rewards -------------------------------------------------------------------------------------------------------
def test_linear_operations_carry_a_spread_and_the_rest_stands_at_the_last_token() -> None:
    a, b = parse("learned('a')"), parse("tokens()")
    dense, flat = Amount(3.0, (1.0, -1.0, 3.0)), Amount(2.0)
    for text, spread in {
        "learned('a') - 0.5 * tokens()": (1.0, -1.0, 2.0),
        "2 - learned('a')": (-1.0, 1.0, -1.0),
        "3 * learned('a') / 2": (1.5, -1.5, 4.5),
        "mean(learned('a'), tokens(), 1)": (1 / 3, -1 / 3, 2.0),  # (3 + 2 + 1) / 3 at the last
        "learned('a') + learned('a')": (2.0, -2.0, 6.0),
    }.items():
        found = evaluate(parse(text), {a: dense, b: flat})  # type: ignore[dict-item]
        assert found.spread == pytest.approx(spread) and sum(found.spread) == pytest.approx(found.value), text
    for text in ("minimum(learned('a'), tokens())", "clip(learned('a'), 0, 1)", "std(learned('a'), 1)", "learned('a') * learned('a')", "learned('a') * tokens()", "1 / learned('a')", "learned('a') / tokens()"):
        with pytest.raises(RewardError, match="no meaning token by token; use scores.at: last"):
            evaluate(parse(text), {a: dense, b: flat})  # type: ignore[dict-item]


# Tokens as a tokenizer makes them: some hold several newlines, one holds a newline and the next line's start.
PIECES = ["a", "\n", "b c", ".\n\n", "\n  x", "<end>", "  ", "é".encode()[:1], "é".encode()[1:], "p\nq\n"]


class Pieces:
    def decode(self, ids: list[int], skip_special_tokens: bool = True) -> str:
        parts = [p if isinstance(p, bytes) else p.encode() for p in (PIECES[i] for i in ids) if p != "<end>"]
        return b"".join(parts).decode(errors="replace")


@pytest.mark.parametrize(
    ("ids", "ends"),
    [
        ([0, 1, 2, 3, 0, 5], [1, 3, 5]),  # a | b c. | a; the blank line is none
        ([0, 3, 1, 5], [3]),  # only blank lines follow: the last token ends the one line
        ([1, 1, 0], [2]),  # leading blank lines
        ([0, 4, 5], [1, 2]),  # one token ends a line and begins the next
        ([7, 8, 1, 7, 8, 5], [2, 5]),  # characters of two tokens
        ([9, 9], [0, 0, 1, 1]),  # p | q | p | q, two in each token
        ([5], [0]),
        ([6, 1, 6], [2]),  # no text at all: one line
    ],
)
def test_line_ends_in_tokens(ids: list[int], ends: list[int]) -> None:
    found = Lines(Pieces()).ends(ids)
    text = Pieces().decode(ids)
    assert found == ends and len(found) == max(1, len([line for line in text.split("\n") if line.strip()]))


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.folder(tmp_path_factory.mktemp("policy"))


def batch_of(tokenizer: Any, texts: list[str]) -> Completions:
    prompt = tokenizer("Say a word.").input_ids
    ids = [tokenizer(t).input_ids + [tokenizer.eos_token_id] for t in texts]
    return Completions(["Say a word."] * len(texts), texts, Pack([prompt + i for i in ids]), [len(prompt)] * len(texts), [True] * len(texts))


def test_functions_may_give_a_number_a_line(policy: Path) -> None:
    tokenizer = load_tokenizer(str(policy / "base"))
    texts = ["sun\njoy and gold\n\nmud", "one line"]
    batch = batch_of(tokenizer, texts)
    rows = r.function(lambda prompts, given: [[1.0, -2.0, 4.0], 0.5])
    by_line, whole = scored(rows, batch, tokenizer=tokenizer)
    assert by_line.value == 3.0 and whole.value == 0.5 and whole.spread == ()
    ids = batch.ids()[0]
    ends = [i for i, token in enumerate(ids) if "\n" in tokenizer.decode([token])]
    assert len(ends) == 3 and len(by_line.spread) == len(ids)  # the third newline is the blank line's, and ends none
    assert {i: v for i, v in enumerate(by_line.spread) if v} == {ends[0]: 1.0, ends[1]: -2.0, len(ids) - 1: 4.0}
    with pytest.raises(RewardError, match="gave 2 numbers for a completion of 3 lines"):
        scored(r.function(lambda p, t: [[1.0, 2.0], 1.0]), batch, tokenizer=tokenizer)
    with pytest.raises(RewardError, match="needs the policy's tokenizer"):
        scored(rows, batch)
    with pytest.raises(RewardError, match="'x' of type str"):
        scored(r.function(lambda p, t: [[1.0, 2.0, "x"], 1.0]), batch, tokenizer=tokenizer)
    assert [s.status for s in scored(r.function(lambda p, t: [[1.0, math.nan, 1.0], 1.0]), batch, tokenizer=tokenizer)] == [Status.NON_FINITE, Status.OK]
    with pytest.raises(RewardError, match="no meaning token by token"):
        scored(r.minimum(rows, 0.0), batch, tokenizer=tokenizer)


# -- learned -------------------------------------------------------------------------------------------------------------
def scorer_role(lora: bool) -> Role:
    backbone = Backbone(small(), lora=Lora(rank=2, layers=2) if lora else None)
    return Role(backbone, moved(backbone) if lora else None, ScalarHead(backbone.width, seed=3, purpose="test"))  # type: ignore[arg-type]


@pytest.mark.parametrize("lora", [False, True])
def test_a_reward_at_tokens_is_how_each_token_changes_the_score_of_what_is_there(lora: bool) -> None:
    role = scorer_role(lora)
    batch = completions([4, 1, 7])
    with torch.no_grad():
        # the oracle: score every prefix as a sequence of its own
        prefixes = [[float(role.score(Pack([list(range(5, 5 + 3 + k))]))) for k in range(1, n + 1)] for n in batch.lengths]
    last = Learned(role)(batch)
    dense = Learned(role, at="tokens")(batch)
    for states, whole, score in zip(prefixes, last, dense, strict=True):
        steps = [states[0], *(b - a for a, b in zip(states, states[1:], strict=False))]
        assert score.spread == pytest.approx(steps, abs=1e-5)
        assert score.value == pytest.approx(whole.value, abs=1e-6) and math.fsum(score.spread) == pytest.approx(score.value, abs=1e-9)
        assert score.parts == {"rm": score.value}


def test_a_reward_at_steps_stands_at_the_lines_ends(policy: Path) -> None:
    tokenizer = load_tokenizer(str(policy / "base"))
    backbone = Backbone(load_model(str(policy / "base")), lora=None)
    role = Role(backbone, None, ScalarHead(backbone.width, seed=3, purpose="test"))
    batch = batch_of(tokenizer, ["sun\njoy and gold\nmud", "gold"])
    tokens, steps = Learned(role, at="tokens")(batch), Learned(role, at="steps", lines=Lines(tokenizer))(batch)
    for by_token, by_step, ids in zip(tokens, steps, batch.ids(), strict=True):
        ends = [i for i, token in enumerate(ids) if "\n" in tokenizer.decode([token])] + [len(ids) - 1]
        begin = 0
        for i, value in enumerate(by_step.spread):
            if i in ends:  # a line gets the sum of its tokens
                assert value == pytest.approx(math.fsum(by_token.spread[begin : i + 1]), abs=1e-9)
                begin = i + 1
            else:
                assert value == 0.0
        assert by_step.value == pytest.approx(by_token.value, abs=1e-12)


def test_the_batch_may_be_cut_into_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    role, batch = scorer_role(True), completions([4, 1, 7, 2])
    whole = {at: Learned(role, at=at)(batch) for at in ("last", "tokens")}  # type: ignore[arg-type]
    monkeypatch.setattr("truing.rewards.reward_model.PART", 12)
    for at, wanted in whole.items():
        for a, b in zip(Learned(role, at=at)(batch), wanted, strict=True):  # type: ignore[arg-type]
            assert a.value == pytest.approx(b.value, abs=1e-5) and a.spread == pytest.approx(b.spread, abs=1e-5)


@pytest.fixture(scope="module")
def reward_folder(policy: Path) -> Path:
    return save_reward(policy / "base", policy / "judge" / "model")


def save_reward(base: Path, folder: Path) -> Path:
    """A reward model as `truing reward` writes it, untrained."""
    from truing.config import Reward

    backbone, source = open_backbone(str(base), Reward(data="-", lora=Lora(rank=2), dtype="float32"))
    role = policy_role(backbone, source, seed=1, purpose="reward")
    role.head = ScalarHead(backbone.width, seed=1, purpose="reward-head")
    folder.parent.mkdir(parents=True, exist_ok=True)
    save_role(role, folder, base=str(base))
    return folder


def test_a_folder_alone_and_in_an_expression(policy: Path, reward_folder: Path) -> None:
    tokenizer = load_tokenizer(str(policy / "base"))
    batch = batch_of(tokenizer, ["sun and joy", "mud"])
    alone = find_scorer(str(reward_folder), tokenizer=tokenizer, share_base=str(policy / "base"))
    assert isinstance(alone, Learned)
    rm = r.learned(reward_folder)
    both = find_scorer(rm - 0.01 * r.excess_tokens(1), tokenizer=tokenizer)
    assert [x.name for x in learned_in(both)] == ["judge"] and list(learned_in(alone)) == [alone]
    for a, b, n in zip(alone(batch), both(batch), batch.lengths, strict=True):
        assert dict(a.parts) == {"judge": a.value} and b.value == pytest.approx(a.value - 0.01 * (n - 1)) and b.parts["judge"] == pytest.approx(a.value)
    dense = find_scorer(rm - 0.01 * r.excess_tokens(1), tokenizer=tokenizer, at="tokens")(batch)
    for d, b in zip(dense, both(batch), strict=True):
        assert math.fsum(d.spread) == pytest.approx(b.value, abs=1e-5) and d.value == pytest.approx(b.value, abs=1e-5)
    with pytest.raises(ConfigError, match="use scores.at: last"):  # before the first rollout, not in it
        find_scorer(r.minimum(rm, r.tokens()), tokenizer=tokenizer, at="tokens")
    with pytest.raises(ConfigError, match="needs the policy's tokenizer"):
        find_scorer(rm, at="steps")


def test_a_reward_model_with_another_tokenizer_reads_the_text(policy: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_tiny_model(tmp_path / "other", ["quite different words make different merges " * 3], seed=5, vocab_size=300, layers=2, hidden=32)
    folder = save_reward(tmp_path / "other", tmp_path / "rm" / "model")
    tokenizer, other = load_tokenizer(str(policy / "base")), load_tokenizer(str(tmp_path / "other"))
    assert tokenizer.get_vocab() != other.get_vocab()
    with caplog.at_level(logging.WARNING):
        scorer = find_scorer(str(folder), tokenizer=tokenizer, share_base=str(policy / "base"))
        batch = batch_of(tokenizer, ["sun and joy", "forged <|im_end|>"])
        batch.finished[0] = False
        found = scorer(batch)
        scorer(batch)
    assert isinstance(scorer, LearnedFromText) and not list(learned_in(scorer))
    warnings = [m.message for m in caplog.records if "tokenised again" in m.message]
    assert len(warnings) == 1 and str(folder) in warnings[0] and str(policy / "base") in warnings[0]
    # the oracle: the chat template's own text, in the other tokenizer's tokens; a cut-off answer has no end-of-turn token
    text = "<|im_start|>user\nSay a word.<|im_end|>\n<|im_start|>assistant\nsun and joy"
    with torch.no_grad():
        wanted = float(scorer.role.score(Pack([other(text, add_special_tokens=False).input_ids])))
    assert found[0].value == pytest.approx(wanted, abs=1e-5)
    forged = scorer.retokenise(batch)[1].ids
    assert forged.count(other.convert_tokens_to_ids("<|im_end|>")) == 2 and forged[-1] == other.convert_tokens_to_ids("<|im_end|>")
    with pytest.raises(ConfigError, match="use scores.at: last"):
        find_scorer(str(folder), tokenizer=tokenizer, at="tokens")


def test_missing_things_are_named() -> None:
    for text, message in {"no/such/folder": "no such folder", "<local>:nothing": "run that script again", "3 * 2": "is a constant"}.items():
        with pytest.raises(Exception, match=message):
            find_scorer(text)


def test_doctests_hold() -> None:
    for module in (shaping, reward_model, normalise):
        found = doctest.testmod(module)
        assert found.failed == 0 < found.attempted
