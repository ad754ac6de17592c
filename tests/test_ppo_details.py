"""The details that separate a correct PPO of language models from one that seems to work: what is scored, masked, whitened and weighed."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, tensor

import ppo_tiny as tiny_ppo
from truing.maths import kl
from truing.maths.advantages import whiten
from truing.methods import ppo as page
from truing.methods.completions import Batch, rewards_of
from truing.methods.ppo_record import record
from truing.methods.ppo_update import EPS, Past, Seen, estimate, policy_loss, summary, value_loss
from truing.methods.roles_of_ppo import Roles, open_roles
from truing.models.pack import Pack
from truing.rewards.normalise import Normalised
from truing.types import Score

NONE = Normalised([], 0.0, 0.0, 1.0)
# Completions of 3, 1 and 4 tokens. The pad of every grid is 0, and 0 is sampled inside the last one: a token like any other.
TOKENS, FINISHED = [[50, 51, 2], [2], [52, 0, 0, 53]], [True, True, False]
SCORES = [Score(1.0, {"rm": 1.0}), Score(-2.0, {"rm": -2.0}), Score(0.5, {"rm": 0.5})]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_ppo.world(tmp_path_factory.mktemp("ppo"))


@pytest.fixture(scope="module")
def roles(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Roles:
    return tiny_ppo.moved_roles(tiny_ppo.options(world), tmp_path_factory.mktemp("roles"))


def batch_of_three() -> Batch:
    return tiny_ppo.by_hand(TOKENS, FINISHED)


# -- where the reward stands ---------------------------------------------------------------------------------------------
def test_a_score_stands_at_the_last_real_token_and_the_missing_end_is_charged_to_what_was_cut_off(world: Path) -> None:
    """End-of-turn token or not, padding or not; -1 for a completion that did not end by itself, and only for that one."""
    found = rewards_of(batch_of_three(), SCORES, tiny_ppo.options(world))
    assert found.tolist() == [[0, 0, 1, 0], [-2, 0, 0, 0], [0, 0, 0, 0.5 - 1]]
    plain = rewards_of(batch_of_three(), SCORES, tiny_ppo.options(world, scores={"missing_eos": None, "timeout": None}))
    assert plain.tolist() == [[0, 0, 1, 0], [-2, 0, 0, 0], [0, 0, 0, 0.5]]
    dear = rewards_of(batch_of_three(), SCORES, tiny_ppo.options(world, scores={"missing_eos": -3.0, "timeout": None}))
    assert dear[2, 3] == 0.5 - 3 and dear[0, 2] == 1


def test_a_spread_score_stands_token_by_token_and_is_charged_at_its_end(world: Path) -> None:
    """Per-token and per-step rewards: each number at its own token, and their sum is the score."""
    spread = [Score(1.0, spread=(0.5, 0.25, 0.25)), Score(-2.0), Score(0.5, spread=(1.0, 0.0, 0.0, -0.5))]
    found = rewards_of(batch_of_three(), spread, tiny_ppo.options(world))
    assert found.tolist() == [[0.5, 0.25, 0.25, 0], [-2, 0, 0, 0], [1, 0, 0, -0.5 - 1]]
    assert (found.sum(-1) + tensor([0.0, 0.0, 1.0])).tolist() == [s.value for s in spread]


def test_rewards_are_minus_beta_k1_at_every_token_and_sum_to_score_minus_beta_kl(world: Path, roles: Roles) -> None:
    """sum_t r_t = score - beta * KL for every completion; the divergence is detached and at every token; 0 at the padding."""
    config = tiny_ppo.options(world, kl={"coef": 0.3, "target": None})
    found = tiny_ppo.looked(batch_of_three(), SCORES, roles, config)
    k1 = found.past.logp - found.logp_ref
    torch.testing.assert_close(found.rewards, rewards_of(batch_of_three(), SCORES, config) - 0.3 * k1)
    torch.testing.assert_close(found.rewards.sum(-1), tensor([1.0, -2.0, -0.5]) - 0.3 * k1.sum(-1), atol=1e-6, rtol=1e-6)
    assert (k1[batch_of_three().rollout.trained_BT] != 0).all() and not found.rewards.requires_grad
    # in the loss instead, the rewards are the scores alone and the coefficient is carried to the loss
    other = tiny_ppo.looked(batch_of_three(), SCORES, roles, tiny_ppo.options(world, kl={"coef": 0.3, "target": None, "place": "loss_k3"}))
    torch.testing.assert_close(other.rewards, rewards_of(batch_of_three(), SCORES, config))
    advantages = other.past.targets - other.past.values
    assert other.leash == pytest.approx(0.3 / math.sqrt(float(advantages[batch_of_three().rollout.trained_BT].var()) + 1e-8), rel=1e-5)
    assert found.leash == 0.0


# -- what counts ---------------------------------------------------------------------------------------------------------
def test_a_token_equal_to_the_pad_counts_and_padding_never_does(world: Path, roles: Roles) -> None:
    """The mask comes from lengths, not from ``ids != pad``: with pad = end-of-turn, or a pad sampled inside, the difference is the lesson."""
    config = tiny_ppo.options(world)
    batch = batch_of_three()
    assert batch.rollout.trained_BT.tolist() == [[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 1, 1]]
    found = tiny_ppo.looked(batch, SCORES, roles, config)
    for grid in (found.past.logp, found.past.values, found.past.advantages, found.logp_ref, found.entropy):
        assert ((grid != 0) == batch.rollout.trained_BT).all()
    # the mask of the field's mistake would drop two sampled tokens of the third completion, and the end of the first two were the pad 2
    wrong = batch.rollout.completion_BT != 0
    assert (wrong != batch.rollout.trained_BT).sum() == 2
    # ids of the padding are never read: another pad, the same numbers
    other = batch_of_three()
    other.rollout.completion_BT[~other.rollout.trained_BT] = 99
    again = tiny_ppo.looked(other, SCORES, roles, config)
    assert torch.equal(again.past.logp, found.past.logp) and torch.equal(again.past.advantages, found.past.advantages)


def test_ratio_is_one_and_divergence_zero_at_the_padding(world: Path, roles: Roles) -> None:
    """Padding holds the same constant on both sides, so nothing there is NaN, clipped or a divergence."""
    found = tiny_ppo.looked(batch_of_three(), SCORES, roles, tiny_ppo.options(world))
    pad = ~batch_of_three().rollout.trained_BT
    assert (kl.k1(found.past.logp, found.logp_ref)[pad] == 0).all() and (kl.k3(found.past.logp, found.logp_ref)[pad] == 0).all()
    assert (found.past.weight[pad] == 1).all() and (found.past.targets[pad] == 0).all()  # type: ignore[index]


def test_the_end_of_turn_token_is_trained(world: Path, roles: Roles) -> None:
    """A completion that ends by itself has that decision rewarded: its last counted token is the end-of-turn token."""
    config = tiny_ppo.options(world, batch_size=16)
    batch, _ = tiny_ppo.rolled_out(roles, config)
    rows = batch.rollout.finished_B.nonzero().squeeze(-1).tolist()
    assert rows and len(rows) < 16
    for i, (ids, n) in enumerate(zip(batch.rollout.completion_BT.tolist(), batch.rollout.lengths_B.tolist(), strict=True)):
        ends = [t for t in ids[:n] if t in tiny_ppo.STOPS]
        assert ends == ([ids[n - 1]] if i in rows else [])  # at the end and nowhere else: nothing is sampled after it
        assert i in rows or n == config.max_new_tokens


def test_nothing_follows_the_last_token_and_the_first_is_predicted_from_the_prompts_end(world: Path, roles: Roles) -> None:
    """The value target of the last token is its reward alone; values are those of prompt + all tokens so far, so one short would lose it."""
    config = tiny_ppo.options(world)
    batch = batch_of_three()
    found = tiny_ppo.looked(batch, SCORES, roles, config)
    for row, last in enumerate([2, 0, 3]):
        assert found.past.targets[row, last].item() == pytest.approx(found.rewards[row, last].item(), abs=1e-6)
    with torch.no_grad():
        for row, (start, ids) in enumerate(zip(batch.texts.starts, batch.rollout.sequences(), strict=True)):
            for t in range(len(TOKENS[row])):
                seen = Pack([ids[: start + t]])
                assert found.past.values[row, t].item() == pytest.approx(roles.value.values(seen, tensor([start + t - 1])).item(), abs=1e-5)
    # off by one, the mask drops the very token that bears the reward
    short = torch.arange(4) < batch.rollout.lengths_B[:, None] - 1
    assert (rewards_of(batch, SCORES, config) * short).abs().sum() == 0


def test_reward_and_value_read_the_prompt_too(world: Path, roles: Roles) -> None:
    """One answer to two questions has two scores and two values."""
    one, two = (tiny_ppo.by_hand(TOKENS, FINISHED, starts) for starts in ([[60], [61, 62], [63]], [[70], [71, 72], [73]]))
    a, b = ([s.value for s in roles.reward(batch.texts)] for batch in (one, two))
    assert all(abs(x - y) > 1e-3 for x, y in zip(a, b, strict=True))
    config = tiny_ppo.options(world)
    first, second = (tiny_ppo.looked(batch, SCORES, roles, config).past.values for batch in (one, two))
    assert ((first - second).abs() > 1e-4)[one.rollout.trained_BT].all()


# -- advantages ----------------------------------------------------------------------------------------------------------
def test_advantages_are_whitened_over_the_valid_tokens_of_the_whole_batch(world: Path, roles: Roles) -> None:
    """Mean 0 and deviation 1 (n - 1, eps inside the root) over all tokens, not per minibatch or sequence; padding is no token."""
    batch = batch_of_three()
    found, counted = tiny_ppo.looked(batch, SCORES, roles, tiny_ppo.options(world)), batch.rollout.trained_BT
    raw = (found.past.targets - found.past.values)[counted]
    torch.testing.assert_close(found.past.advantages[counted], (raw - raw.mean()) / (raw.var(correction=1) + 1e-8).sqrt(), atol=1e-5, rtol=1e-5)
    assert len(raw) == 8 and EPS == 1e-8
    for other in (found.past.advantages.std(), found.past.advantages[counted].std(correction=0), found.past.advantages[0, :3].std()):
        assert abs(float(other) - 1) > 0.01  # padding counted, ddof 0, one sequence alone
    # eps inside the root: with a variance of 1e-8 the result is x / sqrt(2e-8), where outside it would be x / (1e-4 + 1e-8)
    small = whiten(tensor([0.0, 1e-4 * math.sqrt(2)], dtype=torch.float64), torch.ones(2, dtype=torch.bool))
    assert small[1].item() == pytest.approx(0.5, rel=1e-6)


def test_targets_are_old_values_plus_unwhitened_advantages() -> None:
    """The value model learns returns in units of the reward, whatever whitening does to the advantages."""
    rewards, values = tensor([[0.0, 0.0, 1.0, 0.0]]), tensor([[0.1, 0.2, 0.3, 0.4]])
    after, carry = torch.cat([values[:, 1:], torch.zeros(1, 1)], 1), tensor([[1.0, 1.0, 1.0, 0.0]])
    found = estimate(rewards, values, after, carry, carry, 0.95, torch.ones(1, 4, dtype=torch.bool))
    # rlax, torchrl and SB3 on this example: A = .8448 .7840 .7200 -.4000, returns .9448 .9840 1.0200 0
    torch.testing.assert_close(found.targets, tensor([[0.9448, 0.9840, 1.0200, 0.0]]), atol=5e-5, rtol=0)
    advantages = tensor([0.8448, 0.7840, 0.7200, -0.4000], dtype=torch.float64)
    torch.testing.assert_close(found.advantages[0].double(), (advantages - advantages.mean()) / advantages.std(), atol=3e-4, rtol=0)
    assert found.scale == pytest.approx(float(1 / advantages.std()), rel=1e-3)


def test_verls_example_of_two_sequences() -> None:
    """Rewards and values of two padded rows, gamma 1, lambda .95: the returns that verl gives."""
    rewards, values = tensor([[0.0, 0, 1, 0], [0, 0, 0, 2]]), tensor([[0.1, 0.2, 0.3, 0.4], [0.5, 0.4, 0.3, 0.2]])
    counted = tensor([[1, 1, 1, 0], [1, 1, 1, 1]]).bool()
    values = values * counted  # the padding's value is never looked at
    alive = counted & (torch.arange(4) < counted.sum(-1)[:, None] - 1)
    after = torch.cat([values[:, 1:], torch.zeros(2, 1)], 1)
    found = estimate(rewards, values, after, alive.float(), alive.float(), 0.95, counted)
    torch.testing.assert_close(found.targets, tensor([[0.92675, 0.9650, 1.0, 0.0], [1.7580, 1.8295, 1.9100, 2.0]]), atol=5e-5, rtol=0)


# -- the loss ------------------------------------------------------------------------------------------------------------
def bounds(**other: float | None) -> SimpleNamespace:
    return SimpleNamespace(**{"clip": 0.2, "value_clip": 0.2, "value_weight": 1.0, "entropy": 0.0, "dual_clip": None, **other})


def begun() -> Seen:
    seen = Seen()
    seen.begin()
    return seen


def past(logp: Tensor, advantages: Tensor, values: Tensor | None = None, targets: Tensor | None = None, weight: Tensor | None = None) -> Past:
    none = torch.zeros_like(logp)
    return Past(logp, none if values is None else values, advantages, none if targets is None else targets, weight)


def test_the_losses_of_the_page_equal_verls_and_openrlhfs() -> None:
    """Log-ratios .5, -.5, 2 and A 1, 1, -1: 1.8608 on average, with dual clip 3 .3978; value loss of (1, 0) against (0, 1): .5."""
    logp, old = tensor([0.5, -0.5, 2.0]), past(torch.zeros(3), tensor([1.0, 1.0, -1.0]))
    entropy = tensor([0.1, 0.2, 0.3])
    assert policy_loss(logp, entropy, old, bounds(), begun()).mean().item() == pytest.approx(1.8608, abs=5e-5)
    assert policy_loss(logp, entropy, old, bounds(dual_clip=3.0), begun()).mean().item() == pytest.approx(0.3978, abs=5e-5)
    zero = torch.zeros(2)
    assert value_loss(tensor([1.0, 0.0]), past(zero, zero, zero, tensor([0.0, 1.0])), bounds(), begun()).mean().item() == pytest.approx(0.5)
    seen = begun()
    value_loss(torch.zeros(3), old, bounds(), seen)
    policy_loss(logp, entropy, old, bounds(), seen)
    # their KL of the update, mean(-log ratio), is -.6667; ours is k3, mean(ratio - 1 - log ratio), which cannot be negative
    assert float((old.logp - logp).mean()) == pytest.approx(-0.6667, abs=5e-5)
    k3 = sum(math.exp(x) - 1 - x for x in (0.5, -0.5, 2.0)) / 3
    made = [{"grad/norm": 0.0, "update/skipped": 0.0, "lr": 0.0}]
    assert summary(seen, made, 0.2, 0.2)["policy/approx_kl"] == pytest.approx(k3, rel=1e-5)


def test_a_bonus_of_entropy_lowers_the_loss_of_the_uncertain() -> None:
    """total = surrogate - c * H: the sign under which entropy is kept."""
    old, entropy = past(torch.zeros(2), torch.zeros(2)), tensor([0.5, 2.0], requires_grad=True)
    loss = policy_loss(torch.zeros(2), entropy, old, bounds(entropy=0.1), begun())
    torch.testing.assert_close(loss.detach(), tensor([-0.05, -0.2]))
    assert torch.autograd.grad(loss.sum(), entropy)[0].tolist() == pytest.approx([-0.1, -0.1])


def test_the_samplers_weight_multiplies_the_policys_term_alone() -> None:
    """Truncated importance: the surrogate and its gradient by the weight; entropy bonus, value error and PPO's own ratio untouched."""
    weight, advantages = tensor([0.5, 2.0]), tensor([1.0, -1.0])
    logp = tensor([0.05, 0.1], requires_grad=True)
    plain, weighed = past(torch.zeros(2), advantages), past(torch.zeros(2), advantages, weight=weight)
    entropy = tensor([0.7, 0.7])
    seen = begun()
    one, two = (policy_loss(logp, entropy, p, bounds(entropy=0.1), s) for p, s in ((plain, begun()), (weighed, seen)))
    torch.testing.assert_close(two + 0.07, (one + 0.07) * weight)
    torch.testing.assert_close(torch.autograd.grad(two.sum(), logp)[0], torch.autograd.grad(one.sum(), logp)[0] * weight)
    assert torch.equal(seen.all("logp_old"), torch.zeros(2))
    targets = tensor([1.0, 1.0])
    losses = [value_loss(tensor([0.5, 0.5]), past(torch.zeros(2), advantages, targets=targets, weight=w), bounds(), begun()) for w in (None, weight)]
    assert torch.equal(*losses)


