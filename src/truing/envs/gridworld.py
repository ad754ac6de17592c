"""GridWorld: find the way to the goal, one small cost a step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from truing.envs.table import MOVES, Outcome, Table, Tabular, beside, cell, certain, finite, whole
from truing.errors import ConfigError

Cell = tuple[int, int]


class GridWorld(Tabular):
    """A grid of ``rows x columns`` cells with walls. Actions: 0 up, 1 right, 2 down, 3 left. State: ``row * columns + column``.

    A step pays ``step_reward``; the step that enters the goal pays ``goal_reward`` *instead of* it (not both) and terminates.
    So the shortest way of k steps returns ``(k - 1) * step_reward + goal_reward``: 5 * -0.01 + 1 = 0.95 on the default 4 x 4 grid.
    Moving into a wall or over the edge stays put and costs a step.

    Args:
        rows, columns: the size; 2 cells or more.
        start, goal: (row, column); goal None is the bottom right corner.
        walls: cells nobody can enter.
        slip: with this probability the action is replaced by one drawn uniformly from all four, the chosen one included; the
            chosen direction is therefore taken with probability ``1 - slip + slip / 4``.

    In `mdp` the goal, the walls, and cells that the walls cut off are terminal: their value is 0 and nothing follows.
    ``truing/GridWorld-v0`` truncates after 200 steps.
    Raises ConfigError for a start or goal on a wall or outside, a goal that cannot be reached, slip outside [0, 1], or a reward
    that is not finite.
    """

    def __init__(
        self,
        rows: int = 4,
        columns: int = 4,
        start: Cell = (0, 0),
        goal: Cell | None = None,
        walls: Sequence[Cell] = (),
        step_reward: float = -0.01,
        goal_reward: float = 1.0,
        slip: float = 0.0,
        render_mode: str | None = None,
    ):
        self.rows, self.columns = whole("rows", rows, 1), whole("columns", columns, 1)
        if self.rows * self.columns < 2:
            raise ConfigError(f"rows={rows} and columns={columns}: start and goal need 2 cells or more")
        self.start_cell = cell("start", start, self.rows, self.columns)
        self.goal_cell = (self.rows - 1, self.columns - 1) if goal is None else cell("goal", goal, self.rows, self.columns)
        self.walls = frozenset(cell("walls", w, self.rows, self.columns) for w in walls)
        for name, place in (("start", self.start_cell), ("goal", self.goal_cell)):
            if place in self.walls:
                raise ConfigError(f"{name}={place} is a wall; move it, or take {place} out of walls")
        if self.start_cell == self.goal_cell:
            raise ConfigError(f"start={self.start_cell} is the goal; the episode would be over before it began")
        step_reward, goal_reward, slip = finite("step_reward", step_reward), finite("goal_reward", goal_reward), finite("slip", slip)
        if not 0 <= slip <= 1:
            raise ConfigError(f"slip={slip}: it is a probability; use a number from 0 to 1")
        self._region = self._reach()
        super().__init__(self._fill(step_reward, goal_reward, slip), self.state_of(*self.start_cell), render_mode)

    def state_of(self, row: int, column: int) -> int:
        """The index of a cell."""
        return row * self.columns + column

    def cell_of(self, state: int) -> Cell:
        """The (row, column) of a state."""
        return divmod(state, self.columns)

    def _after(self, state: int, action: int) -> int:
        there = beside(self.rows, self.columns, state, action)
        return state if there is None or self.cell_of(there) in self.walls else there

    def _reach(self) -> set[int]:
        seen = {self.state_of(*self.start_cell)}
        edge = list(seen)
        while edge:
            edge = list({self._after(s, a) for s in edge for a in range(len(MOVES))} - seen)
            seen.update(edge)
        if self.state_of(*self.goal_cell) not in seen:
            raise ConfigError(f"goal={self.goal_cell} cannot be reached from start={self.start_cell}; open a wall: walls={sorted(self.walls)}")
        return seen

    def _fill(self, step_reward: float, goal_reward: float, slip: float) -> Table:
        goal = self.state_of(*self.goal_cell)

        def outcomes(state: int, action: int) -> tuple[Outcome, ...]:
            if slip == 0:
                there = self._after(state, action)
                return certain(there, goal_reward if there == goal else step_reward)
            chance: dict[int, float] = {}
            for taken in range(len(MOVES)):
                there = self._after(state, taken)
                chance[there] = chance.get(there, 0.0) + slip / len(MOVES) + (1 - slip if taken == action else 0.0)
            return tuple(Outcome(p, there, goal_reward if there == goal else step_reward) for there, p in chance.items())

        return [[outcomes(s, a) for a in range(len(MOVES))] if s in self._region and s != goal else [] for s in range(self.rows * self.columns)]

    def text(self) -> str:
        """The grid: @ agent, G goal, # wall, S start."""
        marks: dict[Any, str] = {self.start_cell: "S", self.goal_cell: "G", **dict.fromkeys(self.walls, "#"), self.cell_of(self.state): "@"}
        return "".join(" ".join(marks.get((r, c), ".") for c in range(self.columns)) + "\n" for r in range(self.rows))
