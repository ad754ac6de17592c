"""What each part of PPO is for, at a size for tests; the whole claim is the slow one."""

from __future__ import annotations

import doctest

import numpy as np
import pytest
import torch

from truing.config import make_options
from truing.errors import ConfigError
from truing.labs import ablations, ablations_gradient
from truing.labs.ablations import INTACT, Options, gold, kinds, one, proxy, stage
from truing.labs.optimum_loop import by_hand
from truing.labs.optimum_world import best, world, worth
from truing.methods.roles_of_ppo import open_roles


def test_examples():
    found = doctest.testmod(ablations)
    assert found.attempted > 0 and found.failed == 0


def test_the_proxy_and_what_is_meant_part_at_the_third_a():
    texts = ["", "a0", "a0 a0", "a0 a0 a0", "b0 a0 c0"]
    own = 0.2 * np.array(worth(["b0"] * 5, texts))
    np.testing.assert_allclose(np.array(proxy(["b0"] * 5, texts)) - own, [0, 0.5, 1.0, 1.5, 0.5], atol=1e-12)
    np.testing.assert_allclose(np.array(gold(["b0"] * 5, texts)) - own, [0, 0.5, 1.0, -1.0, 0.5], atol=1e-12)


def test_with_beta_0_the_best_policy_of_the_proxy_says_nothing_but_a():
    # a third a pays 0.5 more, and two completions' own numbers differ by 0.2 * 2 = 0.4 at most
    with world(0, score=proxy) as w:
        assert all(w.texts[int(row.argmax())] == "a0 a0 a0" for row in np.array([proxy([p] * len(w.texts), w.texts) for p in w.prompts]))


def kind(name: str) -> ablations.Kind:
    return next(k for k in kinds(Options()) if k.name == name)


SHORT = Options(steps=10)


@pytest.fixture(scope="module")
def intact() -> ablations.Outcome:
    return one(SHORT, kind(INTACT), 0)


def test_intact_it_nears_its_closed_form(intact):
    assert intact.apart[0] > 0.2 and intact.apart[-1] < 0.5 * intact.apart[0] and intact.proxy[-1] > intact.proxy[0] + 0.1
    assert intact.kl[0] == 0 and intact.at[0] == 0


def test_without_the_clip_a_larger_step_throws_the_policy_away():
    few = Options(steps=3)
    held, thrown = one(few, kind("clip"), 0), one(few, kind("no clip"), 0)
    assert thrown.apart[-1] > held.apart[-1] + 0.2


def test_with_the_sign_flipped_the_divergence_passes_every_right_one(intact):
    assert one(SHORT, kind("flipped"), 0).kl[-1] > 3 * intact.kl[-1]


def test_a_reward_on_the_padding_teaches_nothing(intact):
    late = one(Options(steps=5), kind("late"), 0)
    assert abs(late.proxy[-1] - late.proxy[0]) < 0.2 * (intact.proxy[-1] - intact.proxy[0])


def test_a_baseline_lowers_the_variance_and_leaves_the_mean():
    with world(0, score=proxy, **stage(Options(), steps=5)) as w:
        found = ablations_gradient.spread(w, by_hand(w, 0).roles, 0, 24)
    assert found.traces[1] < found.traces[0] and found.traces[2] < found.traces[0]
    assert found.shift[0] == 0 and found.shift[2] < 5


def test_the_gradient_without_a_baseline_is_that_of_the_exact_objective():
    """The mean over rollouts of -sum_t G_t grad log pi, along the gradient of -E[r] that enumeration gives."""
    with world(1, score=proxy, words=2, longest=2, **stage(Options(), kl={"coef": 0.0, "target": None})) as w:
        roles = open_roles(w.config, 1)
        sampled = torch.stack([ablations_gradient._gradients(w, roles, 1, k)[0] for k in range(40)])
        exact = exact_gradient(w, roles)
    error = (sampled.var(0).sum() / 40).sqrt()  # of the mean, all weights together
    assert float((sampled.mean(0) - exact).norm()) < 2 * float(error) < float(exact.norm())


def exact_gradient(w, roles) -> torch.Tensor:
    """-grad of sum_y pi(y) r(y), a mean over prompts, through transformers' own forward."""
    model, total = roles.policy.backbone.model, torch.zeros(())
    for start, rewards in zip(w.starts, w.rewards, strict=True):
        for said, reward in zip(w.tokens, rewards, strict=True):
            logits = model(input_ids=torch.tensor([start + said])).logits[0].log_softmax(-1)
            logp = sum(logits[len(start) - 1 + t, token] for t, token in enumerate(said))
            total = total - logp.exp() * float(reward) / len(w.starts)
    grads = torch.autograd.grad(total, list(roles.policy.parameters().values()), allow_unused=True)
    return torch.cat([torch.zeros_like(p).flatten() if g is None else g.flatten() for p, g in zip(roles.policy.parameters().values(), grads, strict=True)])


def test_no_ablation_is_a_setting():
    for text in ("clip=1e6", "sign=-1", "late=true"):
        with pytest.raises(ConfigError, match="unknown key"):
            make_options(Options, [text])
    with pytest.raises(ConfigError, match="2 or more"):
        ablations.run(Options(), [0])


def test_the_best_beta_for_what_is_meant_is_neither_0_nor_large():
    with world(2, score=proxy, **stage(Options())) as w:
        ref = np.log(np.full(w.rewards.shape, 1 / w.rewards.shape[1]))
        judged = np.array([gold([p] * len(w.texts), w.texts) for p in w.prompts])
        means = [float((np.exp(best(ref, w.rewards, c).logp) * judged).sum(-1).mean()) for c in (0.02, 0.7, 100.0)]
    assert means[1] > means[2] > means[0]


@pytest.mark.slow
def test_the_whole_claim_on_three_seeds():
    findings = ablations.run(Options(), range(3))
    assert findings.held, [c for c in findings.checks if not c.held]
    assert set(findings.figures) == {"ablations"} and len(findings.tables[0].rows) == 7
