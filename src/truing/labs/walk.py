"""Predicting values on the random walk: temporal differences against whole returns (Sutton and Barto, 2nd ed., example 6.2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import gymnasium
import numpy as np
from pydantic import Field

import truing.envs  # noqa: F401  (registers the environment)
from truing.config import Frozen, Rate
from truing.labs.canvas import BLUE, INK, MUTED, ORANGE, canvas
from truing.labs.lab import Check, Findings, Table
from truing.labs.tabular import Array, enough, over_seeds, said
from truing.maths.stats import Interval
from truing.methods.prediction import Episodes, follow, monte_carlo_prediction, td_prediction

SEEDS = 10
Steps = Annotated[tuple[Rate, ...], Field(min_length=1, max_length=6)]


class Options(Frozen):
    """What ``--set`` may change."""

    states: Annotated[int, Field(ge=3, le=101)] = Field(5, description="states between the two exits, an odd number")
    episodes: Annotated[int, Field(ge=1)] = Field(100, description="walks of one run")
    runs: Annotated[int, Field(ge=1)] = Field(100, description="independent runs of each seed")
    td: Steps = Field((0.05, 0.1, 0.15), description="step sizes of TD(0)")
    monte_carlo: Steps = Field((0.01, 0.02, 0.03, 0.04), description="step sizes of constant-alpha Monte Carlo")
    initial: float = Field(0.5, description="the first estimate of every state")


def expectation(options: Options) -> str:
    return (
        "on the same walks TD(0) reaches a smaller error than Monte Carlo does with any of its step sizes; larger steps learn faster and end worse. "
        "Sutton and Barto's figure 6.2: from 0.236, TD falls below 0.05 and Monte Carlo stays above 0.075 for 100 walks"
    )


def run(options: Options, seeds: Sequence[int]) -> Findings:
    enough("walk", seeds)
    env = gymnasium.make("truing/RandomWalk-v0", disable_env_checker=True, n=options.states)
    truth = env.unwrapped.values()
    walks = [follow(env, np.ones((len(truth), 1)), episodes=options.runs * options.episodes, seed=s, max_steps=1_000_000) for s in seeds]
    arms = [("TD", a) for a in options.td] + [("MC", a) for a in options.monte_carlo]
    errors = {arm: np.array([_rms(_learn(arm, w, options), truth) for w in walks]) for arm in arms}  # [seeds, episodes + 1]
    last = options.episodes
    rows = []
    for name, alpha in arms:
        curves = errors[name, alpha]
        at = int(curves.mean(0).argmin())
        rows.append((f"{name} {alpha:g}", over_seeds(curves[:, at]), at, over_seeds(curves[:, last])))
    table = Table(
        f"RMS error over the {options.states} states, mean of {options.runs} runs for each of {len(seeds)} seeds",
        ("learner", "smallest error", "after walks", f"after {last} walks"),
        rows,
    )
    # every step size of each at its best moment: the comparison that favours neither
    lowest = {kind: min((errors[a].min(1) for a in arms if a[0] == kind), key=lambda e: float(e.mean())) for kind in ("TD", "MC")}
    gap = over_seeds(lowest["MC"] - lowest["TD"])
    checks = [
        Check(
            "TD(0)'s smallest error is below Monte Carlo's",
            f"{said(over_seeds(lowest['TD']), 4)} against {said(over_seeds(lowest['MC']), 4)}; difference {said(gap, 4)}",
            gap.low > 0,
        )
    ]
    checks += _published(options, errors, truth)
    figure = _figure(options, errors, truth, walks[0])
    return Findings(checks, [table], {"walk": figure}, {"rms": {f"{k} {a:g}": e.mean(0) for (k, a), e in errors.items()}})


def _learn(arm: tuple[str, float], walks: Episodes, options: Options) -> Array:
    predict = td_prediction if arm[0] == "TD" else monte_carlo_prediction
    return predict(walks, runs=options.runs, alpha=arm[1], initial=np.full(options.states + 2, options.initial))


def _rms(values: Array, truth: Array) -> Array:
    """``[runs, episodes + 1, states + 2]`` to the root mean square over the inner states, averaged over runs: ``[episodes + 1]``."""
    return np.asarray(np.sqrt(((values - truth)[..., 1:-1] ** 2).mean(-1)).mean(0))


def _published(options: Options, errors: dict[tuple[str, float], Array], truth: Array) -> list[Check]:
    """What holds for the book's setting only."""
    start = float(np.sqrt(((options.initial - truth[1:-1]) ** 2).mean()))
    begins = max(float(abs(e[:, 0] - start).max()) for e in errors.values())
    checks = [Check("all begin at the closed form's error", f"{start:.4f}, largest difference {begins:.1e}", begins < 1e-12)]
    book = Options()
    if any(getattr(options, name) != getattr(book, name) for name in ("states", "episodes", "initial", "td", "monte_carlo")):
        return checks
    td, mc = errors["TD", 0.1].min(1), np.min([errors["MC", a][:, -1] for a in options.monte_carlo], 0)
    slow, fast = over_seeds(errors["TD", 0.05][:, -1]), over_seeds(errors["TD", 0.15][:, -1])
    best: Interval = over_seeds(td)
    return [
        *checks,
        Check("TD with step 0.1 falls below 0.05", said(best, 4), best.high < 0.05),
        Check("no Monte Carlo ends below 0.075", said(over_seeds(mc), 4), over_seeds(mc).low > 0.075),
        Check("after 100 walks the smallest TD step is ahead of the largest", f"{said(slow, 4)} against {said(fast, 4)}", slow.high < fast.low),
    ]


