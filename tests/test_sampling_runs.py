"""Truncation and stop strings through the methods and the command line: what is recorded, what the trainer makes of it, and what a person is told."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import data_tokenizers as kinds
import grpo_tiny
import ppo_tiny
from test_rollout_episodes import RENDERER, TOKENIZER, go
from test_rollout_sampling import oracle
from truing.cli import main
from truing.config import GRPO, PPO, Evaluate, Sampling, load_recipe, make_recipe, make_stage
from truing.data.template import Renderer
from truing.errors import ConfigError
from truing.methods import ppo as page
from truing.methods.completions import read, score
from truing.methods.evaluate import evaluate
from truing.methods.groups import _rollouts
from truing.methods.grpo_loss import Before, token_losses
from truing.methods.ppo_update import Seen, minibatches
from truing.methods.rollout_record import of_sampler
from truing.observe.events import read_events
from truing.observe.metrics import lookup
from truing.rollout.sampler import sample
from truing.rollout.spoken import between
from truing.types import Message, Rollout

CUT = {"top_k": 60, "top_p": 0.7, "min_p": 0.01}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return grpo_tiny.world(tmp_path_factory.mktemp("world"))


def events(folder: Path, kind: str) -> list[dict[str, Any]]:
    return [dict(e) for e in read_events(folder) if e["kind"] == kind]


# -- what the trainer makes of it ------------------------------------------------------------------------------------------
def rollout_of(world: Path, folder: Path, config: PPO) -> tuple[Any, Any, list[Any]]:
    roles = ppo_tiny.moved_roles(config, folder)
    found = sample(roles.policy, ppo_tiny.prompts(8), max_new_tokens=6, temperature=config.temperature, stop_ids=ppo_tiny.STOPS, seed=0, step=1, sampling=config.sampling)
    batch, scores, _ = score(found, read(found, ["q"] * 8, roles, config), roles, config)
    return roles, batch, scores


@pytest.mark.parametrize("kind", [CUT, {"top_p": 0.7}, {}])
def test_the_weight_of_a_token_is_the_probability_that_was_kept(world: Path, tmp_path: Path, kind: dict[str, Any]) -> None:
    """pi / mu = kept mass: with mu = pi / Z on what is kept. So E_mu[Z f] = sum over kept tokens of pi f: the policy's own expectation, less what was cut."""
    config = ppo_tiny.options(world, sampling=kind, temperature=0.8)
    roles, batch, scores = rollout_of(world, tmp_path, config)
    plan = [list(rows) for rows in minibatches(8, 2, 0, 1, 0)]
    past = page.look(batch, roles, config, plan, 0.1, scores, 4096).past
    trained = batch.rollout.trained_BT
    pack, positions = batch.pack(range(8))
    with torch.no_grad():
        logits = roles.policy.hidden(pack)[positions] @ roles.policy.backbone.head_weight.T
    pi = [oracle(row, 0.8) for row in logits]
    mu = [oracle(row, 0.8, **kind) for row in logits]
    said = batch.rollout.completion_BT[trained].tolist()
    kept = torch.tensor([p[m > 0].sum() for p, m in zip(pi, mu, strict=True)], dtype=torch.float32)
    torch.testing.assert_close(past.weight[trained], kept, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(past.logp[trained], torch.tensor([p[t] for p, t in zip(pi, said, strict=True)]).log().float(), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(batch.rollout.sampler_logp_BT[trained], torch.tensor([m[t] for m, t in zip(mu, said, strict=True)]).log().float(), atol=1e-4, rtol=1e-4)
    assert (kept < 0.999).all() if kind else (kept > 0.999).all()


def test_a_single_update_of_groups_weighs_alike() -> None:
    """`Before.logp` None: the old policy is the one that learns, and the weight is still pi / mu; sampler_outside: mask leaves out what keeps less than 1 / cap."""
    logp, mu = torch.tensor([[-1.0, -2.0]]), torch.tensor([[-1.0 - torch.tensor(0.8).log(), -2.0 - torch.tensor(0.3).log()]])  # 0.8 and 0.3 were kept
    counted, entropy, advantages = torch.ones(1, 2, dtype=torch.bool), torch.zeros(1, 2), torch.tensor([[1.0, 1.0]])

    def losses(**changes: Any) -> list[float]:
        config = GRPO(prompts="x", kl={"coef": 0.0}, sampling={"top_p": 0.9}, **changes)
        seen = Seen()
        seen.begin()
        return token_losses(logp, entropy, Before(advantages, mu), counted, config, seen)[0].tolist()

    assert losses() == pytest.approx([-0.8, -0.3])
    assert losses(sampler_outside="mask") == pytest.approx([-0.8, 0.0])
    assert losses(sampler_cap=None) == pytest.approx([-1.0, -1.0])


def test_truncation_is_no_mismatch() -> None:
    away = torch.tensor([0.8, 0.5, 0.9]).log()  # log pi - log mu: what was kept
    found = of_sampler(away, Sampling(top_p=0.4))
    assert found == {"sampler/mismatch": 0.0, "sampler/kept": pytest.approx((0.8 + 0.5 + 0.9) / 3)}
    healthy = lookup("sampler/mismatch").healthy
    assert healthy is not None and found["sampler/mismatch"] in healthy
    assert of_sampler(away, Sampling())["sampler/mismatch"] not in healthy  # as it would have been called without the truncation
    # a sampler with other weights errs both ways, and the half that truncation cannot explain is seen
    assert of_sampler(torch.tensor([0.6, -0.9, 0.3]), Sampling(top_k=5))["sampler/mismatch"] == pytest.approx(0.3)


# -- whole runs ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("cap", [2.0, None])
def test_ppo_under_truncation(world: Path, tmp_path: Path, cap: float | None) -> None:
    page.ppo(ppo_tiny.options(world, sampling={**CUT, "stop": ["e"]}, sampler_cap=cap, monitors={"sums": "ppo_tiny:sums"}), tmp_path, seed=0)
    metrics = events(tmp_path, "metrics")
    for row in (m["values"] if "values" in m else m for m in metrics):
        assert row["policy/first_ratio_error"] == 0.0 and row["sampler/mismatch"] < 1e-5
        assert 0.3 < row["sampler/kept"] < 0.99 and "sampler/weight_mean" not in row and row["sampler/capped_share"] == 0.0
    told = [f for f in events(tmp_path, "finding") if "sampler/truncated" in json.dumps(f)]
    assert len(told) == 1  # once, though there are two steps
    text = json.dumps(told[0])
    assert "top_k=60, top_p=0.7, min_p=0.01: completions are drawn from" in text
    assert ("each token's loss has that weight (sampler_cap)" if cap else "nothing corrects for that (sampler_cap: null)") in text


def test_without_truncation_nothing_is_told(world: Path, tmp_path: Path) -> None:
    page.ppo(ppo_tiny.options(world, sampling={"stop": ["zzzz"]}), tmp_path / "stop", seed=0)
    page.ppo(ppo_tiny.options(world), tmp_path / "plain", seed=0)
    first, second = (events(tmp_path / name, "metrics") for name in ("stop", "plain"))
    strip = lambda rows: [{k: v for k, v in json.loads(json.dumps(row)).items() if k not in ("time", "config_hash")} for row in rows]  # noqa: E731
    assert not [f for name in ("stop", "plain") for f in events(tmp_path / name, "finding") if "truncated" in json.dumps(f)]
    assert [row["step"] for row in strip(first)] == [1, 2] and "sampler/kept" not in json.dumps(first)
    wanted, found = (json.loads((tmp_path / name / "samples" / "step-000001.jsonl").read_text().splitlines()[0]) for name in ("plain", "stop"))
    assert found == wanted  # a text that nobody says changes nothing
    assert len(second) == 2


@pytest.mark.parametrize("changes", [{"epochs": 1, "minibatches": 1, "kl": {"coef": 0.0}}, {}, {"preset": "rloo"}, {"preset": "remax"}, {"advantage": "batch", "kl": {"coef": 0.0}}])
def test_groups_under_truncation(world: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    found = grpo_tiny.run(world, tmp_path, sampling=CUT, reward="grpo_tiny:by_thirds", **changes)
    learned = [row for row in found if row["policy/updates"]]
    assert len(found) == 2 and learned
    for row in learned:
        assert row["sampler/mismatch"] < 1e-5 and 0.3 < row["sampler/kept"] < 0.99 and row["policy/first_ratio_error"] == 0.0
    assert len([f for f in events(tmp_path, "finding") if "sampler/truncated" in json.dumps(f)]) == 1


def test_stop_strings_end_completions_and_count_as_their_end(world: Path, tmp_path: Path) -> None:
    plain, stopped = tmp_path / "plain", tmp_path / "stopped"
    before = grpo_tiny.run(world, plain, steps=1, max_new_tokens=12)[0]
    texts = [row["completion"] for row in grpo_tiny.samples(plain, 1)]
    letter = max("".join(texts), key=lambda c: sum(c in t[:-2] for t in texts) if c.isascii() and c.isalnum() else 0)
    after = grpo_tiny.run(world, stopped, steps=1, max_new_tokens=12, sampling={"stop": letter})[0]
    rows = grpo_tiny.samples(stopped, 1)
    ended = [letter in row["completion"] for row in rows]
    assert sum(ended) >= 2
    for text, row in zip(texts, rows, strict=True):
        assert text.startswith(row["completion"]) and (letter in row["completion"]) == (letter in text)
    assert after["tokens/eos_share"] > before["tokens/eos_share"] and after["tokens/eos_share"] >= sum(ended) / len(ended)
    assert after["tokens/mean"] < before["tokens/mean"]


def test_evaluate_draws_both_models_alike(world: Path, tmp_path: Path) -> None:
    base = str(world / "base")
    common = {"before": base, "after": base, "prompts": str(world / "tasks.jsonl"), "scores": {"sums": "ppo_tiny:sums"}, "samples": 2, "max_new_tokens": 8}
    said = {}
    for name, sampling in (("plain", {}), ("one", {"top_k": 1}), ("stop", {"stop": [" "]})):
        evaluate(Evaluate(**common, sampling=sampling), tmp_path / name, seed=0)
        rows = json.loads((tmp_path / name / "evaluation.json").read_text())["rows"]
        assert all(row["before"] == row["after"] for row in rows)  # one model, the same random numbers
        said[name] = [[s["text"] for s in row["before"]] for row in rows]
    assert all(a == b for a, b in said["one"]) and any(a != b for a, b in said["plain"])  # top_k: 1 leaves nothing to chance
    assert said["stop"] != said["plain"]


# -- the record ------------------------------------------------------------------------------------------------------------
def test_a_rollout_names_its_truncation_through_everything() -> None:
    row = ([[1], [2]], torch.ones(2, 1, dtype=torch.long), torch.ones(2, 1, dtype=torch.bool), torch.zeros(2, 1), torch.ones(2, dtype=torch.bool), 0.9, 3)
    cut = Sampling(top_p=0.5)
    rollout = Rollout(*row, truncation=cut)
    assert rollout.select([1]).truncation == cut and _rollouts([rollout, rollout]).truncation == cut
    assert Rollout(*row).truncation is None and Rollout(*row).select([0]).truncation is None


def test_what_is_sampled_says_how(world: Path, tmp_path: Path) -> None:
    config = ppo_tiny.options(world, sampling=CUT)
    assert rollout_of(world, tmp_path, config)[1].rollout.truncation == Sampling(**CUT)
    assert go(sampling=Sampling(top_k=9)).rollout.truncation == Sampling(top_k=9)


# -- episodes --------------------------------------------------------------------------------------------------------------
def test_a_turn_that_a_text_ends_is_answered_and_closed_by_what_is_heard() -> None:
    stop = Sampling(stop=("a", "e"))
    found = go(sampling=stop)
    end, closed, open_ = RENDERER.stop_ids[0], 0, 0
    for b, turns in enumerate(found.rollout.turns()):
        for turn, (_, heard) in zip(turns, found.rollout.heard[b], strict=False):
            text = TOKENIZER.decode(turn, skip_special_tokens=False)
            by_text = "a" in text or "e" in text
            assert by_text or turn[-1] in range(0, 400, 12)
            if turn[-1] not in range(0, 400, 12):
                assert heard[0] == end  # the template's own end of the turn, heard and never trained on
                open_ += 1
            else:
                closed += 1
    assert open_ > 3
    assert (found.rollout.trained_BT.sum(-1) == torch.tensor([len(s) for s in found.rollout.said()])).all()


@pytest.mark.parametrize("name", ["CHATML", "LLAMA3", "LLAMA2"])
def test_an_open_turn_gets_what_the_template_ends_it_with(name: str) -> None:
    ends = {"LLAMA3": "<|eot_id|>", "LLAMA2": "</s>"}.get(name, "<|im_end|>")
    renderer = Renderer(kinds.tiny(getattr(kinds, name), bos="<s>", eos=ends))
    heard = (Message("user", "and you?"),)
    closed, open_ = (between(renderer, ("user", "assistant"), heard, closed=c) for c in (True, False))
    cut = len(open_) - len(closed)
    assert open_[cut:] == closed and open_[cut - 1] == renderer.stop_ids[0]
    assert between(renderer, ("user", "assistant"), "as it stands", closed=False) == between(renderer, ("user", "assistant"), "as it stands")


# -- options ---------------------------------------------------------------------------------------------------------------
BAD = [
    ({"top_p": 0}, r"sampling\.top_p=0: Input should be greater than 0"),
    ({"top_p": 1.5}, r"sampling\.top_p=1\.5: Input should be less than or equal to 1"),
    ({"top_k": 0}, r"sampling\.top_k=0: Input should be greater than or equal to 1"),
    ({"min_p": 1}, r"sampling\.min_p=1: Input should be less than 1"),
    ({"min_p": -0.1}, r"sampling\.min_p=-0\.1"),
    ({"stop": ""}, r"sampling\.stop='': every completion has the empty text from the start"),
    ({"stop": ["x", ""]}, r"every completion has the empty text from the start"),
    ({"topp": 0.9}, r"unknown key 'sampling\.topp'; did you mean 'top_p'\?"),
    ({"top_p": float("nan")}, r"sampling\.top_p=nan"),
]


@pytest.mark.parametrize("method", ["ppo", "grpo", "evaluate"])
@pytest.mark.parametrize(("sampling", "message"), BAD)
def test_bad_options_are_named(method: str, sampling: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_stage(method, {"prompts": "x", "sampling": sampling})


def test_one_text_or_several_and_a_recipe_that_is_read_back(tmp_path: Path) -> None:
    assert Sampling(stop="END").stop == ("END",) and Sampling(stop=["a", "\n\n"]).stop == ("a", "\n\n")  # type: ignore[arg-type]
    assert not Sampling(stop=("x",)).truncates and all(Sampling(**{k: v}).truncates for k, v in CUT.items())  # type: ignore[arg-type]
    recipe = make_recipe({"name": "a", "stages": {"ppo": {"prompts": "x"}}}, ["ppo.sampling.top_p=0.9", 'ppo.sampling.stop=["### ", "Q:"]'])
    import yaml

    (tmp_path / "r.yaml").write_text(yaml.safe_dump(recipe.model_dump(), sort_keys=False))
    assert load_recipe(tmp_path / "r.yaml") == recipe and recipe.stages["ppo"].sampling == Sampling(top_p=0.9, stop=("### ", "Q:"))  # type: ignore[union-attr]


def failed(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        main(args)
    assert stopped.value.code == 1
    return capsys.readouterr().err


def test_the_command_line_takes_them(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--model", str(world / "base"), "--prompts", str(world / "tasks.jsonl"), "--reward", "ppo_tiny:sums", "--steps", "1", "--batch-size", "4", "--group", "2", "--max-new-tokens", "4"]
    with pytest.raises(SystemExit) as stopped:
        main(["grpo", *small, "--scores-timeout", "null", "--sampling-top-p", "0.8", "--sampling-stop", "### ", "--sampling-stop", "\n", "--runs-dir", str(tmp_path), "--name", "cut"])
    assert stopped.value.code in (0, None)
    written = load_recipe(tmp_path / "cut" / "recipe.yaml").stages["grpo"]
    assert written.sampling == Sampling(top_p=0.8, stop=("### ", "\n"))  # type: ignore[union-attr]
    assert "sampling.top_k=0" in failed(capsys, "grpo", *small, "--sampling-top-k", "0")
    assert "truing chat: top_p=0.0: Input should be greater than 0" in failed(capsys, "chat", str(world / "base"), "--top-p", "0")
    assert "every completion has the empty text" in failed(capsys, "chat", str(world / "base"), "--stop", "")


def test_chat_ends_an_answer_at_a_text(world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def answers(*options: str) -> str:
        monkeypatch.setattr(sys, "stdin", io.StringIO("Say a word.\nSpeak.\n"))
        with pytest.raises(SystemExit) as stopped:
            main(["chat", str(world / "base"), "--temperature", "1", "--max-new-tokens", "24", *options])
        assert stopped.value.code in (0, None)
        return capsys.readouterr().out

    plain = answers()
    letter = next(c for c in plain[:-5] if c.isascii() and c.isalnum())
    assert answers("--stop", letter) != plain
    assert answers("--top-k", "1") == answers("--top-k", "1", "--seed", "7")  # nothing is left to chance
    assert answers("--seed", "7") != plain
