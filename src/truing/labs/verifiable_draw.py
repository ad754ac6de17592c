"""The figures of the lab `verifiable`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from truing.labs.canvas import BLUE, COLOURS, GREEN, MUTED, ORANGE, band, canvas, label_ends

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from truing.labs.verifiable_groups import Groups
    from truing.labs.verifiable_runs import Measured

TRIO = (BLUE, ORANGE, GREEN)


def _shape(count: int) -> tuple[int, int]:
    """Rows and columns of panels.

    >>> _shape(3), _shape(4)
    ((1, 3), (2, 2))
    """
    rows = 2 if count > 3 else 1
    return rows, -(-count // rows)


def curves(measured: Mapping[str, Measured], names: Mapping[str, str], title: str) -> Figure:
    """Held-out accuracy over steps, a panel a task: mean and spread of the seeds."""
    rows, columns = _shape(len(measured))
    with canvas(rows, columns, width=2 + 4.2 * columns, height=0.9 + 3.1 * rows, title=title, sharey=True) as (figure, axes):
        for i, (panel, (name, m)) in enumerate(zip(axes.flat, measured.items(), strict=False)):
            for (label, said), colour in zip(names.items(), TRIO, strict=False):
                runs = [s.runs[label] for s in m.studies]
                band(panel, runs[0].at, [r.accuracy for r in runs], said, colour)
            panel.set(xlim=(0, runs[0].at[-1]), ylim=(0, 1), title=name)
            panel.set_xlabel("step (rollout)")
            if i % columns == 0:
                panel.set_ylabel("held-out accuracy")
            label_ends(panel, gap=0.075)
        for spare in axes.flat[len(measured) :]:
            spare.set_axis_off()
    return figure


def passes(measured: Mapping[str, Measured], names: Mapping[str, str], title: str) -> Figure:
    """pass@k before and after, a panel a task, with the 95% interval of each."""
    rows, columns = _shape(len(measured))
    with canvas(rows, columns, width=2 + 4.2 * columns, height=0.9 + 3.1 * rows, title=title, sharex=True, sharey=True) as (figure, axes):
        for i, (panel, (name, m)) in enumerate(zip(axes.flat, measured.items(), strict=False)):
            for label, said, colour in [(None, "before", MUTED), *zip(names, names.values(), TRIO, strict=False)]:
                found = [m.before(k) if label is None else m.after(label, k) for k in m.ks]
                panel.fill_between(m.ks, [x.low for x in found], [x.high for x in found], color=colour, alpha=0.12, linewidth=0)
                panel.plot(m.ks, [x.mean for x in found], color=colour, label=said, marker="o", markersize=3.5, linestyle="--" if label is None else "-")
            panel.set(xscale="log", ylim=(0, 1.02), title=name)
            panel.set_xticks(m.ks, [str(k) for k in m.ks])
            panel.minorticks_off()
            panel.margins(x=0.03)
            panel.grid(True, axis="both")
            if i >= len(measured) - columns:
                panel.set_xlabel("k, answers drawn")
            if i % columns == 0:
                panel.set_ylabel("pass@k")
        axes[0, 0].legend(loc="lower right")
        for spare in axes.flat[len(measured) :]:
            spare.set_axis_off()
    return figure


def groups(every: Mapping[str, Mapping[int, Groups]], sizes: Sequence[int]) -> Figure:
    """Variance of the group's mean and share of silent groups against G: points are sampled, lines the closed forms."""
    with canvas(1, 2, width=10.5, height=4.2, title="What a group of G answers says of its prompt") as (figure, axes):
        for (name, found), colour in zip(every.items(), COLOURS, strict=False):
            for panel, seen, closed in ((axes[0, 0], "variance", "expected"), (axes[0, 1], "silent", "silent_expected")):
                panel.plot(sizes, [getattr(found[g], closed).mean() for g in sizes], color=colour, linewidth=1.2, label=name)
                panel.plot(sizes, [getattr(found[g], seen).mean() for g in sizes], "o", color=colour, markersize=6, label="_sampled")
        for panel in axes.flat:
            panel.set(xscale="log", xlabel="G, answers of one prompt")
            panel.set_xticks(list(sizes), [str(g) for g in sizes])
            panel.minorticks_off()
        axes[0, 0].set(yscale="log", title="Variance of the baseline: p (1 - p) / G")
        ticks = [t for t in (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1) if axes[0, 0].get_ylim()[0] <= t <= axes[0, 0].get_ylim()[1]]
        axes[0, 0].set_yticks(ticks, [f"{t:g}" for t in ticks])
        axes[0, 0].minorticks_off()
        axes[0, 0].legend(title="points: sampled; lines: closed form", title_fontsize=9, alignment="left")
        axes[0, 1].set(ylim=(0, float(np.ceil(10 * max(f[min(sizes)].silent.mean() for f in every.values())) / 10)), title="Share of groups that say nothing")
    return figure
