"""The bandit figures of Sutton and Barto, 2nd ed., chapter 2, with their numbers measured again: 2.2 to 2.6, and 2.2 prolonged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from truing.labs.bandit_study import Array, Played, Window, curves, interval, meets, play_all, said
from truing.labs.canvas import COLOURS, canvas
from truing.labs.lab import Cell, Check, Findings, Table
from truing.methods.bandit import UCB, Agent, EpsilonGreedy, Gradient

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from truing.labs.bandits import Options

EXPECTED = {
    "testbed": "Greedy settles on about 1 and finds the best arm in a third of the problems; ε = 0.1 finds it in four of five by pull 1,000, 91 % at most; ε = 0.01 is slower.",
    "optimism": "A greedy agent that starts from Q = 5 is disappointed by every arm in turn, so it explores, does worse at first, and beats ε = 0.1 later.",
    "ucb": "UCB with c = 2 earns more than ε = 0.1, except in its first k pulls, which try each arm once; pull k + 1 takes the best of those and stands out as a spike.",
    "gradient": "With true values near +4 the baseline matters: without it every reward looks good, and the share of the best arm falls by 30 points or more at α = 0.4.",
    "parameters": "Each method is best at an intermediate setting (an upturned U); UCB is best of all at its best.",
    "crossover": "At pull 1,000 ε = 0.1 leads ε = 0.01; by pull 10,000 ε = 0.01, which wastes less, has overtaken it.",
}


class Known(NamedTuple):
    """What is known of one agent's last hundred pulls of 1,000: the accepted range, or the means of an independent run of 2,000 problems
    (good to 0.03 and 2 points, twice its error), and the book's words."""

    reward: str
    optimal: str
    book: str = ""


def _play(agents: Mapping[str, Agent], o: Options, seeds: Sequence[int], windows: Sequence[Window] = (), centre: float = 0.0) -> dict[str, Played]:
    return play_all(agents, seeds, problems=o.problems, arms=o.arms, steps=o.pulls, windows=[o.late, *windows], centre=centre)


def _table(title: str, played: Mapping[str, Played], o: Options, known: Mapping[str, Known]) -> Table:
    """Measured beside known. The known numbers are of 10 arms and 1,000 pulls, and shown for these only."""
    n = len(next(iter(played.values())).pulls)
    rows: list[tuple[Cell, ...]] = []
    for name, one in played.items():
        score, said_before = one.scores[o.late], known.get(name, Known("", "")) if o.published else Known("", "")
        rows.append((name, interval(score.reward), said_before.reward, interval(score.optimal, 100), said_before.optimal, said_before.book))
    columns = ("agent", "average reward", "known (± 0.03)", "best arm (%)", "known (% ± 2)", "the book says")
    return Table(f"{title}: pulls {o.late[0]:,} to {o.late[1]:,} of {n:,} problems", columns, rows)


def _two_panels(title: str, played: Mapping[str, Played]) -> Figure:
    """The book's pair: average reward above, share of the best arm below."""
    best = float(next(iter(played.values())).values[:, 0].mean())
    with canvas(2, 1, width=9.5, height=7.6, title=title, sharex=True) as (figure, axes):
        curves(axes[0, 0], played, "rewards", best=best, ylim=(-0.05, best + 0.15))
        axes[0, 0].set_xlabel("")
        curves(axes[1, 0], played, "optimal")
    return figure


# -- figure 2.2 -----------------------------------------------------------------------------------------------------------


def testbed(o: Options, seeds: Sequence[int]) -> Findings:
    names = {0.0: "ε = 0 (greedy)", 0.01: "ε = 0.01", 0.1: "ε = 0.1"}
    played = _play({name: EpsilonGreedy(epsilon=epsilon) for epsilon, name in names.items()}, o, seeds)
    late = {epsilon: played[name].scores[o.late] for epsilon, name in names.items()}
    reward = {epsilon: interval(s.reward) for epsilon, s in late.items()}
    share = {epsilon: interval(s.optimal, 100) for epsilon, s in late.items()}
    gaps = [interval(late[a].reward - late[b].reward) for a, b in ((0.1, 0.01), (0.01, 0.0))]
    ceiling = 100 * (0.9 + 0.1 / o.arms)
    checks = [
        Check("the order of the rewards: ε = 0.1, then 0.01, then greedy", f"apart by {said(gaps[0])} and {said(gaps[1])}", gaps[0].low > 0 < gaps[1].low),
        Check(f"ε = 0.1 cannot choose the best arm more than {ceiling:.1f} % of the time", said(share[0.1], " %", 1), share[0.1].mean <= ceiling),
    ]
    if o.published:
        ranges = {0.1: (1.36, 1.44, 78, 84), 0.0: (0.97, 1.07, 32, 37)}
        for epsilon, (low, high, least, most) in ranges.items():
            checks.append(Check(f"{names[epsilon]}: average reward {low:.2f} to {high:.2f}", said(reward[epsilon]), meets(reward[epsilon], low, high)))
            checks.append(Check(f"{names[epsilon]}: best arm {least} to {most} %", said(share[epsilon], " %", 1), meets(share[epsilon], least, most)))
    known = {
        names[0.0]: Known("0.97 to 1.07", "32 to 37", "about 1; the best arm in about a third of the tasks"),
        names[0.01]: Known("1.32", "62", "slower, but better in the end than ε = 0.1"),
        names[0.1]: Known("1.36 to 1.44", "78 to 84", "finds it earlier, never chooses it more than 91 %"),
    }
    title = f"The {o.arms}-armed testbed (figure 2.2)"
    return Findings(checks, [_table(title, played, o, known)], {"testbed": _two_panels(title, played)})


