"""The tabular environments against rules written a second time, against closed forms, and against the values printed in the textbook."""

from __future__ import annotations

import doctest
import importlib
import math

import gymnasium
import numpy as np
import pytest
from gymnasium.error import ResetNeeded

from truing.envs.bandit import Bandit, PickTwo
from truing.envs.chains import CORRIDOR_BEST_RIGHT, CORRIDOR_BEST_VALUE, Cliff, Corridor, RandomWalk, corridor_value
from truing.envs.gridworld import GridWorld
from truing.envs.table import Outcome, to_mdp
from truing.envs.textbook import five_by_five, four_by_four
from truing.errors import ConfigError
from truing.maths.planning import action_values, check, greedy, policy_evaluation, policy_iteration, value_iteration

UP, RIGHT, DOWN, LEFT = range(4)


def uniform(mdp):
    return np.full(mdp.rewards.shape, 1 / mdp.rewards.shape[1])


@pytest.mark.parametrize("module", ["__init__", "bandit", "chains", "gridworld", "table", "textbook", "vector"])
def test_docstrings_hold(module):
    assert doctest.testmod(importlib.import_module("truing.envs" if module == "__init__" else f"truing.envs.{module}")).failed == 0


def every_step(env):
    """(state, action, next state, reward, terminated) of each action from each state where an episode can be, taken once."""
    mdp = env.mdp()
    for s in np.flatnonzero(~mdp.terminal):
        for a in range(mdp.rewards.shape[1]):
            env.reset(seed=0, options={"state": int(s)})
            _, reward, terminated, truncated, _ = env.step(a)
            assert not truncated
            yield int(s), a, env.state, reward, terminated


# The simulator is its own equations ------------------------------------------------------------------------------------
CERTAIN = [
    GridWorld(), GridWorld(3, 5, start=(2, 0), goal=(0, 4), walls=[(1, 1), (0, 2)], step_reward=-0.1, goal_reward=3), Cliff(), Corridor(), PickTwo(), PickTwo(7),
]  # fmt: skip


@pytest.mark.parametrize("env", CERTAIN, ids=lambda e: type(e).__name__)
def test_a_step_is_what_the_decision_process_says(env):
    mdp = check(env.mdp())
    count = 0
    for s, a, there, reward, terminated in every_step(env):
        assert mdp.transitions[s, a, there] == 1 and mdp.transitions[s, a].sum() == 1
        assert mdp.rewards[s, a] == reward
        assert mdp.terminal[there] == terminated
        count += 1
    assert count == (~mdp.terminal).sum() * mdp.rewards.shape[1]


RANDOM = [GridWorld(3, 3, walls=[(1, 1)], slip=0.3), GridWorld(2, 2, slip=1.0), RandomWalk(), RandomWalk(19, left_reward=-1)]


@pytest.mark.parametrize("env", RANDOM, ids=lambda e: type(e).__name__)
def test_random_steps_follow_the_decision_process(env):
    mdp, n = check(env.mdp()), 4000
    env.reset(seed=1)
    for s in np.flatnonzero(~mdp.terminal)[:4]:
        for a in range(mdp.rewards.shape[1]):
            seen, total = np.zeros(len(mdp.terminal)), 0.0
            for _ in range(n):
                env.reset(options={"state": int(s)})
                total += env.step(a)[1]
                seen[env.state] += 1
            p = mdp.transitions[s, a]
            # 5 standard errors of a share: among the ~100 shares of this test none should miss (chance 6e-5).
            assert (abs(seen / n - p) <= 5 * np.sqrt(p * (1 - p) / n)).all()
            assert abs(total / n - mdp.rewards[s, a]) <= 5 * 2 / math.sqrt(n)  # rewards lie within 2 of each other


def test_a_table_sums_what_leads_to_the_same_state():
    mdp = to_mdp([[(Outcome(0.25, 1, 4.0), Outcome(0.75, 1, 0.0))], []])
    assert mdp.transitions[0].tolist() == [[0, 1]] and mdp.rewards[0].tolist() == [0.25 * 4]