def _figure(options: Options, errors: dict[tuple[str, float], Array], truth: Array, walks: Episodes) -> Any:
    alpha = options.td[len(options.td) // 2]
    values = _learn(("TD", alpha), walks, options)[0]  # one run
    inner = np.arange(1, options.states + 1)
    with canvas(1, 2, width=12.0, height=4.8, title="Predicting values on the random walk", width_ratios=[1, 1.35]) as (figure, axes):
        left, right = axes[0]
        left.plot(inner, truth[1:-1], color=INK, linewidth=1.4, label="true values")
        moments = [n for n in (0, 1, 10, 100) if n <= options.episodes]
        for n, shade in zip(moments, ("#b9d3e6", "#7fb2d6", "#3f8fc4", BLUE), strict=False):
            left.plot(inner, values[n, 1:-1], "o-", color=shade, markersize=4.5, linewidth=1.4, label=f"after {n} walk{'s' if n != 1 else ''}")
        left.set(xlabel="state", ylabel="value: chance of leaving to the right", title=f"one run of TD, step {alpha:g}")
        if options.states <= 26:
            left.set_xticks(inner, [chr(64 + i) for i in inner])
        left.legend(loc="upper left")
        x = np.arange(options.episodes + 1)
        for kind, colour, steps in (("TD", BLUE, options.td), ("MC", ORANGE, options.monte_carlo)):
            for i, a in enumerate(steps):
                style = ("-", (0, (6, 2)), (0, (3, 2)), (0, (1, 1.5)))[i % 4]
                right.plot(x, errors[kind, a].mean(0), color=colour, linestyle=style, linewidth=1.5, label=f"{kind} {a:g}")
        right.set(
            xlabel="walks",
            ylabel=f"RMS error, mean of {options.runs * len(next(iter(errors.values())))} runs",
            title="error: TD blue, Monte Carlo orange",
            ylim=(0, None),
            xlim=(0, options.episodes),
        )
        _ends(right)
    return figure


def _ends(axis: Any) -> None:
    from truing.labs.canvas import label_ends

    label_ends(axis, gap=0.05)
    axis.axhline(0, color=MUTED, linewidth=0.6)
