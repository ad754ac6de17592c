"""Vector steps against Gymnasium's own vector environment, and what goes wrong when the end of an episode is read naively."""

from __future__ import annotations

import warnings

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import RecordEpisodeStatistics, RescaleAction, TimeAwareObservation, TransformReward

from truing.envs.vector import VectorSteps, make
from truing.errors import ConfigError, NonFiniteError

BALANCE = 0.05  # CartPole starts with every component of its state within this of 0


def test_a_fall_and_a_time_limit_are_told_apart():
    steps = make("CartPole-v1", 2, seed=0, max_episode_steps=30)
    pole = steps.reset()
    ends = []
    for _ in range(30):
        # Environment 0 pushes right until it falls; environment 1 pushes to the side the pole leans and turns to.
        taken = steps.step([1, int(pole[1, 2] + pole[1, 3] > 0)])
        ends += [(e.environment, bool(taken.terminated[e.environment]), bool(taken.truncated[e.environment])) for e in taken.episodes]
        last, pole = taken, taken.observation
    assert (1, False, True) == ends[-1] and {e for e in ends if e[0] == 0} == {(0, True, False)}
    assert [e for e in last.episodes if e.environment == 1] == [(1, 30.0, 30)]  # CartPole pays 1 a step


def test_the_next_observation_of_an_ended_episode_is_its_own():
    steps = make("CartPole-v1", 1, seed=0)
    steps.reset()
    while not (taken := steps.step([1])).terminated[0]:
        np.testing.assert_array_equal(taken.observation, taken.next_observation)
    x, _, angle, _ = taken.next_observation[0]
    assert abs(angle) > 12 * np.pi / 180 or abs(x) > 2.4  # where it fell
    assert (abs(taken.observation[0]) <= BALANCE).all()  # where the next episode begins: the naive reading says it never fell


def test_a_truncated_episode_goes_on_where_it_was_cut():
    cut, whole = make("CartPole-v1", 1, seed=3, max_episode_steps=5), make("CartPole-v1", 1, seed=3)
    np.testing.assert_array_equal(cut.reset(), whole.reset())
    for action in (0, 1, 0, 1, 0):
        a, b = cut.step([action]), whole.step([action])
    assert a.truncated[0] and not a.terminated[0] and not b.truncated[0]
    np.testing.assert_array_equal(a.next_observation, b.next_observation)  # the same state, whose value it bootstraps from
    assert abs(a.observation - b.observation).max() > 0.01  # the reset state is another one


class Countdown(gymnasium.Env):
    """Counts up from 0. It terminates at ``end``, and cuts itself at ``cut``; every step pays the number it reaches."""

    def __init__(self, end=3, cut=99, space=None, reuse=False, faults=None):
        self.observation_space = space or spaces.Box(-np.inf, np.inf, (1,), np.float32)
        self.action_space = spaces.Discrete(2)
        self.end, self.cut, self.reuse, self.faults = end, cut, reuse, faults or {}
        self.buffer = np.zeros(1, np.float32)

    def _see(self):
        value = self.faults.get(("observation", self.at), self.at)
        if isinstance(self.observation_space, spaces.Discrete):
            return int(value)
        if not self.reuse:
            return np.array([value], np.float32)
        self.buffer[0] = value
        return self.buffer

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.at = 0
        return self._see(), {}

    def step(self, action):
        self.at += 1
        reward = self.faults.get(("reward", self.at), float(self.at))
        return self._see(), reward, self.at >= self.end, self.at >= self.cut, {}


