"""The short corridor: why a policy may have to be random, and REINFORCE finding out, with a baseline and without.

Sutton and Barto, 2nd ed., example 13.1 and figures 13.1 and 13.2. The three states look alike, so a policy is one number,
p(right): a softmax over two preferences, whose gradient is `maths.tabular.gradient_bandit`'s, with the return in the
place of the reward.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from truing.config import Frozen
from truing.envs.chains import CORRIDOR_BEST_RIGHT, CORRIDOR_BEST_VALUE, Corridor, corridor_value
from truing.labs.canvas import COLOURS, INK, MUTED, canvas, label_ends, moving_mean
from truing.labs.lab import Cell, Check, Findings, Table
from truing.maths.exploration import boltzmann
from truing.maths.planning import policy_evaluation
from truing.maths.stats import Interval, bootstrap, wilson
from truing.maths.tabular import gradient_bandit, toward
from truing.seeds import stream

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Array = NDArray[np.float64]
SEEDS = 3
LIMIT = 1000  # steps: an episode that has not ended by then is cut. From p(right) = 0.05, the usual start, one in 10^5 is that long
CHUNK = 64  # steps drawn at a time
NAMES = {12: "α = 2⁻¹²", 13: "α = 2⁻¹³", 14: "α = 2⁻¹⁴"}
KNOWN = {12: "-15.8", 13: "-12.6", 14: "-14.9"}  # an independent run's mean of episodes 900 on
BASELINE = "with baseline, α = 2⁻⁹"


class Options(Frozen):
    """What ``--set`` may change."""

    exercise: Literal["main", "step_size", "baseline", "flipped"] = Field(
        "main",
        description="main: what a policy is worth, and REINFORCE looking for the best one; step_size: figure 13.1, and where it breaks; "
        "baseline: figure 13.2; flipped: the gradient with the wrong sign",
    )
    runs: Annotated[int, Field(ge=2)] = Field(100, description="independent runs for each seed, side by side")
    episodes: Annotated[int, Field(ge=150)] | None = Field(None, description="episodes of each run; null = 1,000, and 150 for flipped")
    start: Annotated[float, Field(ge=0.02, le=0.98)] = Field(0.05, description="p(right) before learning; the figures start from ε-greedy left, 0.05")

    @property
    def length(self) -> int:
        return self.episodes or (150 if self.exercise == "flipped" else 1000)

    @property
    def as_published(self) -> bool:
        return self.start == 0.05 and self.length == 1000


@dataclass(frozen=True)
class Learned:
    """Runs side by side: ``n`` of them, by episode."""

    returns: Array  # [episodes, n]; -LIMIT where the episode was cut
    right: Array  # [episodes, n], p(right) in that episode

    def score(self, first: int, last: int) -> Array:
        """The mean return of each run over episodes first to last, counted from 1: ``[n]``."""
        return np.asarray(self.returns[first - 1 : last].mean(0))

    @property
    def late(self) -> Array:
        """The mean return of each run over its last tenth."""
        return self.score(len(self.returns) - len(self.returns) // 10 + 1, len(self.returns))

    @property
    def lost(self) -> NDArray[np.bool_]:
        """Runs whose last tenth holds an episode that did not end: the policy has become deterministic."""
        return np.asarray((self.returns[-(len(self.returns) // 10) :] == -LIMIT).any(0))


def reinforce(options: Options, seeds: Sequence[int], alpha: float, alpha_w: float = 0.0, *, as_printed: bool = False) -> Learned:
    """REINFORCE with gamma = 1: ``theta += alpha (G_t - w) grad log pi(a_t)``, ``w += alpha_w (G_t - w)``, over the steps t of an episode.

    The gradients of an episode are taken at the theta that acted: the policy gradient. ``as_printed`` takes each at the
    theta that the steps before it have moved already, as the book's pseudo-code does, which is nearly the same while steps
    are small. ``alpha_w = 0`` is no baseline. A cut episode teaches nothing: its return is not known.
    """
    follows = Corridor().mdp().transitions.argmax(-1)  # [state, action] to state: the corridor is certain
    goal, n = len(follows) - 1, options.runs * len(seeds)
    draws = [np.random.default_rng(stream(seed, "corridor.act")) for seed in seeds]
    odds = np.log(options.start / (1 - options.start)) / 2
    theta, w = np.tile([[-odds], [odds]], n).T, np.zeros(n)  # [n, 2]: the preferences for left and right
    returns, right = np.empty((options.length, n)), np.empty((options.length, n))
    for episode in range(options.length):
        right[episode] = boltzmann(theta, 1.0)[:, 1]
        state, steps = np.zeros(n, int), np.zeros(n, int)
        actions: list[NDArray[np.int64]] = []
        while (state != goal).any() and len(actions) < LIMIT:
            uniform = np.concatenate([rng.random((CHUNK, options.runs)) for rng in draws], 1)
            for action in (uniform < right[episode]).astype(int)[: LIMIT - len(actions)]:
                steps += state != goal
                state = follows[state, action]
                actions.append(action)
        returns[episode] = -steps
        steps[state != goal] = 0
        acted = theta
        for t in range(steps.max()):
            inside = t < steps
            g, v = inside * (t - steps), inside * w  # the return from here is minus the steps that are left
            w = toward(w, np.where(inside, g, w), alpha_w)
            at = theta if as_printed else acted
            theta = theta + gradient_bandit(at, actions[t], g, v, alpha) - at
    return Learned(returns, right)


def expectation(options: Options) -> str:
    return EXPECTED[options.exercise]


def run(options: Options, seeds: Sequence[int]) -> Findings:
    return EXERCISES[options.exercise](options, seeds)


def _interval(x: Array, statistic: Callable[[Array], Array] | None = None) -> Interval:
    return bootstrap(x, resamples=2000, statistic=statistic)


def _said(x: Interval, digits: int = 1) -> str:
    return f"{x.mean:.{digits}f} [{x.low:.{digits}f}, {x.high:.{digits}f}]"


def _near_best(x: Interval) -> bool:
    """Within 1.5 of the optimum, the whole interval."""
    return abs(x.low - CORRIDOR_BEST_VALUE) < 1.5 and abs(x.high - CORRIDOR_BEST_VALUE) < 1.5


# -- example 13.1 -----------------------------------------------------------------------------------------------------------


def main(options: Options, seeds: Sequence[int]) -> Findings:
    mdp = Corridor().mdp()
    grid = np.linspace(0.001, 0.999, 999)
    exact = np.array([policy_evaluation(mdp, np.tile([1 - p, p], (4, 1)), 1.0)[0] for p in grid])
    best = int(exact.argmax())
    left, right = exact[49], exact[949]  # p = 0.05 and 0.95
    plain, based = reinforce(options, seeds, 2.0**-13), reinforce(options, seeds, 2.0**-9, 2.0**-6)
    checks = [
        Check("the best policy is random: p(right) = 2 - √2 = 0.586, worth -6 - 4√2 = -11.657", f"p = {grid[best]:.3f}, v = {exact[best]:.3f}, by solving for {len(grid)} policies", bool(abs(grid[best] - 0.5858) < 0.001 and abs(exact[best] + 11.657) < 0.001)),
        Check("ε-greedy, ε = 0.1, is worth -82 when it prefers left, -44 when it prefers right", f"{left:.1f} and {right:.1f}", bool(round(left) == -82 and round(right) == -44)),
    ]  # fmt: skip
    late = [_interval(x.late) for x in (plain, based)]
    if options.as_published:
        checks += [
            Check(f"REINFORCE, {name}, comes within 1.5 of the optimum", f"last 100 episodes {_said(x)}", _near_best(x)) for name, x in zip((NAMES[13], BASELINE), late, strict=True)
        ]  # fmt: skip
    rows: list[tuple[Cell, ...]] = [
        ("ε-greedy, prefers left", 0.05, float(left), "-82"), ("ε-greedy, prefers right", 0.95, float(right), "-44"), ("the best", float(grid[best]), float(exact[best]), "-11.6"),
        (f"REINFORCE, {NAMES[13]}", _interval(plain.right[-1]), late[0], KNOWN[13] if options.as_published else ""),
        (f"REINFORCE, {BASELINE}", _interval(based.right[-1]), late[1], ""),
    ]  # fmt: skip
    title = "The short corridor: three states that look alike"
    table = Table(
        f"{title} ({plain.right.shape[1]} runs; REINFORCE: p after, return over the last tenth of {options.length:,} episodes)",
        ("policy", "p(right)", "return", "known"),
        rows,
    )
    with canvas(1, 2, width=12, height=5, title=title) as (figure, axes):
        _values(axes[0, 0], grid, exact, {NAMES[13]: plain.right[-1], BASELINE: based.right[-1]})
        _curves(axes[0, 1], {NAMES[13]: plain, BASELINE: based})
        axes[0, 1].set_title("REINFORCE: return by episode")
    return Findings(checks, [table], {"corridor": figure})


def _values(axes: Axes, grid: Array, exact: Array, found: dict[str, Array]) -> None:
    """The value of every policy, the three that have names, and where runs of REINFORCE ended."""
    axes.plot(grid, exact, color=INK)
    for p, text, place, side in (
        (0.05, "ε-greedy left", (12, 0), "left"),
        (0.95, "ε-greedy right", (-10, -6), "right"),
        (CORRIDOR_BEST_RIGHT, "best", (0, 9), "center"),
    ):
        value = corridor_value(p)
        axes.plot(p, value, "o", color=INK, markersize=6)
        axes.annotate(f"{text}: {value:.1f}", (p, value), xytext=place, textcoords="offset points", ha=side, va="center" if side != "center" else "bottom")
    for i, (name, ends) in enumerate(found.items()):
        level = -63 - 14 * i
        spread = np.random.default_rng(0).uniform(-2.2, 2.2, len(ends))
        axes.plot(ends, level + spread, ".", color=COLOURS[i], markersize=5, alpha=0.5, markeredgewidth=0)
        axes.annotate(f"REINFORCE, {name}: {len(ends)} runs", (0.5, level + 3.2), color=COLOURS[i], fontsize=9, ha="center", va="bottom")
    axes.set(xlim=(0, 1), ylim=(-92, 0), xlabel="p(right)", ylabel="expected return from the start", title="What a policy is worth, and where runs ended")


def _curves(axes: Axes, learned: dict[str, Learned], bottom: float = -90, width: int = 10) -> None:
    """Mean return over the runs, smoothed over a few episodes, beside the optimum."""
    for colour, (name, one) in zip(COLOURS, learned.items(), strict=False):
        y = moving_mean(one.returns.mean(1), width)
        axes.plot(np.arange(1, len(y) + 1), y, color=colour, label=name, linewidth=1.4)
    axes.set(xlim=(1, len(y)), ylim=(bottom, 0), xlabel="episode", ylabel=f"return (mean of the runs and of {width} episodes)")
    axes.axhline(CORRIDOR_BEST_VALUE, color=MUTED, linewidth=0.9, linestyle=(0, (4, 3)))
    axes.annotate(f"the best: {CORRIDOR_BEST_VALUE:.1f}", (1.0, CORRIDOR_BEST_VALUE), xycoords=("axes fraction", "data"), xytext=(-4, 4), textcoords="offset points", ha="right", color=MUTED, fontsize=9)  # fmt: skip
    label_ends(axes)


# -- figure 13.1 ------------------------------------------------------------------------------------------------------------


def step_size(options: Options, seeds: Sequence[int]) -> Findings:
    by_episode = {k: reinforce(options, seeds, 2.0**-k) for k in (12, 13, 14)}
    by_step = {k: reinforce(options, seeds, 2.0**-k, as_printed=True) for k in (12, 13, 14)}
    late = _interval(by_episode[13].late)
    slower, quicker = _interval(by_episode[13].late - by_episode[14].late), _interval(by_episode[12].score(101, 150) - by_episode[13].score(101, 150))
    lost = {k: wilson(int(x.lost.sum()), len(x.lost)) for k, x in by_step.items()}
    percent = [f"{100 * lost[k].mean:.1f} % [{100 * lost[k].low:.1f}, {100 * lost[k].high:.1f}]" for k in (12, 13, 14)]
    checks = [
        Check(f"{NAMES[14]} is slower than {NAMES[13]}", f"its last tenth is lower by {_said(slower)}", slower.low > 0),
        Check(f"{NAMES[12]} is quicker, and loses no run", f"ahead by {_said(quicker)} in episodes 101 to 150; {int(by_episode[12].lost.sum())} lost", quicker.low > 0 and not by_episode[12].lost.any()),
        Check(f"updated step by step, as printed, {NAMES[12]} is too large: some runs end deterministic, more than with {NAMES[13]}", f"lost {percent[0]} of the runs; {percent[1]}; {percent[2]}", lost[12].low > lost[13].mean),
    ]  # fmt: skip
    if options.as_published:
        middle = _interval(by_step[13].late, lambda x: np.median(x, -1))
        checks.insert(0, Check(f"{NAMES[13]} comes within 1.5 of the optimum", f"last 100 episodes {_said(late)}", _near_best(late)))
        checks.append(Check(f"as printed, the median run of {NAMES[13]} does too", f"last 100 episodes {_said(middle)}", _near_best(middle)))
    rows: list[tuple[Cell, ...]] = []
    for how, group in (("whole episode", by_episode), ("step by step, as printed", by_step)):
        for k, x in group.items():
            rows.append(
                (
                    how,
                    NAMES[k],
                    _interval(x.late),
                    float(np.median(x.late)),
                    float(x.late.min()),
                    100 * float(x.lost.mean()),
                    KNOWN[k] if group is by_step and options.as_published else "",
                )
            )
    title = "REINFORCE's step size on the short corridor (figure 13.1)"
    columns = ("update", "step size", "return, mean of the runs", "median", "worst run", "lost (%)", "known mean")
    table = Table(f"{title}: last tenth of {options.length:,} episodes, {by_step[13].returns.shape[1]} runs", columns, rows)
    with canvas(1, 2, width=12.5, height=5, title=title, sharey=True) as (figure, axes):
        for column, (heading, group) in enumerate((("Updated once an episode", by_episode), ("Updated step by step, as the book prints it", by_step))):
            _curves(axes[0, column], {NAMES[k]: x for k, x in group.items()}, bottom=-100)
            axes[0, column].set_title(heading)
        axes[0, 1].set_ylabel("")
        axes[0, 1].annotate(f"lost for good: {100 * lost[12].mean:.1f} % of the runs of {NAMES[12]},\n{100 * lost[13].mean:.1f} % of {NAMES[13]}, {100 * lost[14].mean:.1f} % of {NAMES[14]}", (0.97, 0.04), xycoords="axes fraction", ha="right", color=MUTED)  # fmt: skip
    return Findings(checks, [table], {"step_size": figure})


# -- figure 13.2 ------------------------------------------------------------------------------------------------------------


def baseline(options: Options, seeds: Sequence[int]) -> Findings:
    plain, based = reinforce(options, seeds, 2.0**-13), reinforce(options, seeds, 2.0**-9, 2.0**-6)
    early = {name: _interval(x.score(101, 150)) for name, x in (("plain", plain), ("based", based))}
    ahead = _interval(based.score(101, 150) - plain.score(101, 150))
    checks = [
        Check("with a learned baseline REINFORCE is much faster: 10 a return or more ahead in episodes 101 to 150", f"ahead by {_said(ahead)}", ahead.low > 10)
    ]
    if options.as_published:
        checks.insert(0, Check("by episodes 101 to 150 it is within 1.5 of the optimum", _said(early["based"]), _near_best(early["based"])))
    rows: list[tuple[Cell, ...]] = [
        (
            NAMES[13] + ", no baseline",
            early["plain"],
            "-27.2" if options.as_published else "",
            _interval(plain.late),
            KNOWN[13] if options.as_published else "",
        ),
        (f"{BASELINE}, α_w = 2⁻⁶", early["based"], "-12.2" if options.as_published else "", _interval(based.late), ""),
    ]
    title = "A learned baseline makes REINFORCE faster (figure 13.2)"
    table = Table(f"{title}: {plain.returns.shape[1]} runs", ("agent", "return, episodes 101 to 150", "known", "last tenth", "known (last)"), rows)
    with canvas(1, 1, width=9.5, height=5, title=title) as (figure, axes):
        _curves(axes[0, 0], {NAMES[13] + ", no baseline": plain, BASELINE: based})
    return Findings(checks, [table], {"baseline": figure})


# -- the wrong sign ---------------------------------------------------------------------------------------------------------


def flipped(options: Options, seeds: Sequence[int]) -> Findings:
    right, wrong = (reinforce(options, seeds, sign * 2.0**-9, 2.0**-6) for sign in (1, -1))
    worse = _interval(wrong.late - wrong.returns[0])
    better = _interval(right.late - right.returns[0])
    checks = [
        Check("with the right sign the return rises", f"by {_said(better)}", better.low > 0),
        Check(
            "with the wrong sign it falls, and most runs end deterministic",
            f"by {_said(worse)}; {100 * wrong.lost.mean():.0f} % lost",
            worse.high < 0 and wrong.lost.mean() > 0.5,
        ),
    ]
    rows: list[tuple[Cell, ...]] = [
        (name, _interval(x.returns[0]), _interval(x.late), 100 * float(x.lost.mean())) for name, x in (("right", right), ("wrong", wrong))
    ]
    title = "The policy gradient with the wrong sign"
    table = Table(f"{title} ({options.length} episodes, cut at {LIMIT:,} steps)", ("sign", "first return", "last tenth", "lost (%)"), rows)
    return Findings(checks, [table], {"flipped": _sign_figure(right, wrong, title)})


def _sign_figure(right: Learned, wrong: Learned, title: str) -> Figure:
    with canvas(1, 1, width=9.5, height=5, title=title) as (figure, grid):
        axes: Axes = grid[0, 0]
        for colour, (name, one) in zip(COLOURS, {"right sign": right, "wrong sign": wrong}.items(), strict=False):
            axes.plot(np.arange(1, len(one.returns) + 1), -one.returns.mean(1), color=colour, label=name)
        axes.set_yscale("log")
        axes.set_yticks([10, 30, 100, 300, 1000], ["10", "30", "100", "300", "1,000 (cut)"])
        axes.minorticks_off()
        axes.set(xlim=(1, len(right.returns)), ylim=(9, 1300), xlabel="episode", ylabel="steps to the goal (mean of the runs, log scale)")
        label_ends(axes)
    return figure


EXERCISES: dict[str, Callable[[Options, Sequence[int]], Findings]] = {"main": main, "step_size": step_size, "baseline": baseline, "flipped": flipped}
EXPECTED = {
    "main": "No deterministic policy ever reaches the goal, and ε-greedy is poor; the best policy goes right with probability 0.586 and needs 11.7 steps. REINFORCE finds it.",
    "step_size": "2⁻¹³ approaches the best return and 2⁻¹⁴ is slower. 2⁻¹² is quicker as long as a whole episode makes one step; "
    "updated step by step, as the book prints it, some of its runs are thrown to a deterministic policy and never come back, which spoils the mean.",
    "baseline": "A learned baseline takes the common part out of the returns, so the step size can be 16 times as large: it is there by episode 100, and without it learning takes hundreds more.",
    "flipped": "Descending where one should ascend makes every return worse, until the policy is deterministic and no episode ends.",
}
