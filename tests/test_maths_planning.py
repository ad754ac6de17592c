"""Exact planning: the book's tables, closed forms, three roads to one answer, and the error bound of value iteration."""

from __future__ import annotations

import doctest
import math
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from truing.maths import planning
from truing.maths.planning import Mdp, action_values, check, greedy, policy_evaluation, policy_iteration, value_iteration

EPS = 2.0**-52
ONE_LOOP = Mdp(np.ones((1, 1, 1)), np.ones((1, 1)), np.array([False]))  # reward 1 for ever: V = 1 / (1 - discount)


def grid(size: int, step: float, terminal: tuple[int, ...], jumps: dict[int, tuple[int, float]], edge: float) -> Mdp:
    """A square grid, actions up, right, down, left; a step over the edge stays and pays ``edge``."""
    transitions, rewards = np.zeros((size * size, 4, size * size)), np.full((size * size, 4), step)
    for s in range(size * size):
        for a, (down, right) in enumerate([(-1, 0), (0, 1), (1, 0), (0, -1)]):
            row, column = s // size + down, s % size + right
            to = row * size + column
            if not (0 <= row < size and 0 <= column < size):
                to, rewards[s, a] = s, edge
            if s in jumps:
                to, rewards[s, a] = jumps[s]
            transitions[s, a, to] = 1
    return Mdp(transitions, rewards, np.isin(np.arange(size * size), terminal))


def random_mdp(seed: int, states: int = 7, actions: int = 3) -> Mdp:
    """Some states terminal, each other row with a way to state 0, which is terminal."""
    rng = np.random.default_rng(seed)
    transitions = rng.dirichlet(np.full(states, 0.3), (states, actions))
    transitions = 0.9 * transitions + 0.1 * np.eye(states)[0]
    return Mdp(transitions, rng.normal(size=(states, actions)), np.arange(states) % 4 == 0)


UNIFORM = np.full((25, 4), 0.25)
FIVE = grid(5, 0.0, (), {1: (21, 10.0), 3: (13, 5.0)}, -1.0)  # Sutton and Barto, examples 3.5 and 3.8
FOUR = grid(4, -1.0, (0, 15), {}, -1.0)  # example 4.1


def test_docstrings_hold() -> None:
    found = doctest.testmod(planning)
    assert found.failed == 0 and found.attempted >= 10


# -- the book's tables -----------------------------------------------------------------------------------------------------
def test_the_random_policy_on_the_5_by_5_grid() -> None:
    book = [[3.3, 8.8, 4.4, 5.3, 1.5], [1.5, 3.0, 2.3, 1.9, 0.5], [0.1, 0.7, 0.7, 0.4, -0.4], [-1.0, -0.4, -0.4, -0.6, -1.2], [-1.9, -1.3, -1.2, -1.4, -2.0]]
    assert policy_evaluation(FIVE, UNIFORM, 0.9).reshape(5, 5).round(1) == pytest.approx(np.array(book))


def test_the_optimal_values_of_the_5_by_5_grid() -> None:
    book = [
        [22.0, 24.4, 22.0, 19.4, 17.5],
        [19.8, 22.0, 19.8, 17.8, 16.0],
        [17.8, 19.8, 17.8, 16.0, 14.4],
        [16.0, 17.8, 16.0, 14.4, 13.0],
        [14.4, 16.0, 14.4, 13.0, 11.7],
    ]
    values = value_iteration(FIVE, 0.9)
    assert values.reshape(5, 5).round(1) == pytest.approx(np.array(book))
    assert values[1] == pytest.approx(10 / (1 - 0.9**5))  # A: 10 every fifth step
    best = greedy(action_values(FIVE, values, 0.9)) > 0
    assert best[0].tolist() == [False, True, False, False]  # the book's arrows: right of A's left neighbour,
    assert best[1].all() and best[3].all()  # any in A and B,
    assert best[12].tolist() == [True, False, False, True]  # up or left in the middle