@pytest.mark.parametrize("space", [None, spaces.Discrete(4)])
@pytest.mark.parametrize("reuse", [False, True])
def test_a_countdown_by_hand(space, reuse):
    ends = iter([(3, 99), (99, 2), (3, 3)])  # terminates at 3; is cut at 2; both at once at 3
    steps = make(lambda: Countdown(*next(ends), space, reuse), 3)
    assert steps.reset().ravel().tolist() == [0, 0, 0]
    seen = [steps.step([0, 1, 0]) for _ in range(4)]
    assert [s.next_observation.ravel().tolist() for s in seen] == [[1, 1, 1], [2, 2, 2], [3, 1, 3], [1, 2, 1]]
    assert [s.observation.ravel().tolist() for s in seen] == [[1, 1, 1], [2, 0, 2], [0, 1, 0], [1, 0, 1]]
    assert [s.reward.tolist() for s in seen] == [[1, 1, 1], [2, 2, 2], [3, 1, 3], [1, 2, 1]]
    assert [s.terminated.tolist() for s in seen] == [[False] * 3, [False] * 3, [True, False, True], [False] * 3]
    assert [s.truncated.tolist() for s in seen] == [[False] * 3, [False, True, False], [False, False, True], [False, True, False]]
    assert [s.episodes for s in seen] == [(), ((1, 3.0, 2),), ((0, 6.0, 3), (2, 6.0, 3)), ((1, 3.0, 2),)]
    shape = (3,) if space else (3, 1)
    assert seen[0].observation.shape == shape and seen[0].observation.dtype == steps.single_observation_space.dtype and seen[0].reward.dtype == np.float64


def test_a_value_bootstrapped_from_the_wrong_state_is_wrong():
    # Under V(s) = s the value rises by 1 at every step of the countdown, also at the one that is cut.
    steps = make(lambda: Countdown(cut=5, end=99), 1)
    state = steps.reset()
    right, naive = [], []
    for _ in range(5):
        taken = steps.step([0])
        right.append(float(taken.next_observation[0, 0] - state[0, 0]))
        naive.append(float(taken.observation[0, 0] - state[0, 0]))
        state = taken.observation
    assert right == [1, 1, 1, 1, 1]
    assert naive == [1, 1, 1, 1, -4]  # from the state it was cut in, 4, back to 0


# Equal to Gymnasium's vector environment ---------------------------------------------------------------------------------
def aware():
    env = gymnasium.make("CartPole-v1", max_episode_steps=40)
    return TransformReward(TimeAwareObservation(env), lambda r: 0.5 * r)


def rescaled():
    return RescaleAction(gymnasium.make("Pendulum-v1", max_episode_steps=25), np.float32(-1), np.float32(1))


CASES = {
    "CartPole-v1": ("CartPole-v1", {}),
    "CartPole with a short limit": ("CartPole-v1", {"max_episode_steps": 15}),
    "Acrobot-v1": ("Acrobot-v1", {"max_episode_steps": 50}),
    "Pendulum-v1": ("Pendulum-v1", {"max_episode_steps": 50}),
    "MountainCarContinuous-v0": ("MountainCarContinuous-v0", {"max_episode_steps": 50}),
    "slippery GridWorld": ("truing.envs:truing/GridWorld-v0", {"slip": 0.3, "max_episode_steps": 20}),
    "Bandit": ("truing.envs:truing/Bandit-v0", {}),
    "user's wrappers": (aware, {}),
    "user's action wrapper": (rescaled, {}),
}