def test_the_weight_comes_from_the_samplers_own_numbers(world: Path, roles: Roles) -> None:
    """min(pi / mu, cap) token by token, from what the sampler said, not from what the trainer computed again."""
    config = tiny_ppo.options(world, sampler_cap=1.3)
    batch, scores = tiny_ppo.rolled_out(roles, config, noise=0.4)
    found, real = tiny_ppo.looked(batch, scores, roles, config), batch.rollout.trained_BT
    wanted = (found.past.logp - batch.rollout.sampler_logp_BT).exp().clamp(max=1.3)[real]
    torch.testing.assert_close(found.past.weight[real], wanted)  # type: ignore[index]
    assert 0.05 < float((wanted == 1.3).float().mean()) < 0.95
    logged = record(batch, scores, NONE, {}, found, config)
    assert logged["sampler/weight_mean"] == pytest.approx(float(wanted.mean())) and logged["sampler/capped_share"] == pytest.approx(float((wanted == 1.3).float().mean()))
    assert logged["sampler/mismatch"] == pytest.approx(float((found.past.logp - batch.rollout.sampler_logp_BT)[real].abs().mean()))
    assert tiny_ppo.looked(batch, scores, roles, config.model_copy(update={"sampler_cap": None})).past.weight is None
    agreeing, scores = tiny_ppo.rolled_out(roles, config)  # sampler and trainer of one program differ by rounding alone
    exact = tiny_ppo.looked(agreeing, scores, roles, config).past
    assert (exact.weight - 1).abs().max() < 1e-5  # type: ignore[operator]
    assert (exact.logp - agreeing.rollout.sampler_logp_BT).abs().max() < 1e-5