def test_the_random_policy_on_the_4_by_4_grid() -> None:
    book = [[0, -14, -20, -22], [-14, -18, -20, -20], [-20, -20, -18, -14], [-22, -20, -14, 0]]
    assert policy_evaluation(FOUR, UNIFORM[:16], 1.0).reshape(4, 4) == pytest.approx(np.array(book))
    steps = [[0, -1, -2, -3], [-1, -2, -3, -2], [-2, -3, -2, -1], [-3, -2, -1, 0]]  # to the nearer corner
    assert policy_iteration(FOUR, 1.0).reshape(4, 4) == pytest.approx(np.array(steps))


# -- three roads, one answer -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("discount", [0.0, 0.3, 0.9, 0.99])
@pytest.mark.parametrize("seed", range(4))
def test_value_iteration_policy_iteration_and_the_linear_solve_agree(seed: int, discount: float) -> None:
    mdp = random_mdp(seed)
    values = value_iteration(mdp, discount, 1e-9)
    assert policy_iteration(mdp, discount) == pytest.approx(values, abs=1e-8)
    policy = greedy(action_values(mdp, values, discount))
    assert policy_evaluation(mdp, policy, discount) == pytest.approx(values, abs=1e-8)
    assert action_values(mdp, values, discount).max(-1) == pytest.approx(values, abs=2e-9)  # Bellman's equation
    assert (values[mdp.terminal] == 0).all()


@pytest.mark.parametrize("seed", range(4))
def test_policy_evaluation_equals_a_sum_over_time(seed: int) -> None:
    mdp, discount = random_mdp(seed), 0.8
    policy = np.random.default_rng(seed).dirichlet(np.ones(3), 7)
    alive = (~mdp.terminal).astype(float)
    step = alive[:, None] * (policy[:, :, None] * mdp.transitions).sum(1)
    rewards, occupancy, total = alive * (policy * mdp.rewards).sum(1), np.eye(7), np.zeros(7)
    for _ in range(200):  # 0.8^200 = 4e-20
        total += occupancy @ rewards
        occupancy = discount * occupancy @ step
    assert policy_evaluation(mdp, policy, discount) == pytest.approx(total, abs=1e-12)


@given(st.integers(0, 10_000), st.floats(0, 0.95))
def test_no_policy_beats_the_optimal_values(seed: int, discount: float) -> None:
    mdp = random_mdp(seed, 5, 2)
    best = policy_iteration(mdp, discount)
    policy = np.random.default_rng(seed).dirichlet(np.ones(2), 5)
    assert (policy_evaluation(mdp, policy, discount) <= best + 1e-9).all()


def test_policy_iteration_goes_on_until_nothing_improves() -> None:
    # A chain of n states; action 0 stays (reward 0), action 1 goes on; the last step pays 1. Value 0.5^(n - 1 - s).
    n = 8
    transitions, rewards = np.zeros((n + 1, 2, n + 1)), np.zeros((n + 1, 2))
    for s in range(n):
        transitions[s, 0, s] = transitions[s, 1, s + 1] = 1
    rewards[n - 1, 1], rewards[:3, 0] = 1.0, 0.001  # a small reward for staying tempts at first
    mdp = Mdp(transitions, rewards, np.arange(n + 1) == n)
    assert policy_iteration(mdp, 0.5)[:n] == pytest.approx([0.5 ** (n - 1 - s) for s in range(n)])


