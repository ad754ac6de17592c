"""Environments that are a table: what may follow each (state, action), so that the simulator and the equations are the same numbers.

An environment of this kind fills one `Table`; stepping draws from it, and `Tabular.mdp` sums it into the exact decision
process. The two cannot disagree.
"""

from __future__ import annotations

import math
import operator
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from gymnasium.error import ResetNeeded
from gymnasium.spaces import Discrete

from truing.errors import ConfigError
from truing.maths.planning import Mdp

ACTIONS = ("up", "right", "down", "left")
ARROWS = ("↑", "→", "↓", "←")
MOVES = ((-1, 0), (0, 1), (1, 0), (0, -1))  # (row, column) of each action; row 0 is the top


class Outcome(NamedTuple):
    """One thing that may follow an action: its probability, the next state, the reward on the way."""

    probability: float
    state: int
    reward: float


Table = list[list[tuple[Outcome, ...]]]  # [state][action]; the outcomes' probabilities sum to 1; empty where no action is taken


def to_mdp(table: Table) -> Mdp:
    """The exact `Mdp` of a table: ``transitions[s, a, s']`` sums probabilities, ``rewards[s, a]`` is the expected reward.

    A state without outcomes is terminal: it stays where it is for reward 0.
    """
    states, actions = len(table), max(len(row) for row in table)
    transitions, rewards = np.zeros((states, actions, states)), np.zeros((states, actions))
    terminal = np.array([not any(row) for row in table])
    for s, row in enumerate(table):
        for a, outcomes in enumerate(row):
            for probability, state, reward in outcomes:
                transitions[s, a, state] += probability
                rewards[s, a] += probability * reward
    transitions[terminal, :, terminal] = 1.0
    return Mdp(transitions, rewards, terminal)


def certain(state: int, reward: float) -> tuple[Outcome, ...]:
    """The only outcome."""
    return (Outcome(1.0, state, reward),)


def beside(rows: int, columns: int, state: int, action: int) -> int | None:
    """The cell next to ``state`` (row-major) in the direction of ``action``; None beyond the edge.

    >>> beside(4, 4, 5, 0), beside(4, 4, 5, 1), beside(4, 4, 5, 2), beside(4, 4, 5, 3)  # up, right, down, left of (1, 1)
    (1, 6, 9, 4)
    >>> beside(4, 4, 3, 1) is None  # (0, 3) is the end of its row
    True
    """
    row, column = divmod(state, columns)
    row, column = row + MOVES[action][0], column + MOVES[action][1]
    return row * columns + column if 0 <= row < rows and 0 <= column < columns else None


class Tabular(gymnasium.Env):
    """An environment drawn from a `Table`. The observation is the state's index, unless a subclass hides it.

    ``reset(options={"state": s})`` starts an episode in state s. A step draws one uniform number where the outcome is random,
    and none where it is certain.
    """

    metadata = {"render_modes": ["ansi"], "render_fps": 4}

    def __init__(self, table: Table, start: int, render_mode: str | None = None):
        if render_mode not in (None, "ansi"):
            raise ConfigError(f"render_mode={render_mode!r}: this environment draws itself as text; use 'ansi' or None")
        self.table, self.start, self.render_mode = table, start, render_mode
        self.observation_space = Discrete(len(table))
        self.action_space = Discrete(len(table[start]))
        self._actions = len(table[start])
        self._cumulative = [[_cumulative(outcomes) for outcomes in row] for row in table]
        self._state: int | None = None

    @property
    def state(self) -> int:
        """The true state, also where the observation hides it."""
        if self._state is None:
            raise ResetNeeded(f"{type(self).__name__} has no state yet; call reset() first")
        return self._state

    def mdp(self) -> Mdp:
        """The exact decision process over the true states."""
        return to_mdp(self.table)

    def observe(self, state: int) -> int:
        return state

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[int, dict[str, Any]]:
        super().reset(seed=seed)
        state = (options or {}).get("state", self.start)
        if not isinstance(state, int | np.integer) or not 0 <= state < len(self.table) or not any(self.table[state]):
            ok = [s for s, row in enumerate(self.table) if any(row)]
            raise ConfigError(f"reset(options={{'state': {state!r}}}): no episode can start there; states with actions: {_shortly(ok)}")
        self._state = int(state)
        return self.observe(self._state), {}

    def step(self, action: int) -> tuple[int, float, bool, bool, dict[str, Any]]:
        if not isinstance(action, int | np.integer) or not 0 <= action < self._actions:
            raise ValueError(f"{type(self).__name__}: action {action!r} does not exist; actions are the integers 0 to {self._actions - 1}")
        state = self.state
        if not self.table[state]:
            raise ResetNeeded(f"{type(self).__name__}: the episode has ended in state {state}; call reset() before the next step")
        outcomes = self.table[state][action]
        chosen = outcomes[0] if len(outcomes) == 1 else outcomes[bisect_right(self._cumulative[state][action], self.np_random.random())]
        self._state = chosen.state
        return self.observe(chosen.state), chosen.reward, not self.table[chosen.state], False, {}

    def render(self) -> str | None:
        return self.text() if self.render_mode == "ansi" else None

    def text(self) -> str:
        """The state as text."""
        return f"state {self.state} of {len(self.table)}\n"


def _cumulative(outcomes: Sequence[Outcome]) -> list[float]:
    sums = np.cumsum([o.probability for o in outcomes]).tolist()
    return [*sums[:-1], 1.0] if sums else []  # exactly 1, so that a uniform number in [0, 1) always finds its outcome


def _shortly(states: Sequence[int]) -> str:
    return ", ".join(map(str, states)) if len(states) <= 12 else f"{', '.join(map(str, states[:10]))}, ... {states[-1]}"


# Checks that the environments share -----------------------------------------------------------------------------------


def whole(name: str, value: Any, least: int) -> int:
    """``value`` as an int of at least ``least``, or ConfigError."""
    try:
        number = operator.index(value)
    except TypeError:
        number = least - 1
    if number < least or isinstance(value, bool):
        raise ConfigError(f"{name}={value!r}: use a whole number of {least} or more")
    return number


def finite(name: str, value: Any) -> float:
    """``value`` as a finite float, or ConfigError."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating) or not math.isfinite(value):
        raise ConfigError(f"{name}={value!r}: use a finite number")
    return float(value)


def cell(name: str, value: Any, rows: int, columns: int) -> tuple[int, int]:
    """``value`` as a (row, column) inside the grid, or ConfigError."""
    problem = ConfigError(f"{name}={value!r}: use a (row, column) with row 0 to {rows - 1} and column 0 to {columns - 1}")
    if not isinstance(value, Iterable) or isinstance(value, str):
        raise problem
    pair = tuple(value)
    if len(pair) != 2 or not all(isinstance(x, int | np.integer) and not isinstance(x, bool) for x in pair):
        raise problem
    row, column = int(pair[0]), int(pair[1])
    if not (0 <= row < rows and 0 <= column < columns):
        raise problem
    return row, column
