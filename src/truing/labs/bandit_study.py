"""Many problems, several agents: what the exercises on bandits have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from truing.labs.canvas import COLOURS, MUTED, label_ends
from truing.maths.stats import Interval, bootstrap
from truing.methods.bandit import Agent, play, testbed

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Array = NDArray[np.float64]
Window = tuple[int, int]  # pulls first to last, both counted from 1 and both in it


class Score(NamedTuple):
    """One agent over one window of pulls: one number a problem, ``[N]``."""

    reward: Array
    optimal: Array  # share of the pulls of the best arm


@dataclass(frozen=True)
class Played:
    """One agent on every problem of every seed: ``N`` problems in all."""

    rewards: Array  # [steps], mean over the problems
    optimal: Array  # [steps], share of the problems
    scores: dict[Window, Score]
    pulls: Array  # [N, arms], share of all pulls, the truly best arm first
    values: Array  # [N, arms], true values in that order


def play_all(
    agents: Mapping[str, Agent], seeds: Sequence[int], *, problems: int, arms: int, steps: int, windows: Sequence[Window], centre: float = 0.0
) -> dict[str, Played]:
    """Every agent on the same problems with the same luck, so that differences can be taken problem by problem."""
    found = {}
    for name, agent in agents.items():
        curves, scores, pulls, values = [], [], [], []
        for seed in seeds:
            means = testbed(problems, seed, arms=arms, centre=centre)
            run = play(means, agent, steps, seed, per_problem=True)
            curves.append((run.rewards.mean(1), run.optimal.mean(1)))
            scores.append([Score(run.rewards[first - 1 : last].mean(0), run.optimal[first - 1 : last].mean(0)) for first, last in windows])
            order = np.argsort(-means, 1)
            pulls.append(np.take_along_axis(run.counts, order, 1) / steps)
            values.append(np.take_along_axis(means, order, 1))
        rewards, optimal = np.mean(curves, 0)
        pooled = {window: Score(*(np.concatenate(part) for part in zip(*(s[i] for s in scores), strict=True))) for i, window in enumerate(windows)}
        found[name] = Played(rewards, optimal, pooled, np.concatenate(pulls), np.concatenate(values))
    return found


def interval(per_problem: Array, scale: float = 1.0) -> Interval:
    """The mean over problems with its 95 % interval; ``scale=100`` for percent."""
    return bootstrap(scale * per_problem, resamples=1000)


def said(x: Interval, unit: str = "", digits: int = 2) -> str:
    """An interval in a sentence: ``1.40 [1.38, 1.42]``."""
    return f"{x.mean:.{digits}f}{unit} [{x.low:.{digits}f}, {x.high:.{digits}f}]"


def meets(x: Interval, low: float, high: float) -> bool:
    """The measured interval and [low, high] have a value in common."""
    return x.low <= high and x.high >= low


def curves(
    axes: Axes, played: Mapping[str, Played], what: str, *, best: float | None = None, ylim: tuple[float, float] | None = None, log: bool = False
) -> None:
    """A line an agent over the pulls, ``what`` being rewards or optimal (in percent), each named at its end; ``log`` for a long run."""
    for colour, (name, one) in zip(COLOURS, played.items(), strict=False):
        y = one.rewards if what == "rewards" else 100 * one.optimal
        axes.plot(*(_by_stretches(y) if log else (np.arange(1, len(y) + 1), y)), color=colour, label=name, linewidth=1.8 if log else 1.3)
    axes.set_xlim(1, len(y))
    if best is not None:
        axes.axhline(best, color=MUTED, linewidth=0.9, linestyle=(0, (4, 3)))
        axes.annotate(f"always the best arm: {best:.2f}", (1.0, best), xycoords=("axes fraction", "data"), xytext=(-4, 3), textcoords="offset points", ha="right", color=MUTED, fontsize=9)  # fmt: skip
    if log:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.set(xlabel="pull (log scale)" if log else "pull", ylabel="average reward" if what == "rewards" else "best arm chosen (%)")
    if what == "optimal" or ylim is not None:
        axes.set_ylim(ylim or (0, 100))
    label_ends(axes)


def _by_stretches(y: Array, per_decade: int = 25) -> tuple[Array, Array]:
    """Means over stretches that are equally long on a logarithmic axis, and their middles."""
    edges = np.unique(np.geomspace(1, len(y) + 1, 1 + int(per_decade * np.log10(len(y)))).round().astype(int))
    means = np.add.reduceat(y, edges[:-1] - 1) / np.diff(edges)
    return np.sqrt(edges[:-1] * (edges[1:] - 1.0)), means