# GridWorld -------------------------------------------------------------------------------------------------------------
def test_gridworld_moves_as_its_rules_say():
    walls = {(1, 1), (0, 2)}
    env = GridWorld(3, 5, start=(2, 0), goal=(0, 4), walls=list(walls), step_reward=-0.1, goal_reward=3)
    moves = {UP: (-1, 0), RIGHT: (0, 1), DOWN: (1, 0), LEFT: (0, -1)}
    for s, a, there, reward, terminated in every_step(env):
        row, column = s // 5, s % 5
        to = (row + moves[a][0], column + moves[a][1])
        to = to if 0 <= to[0] < 3 and 0 <= to[1] < 5 and to not in walls else (row, column)
        assert (there // 5, there % 5) == to
        assert (reward, terminated) == ((3, True) if to == (0, 4) else (-0.1, False))


def test_slip_takes_the_chosen_direction_with_probability_one_minus_three_quarters_of_slip():
    # From the middle of 3 x 3, slip .2, right: .8 + .05 to the right, .05 to each other side.
    p = GridWorld(3, 3, slip=0.2).mdp().transitions[4, RIGHT]
    np.testing.assert_allclose(p[[1, 5, 7, 3]], [0.05, 0.85, 0.05, 0.05])
    # In the top left corner, up: the edge is met by up (.85) and by left (.05), and both stay.
    np.testing.assert_allclose(GridWorld(3, 3, slip=0.2).mdp().transitions[0, UP][[0, 1, 3]], [0.9, 0.05, 0.05])
    # The expected reward counts the chance of the goal: from (2, 1) of 3 x 3, right enters it with .85, so .85 * 1 + .15 * -.01.
    assert GridWorld(3, 3, slip=0.2).mdp().rewards[7, RIGHT] == pytest.approx(0.85 - 0.0015)


def test_the_goal_pays_instead_of_the_step_not_on_top_of_it():
    env = GridWorld()
    env.reset()
    rewards = [env.step(a)[1] for a in (RIGHT, RIGHT, RIGHT, DOWN, DOWN, DOWN)]
    assert sum(rewards) == pytest.approx(5 * -0.01 + 1)  # .95; paid on top it would be .94
    assert policy_iteration(env.mdp(), 1.0)[env.start] == pytest.approx(0.95)
    # Discounted by .99: the goal five steps off, minus the geometric sum of the five costs.
    assert value_iteration(env.mdp(), 0.99)[env.start] == pytest.approx(0.99**5 - 0.01 * (1 - 0.99**5) / 0.01, abs=1e-7)


def test_monte_carlo_returns_agree_with_the_exact_value():
    env, discount = GridWorld(3, 3, walls=[(1, 1)], slip=0.2, step_reward=-0.1), 0.9
    rng = np.random.default_rng(0)
    exact = policy_evaluation(env.mdp(), uniform(env.mdp()), discount)[env.start]
    returns = []
    env.reset(seed=3)
    for _ in range(3000):
        env.reset()
        total, weight, over = 0.0, 1.0, False
        while not over:
            _, reward, over, _, _ = env.step(int(rng.integers(4)))
            total, weight = total + weight * reward, weight * discount
        returns.append(total)
    error = np.std(returns) / math.sqrt(len(returns))
    assert abs(np.mean(returns) - exact) < 4 * error
    other = GridWorld(3, 3, slip=0.2, step_reward=-0.1)  # forgetting the wall must be seen
    assert abs(np.mean(returns) - policy_evaluation(other.mdp(), uniform(other.mdp()), discount)[0]) > 4 * error


def test_walls_make_a_detour_and_cut_off_cells_are_out_of_the_game():
    # The grid is S # G over . . . : right is blocked, so the way is down, right, right, up.
    env = GridWorld(2, 3, goal=(0, 2), walls=[(0, 1)])
    assert policy_iteration(env.mdp(), 1.0)[0] == pytest.approx(3 * -0.01 + 1)
    # S # .    (0, 2) is closed in by two walls. If it counted as a place to be, no policy would end there and discount 1 would have no values.
    # . . #
    # . . G
    closed = GridWorld(3, 3, walls=[(0, 1), (1, 2)])
    assert np.flatnonzero(closed.mdp().terminal).tolist() == [1, 2, 5, 8]
    # Expected steps h of the uniform walk: each cell's differences to its neighbours sum to 4. h(7) = 4 * 5, then up the two equal ways of
    # the square +8 and +4, then to the start +4: 36 steps, of which the last pays 1.
    assert policy_evaluation(closed.mdp(), uniform(closed.mdp()), 1.0)[0] == pytest.approx(1 - 0.01 * 35)
    with pytest.raises(ConfigError, match=r"state': 2.*no episode can start there; states with actions: 0, 3, 4, 6, 7"):
        closed.reset(options={"state": 2})


def test_gridworld_draws_itself():
    env = GridWorld(2, 3, walls=[(0, 1)], render_mode="ansi")
    env.reset()
    assert env.render() == "@ # .\n. . G\n"
    env.step(DOWN)
    assert env.render() == "S # .\n@ . G\n"
    assert GridWorld().render() is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rows": 0}, "rows=0: use a whole number of 1 or more"),
        ({"columns": 2.5}, "columns=2.5: use a whole number"),
        ({"rows": 1, "columns": 1}, "start and goal need 2 cells"),
        ({"start": (4, 0)}, r"start=\(4, 0\): use a \(row, column\) with row 0 to 3"),
        ({"start": (-1, 0)}, r"start=\(-1, 0\)"),
        ({"goal": (0, 9)}, r"goal=\(0, 9\)"),
        ({"goal": 5}, "goal=5: use a"),
        ({"goal": "33"}, "goal='33': use a"),
        ({"goal": (0, 0)}, "is the goal; the episode would be over"),
        ({"walls": [(0, 0)]}, r"start=\(0, 0\) is a wall"),
        ({"walls": [(3, 3)]}, r"goal=\(3, 3\) is a wall"),
        ({"walls": [(7, 7)]}, r"walls=\(7, 7\)"),
        ({"walls": [(0, 1), (1, 0)]}, r"goal=\(3, 3\) cannot be reached from start=\(0, 0\); open a wall: walls=\[\(0, 1\), \(1, 0\)\]"),
        ({"slip": 1.01}, "slip=1.01: it is a probability"),
        ({"slip": -0.1}, "slip=-0.1"),
        ({"slip": float("nan")}, "slip=nan: use a finite number"),
        ({"step_reward": float("nan")}, "step_reward=nan: use a finite number"),
        ({"goal_reward": float("inf")}, "goal_reward=inf"),
        ({"render_mode": "human"}, "render_mode='human'.*use 'ansi'"),
    ],
)
def test_gridworld_refuses(options, message):
    with pytest.raises(ConfigError, match=message):
        GridWorld(**options)


