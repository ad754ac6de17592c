"""PPO's loss, its diagnostics and the step of weights, by hand and against torch's own."""

from __future__ import annotations

import math
from types import SimpleNamespace

import gymnasium
import numpy as np
import pytest
import torch
from torch import nn, tensor

from truing.errors import ConfigError, ModelError, NonFiniteError
from truing.learn.update import Learner
from truing.methods.control import Trained, evaluate
from truing.methods.policy_gradient import ActorCritic, Reinforce, critic_loss, episode_advantages
from truing.methods.ppo_control import PPOControl, ppo
from truing.methods.ppo_update import Past, Present, Seen, estimate, minibatches, objective, summary
from truing.models.networks import build
from truing.rollout.scaling import Scaler
from truing.rollout.steps import Steps
from truing.seeds import generator

PAST = Past(torch.zeros(3), tensor([0.0, 1.0, 2.0]), tensor([1.0, -1.0, 0.5]), tensor([1.0, 1.0, 1.0]))
NOW = Present(tensor([1.5, 0.5, 1.0]).log(), tensor([0.3, 0.6, 0.9]), tensor([1.0, 1.5, 2.0]))


def bounds(**other) -> SimpleNamespace:
    return SimpleNamespace(**{"clip": 0.2, "value_clip": None, "value_weight": 0.5, "entropy": 0.0, "dual_clip": None, **other})


def seen() -> Seen:
    made = Seen()
    made.begin()
    return made


def test_the_objective_by_hand() -> None:
    # surrogate: -1.2 (clipped), 0.8 (clipped), -0.5. value errors / 2: 0, .125, .5. Sum -0.9 + 0.5 * 0.625 = -0.5875, over 4 elements of the whole minibatch.
    assert objective(NOW, PAST, 4, bounds(), seen()).item() == pytest.approx(-0.5875 / 4)
    # an entropy bonus of 0.1 * 1.8 lowers the loss
    assert objective(NOW, PAST, 4, bounds(entropy=0.1), seen()).item() == pytest.approx((-0.5875 - 0.18) / 4)
    # values may move 0.2 from the old ones: 0.2, 1.2, 2.0; halves of the larger squares: .32 (not 0), .125, .5
    assert objective(NOW, PAST, 4, bounds(value_clip=0.2), seen()).item() == pytest.approx((-0.9 + 0.5 * 0.945) / 4)
    assert objective(NOW, PAST, 4, bounds(value_weight=2.0), seen()).item() == pytest.approx((-0.9 + 2 * 0.625) / 4)


def test_parts_add_up_to_the_whole() -> None:
    whole = objective(NOW, PAST, 3, bounds(entropy=0.1, value_clip=0.2), seen())
    parts = [objective(Present(*(x[i] for x in NOW)), PAST[i], 3, bounds(entropy=0.1, value_clip=0.2), seen()) for i in ([0, 1], [2])]
    torch.testing.assert_close(whole, sum(parts))


def test_the_summary_is_a_mean_over_updates_and_forgets_what_was_tried_again() -> None:
    made, updates = Seen(), []
    for elements, norm in (([0, 1, 2], 1.0), ([0], 3.0)):
        made.begin()
        objective(Present(*(x[[2]] for x in NOW)), PAST[[2]], 1, bounds(), made)
        made.again()  # out of memory: the update starts over
        for i in elements:
            objective(Present(*(x[[i]] for x in NOW)), PAST[[i]], len(elements), bounds(), made)
        updates.append({"grad/norm": norm, "update/skipped": 0.0, "lr": 0.1 * norm})
    found = summary(made, updates, clip=0.2)
    assert found["policy/loss"] == pytest.approx((-0.9 / 3 + -1.2) / 2)
    assert found["value/loss"] == pytest.approx((0.625 / 3 + 0.0) / 2)
    assert found["policy/ratio_mean"] == pytest.approx((3.0 / 3 + 1.5) / 2)
    assert found["policy/clip_share"] == pytest.approx((2 / 3 + 1) / 2)
    # k3 of old against new: rho - 1 - log rho
    k3 = [r - 1 - math.log(r) for r in (1.5, 0.5, 1.0)]
    assert found["policy/approx_kl"] == pytest.approx((sum(k3) / 3 + k3[0]) / 2, rel=1e-5)
    assert found["policy/ratio_max"] == pytest.approx(1.5) and found["policy/first_ratio_error"] == pytest.approx(0.5)
    assert found["grad/norm"] == 2.0 and found["lr"] == pytest.approx(0.3)


