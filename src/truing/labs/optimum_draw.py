"""The figures of the lab `optimum`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from truing.labs.canvas import BLUE, COLOURS, GREEN, INK, MUTED, ORANGE, band, canvas
from truing.labs.optimum_loop import Trained
from truing.labs.optimum_world import best, measure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TRIO = (BLUE, ORANGE, GREEN)
MARKS = ("o", "s", "^")


def main(runs: Mapping[str, Sequence[Trained]], near: float) -> Figure:
    """Distance to the closed form while training, the road to it, and the end, completion by completion."""
    first = {name: group[0] for name, group in runs.items()}
    count = next(iter(first.values())).rewards.shape[1]
    with canvas(1, 3, width=14, height=4.8, title=f"PPO on a language of {count} completions a prompt: it ends where the closed form says") as (figure, axes):
        _distance(axes[0, 0], runs, near)
        _road(axes[0, 1], first)
        _ends(axes[0, 2], first)
    return figure


def _distance(panel: Axes, runs: Mapping[str, Sequence[Trained]], near: float) -> None:
    for (name, group), colour in zip(runs.items(), TRIO, strict=True):
        band(panel, group[0].at, [one.series("apart") for one in group], name, colour)
    panel.axhline(near, color=MUTED, linewidth=0.9, linestyle=(0, (4, 3)))
    panel.annotate(f"{near:g}", (0, near), xytext=(3, 3), textcoords="offset points", color=MUTED, fontsize=9)
    panel.set(yscale="log", xlim=(0, group[0].at[-1]), ylim=(0.008, 1), xlabel="rollout", ylabel="total variation to pi*")
    panel.set_yticks([0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1], ["0.01", "0.02", "0.05", "0.1", "0.2", "0.5", "1"])
    panel.minorticks_off()
    panel.legend(loc="upper right")
    panel.set_title(f"Distance: mean and range of {len(group)} seeds")


def _road(panel: Axes, runs: Mapping[str, Trained]) -> None:
    """Reward against divergence: the closed form for every coefficient is the most that can be had, and PPO's way there."""
    one = next(iter(runs.values()))
    ref, rewards, coef = one.logps[0], one.rewards, one.coef
    frontier = [measure(best(ref, rewards, c).logp, ref, rewards, c) for c in coef * np.geomspace(0.35, 100, 80)]
    panel.plot([m.kl.mean() for m in frontier], [m.reward.mean() for m in frontier], color=INK, linewidth=1.2)
    for (name, run), colour, mark in zip(runs.items(), TRIO, MARKS, strict=True):
        panel.plot(run.series("kl"), run.series("reward"), color=colour, marker=mark, markersize=4, linewidth=1, alpha=0.8, label=name)
    ideal = measure(one.optimum, ref, rewards, coef)
    end = (float(ideal.kl.mean()), float(ideal.reward.mean()))
    panel.plot(*end, marker="*", markersize=15, color=INK, linestyle="none", zorder=5)
    panel.annotate(f"pi*, coef {coef:g}", end, xytext=(-10, 8), textcoords="offset points", ha="right")
    panel.annotate("closed form,\nall coefficients", (float(frontier[0].kl.mean()), float(frontier[0].reward.mean())), xytext=(0, -24), textcoords="offset points", ha="right", va="top", color=INK, fontsize=9)
    panel.set(xlabel="KL(pi || ref), nats a completion", ylabel="E[r]", xlim=(0, None))
    panel.grid(True, axis="both")
    panel.legend(loc="lower right", title="first seed, exact sums", title_fontsize=9, alignment="left")
    panel.set_title("The road: reward bought with divergence")


def _ends(panel: Axes, runs: Mapping[str, Trained]) -> None:
    low, one = 1e-5, next(iter(runs.values()))
    wanted = np.maximum(np.exp(one.optimum), low).ravel()
    panel.plot([low, 1], [low, 1], color=MUTED, linewidth=0.9)
    for (name, run), colour, mark in zip(runs.items(), TRIO, MARKS, strict=True):
        panel.plot(wanted, np.maximum(np.exp(run.logps[-1]), low).ravel(), mark, color=colour, markersize=4, alpha=0.7, label=name, markeredgewidth=0)
    panel.plot(wanted, np.exp(one.logps[0]).ravel(), ".", color=MUTED, markersize=4, alpha=0.6, label="before", markeredgewidth=0)
    panel.set(xscale="log", yscale="log", xlabel="chance under pi*", ylabel="chance under PPO's policy", xlim=(low, 1), ylim=(low, 1), aspect="equal")
    panel.grid(True, axis="both")
    panel.legend(loc="upper left")
    panel.set_title("The end: every completion of both prompts")


def bars(runs: Mapping[str, Sequence[Trained]], level: float, title: str) -> Figure:
    """Where each kind of run ends: every seed a mark, beside what the reference is away."""
    with canvas(width=9.5, height=1.2 + 0.5 * len(runs), title=title) as (figure, axes):
        panel = axes[0, 0]
        for row, (group, colour) in enumerate(zip(runs.values(), COLOURS * len(runs), strict=False)):
            ends = [float(one.end.apart.mean()) for one in group]
            panel.barh(row, np.mean(ends), color=colour, alpha=0.35, height=0.6)
            panel.plot(ends, [row] * len(ends), "o", color=colour, markersize=5)
            panel.plot([float(one.curve[0].apart.mean()) for one in group], [row] * len(group), "|", color=MUTED, markersize=9)
        panel.axvline(level, color=MUTED, linewidth=0.9, linestyle=(0, (4, 3)))
        panel.annotate(f"{level:g}", (level, 1), xycoords=("data", "axes fraction"), xytext=(3, 1), textcoords="offset points", color=MUTED, fontsize=9)
        panel.set(yticks=range(len(runs)), xlim=(0, None), xlabel="total variation to pi*: a mark a seed, the bar their mean; | before training")
        panel.set_yticklabels(list(runs))
        panel.invert_yaxis()
        panel.grid(True, axis="x")
        panel.grid(False, axis="y")
    return figure
