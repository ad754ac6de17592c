"""PPO against the policy that it should find: a language small enough to write down."""

from __future__ import annotations

import doctest
from functools import partial

import numpy as np
import pytest
import torch

from truing.config import KL, Lora, make_options
from truing.data.template import Renderer
from truing.errors import ConfigError
from truing.labs import optimum, optimum_loop, optimum_world
from truing.labs.optimum_loop import by_hand, by_stage, not_scaled, one_late, own_step_only
from truing.labs.optimum_world import best, chances, measure, world
from truing.methods.completions import rewards_of
from truing.methods.roles_of_ppo import open_roles
from truing.models.load import load_model, load_tokenizer

SMALL = optimum.Options(words=2, longest=2, steps=20, batch=128, coef=0.5)
QUICK = {"lr": 5e-3}


def test_examples():
    found = doctest.testmod(optimum_world)
    assert found.attempted > 3 and found.failed == 0


# -- the world ----------------------------------------------------------------------------------------------------------


def test_every_completion_is_there_once_and_their_chances_add_up_to_one():
    with world(3, words=3, longest=3, temperature=0.7) as w:
        assert len(w.tokens) == 1 + 3 + 9 + 27 == len({tuple(t) for t in w.tokens})  # k words and the end for k < 3; three words are cut off
        assert [len(t) for t in w.tokens if t[-1] != 0] == [3] * 27
        logp = chances(open_roles(w.config, 3).policy, w)
    np.testing.assert_allclose(np.exp(logp).sum(-1), 1.0, atol=1e-6)  # float32 states
    assert np.exp(logp).std() > 0.01  # and the reference has preferences


def test_chances_are_those_of_transformers_own_forward_one_completion_at_a_time():
    with world(1, words=2, longest=2, temperature=0.7) as w:
        logp = chances(open_roles(w.config, 1).policy, w)
        model = load_model(str(w.folder / "base"))
        for i, start in enumerate(w.starts):
            for j, said in enumerate(w.tokens):
                with torch.no_grad():
                    steps = (model(input_ids=torch.tensor([start + said])).logits[0] / 0.7).log_softmax(-1)
                assert logp[i, j] == pytest.approx(sum(float(steps[len(start) - 1 + t, token]) for t, token in enumerate(said)), abs=1e-5)


def test_the_sampler_draws_each_completion_as_often_as_its_chance_says():
    with world(0, words=2, longest=2, temperature=0.7) as w:
        roles = open_roles(w.config, 0)
        expected = np.exp(chances(roles.policy, w)).mean(0)
        batch, scores = optimum_loop.draw(w, roles, 0, 1, 4000)
    which = [w.tokens.index(row[:n].tolist()) for row, n in zip(batch.rollout.completion_BT, batch.rollout.lengths_B, strict=True)]
    seen = np.bincount(which, minlength=len(w.tokens)) / 4000
    assert np.abs(seen - expected).max() < 4 * 0.5 / np.sqrt(4000)  # a share of 4000 draws has a standard error of 0.5 / sqrt(4000) at most
    for row in range(8):  # the table's reward is what the page places, what being cut off costs included
        prompt = w.prompts.index(batch.texts.prompts[row])
        assert float(rewards_of(batch, scores, w.config)[row].sum()) == pytest.approx(w.rewards[prompt, which[row]], abs=1e-6)


def test_prompts_are_read_as_the_words_they_are():
    with world(0) as w:
        tokenizer = load_tokenizer(str(w.folder / "base"))
        assert [list(tokenizer(p).input_ids) for p in w.prompts] == w.starts and {len(s) for s in w.starts} == {2, 4}
        assert tuple(Renderer(tokenizer).stop_ids) == (0,) and tokenizer.pad_token_id == tokenizer.eos_token_id  # so that a mask made of ids would lose the end


# -- the closed form ----------------------------------------------------------------------------------------------------


def test_no_policy_has_a_larger_objective_than_the_closed_form():
    rng = np.random.default_rng(0)
    ref, rewards = np.log(rng.dirichlet(np.ones(6), 2)), rng.normal(size=(2, 6))
    optimum_logp = best(ref, rewards, 0.4).logp
    np.testing.assert_allclose(measure(optimum_logp, ref, rewards, 0.4).short, 0, atol=1e-12)
    for _ in range(200):
        p = np.log(rng.dirichlet(np.ones(6), 2))
        found = measure(p, ref, rewards, 0.4)
        # what is missing is coef * KL(p || pi*), whatever p
        np.testing.assert_allclose(found.short, 0.4 * (np.exp(p) * (p - optimum_logp)).sum(-1), atol=1e-9)


