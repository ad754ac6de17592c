"""Tabular learners: what one episode does, by hand; what many do, against the exact solution; and the published numbers of the cliff and the walk."""

from __future__ import annotations

from time import perf_counter

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.wrappers import TimeLimit

import truing.envs  # noqa: F401
from truing.envs.table import Outcome, Tabular, certain
from truing.errors import ConfigError, NonFiniteError
from truing.maths.planning import action_values, policy_evaluation, value_iteration
from truing.maths.stats import bootstrap
from truing.methods import q_learning, tabular_reinforce
from truing.methods.prediction import Episodes, follow, monte_carlo_prediction, td_prediction
from truing.methods.q_learning import draw, learn

RULES = ("q_learning", "sarsa", "expected_sarsa")


def chain() -> Tabular:
    """0 -> 1 -> end, paying 2 and then 3; one action."""
    return Tabular([[certain(1, 2.0)], [certain(2, 3.0)], []], 0)


def loop(reward: float = 0.0) -> Tabular:
    """A state that leads to itself (action 0) or to the end (action 1)."""
    return Tabular([[certain(0, reward), certain(1, reward)], []], 0)


def grid(**options):
    return gymnasium.make("truing/GridWorld-v0", disable_env_checker=True, **options)


# -- control, by hand ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES)
def test_two_episodes_by_hand(rule):
    # One action, so the three rules are one. First episode: q0 = 0.5 (2 + 0.9 * 0) = 1, q1 = 0.5 * 3 = 1.5 (nothing follows the end).
    # Second: q0 = 1 + 0.5 (2 + 0.9 * 1.5 - 1) = 2.175, q1 = 1.5 + 0.5 (3 - 1.5) = 2.25.
    run = learn(chain(), rule=rule, episodes=2, alpha=0.5, discount=0.9)
    assert run.q[:2, 0] == pytest.approx([2.175, 2.25])
    assert run.returns.tolist() == [5.0, 5.0] and run.lengths.tolist() == [2, 2] and run.terminated.all()


def test_the_end_is_worth_nothing_even_with_an_optimistic_start():
    # alpha 1: q1 = 3 exactly. Bootstrapping from the end's own entry, 10, would give 3 + 0.9 * 10 = 12.
    assert learn(chain(), episodes=1, alpha=1.0, discount=0.9, initial_q=10.0).q[1, 0] == 3.0


@pytest.mark.parametrize("limit", ("wrapper", "argument"))
@pytest.mark.parametrize("rule", RULES)
def test_an_episode_cut_short_still_has_a_future(rule, limit):
    # One step from 0 to 0, then cut: q = 0.5 * 10 = 5. Taking the cut for an end would give 0.
    env = Tabular([[certain(0, 0.0)]], 0)
    env, steps = (TimeLimit(env, 1), 100) if limit == "wrapper" else (env, 1)
    run = learn(env, rule=rule, episodes=1, alpha=1.0, discount=0.5, initial_q=10.0, max_steps=steps)
    assert run.q[0, 0] == 5.0 and run.lengths[0] == 1 and not run.terminated[0]


def test_a_decaying_step_is_the_mean_of_the_targets():
    # decay 1 and alpha 1 make the estimate the sample mean; a coin pays 0 or 4, and one step ends.
    env = Tabular([[(Outcome(0.5, 1, 0.0), Outcome(0.5, 1, 4.0))], []], 0)
    run = learn(env, episodes=200, alpha=1.0, decay=1.0, discount=0.9)
    assert run.q[0, 0] == pytest.approx(run.returns.mean(), abs=1e-12)
    assert 0 < run.returns.mean() < 4