def test_gridworld_accepts_what_yaml_writes():
    env = GridWorld(start=[0, 1], goal=[3, 0], walls=[[1, 1], [1, 1]])
    assert env.start == 1 and env.walls == {(1, 1)}


@pytest.mark.parametrize("make", [GridWorld, Bandit])
def test_steps_out_of_turn_are_refused(make):
    env = make()
    with pytest.raises(ResetNeeded, match="reset"):
        env.step(0)
    env.reset(seed=0)
    for action in (-1, 4 if make is GridWorld else 10, 1.0, "up"):
        with pytest.raises(ValueError, match=f"{action!r} does not exist"):
            env.step(action)
    over = False
    while not over:  # to the bottom right corner, or the one pull
        _, _, over, _, _ = env.step(env.np_random.integers(1, 3))
    with pytest.raises(ResetNeeded, match=r"reset\(\) before the next"):
        env.step(0)


# Chains ----------------------------------------------------------------------------------------------------------------
def test_cliff_moves_as_the_example_says():
    env = Cliff()
    moves = {UP: (-1, 0), RIGHT: (0, 1), DOWN: (1, 0), LEFT: (0, -1)}
    for s, a, there, reward, terminated in every_step(env):
        row, column = min(3, max(0, s // 12 + moves[a][0])), min(11, max(0, s % 12 + moves[a][1]))
        if row == 3 and 1 <= column <= 10:
            assert (there, reward, terminated) == (36, -100, False)
        else:
            assert (there, reward, terminated) == (row * 12 + column, -1, (row, column) == (3, 11))


def test_cliff_has_two_ways():
    env = Cliff(render_mode="ansi")
    for way, total in (([UP] + [RIGHT] * 11 + [DOWN], -13), ([UP] * 3 + [RIGHT] * 11 + [DOWN] * 3, -17)):
        env.reset()
        steps = [env.step(a) for a in way]
        assert sum(s[1] for s in steps) == total and [s[2] for s in steps] == [False] * (len(way) - 1) + [True]
    assert policy_iteration(env.mdp(), 1.0)[36] == pytest.approx(-13)
    env.reset()
    assert env.render() == ". . . . . . . . . . . .\n" * 3 + "@ x x x x x x x x x x G\n"


@pytest.mark.parametrize(("n", "left"), [(5, 0.0), (1, 0.0), (19, -1.0)])
def test_random_walk_values(n, left):
    env = RandomWalk(n, left_reward=left)
    exact = policy_evaluation(env.mdp(), np.ones((n + 2, 1)), 1.0)
    # Example 6.2: 1/6 to 5/6. Example 7.1: -.9, -.8, ..., .9.
    by_hand = [0.0, *(left + (1 - left) * i / (n + 1) for i in range(1, n + 1)), 0.0]
    np.testing.assert_allclose(exact, by_hand, atol=1e-12)
    np.testing.assert_allclose(env.values(), by_hand, atol=1e-12)
    assert env.start == (n + 1) // 2 and env.action_space.n == 1


def test_random_walk_refuses():
    with pytest.raises(ConfigError, match="n=4: a walk that starts in the middle needs an odd number of states; use 5"):
        RandomWalk(4)
    with pytest.raises(ConfigError, match="right_reward=nan"):
        RandomWalk(right_reward=float("nan"))


def test_corridor_reverses_in_the_second_state_and_hides_it():
    env = Corridor(render_mode="ansi")
    after = {(s, a): there for s, a, there, _, _ in every_step(env)}
    assert after == {(0, 0): 0, (0, 1): 1, (1, 0): 2, (1, 1): 0, (2, 0): 1, (2, 1): 3}
    env.reset()
    assert [env.step(a)[:3] for a in (1, 0, 1)] == [(0, -1, False), (0, -1, False), (0, -1, True)]
    assert env.state == 3 and env.render() == ". ? . @\n"
    assert policy_iteration(env.mdp(), 1.0).tolist() == [-3, -2, -1, 0]  # with the state in sight


@pytest.mark.parametrize("p", [0.05, 0.3, 0.5, CORRIDOR_BEST_RIGHT, 0.95])
def test_corridor_value_is_that_of_its_decision_process(p):
    assert policy_evaluation(Corridor().mdp(), [[1 - p, p]] * 4, 1.0)[0] == pytest.approx(corridor_value(p), rel=1e-12)


def test_corridor_optimum():
    p = np.linspace(0.001, 0.999, 9981)
    v = np.array([corridor_value(x) for x in p])
    assert abs(p[v.argmax()] - CORRIDOR_BEST_RIGHT) <= 1e-4 and CORRIDOR_BEST_RIGHT == pytest.approx(0.5858, abs=5e-5)
    assert CORRIDOR_BEST_VALUE == pytest.approx(v.max(), abs=1e-5) and CORRIDOR_BEST_VALUE == pytest.approx(-11.657, abs=5e-4)
    assert corridor_value(CORRIDOR_BEST_RIGHT) == pytest.approx(CORRIDOR_BEST_VALUE)
    assert corridor_value(0) == corridor_value(1) == -math.inf
    with pytest.raises(ValueError, match="right=1.5 is a probability"):
        corridor_value(1.5)


def test_corridor_by_monte_carlo():
    env, rng = Corridor(), np.random.default_rng(0)
    lengths = []
    for _ in range(2000):
        env.reset()
        steps, over = 0, False
        while not over:
            over, steps = env.step(int(rng.random() < 0.5))[2], steps + 1
        lengths.append(-steps)
    assert abs(np.mean(lengths) + 12) < 4 * np.std(lengths) / math.sqrt(2000)  # corridor_value(.5) = -12


# Bandits ---------------------------------------------------------------------------------------------------------------
def test_bandit_means_belong_to_the_problem_and_luck_to_the_seed():
    env, other, same = Bandit(problem=5, noise=0.1), Bandit(problem=6), Bandit(problem=5, noise=0.1)
    assert (env.means == same.means).all() and (env.means != other.means).all()
    env.reset(seed=0), same.reset(seed=1)
    assert (env.means == same.means).all() and env.step(0)[1] != same.step(0)[1]  # other luck on one bandit
    assert env.best == env.means.argmax() and env.mdp().rewards[0].tolist() == env.means.tolist()


def test_bandits_side_by_side_are_one_bandit():
    from truing.envs.vector import make

    steps = make("truing.envs:truing/Bandit-v0", 4, noise=0)
    steps.reset()
    assert len(set(steps.step([3, 3, 3, 3]).reward.tolist())) == 1


def test_bandit_draws_the_testbed():
    means = np.array([Bandit(problem=n).means for n in range(2000)])
    # E[max of 10 standard normals] = 1.5388, its standard deviation .587; 4 standard errors are .052
    assert abs(means.max(1).mean() - 1.5388) < 0.052
    assert abs(means.mean()) < 4 / math.sqrt(20_000) and abs(means.std() - 1) < 4 / math.sqrt(2 * 20_000)
    shifted = np.array([Bandit(problem=n, centre=4.0, spread=0.5).means for n in range(200)])
    assert abs(shifted.mean() - 4) < 4 * 0.5 / math.sqrt(2000) and abs(shifted.std() - 0.5) < 4 * 0.5 / math.sqrt(4000)


def test_bandit_pays_its_mean_and_noise():
    env = Bandit(means=[1.0, -2.0], noise=0.5)
    env.reset(seed=0)
    rewards = []
    for _ in range(4000):
        observation, reward, terminated, truncated, _ = env.step(1)
        assert (observation, terminated, truncated) == (0, True, False)
        rewards.append(reward)
        env.reset()
    assert abs(np.mean(rewards) + 2) < 4 * 0.5 / math.sqrt(4000) and abs(np.std(rewards) - 0.5) < 4 * 0.5 / math.sqrt(8000)
    sure = Bandit(means=[1.0, -2.0], noise=0)
    sure.reset(seed=9)
    assert sure.step(1)[1] == -2 and sure.means.tolist() == [1, -2] and sure.best == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"arms": 0}, "arms=0"),
        ({"means": []}, "one arm or more"),
        ({"means": [0.0, float("nan")]}, r"means\[1\]=nan"),
        ({"noise": -1}, "noise=-1.0: it is a standard deviation"),
        ({"spread": -1}, "spread=-1.0"),
        ({"problem": -1}, "problem=-1"),
        ({"render_mode": "ansi"}, "nothing to draw"),
    ],
)
def test_bandit_refuses(options, message):
    with pytest.raises(ConfigError, match=message):
        Bandit(**options)


