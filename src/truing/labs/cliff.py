"""Cliff walking: Q-learning learns the short way along the edge and pays for it while exploring; SARSA learns the safe one (example 6.6)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import gymnasium
import numpy as np
from pydantic import Field

import truing.envs  # noqa: F401  (registers the environment)
from truing.config import Frozen, Rate, Share
from truing.errors import ConfigError
from truing.labs.canvas import BLUE, GREEN, INK, MUTED, ORANGE, band, canvas, label_ends, moving_mean
from truing.labs.lab import Check, Findings, Table
from truing.labs.tabular import draw_path, enough, first_best, optimal, over_seeds, said
from truing.maths.exploration import epsilon_greedy
from truing.maths.planning import policy_evaluation
from truing.methods import q_learning
from truing.methods.prediction import follow

SEEDS = 50
NAMES: dict[q_learning.Rule, str] = {"q_learning": "Q-learning", "sarsa": "SARSA", "expected_sarsa": "expected SARSA"}
SHADES = dict(zip(NAMES, (ORANGE, BLUE, GREEN), strict=True))
ROWS, COLUMNS, START = 4, 12, 36
SHORTEST = -13.0  # up, 11 times right, down


class Options(Frozen):
    """What ``--set`` may change."""

    exercise: Literal["main", "epsilon"] = Field("main", description="the three rules at one epsilon, or what exploration costs each")
    alpha: Rate = Field(0.5, description="step size")
    epsilon: Share = Field(0.1, description="share of random actions; the exercise epsilon has its own")
    discount: Share = Field(1.0, description="gamma")
    episodes: Annotated[int, Field(ge=20)] = Field(500, description="how long each agent learns")
    epsilons: tuple[Share, ...] = Field((0.01, 0.05, 0.1, 0.2), min_length=2, max_length=8, description="what the exercise epsilon compares")


def expectation(options: Options) -> str:
    if options.exercise == "epsilon":
        return (
            "the more it explores, the more Q-learning pays for walking along the edge, just what the exact return of its way at that epsilon says; the two SARSAs, which value "
            "what they really do, pay less, and at the smallest epsilon the three differ least"
        )
    return (
        "Q-learning's greedy way is the shortest, -13, on every seed, yet its returns while learning are the worst, near -50; SARSA, which values what it really does, keeps "
        "away from the edge and earns at least 15 more (near -25), expected SARSA a little more again (near -21)"
    )


def run(options: Options, seeds: Sequence[int]) -> Findings:
    enough("cliff", seeds)
    env = gymnasium.make("truing/Cliff-v0", disable_env_checker=True)
    return _main(options, env, seeds) if options.exercise == "main" else _epsilon(options, env, seeds)


def _train(options: Options, env: Any, rule: q_learning.Rule, epsilon: float, seed: int) -> q_learning.TabularRun:
    return q_learning.learn(env, rule=rule, episodes=options.episodes, alpha=options.alpha, discount=options.discount, epsilon=epsilon, seed=seed)


def _late(options: Options) -> int:
    return min(100, options.episodes // 2)


def _main(options: Options, env: Any, seeds: Sequence[int]) -> Findings:
    late = _late(options)
    runs = {rule: [_train(options, env, rule, options.epsilon, s) for s in seeds] for rule in NAMES}
    ways = {rule: [follow(env, first_best(r.q), episodes=1, seed=s, max_steps=100) for r, s in zip(value, seeds, strict=True)] for rule, value in runs.items()}
    online = {rule: np.array([r.returns[-late:].mean() for r in value]) for rule, value in runs.items()}
    arrived = {rule: [bool(w.terminated[0]) for w in value] for rule, value in ways.items()}
    greedy_return = {rule: [float(w.returns[0]) for w, there in zip(ways[rule], arrived[rule], strict=True) if there] for rule in NAMES}
    table = Table(
        f"cliff walking, {options.episodes} episodes, {len(seeds)} seeds",
        ("rule", f"return while learning, last {late}", "greedy ways that arrive", "their return", "falls an episode, last"),
        [(NAMES[rule], over_seeds(online[rule]), f"{sum(arrived[rule])} of {len(seeds)}", over_seeds(greedy_return[rule]) if len(greedy_return[rule]) > 1 else None,
          over_seeds((-(r.returns[-late:] + r.lengths[-late:]) / 99).mean() for r in runs[rule])) for rule in NAMES],
    )  # fmt: skip
    exact = sum(r == SHORTEST for r in greedy_return["q_learning"])
    gap, expected = over_seeds(online["sarsa"] - online["q_learning"]), over_seeds(online["expected_sarsa"] - online["sarsa"])
    checks = [
        Check("Q-learning's greedy way returns exactly -13 on every seed", f"{exact} of {len(seeds)} seeds", exact == len(seeds)),
        Check("SARSA's return while learning is better than Q-learning's by 15 or more", f"difference {said(gap, 1)}", gap.low >= 15),
        Check("expected SARSA's is better again", f"difference {said(expected, 1)}", expected.low > 0),
    ]
    return Findings(checks, [table], {"cliff": _figure(options, runs, ways)}, {"online": {r: v.tolist() for r, v in online.items()}})


def _map(axis: Any) -> None:
    from matplotlib.patches import Rectangle

    axis.set(xlim=(0, COLUMNS), ylim=(ROWS, 0), xticks=[], yticks=[], aspect="equal")
    axis.grid(False)
    axis.spines[:].set_visible(False)
    for row in range(ROWS):
        for column in range(COLUMNS):
            cliff = row == ROWS - 1 and 0 < column < COLUMNS - 1
            if not cliff:
                axis.add_patch(Rectangle((column, row), 1, 1, facecolor="#eef2f5", edgecolor="white", linewidth=1.2))
    axis.add_patch(Rectangle((1, ROWS - 1), COLUMNS - 2, 1, facecolor="#555b61", edgecolor="white", linewidth=1.2))
    axis.text(COLUMNS / 2, ROWS - 0.5, "the cliff: -100, back to the start", color="white", ha="center", va="center", fontsize=8.5)
    for column, word in ((0, "S"), (COLUMNS - 1, "G")):
        axis.text(column + 0.5, ROWS - 0.5, word, ha="center", va="center", color=INK, fontweight="bold", fontsize=10, zorder=5)


def _figure(options: Options, runs: dict[Any, list[q_learning.TabularRun]], ways: dict[Any, list[Any]]) -> Any:
    from matplotlib.gridspec import GridSpec

    with canvas(width=11.8, height=5.2, title="Cliff walking: the short way and the safe one") as (figure, axes):
        axes[0, 0].remove()
        grid = GridSpec(3, 2, figure=figure, width_ratios=[1.1, 1])
        curve = figure.add_subplot(grid[:, 0])
        for rule, name in NAMES.items():
            band(curve, np.arange(1, options.episodes + 1), moving_mean([r.returns for r in runs[rule]], 20), name, SHADES[rule])
        n = len(next(iter(runs.values())))
        curve.set(
            xlabel="episode",
            ylabel="return of an episode (mean of 20)",
            ylim=(-105, 0),
            xlim=(0, options.episodes),
            title=f"while learning, epsilon {options.epsilon:g}; {n} seeds, 10th to 90th percentile",
        )
        curve.axhline(SHORTEST, color=MUTED, linestyle=(0, (4, 3)), linewidth=1.0)
        curve.annotate(
            "the shortest way, -13", (0.01, SHORTEST), xycoords=("axes fraction", "data"), xytext=(0, 3), textcoords="offset points", color=MUTED, fontsize=9
        )
        label_ends(curve)
        for i, (rule, name) in enumerate(NAMES.items()):
            axis = figure.add_subplot(grid[i, 1])
            _map(axis)
            there = [w for w in ways[rule] if w.terminated[0]]
            for w, shift in zip(there, np.linspace(-0.16, 0.16, max(len(there), 1)), strict=False):
                k = int(w.lengths[0])
                draw_path(
                    axis,
                    [*w.states[0, :k], w.next_states[0, k - 1]],
                    COLUMNS,
                    SHADES[rule],
                    shift=float(shift),
                    alpha=min(1.0, 4 / max(len(there), 1)),
                    width=1.6,
                )
            lost = len(ways[rule]) - len(there)
            axis.set_title(f"{name}: {len(there)} greedy ways" + (f" ({lost} went in circles)" if lost else ""), fontsize=10)
    return figure


def _epsilon(options: Options, env: Any, seeds: Sequence[int]) -> Findings:
    late, epsilons = _late(options), sorted(set(options.epsilons))
    if len(epsilons) < 2:
        raise ConfigError(f"epsilons={list(options.epsilons)}: give two different ones or more, to compare them")
    mdp = env.unwrapped.mdp()
    _, best = optimal(mdp, options.discount)
    online = {(rule, e): np.array([_train(options, env, rule, e, s).returns[-late:].mean() for s in seeds]) for rule in NAMES for e in epsilons}
    edge = {e: float(policy_evaluation(mdp, epsilon_greedy(best, e), 1.0)[START]) for e in epsilons}
    table = Table(
        f"return while learning, last {late} of {options.episodes} episodes, {len(seeds)} seeds", ("epsilon", *NAMES.values(), "shortest way, exactly"),
        [(f"{e:g}", *(over_seeds(online[rule, e]) for rule in NAMES), edge[e]) for e in epsilons],
    )  # fmt: skip
    gaps = {e: over_seeds(online["sarsa", e] - online["q_learning", e]) for e in epsilons}
    widening = over_seeds(
        (online["sarsa", epsilons[-1]] - online["q_learning", epsilons[-1]]) - (online["sarsa", epsilons[0]] - online["q_learning", epsilons[0]])
    )
    off = max(abs(float(online["q_learning", e].mean()) / edge[e] - 1) for e in epsilons)
    checks = [
        Check("Q-learning earns what the shortest way earns at that epsilon, to 15%", f"largest relative difference {off:.0%}", off < 0.15),
        Check(
            f"SARSA's lead is larger at epsilon {epsilons[-1]:g} than at {epsilons[0]:g}",
            f"by {said(widening, 1)}; " + ", ".join(f"{e:g}: {said(g, 1)}" for e, g in gaps.items()),
            widening.low > 0,
        ),
    ]
    with canvas(width=8.5, height=4.6, title="What exploring costs at the edge") as (figure, axes):
        axis = axes[0, 0]
        axis.plot(epsilons, [edge[e] for e in epsilons], color=MUTED, linestyle=(0, (4, 3)), linewidth=1.2, label="shortest way, exactly")
        for rule, name in NAMES.items():
            ends = np.array([over_seeds(online[rule, e]) for e in epsilons])
            axis.errorbar(
                epsilons, ends[:, 0], [ends[:, 0] - ends[:, 1], ends[:, 2] - ends[:, 0]], fmt="o-", color=SHADES[rule], capsize=3, linewidth=1.5, label=name
            )
        axis.set(xlabel="epsilon", ylabel=f"return while learning, last {late} episodes", title=f"mean of {len(seeds)} seeds, 95% intervals")
        axis.legend(loc="lower left")
    return Findings(checks, [table], {"cliff-epsilon": figure}, {"gaps": {f"{e:g}": gap for e, gap in gaps.items()}})