def test_minibatches_hold_every_row_once_and_are_shuffled() -> None:
    parts = list(minibatches(10, 3, seed=0, step=1, epoch=2))
    assert sorted(sum(parts, [])) == list(range(10)) and [len(p) for p in parts] == [3, 3, 4] and sum(parts, []) != list(range(10))
    assert list(minibatches(10, 1, 0, 1, 2)) == [list(range(10))]  # of one, the order cannot matter
    assert [len(p) for p in minibatches(2, 5, 0, 1, 2)] == [1, 1]


def test_a_diverged_value_model_is_named() -> None:
    one = torch.ones(2, 3)
    values = torch.tensor([[0.0, float("nan"), 0.0], [0.0, float("inf"), 0.0]])
    with pytest.raises(NonFiniteError, match="2 of 6 values"):
        estimate(one, values, one, one, one, 0.9, one.bool())


# -- the step of weights -------------------------------------------------------------------------------------------------
def test_a_step_equals_torchs_clipping_and_adam_with_a_rate_of_its_own_for_each_name() -> None:
    start = {"a": torch.randn(4, 3, generator=generator(0, "a")), "b": torch.randn(5, generator=generator(0, "b"))}
    ours = {k: nn.Parameter(v.clone()) for k, v in start.items()}
    theirs = {k: nn.Parameter(v.clone()) for k, v in start.items()}
    learner = Learner(ours, lr=0.1, total=10, schedule="linear", grad_clip=0.7, weight_decay=0.01, eps=1e-5, lr_of=lambda name: {"a": 0.1, "b": 0.02}[name])
    adam = torch.optim.AdamW([{"params": [theirs["a"]], "lr": 0.1}, {"params": [theirs["b"]], "lr": 0.02}], eps=1e-5, weight_decay=0.01, fused=False)
    for step in range(4):
        def loss(p):
            return ((p["a"] - 1).square().sum() + (p["b"] * (10.0**step)).square().sum()) * 0.01  # noqa: B023

        before = {k: p.detach().clone() for k, p in ours.items()}
        told = learner.update([0], lambda _: 0, lambda _: loss(ours))
        adam.zero_grad()
        loss(theirs).backward()
        norm = nn.utils.clip_grad_norm_(theirs.values(), 0.7)
        for group, rate in zip(adam.param_groups, (0.1, 0.02), strict=True):
            group["lr"] = rate * (10 - step) / 10
        adam.step()
        assert told["grad/norm"] == pytest.approx(float(norm), rel=1e-5)
        for k in ours:
            torch.testing.assert_close(ours[k], theirs[k], atol=1e-6, rtol=1e-5)
            assert not torch.equal(ours[k], before[k])
    assert all(p.grad is None for p in ours.values())


def test_a_loss_that_reaches_no_weight_is_an_error() -> None:
    other = nn.Parameter(torch.ones(1))
    with pytest.raises(ModelError, match="reaches none"):
        Learner({"a": nn.Parameter(torch.ones(1))}, lr=0.1, total=1).update([0], lambda _: 0, lambda _: other.sum())


# -- agents --------------------------------------------------------------------------------------------------------------
def steps_of(rewards: list[float], discount: float = 1.0) -> Steps:
    r = tensor([rewards])
    alive = torch.ones_like(r)
    alive[0, -1] = 0
    zero = torch.zeros_like(r)
    return Steps(r, r, r, zero, zero, zero, zero, discount * alive, alive, [])