# -- pieces ----------------------------------------------------------------------------------------------------------------
def test_nothing_follows_a_terminal_state_whatever_its_rows_say() -> None:
    rows = np.array([[[0.0, 1.0]], [[math.nan, 7.0]]])
    mdp = Mdp(rows, np.array([[2.0], [math.nan]]), np.array([False, True]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert action_values(mdp, [0.0, 50.0], 1.0).tolist() == [[2.0], [0.0]]
        assert policy_evaluation(mdp, [[1.0], [math.nan]], 1.0).tolist() == [2.0, 0.0]
        assert value_iteration(mdp, 0.5).tolist() == policy_iteration(mdp, 1.0).tolist() == [2.0, 0.0]


def test_a_process_of_terminal_states_is_worth_nothing() -> None:
    mdp = Mdp(np.zeros((2, 3, 2)), np.zeros((2, 3)), np.array([True, True]))
    assert value_iteration(mdp, 0.9).tolist() == policy_iteration(mdp, 1.0).tolist() == [0.0, 0.0]


def test_greedy_shares_ties_within_the_tolerance() -> None:
    assert greedy([[[1.0, 3.0, 3.0]], [[2.0, 1.0, 0.0]]]).tolist() == [[[0.0, 0.5, 0.5]], [[1.0, 0.0, 0.0]]]
    assert greedy([1.0, 1.0 - 1.5e-9]).tolist() == [1.0, 0.0]  # the default is 1e-9
    assert greedy([1.0, 1.0 - 0.5e-9]).tolist() == [0.5, 0.5]
    assert greedy([1.0, 0.75], 0.25).tolist() == [0.5, 0.5]
    assert greedy([1.0, 1.0 - 2**-50], 0).tolist() == [1.0, 0.0]
    with pytest.raises(ValueError, match="no NaN"):
        greedy([0.0, math.nan])
    with pytest.raises(ValueError, match="tolerance=-1 be 0 or more"):
        greedy([0.0, 1.0], -1)


# -- the error bound -------------------------------------------------------------------------------------------------------
def test_value_iteration_stops_when_the_bound_and_not_when_the_change_is_small() -> None:
    # After k sweeps V = 100 (1 - 0.99^k): the error 100 * 0.99^k is below 0.1 first at k = 688 (ln 0.001 / ln 0.99 = 687.3).
    # A stop when the *change* 0.99^(k - 1) is below 0.1 comes at k = 231 with an error of 9.8.
    assert value_iteration(ONE_LOOP, 0.99, 0.1) == pytest.approx([100 * (1 - 0.99**688)], rel=1e-12)
    assert 100 * 0.99**231 > 9.8


def test_the_default_tolerance_is_a_hundred_millionth() -> None:
    # V = 2 (1 - 0.5^k), error 2^(1 - k): 1e-8 needs k = 28 (2^-27 = 7.5e-9); 2e-8 would stop at 27
    assert value_iteration(ONE_LOOP, 0.5)[0] == 2 - 2.0**-27


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("tolerance", [1.0, 1e-2, 1e-5])
def test_the_error_is_within_the_tolerance(seed: int, tolerance: float) -> None:
    mdp = random_mdp(seed)
    assert abs(value_iteration(mdp, 0.95, tolerance) - policy_iteration(mdp, 0.95)).max() <= tolerance


def test_value_iteration_counts_its_own_rounding() -> None:
    # One product a row, + 2; rewards and values below 1 + 0.5 * 2: rounding 3 * 2 eps. The change 0.5^(k - 1) is followed until
    # 0.5^k < 6 eps * 0.5, k = 51: the bound is then (0.5 * 0.5^50 + 6 eps) / 0.5 = (2 + 6) * 2 eps.
    for reward in (1.0, -1.0, 8.0, 0.125):  # all in the unit of the rewards
        loop, unit = ONE_LOOP._replace(rewards=np.full((1, 1), reward)), abs(reward) * EPS
        assert value_iteration(loop, 0.5, 16.1 * unit)[0] == pytest.approx(2 * reward, abs=16 * unit)
        with pytest.raises(ValueError, match="finer than float64 can promise here"):
            value_iteration(loop, 0.5, 15.9 * unit)
    # Two products in one row, none in the terminal row: rounding 4 * 2 eps, k = 51 again: (2 + 8) * 2 eps.
    two = Mdp(np.array([[[0.5, 0.5, 0]], [[0, 1, 0]], [[0, 0, 0]]]), np.ones((3, 1)), np.array([False, False, True]))
    assert value_iteration(two, 0.5, 20.1 * EPS) == pytest.approx([2, 2, 0], abs=20 * EPS)
    with pytest.raises(ValueError, match="finer than float64"):
        value_iteration(two, 0.5, 19.9 * EPS)


def test_value_iteration_goes_exactly_as_far_as_its_bound_allows() -> None:
    # State 0 ends with reward 1 (or -3.5, by a row of two products); state 1 earns 0.25 for ever. Rounding: 4 (3.5 + 0.5) eps = 16 eps
    # from the first sweep on, whose change is 1. Later changes are 0.25 * 0.5^(k - 1), so that half of one at k = 50 is 1 eps: the
    # bound is (1 + 16) * 2 eps. 0.5^49 is exactly 16 eps * 0.5, not below it, so sweep 50 is still made.
    transitions = np.array([[[0, 0, 1], [0, 0.5, 0.5]], [[0, 1, 0], [0, 1, 0]], [[0, 0, 0], [0, 0, 0]]])
    mdp = Mdp(transitions, np.array([[1, -3.5], [0.25, 0.25], [0, 0]]), np.array([False, False, True]))
    assert value_iteration(mdp, 0.5, 34 * EPS).tolist() == [1.0, 0.5 - 0.5**51, 0.0]
    with pytest.raises(ValueError, match="finer than float64"):
        value_iteration(mdp, 0.5, 33.9 * EPS)


def test_the_tolerance_that_is_offered_instead_works() -> None:
    # twice the bound (2 + 6) * 2 eps above: 32 eps = 7.1e-15
    with pytest.raises(ValueError, match="tolerance=1e-17 is finer than float64 can promise here; use 7e-15, or policy_iteration"):
        value_iteration(ONE_LOOP, 0.5, 1e-17)
    assert value_iteration(ONE_LOOP, 0.5, 7e-15)[0] == pytest.approx(2, abs=7e-15)


# -- what cannot be meant ----------------------------------------------------------------------------------------------------
def two_states(**change: object) -> Mdp:
    plain = Mdp(np.array([[[0.5, 0.5], [1.0, 0.0]], [[0.0, 1.0], [0.0, 1.0]]]), np.array([[1.0, 2.0], [0.0, 0.0]]), np.array([False, True]))
    return plain._replace(**change)


def altered(array: np.ndarray, place: tuple[int, ...], value: float) -> np.ndarray:
    array = array.copy()
    array[place] = value
    return array


T, R = two_states().transitions, two_states().rewards


@pytest.mark.parametrize(
    ("mdp", "words"),
    [
        (two_states(transitions=altered(T, (0, 1, 1), 0.25)), r"transitions\[state 0, action 1\] sum to 1.25; each row must sum to 1"),
        (two_states(transitions=altered(T, (0, 0), (0.5, 0.5 + 1.5e-9))), r"transitions\[state 0, action 0\] sum to 1; each"),
        (two_states(transitions=altered(T, (0, 0), (0.5, 0.5 - 1.5e-9))), r"transitions\[state 0, action 0\] sum to 1; each"),
        (two_states(transitions=altered(T, (0, 1), (-0.5, 1.5))), r"transitions\[state 0, action 1\] hold -0.5; none may be negative"),
        (two_states(transitions=altered(T, (0, 1, 0), math.nan)), r"transitions\[state 0, action 1\] hold nan"),
        (two_states(rewards=altered(R, (0, 1), math.nan)), r"rewards\[state 0, action 1\] is nan; every reward must be finite"),
        (two_states(rewards=altered(R, (0, 0), math.inf)), r"rewards\[state 0, action 0\] is inf"),
        (two_states(terminal=np.array([0, 1])), "terminal holds int64; it says True or False"),
        (two_states(terminal=np.array([False])), r"terminal \(1,\); S states and A actions need"),
        (two_states(rewards=np.zeros((2, 3))), r"rewards \(2, 3\)"),
        (two_states(transitions=np.zeros((2, 2, 3))), r"transitions \(2, 2, 3\)"),
        (Mdp(np.ones((2, 2)), np.ones(2), np.array([False, False])), r"transitions \(2, 2\), rewards \(2,\)"),
        (Mdp(np.ones((2, 0, 2)), np.ones((2, 0)), np.array([False, False])), r"rewards \(2, 0\)"),
    ],
)
def test_a_malformed_process_is_refused_wherever_it_arrives(mdp: Mdp, words: str) -> None:
    calls = [check, lambda m: action_values(m, [0.0, 0.0], 0.9), lambda m: policy_evaluation(m, np.ones((2, 2)) / 2, 0.9)]
    for call in [*calls, lambda m: value_iteration(m, 0.9), lambda m: policy_iteration(m, 0.9)]:
        with pytest.raises(ValueError, match="Mdp: .*" + words):
            call(mdp)


def test_a_row_may_miss_one_by_rounding() -> None:
    for off in (2.0**-30, -(2.0**-30)):
        check(two_states(transitions=altered(T, (0, 0), (0.5, 0.5 + off))))
    check(Mdp(np.array([[[1.0]]]), np.zeros((1, 1)), np.array([False])))


@pytest.mark.parametrize("discount", [-0.1, 1.1, math.nan])
def test_a_discount_outside_its_range_is_refused(discount: float) -> None:
    mdp = two_states()
    calls = [lambda: action_values(mdp, [0, 0], discount), lambda: policy_evaluation(mdp, R * 0 + 0.5, discount)]
    for call in [*calls, lambda: value_iteration(mdp, discount), lambda: policy_iteration(mdp, discount)]:
        with pytest.raises(ValueError, match=rf"discount={discount} lies outside \[0, 1\]"):
            call()


def test_policies_values_and_tolerances_that_cannot_be_meant_are_refused() -> None:
    mdp = two_states()
    with pytest.raises(ValueError, match=r"policy \(2,\) must hold probabilities \[S, A\] = \(2, 2\)"):
        policy_evaluation(mdp, [0, 1], 0.9)
    with pytest.raises(ValueError, match=r"policy\[state 0\] sum to 0.75"):
        policy_evaluation(mdp, [[0.5, 0.25], [1.0, 0.0]], 0.9)
    with pytest.raises(ValueError, match=r"policy\[state 0\] hold -1"):
        policy_evaluation(mdp, [[2.0, -1.0], [1.0, 0.0]], 0.9)
    for values in ([0.0], [[0.0, 0.0]], [math.nan, 0.0], [0.0, math.inf]):
        with pytest.raises(ValueError, match="one finite number for each of the 2 states"):
            action_values(mdp, values, 0.9)
    for tolerance in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match=f"tolerance={tolerance} must be above 0"):
            value_iteration(mdp, 0.9, tolerance)
    with pytest.raises(ValueError, match="discount=1 gives no bound on the error; use policy_iteration"):
        value_iteration(mdp, 1.0)


def test_discount_1_needs_an_end_and_says_where_it_is_missing() -> None:
    # 0 -> 1 -> 4, 2 <-> 3, 4 is terminal: from 2 and 3 nothing ends
    transitions = np.zeros((5, 1, 5))
    transitions[[0, 1, 2, 3], 0, [1, 4, 3, 2]] = 1
    mdp = Mdp(transitions, -np.ones((5, 1)), np.arange(5) == 4)
    with pytest.raises(ValueError, match=r"2 state\(s\), first state 2, never reach a terminal state; use a discount below 1"):
        policy_evaluation(mdp, np.ones((5, 1)), 1.0)
    assert policy_evaluation(mdp, np.ones((5, 1)), 0.5).tolist() == [-1.5, -1.0, -2.0, -2.0, 0.0]
    with pytest.raises(ValueError, match="never reach"):
        policy_iteration(ONE_LOOP, 1.0)
    # with a second way out of 3 that the policy takes half the time, all end: V3 = -1 + V2 / 2, V2 = -1 + V3
    transitions = np.repeat(transitions, 2, 1)
    transitions[3, 1] = np.eye(5)[4]
    mdp = Mdp(transitions, -np.ones((5, 2)), np.arange(5) == 4)
    assert policy_evaluation(mdp, np.full((5, 2), 0.5), 1.0) == pytest.approx([-2, -1, -4, -3, 0])
