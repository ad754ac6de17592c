"""What a group method cannot be trained on is said in one message with the value, the place and the remedy, before anything is trained."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import grpo_tiny
from test_ppo_bad_input import BAD_REWARDS
from truing.config import PRESETS, make_stage
from truing.errors import ConfigError, DataError, NonFiniteError, RewardError, TruingError
from truing.methods import grpo as page
from truing.observe.events import read_events


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return grpo_tiny.world(tmp_path_factory.mktemp("grpo"))


# -- settings ------------------------------------------------------------------------------------------------------------
BAD_SETTINGS: dict[str, tuple[dict[str, Any], str]] = {
    "an unknown preset": ({"preset": "grop"}, r"preset='grop': .*'grpo', 'dr_grpo', 'dapo', 'gspo', 'cispo', 'rloo', .* or 'expert'"),
    "a preset that is no name": ({"preset": 3}, r"preset=3: .*'grpo'"),
    "groups that are not whole": ({"batch_size": 10, "group": 4}, r"batch_size=10 is not a multiple of group=4; each group must be whole"),
    "minibatches that do not divide": ({"batch_size": 8, "group": 4, "minibatches": 3}, r"batch_size=8 is not a multiple of minibatches=3"),
    "a group of one": ({"group": 1}, "group=1 makes every advantage zero.*use 2 or more"),
    "a group of none": ({"group": 0}, "group=0: .*greater than or equal to 1"),
    "a comparison of no use": ({"advantage": "greedy", "zero_variance": "drop"}, "is for baselines of groups.*use zero_variance: keep"),
    "a floor of 0": ({"std_floor": 0}, "std_floor=0: .*greater than 0"),
    "a floor that nothing is divided by": ({"preset": "rloo", "std_floor": 0.1}, "std_floor bounds the spread .*leave it out"),
    "a margin of nothing": ({"overlong": 0}, "overlong=0: .*greater than 0"),
    "a margin of more than all": ({"overlong": 1.5}, r"overlong=1\.5: .*less than or equal to 1"),
    "a negative bound": ({"clip_high": -0.1}, r"clip_high=-0\.1: .*greater than or equal to 0"),
    "a surrogate with one bound": ({"clip_low": None}, "clip_low: null is for clip: weight; the surrogate needs both bounds"),
    "a clip of no ratio": ({"preset": "rloo", "clip": "surrogate"}, "clip: surrogate bounds a ratio and ratio: none has none; use clip: none, or ratio: token"),
    "a negative coefficient": ({"kl": {"coef": -1}}, r"kl\.coef=-1: .*greater than or equal to 0"),
    "no coefficient to adapt": ({"kl": {"coef": 0, "target": 6}}, r"kl\.coef=0 stays 0 .*or kl\.target: null"),
    "a target of 0": ({"kl": {"coef": 0.1, "target": 0}}, r"kl\.target=0: a policy that learns is never at 0 nats"),
    "an unknown place": ({"kl": {"place": "loss_k1"}}, r"kl\.place='loss_k1': .*'token_k2' or 'token_k3'"),
    "a penalty that is a number": ({"kl": 0.1}, r"kl=0\.1"),
    "a horizon shorter than a batch": ({"kl": {"coef": 0.1, "target": 6, "horizon": 63}}, r"kl\.horizon=63 is shorter than one batch of 64"),
    "a penalty on the reward of imitation": ({"preset": "expert", "kl": {"coef": 0.1, "place": "reward"}}, r"advantage: best imitates .*; use kl\.place: loss_k2, or kl\.coef=0"),
    "a greedy baseline in another unit": ({"preset": "remax", "scores": {"normalise": "running"}}, r"greedy completion's score as it is; use scores\.normalise: none"),
    "a greedy baseline that is not clipped": ({"preset": "remax", "scores": {"clip": 2.0}}, r"and scores\.clip: null"),
    "an unknown advantage": ({"advantage": "std"}, "advantage='std': .*'standardised', 'centred'"),
    "a typing error in a value": ({"zero_variance": "resampel"}, "zero_variance='resampel': .*'keep', 'drop' or 'resample'"),
    "no round of drawing again": ({"zero_variance": "resample", "resample_rounds": 0}, "resample_rounds=0: .*greater than or equal to 1"),
    "a rate above 1": ({"curriculum": {"solved": 1.2}}, r"curriculum\.solved=1\.2: .*less than or equal to 1"),
    "hopeless above solved": ({"curriculum": {"solved": 0.1, "hopeless": 0.5}}, "hopeless=0.5 is not below solved=0.1"),
    "no room for a prompt": ({"max_new_tokens": 1024}, "max_length=1024 leaves no room for a prompt beside max_new_tokens=1024; raise it"),
    "a temperature of 0": ({"temperature": 0}, "temperature=0: .*greater than 0"),
    "a cap below 1": ({"sampler_cap": 0.5}, r"sampler_cap=0\.5: .*greater than or equal to 1"),
    "no turns": ({"max_turns": 0}, "max_turns=0: .*greater than or equal to 1"),
    "a typing error": ({"minibatch": 4}, "unknown key 'minibatch'; did you mean 'minibatches'"),
    "a typing error inside": ({"kl": {"coeff": 0.1}}, r"unknown key 'kl\.coeff'; did you mean 'coef'"),
    "a setting of PPO": ({"value_clip": 0.2}, "unknown key 'value_clip'"),
    "a monitor that is a correlation": ({"monitors": {"a": "x", "a_correlation": "y"}}, r"monitors\.a_correlation: that name is taken"),
}


@pytest.mark.parametrize("what", BAD_SETTINGS)
def test_settings_that_cannot_be_meant_are_refused(what: str) -> None:
    changes, message = BAD_SETTINGS[what]
    with pytest.raises(ConfigError, match=message) as found:
        make_stage("grpo", {"prompts": "p.jsonl", **changes})
    assert "\n" not in str(found.value)


def test_the_ends_of_what_can_be_meant_are_accepted() -> None:
    for changes in ({"group": 64}, {"group": 2, "batch_size": 2}, {"clip_high": 0.0, "clip_low": 0.0}, {"preset": "remax", "group": 1}, {"preset": "reinforce++", "group": 1}, {"overlong": 1.0}, {"sampler_cap": 1.0},
                    {"curriculum": {"solved": 1.0, "hopeless": 0.0}}, {"kl": {"coef": 0.1, "target": 6, "horizon": 64}}, {"preset": "expert", "kl": {"coef": 0.1}}):  # fmt: skip
        make_stage("grpo", {"prompts": "p.jsonl", **changes})


# -- data and rewards ----------------------------------------------------------------------------------------------------
ROWS: dict[str, list[dict[str, Any]]] = {
    "no verifier": [{"id": "a", "prompt": "x 1", "answer": "1"}, {"id": "b", "prompt": "x 2", "answer": "2"}],
    "no answer": [{"id": "a", "prompt": "x 1", "verifier": "exact"}, {"id": "b", "prompt": "x 2", "verifier": "exact"}],
    "unknown verifier": [{"id": "a", "prompt": "x 1", "verifier": "exakt", "answer": "1"}],
    "a gold answer that is no number": [{"id": "a", "prompt": "x 1", "verifier": "numeric", "answer": "many"}],
    "no rows": [],
    "an answer out of range": [{"id": "a", "prompt": "x 1", "answer": 6}],
    "an answer that is no number": [{"id": "a", "prompt": "x 1", "answer": "six"}],
}
BAD_RUNS: dict[str, tuple[str | None, dict[str, Any], type[TruingError], str]] = {
    "rows that name no verifier": ("no verifier", {"reward": "verified()"}, DataError, r'prompts\.jsonl:1: .*names no verifier; give the file a column "verifier", or write verified\("math"\)'),
    "rows without the answer": ("no answer", {"reward": "verified()"}, DataError, r"prompts\.jsonl:1: .*verified\('exact'\): .*no column 'answer'"),
    "a verifier that is not there": ("unknown verifier", {"reward": "verified()"}, ConfigError, "verifier 'exakt' does not exist; did you mean 'exact'"),
    "another that is not there": (None, {"reward": 'verified("matth")'}, ConfigError, "verifier 'matth' does not exist; did you mean 'math'"),
    "a gold answer that earns nothing": ("a gold answer that is no number", {"reward": "verified()"}, DataError, r"prompts\.jsonl:1: numeric: the gold answer 'many'"),
    "an empty file": ("no rows", {}, DataError, "no data: it has no rows"),
    "no file": (None, {"prompts": "absent.jsonl"}, DataError, r"absent\.jsonl: does not exist"),
    "an outcome without an environment": (None, {"reward": "environment()"}, RewardError, "none is set; set `environment`, or use another reward"),
    "an outcome as a monitor without one": (None, {"monitors": {"won": "environment()"}}, RewardError, "none is set; set `environment`"),
    "an environment that is not there": (None, {"environment": "calculatr", "reward": "environment()"}, ConfigError, "environment 'calculatr' does not exist; did you mean 'calculator'"),
    "an environment's option that is not there": (None, {"environment": "guess(hihg=3)", "reward": "environment()"}, ConfigError, "environment 'guess' has no option 'hihg'; it has low, high"),
    "an environment that makes no sense": (None, {"environment": "guess(guesses=0)", "reward": "environment()"}, ConfigError, "guess: guesses=0.*use 1 guess or more"),
    "an environment that cannot be imported": (None, {"environment": "absent:Thing", "reward": "environment()"}, ConfigError, "absent:Thing cannot be imported"),
    "a row that the environment cannot use": ("an answer that is no number", {"environment": "guess", "reward": "environment()"}, DataError, r"prompts\.jsonl:1: column 'answer' is 'six', .*whole number"),
    "a task that cannot be won": ("an answer out of range", {"environment": "guess(high=5)", "reward": "environment()"}, DataError, r"prompts\.jsonl:1: column 'answer' is 6, outside 1 to 5; correct it"),
    "an expression that ends early": (None, {"reward": "verified("}, ConfigError, r"reward 'verified\(': position 9"),
    "an expression of a function": (None, {"reward": "ppo_tiny:sums - 0.1"}, ConfigError, r"position 9: ':sums' is not part of an expression; put a function in quotes"),
    "a function that is not there": (None, {"reward": "ppo_tiny:absent"}, ConfigError, "cannot be imported .*write package.module:function"),
    "a stage that is not there": (None, {"reward": "reward"}, ConfigError, "'reward' is no folder here"),
    "prompts longer than what is allowed": (None, {"max_length": 20}, DataError, r"tasks\.jsonl:1: prompt_too_long: .*raise max_length"),
}


@pytest.mark.parametrize("what", BAD_RUNS)
def test_data_and_rewards_that_cannot_be_meant_are_named(what: str, world: Path, tmp_path: Path) -> None:
    rows, changes, kind, message = BAD_RUNS[what]
    if rows is not None:
        (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS[rows]))
        changes = {"prompts": str(tmp_path / "prompts.jsonl"), **changes}
    with pytest.raises(kind, match=message) as found:
        grpo_tiny.run(world, tmp_path / "run", **changes)
    assert "\n" not in str(found.value) and not (tmp_path / "run" / "checkpoints").exists() and not (tmp_path / "run" / "model").exists()


@pytest.mark.parametrize("name", BAD_REWARDS)
def test_a_reward_of_the_wrong_length_or_type_is_named(name: str, world: Path, tmp_path: Path) -> None:
    with pytest.raises(RewardError, match=BAD_REWARDS[name]):
        grpo_tiny.run(world, tmp_path / "run", reward=f"test_ppo_bad_input:{name}")


def test_failed_rewards_are_left_out_and_counted_not_zero(world: Path, tmp_path: Path) -> None:
    """An infinite and a NaN score of eight: the mean is that of the six, of two ragged groups."""
    found = grpo_tiny.run(world, tmp_path / "run", reward="test_ppo_bad_input:some_fail", scores={"bad_share": 0.25, "timeout": None})
    for m in found:
        assert m["reward/failed_share"] == 0.25 and m["reward/proxy"] == pytest.approx(0.25 * (0 + 2 + 3 + 5 + 6 + 7) / 6) and m["groups/varied_share"] == 1.0


def test_policies_that_have_diverged_stop_the_run(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A loss that is NaN from the first update on: each is skipped and counted, five in a row end the run, and nothing broken is saved."""
    real = page.reduced
    monkeypatch.setattr(page, "reduced", lambda *given, **named: real(*given, **named) * torch.nan)
    with pytest.raises(NonFiniteError, match="5 updates in a row had a non-finite loss or gradient"):
        grpo_tiny.run(world, tmp_path / "run", save_every=1, steps=4)
    saved = sorted((tmp_path / "run" / "checkpoints").glob("step-*"))
    assert all(torch.isfinite(t).all() for folder in saved for file in folder.glob("*.safetensors") for t in load_file(file).values())
    assert [m["update/skipped"] for m in grpo_tiny.metrics(tmp_path / "run")] == [1.0]


