"""The figure of the lab `ablations`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from truing.labs.ablations_gradient import Spread
from truing.labs.canvas import BLUE, GREEN, INK, MUTED, ORANGE, PURPLE, band, canvas, label_ends

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from truing.labs.ablations import Outcome


def draw(found: Mapping[str, Sequence[Outcome]], spreads: Sequence[Spread], faster: float) -> Figure:
    seeds = len(spreads)
    with canvas(2, 3, width=14, height=8, title=f"PPO with one part left out: exact sums over all completions, mean and range of {seeds} seeds") as (figure, axes):
        rates = (("intact", "intact", GREEN), ("clip", f"{faster:g} x, clip", BLUE), ("no clip", f"{faster:g} x, no clip", ORANGE))
        _curves(axes[0, 0], found, "apart", rates, f"Clip: {faster:g} times the learning rate", "total variation to the closed form")
        _curves(axes[0, 1], found, "proxy", (("intact", "intact", GREEN), ("beta 0", "beta 0", ORANGE)), "Beta 0: what is optimised", "proxy reward")
        _curves(axes[0, 2], found, "gold", (("intact", "intact", GREEN), ("beta 0", "beta 0", ORANGE)), "Beta 0: what is meant", "gold reward")
        _bars(axes[1, 0], spreads)
        _curves(axes[1, 1], found, "kl", (("intact", "intact", GREEN), ("flipped", "sign flipped", ORANGE)), "The KL's sign flipped", "KL(pi || ref), nats")
        _curves(axes[1, 2], found, "proxy", (("intact", "intact", GREEN), ("late", "on the padding", ORANGE)), "Reward one place late, on the padding", "proxy reward")
    return figure


def _curves(panel: Axes, found: Mapping[str, Sequence[Outcome]], key: str, shown: Sequence[tuple[str, str, str]], title: str, label: str) -> None:
    for name, said, colour in shown:
        group = found[name]
        band(panel, group[0].at, [getattr(o, key) for o in group], said, colour)
    panel.set(xlim=(0, found["intact"][0].at[-1]), xlabel="rollout", ylabel=label)
    panel.set_title(title)
    label_ends(panel)


def _bars(panel: Axes, spreads: Sequence[Spread]) -> None:
    ratios = np.array([s.traces / s.traces[0] for s in spreads])
    for i, colour in enumerate((ORANGE, PURPLE, GREEN)):
        panel.bar(i, ratios[:, i].mean(), color=colour, alpha=0.35, width=0.6)
        panel.plot([i] * len(ratios), ratios[:, i], "o", color=colour, markersize=5)
        panel.annotate(f"{ratios[:, i].mean():.2f}", (i, ratios[:, i].max()), xytext=(0, 6), textcoords="offset points", ha="center", color=INK)
    panel.set(xticks=range(3), ylabel="variance, against none", ylim=(0, 1.15 * ratios.max()))
    panel.set_xticklabels(["none", "batch mean", "V(s)"])
    panel.axhline(1, color=MUTED, linewidth=0.9, linestyle=(0, (4, 3)))
    panel.set_title("Baseline: the gradient of one frozen policy")