# -- figure 2.3 -----------------------------------------------------------------------------------------------------------


def optimism(o: Options, seeds: Sequence[int]) -> Findings:
    hopeful, plain = "optimistic: Q = 5, ε = 0", "realistic: Q = 0, ε = 0.1"
    early = (1, 50)
    agents = {hopeful: EpsilonGreedy(epsilon=0, alpha=0.1, initial=5.0), plain: EpsilonGreedy(epsilon=0.1, alpha=0.1)}
    played = _play(agents, o, seeds, [early])
    worse = interval(played[plain].scores[early].reward - played[hopeful].scores[early].reward)
    better = interval(played[hopeful].scores[o.late].optimal - played[plain].scores[o.late].optimal, 100)
    checks = [
        Check("over the first 50 pulls optimism earns less, for it explores more", f"less by {said(worse)}", worse.low > 0),
        Check("in the end it chooses the best arm more often", f"by {said(better, ' points', 1)}", better.low > 0),
    ]
    known = {hopeful: Known("1.48", "84.5", "better in the end: its exploring fades"), plain: Known("1.35", "76.7", "better at first")}
    title = "Optimistic first estimates, step size 0.1 (figure 2.3)"
    return Findings(checks, [_table(title, played, o, known)], {"optimism": _zoomed(title, played, o, "optimal", 50, "how they start")})


def _zoomed(title: str, played: Mapping[str, Played], o: Options, what: str, first: int, heading: str, mark: int | None = None) -> Figure:
    """All pulls, and the first ones again on the right."""
    with canvas(1, 2, width=12, height=4.7, title=title, gridspec_kw={"width_ratios": [1.45, 1]}) as (figure, axes):
        whole, start = axes[0]
        curves(whole, played, what, best=float(next(iter(played.values())).values[:, 0].mean()) if what == "rewards" else None)
        whole.set(title=f"All {o.pulls:,} pulls")
        for colour, one in zip(COLOURS, played.values(), strict=False):
            y = (one.rewards if what == "rewards" else 100 * one.optimal)[:first]
            start.plot(range(1, len(y) + 1), y, color=colour, marker="o", markersize=2.5, linewidth=1.3)
        start.set(title=f"The first {first}: {heading}", xlabel="pull", ylabel=whole.get_ylabel(), xlim=(0, first + 1))
        if mark is not None:
            top = next(iter(played.values())).rewards[mark - 1]
            start.annotate(f"pull {mark}", (mark, top), xytext=(14, 2), textcoords="offset points", color=COLOURS[0], fontsize=9.5, va="center")
    return figure


# -- figure 2.4 -----------------------------------------------------------------------------------------------------------


def ucb(o: Options, seeds: Sequence[int]) -> Findings:
    bound, plain = "UCB, c = 2", "ε-greedy, ε = 0.1"
    spike = o.arms + 1
    played = _play({bound: UCB(c=2.0), plain: EpsilonGreedy(epsilon=0.1)}, o, seeds, [(spike - 1, spike - 1), (spike, spike), (spike + 1, spike + 1)])
    ahead = interval(played[bound].scores[o.late].reward - played[plain].scores[o.late].reward)
    before, at, after = (played[bound].scores[(t, t)].reward for t in (spike - 1, spike, spike + 1))
    rise, fall = interval(at - before), interval(at - after)
    checks = [
        Check("UCB earns more than ε = 0.1 in the end", f"by {said(ahead)}", ahead.low > 0),
        Check(f"pull {spike} is a spike", f"above pull {spike - 1} by {said(rise)}, above pull {spike + 1} by {said(fall)}", rise.low > 0 < fall.low),
    ]
    known = {bound: Known("1.48", "85.8", "generally better, except in the first k pulls"), plain: Known("1.36 to 1.44", "78 to 84", "")}
    title = "Upper confidence bounds (figure 2.4)"
    return Findings(
        checks, [_table(title, played, o, known)], {"ucb": _zoomed(title, played, o, "rewards", 4 * o.arms, "each arm once, then the spike", spike)}
    )


