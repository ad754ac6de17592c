"""The arithmetic of planned times, and that planned steps are the stage's own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import ppo_tiny
import tiny
from truing.config import SFT, Reward, make_stage
from truing.methods import reward_model, sft
from truing.models.anatomy import anatomy
from truing.models.roles import open_role, origin
from truing.plan import rows, standins
from truing.plan.clock import NOTHING, Laps, Span, Timing, repeat, span
from truing.plan.generation import Hazard, longer
from truing.types import Rollout


def rollout(tokens: list[list[int]]) -> Rollout:
    grid = torch.tensor(tokens)
    return Rollout([[7]] * len(tokens), grid, torch.ones(grid.shape, dtype=torch.bool), torch.zeros(grid.shape), torch.zeros(len(tokens), dtype=torch.bool), 1.0, 0)


# -- spans -----------------------------------------------------------------------------------------------------------------
def test_the_first_run_does_not_count() -> None:
    asked: list[int] = []
    found = repeat(lambda i: asked.append(i) or float(10 - i), 0.0)  # type: ignore[func-returns-value]
    assert asked == [0, 1, 2] and found == [9.0, 8.0]
    assert len(repeat(lambda i: 0.0, 60.0, most=5)) == 5  # no more than `most`, however much time is left


def test_spans_add_and_grow() -> None:
    assert span([3.0, 1.0, 2.0]) == (2.0, 1.0, 3.0) and span([]) == NOTHING
    assert Span(1.0, 0.5, 2.0) + Span(1.0, 1.0, 1.0) == (2.0, 1.5, 3.0)
    assert Span(2.0, 1.0, 4.0).between(0.5, 2.0) == (2.0, 0.5, 8.0)
    assert Span(2.0, 1.0, 4.0).between(1.5, 0.9) == (2.0, 1.0, 4.0)  # what may be longer is not made longer at its least
    timing = Timing({"update": Span(2.0, 1.0, 3.0), "look": Span(1.0, 1.0, 1.0)}, 4.0, (10.0, 20), Span(5.0, 5.0, 5.0), "")
    assert timing.step == (3.5, 2.5, 4.5)  # 10 s of a checkpoint over 20 steps are half a second
    assert timing.whole(10) == (44.0, 34.0, 54.0)


def test_laps_add_up() -> None:
    laps = Laps()
    for _ in range(3):
        with laps.lap("x"):
            pass
    assert len(laps.seconds["x"]) == 3 and laps.of("x").low >= 0 and laps.of("y") == NOTHING


# -- lengths -----------------------------------------------------------------------------------------------------------------
def test_how_often_completions_end_counts_what_was_cut_off() -> None:
    """Two of three end, after 2 and 1 tokens, the third goes on past 4: 2 ends in 7 tokens."""
    found = Hazard.of(rollout([[5, 9, 5, 9], [9, 5, 5, 5], [5, 5, 5, 5]]), (9,))
    assert (found.ended, found.tokens) == (2, 7) and found.rate == 2 / 7 and found.low < found.rate < found.high
    none = Hazard.of(rollout([[5, 5]]), (9,))
    assert none.rate == none.low == 0 and none.high > 0


def test_expected_lengths_are_those_of_a_geometric_distribution() -> None:
    # P(T >= t) = (1 - p)^(t - 1): 1 + 0.75 + 0.5625 with p = 1/4 and a limit of 3
    assert Hazard.mean(0.25, 3) == pytest.approx(2.3125)
    assert Hazard.mean(0.0, 3) == 3 and Hazard.mean(1.0, 3) == 1
    # the longest of two with p = 1/2 and a limit of 2: it is 1 when both end at once, 1/4
    assert Hazard.longest(0.5, 2, 2) == pytest.approx(1.75)
    assert Hazard.longest(0.0, 4, 6) == 6


def test_completions_made_longer_say_the_same_again() -> None:
    made = longer(rollout([[1, 2, 3], [4, 5, 6]]), 5)
    assert made.completion_BT.tolist() == [[1, 2, 3, 1, 2], [4, 5, 6, 4, 5]] and made.lengths_B.tolist() == [5, 5]


# -- rows and steps ------------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ppo_tiny.world(tmp_path_factory.mktemp("time"))


def test_steps_and_tokens_are_those_of_the_run(world: Path, tmp_path: Path) -> None:
    """Against what the stages themselves report."""
    common = {"model": str(world / "base"), "lora": None, "batch_size": 24, "epochs": 2, "micro_tokens": 512}
    for config, page in ((SFT(data=str(world / "demos.jsonl"), eval_share=0.1, **common), sft.sft), (Reward(data=str(world / "prefs.jsonl"), eval_share=0.2, **common), reward_model.reward_model)):
        result = page(config, tmp_path / config.method, seed=3)  # type: ignore[operator]
        found = rows.read(config, 3, lambda _: False)
        assert found.count == result["examples" if config.method == "sft" else "pairs"]
        assert rows.updates(config, found) == result["updates"]
        load = rows.load(config, found, 3)
        assert 0.5 * 512 < load.tokens <= 512  # the largest micro-batch is nearly full
    events = [json.loads(line) for line in (tmp_path / "sft" / "events.jsonl").read_text().splitlines()]
    assert max(e["tokens/trained"] for e in events if e["kind"] == "metrics") > load.answers


def test_long_files_are_looked_at_in_part_and_counted_whole(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [json.dumps({"id": f"q{i}", "prompt": f"Say a word. {i}" + " and another" * (20 * (i == 777))}) for i in range(1000)]
    (tmp_path / "many.jsonl").write_text("\n".join(lines))
    config = make_stage("evaluate", {"prompts": str(tmp_path / "many.jsonl"), "before": str(world / "base"), "after": str(world / "base"), "samples": 1})
    monkeypatch.setattr(rows, "LOOKED_AT", 100)
    found = rows.read(config, 0, lambda _: False)
    assert found.count == 1000 and 100 <= len(found.train) <= 110
    lengths = sorted(map(len, found.train))
    assert lengths[-1] > 2 * lengths[-2]  # the one long row is among them
    assert rows.updates(config, found) == 2 * 16  # 1000 answers of each model, 64 at a time


# -- stand-ins ---------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("lora", [None, {"rank": 4, "layers": 1}, {"rank": 2}])
@pytest.mark.parametrize("method", ["sft", "reward"])
def test_a_stand_in_opens_as_what_the_stage_would_write(world: Path, tmp_path: Path, method: str, lora: dict[str, int] | None) -> None:
    stage = make_stage(method, {"model": str(world / "base"), "data": "none", "lora": lora, "dtype": "float32"})
    page, name = (sft.sft, "demos") if method == "sft" else (reward_model.reward_model, "prefs")
    page(make_stage(method, {**stage.model_dump(), "data": str(world / f"{name}.jsonl"), "batch_size": 64}), tmp_path / "real", seed=0)  # type: ignore[operator]
    made = standins.write(tmp_path / "stand-in", stage, anatomy(str(world / "base"), stage.lora, torch.float32), origin(str(world / "base")))  # type: ignore[attr-defined]
    head = method == "reward"
    real, stands = (open_role(str(f), head=head) for f in (tmp_path / "real" / "model", made))
    shapes = lambda role: {k: p.shape for k, p in (*(role.adapter.tensors().items() if role.adapter else role.backbone.model.named_parameters()), *(role.head.named_parameters() if role.head else ()))}  # noqa: E731
    assert shapes(stands) == shapes(real)
    one, two = origin(made), origin(str(tmp_path / "real" / "model"))
    assert (one.lora, one.dtype) == (two.lora, two.dtype) and (one.base == two.base) == (lora is not None)


def test_tiny_worlds_have_the_rows_that_are_expected(world: Path) -> None:
    assert len(tiny.GOOD) == 4  # what `prefs.jsonl` is made of
    found = rows.read(Reward(model=str(world / "base"), data=str(world / "prefs.jsonl"), eval_share=0.2), 0, lambda _: False)
    assert (found.count or 0) + found.held_count == 192 and len(found.train) == found.count
