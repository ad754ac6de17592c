"""How far ahead an agent plans: four roads, the further the better paid, and the discount decides which one is taken.

At a fork the agent chooses a road; the road has a length and pays once, at its end. The value of a reward k steps ahead is
gamma^(k - 1) of it, so which road is best is known in closed form, and so is the gamma at which the choice switches.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from truing.config import Frozen, Rate, Share
from truing.envs.table import Outcome, Table, Tabular, certain
from truing.errors import ConfigError
from truing.labs.canvas import COLOURS, INK, MUTED, canvas
from truing.labs.lab import Check, Findings
from truing.labs.lab import Table as Shown
from truing.labs.tabular import Array, enough, optimal, over_seeds
from truing.maths.stats import wilson
from truing.methods import q_learning

SEEDS = 5
Road = tuple[Annotated[int, Field(ge=1, le=500)], Annotated[float, Field(gt=0)]]


class Options(Frozen):
    """What ``--set`` may change."""

    discounts: tuple[Share, ...] = Field((0.0, 0.5, 0.99, 0.999), min_length=1, max_length=6, description="the values of gamma to compare; below 1")
    roads: tuple[Road, ...] = Field(
        ((1, 1.0), (3, 5.0), (20, 10.0), (100, 20.0)), min_length=2, max_length=6, description="[[steps, reward], ...], the shortest first"
    )
    alpha: Rate = Field(1.0, description="step size; nothing is random here but the choice of the road, so 1 is exact")
    episodes: Annotated[int, Field(ge=1)] = Field(600, description="walks of the learner, each down a road chosen at random")


def expectation(options: Options) -> str:
    return (
        "each discount takes the road whose reward times gamma^(steps - 1) is the largest; the choice switches where the closed form says; Q-learning, whose "
        "news of a reward travels back one state a walk, ends on the same values; and the horizon 1 / (1 - gamma), in steps, is where a reward still counts for about a third (1/e = 0.37)"
    )


def fork(roads: Sequence[tuple[int, float]]) -> Tabular:
    """State 0 is the fork, where action i enters road i; on a road every action goes on. The last state is the end, reached with the road's reward."""
    end = sum(steps - 1 for steps, _ in roads) + 1
    table: Table = [[] for _ in range(end + 1)]
    following = 1
    entries: list[tuple[Outcome, ...]] = []
    for steps, reward in roads:
        places = [*range(following, following + steps - 1), end]  # where the 1st, 2nd, ... step leads
        pays = [0.0] * (steps - 1) + [reward]
        entries.append(certain(places[0], pays[0]))
        for here, there, pay in zip(places[:-1], places[1:], pays[1:], strict=True):
            table[here] = [certain(there, pay)] * len(roads)
        following += steps - 1
    table[0] = entries
    return Tabular(table, 0)


def worth(roads: Sequence[tuple[int, float]], discount: float) -> Array:
    """The value of each road at the fork: ``reward * gamma^(steps - 1)``.

    >>> worth([(1, 1.0), (3, 5.0)], 0.5).tolist()  # 1, and 5 / 4
    [1.0, 1.25]
    """
    return np.array([reward * discount ** (steps - 1) for steps, reward in roads])


def switches(roads: Sequence[tuple[int, float]]) -> list[tuple[int, int, float]]:
    """(road, next road, gamma) wherever the best road changes as gamma rises from 0 to 1.

    Two roads are worth the same at ``gamma = (r1 / r2)^(1 / (k2 - k1))``.

    >>> [(a, b, round(gamma, 4)) for a, b, gamma in switches([(1, 1.0), (3, 5.0)])]  # (1 / 5)^(1 / 2)
    [(0, 1, 0.4472)]
    """
    here = max((i for i, (k, _) in enumerate(roads) if k == min(k for k, _ in roads)), key=lambda i: roads[i][1])
    found: list[tuple[int, int, float]] = []
    while True:
        k, r = roads[here]
        ahead = [((r / reward) ** (1 / (steps - k)), -steps, i) for i, (steps, reward) in enumerate(roads) if steps > k and reward > r]
        if not ahead:
            return found
        gamma, _, after = min(ahead)
        found.append((here, after, gamma))
        here = after