def test_both_log_probabilities_are_at_the_sampling_temperature(world: Path, roles: Roles) -> None:
    """Policy and reference divide their logits by T, as the sampler did; else the first ratio is not 1 and the divergence is another."""
    hot = tiny_ppo.options(world, temperature=0.5)
    batch, scores = tiny_ppo.rolled_out(roles, hot)
    found = tiny_ppo.looked(batch, scores, roles, hot)
    assert (found.past.logp - batch.rollout.sampler_logp_BT).abs().max() < 1e-5
    ids, start = batch.rollout.sequences()[4], batch.texts.starts[4]
    with torch.no_grad():
        for role, grid in ((roles.policy, found.past.logp), (roles.reference, found.logp_ref)):
            logits = role.hidden(Pack([ids])) @ role.backbone.head_weight.T
            wanted = (logits / 0.5).log_softmax(-1)[torch.arange(start - 1, len(ids) - 1), torch.tensor(ids[start:])]
            torch.testing.assert_close(grid[4, : len(wanted)], wanted, atol=1e-4, rtol=1e-4)
    cold = tiny_ppo.looked(batch, scores, roles, hot.model_copy(update={"temperature": 1.0}))
    assert (cold.past.logp - batch.rollout.sampler_logp_BT).abs().max() > 0.05