def test_what_the_rules_converge_to_under_a_random_policy():
    # Behaving at random, SARSA and expected SARSA learn the random policy's values, Q-learning the best policy's. All three exactly known.
    env = grid(rows=2, columns=3)
    mdp = env.unwrapped.mdp()
    random = action_values(mdp, policy_evaluation(mdp, np.full((6, 4), 0.25), 0.9), 0.9)
    best = action_values(mdp, value_iteration(mdp, 0.9), 0.9)
    assert np.abs(best - random).max() > 0.2  # so that the two cannot be mistaken for one another
    for rule, exact, near in (("q_learning", best, 0.01), ("expected_sarsa", random, 0.06), ("sarsa", random, 0.06)):
        q = learn(env, rule=rule, episodes=1500, alpha=1.0, decay=0.7, discount=0.9, epsilon=1.0, seed=1).q
        assert np.abs(q - exact)[~mdp.terminal].max() < near, rule


def test_expected_sarsa_without_exploration_is_q_learning():
    one, two = (learn(grid(), rule=rule, episodes=50, epsilon=0.0) for rule in ("q_learning", "expected_sarsa"))
    assert one.lengths.tolist() == two.lengths.tolist()
    assert one.q == pytest.approx(two.q, abs=1e-12)


@pytest.mark.parametrize("slip", [0.0, 0.2])
def test_q_learning_with_a_decaying_step_is_within_005_of_the_exact_values(slip):
    env = grid(slip=slip)
    mdp = env.unwrapped.mdp()
    exact = action_values(mdp, value_iteration(mdp, 0.99), 0.99)
    decaying, constant = ([], [])
    for seed in range(3):
        for errors, step in ((decaying, dict(alpha=1.0, decay=0.7)), (constant, dict(alpha=0.5))):
            q = learn(env, episodes=400, epsilon=1.0, seed=seed, **step).q
            errors.append(np.abs(q - exact)[~mdp.terminal].max())
    assert max(decaying) < 0.05
    if slip:  # a large constant step never settles where chance acts: the decay is what makes it exact
        assert min(constant) > 2 * max(decaying)


def test_the_same_seed_is_the_same_run():
    a, b, c = (learn(grid(slip=0.3), episodes=30, seed=seed) for seed in (4, 4, 5))
    assert (a.q == b.q).all() and a.lengths.tolist() == b.lengths.tolist()
    assert a.lengths.tolist() != c.lengths.tolist()


def test_500_episodes_take_less_than_half_a_second():
    times = []
    for seed in range(3):
        env = grid()
        start = perf_counter()
        learn(env, episodes=500, alpha=0.1, discount=0.99, epsilon=0.1, seed=seed)
        times.append(perf_counter() - start)
    assert min(times) < 0.5


# -- exploration --------------------------------------------------------------------------------------------------------


def test_a_hot_softmax_is_the_uniform_policy():
    hot, uniform = learn(grid(), episodes=40, temperature=1e9), learn(grid(), episodes=40, epsilon=1.0)
    assert hot.lengths.tolist() == uniform.lengths.tolist()
    assert uniform.lengths.mean() > 30  # the Markov chain's mean is 58


def test_softmax_explores_by_the_gaps_and_epsilon_greedy_does_not():
    # One state, two actions, always paying 0 and 1, so the values are exact with alpha 1 once both were tried. At tau = 1 the better one's
    # odds are e to 1, a share of 0.731; at epsilon 0.5 its share is 0.75. Ten times the reward: 10 to 1 in the exponent, but 0.75 as before.
    for scale, soft in ((1.0, np.e / (1 + np.e)), (10.0, np.exp(10) / (1 + np.exp(10)))):
        env = Tabular([[certain(1, 0.0), certain(1, scale)], []], 0)
        for how, share in ((dict(temperature=1.0), soft), (dict(epsilon=0.5), 0.75)):
            run = learn(env, episodes=4000, alpha=1.0, initial_q=2 * scale, **how)
            assert np.mean(run.returns[50:]) / scale == pytest.approx(share, abs=4 * np.sqrt(0.25 / 3950))