def run(options: Options, seeds: Sequence[int]) -> Findings:
    enough("discount", seeds)
    roads, gammas = options.roads, options.discounts
    lengths = [k for k, _ in roads]
    if sorted(set(lengths)) != lengths:
        raise ConfigError(f"roads={list(map(list, roads))}: write them by length, the shortest first, each length once")
    if max(gammas) >= 1:
        raise ConfigError(f"discounts={list(gammas)}: 1 has no horizon, and value iteration no bound; use values below 1, such as 0.999")
    env = fork(roads)
    mdp = env.mdp()
    learned = {g: [q_learning.learn(env, episodes=options.episodes, alpha=options.alpha, discount=g, epsilon=1.0, seed=s) for s in seeds] for g in gammas}
    rows, agreed, exact_choice, far = [], 0, True, 0.0
    for g in gammas:
        values = worth(roads, g)
        best = int(values.argmax())
        q = optimal(mdp, g)[1][0]
        exact_choice &= int(q.argmax()) == best and bool(np.allclose(q, values, atol=1e-6))
        took = [int(r.q[0].argmax()) for r in learned[g]]
        agreed += sum(t == best for t in took)
        estimates = over_seeds(r.q[0, best] for r in learned[g])
        far = max(far, max(float(np.abs(r.q[0] - values).max()) for r in learned[g]))
        rows.append(
            (
                f"{g:g}",
                f"{1 / (1 - g):.4g}",
                _named(roads[best]),
                _named(roads[max(set(took), key=took.count)]),
                wilson(sum(t == best for t in took), len(took)),
                float(values[best]),
                estimates,
            )
        )
    table = Shown(
        f"which road, {options.episodes} walks, {len(seeds)} seeds",
        ("gamma", "horizon, steps", "best road", "road learned", "seeds that take the best", "its value", "learned"),
        rows,
    )
    points = switches(roads)
    measured = [_bisect(mdp, a, b) for a, b, _ in points]
    turning = Shown("where the choice switches", ("from", "to", "gamma, closed form", "gamma, by value iteration"),
                    [(_named(roads[a]), _named(roads[b]), g, m) for (a, b, g), m in zip(points, measured, strict=True)])  # fmt: skip
    apart = max((abs(g - m) for (_, _, g), m in zip(points, measured, strict=True)), default=0.0)
    total = len(gammas) * len(seeds)
    checks = [
        Check("value iteration takes the road of the closed form", "at every gamma" if exact_choice else "not at every gamma", exact_choice),
        Check("so does Q-learning on every seed", f"{agreed} of {total}", agreed == total),
        Check("its values at the fork are exact to 0.05", f"largest error of a road's value {far:.4f}", far <= 0.05),
        Check("the switching points are those of the closed form", f"largest difference {apart:.1e}", apart < 1e-4),
    ]
    return Findings(checks, [table, turning], {"discount": _figure(options, env, learned, points)}, {"switches": [g for _, _, g in points]})


def _named(road: tuple[int, float]) -> str:
    steps, reward = road
    return f"{steps} step{'s' if steps > 1 else ''}, pays {reward:g}"


def _bisect(mdp: Any, before: int, after: int) -> float:
    """The gamma, to 1e-5, from which value iteration prefers the second road to the first."""
    low, high = 0.0, 0.99999
    while high - low > 1e-5:
        middle = (low + high) / 2
        q = optimal(mdp, middle)[1][0]
        low, high = (low, middle) if q[after] > q[before] else (middle, high)
    return (low + high) / 2


