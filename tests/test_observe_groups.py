"""The report of a group method: what its figures hold, and the verdict about answers that are checked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from truing.observe.folder import read_run
from truing.observe.group_figures import attempts_panels, group_panels
from truing.observe.report import report
from truing.observe.verdict import verdict


def interval(mean: float, half: float = 0.05) -> dict[str, float]:
    return {"mean": mean, "low": mean - half, "high": mean + half}


def evaluation(before: float, after: float, half: float = 0.05) -> dict[str, Any]:
    """Two models that answer right at these rates; one sample a prompt."""
    side = lambda share: {"scores": {"right": share}, "tokens_mean": 5.0, "eos_share": 1.0, "distinct_1": 0.5, "distinct_2": 0.0}  # noqa: E731
    attempts = {k: interval(v, half) for k, v in (("1", before), ("2", before + 0.1))}
    return {
        "prompts": 50, "samples_per_prompt": 2, "verdict_score": "right", "before": side(before), "after": {**side(after), "distinct_2": 0.0},
        "difference": {"right": {**interval(after - before, half), "sd_units": 0.5, "sd_low": 0.4, "sd_high": 0.6}}, "win_rate": {"right": interval(0.6)},
        "kl_sequence": interval(1.0), "length_ratio": 3.0, "criteria": [], "rows": [],
        "pass_at": {"right": {"before": attempts, "after": {k: interval(v["mean"] + after - before, half) for k, v in attempts.items()}, "gain": {}}},
        "majority_at": {"right": {"before": attempts, "after": attempts, "gain": {}}},
    }  # fmt: skip


def folder(path: Path, found: dict[str, Any], tests: bool = False) -> Path:
    """A run with one group stage of twenty steps and its evaluation."""
    (path / "grpo").mkdir(parents=True)
    (path / "evaluate").mkdir()
    (path / "recipe.yaml").write_text("name: r\nstages: {grpo: {method: grpo}, evaluate: {method: evaluate}}\n")
    shown = {"part/visible_tests": 0.8, "part/hidden_tests": 0.7, "reward/hidden_gap": 0.1} if tests else {}
    events = [
        {"kind": "metrics", "step": s, "values": {"reward/proxy": 0.3 + 0.01 * s, "groups/varied_share": 0.5, "groups/solved_share": 0.2, "groups/hopeless_share": 0.3, "groups/used_share": 1.0,
         "groups/count": 8.0, "tokens/mean": 5.0, "tokens/eos_share": 1.0, "text/repetition": 0.0, "policy/entropy": 1.0, "policy/updates": 1.0, **shown}}
        for s in range(1, 21)
    ]  # fmt: skip
    (path / "grpo" / "events.jsonl").write_text("".join(json.dumps(e) + "\n" for e in events))
    (path / "evaluate" / "evaluation.json").write_text(json.dumps(found))
    return path


def test_a_group_stage_is_known_by_what_it_logs(tmp_path: Path) -> None:
    stage = read_run(folder(tmp_path, evaluation(0.4, 0.6))).stages[0]
    assert stage.method == "grpo"
    panels = {p.key: p for p in group_panels(stage, "")}
    assert [line.label for line in panels["groups"].axes[0].lines] == ["varied", "all right", "all wrong"]
    assert panels["tests"].axes[0].lines == []  # without tests there is nothing to draw, and the report leaves the panel out
    tests = read_run(folder(tmp_path / "with", evaluation(0.4, 0.6), tests=True)).stages[0]
    assert [(line.label, float(line.y[0])) for line in {p.key: p for p in group_panels(tests, "")}["tests"].axes[0].lines] == [("visible tests", 0.8), ("hidden tests", 0.7)]


def test_attempts_are_drawn_with_their_intervals() -> None:
    (panel,) = attempts_panels(evaluation(0.4, 0.6))
    before, after = panel.axes[0].lines
    assert (before.label, list(before.y), list(before.low or ())) == ("before", [0.4, 0.5], [0.4 - 0.05, 0.5 - 0.05])
    assert [round(float(y), 6) for y in after.y] == [0.6, 0.7] and panel.axes[0].ticks == [(0.0, "1"), (1.0, "2")]
    assert attempts_panels({}) == [] and attempts_panels({"pass_at": "nonsense"}) == [] and attempts_panels({"pass_at": {"right": 3}}) == []


def test_checked_answers_are_judged_in_points_and_not_by_length(tmp_path: Path) -> None:
    """Three times as long and without a word pair: of a checked answer neither matters."""
    up = verdict(folder(tmp_path / "up", evaluation(0.4, 0.6)))
    assert up["worked"] is True and up["verified"] is True and up["caveats"] == []
    assert "the share of right answers (right) rose from 40% to 60%, +20 points (95% interval +15 to +25)" in up["headline"]
    flat = verdict(folder(tmp_path / "flat", evaluation(0.4, 0.42)))
    assert flat["worked"] is False and "did not clearly change" in flat["headline"]
    down = verdict(folder(tmp_path / "down", evaluation(0.4, 0.2)))
    assert down["worked"] is False and "fell, from 40% to 20%, -20 points" in down["headline"]


def test_the_report_holds_all_of_it(tmp_path: Path) -> None:
    page = report(folder(tmp_path, evaluation(0.4, 0.6), tests=True)).read_text()
    for words in ("What the groups still teach", "Visible and hidden tests", "Attempts that solve a prompt: right", "share of right answers"):
        assert words in page
    plain = report(folder(tmp_path / "plain", evaluation(0.4, 0.6))).read_text()
    assert "Visible and hidden tests" not in plain