def test_draw_follows_the_probabilities():
    chances = np.array([0.2, 0.0, 0.5, 0.3])
    counts = np.bincount([draw(chances, u) for u in (np.arange(1000) + 0.5) / 1000], minlength=4)
    assert counts.tolist() == [200, 0, 500, 300]
    assert draw(np.array([1 / 3, 1 / 3, 1 / 3]), 1 - 2**-53) == 2  # the last action, never one past it


# -- the cliff ----------------------------------------------------------------------------------------------------------


def test_the_cliff_as_published():
    env = gymnasium.make("truing/Cliff-v0", disable_env_checker=True)
    online = {}
    for rule in RULES:
        runs = [learn(env, rule=rule, episodes=500, alpha=0.5, discount=1.0, epsilon=0.1, seed=seed) for seed in range(10)]
        online[rule] = np.array([run.returns[-100:].mean() for run in runs])
        if rule == "q_learning":
            for run in runs:  # up, eleven times right, down: 13 steps at -1
                assert follow(env, np.eye(4)[run.q.argmax(-1)], episodes=1, max_steps=100).returns.tolist() == [-13.0]
    gap = bootstrap(online["sarsa"] - online["q_learning"])
    assert gap.mean >= 15 and gap.low > 10
    for rule, published in (("q_learning", -49.9), ("sarsa", -25.5), ("expected_sarsa", -20.9)):
        found = bootstrap(online[rule], level=0.999)
        assert found.low < published < found.high, (rule, found)


# -- bad input ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options, words",
    [
        (dict(rule="qlearning"), "did you mean 'q_learning'"),
        (dict(alpha=0.0), "alpha=0.0"),
        (dict(alpha=float("nan")), "alpha=nan"),
        (dict(alpha=1.5), r"\(0, 1\]"),
        (dict(decay=-1.0), "decay=-1.0"),
        (dict(discount=1.01), "discount=1.01"),
        (dict(epsilon=-0.1), "epsilon=-0.1"),
        (dict(temperature=0.0), "temperature=0.0"),
        (dict(epsilon=0.1, temperature=1.0), "give one"),
        (dict(initial_q=float("inf")), "initial_q=inf"),
        (dict(episodes=0), "episodes=0"),
        (dict(max_steps=0), "max_steps=0"),
    ],
)
def test_options_that_cannot_be_meant(options, words):
    with pytest.raises(ConfigError, match=words):
        learn(chain(), **options)


def test_a_table_needs_counted_states():
    with pytest.raises(ConfigError, match="observation_space Discrete"):
        learn(gymnasium.make("CartPole-v1"))


@pytest.mark.parametrize("reward", [float("nan"), float("inf")])
def test_a_reward_that_is_no_number_stops_the_run(reward):
    with pytest.raises(NonFiniteError, match="episode 0, step 1: the reward is"):
        learn(loop(reward))
    with pytest.raises(NonFiniteError, match="episode 0"):
        follow(loop(reward), [[0.5, 0.5]] * 2, episodes=1)
    with pytest.raises(NonFiniteError, match="episode 0"):
        tabular_reinforce.learn(loop(reward), episodes=1)


# -- prediction ---------------------------------------------------------------------------------------------------------


def test_td_and_monte_carlo_by_hand():
    episodes = follow(chain(), np.ones((3, 1)), episodes=2)
    assert episodes.returns.tolist() == [5.0, 5.0] and episodes.lengths.tolist() == [2, 2]
    td = td_prediction(episodes, runs=1, alpha=0.5, initial=np.zeros(3), discount=0.9)[0]
    assert td[:, :2].tolist() == [[0.0, 0.0], [1.0, 1.5], [pytest.approx(2.175), 2.25]]  # as above
    # Returns are 2 + 0.9 * 3 = 4.7 and 3; half of the way, twice: 2.35, 3.525 and 1.5, 2.25.
    mc = monte_carlo_prediction(episodes, runs=1, alpha=0.5, initial=np.zeros(3), discount=0.9)[0]
    assert mc[:, 0] == pytest.approx([0, 2.35, 3.525]) and mc[:, 1] == pytest.approx([0, 1.5, 2.25])