def test_pick_two():
    env = PickTwo()
    paid = []
    for action in range(4):
        env.reset()
        _, reward, terminated, _, _ = env.step(action)
        assert terminated
        paid.append(reward)
    assert paid == [0, 0, 1, 0]
    assert policy_evaluation(env.mdp(), uniform(env.mdp()), 1.0)[0] == 0.25
    with pytest.raises(ConfigError, match="actions=2: use a whole number of 3 or more"):
        PickTwo(2)


# The textbook's printed tables -----------------------------------------------------------------------------------------
EXAMPLE_3_5 = [[3.3, 8.8, 4.4, 5.3, 1.5], [1.5, 3.0, 2.3, 1.9, 0.5], [0.1, 0.7, 0.7, 0.4, -0.4], [-1.0, -0.4, -0.4, -0.6, -1.2], [-1.9, -1.3, -1.2, -1.4, -2.0]]
EXAMPLE_3_8 = [[22.0, 24.4, 22.0, 19.4, 17.5], [19.8, 22.0, 19.8, 17.8, 16.0], [17.8, 19.8, 17.8, 16.0, 14.4], [16.0, 17.8, 16.0, 14.4, 13.0], [14.4, 16.0, 14.4, 13.0, 11.7]]
FIGURE_4_1 = [[0, -14, -20, -22], [-14, -18, -20, -20], [-20, -20, -18, -14], [-22, -20, -14, 0]]


