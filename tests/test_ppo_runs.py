"""Whole runs of PPO on tiny models: what is exact at the start, what really steps, what moves, what may not, and what holds it back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import ppo_tiny as tiny_ppo
from truing.learn.update import Learner
from truing.maths import kl
from truing.methods import ppo as page
from truing.methods.roles_of_ppo import Roles
from truing.observe.events import read_events


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_ppo.world(tmp_path_factory.mktemp("ppo"))


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [e for e in read_events(folder) if e["kind"] == "metrics"]


def ran(world: Path, folder: Path, *, seed: int = 0, **changes: Any) -> list[dict[str, Any]]:
    page.ppo(tiny_ppo.options(world, **changes), folder, seed=seed)
    return metrics(folder)


class Opened:
    """The roles and the learner of the runs of a test, and what their weights were at the start."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.roles: list[Roles] = []
        self.learners: list[Learner] = []
        self.before: list[dict[str, Tensor]] = []
        opened, made = page.open_roles, page.Learner

        def open_roles(*given: Any) -> Roles:
            self.roles.append(opened(*given))
            self.before.append(everything(self.roles[-1]))
            return self.roles[-1]

        def learner(*given: Any, **named: Any) -> Learner:
            self.learners.append(made(*given, **named))
            return self.learners[-1]

        patch.setattr(page, "open_roles", open_roles)
        patch.setattr(page, "Learner", learner)


def everything(roles: Roles) -> dict[str, Tensor]:
    """A copy of every weight of every role, by role and name."""
    found: dict[str, Tensor] = {}
    for name, role in {"policy": roles.policy, "value": roles.value, "reference": roles.reference, "reward": getattr(roles.reward, "role", None)}.items():
        if role is not None:
            found |= {f"{name}.base.{k}": p for k, p in role.backbone.model.named_parameters()}
            found |= {f"{name}.adapter.{k}": p for k, p in (role.adapter.tensors() if role.adapter else {}).items()}
            found |= {f"{name}.head.{k}": p for k, p in (role.head.named_parameters() if role.head else [])}
    return {k: p.detach().clone() for k, p in found.items()}


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Opened:
    return Opened(monkeypatch)


# -- what is exact -------------------------------------------------------------------------------------------------------
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "every layer adapted": {"lora": {"rank": 4, "alpha": 8.0, "layers": None}},
    "every weight": {"lora": None},
    "every weight, shared": {"lora": None, "value": "shared"},
    "shared value head": {"value": "shared"},
    "k2 in the loss": {"kl": {"coef": 0.1, "place": "loss_k2"}},
    "k3 in the loss, shared, small parts": {"kl": {"coef": 0.1, "place": "loss_k3"}, "value": "shared", "micro_tokens": 70},
    "dual clip, no correction of the sampler": {"dual_clip": 3.0, "sampler_cap": None},
    "one minibatch": {"minibatches": 1},
    "one completion a minibatch": {"minibatches": 8},
    "one completion at a time": {"micro_tokens": 1},
    "hot, entropy": {"temperature": 0.6, "entropy": 0.01},
    "bfloat16 below": {"dtype": "bfloat16"},
    "value first": {"value_warmup": 1},
    "a value model of its own": {"value_model": "base"},
    "reference on the disk": {"lora": None, "reference": "offloaded"},
    "scores normalised": {"scores": {"normalise": "running", "clip": 1.0, "timeout": None}},
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_the_first_ratio_is_exactly_one_and_the_first_divergence_exactly_zero(setting: str, world: Path, tmp_path: Path) -> None:
    """The stored log-probabilities are the behaviour policy's to the last bit, and the policy starts as its own reference."""
    changes = dict(SETTINGS[setting])
    if "value_model" in changes:
        changes["value_model"] = str(world / changes["value_model"])
    first, second = ran(world, tmp_path / "run", **changes)
    assert first["policy/first_ratio_error"] == second["policy/first_ratio_error"] == 0.0
    assert first["kl/sequence"] == first["kl/k3_sequence"] == first["kl/token"] == 0.0
    assert (second["kl/k3_sequence"] > 0) == (changes.get("value_warmup") is None)
    assert first["sampler/mismatch"] < (1e-5 if changes.get("dtype") != "bfloat16" else 1e-3)
    assert first["policy/ratio_max"] >= 1 and all(isinstance(v, int | float) for v in (*first.values(), *second.values()) if v != "metrics")
    assert first["policy/updates"] == 2 * changes.get("minibatches", 2)
    assert first["policy/entropy"] > 0 and -10 < first["value/explained_variance"] <= 1