@pytest.mark.parametrize("case", CASES)
def test_equal_to_gymnasiums_vector_environment(case):
    environment, options = CASES[case]
    steps = make(environment, 3, seed=7, **options)
    single = (lambda: gymnasium.make(environment, **options)) if isinstance(environment, str) else environment
    oracle = SyncVectorEnv([lambda: RecordEpisodeStatistics(single())] * 3, autoreset_mode=AutoresetMode.SAME_STEP)
    assert steps.observation_space == oracle.observation_space and steps.action_space == oracle.action_space
    assert steps.single_action_space == oracle.single_action_space and steps.single_observation_space == oracle.single_observation_space
    first, _ = oracle.reset(seed=list(steps.seeds))
    np.testing.assert_array_equal(steps.reset(), first)
    ended = 0
    for _ in range(150):
        actions = steps.action_space.sample()
        taken = steps.step(actions)
        observation, reward, terminated, truncated, info = oracle.step(actions)
        np.testing.assert_array_equal(taken.observation, observation)
        np.testing.assert_array_equal(taken.reward, reward)
        np.testing.assert_array_equal(taken.terminated, terminated)
        np.testing.assert_array_equal(taken.truncated, truncated)
        own = observation.copy()
        for i in np.flatnonzero(terminated | truncated):
            own[i] = info["final_obs"][i]
        np.testing.assert_array_equal(taken.next_observation, own)
        assert [e.environment for e in taken.episodes] == np.flatnonzero(terminated | truncated).tolist()
        for episode in taken.episodes:
            statistics = info["final_info"]["episode"]
            assert episode.total == pytest.approx(statistics["r"][episode.environment]) and episode.length == statistics["l"][episode.environment]
        ended += len(taken.episodes)
    assert ended >= 3
    steps.close()


def test_gymnasiums_default_makes_transitions_that_nobody_took():
    # Why the library does not pass Gymnasium's own vector environment on: of 200 steps of CartPole, all of which pay 1, some are resets that pay 0.
    default = gymnasium.make_vec("CartPole-v1", 1, vectorization_mode="sync")
    default.reset(seed=0)
    ours = make("CartPole-v1", 1)
    ours.reset()
    actions = np.random.default_rng(0).integers(2, size=(200, 1))
    assert sum(default.step(a)[1][0] == 0 for a in actions) >= 5
    assert sum(ours.step(a).reward[0] == 0 for a in actions) == 0


# Seeds -----------------------------------------------------------------------------------------------------------------
def test_every_environment_has_its_own_seed():
    first = make("CartPole-v1", 8, seed=1).reset()
    assert len(np.unique(first[:, 0])) == 8
    np.testing.assert_array_equal(first, make("CartPole-v1", 8, seed=1).reset())
    np.testing.assert_array_equal(first[:3], make("CartPole-v1", 3, seed=1).reset())  # environment i does not depend on how many there are
    assert (first != make("CartPole-v1", 8, seed=2).reset()).all()


def test_a_second_reset_goes_on_and_forgets_the_episode():
    steps = make("CartPole-v1", 2, seed=1)
    first = steps.reset()
    steps.step([0, 1])
    assert (steps.reset() != first).all()
    count = 1
    while not (taken := steps.step([1, 1])).episodes:
        count += 1
    assert taken.episodes[0][1:] == (count, count)  # the step before the reset is not of this episode


# Refusals --------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ({("reward", 2): float("nan")}, "environment 1, step 2: reward is nan; mend the environment"),
        ({("reward", 1): float("-inf")}, "environment 1, step 1: reward is -inf"),
        ({("observation", 2): float("nan")}, r"environment 1, step 2: observation\[0\] is nan"),
        ({("observation", 3): float("inf")}, r"environment 1, step 3: observation\[0\] is inf"),
        ({("observation", 0): float("nan")}, r"environment 1, step 0: first observation\[0\] is nan; mend the environment's reset"),
    ],
)
def test_numbers_that_are_not_finite_are_refused_by_place(fault, message):
    steps = VectorSteps([Countdown(), Countdown(faults=fault)], seed=0)
    with pytest.raises(NonFiniteError, match=message):
        steps.reset()
        for _ in range(3):
            steps.step([0, 0])


def test_large_numbers_whose_sum_overflows_are_fine():
    steps = VectorSteps([Countdown(faults={("reward", 1): 1.7e308, ("observation", 1): 3e38}) for _ in range(2)], seed=0)
    steps.reset()
    assert steps.step([0, 0]).reward.tolist() == [1.7e308, 1.7e308]


