"""Collecting steps: what a learner is told at the ends of episodes, and the running scales."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
import torch

from truing.envs.vector import VectorSteps, make
from truing.errors import ConfigError
from truing.maths.advantages import gae
from truing.models.networks import Networks, build
from truing.rollout.scaling import Moments, Scaler
from truing.rollout.steps import Collector
from truing.seeds import generator


class Clock(gymnasium.Env):
    """Counts its steps: the observation is the time. It terminates at `end`; every reward is the time before the step."""

    observation_space = gymnasium.spaces.Box(0, 100, (1,))
    action_space = gymnasium.spaces.Box(-0.5, 0.5, (1,))

    def __init__(self, end: int = 100) -> None:
        self.end, self.time, self.taken = end, 0, []

    def reset(self, *, seed=None, options=None):
        self.time = 0
        return np.array([0.0], np.float32), {}

    def step(self, action):
        self.taken.append(float(action[0]))
        self.time += 1
        return np.array([self.time], np.float32), float(self.time - 1), self.time == self.end, False, {}


def collector(env: VectorSteps, discount: float = 0.9, **options) -> Collector:
    networks = build(env.single_observation_space, env.single_action_space, generator=generator(0, "init"))
    return Collector(env, networks, discount=discount, seed=0, **options)


def value(networks: Networks, time: float) -> torch.Tensor:
    return networks.values(torch.tensor([[float(time)]]))[0].detach()


def test_a_cut_episode_bootstraps_from_where_it_was_cut_and_an_ended_one_from_nothing() -> None:
    cut, over = (lambda: gymnasium.wrappers.TimeLimit(Clock(), 3)), (lambda: Clock(3))
    for environment, gamma_at_the_end in ((cut, 0.9), (over, 0.0)):
        made = collector(make(environment, 2))
        steps = made.collect(4)  # times 0 1 2 | 0
        assert steps.observations[..., 0].tolist() == [[0, 1, 2, 0]] * 2 and steps.rewards.tolist() == [[0, 1, 2, 0]] * 2
        assert steps.carry.tolist() == [[1, 1, 0, 1]] * 2
        torch.testing.assert_close(steps.discount, torch.tensor([[0.9, 0.9, gamma_at_the_end, 0.9]] * 2))
        # V of time 3, the episode's own last observation, and not of time 0, where the next one begins
        wanted = torch.stack([value(made.networks, t) for t in (1, 2, 3, 1)])
        torch.testing.assert_close(steps.next_values[0], wanted)
        assert abs(steps.next_values[0, 2] - value(made.networks, 0)) > 1e-3
        torch.testing.assert_close(steps.values[1], torch.stack([value(made.networks, t) for t in (0, 1, 2, 0)]))
        assert [(taken, e.total, e.length) for taken, e in steps.episodes] == [(6, 3.0, 3), (6, 3.0, 3)]


def test_rollouts_go_on_where_the_last_one_stopped() -> None:
    one, two = collector(make(Clock, 1)), collector(make(Clock, 1))
    whole = one.collect(6)
    halves = [two.collect(3), two.collect(3)]
    assert torch.cat([h.observations for h in halves], 1).tolist() == whole.observations.tolist()
    # GAE over a cut rollout equals GAE over the whole one when lambda is 0: nothing but the next value is needed
    parts = torch.cat([gae(h.rewards, h.values, h.next_values, h.discount, h.carry, 0.0) for h in halves], 1)
    torch.testing.assert_close(parts, gae(whole.rewards, whole.values, whole.next_values, whole.discount, whole.carry, 0.0))


def test_the_environment_gets_clipped_actions_and_the_learner_those_drawn() -> None:
    env = Clock()
    steps = collector(make(lambda: env, 1)).collect(50)
    drawn = steps.actions[0, :, 0].numpy()
    assert (np.abs(drawn) > 0.5).any()
    np.testing.assert_allclose(env.taken, np.clip(drawn, -0.5, 0.5), rtol=1e-6)


def test_the_likelihood_is_that_of_the_policy_that_acted() -> None:
    made = collector(make("CartPole-v1", 3))
    steps = made.collect(16)
    again = made.networks.look(steps.observations, steps.actions)
    torch.testing.assert_close(steps.logp, again.logp)
    torch.testing.assert_close(steps.entropy, again.entropy)
    assert not steps.logp.requires_grad and not steps.values.requires_grad


def test_equal_seeds_give_equal_rollouts_and_other_seeds_others() -> None:
    a, b = (collector(make("CartPole-v1", 2, seed=5)).collect(20) for _ in range(2))
    assert torch.equal(a.observations, b.observations) and torch.equal(a.actions, b.actions)
    other = collector(make("CartPole-v1", 2, seed=6)).collect(20)
    assert not torch.equal(a.observations, other.observations)


def test_whole_episodes_come_from_one_environment() -> None:
    made = collector(make(lambda: Clock(7), 1))
    for _ in range(2):
        steps = made.collect(None)
        assert steps.rewards.shape == (1, 7) and steps.carry[0].tolist() == [1] * 6 + [0]
    with pytest.raises(ConfigError, match="2 environments"):
        collector(make(Clock, 2)).collect(None)


def test_moments_equal_numpys_over_everything() -> None:
    rng = np.random.default_rng(0)
    parts = [rng.normal(5, 3, (n, 2)) for n in (1, 7, 4)]
    moments = Moments((2,))
    for part in parts:
        moments.add(part)
    everything = np.concatenate(parts)
    np.testing.assert_allclose(moments.mean, everything.mean(0))
    np.testing.assert_allclose(moments.variance, everything.var(0))


def test_scaled_observations_and_rewards() -> None:
    scaler = Scaler((1,), 2, discount=0.5)
    seen = scaler.observations(np.array([[1.0], [3.0]]), learn=True)  # mean 2, variance 1
    np.testing.assert_allclose(seen, [[-1.0], [1.0]], rtol=1e-6)
    np.testing.assert_allclose(scaler.observations(np.array([[1e6]]), learn=False), [[10.0]])  # limited, and not counted in
    assert scaler.seen.count == 2
    # discounted returns: (2, 4), then (0.5 * 2 + 0, 0.5 * 4 + 2) = (1, 4); all four: variance of 2 4 1 4 = 1.6875
    scaler.rewards(np.array([2.0, 4.0]), np.array([False, False]))
    np.testing.assert_allclose(scaler.rewards(np.array([0.0, 2.0]), np.array([True, False])), [0.0, 2.0 / np.sqrt(1.6875)], rtol=1e-6)
    np.testing.assert_allclose(scaler.running, [0.0, 4.0])  # an ended episode starts anew


class Ramp(Clock):
    """As Clock, but its time never goes back: scales keep moving."""

    def reset(self, *, seed=None, options=None):
        return np.array([self.time], np.float32), {}


def test_a_cut_observation_is_read_on_the_scale_of_its_own_time() -> None:
    made = collector(make(lambda: gymnasium.wrappers.TimeLimit(Ramp(), 3), 1), scaler=Scaler((1,), 1, 0.9))
    steps = made.collect(5)  # observations 0 1 2 | 3 4, and the cut one is 3
    # Moments when it was seen: of 0 1 2, mean 1 and variance 2/3, so 3 is (3 - 1) / sqrt(2/3) = 2.449. At the end, of 0 1 2 3 4 5, it would be 0.29.
    torch.testing.assert_close(steps.next_values[0, 2], value(made.networks, 2.0 / (2 / 3) ** 0.5))
    assert abs(steps.next_values[0, 2] - value(made.networks, 0.5 / (35 / 12) ** 0.5)) > 1e-3
    assert made.scaler.seen.count == 6  # the first, and one a step; the cut one was looked at, and not counted twice


def test_scaled_rewards_start_anew_after_a_cut() -> None:
    scaler = Scaler((1,), 1, discount=0.9)
    made = collector(make(lambda: gymnasium.wrappers.TimeLimit(Clock(), 3), 1), scaler=scaler)
    made.collect(3)  # rewards 0 1 2, and the episode is cut
    assert scaler.running.tolist() == [0.0]