def test_five_by_five_prints_the_textbooks_tables():
    mdp = check(five_by_five())
    assert not mdp.terminal.any()
    np.testing.assert_allclose(policy_evaluation(mdp, uniform(mdp), 0.9).reshape(5, 5), EXAMPLE_3_5, atol=0.05 + 1e-9)
    best = value_iteration(mdp, 0.9, tolerance=1e-9)
    np.testing.assert_allclose(best.reshape(5, 5), EXAMPLE_3_8, atol=0.05 + 1e-9)
    assert best[1] == pytest.approx(10 / (1 - 0.9**5))  # the jump and four steps back, for ever
    np.testing.assert_allclose(policy_iteration(mdp, 0.9), best, atol=1e-8)
    np.testing.assert_allclose(policy_evaluation(mdp, greedy(action_values(mdp, best, 0.9)), 0.9), best, atol=1e-8)


def test_four_by_four_prints_the_textbooks_figure():
    mdp = check(four_by_four())
    np.testing.assert_allclose(policy_evaluation(mdp, uniform(mdp), 1.0).reshape(4, 4), FIGURE_4_1, atol=1e-9)
    # The optimum is minus the steps to the nearer corner.
    steps = [-min(r + c, 6 - r - c) for r in range(4) for c in range(4)]
    assert policy_iteration(mdp, 1.0).tolist() == steps


def test_ends_of_the_registered_tasks():
    env = gymnasium.make("truing.envs:truing/GridWorld-v0")
    env.reset()
    flags = [env.step(LEFT)[2:4] for _ in range(200)]  # against the edge until the time limit
    assert flags == [(False, False)] * 199 + [(False, True)]