@pytest.mark.parametrize("reward", [0.7, 1.0, 0.1])
def test_equal_returns_are_not_divided_by_rounding(reward: float) -> None:
    steps = steps_of([0.0] * 6 + [reward])  # gamma 1: every return is the last reward
    assert episode_advantages(steps, Reinforce(baseline="mean")).abs().max() < 1e-6
    torch.testing.assert_close(episode_advantages(steps, Reinforce(baseline="none")), torch.full((7,), reward))
    unequal = episode_advantages(steps_of([1.0, 1.0, 1.0]), Reinforce(baseline="mean"))  # returns 3 2 1: standard deviation 1
    torch.testing.assert_close(unequal, tensor([1.0, 0.0, -1.0]))


def test_entropy_is_rewarded_by_the_actor_critic_too() -> None:
    networks = build(gymnasium.spaces.Box(-1, 1, (1,)), gymnasium.spaces.Discrete(2), generator=generator(0, "init"))
    steps = steps_of([1.0, 1.0])
    steps = Steps(torch.zeros(1, 2, 1), torch.zeros(1, 2, dtype=torch.long), *(getattr(steps, f) for f in ("rewards", "logp", "entropy", "values", "next_values", "discount", "carry")), [])  # fmt: skip
    plain, bonus = (critic_loss(networks, steps, torch.zeros(1, 2), ActorCritic(entropy=e)) for e in (0.0, 0.5))
    entropy = networks.look(steps.observations, steps.actions).entropy.mean()
    torch.testing.assert_close(plain - bonus, 0.5 * entropy)


class Short(gymnasium.Env):
    """An episode as long as its environment's number among its kind; the reward of a step is the action the environment sees."""

    observation_space, action_space = gymnasium.spaces.Box(0, 10, (1,)), gymnasium.spaces.Box(0.25, 0.5, (1,))
    made = 0

    def __init__(self) -> None:
        Short.made += 1
        self.end = Short.made

    def reset(self, *, seed=None, options=None):
        self.time = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.time += 1
        return np.array([self.time], np.float32), float(action[0]) + 100 * self.time, self.time >= self.end, False, {}


def test_evaluation_counts_the_first_episode_of_each_environment_with_bounded_actions_and_resting_scales() -> None:
    Short.made = 0
    networks = build(Short.observation_space, Short.action_space, generator=generator(0, "init"))
    with torch.no_grad():
        networks.policy_bias.fill_(7.0)
    scaler = Scaler((1,), 1, 0.9)
    scaler.seen.add(np.array([[1.0], [2.0]]))
    returns = evaluate(Trained(networks, scaler), Short, 3, seed=0)
    assert returns == pytest.approx([100.5, 301.0, 601.5])  # 1, 2 and 3 steps, each action cut from about 7 to 0.5
    assert scaler.seen.count == 2


def test_evaluation_ends_where_nothing_limits_the_time() -> None:
    Short.made = 10**9
    networks = build(Short.observation_space, Short.action_space, generator=generator(0, "init"))
    with pytest.raises(ConfigError, match="2 of 2 episodes .* max_steps=50"):
        evaluate(Trained(networks), Short, 2, seed=0, max_steps=50)


def test_options_do_what_they_say() -> None:
    with pytest.raises(ConfigError, match="scale=True"):
        ppo(PPOControl(environment="truing.envs:truing/GridWorld-v0", total_steps=512, scale=True), 0)
    for settings in (PPOControl, Reinforce, ActorCritic):
        with pytest.raises(ValueError, match="at least 1 item"):
            settings(hidden=())
    small = {"total_steps": 512, "environments": 2, "length": 64, "minibatches": 2, "lr": 1e-2, "entropy": 0.0, "schedule": "constant"}
    plain = ppo(PPOControl(**small), 0).networks.state_dict()
    for change in ({"clip_to_zero": True}, {"value_clip": 0.05}, {"entropy": 0.1}, {"clip": 0.01}, {"lam": 0.5}, {"grad_clip": 0.01}, {"value_weight": 2.0}, {"epochs": 2}):
        other = ppo(PPOControl(**{**small, **change}), 0).networks.state_dict()
        assert any(not torch.equal(plain[k], other[k]) for k in plain), change