# -- figure 2.5 -----------------------------------------------------------------------------------------------------------


def gradient(o: Options, seeds: Sequence[int]) -> Findings:
    settings = [(0.1, True), (0.4, True), (0.1, False), (0.4, False)]
    name = {(alpha, baseline): f"α = {alpha:g}, {'with' if baseline else 'no'} baseline" for alpha, baseline in settings}
    played = _play({name[s]: Gradient(alpha=s[0], baseline=s[1]) for s in settings}, o, seeds, centre=4.0)
    share = {s: played[name[s]].scores[o.late].optimal for s in settings}
    gaps = {alpha: interval(share[alpha, True] - share[alpha, False], 100) for alpha in (0.1, 0.4)}
    checks = [
        Check("α = 0.4: the baseline is worth 30 points of the best arm or more", said(gaps[0.4], " points", 1), gaps[0.4].mean >= 30),
        Check("α = 0.1: it is worth much, too", said(gaps[0.1], " points", 1), gaps[0.1].low > 0),
    ]
    known = {
        name[0.1, True]: Known("5.50", "85.3", "best of the four"), name[0.4, True]: Known("5.40", "68.4", ""),
        name[0.1, False]: Known("5.17", "47.7", "significantly degraded without baseline"), name[0.4, False]: Known("4.82", "29.7", "worst of the four"),
    }  # fmt: skip
    title = "Gradient bandits, true values near +4 (figure 2.5)"
    with canvas(1, 1, width=9.5, height=5, title=title) as (figure, axes):
        curves(axes[0, 0], played, "optimal")
    return Findings(checks, [_table(title, played, o, known)], {"gradient": figure})


# -- figure 2.6 -----------------------------------------------------------------------------------------------------------

SWEEPS: dict[str, tuple[str, dict[float, Agent]]] = {
    "UCB": ("c", {2.0**i: UCB(c=2.0**i) for i in range(-4, 3)}),
    "optimistic greedy": ("Q₀", {2.0**i: EpsilonGreedy(epsilon=0, alpha=0.1, initial=2.0**i) for i in range(-2, 3)}),
    "gradient bandit": ("α", {2.0**i: Gradient(alpha=2.0**i) for i in range(-5, 3)}),
    "ε-greedy": ("ε", {2.0**i: EpsilonGreedy(epsilon=2.0**i) for i in range(-7, -1)}),
}

# where each curve has room for its name: at its first or last point, this far from it in points
_NAMED_AT = {
    "UCB": (min, 0, 12, "center"),
    "optimistic greedy": (max, 10, 0, "left"),
    "gradient bandit": (min, -10, 0, "right"),
    "ε-greedy": (min, -12, -14, "left"),
}


def parameters(o: Options, seeds: Sequence[int]) -> Findings:
    window = (1, o.pulls)
    score = {}
    for name, (_, agents) in SWEEPS.items():
        played = play_all({str(x): agent for x, agent in agents.items()}, seeds, problems=o.problems, arms=o.arms, steps=o.pulls, windows=[window])
        score[name] = {x: played[str(x)].scores[window].reward for x in agents}
    best = {name: max(s, key=lambda x: float(s[x].mean())) for name, s in score.items()}
    checks: list[Check] = []
    rows: list[tuple[Cell, ...]] = []
    for name, s in score.items():
        ends = [interval(s[best[name]] - s[x]) for x in (min(s), max(s))]
        setting = f"{SWEEPS[name][0]} = {_fraction(best[name])}"
        checks.append(
            Check(
                f"{name}: an intermediate setting is best", f"{setting}, above both ends by {said(ends[0])} and {said(ends[1])}", ends[0].low > 0 < ends[1].low
            )
        )
        rows.append((name, setting, interval(s[best[name]]), *(interval(s[x]) for x in (min(s), max(s)))))
    leads = {name: interval(score["UCB"][best["UCB"]] - score[name][best[name]]) for name in SWEEPS if name != "UCB"}
    checks.append(
        Check(
            "at its best, UCB is best of all",
            "; ".join(f"over {name} by {said(lead, digits=3)}" for name, lead in leads.items()),
            all(x.low > 0 for x in leads.values()),
        )
    )
    title = f"Every method over its own parameter (figure 2.6): mean of the first {o.pulls:,} pulls"
    table = Table(title, ("method", "best setting", "average reward", "at the smallest setting", "at the largest"), rows)
    return Findings(
        checks,
        [table],
        {"parameters": _sweep_figure(score, best, title, o)},
        {name: {_fraction(x): float(r.mean()) for x, r in s.items()} for name, s in score.items()},
    )