# -- what is measured ----------------------------------------------------------------------------------------------------
def test_divergence_is_measured_in_nats_a_sequence(world: Path, roles: Roles) -> None:
    """The controller's target is a mean over sequences of sums over tokens; a mean over tokens is smaller by the length."""
    config = tiny_ppo.options(world)
    found = tiny_ppo.looked(batch_of_three(), SCORES, roles, config)
    logged = record(replace(batch_of_three(), failed=({},) * 5), SCORES, NONE, {"gold": [Score(1.0), Score(math.nan), Score(3.0)]}, found, config)
    k1 = [sum(float(found.past.logp[i, t] - found.logp_ref[i, t]) for t in range(n)) for i, n in enumerate((3, 1, 4))]
    k3 = [sum(math.expm1(x) - x for t in range(n) for x in [float(found.logp_ref[i, t] - found.past.logp[i, t])]) for i, n in enumerate((3, 1, 4))]
    assert logged["kl/sequence"] == pytest.approx(sum(k1) / 3, rel=1e-4) and logged["kl/token"] == pytest.approx(sum(k1) / 8, rel=1e-4)
    assert logged["kl/k3_sequence"] == pytest.approx(sum(k3) / 3, rel=1e-4)
    assert logged["reward/proxy"] == pytest.approx(-0.5 / 3) and logged["reward/score_std"] == pytest.approx(float(tensor([1.0, -2.0, 0.5]).std()))
    assert logged["reward/total"] == pytest.approx((-0.5 - 1.0 - 0.1 * sum(k1)) / 3, rel=1e-4)
    assert logged["part/rm"] == pytest.approx(-0.5 / 3)
    # lengths 3, 1, 4: mean 8/3, standard deviation sqrt(7/3); two of three ended by themselves
    assert logged["tokens/mean"] == pytest.approx(8 / 3) and logged["tokens/std"] == pytest.approx(math.sqrt(7 / 3))
    assert logged["tokens/eos_share"] == pytest.approx(2 / 3) and logged["tokens/truncated_share"] == pytest.approx(1 / 3)
    assert logged["reward/failed_share"] == pytest.approx(1 - 3 / 8)  # three usable of a batch of eight
    real = batch_of_three().rollout.trained_BT
    error = (found.past.targets - found.past.values)[real]
    assert logged["value/error"] == pytest.approx(float(error.square().mean().sqrt())) and logged["advantage/std"] == pytest.approx(float(error.std()))
    assert logged["policy/entropy"] == pytest.approx(float(found.entropy[real].mean()), rel=1e-5)