def test_total_variation_of_two_coins():
    # |0.9 - 0.5| + |0.1 - 0.5| = 0.8, half of it 0.4
    assert float(optimum_world.apart(np.array([0.9, 0.1]), np.array([0.5, 0.5]))) == pytest.approx(0.4)


# -- training -----------------------------------------------------------------------------------------------------------


def test_the_steps_by_hand_are_the_stage_bit_for_bit():
    short = optimum.Options(words=2, longest=2, steps=3, batch=16)
    a, b = (optimum.trained(short, 4, train, "loss_k3") for train in (by_stage, partial(by_hand, every=1)))
    assert a.at == b.at == list(range(4))
    assert all((x == y).all() for x, y in zip(a.logps, b.logps, strict=True)) and (a.logps[0] != a.logps[-1]).any()


@pytest.fixture(scope="module")
def small() -> dict[str, optimum_loop.Trained]:
    return {place: optimum.trained(SMALL, 0, by_stage, place, **QUICK) for place in optimum.PLACES}


@pytest.mark.parametrize("place", optimum.PLACES)
def test_ppo_reaches_the_closed_form_wherever_the_divergence_stands(place, small):
    one = small[place]
    assert one.curve[0].apart.mean() > 0.35  # where it began
    assert one.end.apart.mean() < 0.08
    assert (one.end.short > -1e-6).all() and one.end.short.mean() < 0.1 * one.curve[0].short.mean()
    ideal = measure(one.optimum, one.logps[0], one.rewards, one.coef)
    np.testing.assert_allclose(one.end.reward.mean(), ideal.reward.mean(), atol=0.08)
    np.testing.assert_allclose(one.end.kl.mean(), ideal.kl.mean(), atol=0.12)


@pytest.mark.parametrize(("place", "step"), [("loss_k2", {"change": not_scaled}), ("reward", {"sign": -1.0}), ("reward", {"change": one_late})])
def test_a_step_made_wrong_misses_it(place, step):
    one = optimum.trained(SMALL.model_copy(update={"steps": 8}), 0, partial(by_hand, **step), place, **QUICK)
    assert one.end.apart.mean() > 0.15


def test_the_changes_change_what_they_say_and_nothing_else():
    with world(0, kl=KL(coef=0.3, target=None, place="loss_k2"), batch_size=16, steps=1) as w:
        roles = open_roles(w.config, 0)
        with torch.no_grad():
            for parameter in roles.policy.parameters().values():
                parameter.mul_(1.3)  # away from the reference
        batch, scores = optimum_loop.draw(w, roles, 0, 1)
        seen = optimum_loop.page.look(batch, roles, w.config, [list(range(16))], 0.3, scores, 4096)
        own, plain, late = (change(batch, scores, seen, w.config) for change in (own_step_only, not_scaled, one_late))
    assert bool(seen.later.any()) and not own.later.any() and own.past is seen.past
    assert seen.leash != pytest.approx(0.3) and plain.leash == 0.3
    assert not late.rewards[batch.rollout.trained_BT].any()  # no completion has a reward any more
    torch.testing.assert_close(late.past.targets[batch.rollout.trained_BT], torch.zeros(int(batch.rollout.lengths_B.sum())), atol=1e-6, rtol=0)


# -- the lab ------------------------------------------------------------------------------------------------------------


def test_the_lab_says_what_it_measured():
    findings = optimum.run(optimum.Options(words=2, longest=2, steps=2, batch=16), [0, 1])
    assert len(findings.checks) == 6 and len(findings.tables[0].rows) == 3 and set(findings.figures) == {"optimum"}
    assert not findings.held  # two rollouts of sixteen are not enough, and it does not say otherwise


def test_options_that_cannot_be_meant():
    for text, said in (("batch=130", "multiple of 4"), ("coef=0", "0.1"), ("words=9", "4")):
        with pytest.raises(ConfigError, match=said):
            make_options(optimum.Options, [text])
    with pytest.raises(ConfigError, match="2 or more"):
        optimum.run(optimum.Options(), [0])


@pytest.mark.slow
@pytest.mark.parametrize("exercise", ["main", "variants", "groups", "wrong"])
def test_the_whole_claim_on_three_seeds(exercise):
    findings = optimum.run(optimum.Options(exercise=exercise), range(3))
    assert findings.held, [c for c in findings.checks if not c.held]


def test_lora_is_among_the_variants_with_every_weight_frozen_but_the_adapter():
    assert isinstance(optimum.VARIANTS["LoRA of rank 16"]["lora"], Lora)