def _sweep_figure(score: Mapping[str, Mapping[float, Array]], best: Mapping[str, float], title: str, o: Options) -> Figure:
    with canvas(1, 1, width=10, height=5.4, title=title) as (figure, grid):
        axes: Axes = grid[0, 0]
        for colour, (name, s) in zip(COLOURS, score.items(), strict=False):
            points = {x: interval(reward) for x, reward in s.items()}
            axes.fill_between(list(points), [p.low for p in points.values()], [p.high for p in points.values()], color=colour, alpha=0.15, linewidth=0)
            axes.plot(list(points), [p.mean for p in points.values()], color=colour, marker="o", markersize=3.5)
            axes.plot(best[name], points[best[name]].mean, marker="o", markersize=8.5, color=colour)
            end, x, y, side = _NAMED_AT[name]
            at = end(points)
            axes.annotate(
                f"{name} ({SWEEPS[name][0]})",
                (at, points[at].mean),
                xytext=(x, y),
                textcoords="offset points",
                ha=side,
                va="center",
                color=colour,
                annotation_clip=False,
            )
        axes.set_xscale("log", base=2)
        ticks = [2.0**i for i in range(-7, 3)]
        axes.set_xticks(ticks, [_fraction(x) for x in ticks])
        axes.set(xlabel="parameter: c, Q₀, α or ε (log scale)", ylabel=f"average reward over {o.pulls:,} pulls")
    return figure


def _fraction(x: float) -> str:
    return f"{x:g}" if x >= 1 else f"1/{1 / x:g}"


# -- figure 2.2, prolonged ------------------------------------------------------------------------------------------------


def crossover(o: Options, seeds: Sequence[int]) -> Findings:
    early = (o.pulls // 10 - o.pulls // 100 + 1, o.pulls // 10)  # as late in the first tenth as the last tenth is in all
    fast, slow = "ε = 0.1", "ε = 0.01"
    played = _play({fast: EpsilonGreedy(epsilon=0.1), slow: EpsilonGreedy(epsilon=0.01)}, o, seeds, [early])
    lead = interval(played[fast].scores[early].reward - played[slow].scores[early].reward)
    overtaken = interval(played[slow].scores[o.late].reward - played[fast].scores[o.late].reward)
    caught_up = interval(played[slow].scores[o.late].optimal - played[fast].scores[o.late].optimal, 100)
    checks = [
        Check(f"pulls {early[0]:,} to {early[1]:,}: ε = 0.1 earns more", f"by {said(lead)}", lead.low > 0),
        Check(f"pulls {o.late[0]:,} to {o.late[1]:,}: ε = 0.01 earns more", f"by {said(overtaken)}", overtaken.low > 0),
        Check("and chooses the best arm as often, within a point", f"difference {said(caught_up, ' points', 1)}", caught_up.mean > -1),
    ]
    rows: list[tuple[Cell, ...]] = []
    known = {fast: {early: ("1.36 to 1.44", "78 to 84"), o.late: ("1.38", "87.5")}, slow: {early: ("1.32", "62"), o.late: ("1.50", "88.1")}}
    for name, one in played.items():
        for window, s in sorted(one.scores.items()):
            before = known[name][window] if o.arms == 10 and o.pulls == 10_000 else ("", "")
            rows.append((name, f"{window[0]:,} to {window[1]:,}", interval(s.reward), before[0], interval(s.optimal, 100), before[1]))
    title = "The slow explorer overtakes (figure 2.2, prolonged)"
    table = Table(title, ("agent", "pulls", "average reward", "known (± 0.03)", "best arm (%)", "known (% ± 2)"), rows)
    with canvas(1, 2, width=12, height=4.7, title=title) as (figure, axes):
        for column, what in enumerate(("rewards", "optimal")):
            curves(axes[0, column], played, what, log=True)
        axes[0, 0].set(title="What they earn")
        axes[0, 1].set(title="How often they choose the best arm")
    return Findings(checks, [table], {"crossover": figure})
