"""The figures of the lab `programs`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from truing.labs.canvas import band, canvas, label_ends, moving_mean
from truing.observe.svg import BLUE, GREEN, INK, MUTED, ORANGE, PURPLE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from truing.labs.programs import Study

WIDTH = 5  # steps of the moving mean
PARTS = {"visible_tests": ("paid for", BLUE), "hidden_tests": ("hidden", ORANGE)}


def learning(studies: Sequence[Study]) -> Figure:
    """Tests passed while it learns, and what that is worth on tasks never met."""
    with canvas(1, 2, width=11, height=4.4, title="Unit tests teach a small model to program", width_ratios=[1.35, 1]) as (figure, axes):
        _tests(axes[0, 0], studies, "GRPO")
        axes[0, 0].set(title="tests that programs pass", ylabel=f"% of tests, mean of {WIDTH} steps", xlabel="step; hardly a task is met twice")
        label_ends(axes[0, 0])
        _held_out(axes[0, 1], studies)
    return figure


def gaps(studies: Sequence[Study]) -> Figure:
    """Paid and hidden tests with few and with many visible ones, side by side on one scale."""
    names = list(studies[0].runs)
    with canvas(1, 2, width=11, height=4.4, title="Paid for one test, it learns the test; paid for four, it learns the task", sharey=True) as (figure, axes):
        for axis, name in zip(axes[0], names, strict=True):
            _tests(axis, studies, name)
            axis.set(title=name, xlabel="step")
            alarms = [a.step for s in studies for a in s.runs[name].alarms if a.name == "gaming/hidden_tests" and a.step is not None]
            for step in alarms:
                axis.axvline(step, color=MUTED, linewidth=1.2, linestyle=":", zorder=0)
            if alarms:
                said = f"alarm, {len(alarms)} of {len(studies)} runs"
                axis.annotate(said, (max(alarms), 0.03), xycoords=("data", "axes fraction"), xytext=(4, 0), textcoords="offset points", va="bottom", fontsize=9, color=INK)
            label_ends(axis)
        axes[0, 0].set(ylabel=f"% of tests passed, mean of {WIDTH} steps")
    return figure


def _tests(axes: Axes, studies: Sequence[Study], name: str) -> None:
    for part, (label, colour) in PARTS.items():
        curves = np.stack([100 * moving_mean(s.runs[name].curves[f"part/{part}"], WIDTH) for s in studies])
        band(axes, np.arange(1, curves.shape[1] + 1), curves, label, colour)
    axes.set_ylim(0, min(100, 10 * np.ceil(axes.get_ylim()[1] / 10)))
    axes.xaxis.get_major_locator().set_params(integer=True)  # type: ignore[call-arg]  # of a MaxNLocator, which numbers have


def _held_out(axes: Axes, studies: Sequence[Study]) -> None:
    """A line a seed from the warm-up to the end of each run."""
    names = list(studies[0].runs)
    styles: dict[str, Any] = dict(zip(names, (GREEN, PURPLE), strict=False))
    for name in names:
        for s in studies:
            start, end = (100 * float(m.solved.mean()) for m in (s.before, s.after[name]))
            axes.plot([0, 1], [start, end], color=styles[name], marker="o", markersize=5, linewidth=1.3, clip_on=False)
    axes.set_ylim(0, min(100, 10 * np.ceil(axes.get_ylim()[1] / 10)))
    ends = {name: 100 * float(np.mean([s.after[name].solved.mean() for s in studies])) for name in names}
    for name, end in ends.items():
        axes.annotate(name, (1, end), xytext=(10, 0), textcoords="offset points", va="center", color=styles[name], fontsize=9.5, annotation_clip=False)
    axes.set(title="tasks never met, a line a seed", ylabel="% of programs that pass every test", xticks=[0, 1], xticklabels=["warm-up", "after"], xlim=(-0.15, 1.15))