def _figure(options: Options, env: Tabular, learned: dict[float, list[q_learning.TabularRun]], points: list[tuple[int, int, float]]) -> Any:
    roads, longest = options.roads, options.roads[-1][0]
    with canvas(1, 2, width=12.5, height=5.0, title="How far ahead an agent plans") as (figure, axes):
        ahead, choice = axes[0]
        steps = np.unique(np.geomspace(1, 3000, 200).round())
        first = sum(k - 1 for k, _ in roads[:-1]) + 1  # the longest road's first state
        order = np.unique(np.geomspace(1, longest - 1, 9).round().astype(int)) if longest > 1 else np.array([], dtype=int)
        for i, (g, colour) in enumerate(zip(options.discounts, COLOURS, strict=False)):
            ahead.plot(steps, [g ** (k - 1) for k in steps], color=colour, label=f"γ = {g:g}", linewidth=1.6)
            if len(order):  # k steps before its end, the road is worth gamma^(k - 1) of its reward
                q = np.mean([r.q.max(-1) for r in learned[g]], 0)[first : first + longest - 1][::-1] / roads[-1][1]
                ahead.plot(order, q[order - 1], "o", color=colour, markerfacecolor="white", markersize=5, label="_" if i else "learned")
            horizon = 1 / (1 - g)
            if 1 < horizon < 3000:
                ahead.plot(horizon, g ** (horizon - 1), "D", color=colour, markersize=6)
                ahead.annotate(f"1/(1−γ) = {horizon:.4g}", (horizon, g ** (horizon - 1)), xytext=(7, 5) if horizon < 300 else (-8, -5),
                               textcoords="offset points", ha="left" if horizon < 300 else "right", va="bottom" if horizon < 300 else "top", color=colour, fontsize=9)  # fmt: skip
        ahead.set(
            xscale="log",
            xlabel="steps until the reward",
            ylabel="share of the reward it is worth now",
            title="lines exact, rings learned, diamonds the horizon",
            xlim=(0.9, 3000),
        )
        ahead.set_xticks([1, 10, 100, 1000], ["1", "10", "100", "1,000"])
        ahead.legend(handles=[line for line in ahead.get_lines() if str(line.get_label()).startswith("γ")], loc="upper right", bbox_to_anchor=(1.0, 0.96))
        horizons = np.geomspace(1, 3000, 400)
        gammas = 1 - 1 / horizons
        values = np.array([worth(roads, float(g)) for g in gammas])
        for i, road in enumerate(roads):
            choice.plot(horizons, values[:, i], color=MUTED, linewidth=1.0)
            choice.annotate(
                _named(road),
                (1.0, values[-1, i]),
                xycoords=("axes fraction", "data"),
                xytext=(6, 0),
                textcoords="offset points",
                va="center",
                fontsize=9.5,
                annotation_clip=False,
            )
        choice.plot(horizons, values.max(1), color=INK, linewidth=2.2, label="best road")
        for *_, g in points:
            choice.axvline(1 / (1 - g), color=MUTED, linewidth=0.8, linestyle=(0, (2, 3)))
            choice.annotate(
                f"γ = {g:.3f}",
                (1 / (1 - g), 0.98),
                xycoords=("data", "axes fraction"),
                xytext=(-2, 0),
                textcoords="offset points",
                color=MUTED,
                fontsize=9,
                rotation=90,
                ha="right",
                va="top",
            )
        for g, colour in zip(options.discounts, COLOURS, strict=False):
            best = [r.q[0].max() for r in learned[g]]
            choice.plot(max(1.0, 1 / (1 - g)), np.mean(best), "o", color=colour, markersize=8, markeredgecolor="white", zorder=4)
        choice.set(
            xscale="log",
            yscale="log",
            xlabel="planning horizon 1 / (1 − γ), steps",
            ylabel="value at the fork",
            title="dots: what Q-learning found best",
            xlim=(0.9, 3000),
            ylim=(0.5, 1.3 * values.max()),
        )
        choice.set_xticks([1, 10, 100, 1000], ["1", "10", "100", "1,000"])
        choice.set_yticks([0.5, 1, 2, 5, 10, 20], ["0.5", "1", "2", "5", "10", "20"])
        choice.minorticks_off()
    return figure
