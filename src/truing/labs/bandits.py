"""Ten arms: exploring against exploiting. The study and the temperature are here; the textbook's figures in `bandit_textbook`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from pydantic import Field, model_validator

from truing.config import Frozen, Share
from truing.labs import bandit_textbook as textbook
from truing.labs.bandit_study import Played, curves, interval, meets, play_all, said
from truing.labs.canvas import COLOURS, INK, MUTED, canvas, label_ends
from truing.labs.lab import Cell, Check, Findings, Table
from truing.methods.bandit import Agent, EpsilonGreedy, Softmax

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SEEDS = 3
TEMPERATURES = (0.01, 0.03, 0.1, 0.2, 0.3, 0.5, 1.0, 3.0, 10.0)
# Mean of pulls 901 to 1,000 in an independent run; its error over draws of the problems is about 0.014 and 0.9 points.
MEASURED_BEFORE = {0.1: (1.28, 57), 0.2: (1.45, 75), 0.3: (1.42, 70), 0.5: (1.24, 54), 1.0: (0.80, 32)}


class Options(Frozen):
    """What ``--set`` may change."""

    exercise: Literal["main", "temperature", "testbed", "optimism", "ucb", "gradient", "parameters", "crossover"] = Field(
        "main",
        description="main: epsilon-greedy against softmax; temperature: softmax from greedy to uniform; the others are figures of Sutton and Barto, chapter 2: "
        "testbed 2.2, optimism 2.3, ucb 2.4, gradient 2.5, parameters 2.6, and crossover, 2.2 prolonged",
    )
    problems: Annotated[int, Field(ge=2)] = Field(2000, description="bandits played side by side, for each seed")
    arms: Annotated[int, Field(ge=2)] = Field(10, description="k, how many arms there are to choose from")
    steps: Annotated[int, Field(ge=100)] | None = Field(None, description="pulls of each bandit; null = 2,000 for main, 10,000 for crossover, else 1,000")
    epsilon: Share = Field(0.1, description="share of exploring pulls; main only")
    temperature: Annotated[float, Field(gt=0)] = Field(0.1, description="tau of the softmax; main only")

    @model_validator(mode="after")
    def _is_used(self) -> Options:
        for name in ("epsilon", "temperature"):
            if self.exercise != "main" and getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(
                    f"{name}={getattr(self, name)} changes nothing in exercise={self.exercise}, which has its own; leave it out, or use exercise=main"
                )
        return self

    @property
    def pulls(self) -> int:
        return self.steps or {"main": 2000, "crossover": 10_000}.get(self.exercise, 1000)

    @property
    def late(self) -> tuple[int, int]:
        """The last tenth of the pulls, where learning is judged."""
        return self.pulls - self.pulls // 10 + 1, self.pulls

    @property
    def published(self) -> bool:
        """Whether the published numbers are about this very set-up."""
        return self.arms == 10 and self.pulls == 1000


def expectation(options: Options) -> str:
    return EXPECTED[options.exercise].format(o=options)


def run(options: Options, seeds: Sequence[int]) -> Findings:
    return EXERCISES[options.exercise](options, seeds)


# -- epsilon-greedy against softmax ---------------------------------------------------------------------------------------


def study(options: Options, seeds: Sequence[int]) -> Findings:
    greedy, soft = f"ε-greedy, ε = {options.epsilon:g}", f"softmax, τ = {options.temperature:g}"
    agents: dict[str, Agent] = {greedy: EpsilonGreedy(epsilon=options.epsilon), soft: Softmax(temperature=options.temperature)}
    whole = (1, options.pulls)
    played = play_all(agents, seeds, problems=options.problems, arms=options.arms, steps=options.pulls, windows=[whole, options.late])
    a, b = played[greedy], played[soft]
    late = {name: one.scores[options.late] for name, one in played.items()}
    ahead = interval(late[greedy].reward - late[soft].reward)
    ceiling = 100 * (1 - options.epsilon + options.epsilon / options.arms)
    rarest = [interval(one.pulls[:, -1], 100) for one in (a, b)]
    floor = 100 * options.epsilon / options.arms
    checks = [
        Check(f"{greedy} cannot choose the best arm more often than 1 - ε + ε/k = {ceiling:.1f} %", said(top := interval(late[greedy].optimal, 100), " %", 1), top.low <= ceiling),
        Check(f"{greedy} pays the worst arm its share for ever: ε/k = {floor:g} % of the pulls or a little more", said(rarest[0], " %"), bool(floor <= rarest[0].high)),
    ]  # fmt: skip
    if (options.epsilon, options.temperature) == (0.1, 0.1):
        checks += [
            Check("τ = 0.1 is too cold: it settles early, and earns less in the end than ε = 0.1", f"difference of the last rewards {said(ahead)}", ahead.low > 0),
            Check("yet softmax all but gives up the worst arm, and ε-greedy never does", f"{said(rarest[1], ' %')} against {said(rarest[0], ' %')} of the pulls", rarest[1].high < rarest[0].low),
        ]  # fmt: skip
    columns = (
        "agent",
        f"reward, all {options.pulls:,} pulls",
        f"reward, pulls {options.late[0]:,} on",
        "best arm, all pulls (%)",
        f"best arm, pulls {options.late[0]:,} on (%)",
    )
    rows: list[tuple[Cell, ...]] = [
        (n, *(interval(s.reward) for s in p.scores.values()), *(interval(s.optimal, 100) for s in p.scores.values())) for n, p in played.items()
    ]
    ranks = Table(
        "Share of all pulls by the arm's true rank (%)", ("arm", "true value", *played),
        [(rank(i), interval(a.values[:, i]), *(interval(p.pulls[:, i], 100) for p in played.values())) for i in range(options.arms)],
    )  # fmt: skip
    title = f"{options.arms} arms, {options.pulls:,} pulls: who finds the best one?"
    return Findings(checks, [Table(f"{title} ({len(a.pulls):,} problems)", columns, rows), ranks], {"bandits": _study_figure(played, title)})


def _study_figure(played: dict[str, Played], title: str) -> Figure:
    first = next(iter(played.values()))
    with canvas(2, 2, width=11, height=7.4, title=title) as (figure, axes):
        _bars(axes[0, 0], {n: 100 * p.pulls[0] for n, p in played.items()}, [f"{v:.1f}" for v in first.values[0]])
        axes[0, 0].set(title="One of the problems: its arms by true value", xlabel="true value of the arm", ylabel="share of all pulls (%)")
        ranks = axes[0, 1]
        for colour, (name, one) in zip(COLOURS, played.items(), strict=False):
            ranks.plot(range(first.pulls.shape[1]), 100 * one.pulls.mean(0), color=colour, marker="o", markersize=4.5, label=name)
        ranks.set_xticks(range(first.pulls.shape[1]), [rank(i) for i in range(first.pulls.shape[1])])
        ranks.set_yscale("log")
        ranks.yaxis.set_major_formatter("{x:g}")
        ranks.set(title=f"All {len(first.pulls):,} problems: arms by true rank", xlabel="true rank of the arm", ylabel="share of all pulls (%, log scale)")
        label_ends(ranks)
        best = float(first.values[:, 0].mean())
        curves(axes[1, 0], played, "rewards", best=best, ylim=(-0.05, best + 0.2))
        axes[1, 0].set(title="What they earn")
        curves(axes[1, 1], played, "optimal")
        axes[1, 1].set(title="How often they choose the best arm")
    return figure


def _bars(axes: Axes, shares: dict[str, np.ndarray], names: list[str]) -> None:
    x, width = np.arange(len(names)), 0.8 / len(shares)
    for i, (name, share) in enumerate(shares.items()):
        bars = axes.bar(x + (i - (len(shares) - 1) / 2) * width, share, width * 0.92, color=COLOURS[i], label=name)
        axes.bar_label(bars, [f"{s:.0f}" if s >= 1.5 else "" for s in share], fontsize=8.5, color=INK, padding=1)
    axes.set_xticks(x, names)
    axes.set_ylim(0, 105)
    axes.legend(loc="upper right")


def rank(i: int) -> str:
    """Rank i, counted from 0, in words.

    >>> [rank(i) for i in (0, 1, 2, 3, 10, 20)]
    ['best', '2nd', '3rd', '4th', '11th', '21st']
    """
    ending = "th" if (i + 1) // 10 % 10 == 1 else {1: "st", 2: "nd", 3: "rd"}.get((i + 1) % 10, "th")
    return f"{i + 1}{ending}" if i else "best"


# -- temperature ----------------------------------------------------------------------------------------------------------


def temperature(options: Options, seeds: Sequence[int]) -> Findings:
    agents: dict[str, Agent] = {"greedy": EpsilonGreedy(epsilon=0), "ε = 0.1": EpsilonGreedy(epsilon=0.1)}
    agents |= {f"τ = {tau:g}": Softmax(temperature=tau) for tau in TEMPERATURES}
    played = play_all(agents, seeds, problems=options.problems, arms=options.arms, steps=options.pulls, windows=[options.late])
    late = {name: one.scores[options.late] for name, one in played.items()}
    reward = {tau: late[f"τ = {tau:g}"].reward for tau in TEMPERATURES}
    best = max(reward, key=lambda tau: reward[tau].mean())
    below, above = (interval(reward[best] - reward[tau]) for tau in (0.1, 1.0))
    cold, hot, plateau = interval(reward[0.01] - late["greedy"].reward), interval(reward[10.0]), interval(late["ε = 0.1"].optimal, 100)
    blind = (1 - 1 / options.arms) / 10  # pi(a) = (1 + q(a) / tau - mean) / k, so the reward is the variance of q over tau
    checks = [
        Check("an interior temperature is best, 0.2 or 0.3; τ = 0.1 is too cold, τ = 1 too hot", f"best τ = {best:g}: {said(below)} over τ = 0.1, {said(above)} over τ = 1", best in (0.2, 0.3) and below.low > 0 < above.low),
        Check("τ = 0.01 earns what greedy earns, within 0.05", f"difference {said(cold, digits=3)}", -0.05 < cold.low and cold.high < 0.05),
        Check(f"τ = 10 is all but uniform, whose reward is 0: to first order (1 - 1/k) / τ = {blind:.2f}, give or take 0.02", said(hot, digits=3), meets(hot, blind - 0.02, blind + 0.02)),
        Check("ε = 0.1 stays under its ceiling of 91 %", said(plateau, " %", 1), plateau.mean <= 91),
    ]  # fmt: skip
    if options.published:
        apart = {tau: (reward[tau].mean() - r, 100 * late[f"τ = {tau:g}"].optimal.mean() - share) for tau, (r, share) in MEASURED_BEFORE.items()}
        most = [max(abs(pair[i]) for pair in apart.values()) for i in (0, 1)]
        checks.append(
            Check(
                "an independent run agrees at every τ: within 0.05 in reward, 3 points in best arm",
                f"at most {most[0]:.3f} and {most[1]:.1f} points apart",
                most[0] < 0.05 and most[1] < 3,
            )
        )
    references = {f"τ = {tau:g}": pair for tau, pair in MEASURED_BEFORE.items()} if options.published else {}
    rows: list[tuple[Cell, ...]] = [
        (name, interval(s.reward), *_pair(references, name, 0), interval(s.optimal, 100), *_pair(references, name, 1)) for name, s in late.items()
    ]
    title = "Softmax: between greedy and blind"
    table = Table(
        f"{title} (pulls {options.late[0]:,} to {options.late[1]:,})",
        ("agent", "average reward", "independent run", "best arm (%)", "independent run (%)"),
        rows,
    )
    return Findings(checks, [table], {"temperature": _temperature_figure(played, options, title)}, {"best_temperature": best})


def _pair(references: Mapping[str, tuple[float, float]], name: str, part: int) -> tuple[float | None]:
    return (references[name][part] if name in references else None,)


def _temperature_figure(played: dict[str, Played], options: Options, title: str) -> Figure:
    with canvas(1, 2, width=11, height=4.6, title=title, gridspec_kw={"width_ratios": [1, 1.25]}) as (figure, axes):
        left, right = axes[0]
        points = [interval(played[f"τ = {tau:g}"].scores[options.late].reward) for tau in TEMPERATURES]
        left.errorbar(
            TEMPERATURES,
            [p.mean for p in points],
            [[p.mean - p.low for p in points], [p.high - p.mean for p in points]],
            color=COLOURS[1],
            marker="o",
            markersize=4.5,
        )
        for name, colour, above in (("ε = 0.1", COLOURS[0], True), ("greedy", MUTED, False)):
            level = played[name].scores[options.late].reward.mean()
            left.axhline(level, color=colour, linewidth=1.1, linestyle=(0, (4, 3)))
            left.annotate(
                f"{name}: {level:.2f}", (10, level), xytext=(0, 4 if above else -11), textcoords="offset points", ha="right", color=colour, fontsize=9.5
            )
        left.set_xscale("log")
        left.set_xticks([0.01, 0.1, 1, 10], ["0.01", "0.1", "1", "10"])
        left.set(title="Reward in the end", xlabel="temperature τ (log scale)", ylabel=f"average reward, pulls {options.late[0]:,} to {options.late[1]:,}")
        left.set_ylim(0, 1.6)
        shown = {name: played[name] for name in ("τ = 0.01", "τ = 0.1", "τ = 0.2", "τ = 1", "τ = 10")}
        curves(right, shown, "rewards", best=float(next(iter(shown.values())).values[:, 0].mean()), ylim=(-0.05, 1.7))
        right.set(title="Reward on the way")
    return figure


EXERCISES: dict[str, Callable[[Options, Sequence[int]], Findings]] = {
    "main": study, "temperature": temperature, "testbed": textbook.testbed, "optimism": textbook.optimism, "ucb": textbook.ucb, "gradient": textbook.gradient,
    "parameters": textbook.parameters, "crossover": textbook.crossover,
}  # fmt: skip
EXPECTED = {
    "main": "ε = {o.epsilon:g} explores every arm alike and for ever, so it finds the best arm and then wastes a share of its pulls; softmax with τ = {o.temperature:g} "
    "leaves bad arms alone. With ε = 0.1 and τ = 0.1 softmax is so cold that it settles too early and earns less in the end.",
    "temperature": "Reward rises and falls with τ: near 0 softmax is greedy, at 10 it is blind, and in between, near 0.2 to 0.3, it beats ε = 0.1.",
    **textbook.EXPECTED,
}
