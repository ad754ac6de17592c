"""What counts as solved, and whose words are paid for: rewards that mix checked parts with others, and episodes in which somebody else speaks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import grpo_by_hand as hand
import ppo_tiny
from truing.config import make_stage
from truing.data.formats import check_disjoint, load, prompt_key, row_key
from truing.envs.text import open_text_environment
from truing.errors import DataError
from truing.methods.evaluate import attempts
from truing.methods.groups import Drawn
from truing.methods.grpo_record import _gap
from truing.models.pack import Pack
from truing.observe.gaming import gaming
from truing.rewards.completions import as_completions
from truing.rewards.scorers import find_scorer
from truing.rewards.verified import checked_parts
from truing.types import Rollout, Score


def episode() -> Rollout:
    """Two samples: the first says 13, hears "The answer is 16.", says 5; the second says 7 at once. Tokens stand for words, see `decode`."""
    said = torch.tensor([[13, 5], [7, 0]])
    return Rollout([[1], [1]], said, torch.tensor([[True, True], [True, False]]), torch.zeros(2, 2), torch.tensor([True, True]), 1.0, 0, (((1, (900, 16)),), ()))


def decode(ids: Any) -> list[str]:
    return [" ".join("The answer is" if i == 900 else str(i) for i in row) for row in ids]


def test_what_an_environment_says_is_not_paid_for() -> None:
    rollout = episode()
    rows = [{"answer": "16", "verifier": "numeric"}, {"answer": "7", "verifier": "numeric"}]
    texts = as_completions(rollout, decode, ["q", "q"], Pack(rollout.sequences()), rows)
    assert texts.texts == ["13\n5", "7"] and list(texts.last) == ["5", "7"] and texts.transcripts[0] == "13 The answer is 16 5"
    assert [s.value for s in find_scorer("verified()")(texts)] == [0.0, 1.0]  # the first was told 16, and said 5
    assert [list(t) for t in texts.select([1]).turns] == [["7"]] and texts.select([0]).transcripts == [texts.transcripts[0]]


def test_the_last_turn_is_the_answer() -> None:
    rollout = episode()
    texts = as_completions(rollout, decode, ["q", "q"], Pack(rollout.sequences()), [{"answer": "5", "verifier": "numeric"}, {"answer": "8", "verifier": "numeric"}])
    assert [s.value for s in find_scorer("verified()")(texts)] == [1.0, 0.0]


# -- solved ----------------------------------------------------------------------------------------------------------------
def test_solved_is_what_was_checked_and_not_the_whole_reward() -> None:
    """A right answer that costs 0.002 for its length is solved; a wrong one that is paid 0.1 for its form is not."""
    reward = find_scorer('verified("exact") + 0.1 * minimum(1, tokens()) - 0.002 * tokens()')
    assert checked_parts(reward) == ("exact",) and checked_parts(find_scorer("environment()")) == ("environment",) and checked_parts(find_scorer("tokens()")) == ()
    found = hand.drawn()
    scores = [Score(0.998, {"exact": 1.0}), Score(0.1, {"exact": 0.0}), Score(0.1, {"exact": 0.0}), Score(1.1, {"exact": 1.0})]
    mixed = Drawn(found.batch, scores, {}, found.prompt_B, found.group_B, {}, ("exact",))
    assert mixed.solved() == [1.0, 0.0, 0.0, 1.0]
    assert Drawn(found.batch, scores, {}, found.prompt_B, found.group_B, {}).solved() == [0.998, 0.1, 0.1, 1.1]  # nothing checked: the score itself


def test_the_gap_of_hidden_tests_is_of_programs_that_have_both() -> None:
    """Easy rows without hidden tests and hard rows with as many of both right: no gap, though the two means differ by 0.35."""
    easy, hard = Score(1.0, {"visible_tests": 1.0}), Score(0.3, {"visible_tests": 0.3, "hidden_tests": 0.3})
    assert _gap([easy] * 8 + [hard] * 8) == {"reward/hidden_gap": 0.0}
    assert _gap([easy]) == {} and _gap([Score(1.0, {"visible_tests": 1.0, "hidden_tests": 0.25})]) == {"reward/hidden_gap": 0.75}


def test_telling_parts_are_no_price() -> None:
    """Programs that time out less often as they get better buy nothing at the price of time-outs."""
    rows = [{"kind": "metrics", "step": s, "reward/proxy": 0.3 + 0.01 * s, "part/verified": 0.3 + 0.01 * s, "part/timed_out": 0.37 - 0.005 * s} for s in range(1, 41)]
    assert gaming(rows) == []
    traded = [{**{k: v for k, v in r.items() if k != "part/timed_out"}, "part/format": r["part/timed_out"]} for r in rows]
    assert [f.name for f in gaming(traded)] == ["gaming/format"]


# -- evaluating in environments ----------------------------------------------------------------------------------------------
def test_tasks_of_an_environment_are_told_apart_by_their_rows(tmp_path: Path) -> None:
    game = open_text_environment("guess(high=100)")
    train, held = (load(str(game.write_tasks(tmp_path / name, 6, seed=seed)), "prompts") for name, seed in (("a.jsonl", 1), ("b.jsonl", 999)))
    with pytest.raises(DataError, match="train_eval_overlap"):
        check_disjoint(train, held, prompt_key)  # all rows ask the same
    answers = {r.extra["answer"] for r in train.records} & {r.extra["answer"] for r in held.records}
    if not answers:
        check_disjoint(train, held, row_key)
    with pytest.raises(DataError, match="train_eval_overlap"):
        check_disjoint(train, train, row_key)


def test_an_environment_s_score_has_pass_at_k_and_no_votes() -> None:
    samples = [{"scores": {"env": v}, "answers": {"env": None}} for v in (1.0, 0.0, 0.0, 0.0)]
    found = attempts({"before": samples, "after": samples}, 2)
    assert found["pass_at"]["env"]["before"]["1"]["mean"] == 0.25 and found["pass_at"]["env"]["before"]["2"]["mean"] == 0.5 and "majority_at" not in found


# -- options with environments -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("changes", "message"), [
    ({"overlong": 0.2, "environment": "calculator"}, "overlong counts the tokens of one completion"), ({"max_turns": 7}, "there is no environment"),
    ({"environment": ""}, "environment"), ({"clip_low": 2.0}, "clip_low"),
])  # fmt: skip
def test_options_without_an_effect_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_stage("grpo", {"prompts": "p", **changes})


def test_a_reward_of_both_runs_in_an_environment(tmp_path: Path) -> None:
    """The probes before a run cannot make up an episode, and do not try."""
    from truing.methods.grpo import grpo

    base = ppo_tiny.world(tmp_path)
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps({"id": f"s{i}", "prompt": f"{i} + {i}?", "answer": 2 * i, "verifier": "numeric"}) + "\n" for i in range(4)))
    config = make_stage("grpo", {
        "model": str(base / "base"), "prompts": str(tmp_path / "sums.jsonl"), "environment": "calculator", "reward": "0.5 * verified() + environment()", "steps": 1, "batch_size": 8, "group": 4,
        "max_new_tokens": 6, "dtype": "float32", "lora": {"rank": 2, "layers": 1}, "save_every": 1,
    })  # fmt: skip
    grpo(config, tmp_path / "run", seed=0)  # type: ignore[arg-type]
    (row, *_) = [json.loads(line) for line in (tmp_path / "run" / "samples" / "step-000001.jsonl").read_text().splitlines()]
    assert {"verified", "environment"} <= set(row["parts"])


def test_the_entropy_bonus_adapts_and_is_logged(tmp_path: Path) -> None:
    """Below a target that no policy reaches the bonus grows by 0.005 a rollout; above one that all exceed it stays 0."""
    import grpo_tiny

    world = grpo_tiny.world(tmp_path)
    settings = {"preset": "dr_grpo", "reward": "grpo_tiny:parity", "steps": 4, "epochs": 1, "minibatches": 1}
    low = grpo_tiny.run(world, tmp_path / "low", entropy_target=1000.0, **settings)
    assert [m["policy/entropy_weight"] for m in low] == pytest.approx([0.0, 0.005, 0.01, 0.015])
    high = grpo_tiny.run(world, tmp_path / "high", entropy_target=0.001, **settings)
    assert [m["policy/entropy_weight"] for m in high] == [0.0] * 4
    assert high[-1]["grad/norm"] != low[-1]["grad/norm"]
    with pytest.raises(ValueError, match="leave one of them out"):
        make_stage("grpo", {"prompts": "p", "entropy": 0.1, "entropy_target": 1.0})