def _slowly(episodes: Episodes, alpha: float, initial: list[float], whole: bool) -> list[float]:
    """One run in plain Python, step by step from the equations, to hold the vectorised learner against."""
    v = list(initial)
    for row in range(len(episodes.lengths)):
        n = int(episodes.lengths[row])
        track = [(int(episodes.states[row, t]), float(episodes.rewards[row, t]), int(episodes.next_states[row, t])) for t in range(n)]
        for t, (s, r, after) in enumerate(track):
            target = sum(x for _, x, _ in track[t:]) if whole else r + (0.0 if t == n - 1 else v[after])
            v[s] += alpha * (target - v[s])
    return v


@pytest.mark.parametrize("whole", [False, True])
def test_runs_side_by_side_are_runs_one_by_one(whole):
    walks = follow(gymnasium.make("truing/RandomWalk-v0", disable_env_checker=True), np.ones((7, 1)), episodes=60, seed=3)
    predict = monte_carlo_prediction if whole else td_prediction
    found = predict(walks, runs=3, alpha=0.1, initial=[0.5] * 7)
    assert found.shape == (3, 21, 7)
    for i in range(3):
        part = slice(20 * i, 20 * (i + 1))
        share = Episodes(walks.states[part], walks.rewards[part], walks.next_states[part], walks.lengths[part], walks.terminated[part])
        assert found[i, -1] == pytest.approx(_slowly(share, 0.1, [0.5] * 7, whole), abs=1e-12)


def test_the_random_walk_as_published():
    env = gymnasium.make("truing/RandomWalk-v0", disable_env_checker=True)
    truth = np.arange(1, 6) / 6
    walks = follow(env, np.ones((7, 1)), episodes=100 * 100, seed=0)
    assert walks.returns.mean() == pytest.approx(0.5, abs=4 * 0.5 / 100)  # from the middle, half leave to the right
    assert walks.lengths.mean() == pytest.approx(9, abs=4 * 7 / 100)  # 3 * 3 steps from the middle; their standard deviation is below 7

    def rms(predict, alpha):
        values = predict(walks, runs=100, alpha=alpha, initial=[0.5] * 7)
        return np.sqrt(((values[..., 1:-1] - truth) ** 2).mean(-1)).mean(0)

    td, mc = rms(td_prediction, 0.1), [rms(monte_carlo_prediction, a) for a in (0.01, 0.02, 0.03, 0.04)]
    assert td[0] == pytest.approx(np.sqrt((4 + 1 + 0 + 1 + 4) / 36 / 5))  # 0.2357: distances from 1/2 in sixths
    # Figure 6.2, read to 0.005, which is also about three standard errors of 100 runs.
    assert td.min() == pytest.approx(0.046, abs=0.005) and td[100] == pytest.approx(0.056, abs=0.006)
    assert [m[100] for m in mc] == pytest.approx([0.097, 0.083, 0.089, 0.110], abs=0.009)
    assert td.min() < min(m.min() for m in mc) - 0.02


def test_a_walk_cut_short_has_no_return_but_a_future():
    cut = follow(loop(1.0), [[1.0, 0.0], [1.0, 0.0]], episodes=1, max_steps=3)
    assert cut.lengths.tolist() == [3] and not cut.terminated[0] and cut.follow_on(0.5).tolist() == [[0.5, 0.5, 0.5]]
    with pytest.raises(ConfigError, match="1 episode"):
        monte_carlo_prediction(cut, runs=1, alpha=0.5, initial=[0.0, 0.0])
    # alpha 1, discount 1/2, each step pays 1: V = 1 + V / 2, three times from 0: 1, 1.5, 1.75. Ending at the cut would leave 1.
    assert td_prediction(cut, runs=1, alpha=1.0, initial=[0.0, 0.0], discount=0.5)[0, -1, 0] == 1.75


