"""Sampling: the stated distribution, exact log-probabilities, and samples that depend on nothing but themselves."""

from __future__ import annotations

import pytest
import torch
from scipy.stats import chisquare

from test_models_backbone import gpt2, moved, small
from truing.config import Lora
from truing.errors import ConfigError
from truing.maths.likelihood import token_likelihood
from truing.models.backbone import Backbone
from truing.models.pack import Pack
from truing.models.roles import Role
from truing.rollout.sampler import sample
from truing.rollout.sampling import draw

PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12, 13], [5, 6, 7], [20, 21]]


def role(kind: str = "llama") -> Role:
    backbone = Backbone(gpt2() if kind == "gpt2" else small(kind), lora=Lora(rank=2, layers=2))
    return Role(backbone, moved(backbone))


def go(policy: Role, prompts: list[list[int]] = PROMPTS, **options: object):  # type: ignore[no-untyped-def]
    return sample(policy, prompts, **{"max_new_tokens": 12, "temperature": 1.0, "stop_ids": [3, 40], "seed": 0, "step": 0, **options})  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "gpt2"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@torch.no_grad()
def test_log_probabilities_equal_one_teacher_forced_pass(kind: str, temperature: float) -> None:
    policy = role(kind)
    rollout = go(policy, temperature=temperature)
    pack = Pack(rollout.sequences())
    positions = pack.spans([len(p) - 1 for p in PROMPTS], [n - 1 for n in pack.lengths])
    again = token_likelihood(policy.hidden(pack)[positions], policy.backbone.head_weight, pack.ids_N[positions + 1], temperature=temperature).logp
    torch.testing.assert_close(again, rollout.sampler_logp_BT[rollout.trained_BT], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_greedy_equals_transformers_generate(kind: str) -> None:
    model = gpt2() if kind == "gpt2" else small(kind)
    rollout = sample(Role(Backbone(model, lora=Lora())), PROMPTS, max_new_tokens=10, temperature=0, stop_ids=[], seed=0, step=0)
    for prompt, row in zip(PROMPTS, rollout.completion_BT, strict=True):
        theirs = model.generate(torch.tensor([prompt]), max_new_tokens=10, do_sample=False, eos_token_id=None, pad_token_id=0)  # type: ignore[operator]
        assert row.tolist() == theirs[0, len(prompt) :].tolist()


def test_completions_stop_at_a_stop_token_and_hold_it() -> None:
    rollout = go(role(), [[5, 6]] * 64, max_new_tokens=20)
    for row, n, done in zip(rollout.completion_BT.tolist(), rollout.lengths_B.tolist(), rollout.finished_B.tolist(), strict=True):
        stops = [i for i, t in enumerate(row[:n]) if t in (3, 40)]
        assert stops == ([n - 1] if done else []) and (done or n == 20)
    assert 0 < rollout.finished_B.sum() < 64
    assert (rollout.sampler_logp_BT[~rollout.trained_BT] == 0).all()


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_sample_does_not_depend_on_its_batch(kind: str) -> None:
    policy = role(kind)
    together = go(policy)
    for options in ({"batch_size": 2}, {"batch_size": 1}):
        apart = go(policy, **options)
        assert together.sequences() == apart.sequences()
    alone = go(policy, [PROMPTS[2]], samples=[2])
    assert alone.sequences()[0] == together.sequences()[2]
    assert together.sequences()[0] != together.sequences()[3]  # the same prompt, another sample


def test_draws_follow_the_distribution() -> None:
    logits = torch.randn(1, 700, generator=torch.Generator().manual_seed(0)) * 2
    logits[0, 5] = float("-inf")
    n = 200_000
    uniforms = torch.rand(n, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    tokens = torch.cat([draw(logits.expand(10_000, -1), u, 0.8)[0] for u in uniforms.split(10_000)])
    expected = (logits[0] / 0.8).double().softmax(-1)
    counts = torch.bincount(tokens, minlength=700)
    assert counts[5] == 0
    big = expected * n > 5
    rest = torch.tensor([counts[~big].sum(), expected[~big].sum() * n])
    found, wanted = torch.cat([counts[big], rest[:1]]), torch.cat([expected[big] * n, rest[1:]])
    assert chisquare(found.double().numpy(), (wanted / wanted.sum() * n).double().numpy()).pvalue > 1e-3
    wrong = logits[0].double().softmax(-1)  # the temperature left out
    assert chisquare(counts[big].double().numpy(), (wrong[big] / wrong[big].sum() * counts[big].sum()).numpy()).pvalue < 1e-9


def test_the_edges_of_the_unit_interval_give_real_tokens() -> None:
    logits = torch.tensor([[0.0] * 3 + [-1e9] * 300 + [0.0]])
    tokens, logp = draw(logits.expand(2, -1), torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64), 1.0)
    assert tokens.tolist() == [0, 303] and torch.isfinite(logp).all()


def test_sampling_leaves_the_weights_alone() -> None:
    policy = role()
    before = {k: v.clone() for k, v in policy.backbone.model.state_dict().items()}
    go(policy)
    assert all(torch.equal(v, before[k]) for k, v in policy.backbone.model.state_dict().items())


@pytest.mark.parametrize(("options", "message"), [({"temperature": -1.0}, "negative"), ({"max_new_tokens": 300}, "context of 256")])
def test_bad_input_is_named(options: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        go(role(), **options)
    with pytest.raises(ConfigError, match="empty"):
        go(role(), [[]])
