"""Tabular Q-learning on a grid, beside the exact solution; and what walls, exploration, penalty and chance change.

Every exercise predicts with the exact equations first (value iteration, policy evaluation), then measures the learner.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from truing.labs import gridworld_agents, gridworld_changes
from truing.labs.canvas import BLUE, band, canvas, moving_mean
from truing.labs.gridworld_world import Options, train, world
from truing.labs.lab import Check, Findings, Table
from truing.labs.tabular import Array, draw_map, enough, first_best, optimal, over_seeds, reference, said, steps_to_end
from truing.maths.exploration import epsilon_greedy
from truing.maths.planning import greedy, policy_evaluation
from truing.methods import q_learning
from truing.methods.prediction import follow

__all__ = ["SEEDS", "Options", "expectation", "run"]
SEEDS = 10
EXERCISES: dict[str, Callable[[Options, Sequence[int]], Findings]] = {
    "exploration": gridworld_agents.exploration,
    "reinforce": gridworld_agents.reinforce,
    "penalty": gridworld_changes.penalty,
    "random": gridworld_agents.random,
    "slip": gridworld_changes.slip,
}


def expectation(options: Options) -> str:
    if options.exercise in ("main", "walls"):
        return (
            "the greedy policy walks a shortest way on every seed; the start's value is exact to 0.02; the return while learning ends within 0.03 of "
            "what an epsilon-greedy agent with the exact values would get; and where nothing is random no estimate ever exceeds the exact one "
            "(it starts at 0, below, and each step averages things below), so cells off the way stay too low: they are visited too rarely"
        )
    return (gridworld_agents.EXPECTED | gridworld_changes.EXPECTED)[options.exercise]


def run(options: Options, seeds: Sequence[int]) -> Findings:
    enough("gridworld", seeds)
    if options.exercise in ("main", "walls"):
        return _main(options, seeds)
    return EXERCISES[options.exercise](options, seeds)


def _main(options: Options, seeds: Sequence[int]) -> Findings:
    env = world(options)
    grid = env.unwrapped
    mdp, start = grid.mdp(), grid.start
    values, q_best = optimal(mdp, options.discount)
    runs = [train(options, env, seed) for seed in seeds]
    walks = [
        follow(env, first_best(run.q), episodes=1 if options.chance == 0 else 200, seed=seed, max_steps=200) for run, seed in zip(runs, seeds, strict=True)
    ]
    best = greedy(q_best)
    shortest, return_best = float(steps_to_end(mdp, best)[start]), float(policy_evaluation(mdp, best, 1.0)[start])
    exploring = float(policy_evaluation(mdp, epsilon_greedy(q_best, options.epsilon), 1.0)[start])

    late = options.late
    online = over_seeds(run.returns[-late:].mean() for run in runs)
    lengths, returns = over_seeds(w.lengths.mean() for w in walks), over_seeds(w.returns.mean() for w in walks)
    start_value = over_seeds(run.q[start].max() for run in runs)
    off = [np.abs(run.q - q_best)[~mdp.terminal].max() for run in runs]
    above = max(float((run.q - q_best).max()) for run in runs)
    table = Table(
        f"Q-learning after {options.episodes} episodes, {len(seeds)} seeds",
        ("quantity", "learned", "exact"),
        [
            ("value of the start", start_value, float(values[start])),
            ("steps to the goal, greedy", lengths, shortest),
            ("return, greedy", returns, return_best),
            (f"return while learning, last {late} episodes", online, exploring),
            ("largest error of any action's value", over_seeds(off), 0.0),
        ],
    )
    good = sum(bool(w.terminated.all() and w.lengths.mean() <= shortest * (1 if options.chance == 0 else 1.1) + 1e-9) for w in walks)
    checks = [
        Check("the greedy policy walks a shortest way on every seed", f"{good} of {len(seeds)} seeds; {said(lengths, 1)} steps, exactly {shortest:.4g}", good == len(seeds)),
        Check(
            "the start's value is exact to 0.02", f"{said(start_value, 3)}, exactly {values[start]:.3f}",
            max(abs(start_value.low - values[start]), abs(start_value.high - values[start])) <= 0.02,
        ),
        Check(
            "the return while learning ends within 0.03 of the exact epsilon-greedy one", f"{said(online, 3)}, exactly {exploring:.3f}",
            max(abs(online.low - exploring), abs(online.high - exploring)) <= 0.03,
        ),
    ]  # fmt: skip
    if options.chance == 0 and float(q_best.min()) >= 0:
        checks.append(Check("no estimate exceeds the exact value", f"largest estimate - exact over all seeds: {above:.1e}", above <= 1e-9))
    figure = _figure(options, grid, values, q_best, runs, exploring)
    name = "gridworld" if options.exercise == "main" else "gridworld-walls"
    return Findings(checks, [table], {name: figure}, {"values_exact": values, "values_learned": [run.q.max(-1) for run in runs], "shortest": shortest})


def _figure(options: Options, grid: Any, values: Array, q_best: Array, runs: list[q_learning.TabularRun], exploring: float) -> Any:
    q, side = runs[0].q, options.side
    common: dict[str, Any] = dict(walls=grid.walls, start=grid.start_cell, goal=grid.goal_cell)
    inside = [s for s in range(side * side) if not grid.mdp().terminal[s]]
    common["limits"] = (
        min(0.0, float(values[inside].min())) if side > 4 else float(min(values[inside].min(), q.max(-1)[inside].min())),
        float(values[inside].max()),
    )
    with canvas(1, 3, width=13.5, height=4.9, title="Q-learning on a grid, beside the exact solution", width_ratios=[1, 1, 1.1]) as (figure, axes):
        learned, exact, curve = axes[0]
        draw_map(learned, side, side, q.max(-1), policy=greedy(q), **common)
        learned.set(title=f"learned: max Q after {options.episodes} episodes", xlabel="pale beside the exact value: hardly ever visited")
        draw_map(exact, side, side, values, policy=greedy(q_best), **common)
        exact.set(title="exact: value iteration", xlabel="several arrows: equally good")
        returns = moving_mean([run.returns for run in runs], 10)
        band(curve, np.arange(1, options.episodes + 1), returns, "Q-learning", BLUE)
        curve.set(xlabel="episode", ylabel="return of an episode (mean of 10)", xlim=(0, options.episodes))
        reference(curve, exploring, f"exact values, epsilon {options.epsilon:g}: {exploring:.3f}", above=False)
        curve.set_title(f"learning: mean of {len(runs)} seeds, 10th to 90th percentile")
    return figure
