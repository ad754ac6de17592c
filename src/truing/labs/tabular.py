"""What the tabular labs share: intervals over seeds, exact answers of a table, and a grid drawn as a map."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from truing.envs.table import MOVES
from truing.errors import ConfigError
from truing.labs.canvas import GREEN, INK, MUTED
from truing.maths.planning import Mdp, action_values, policy_evaluation, policy_iteration, value_iteration
from truing.maths.stats import Interval, bootstrap

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Array = NDArray[np.float64]
Cells = Sequence[tuple[int, int]] | frozenset[tuple[int, int]]
LOW, HIGH = "#f4f8fb", "#0b5c8a"  # the map's colours of the least and the greatest value


def enough(lab: str, seeds: Sequence[int]) -> None:
    """Raise ConfigError where the seeds are too few for an interval."""
    if len(seeds) < 2:
        raise ConfigError(f"{lab}: {len(seeds)} seed gives no interval, so no claim can be tested; use --seeds 2 or more")


def over_seeds(values: Iterable[float]) -> Interval:
    """The mean over seeds with its 95% bootstrap interval; a seed is the independent unit."""
    return bootstrap(np.array([float(v) for v in values]))


def said(interval: Interval, digits: int = 2) -> str:
    """An interval in words.

    >>> said(Interval(1.0, 0.904, 1.1))
    '1.00 [0.90, 1.10]'
    """
    return f"{interval.mean:.{digits}f} [{interval.low:.{digits}f}, {interval.high:.{digits}f}]"


def optimal(mdp: Mdp, discount: float) -> tuple[Array, Array]:
    """The exact optimal values ``[S]`` and action values ``[S, A]``; by value iteration, and by policy iteration where nothing is discounted."""
    values = value_iteration(mdp, discount) if discount < 1 else policy_iteration(mdp, discount)
    return values, action_values(mdp, values, discount)


def steps_to_end(mdp: Mdp, policy: ArrayLike) -> Array:
    """The expected number of steps ``[S]`` until the episode terminates: the value of a world that pays 1 a step."""
    return policy_evaluation(mdp._replace(rewards=np.ones_like(mdp.rewards)), policy, 1.0)


def first_best(q: Array) -> Array:
    """The greedy policy ``[S, A]`` of one action a state: the first of the best, so that a path can be followed."""
    return np.asarray(np.eye(q.shape[1])[q.argmax(-1)])


def episodes_until(curves: ArrayLike, level: float, width: int = 20) -> NDArray[np.int64]:
    """For each row of ``[n, episodes]``, the number of episodes until the mean of the last ``width`` is at most ``level``; all of them where it never is.

    >>> episodes_until([[9.0, 1.0, 1.0, 1.0]], level=1.0, width=2)
    array([3])
    """
    rows = np.asarray(curves, dtype=np.float64)
    width = min(width, rows.shape[1])
    means = np.lib.stride_tricks.sliding_window_view(rows, width, axis=1).mean(-1)
    hit = means <= level
    return np.where(hit.any(1), hit.argmax(1) + width, rows.shape[1])


# -- drawing ------------------------------------------------------------------------------------------------------------


def draw_map(
    axes: Axes, rows: int, columns: int, values: ArrayLike | None = None, *, policy: ArrayLike | None = None, walls: Cells = (),
    start: tuple[int, int], goal: tuple[int, int], digits: int = 2, limits: tuple[float, float] | None = None,
) -> None:  # fmt: skip
    """The grid as a map: values as colour and number, the policy as arrows (all of the best where several tie), walls dark, the goal green."""
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.patches import Rectangle

    shades = LinearSegmentedColormap.from_list("values", [LOW, HIGH])
    axes.set(xlim=(0, columns), ylim=(rows, 0), xticks=[], yticks=[], aspect="equal")
    axes.grid(False)
    axes.spines[:].set_visible(False)
    flat = None if values is None else np.asarray(values, dtype=float)
    open_cells = [s for s in range(rows * columns) if divmod(s, columns) not in walls and divmod(s, columns) != goal]
    low, high = limits or ((0.0, 1.0) if flat is None else (float(flat[open_cells].min()), float(flat[open_cells].max())))
    size = min(11.0, 42.0 / max(rows, columns) + 1)
    for s in range(rows * columns):
        row, column = divmod(s, columns)
        level = 0.0 if flat is None else float(np.clip((flat[s] - low) / (high - low or 1.0), 0, 1))
        face = "#555b61" if (row, column) in walls else GREEN if (row, column) == goal else shades(level)
        axes.add_patch(Rectangle((column, row), 1, 1, facecolor=face, edgecolor="white", linewidth=1.5))
        ink = "white" if level > 0.55 else INK
        if (row, column) == goal:
            axes.text(column + 0.5, row + 0.5, "goal", ha="center", va="center", color="white", fontsize=size, fontweight="bold", zorder=5)
        elif (row, column) not in walls:
            if flat is not None:
                axes.text(column + 0.5, row + 0.27, f"{round(flat[s], digits) + 0.0:.{digits}f}", ha="center", va="center", color=ink, fontsize=size)
            if policy is not None:
                _arrows(axes, column + 0.5, row + (0.66 if flat is not None else 0.5), np.asarray(policy)[s], ink, min(1.0, 5 / max(rows, columns)))
            if (row, column) == start:
                axes.text(column + 0.06, row + 0.94, "start", ha="left", va="bottom", color=ink, fontsize=0.72 * size)


def _arrows(axes: Axes, x: float, y: float, chances: Array, colour: Any, scale: float) -> None:
    best = np.flatnonzero(chances >= chances.max() - 1e-9)
    if len(best) == len(chances):  # nothing is preferred: a dot
        axes.plot(x, y, "o", markersize=2.5, color=colour, alpha=0.6)
        return
    reach = 0.22
    for action in best:
        down, right = MOVES[action]
        tail = 0.0 if len(best) > 1 else reach / 2
        head = (x + right * (reach - tail / 2), y + down * (reach - tail / 2))
        foot = (x - right * tail * 1.5, y - down * tail * 1.5)
        axes.annotate(
            "",
            head,
            foot,
            arrowprops={"arrowstyle": "-|>", "color": colour, "linewidth": 0.5 + 0.8 * scale, "mutation_scale": 2 + 6 * scale, "shrinkA": 0, "shrinkB": 0},
        )


def draw_path(
    axes: Axes, states: Sequence[int], columns: int, colour: str, *, shake: float = 0.0, shift: float = 0.0, alpha: float = 0.9, width: float = 1.8
) -> None:
    """A walk through the cells of the map; shaken, a cell that is visited again shows it, and shifted, several walks can be told apart."""
    places = np.array([divmod(int(s), columns) for s in states]) + 0.5 + shift
    places += np.random.default_rng(0).uniform(-shake, shake, places.shape)
    axes.plot(places[:, 1], places[:, 0], color=colour, alpha=alpha, linewidth=width, solid_capstyle="round", solid_joinstyle="round")
    if not shift:
        axes.plot(places[0, 1], places[0, 0], "o", color=colour, markersize=5)


def reference(axes: Axes, level: float, words: str, *, colour: str = MUTED, above: bool = True) -> None:
    """A dashed level with its name inside the axes."""
    axes.axhline(level, color=colour, linestyle=(0, (4, 3)), linewidth=1.0)
    axes.annotate(words, (0.99, level), xycoords=("axes fraction", "data"), xytext=(0, 4 if above else -9), textcoords="offset points",
                  ha="right", va="bottom" if above else "top", color=colour, fontsize=9)  # fmt: skip


def whole_log(axis: Axes, which: str = "y") -> None:
    """A log scale whose ticks are written as whole numbers."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator

    side = axis.yaxis if which == "y" else axis.xaxis
    side.set_major_locator(FixedLocator([5, 6, 8, 10, 15, 20, 30, 50, 100, 200]))
    side.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    side.set_minor_formatter(NullFormatter())
    side.set_minor_locator(NullLocator())
