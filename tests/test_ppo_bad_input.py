"""What cannot be trained on is said in one message with the value, the place and the remedy; what can be left out is left out and counted."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import ppo_tiny as tiny_ppo
from truing.config import make_stage
from truing.errors import ConfigError, DataError, NonFiniteError, RewardError, TruingError
from truing.methods import ppo as page
from truing.observe.events import read_events


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_ppo.world(tmp_path_factory.mktemp("ppo"))


def run(world: Path, folder: Path, **changes: Any) -> list[dict[str, Any]]:
    page.ppo(tiny_ppo.options(world, **changes), folder, seed=0)
    return [dict(e) for e in read_events(folder)]


# -- rewards -------------------------------------------------------------------------------------------------------------
CALLS = [0]


def one_for_all(prompts: list[str], completions: list[str]) -> list[float]:
    return [1.0]


def too_many(prompts: list[str], completions: list[str]) -> list[float]:
    return [1.0] * (len(completions) + 1)


def texts(prompts: list[str], completions: list[str]) -> list[str]:
    return ["good"] * len(completions)


def booleans(prompts: list[str], completions: list[str]) -> list[bool]:
    return [True] * len(completions)


def nothing(prompts: list[str], completions: list[str]) -> None:
    return None


def a_number(prompts: list[str], completions: list[str]) -> float:
    return 1.0


def no_numbers(prompts: list[str], completions: list[str]) -> list[float]:
    return [math.nan] * len(completions)


def raises(prompts: list[str], completions: list[str]) -> list[float]:
    raise ZeroDivisionError("a reward's own mistake")


def some_fail(prompts: list[str], completions: list[str]) -> list[float]:
    return [math.inf if i == 1 else math.nan if i == 4 else 0.25 * i for i in range(len(completions))]


def constant(prompts: list[str], completions: list[str]) -> list[float]:
    return [0.7] * len(completions)


BAD_REWARDS = {
    "one_for_all": "reward one_for_all gave 1 scores for 8 completions; return one number each",
    "too_many": "gave 9 scores for 8 completions",
    "texts": "reward texts gave 'good' of type str; return a float",
    "booleans": "gave True of type bool; return a float",
    "nothing": "reward nothing gave .*None.*; return",
    "a_number": "reward a_number gave 1.0.*; return",
    "no_numbers": r"100% of the rewards failed \(allowed 10%\), the first with non_finite",
    "raises": "100% of the rewards failed .*crashed: .*ZeroDivisionError: a reward's own mistake",
}


@pytest.mark.parametrize("name", BAD_REWARDS)
def test_a_reward_of_the_wrong_length_or_type_is_named(name: str, world: Path, tmp_path: Path) -> None:
    with pytest.raises(RewardError, match=BAD_REWARDS[name]):
        run(world, tmp_path / "run", reward=f"test_ppo_bad_input:{name}")


def test_failed_rewards_are_left_out_and_counted_not_zero(world: Path, tmp_path: Path) -> None:
    """An infinite and a NaN score of eight: six are trained on, and the mean is that of the six."""
    events = run(world, tmp_path / "run", reward="test_ppo_bad_input:some_fail", scores={"bad_share": 0.25, "timeout": None}, minibatches=2)
    for m in (e for e in events if e["kind"] == "metrics"):
        assert m["reward/failed_share"] == 0.25 and m["reward/proxy"] == pytest.approx(0.25 * (0 + 2 + 3 + 5 + 6 + 7) / 6)
        assert all(math.isfinite(v) for k, v in m.items() if isinstance(v, float))
    rows = (tmp_path / "run" / "samples" / "step-000001.jsonl").read_text().splitlines()
    read = [json.loads(r) for r in rows]
    assert len(read) == 8 and all(math.isfinite(r["score"]) for r in read[:6])
    assert all(r["score"] is None and r["status"] != "ok" and r["completion"] is not None and "reason" in r for r in read[6:])
    with pytest.raises(RewardError, match=r"25% of the rewards failed \(allowed 20%\)"):
        run(world, tmp_path / "strict", reward="test_ppo_bad_input:some_fail", scores={"bad_share": 0.2, "timeout": None})


def test_fewer_usable_samples_than_minibatches_still_ends_the_schedule(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Six of eight are usable and there are eight minibatches: six updates an epoch, and the learning rate ends at 0 all the same."""
    learners: list[Any] = []
    made = page.Learner
    monkeypatch.setattr(page, "Learner", lambda *given, **named: (learners.append(made(*given, **named)), learners[-1])[1])
    run(world, tmp_path / "run", reward="test_ppo_bad_input:some_fail", scores={"bad_share": 0.25, "timeout": None}, minibatches=8)
    assert learners[0].updates == 2 * 2 * 8 and learners[0].factor(learners[0].updates) == 0.0