def test_a_policy_that_has_diverged_is_told_so():
    steps = make("Pendulum-v1", 2)
    steps.reset()
    with pytest.raises(NonFiniteError, match=r"environment 1, step 0: action\[0\] is nan; the policy has diverged"):
        steps.step(np.array([[0.0], [np.nan]], np.float32))


class Odd(Countdown):
    def __init__(self, **changes):
        super().__init__()
        vars(self).update(changes)


def vector():
    return gymnasium.make_vec("CartPole-v1", 2)


ONE = Countdown()


@pytest.mark.parametrize(
    ("make_it", "message"),
    [
        (lambda: make("CartPole-v1", 0), "count=0: use a whole number of 1 or more"),
        (lambda: make("CartPole-v1", 2.0), "count=2.0"),
        (lambda: make("CartPool-v1", 1), "environment 'CartPool-v1'.*CartPole"),
        (lambda: make("no_such_module:X-v0", 1), "no_such_module"),
        (lambda: make("CartPole-v1", 1, gravity=3), "gravity"),
        (lambda: make(vector, 2), "the callable made a CartPoleVectorEnv; it must make one gymnasium.Env"),
        (lambda: make(lambda: ONE, 2), "one environment appears twice"),
        (lambda: VectorSteps([], 0), "environments is empty"),
        (lambda: VectorSteps([Countdown(), Odd(action_space=spaces.Discrete(3))], 0), r"environment 1: action_space=Discrete\(3\) differs from environment 0's Discrete\(2\)"),
        (lambda: make(Odd, 1, observation_space=spaces.Dict({"a": spaces.Discrete(2)})), "environment 0: observation_space=Dict.*FlattenObservation"),
        (lambda: make(Odd, 1, action_space=spaces.Tuple([spaces.Discrete(2)])), "environment 0: action_space=Tuple.*one array"),
        (lambda: make(Odd, 1, observation_space=spaces.Box(-1, 1, (4,))).reset(), r"environment 0: reset\(\) returned an observation of shape \(1,\); its observation_space has \(4,\)"),
        (lambda: make(Countdown, 1).step([0]), r"step\(\) before reset\(\)"),
    ],
)  # fmt: skip
def test_refused_with_a_remedy(make_it, message):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Gymnasium warns as well of some of these
        with pytest.raises(ConfigError, match=message):
            make_it()


@pytest.mark.parametrize("actions", [[0], [0, 0, 0], [[0], [0]], 0, [0.0, 1.0], [0.5, np.nan]])
def test_actions_that_do_not_fit_are_refused(actions):
    steps = make("CartPole-v1", 2)
    steps.reset()
    with pytest.raises(ValueError, match=r"actions have shape .*; 2 actions of Discrete\(2\) are \(2,\) of int64"):
        steps.step(actions)


def test_a_reward_that_is_an_array_is_refused():
    steps = VectorSteps([Countdown(faults={("reward", 1): np.array([1.0])})], 0)
    steps.reset()
    with pytest.raises(ConfigError, match=r"step 1: rewards of shape \(1,\); an environment's reward is one number"):
        steps.step([0])


def test_it_closes_what_it_opened():
    closed = []

    class Door(Countdown):
        def close(self):
            closed.append(self)

    with make(Door, 2) as steps:
        steps.reset()
    assert len(closed) == 2


def test_an_observation_of_another_shape_is_refused_at_every_step():
    class Shrinks(gymnasium.Env):
        observation_space, action_space = gymnasium.spaces.Box(-9, 9, (4,)), gymnasium.spaces.Discrete(2)

        def reset(self, *, seed=None, options=None):
            return np.zeros(4, np.float32), {}

        def step(self, action):
            return np.ones(1, np.float32), 0.0, False, False, {}

    steps = make(Shrinks, 2)
    steps.reset()
    with pytest.raises(ConfigError, match=r"environment 0: step\(\) returned an observation of shape \(1,\); its observation_space has \(4,\)"):
        steps.step([0, 0])
