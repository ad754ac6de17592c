"""PPO's clipped surrogate, drawn against the ratio for both signs of the advantage, with its gradient."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import numpy as np
import torch
from pydantic import Field

from truing.config import Frozen
from truing.labs.canvas import canvas
from truing.labs.lab import Check, Findings, Table
from truing.maths.policy import clipped_surrogate
from truing.observe.svg import BLUE, GREEN, INK, MUTED, ORANGE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SEEDS = 0
Width = Annotated[float, Field(ge=0, lt=1)]
Ratio = Annotated[float, Field(gt=0, le=4)]


class Options(Frozen):
    """The bounds, and the two worked cases."""

    clip_low: Width = Field(0.2, description="the ratio's lower bound is 1 - clip_low")
    clip_high: Annotated[float, Field(ge=0, le=3)] | None = Field(None, description="the upper bound is 1 + clip_high; null takes clip_low, 0.28 is DAPO's clip-higher")
    dual_clip: Annotated[float, Field(gt=1, le=10)] | None = Field(None, description="c: bounds the loss of a negative advantage by c |A|; null is plain PPO, 3 is usual")
    good_advantage: Annotated[float, Field(gt=0)] = Field(0.4, description="advantage of an action that was better than expected")
    good_ratio: Ratio = Field(1.5, description="its worked ratio")
    bad_advantage: Annotated[float, Field(lt=0)] = Field(-0.3, description="advantage of an action that was worse than expected")
    bad_ratio: Ratio = Field(0.6, description="its worked ratio")

    @property
    def low(self) -> float:
        return 1 - self.clip_low

    @property
    def high(self) -> float:
        return 1 + (self.clip_low if self.clip_high is None else self.clip_high)


def expectation(options: Options) -> str:
    good, bad = by_hand(options, options.good_ratio, options.good_advantage), by_hand(options, options.bad_ratio, options.bad_advantage)
    return (
        f"min(ratio A, clip(ratio) A) with bounds {options.low:g} and {options.high:g}: at ratio {options.good_ratio:g}, A {options.good_advantage:g} the objective is "
        f"{good:.4g}; at ratio {options.bad_ratio:g}, A {options.bad_advantage:g} it is {bad:.4g}. The gradient is cut only where a step would go further than it was "
        f"allowed: above {options.high:g} when the action was good, below {options.low:g} when it was bad. On the other side it stays, so a policy that has "
        "strayed the wrong way is led back" + ("." if options.dual_clip is None else f", up to ratio {options.dual_clip:g}, where the dual clip cuts it too.")
    )


def by_hand(options: Options, ratio: float, advantage: float) -> float:
    """The objective in plain arithmetic, as one would on paper."""
    objective = min(ratio * advantage, min(max(ratio, options.low), options.high) * advantage)
    return objective if options.dual_clip is None or advantage >= 0 else max(objective, options.dual_clip * advantage)


def surrogate(options: Options, ratios: Sequence[float] | np.ndarray, advantage: float) -> tuple[np.ndarray, np.ndarray]:
    """The objective at each ratio, and its gradient with respect to log pi(a|s): what an update feels."""
    logp = torch.tensor(np.log(np.asarray(ratios, dtype=float))).requires_grad_()
    loss = clipped_surrogate(logp, torch.zeros_like(logp), torch.full_like(logp, advantage), options.clip_low, options.clip_high, options.dual_clip)
    (gradient,) = torch.autograd.grad(-loss.sum(), logp)
    return -loss.detach().numpy(), gradient.numpy()


def run(options: Options, seeds: Sequence[int]) -> Findings:
    """Evaluate ``truing.maths.policy.clipped_surrogate``, the loss that trains language models. Nothing is random."""
    cases = [(options.good_ratio, options.good_advantage), (options.bad_ratio, options.bad_advantage)]
    worked, checks = [], []
    for ratio, advantage in cases:
        (value,), (gradient,) = surrogate(options, [ratio], advantage)
        hand = by_hand(options, ratio, advantage)
        worked.append((ratio, advantage, ratio * advantage, float(np.clip(ratio, options.low, options.high) * advantage), float(value), float(gradient)))
        checks.append(Check(f"ratio {ratio:g}, A {advantage:g}: the objective is {hand:.4g}", f"{value:.6f}", bool(abs(value - hand) < 1e-12)))
    regions = [_region(options, *case) for case in _regions(options)]
    wrong = [row for row in regions if row[-1] == "differs"]
    checks.append(Check("the gradient is A x ratio where the rule lets it live, and 0 elsewhere", f"{len(regions) - len(wrong)} of {len(regions)} regions", not wrong))
    largest = max(_finite_difference(options, advantage) for _, advantage in cases)
    checks.append(Check("autograd agrees with finite differences", f"largest difference {largest:.1e}", largest < 1e-6))
    values = {"worked": [dict(zip(("ratio", "advantage", "unclipped", "clipped", "objective", "gradient"), row, strict=True)) for row in worked]}
    tables = [
        Table("Worked cases", ("ratio", "A", "ratio x A", "clip(ratio) x A", "objective (the smaller)", "gradient"), worked),
        Table("Where the gradient lives", ("A", "ratio", "region", "objective", "gradient", "by the rule"), regions),
    ]
    return Findings(checks, tables, {"clipping": draw(options)}, values)


def _regions(options: Options) -> list[tuple[float, float]]:
    """One point of every region: advantage and ratio."""
    inside = (options.low + options.high) / 2
    dual = options.dual_clip or 0.0
    above = (options.high + dual) / 2 if dual > options.high else options.high * 1.25  # short of the dual clip where that lies further out
    points = [(a, r) for a in (options.good_advantage, options.bad_advantage) for r in (options.low / 2, inside, above)]
    return points if options.dual_clip is None else [*points, (options.bad_advantage, max(dual, options.high) * 1.25)]


def _region(options: Options, advantage: float, ratio: float) -> tuple[float, float, str, float, float, str]:
    (value,), (gradient,) = surrogate(options, [ratio], advantage)
    beyond_dual = options.dual_clip is not None and advantage < 0 and ratio > options.dual_clip
    alive = ratio <= options.high if advantage > 0 else ratio >= options.low and not beyond_dual
    where = "beyond the dual clip" if beyond_dual else "below" if ratio < options.low else "above" if ratio > options.high else "inside"
    rule = "lives" if alive else "cut"
    expected = advantage * ratio if alive else 0.0
    return advantage, ratio, where, float(value), float(gradient), rule if abs(gradient - expected) < 1e-12 else "differs"


def _finite_difference(options: Options, advantage: float, step: float = 1e-6) -> float:
    """Largest gap between autograd and a central difference, away from the corners."""
    ratios = np.linspace(0.11, 3.9, 200)
    corners = np.array([options.low, options.high, options.dual_clip or 1.0])
    ratios = ratios[np.abs(ratios[:, None] - corners).min(1) > 1e-3]
    above, _ = surrogate(options, ratios * np.exp(step), advantage)
    below, _ = surrogate(options, ratios * np.exp(-step), advantage)
    return float(np.abs((above - below) / (2 * step) - surrogate(options, ratios, advantage)[1]).max())


# -- the drawing --------------------------------------------------------------------------------------------------------


def draw(options: Options) -> Figure:
    """Objective above, gradient below; the good action on the left, the bad one on the right."""
    cases = [
        (options.good_advantage, options.good_ratio, GREEN, "better than expected"),
        (options.bad_advantage, options.bad_ratio, ORANGE, "worse than expected"),
    ]
    right = max(2.0, options.high * 1.3, options.good_ratio * 1.15, options.bad_ratio * 1.15, (options.dual_clip or 0) * 1.2)
    ratios = np.linspace(0.02, right, 2001)
    with canvas(2, 2, width=10.5, height=6.8, sharex=True, height_ratios=[1.5, 1], title="PPO's clipped surrogate") as (figure, axes):
        for column, (advantage, worked, colour, said) in enumerate(cases):
            top, bottom = axes[0, column], axes[1, column]
            value, gradient = surrogate(options, ratios, advantage)
            alive = np.where(gradient != 0, 1.0, np.nan)
            _bounds(top, options)
            _bounds(bottom, options)
            top.plot(ratios, ratios * advantage, color=MUTED, linewidth=1.1, linestyle=(0, (4, 3)))
            top.plot(ratios, value, color=colour, linewidth=3, alpha=0.35)
            top.plot(ratios, value * alive, color=colour, linewidth=3)
            bottom.plot(ratios, gradient, color=colour, linewidth=0.8, alpha=0.5)
            bottom.plot(ratios, gradient * alive, color=colour, linewidth=3)
            bottom.plot(ratios, np.where(gradient == 0, 0.0, np.nan), color=colour, linewidth=3, alpha=0.35)
            bottom.set(xlabel=r"ratio  $\pi(a|s)\,/\,\pi_{\mathrm{old}}(a|s)$", xlim=(0, right))
            top.set_title(f"A = {advantage:g}: the action was {said}")
            _worked(top, bottom, options, advantage, worked)
            top.margins(y=0.14)
            bottom.margins(y=0.2)
        axes[0, 0].set_ylabel("objective (to be raised)")
        axes[1, 0].set_ylabel(r"its gradient by $\log\,\pi(a|s)$")
        axes[0, 0].annotate("ratio x A, without the clip", (right * 0.9, right * 0.9 * cases[0][0]), xytext=(-8, 0), textcoords="offset points", ha="right", va="center", color=MUTED, fontsize=9)  # fmt: skip
        figure.supxlabel("strong: the gradient lives; pale: it is cut, and the sample teaches nothing more", fontsize=9, color=MUTED, x=0.01, ha="left")
    return figure


def _bounds(axes: Axes, options: Options) -> None:
    axes.axvspan(options.low, options.high, color=BLUE, alpha=0.07, linewidth=0)
    axes.axvline(1.0, color=MUTED, linewidth=0.6)
    axes.axhline(0.0, color=MUTED, linewidth=0.6)
    if axes.get_subplotspec().is_first_row():  # type: ignore[union-attr]
        for bound in (options.low, options.high):
            axes.annotate(f"{bound:g}", (bound, 0), xycoords=("data", "axes fraction"), xytext=(0, 3), textcoords="offset points", ha="center", color=BLUE, fontsize=9)


def _worked(top: Axes, bottom: Axes, options: Options, advantage: float, ratio: float) -> None:
    (value,), (gradient,) = surrogate(options, [ratio], advantage)
    for axes, height in ((top, value), (bottom, gradient)):
        axes.plot([ratio], [height], "o", color=INK, markersize=7, zorder=5)
    clipped = float(np.clip(ratio, options.low, options.high))
    text = f"ratio {ratio:g}, A {advantage:g}\nmin({ratio * advantage:.3g}, {clipped * advantage:.3g}) = {value:.3g}"
    if options.dual_clip is not None and advantage < 0 and ratio > options.dual_clip:
        text = f"ratio {ratio:g}, A {advantage:g}\nmax({ratio * advantage:.3g}, {options.dual_clip:g} A) = {value:.3g}"
    good = advantage > 0  # the corner that the curve never enters: below the plateau, or above the descent
    top.annotate(
        text, (ratio, value), xytext=(0.97, 0.3 if good else 0.86), textcoords="axes fraction", ha="right", va="top", fontsize=10, color=INK,
        arrowprops={"arrowstyle": "-", "color": INK, "linewidth": 0.7, "shrinkB": 3}, bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 2},
    )  # fmt: skip