def test_dropout_of_the_model_stays_off_in_every_role(world: Path, tmp_path: Path) -> None:
    """A checkpoint trained with dropout: dropped units would make the first ratio differ from 1 and the first divergence from 0."""
    from transformers import AutoConfig, AutoModelForCausalLM

    from truing.models.load import load_tokenizer, save_model

    tokenizer = load_tokenizer(str(world / "base"))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        wet = {"resid_pdrop": 0.5, "embd_pdrop": 0.5, "attn_pdrop": 0.5}
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model("gpt2", vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=4, n_positions=128, **wet))
    save_model(model, tokenizer, tmp_path / "gpt2")
    model.train()
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        assert not torch.equal(model(ids).logits, model(ids).logits)  # the wrong version
    for lora in ({"rank": 2}, None):
        first, second = ran(world, tmp_path / f"run-{lora is None}", model=str(tmp_path / "gpt2"), reward="tiny:good", lora=lora)
        assert first["policy/first_ratio_error"] == second["policy/first_ratio_error"] == 0.0 and first["kl/sequence"] == 0.0
        assert first["sampler/mismatch"] < 1e-5


def test_a_tokenizer_whose_pad_is_its_end_of_turn_changes_nothing(world: Path, tmp_path: Path) -> None:
    """Masks come from lengths: with pad = end-of-turn the run is the same, bit for bit, and the end-of-turn token is trained."""
    import shutil

    other = tmp_path / "base"
    shutil.copytree(world / "base", other)
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if (other / name).exists():
            text = json.loads((other / name).read_text())
            (other / name).write_text(json.dumps({**text, "pad_token": "<|im_end|>"}))
    from truing.models.load import load_tokenizer

    tokenizer = load_tokenizer(str(other))
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    one = page.ppo(tiny_ppo.options(world, reward="tiny:good", value="shared"), tmp_path / "one", seed=0)
    two = page.ppo(tiny_ppo.options(world, reward="tiny:good", value="shared", model=str(other)), tmp_path / "two", seed=0)
    assert metrics(tmp_path / "one") == metrics(tmp_path / "two")
    weights = [torch.cat([p.flatten() for p in loaded(tmp_path / name / "model").values()]) for name in ("one", "two")]
    assert torch.equal(*weights) and one["updates"] == two["updates"]


def loaded(folder: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "adapter_model.safetensors")


def test_a_seed_is_a_run(world: Path, tmp_path: Path) -> None:
    """One seed, one log and one set of weights; another seed draws other samples."""
    runs = [page.ppo(tiny_ppo.options(world), tmp_path / str(i), seed=seed)["weights_sha256"] for i, seed in enumerate((3, 3, 4))]
    assert runs[0] == runs[1] != runs[2]
    assert metrics(tmp_path / "0") == metrics(tmp_path / "1") != metrics(tmp_path / "2")


