"""Three small classics of Sutton and Barto (2nd ed.): the cliff, the random walk, and the corridor with switched actions."""

from __future__ import annotations

import math

import numpy as np
from gymnasium.spaces import Discrete
from numpy.typing import NDArray

from truing.envs.table import MOVES, Outcome, Table, Tabular, beside, certain, finite, whole
from truing.errors import ConfigError

ROWS, COLUMNS = 4, 12


class Cliff(Tabular):
    """Cliff walking: 4 x 12 cells, start bottom left, goal bottom right, the cliff between them. Actions: 0 up, 1 right, 2 down, 3 left.

    Every step pays -1. A step onto the cliff pays -100 and puts the agent back at the start; the episode goes on. Only the goal terminates.
    The shortest way, along the edge, returns -13 (up, 11 times right, down); the way through the top row -17.
    In `mdp` the goal and the ten cells of the cliff, where the agent never stands, are terminal. ``truing/Cliff-v0`` truncates after 10,000 steps,
    which stops a greedy policy that walks in circles and touches nothing else.

    Source: example 6.6.
    """

    def __init__(self, render_mode: str | None = None):
        start, goal = (ROWS - 1) * COLUMNS, ROWS * COLUMNS - 1
        cliff = range(start + 1, goal)

        def outcome(state: int, action: int) -> tuple[Outcome, ...]:
            there = beside(ROWS, COLUMNS, state, action)
            if there in cliff:
                return certain(start, -100.0)
            return certain(state if there is None else there, -1.0)

        super().__init__([[] if s == goal or s in cliff else [outcome(s, a) for a in range(len(MOVES))] for s in range(ROWS * COLUMNS)], start, render_mode)

    def text(self) -> str:
        """The grid: @ agent, S start, G goal, x cliff."""
        marks = "." * (ROWS - 1) * COLUMNS + "S" + "x" * (COLUMNS - 2) + "G"
        marks = marks[: self.state] + "@" + marks[self.state + 1 :]
        return "".join(" ".join(marks[r * COLUMNS : (r + 1) * COLUMNS]) + "\n" for r in range(ROWS))


class RandomWalk(Tabular):
    """A walk on a line that nobody steers: one action, and each step goes left or right with probability 1/2.

    States ``0, 1, ..., n, n + 1``: 0 and n + 1 are the terminal exits, the walk starts in the middle, (n + 1) / 2. Rewards are 0, but
    ``right_reward`` on leaving to the right and ``left_reward`` to the left. The value of state i, undiscounted, is the chance of leaving to the right:
    `values`. Every walk ends with probability 1, so ``truing/RandomWalk-v0`` has no time limit.

    Args:
        n: odd, 5 in example 6.2 (there states A to E are 1 to 5), 19 in example 7.1 (with ``left_reward=-1``).

    Source: example 6.2.
    """

    def __init__(self, n: int = 5, left_reward: float = 0.0, right_reward: float = 1.0, render_mode: str | None = None):
        self.n = whole("n", n, 1)
        if self.n % 2 == 0:
            raise ConfigError(f"n={n}: a walk that starts in the middle needs an odd number of states; use {n + 1}")
        self.left_reward, self.right_reward = finite("left_reward", left_reward), finite("right_reward", right_reward)
        table: Table = [[] for _ in range(self.n + 2)]
        for s in range(1, self.n + 1):
            left, right = (self.left_reward if s == 1 else 0.0), (self.right_reward if s == self.n else 0.0)
            table[s] = [(Outcome(0.5, s - 1, left), Outcome(0.5, s + 1, right))]
        super().__init__(table, (self.n + 1) // 2, render_mode)

    def values(self) -> NDArray[np.float64]:
        """The exact values ``[n + 2]`` at discount 1: ``v(i) = left + (right - left) * i / (n + 1)``; 0 at the two exits.

        >>> RandomWalk().values().round(4).tolist()  # 1/6, 2/6, 3/6, 4/6, 5/6
        [0.0, 0.1667, 0.3333, 0.5, 0.6667, 0.8333, 0.0]
        """
        v = self.left_reward + (self.right_reward - self.left_reward) * np.arange(self.n + 2) / (self.n + 1)
        v[[0, -1]] = 0.0
        return v

    def text(self) -> str:
        """The line: @ walker, | the exits."""
        return " ".join("@" if s == self.state else "|" if s in (0, self.n + 1) else "." for s in range(self.n + 2)) + "\n"


class Corridor(Tabular):
    """The short corridor with switched actions: three states that look the same, so that the best policy is random.

    Actions: 0 left, 1 right. In the second state they are reversed. Left in the first state stays there; right in the third reaches the goal.
    Every step pays -1. The *observation* is always 0, ``Discrete(1)``; the state (0, 1, 2, and 3 the goal) is in `state`, and `mdp` is over these four.
    With the state hidden, a policy is one number p = p(right): see `corridor_value`. Seeing it, the best return is -3: the optimum of `mdp` is not the task's.
    ``truing/Corridor-v0`` truncates after 10,000 steps; a deterministic policy never ends.

    Source: example 13.1.
    """

    def __init__(self, render_mode: str | None = None):
        table: Table = [
            [certain(0, -1.0), certain(1, -1.0)],
            [certain(2, -1.0), certain(0, -1.0)],  # reversed
            [certain(1, -1.0), certain(3, -1.0)],
            [],
        ]
        super().__init__(table, 0, render_mode)
        self.observation_space = Discrete(1)

    def observe(self, state: int) -> int:
        return 0

    def text(self) -> str:
        """The corridor: @ agent, ? where the actions are reversed, G goal."""
        return " ".join("@" if s == self.state else mark for s, mark in enumerate(".?.G")) + "\n"


CORRIDOR_BEST_RIGHT = 2 - math.sqrt(2)  # 0.5858, where the derivative of corridor_value, p^2 - 4p + 2 over a square, is 0
CORRIDOR_BEST_VALUE = -6 - 4 * math.sqrt(2)  # -11.657, its value there


def corridor_value(right: float) -> float:
    """The value of the corridor's first state under the policy that goes right with probability p: ``v(p) = (2p - 4) / (p (1 - p))``.

    It solves v0 = -1 + p v1 + (1 - p) v0, v1 = -1 + p v0 + (1 - p) v2, v2 = -1 + (1 - p) v1. Its maximum is -6 - 4 sqrt 2 = -11.657, at
    p = 2 - sqrt 2 = 0.586. At p = 0 and p = 1 the goal is never reached: -inf. Raises ValueError for p outside [0, 1].

    Source: Sutton and Barto, 2nd ed., example 13.1.

    >>> corridor_value(0.5)  # -3 / 0.25
    -12.0
    >>> round(corridor_value(0.05), 1), round(corridor_value(0.95), 1)  # epsilon-greedy at epsilon 0.1: left, right
    (-82.1, -44.2)
    """
    if not 0 <= right <= 1:
        raise ValueError(f"corridor_value: right={right} is a probability; use a number from 0 to 1")
    return -math.inf if right in (0, 1) else (2 * right - 4) / (right * (1 - right))
