"""The agents on Gymnasium tasks: they learn what they should, do not when one line is wrong, tell a cut from an end, and repeat bit for bit."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.envs.registration import registry
from pydantic import ValidationError

from truing.config import make_options
from truing.errors import ConfigError, ModelError
from truing.maths.stats import bootstrap
from truing.methods.control import Trained, begin, evaluate
from truing.methods.policy_gradient import ActorCritic, Reinforce, actor_critic, episode_advantages, episode_loss, episode_returns, reinforce
from truing.methods.ppo_control import PPOControl, ppo
from truing.rollout.steps import Collector, Steps

SEEDS = (0, 1, 2)


class Line(gymnasium.Env):
    """One step, one number: the reward is ``-sign * (action - 0.5)^2``, whatever the observation."""

    observation_space = gymnasium.spaces.Box(-1, 1, (1,))
    action_space = gymnasium.spaces.Box(-1, 1, (1,))

    def __init__(self, sign: float = 1.0):
        self.sign = sign

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(1, np.float32), {}

    def step(self, action):
        return np.zeros(1, np.float32), -self.sign * float((action[0] - 0.5) ** 2), True, False, {}


class Forever(gymnasium.Env):
    """Pays 1 a step and looks always the same. Whoever stops it after 4 steps says whether it is over or only cut."""

    observation_space = gymnasium.spaces.Box(0, 1, (1,))
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, over: bool):
        self.over, self.taken = over, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.taken = 0
        return np.ones(1, np.float32), {}

    def step(self, action):
        self.taken += 1
        end = self.taken == 4
        return np.ones(1, np.float32), 1.0, end and self.over, end and not self.over, {}


class Nested(Forever):
    observation_space = gymnasium.spaces.Dict({"x": gymnasium.spaces.Box(0, 1, (1,))})


class Picture(Forever):
    observation_space = gymnasium.spaces.Box(0, 255, (4, 4), np.uint8)


class Negated(gymnasium.RewardWrapper):
    """The wrong sign: every reward, and so every advantage, is negated."""

    def reward(self, reward):
        return -float(reward)


def negated(name: str, **options):
    return Negated(gymnasium.make(name, **options))


GRID = dict(rows=3, columns=3)
for name, entry, options, limit in (
    ("Line", Line, {}, None),
    ("WrongLine", Line, {"sign": -1.0}, None),
    ("Cut", Forever, {"over": False}, None),
    ("Over", Forever, {"over": True}, None),
    ("Nested", Nested, {"over": True}, None),
    ("Picture", Picture, {"over": True}, None),
    ("Grid", "truing.envs.gridworld:GridWorld", GRID, 30),
    ("WrongGrid", negated, {"name": "truing.envs:truing/GridWorld-v0", "max_episode_steps": 30, **GRID}, None),
    ("WrongPick", negated, {"name": "truing.envs:truing/PickTwo-v0"}, None),
):
    if f"TruingTest/{name}-v0" not in registry:
        gymnasium.register(f"TruingTest/{name}-v0", entry_point=entry, kwargs=options, max_episode_steps=limit)

PICK = "truing.envs:truing/PickTwo-v0"
TRAIN = {
    "reinforce": lambda seed, **o: reinforce(Reinforce(**({"episodes": 150, "baseline": "none", "standardise": False, "lr": 0.03} | o)), seed),
    "reinforce, learned": lambda seed, **o: reinforce(Reinforce(**({"episodes": 150, "baseline": "learned", "standardise": False, "lr": 0.03} | o)), seed),
    "actor-critic": lambda seed, **o: actor_critic(
        ActorCritic(**({"total_steps": 2000, "environments": 8, "length": 4, "lam": 0.0, "lr": 0.02, "schedule": "constant", "discount": 0.99} | o)), seed
    ),
    "ppo": lambda seed, **o: ppo(PPOControl(**({"total_steps": 2000, "environments": 8, "length": 16, "lr": 0.03, "epochs": 2, "minibatches": 2} | o)), seed),
}


def score(trained: list[Trained], last: int = 50):
    """Mean return of the last training episodes, with its interval over seeds."""
    return bootstrap([float(np.mean(t.returns[-last:])) for t in trained], resamples=1000)


# -- they learn, and the wrong version does not -----------------------------------------------------------------------------


@pytest.mark.parametrize("agent", TRAIN)
def test_picks_two(agent):
    right = score([TRAIN[agent](seed, environment=PICK) for seed in SEEDS])
    wrong_sign = score([TRAIN[agent](seed, environment="TruingTest/WrongPick-v0") for seed in SEEDS])
    no_steps = score([TRAIN[agent](seed, environment=PICK, lr=1e-12) for seed in SEEDS])
    assert right.low > 0.8  # 1 for action 2, 0 for the three others
    assert -wrong_sign.low < 0.15  # the reward is negated: what it earned, it earned less and less
    assert 0.1 < no_steps.mean < 0.4  # a fresh policy is uniform: 1 in 4; 3 x 50 episodes give it a standard error of 0.035


@pytest.mark.parametrize(
    ("agent", "options"),
    [
        ("reinforce", {"episodes": 200, "baseline": "mean", "standardise": True, "lr": 0.01}),
        ("actor-critic", {"total_steps": 6000, "lr": 0.01, "length": 8, "lam": 0.9}),
        ("ppo", {"total_steps": 6000, "lr": 0.01}),
    ],
)
def test_finds_the_way_on_a_grid(agent, options):
    right = [TRAIN[agent](seed, environment="TruingTest/Grid-v0", **options) for seed in SEEDS]
    wrong = [TRAIN[agent](seed, environment="TruingTest/WrongGrid-v0", **options) for seed in SEEDS]
    # 3 steps of -0.01 and then the goal's 1; whoever never finds it pays 30 * 0.01
    for trained in right:
        assert evaluate(trained, "TruingTest/Grid-v0", 2, seed=0) == pytest.approx([0.97, 0.97])
    better = bootstrap([np.mean(r.returns[-30:]) + np.mean(w.returns[-30:]) for r, w in zip(right, wrong, strict=True)], resamples=1000)
    assert score(right, 30).low > 0.85 and better.low > 0.3


def test_ppo_learns_a_number_and_clips_only_what_the_environment_sees():
    options = {"total_steps": 5000, "environments": 16, "length": 8, "lr": 0.02, "entropy": 0.0}
    right = [TRAIN["ppo"](seed, environment="TruingTest/Line-v0", **options) for seed in SEEDS]
    wrong = [TRAIN["ppo"](seed, environment="TruingTest/WrongLine-v0", **options) for seed in SEEDS]
    means = [[t.networks.best(torch.zeros(1, 1)).item() for t in group] for group in (right, wrong)]
    assert max(abs(m - 0.5) for m in means[0]) < 0.1
    assert min(abs(m - 0.5) for m in means[1]) > 0.3  # away from it, as far as the bounds still make a difference
    assert score(right, 200).low > -0.05  # a fresh policy's actions, N(0, 1) cut to [-1, 1], are 0.5 off on average: they earn about -0.77
    environments, networks = begin("TruingTest/Line-v0", 64, 0, (8,), "tanh")
    steps = Collector(environments, networks, discount=0.9, seed=0).collect(1)
    assert steps.actions.abs().max() > 1  # stored as drawn
    torch.testing.assert_close(steps.rewards.flatten(), -((steps.actions.flatten().clamp(-1, 1) - 0.5) ** 2))


# -- the details that fail silently ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{"environment": "CartPole-v1"}, {"environment": "TruingTest/Line-v0"}, {"environment": "Pendulum-v1", "scale": True}])
def test_the_first_ratio_of_every_rollout_is_one(options):
    trained = ppo(PPOControl(**({"total_steps": 2048, "lr": 3e-3} | options)), 0)
    assert len(trained.log) == 4
    assert max(log["policy/first_ratio_error"] for log in trained.log) < 1e-5
    assert min(log["policy/ratio_max"] for log in trained.log) > 1.01  # later ratios are not 1, so the measure can see one


@pytest.mark.parametrize("train", [
    lambda name: actor_critic(ActorCritic(environment=name, total_steps=12_000, environments=8, length=8, lam=0.5, discount=0.8, lr=1e-2, schedule="linear"), 0),
    lambda name: ppo(PPOControl(environment=name, total_steps=8000, environments=8, length=16, discount=0.8, lr=1e-2, minibatches=2), 0),
    lambda name: reinforce(Reinforce(environment=name, episodes=400, baseline="learned", standardise=False, discount=0.8, lr=2e-2), 0),
])  # fmt: skip
def test_the_value_goes_on_where_an_episode_was_cut_and_not_where_it_was_over(train):
    value = {name: float(train(f"TruingTest/{name}-v0").networks.values(torch.ones(1, 1)).detach()) for name in ("Cut", "Over")}
    # cut: 1 / (1 - 0.8) = 5. Over after 4 steps, one look for all of them: 2.952, 2.44, 1.8 and 1 from steps 1 to 4, 2.05 on average
    # where returns are counted, 1 + 0.8 * 3/4 V = V, so 2.5, where the value itself is believed.
    assert value["Cut"] == pytest.approx(5, abs=0.5)
    assert 1.8 < value["Over"] < 2.8


def test_a_rollout_keeps_cut_and_over_apart():
    found = {}
    for name in ("Cut", "Over"):
        environments, networks = begin(f"TruingTest/{name}-v0", 1, 0, (8,), "tanh")
        found[name] = Collector(environments, networks, discount=0.9, seed=0).collect(6)
    assert found["Cut"].discount[0].tolist() == pytest.approx([0.9] * 6)
    assert found["Over"].discount[0].tolist() == pytest.approx([0.9, 0.9, 0.9, 0, 0.9, 0.9])
    for steps in found.values():
        assert steps.carry[0].tolist() == [1, 1, 1, 0, 1, 1]  # neither goes on into the next episode
        assert [(taken, e.length) for taken, e in steps.episodes] == [(4, 4)]


# -- REINFORCE by hand ------------------------------------------------------------------------------------------------------


def three_steps(networks, over: bool) -> Steps:
    """Rewards 1, 1, 1; the critic said 0.5, 1, 2, and would say 4 of where the episode was left."""
    row = lambda *x: torch.tensor([x], dtype=torch.float32)  # noqa: E731
    zero = row(0, 0, 0)
    return Steps(
        observations=torch.ones(1, 3, 1), actions=torch.tensor([[0, 1, 1]]), rewards=row(1, 1, 1), logp=zero, entropy=zero, values=row(0.5, 1, 2),
        next_values=row(1, 2, 4), discount=row(0.5, 0.5, 0 if over else 0.5), carry=row(1, 1, 0), episodes=[],
    )  # fmt: skip


def test_returns_and_the_three_baselines():
    steps = three_steps(None, over=True)
    plain, mean, learned = (Reinforce(baseline=b, standardise=False) for b in ("none", "mean", "learned"))
    assert episode_returns(steps, plain).tolist() == [1.75, 1.5, 1]  # 1 + 1.5 / 2, 1 + 1 / 2, 1
    assert episode_advantages(steps, plain).tolist() == [1.75, 1.5, 1]
    torch.testing.assert_close(episode_advantages(steps, mean), torch.tensor([4.0, 1.0, -5.0]) / 12)  # the mean is 17 / 12
    assert episode_advantages(steps, learned).tolist() == [1.25, 0.5, -1]
    # the deviations' squares add to 42 / 144, so the standard deviation is sqrt(21 / 144)
    torch.testing.assert_close(episode_advantages(steps, Reinforce()), torch.tensor([4.0, 1.0, -5.0]) / 21**0.5)


def test_a_cut_episode_goes_on_with_the_learned_value_only():
    steps = three_steps(None, over=False)
    assert episode_returns(steps, Reinforce(baseline="learned")).tolist() == [2.25, 2.5, 3]  # 1 + 4 / 2 at the end, then 1 + 3 / 2, 1 + 2.5 / 2
    assert episode_returns(steps, Reinforce(baseline="mean")).tolist() == [1.75, 1.5, 1]


def test_the_loss_is_the_weighted_log_likelihood_summed_or_averaged():
    _, networks = begin("TruingTest/Over-v0", 1, 0, (8,), "relu")
    steps = three_steps(networks, over=True)
    logp = networks(torch.ones(1, 1))[0].log_softmax(-1)[0]
    expected = -(1.75 * logp[0] + 1.5 * logp[1] + 1 * logp[1])
    for reduction, loss in (("sum", expected), ("mean", expected / 3)):
        config = Reinforce(baseline="none", standardise=False, reduction=reduction)
        torch.testing.assert_close(episode_loss(networks, steps, config), loss)


def test_it_keeps_the_best_networks_and_stops_when_told():
    trained = reinforce(Reinforce(environment="CartPole-v1", episodes=130, stop_at=15), 0)
    assert len(trained.returns) == 100 and np.mean(trained.returns) >= 15  # chance alone balances for about 20 steps; 100 episodes must be seen first
    assert trained.best is not trained.networks
    for kept, last in zip(trained.best.parameters(), trained.networks.parameters(), strict=True):
        assert torch.equal(kept, last)
    short = reinforce(Reinforce(environment="CartPole-v1", episodes=130, total_steps=150), 0)
    assert len(short.steps) > 1 and short.steps[-2] < 150 <= short.steps[-1] and short.returns == trained.returns[: len(short.returns)]


# -- repeatable -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("agent", "options"), [
    ("reinforce", {"episodes": 12, "baseline": "learned"}), ("actor-critic", {"total_steps": 600}), ("ppo", {"total_steps": 512}), ("ppo", {"total_steps": 512, "environment": "Pendulum-v1", "scale": True}),
])  # fmt: skip
def test_a_seed_gives_the_same_training_bit_for_bit(agent, options):
    a, b, other = (TRAIN[agent](seed, **({"environment": "CartPole-v1"} | options)) for seed in (3, 3, 4))
    assert (a.returns, a.steps, a.lengths, a.log) == (b.returns, b.steps, b.lengths, b.log)
    assert all(torch.equal(x, y) for x, y in zip(a.networks.parameters(), b.networks.parameters(), strict=True))
    assert not all(torch.equal(x, y) for x, y in zip(a.networks.parameters(), other.networks.parameters(), strict=True))
    environment = options.get("environment", "CartPole-v1")
    for sample in (False, True):
        first, second = (evaluate(t, environment, 3, seed=9, sample=sample) for t in (a, b))
        assert first == second and len(first) == 3


# -- what cannot be meant ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("agent", TRAIN)
def test_environments_that_cannot_be_used_are_named(agent):
    with pytest.raises(ConfigError, match="CartPole-v7"):
        TRAIN[agent](0, environment="CartPole-v7")
    with pytest.raises((ConfigError, ModelError), match="(?s)Dict.*FlattenObservation"):
        TRAIN[agent](0, environment="TruingTest/Nested-v0")
    with pytest.raises(ModelError, match="FlattenObservation"):
        TRAIN[agent](0, environment="TruingTest/Picture-v0")


@pytest.mark.parametrize(("model", "text", "said"), [
    (PPOControl, "minibatches=7", "512 steps cannot be cut into minibatches=7"),
    (PPOControl, "discount=1.1", "discount=1.1"),
    (PPOControl, "lam=-0.1", "lam=-0.1"),
    (ActorCritic, "enviroments=4", "did you mean 'environments'"),
    (ActorCritic, "length=0", "length=0"),
    (Reinforce, "baseline=median", "median"),
    (Reinforce, "lr=0", "lr=0"),
])  # fmt: skip
def test_settings_that_cannot_be_meant_are_refused_with_their_value(model, text, said):
    with pytest.raises(ConfigError, match=said):
        make_options(model, [text])
    with pytest.raises(ValidationError):
        model(**{text.split("=")[0]: text.split("=")[1]})
