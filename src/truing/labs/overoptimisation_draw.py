"""The two figures of `labs.overoptimisation`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from truing.labs.canvas import canvas, label_ends, moving_mean
from truing.labs.overoptimisation_world import SCENARIOS
from truing.observe.metrics import CORRELATION
from truing.observe.monitor import RECENT, values_of
from truing.observe.svg import BLUE, GREEN, INK, MUTED, ORANGE, PURPLE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from truing.labs.overoptimisation import Pushed
    from truing.labs.overoptimisation_alarm import Watched

_REWARDS = {"single": BLUE, "mean": ORANGE, "min": GREEN, "mean - var": PURPLE}
_KINDS = {"proxy": BLUE, "gold": ORANGE, "gold, noisy judge": MUTED}


def curves(found: Mapping[str, Mapping[str, Pushed]]) -> Figure:
    """Gold (and the single reward model's own score) against sqrt(KL): a column a scenario, a row a way of pushing; one seed."""
    ways = list(next(iter(next(iter(found.values())).values())).curves)
    with canvas(len(ways), len(found), width=14.5, height=8.4, title="What is optimised, and what is meant by it", sharex="row", sharey="row") as (figure, axes):
        for column, (scenario, rewards) in enumerate(found.items()):
            for row, way in enumerate(ways):
                _curve(axes[row, column], rewards, way)
                axes[row, column].set_xlabel("d = square root of KL to the reference, nats")
            axes[0, column].set_title(f"{scenario}: {SCENARIOS[scenario].shows}", fontsize=10)
        for row, way in enumerate(ways):
            axes[row, 0].set_ylabel(f"{way}: score, sd of the reference")
        figure.supxlabel("Lines: gold, by what is optimised. Dashed: the single reward model's own score. Dotted: d (alpha - beta d) fitted to the single one up to 1.5 times its peak (ring). One seed.", fontsize=9, color=MUTED, x=0.01, ha="left")  # fmt: skip
    return figure


def _curve(axes: Axes, rewards: Mapping[str, Pushed], way: str) -> None:
    single = rewards["single"].curves[way]
    axes.axhline(0, color=MUTED, linewidth=0.6)
    axes.plot(single.distance, single.proxy, color=INK, linestyle=(0, (5, 2)), linewidth=1.2, label="its own score")
    for name, colour in _REWARDS.items():
        curve = rewards[name].curves[way]
        axes.plot(curve.distance, curve.gold, color=colour, label=name)
    law = rewards["single"].fits[way, "d"]
    near = np.linspace(0, 1.5 * single.distance[single.peak], 100)
    near = near[near <= single.distance[-1]]
    axes.plot(near, law(near), color=BLUE, linestyle=":", linewidth=2.2)
    axes.plot(single.distance[single.peak], single.gold[single.peak], "o", markersize=9, markerfacecolor="none", markeredgecolor=BLUE, markeredgewidth=1.6)
    label_ends(axes)


def alarms(runs: Mapping[str, Sequence[Watched]]) -> Figure:
    """One run from within, the rank correlation of all three kinds, and what was lost when each rule spoke."""
    spoiled = runs["proxy"]
    with canvas(1, 3, width=15, height=5, title="Is the alarm in time? Runs whose true gold is known", width_ratios=[1.15, 1, 1]) as (figure, axes):
        _one(axes[0, 0], spoiled[0])
        steps = np.arange(1, len(spoiled[0].gold) + 1)
        for kind, colour in _KINDS.items():
            ranks = np.array([[values_of(e).get(f"monitor/gold{CORRELATION}", np.nan) for e in w.events] for w in runs[kind]])
            axes[0, 1].plot(steps, moving_mean(np.nanmean(ranks, 0), RECENT), color=colour, label=kind)
        axes[0, 1].axhline(0, color=MUTED, linewidth=0.6)
        axes[0, 1].axvline(float(np.median([w.peak for w in spoiled])), color=BLUE, linewidth=1, linestyle=":")
        axes[0, 1].annotate("gold's peak ", (float(np.median([w.peak for w in spoiled])), -0.55), ha="right", fontsize=9, color=BLUE)
        axes[0, 1].set(title="do reward and judge rank the samples alike?", xlabel="step", ylabel=f"rank correlation, mean of {RECENT} steps and {len(spoiled)} runs")
        label_ends(axes[0, 1])
        _gone(axes[0, 2], spoiled)
    return figure


def _one(axes: Axes, w: Watched) -> None:
    steps = np.arange(1, len(w.gold) + 1)
    for name, label, colour in (("reward/proxy", "reward model", INK), ("monitor/gold", "gold, sampled", BLUE)):
        axes.plot(steps, [e[name] for e in w.events], color=colour, linewidth=0.9, alpha=0.7, label=label)
    axes.plot(steps, w.gold, color=BLUE, linewidth=2.2)
    low = axes.get_ylim()[0]
    for step, text, colour in ((w.alarm("ranks"), "alarm", ORANGE), (w.peak, "peak", BLUE), (w.lost, "a tenth lost", MUTED), (w.alarm("slopes"), "slopes alone", PURPLE)):
        if step is not None:
            axes.axvline(step, color=colour, linewidth=1.3, linestyle=":")
            axes.annotate(f"{text} {step} ", (step, low), rotation=90, ha="right", va="bottom", fontsize=9, color=colour)
    axes.set(title="one run: the reward model is gamed", xlabel="step", ylabel="standard deviations of the reference")
    label_ends(axes)


def _gone(axes: Axes, spoiled: Sequence[Watched]) -> None:
    """One mark a run and rule: share of the peak's gold that was lost when it spoke."""
    order = np.argsort([w.gone(w.alarm("ranks")) for w in spoiled])
    for rule, colour, marker in (("ranks", ORANGE, "o"), ("slopes", PURPLE, "D")):
        spoke = [spoiled[i].alarm(rule) for i in order]
        lost = [100 * spoiled[i].gone(a) for i, a in zip(order, spoke, strict=True)]
        for there, face in ((True, colour), (False, "none")):
            points = [(x, y) for x, (a, y) in enumerate(zip(spoke, lost, strict=True), 1) if (a is not None) == there]
            if points:
                axes.plot(*zip(*points, strict=True), marker, color=colour, markerfacecolor=face, markersize=7, label=rule if there else f"{rule}: never", linestyle="none")
    axes.axhline(10, color=INK, linewidth=1, linestyle="--")
    axes.axhline(0, color=MUTED, linewidth=0.6)
    axes.annotate(" in time below", (0.6, 10), va="bottom", fontsize=9)
    axes.set(title="gold lost when each rule spoke", xlabel="run", ylabel="% of the peak; negative: before the peak", xticks=range(1, len(spoiled) + 1))
    axes.legend(loc="upper left")