def test_equal_rewards_are_reported_at_once(world: Path, tmp_path: Path) -> None:
    grpo_tiny.run(world, tmp_path / "run", reward="test_ppo_bad_input:constant")
    (finding,) = (e for e in read_events(tmp_path / "run") if e["kind"] == "finding")
    assert finding["name"] == "reward/equal" and "0.7" in finding["message"] and finding["step"] == 1


# -- the command line ----------------------------------------------------------------------------------------------------
def truing(*arguments: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "NO_COLOR": "1", "COLUMNS": "200", "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *(p for p in sys.path if p)])}
    return subprocess.run([sys.executable, "-m", "truing", "grpo", *arguments], capture_output=True, text=True, timeout=300, env=env)


def test_help_names_every_preset() -> None:
    found = truing("--help")
    assert found.returncode == 0
    said = "".join(found.stdout.split())
    assert all(name in said for name in ("--preset", "--advantage", "--kl-coef", "--curriculum-solved")) and "|".join(PRESETS)[:20] in said


@pytest.mark.parametrize(("arguments", "code", "message"), [
    (["--preset", "grop"], 1, "preset='grop'"),
    (["--presett", "dapo"], 2, "--preset"),
    (["--reward", "environment()"], 1, "environment() is what an environment gives for an episode"),
    (["--reward", "verified()", "--group", "4"], 1, "names no verifier"),
])  # fmt: skip
def test_the_command_line_says_it_in_one_line(arguments: list[str], code: int, message: str, world: Path, tmp_path: Path) -> None:
    common = ["--model", str(world / "base"), "--prompts", str(world / "tasks.jsonl"), "--runs-dir", str(tmp_path), "--batch-size", "8", "--max-new-tokens", "4"]
    found = truing(*common, *arguments)
    assert found.returncode == code, found.stderr[-2000:]
    assert message in " ".join(found.stderr.split()) and "Traceback" not in found.stderr + found.stdout
    assert code == 2 or len([line for line in found.stderr.splitlines() if "error" in line]) == 1