def test_a_failed_monitor_is_left_out_of_its_mean(world: Path, roles: Roles) -> None:
    from truing.types import Status

    config = tiny_ppo.options(world)
    found = tiny_ppo.looked(batch_of_three(), SCORES, roles, config)
    gold = [Score(1.0), Score(math.nan, status=Status.TIMED_OUT), Score(3.0)]
    assert record(batch_of_three(), SCORES, NONE, {"gold": gold}, found, config)["monitor/gold"] == 2.0
    none = [Score(math.nan, status=Status.CRASHED)] * 3
    assert "monitor/gold" not in record(batch_of_three(), SCORES, NONE, {"gold": none}, found, config)  # no number is no number, not 0


def test_the_controller_reaches_its_target_within_the_horizon_and_never_jumps() -> None:
    """A policy whose divergence settles at c / beta, begun 40% above and 30% below the target of 6: within 10,000 sequences of it by a fifth."""
    for first in (8.4, 4.2):
        control, n = kl.AdaptiveCoefficient(0.15, 6.0, 10_000), 256
        measured = first
        for batch in range(1, 3 * 10_000 // n):
            measured += 0.5 * (first * 0.15 / control.coef - measured)
            after = control.after(measured, n)
            assert abs(after.coef / control.coef - 1) <= 0.2 * n / 10_000 + 1e-12
            control = after
            assert batch * n < 10_000 or 4.8 <= measured <= 7.2, (first, batch, measured)
        assert control.coef > 0.15 if first > 6 else control.coef < 0.15
    # the published updates of this controller
    start = kl.AdaptiveCoefficient(0.15, 6.0, 10_000)
    assert start.after(12, 256).coef == pytest.approx(0.150768) and start.after(6.6, 256).coef == pytest.approx(0.150384)


# -- where the roles start -----------------------------------------------------------------------------------------------
def test_a_separate_value_model_starts_from_the_reward_model_and_a_shared_head_small(world: Path, tmp_path: Path) -> None:
    """A critic that knows what the score depends on; a fresh head has deviation 1 / sqrt(d + 1) and bias 0."""
    separate = open_roles(tiny_ppo.options(world), 0, tmp_path)
    batch = tiny_ppo.by_hand(TOKENS, FINISHED)
    with torch.no_grad():
        worth = separate.value.score(batch.texts.pack)
    torch.testing.assert_close(worth, tensor([s.value for s in separate.reward(batch.texts)]), atol=1e-6, rtol=1e-6)
    shared = open_roles(tiny_ppo.options(world, value="shared"), 0, tmp_path)
    weight = shared.value.head.weight  # type: ignore[union-attr]
    assert weight.numel() == 48 and 0.7 < float(weight.detach().std()) * math.sqrt(49) < 1.3 and shared.value.head.bias == 0  # type: ignore[union-attr]
    assert shared.value.adapter is shared.policy.adapter


@pytest.mark.parametrize("place", ["reward", "loss_k2", "loss_k3"])
def test_what_is_to_come_is_discounted_and_ends_with_the_completion(place: str, world: Path, roles: Roles) -> None:
    """later_t = gamma d_{t+1} + gamma^2 d_{t+2} + ... of k1, nothing after the last token; less the mean over tokens of d_t + that."""
    config = tiny_ppo.options(world, kl={"coef": 0.2, "target": None, "place": place}, discount=0.9)
    found = tiny_ppo.looked(batch_of_three(), SCORES, roles, config)
    away = found.past.logp - found.logp_ref
    wanted = {(row, t): sum(0.9 ** (s - t) * float(away[row, s]) for s in range(t + 1, n)) for row, n in enumerate((3, 1, 4)) for t in range(n)}
    baseline = sum(float(away[place]) + x for place, x in wanted.items()) / len(wanted)
    for spot, x in wanted.items():
        assert float(found.later[spot]) == pytest.approx(x - baseline, abs=1e-5)


def test_defaults_are_those_of_the_field() -> None:
    """gamma 1, lambda .95, clip .2 for ratio and value, 4 epochs of 4 minibatches, a missing end costs 1, target 6 nats, no early stop."""
    from truing.config import PPO

    d = PPO(prompts="p.jsonl")
    assert (d.discount, d.lam, d.clip, d.value_clip, d.epochs, d.minibatches, d.entropy, d.temperature) == (1.0, 0.95, 0.2, 0.2, 4, 4, 0.0, 1.0)
    assert (d.kl.coef, d.kl.target, d.kl.horizon, d.kl.stop, d.kl.place) == (0.05, 6.0, 10_000, None, "reward")
    assert (d.scores.missing_eos, d.scores.normalise, d.scores.clip, d.dual_clip, d.value, d.schedule) == (-1.0, "none", None, None, "separate", "linear")
    assert page.PPO is PPO