# -- what really steps ---------------------------------------------------------------------------------------------------
def test_every_sample_is_used_once_an_epoch_and_every_minibatch_is_a_step(world: Path, tmp_path: Path, opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shuffled without replacement, anew each epoch; optimiser steps = rollouts x epochs x minibatches, on trained weights of both models."""
    taken: list[list[int]] = []
    learn, stepped = page.learn, []
    monkeypatch.setattr(page, "learn", lambda *given, **named: (taken.append(list(given[4])), learn(*given, **named))[1])
    step = torch.optim.AdamW.step
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self, *given: (stepped.append(sum(p.grad is not None for g in self.param_groups for p in g["params"])), step(self, *given))[1])
    found = ran(world, tmp_path / "run", steps=3, epochs=3, minibatches=4)
    epochs = [sum(taken[i : i + 4], []) for i in range(0, len(taken), 4)]
    assert len(taken) == 3 * 3 * 4 and all(sorted(e) == list(range(8)) for e in epochs) and all(len(rows) == 2 for rows in taken)
    assert len({tuple(e) for e in epochs}) == 9
    assert stepped == [len(opened.learners[0].params)] * 36 and opened.learners[0].updates == 36
    assert all(m["policy/updates"] == 12 and m["policy/stopped"] == 0 for m in found)
    steps = {float(s["step"]) for s in opened.learners[0].adam.state.values()}
    assert steps == {36.0}


def test_the_learning_rate_falls_to_zero_over_the_updates(world: Path, tmp_path: Path, opened: Opened) -> None:
    """Linear over all updates of all rollouts; Adam's eps is 1e-5, as in the code whose numbers are published."""
    found = ran(world, tmp_path / "run", steps=4, warmup=0.0, lr=8e-3)
    # four updates a rollout, 16 in all; the last of each has made 3, 7, 11, 15
    assert [m["lr"] for m in found] == pytest.approx([8e-3 * (16 - n) / 16 for n in (3, 7, 11, 15)])
    learner = opened.learners[0]
    assert learner.updates == 16 and learner.factor(learner.updates) == 0.0
    assert all(g["eps"] == 1e-5 and g["betas"] == (0.9, 0.999) for g in learner.adam.param_groups)


def test_an_early_stop_leaves_out_the_rest_and_the_schedule_goes_on(world: Path, tmp_path: Path, opened: Opened) -> None:
    """kl.stop bounds how far a rollout's policy goes from its samples, nats a token; the learning rate still ends at 0."""
    changes: dict[str, Any] = {"steps": 3, "epochs": 4, "lr": 3e-2, "warmup": 0.0}
    free = ran(world, tmp_path / "free", **changes)
    held = ran(world, tmp_path / "held", **changes, kl={"coef": 0.1, "target": None, "stop": 1e-3})
    assert all(m["policy/updates"] == 8 and m["policy/stopped"] == 0 for m in free)
    assert held[0]["policy/updates"] < 8 and held[0]["policy/stopped"] == 1
    assert held[0]["policy/updates"] >= 2  # the first minibatch has ratio 1 and never stops
    assert held[0]["policy/approx_kl"] < free[0]["policy/approx_kl"] and held[-1]["kl/k3_sequence"] < 0.5 * free[-1]["kl/k3_sequence"]
    learner = opened.learners[1]
    assert learner.updates == 3 * 4 * 2 and learner.factor(learner.updates) == 0.0
    made = {float(s["step"]) for s in learner.adam.state.values()}
    assert made == {sum(m["policy/updates"] for m in held)} and made < {24.0} | made  # what was left out was not done either
    # left out without a word, the schedule would end at a rate above 0
    assert learner.factor(int(sum(m["policy/updates"] for m in held))) > 0.05
    # and the second rollout begins where the schedule stands, at 16 of 24 left
    first_of_second = 8 + held[1]["policy/updates"] - 1
    assert held[1]["lr"] == pytest.approx(3e-2 * (24 - first_of_second) / 24)


def test_a_stop_so_wide_that_it_never_binds_changes_nothing(world: Path, tmp_path: Path) -> None:
    runs = [page.ppo(tiny_ppo.options(world, kl={"coef": 0.1, "target": None, "stop": stop}), tmp_path / str(stop), seed=0)["weights_sha256"] for stop in (None, 1e6)]
    assert runs[0] == runs[1]


# -- what moves ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("changes", [{}, {"lora": None}, {"value": "shared"}, {"kl": {"coef": 0.1, "place": "loss_k3"}}])
def test_reference_reward_and_everything_frozen_keep_their_bits(changes: dict[str, Any], world: Path, tmp_path: Path, opened: Opened) -> None:
    """Four roles on one backbone, two of them trained: no bit of the others moves, in memory or in the folders they came from."""
    files = {p: p.read_bytes() for name in ("base", "rm") for p in (world / name).iterdir()}
    ran(world, tmp_path / "run", **changes)
    before, after, trained = opened.before[0], everything(opened.roles[0]), set(opened.learners[0].params)
    moved = {k for k, p in after.items() if not torch.equal(p, before[k])}
    assert moved and all(k.startswith(("policy.", "value.")) for k in moved)
    assert {k for k in before if k.startswith(("reference.", "reward."))} and (changes.get("lora", 0) is None or not any(".base." in k for k in moved))
    names = {k.replace(".base.", ".model.") for k in moved}
    assert {n for n in names if n in trained} >= {n for n in trained if n.startswith("policy.") and not n.endswith(".A")}
    assert all(p.read_bytes() == content for p, content in files.items())


@pytest.mark.parametrize("lora", [tiny_ppo.LORA.model_dump(), None])
def test_while_the_value_model_learns_alone_no_bit_of_the_policy_moves(lora: Any, world: Path, tmp_path: Path, opened: Opened) -> None:
    """Critic warm-up: the first rollouts train the value model; the policy begins afterwards with fresh moments."""
    policies: list[dict[str, Tensor]] = []
    record, page_record = page.record, []

    def noted(*given: Any) -> Any:
        policies.append({k: p.detach().clone() for k, p in opened.roles[0].parameters().items()})
        return record(*given)

    page_record.append(noted)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(page, "record", noted)
        found = ran(world, tmp_path / "run", steps=3, value_warmup=2, lora=lora, warmup=0.0)
    start = {f"policy.{k}": p for k, p in opened.before[0].items()}
    for step in (0, 1):
        for k, p in policies[step].items():
            if k.startswith("policy."):
                then = opened.before[0][k.replace("policy.model.", "policy.base.")]
                assert torch.equal(p, then), (step, k)
        assert any(not torch.equal(p, q) for (k, p), q in zip(policies[step].items(), (policies[step - 1] if step else {k: torch.zeros(1) for k in policies[0]}).values(), strict=True) if k.startswith("value."))
    assert any(not torch.equal(p, policies[1][k]) for k, p in policies[2].items() if k.startswith("policy."))
    assert [m["kl/k3_sequence"] for m in found] == [0.0, 0.0, 0.0]  # measured before the third rollout's updates
    assert [m["policy/clip_share"] for m in found[:2]] == [0.0, 0.0] and found[2]["policy/approx_kl"] > 0
    assert {float(s["step"]) for s in opened.learners[0].adam.state.values()} == {4.0, 12.0} and start


def test_the_value_model_has_a_learning_rate_of_its_own(world: Path, tmp_path: Path, opened: Opened) -> None:
    """Adam's first step moves a weight by its learning rate: ten times as far with ten times the rate, and the policy as before."""
    one: dict[str, Any] = {"steps": 1, "epochs": 1, "minibatches": 1, "warmup": 0.0, "schedule": "constant", "lr": 1e-3}
    ran(world, tmp_path / "same", **one)
    ran(world, tmp_path / "fast", **one, value_lr=1e-2)
    far: list[dict[str, float]] = []
    for roles, before in zip(opened.roles, opened.before, strict=True):
        after = everything(roles)
        far.append({role: max(float((after[k] - p).abs().max()) for k, p in before.items() if k.startswith(role) and ".base." not in k) for role in ("policy", "value")})
    assert far[0]["policy"] == pytest.approx(far[1]["policy"]) and far[0]["policy"] == pytest.approx(1e-3, rel=0.02)
    assert far[0]["value"] == pytest.approx(1e-3, rel=0.02) and far[1]["value"] == pytest.approx(1e-2, rel=0.02)


def test_one_gradient_norm_over_both_models_is_clipped(world: Path, tmp_path: Path, opened: Opened) -> None:
    """The norm is that of policy and value gradients together; the first moments are 0.1 of the clipped ones, so their norm is 0.1 of the bound."""
    one: dict[str, Any] = {"steps": 1, "epochs": 1, "minibatches": 1, "grad_clip": 1e-2}
    (found,) = ran(world, tmp_path / "run", **one)
    assert found["grad/norm"] > 0.1
    learner = opened.learners[0]
    moments = {name: learner.adam.state[p]["exp_avg"] for name, p in learner.params.items()}
    norm = {role: float(torch.cat([m.flatten() for k, m in moments.items() if k.startswith(role)]).norm()) for role in ("policy", "value")}
    assert (norm["policy"] ** 2 + norm["value"] ** 2) ** 0.5 == pytest.approx(0.1 * 1e-2, rel=1e-4)
    assert min(norm.values()) > 1e-5  # each clipped alone, both would have 0.1 of the bound


def test_a_bonus_keeps_the_entropy_up(world: Path, tmp_path: Path) -> None:
    """A coefficient of 1 a nat is far above what the scores are worth: the policy becomes uncertain."""
    kept, lost = (ran(world, tmp_path / str(c), steps=3, entropy=c, lr=1e-2, warmup=0.0)[-1]["policy/entropy"] for c in (1.0, 0.0))
    assert kept > lost + 0.5


# -- what holds it back --------------------------------------------------------------------------------------------------
def letters(prompts: list[str], completions: list[str]) -> list[float]:
    """Share of letters of the first half of the alphabet: something to learn."""
    return [sum(x in "abcdefghijklm" for x in text) / max(1, len(text)) for text in completions]


def test_a_large_coefficient_keeps_the_policy_at_its_reference(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """10 a nat leaves less than 0.1 nats a sequence wherever the penalty stands; without one, and with its sign turned round, the same run goes several times as far."""
    all_layers = {"rank": 8, "alpha": 32.0, "layers": None}
    changes: dict[str, Any] = {"steps": 6, "batch_size": 32, "epochs": 4, "lr": 2e-3, "schedule": "constant", "reward": "test_ppo_runs:letters", "value": "shared", "lora": all_layers}

    def furthest(name: str, coef: float, place: str = "reward") -> float:
        return max(m["kl/k3_sequence"] for m in ran(world, tmp_path / name, **changes, kl={"coef": coef, "target": None, "place": place}))

    for place in ("reward", "loss_k2", "loss_k3"):
        assert furthest(place, 10.0, place) < 0.1, place
    assert furthest("free", 0.0) > 0.2
    monkeypatch.setattr(kl, "k1", lambda logp, logp_ref: logp_ref - logp)
    assert furthest("turned", 10.0) > 0.2


def test_the_coefficient_follows_the_divergence_of_sequences(world: Path, tmp_path: Path) -> None:
    """Each rollout's divergence, in nats a sequence, and its number of sequences move the coefficient of the next; 8 of a horizon of 40."""
    found = ran(world, tmp_path / "run", steps=5, lr=2e-2, warmup=0.0, kl={"coef": 0.1, "target": 0.05, "horizon": 40})
    control = kl.AdaptiveCoefficient(0.1, 0.05, 40)
    for m in found:
        assert m["kl/coef"] == pytest.approx(control.coef, rel=1e-12)
        control = control.after(m["kl/sequence"], 8)
    assert found[1]["kl/coef"] == pytest.approx(0.1 * (1 - 0.2 * 8 / 40)) and max(m["kl/coef"] for m in found[2:]) > found[1]["kl/coef"]
    assert json.loads((tmp_path / "run" / "done.json").read_text())["kl_coef"] == pytest.approx(control.coef, rel=1e-12)
    fixed = ran(world, tmp_path / "fixed", kl={"coef": 0.1, "target": None})
    assert [m["kl/coef"] for m in fixed] == [0.1, 0.1]


def test_every_rollout_is_written_with_its_own_numbers(world: Path, tmp_path: Path) -> None:
    """Samples of the first and the last rollout, log-probabilities and parts included; every number of the log is a number."""
    found = ran(world, tmp_path / "run", steps=3, save_every=2, monitors={"good": "tiny:good"})
    assert sorted(p.name for p in (tmp_path / "run" / "samples").iterdir()) == ["step-000001.jsonl", "step-000002.jsonl", "step-000003.jsonl"]
    rows = [json.loads(line) for line in (tmp_path / "run" / "samples" / "step-000003.jsonl").read_text().splitlines()]
    assert len(rows) == 8 and all(len(r["logp"]) == r["tokens"] for r in rows)
    assert sum(r["score"] for r in rows) / 8 == pytest.approx(found[-1]["reward/proxy"], rel=1e-5)
    assert sum(r["tokens"] for r in rows) / 8 == pytest.approx(found[-1]["tokens/mean"])
    assert {"reward/proxy", "monitor/good", "kl/sequence", "kl/token", "policy/approx_kl", "policy/clip_share", "policy/ratio_max", "policy/ratio_mean", "policy/entropy",
            "value/explained_variance", "value/error", "advantage/std", "tokens/mean", "tokens/eos_share", "tokens/truncated_share", "grad/norm", "lr"} <= set(found[0])  # fmt: skip