@pytest.mark.parametrize("place", ["reward", "loss_k3"])
def test_equal_rewards_are_reported_and_harmless(place: str, world: Path, tmp_path: Path) -> None:
    """Every completion scores 0.7: a finding says so at once, and no weight becomes NaN where the spread to divide by is nothing."""
    events = run(world, tmp_path / "run", reward="test_ppo_bad_input:constant", scores={"missing_eos": None, "timeout": None}, kl={"coef": 0.1, "target": None, "place": place}, steps=3)
    (finding,) = (e for e in events if e["kind"] == "finding")
    assert finding["name"] == "reward/equal" and "0.7" in finding["message"] and finding["step"] == 1
    assert all(torch.isfinite(t).all() for t in load_file(tmp_path / "run" / "model" / "adapter_model.safetensors").values())
    assert [e["reward/score_std"] for e in events if e["kind"] == "metrics"] == [0.0, 0.0, 0.0]


def test_unequal_rewards_are_not_reported(world: Path, tmp_path: Path) -> None:
    assert not [e for e in run(world, tmp_path / "run", reward="ppo_tiny:sums") if e["kind"] == "finding"]


def test_a_value_model_that_has_diverged_stops_the_run(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = page.open_roles

    def broken(*given: Any) -> Any:
        roles = opened(*given)
        with torch.no_grad():
            roles.value.head.bias.fill_(math.nan)
        return roles

    monkeypatch.setattr(page, "open_roles", broken)
    with pytest.raises(NonFiniteError, match="values are NaN or infinite: the value model has diverged; lower its learning rate"):
        run(world, tmp_path / "run")


def test_a_reward_model_with_another_tokenizer_reads_the_text_in_its_own(world: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Its score is that of the completion's text in its own tokens, for it alone, and it says so once; never of the policy's ids."""
    from truing.demo.tiny import write_tiny_model

    write_tiny_model(tmp_path / "policy", ["another corpus with other merges", "another corpus"], seed=1, vocab_size=300, hidden=32, layers=2)
    with caplog.at_level("WARNING"):
        events = run(world, tmp_path / "run", model=str(tmp_path / "policy"))
    said = [r.getMessage() for r in caplog.records if "token" in r.getMessage()]
    assert len(said) == 1 and str(world / "rm") in said[0], said
    metrics = [e for e in events if e["kind"] == "metrics"]
    assert len(metrics) == 2 and metrics[0]["policy/first_ratio_error"] == 0.0 and metrics[0]["reward/score_std"] > 0


# -- settings ------------------------------------------------------------------------------------------------------------
BAD_SETTINGS: dict[str, tuple[dict[str, Any], str]] = {
    "a target of 0": ({"kl": {"target": 0}}, r"kl\.target=0: a policy that learns is never at 0 nats; use a few nats a sequence"),
    "a negative target": ({"kl": {"target": -6}}, r"kl\.target=-6: .*; use a few nats a sequence"),
    "a stop at 0": ({"kl": {"stop": 0}}, r"kl\.stop=0: .*; use 0\.02 nats a token, or null"),
    "a negative coefficient": ({"kl": {"coef": -0.1}}, r"kl\.coef=-0\.1: .*greater than or equal to 0"),
    "no coefficient to adapt": ({"kl": {"coef": 0}}, r"kl\.coef=0 stays 0 whatever kl\.target asks; set kl\.coef above 0, or kl\.target: null"),
    "an unknown place": ({"kl": {"place": "loss_k1"}}, r"kl\.place='loss_k1': .*'reward', 'loss_k2' or 'loss_k3'"),
    "a horizon shorter than a batch": ({"kl": {"horizon": 63}}, r"kl\.horizon=63 is shorter than one batch of 64"),
    "minibatches that do not divide": ({"batch_size": 10, "minibatches": 4}, r"batch_size=10 is not a multiple of minibatches=4"),
    "no room for a prompt": ({"max_length": 64, "max_new_tokens": 64}, "max_length=64 leaves no room for a prompt beside max_new_tokens=64; raise it"),
    "a value model that is shared": ({"value": "shared", "value_model": "x"}, "value: shared is a head on the policy itself, so value_model has no use"),
    "a warm-up of a shared value head": ({"value": "shared", "value_warmup": 1}, "value: shared has no weights apart from the policy's; use value: separate"),
    "nothing but warm-up": ({"steps": 5, "value_warmup": 5}, "value_warmup=5 leaves none of steps=5 to the policy"),
    "an offloaded reference with lora": ({"reference": "offloaded"}, "reference: offloaded is for lora: null; with lora the reference is the frozen backbone"),
    "a dual clip of 1": ({"dual_clip": 1.0}, r"dual_clip=1\.0: .*greater than 1"),
    "a cap below 1": ({"sampler_cap": 0.5}, r"sampler_cap=0\.5: .*greater than or equal to 1"),
    "a discount above 1": ({"discount": 1.01}, r"discount=1\.01: .*less than or equal to 1"),
    "a temperature of 0": ({"temperature": 0}, r"temperature=0: .*greater than 0"),
    "an infinite rate": ({"lr": math.inf}, "lr=inf"),
    "a typing error": ({"minibatch": 4}, "unknown key 'minibatch'; did you mean 'minibatches'"),
    "a typing error inside": ({"kl": {"coeff": 0.1}}, r"unknown key 'kl\.coeff'; did you mean 'coef'"),
    "a typing error in scores": ({"scores": {"normalize": "batch"}}, r"unknown key 'scores\.normalize'; did you mean 'normalise'"),
    "an unknown normaliser": ({"scores": {"normalise": "whiten"}}, r"scores\.normalise='whiten': .*'none', 'batch', 'running' or 'reference'"),
}


@pytest.mark.parametrize("what", BAD_SETTINGS)
def test_settings_that_cannot_be_meant_are_refused(what: str) -> None:
    changes, message = BAD_SETTINGS[what]
    with pytest.raises(ConfigError, match=message):
        make_stage("ppo", {"prompts": "p.jsonl", **changes})


def test_the_ends_of_what_can_be_meant_are_accepted() -> None:
    for changes in ({"kl": {"coef": 0.0, "target": None}}, {"kl": {"horizon": 64}}, {"discount": 0.0, "lam": 0.0}, {"sampler_cap": 1.0}, {"clip": 0.0}, {"steps": 5, "value_warmup": 4},
                    {"reference": "offloaded", "lora": None}, {"kl": {"stop": 1e-6}}):  # fmt: skip
        make_stage("ppo", {"prompts": "p.jsonl", **changes})


# -- data ----------------------------------------------------------------------------------------------------------------
def with_long_prompt(world: Path, path: Path, words: int) -> Path:
    rows = (world / "prompts.jsonl").read_text().splitlines()
    rows[3] = json.dumps({"id": "long", "prompt": [{"role": "user", "content": "word " * words}]})
    path.write_text("\n".join(rows) + "\n")
    return path


def test_a_prompt_longer_than_the_settings_allow_is_named_by_file_and_line(world: Path, tmp_path: Path) -> None:
    prompts = with_long_prompt(world, tmp_path / "prompts.jsonl", 60)
    with pytest.raises(DataError, match=r"prompts\.jsonl:4: prompt_too_long: .*max_length"):
        run(world, tmp_path / "run", prompts=str(prompts))
    events = run(world, tmp_path / "skipped", prompts=str(prompts), on_bad="skip")
    assert len([e for e in events if e["kind"] == "metrics"]) == 2


def test_a_prompt_longer_than_the_models_context_is_named_by_file_and_line(world: Path, tmp_path: Path) -> None:
    """max_length allows more than the model's 256: the model's own limit is found before anything is trained, not in the middle of it."""
    prompts = with_long_prompt(world, tmp_path / "prompts.jsonl", 300)
    with pytest.raises(TruingError, match=r"prompts\.jsonl:4: .*256"):
        run(world, tmp_path / "run", prompts=str(prompts), max_length=1024)
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize(("reward", "message"), [("absent.module:f", "cannot be imported"), ("ppo_tiny:absent", "cannot be imported"), ("ppo_tiny:LORA", "not a function")])
def test_a_reward_that_cannot_be_found_is_named(reward: str, message: str, world: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        run(world, tmp_path / "run", reward=reward)


def test_a_reward_folder_that_is_no_scorer_is_named(world: Path, tmp_path: Path) -> None:
    with pytest.raises(TruingError, match="score"):
        run(world, tmp_path / "run", reward=str(world / "base"))


# -- the command line ----------------------------------------------------------------------------------------------------
def test_the_command_line_says_it_in_one_line_and_exits_with_1(world: Path, tmp_path: Path) -> None:
    """Value and remedy on the last line, no traceback; one process for a wrong setting, one for a wrong reward."""
    env = {**os.environ, "NO_COLOR": "1", "COLUMNS": "200", "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *(p for p in sys.path if p)])}
    common = ["--model", str(world / "base"), "--prompts", str(world / "prompts.jsonl"), "--runs-dir", str(tmp_path), "--scores-timeout", "null", "--batch-size", "8"]
    for arguments, message in ((["--kl-target", "0"], "kl.target=0"), (["--reward", "test_ppo_bad_input:one_for_all", "--steps", "1", "--max-new-tokens", "4"], "gave 1 scores for 8 completions")):
        found = subprocess.run([sys.executable, "-m", "truing", "ppo", *common, *arguments], capture_output=True, text=True, timeout=120, env=env)
        assert found.returncode == 1, found.stderr[-2000:]
        assert message in found.stderr and "Traceback" not in found.stderr + found.stdout