@pytest.mark.parametrize(
    "policy, words", [([[1.0]], "must agree"), ([[1.5, -0.5]] * 2, "sum to 1"), ([[0.5, 0.4]] * 2, "sum to 1"), ([[float("nan"), 1.0]] * 2, "sum to 1")]
)
def test_a_policy_must_hold_probabilities(policy, words):
    with pytest.raises(ConfigError, match=words):
        follow(loop(), policy, episodes=1)


def test_shares_and_steps_of_prediction_are_checked():
    episodes = follow(chain(), np.ones((3, 1)), episodes=3)
    with pytest.raises(ConfigError, match="runs=2: 3 episodes"):
        td_prediction(episodes, runs=2, alpha=0.1, initial=[0.0] * 3)
    with pytest.raises(ConfigError, match="alpha=0"):
        td_prediction(episodes, runs=1, alpha=0, initial=[0.0] * 3)
    with pytest.raises(ConfigError, match="episodes=0"):
        follow(chain(), np.ones((3, 1)), episodes=0)


# -- REINFORCE on a table -----------------------------------------------------------------------------------------------


def test_one_step_of_reinforce_is_the_closed_gradient():
    # From preferences 0 the gradient of log pi(a) is [b = a] - 1/3. The reward of the chosen action scales it; alpha is 0.3.
    rewards = [1.0, 2.0, -4.0]
    env = Tabular([[certain(1, r) for r in rewards], []], 0)
    run = tabular_reinforce.learn(env, episodes=1, alpha=0.3, discount=0.5, seed=2)
    action = rewards.index(run.returns[0])
    assert run.q[0] == pytest.approx(0.3 * rewards[action] * (np.eye(3)[action] - 1 / 3))
    assert (run.q[1] == 0).all()


def test_reinforce_discounts_what_follows():
    # Two states, two actions that do the same: G0 = 2 + 0.5 * 4 = 4 and G1 = 4; with the mean baseline the second episode, whose returns are the
    # first one's, moves state 0 by nothing: b = 4.
    env = Tabular([[certain(1, 2.0)] * 2, [certain(2, 4.0)] * 2, []], 0)
    once = tabular_reinforce.learn(env, episodes=1, alpha=1.0, discount=0.5, seed=0).q
    assert np.abs(once[:2]) == pytest.approx(np.full((2, 2), 2.0))  # 4 * (1 - 1/2)
    twice = tabular_reinforce.learn(env, episodes=2, alpha=1.0, discount=0.5, seed=0, baseline=True).q
    assert twice == pytest.approx(once)
    assert not np.allclose(tabular_reinforce.learn(env, episodes=2, alpha=1.0, discount=0.5, seed=0).q, once)


def test_reinforce_finds_the_shortest_way():
    for seed in range(3):
        run = tabular_reinforce.learn(grid(), episodes=400, alpha=1.0, baseline=True, seed=seed)
        assert run.lengths[-50:].mean() < 7 and run.lengths[:20].mean() > 12


@pytest.mark.parametrize(
    "options, words",
    [(dict(alpha=0.0), "alpha=0.0"), (dict(alpha=float("inf")), "alpha=inf"), (dict(discount=2.0), "discount=2.0"), (dict(episodes=0), "episodes=0")],
)
def test_reinforce_refuses_what_cannot_be_meant(options, words):
    with pytest.raises(ConfigError, match=words):
        tabular_reinforce.learn(chain(), **options)


def test_learning_leaves_the_global_generators_alone():
    torch.manual_seed(0)
    np_before, torch_before = np.random.get_state()[1].copy(), torch.get_rng_state()
    q_learning.learn(grid(slip=0.2), episodes=5)
    tabular_reinforce.learn(grid(slip=0.2), episodes=5)
    assert (np.random.get_state()[1] == np_before).all() and torch.equal(torch.get_rng_state(), torch_before)
