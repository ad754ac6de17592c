"""The grid's exercises that change the world: what a step costs, and a floor that slips."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from truing.labs.canvas import BLUE, ORANGE, band, canvas, label_ends, moving_mean
from truing.labs.gridworld_world import Options, train, world
from truing.labs.lab import Check, Findings, Table
from truing.labs.tabular import draw_map, episodes_until, first_best, optimal, over_seeds, said, steps_to_end, whole_log
from truing.maths.planning import greedy, policy_evaluation
from truing.methods.prediction import follow

EXPECTED = {
    "penalty": (
        "a ten times larger cost of a step lowers the values as the exact solution says, and the shortest way stays the shortest. It does not teach faster: until the goal is first "
        "reached the two runs differ in scale only, so the first episode is the same; afterwards the news of the goal must outweigh a larger cost at each step back, which takes longer"
    ),
    "slip": (
        "where chance acts, a constant step size never settles: its largest error stays at a floor. A step size that decays with the visits of each pair goes on improving, "
        "to less than half of that floor and below 0.05; both greedy policies are as good as the best to 0.02"
    ),
}  # fmt: skip


def penalty(options: Options, seeds: Sequence[int]) -> Findings:
    steps = (options.step_reward, 10 * options.step_reward)
    worlds = {pay: world(options, step_reward=pay) for pay in steps}
    solved = {pay: optimal(w.unwrapped.mdp(), options.discount) for pay, w in worlds.items()}
    runs = {pay: [train(options, w, s) for s in seeds] for pay, w in worlds.items()}
    start = next(iter(worlds.values())).unwrapped.start
    shortest = {pay: float(steps_to_end(w.unwrapped.mdp(), greedy(solved[pay][1]))[start]) for pay, w in worlds.items()}
    ways = {
        pay: over_seeds(
            follow(w, first_best(r.q), episodes=1 if options.chance == 0 else 100, seed=s, max_steps=200).lengths.mean()
            for r, s in zip(runs[pay], seeds, strict=True)
        )
        for pay, w in worlds.items()
    }
    learned = {pay: episodes_until([r.lengths for r in value], 1.25 * shortest[pay]) for pay, value in runs.items()}
    early = {pay: [r.lengths[:50].sum() for r in value] for pay, value in runs.items()}
    starts = {pay: over_seeds(r.q[start].max() for r in value) for pay, value in runs.items()}
    rows = [
        (f"{pay:g}", float(solved[pay][0][start]), starts[pay], shortest[pay], ways[pay], over_seeds(learned[pay]), over_seeds(early[pay])) for pay in steps
    ]
    table = Table(f"the cost of a step, {options.episodes} episodes, {len(seeds)} seeds",
                  ("a step pays", "start, exact", "start, learned", "shortest way", "greedy way", "episodes until learned", "steps in 50 episodes"), rows)  # fmt: skip
    off = max(max(abs(starts[pay].low - solved[pay][0][start]), abs(starts[pay].high - solved[pay][0][start])) for pay in steps)
    slower = over_seeds(np.array(early[steps[1]], float) / np.array(early[steps[0]]))
    same = sum(int(a.lengths[0] == b.lengths[0]) for a, b in zip(*runs.values(), strict=True))
    checks = [
        Check("both learn the start's value to 0.02", f"largest distance of an interval's end {off:.3f}", off <= 0.02),
        Check(
            "the greedy way is the shortest one under both",
            ", ".join(f"{pay:g}: {said(ways[pay], 1)} steps of {shortest[pay]:.4g}" for pay in steps),
            all(abs(ways[p].mean - shortest[p]) <= 0.1 * shortest[p] * (options.chance > 0) + 1e-9 for p in steps),
        ),
        Check("the first episode is as long under both, seed by seed", f"{same} of {len(seeds)} seeds", same == len(seeds)),
        Check("the larger cost makes learning slower, not faster", f"steps in the first 50 episodes, larger / smaller cost: {said(slower)}", slower.low > 1),
    ]
    with canvas(1, 2, width=11.5, height=4.4, title="What a dearer step changes") as (figure, axes):
        value, length = axes[0]
        for pay, colour in zip(steps, (BLUE, ORANGE), strict=True):
            mdp = worlds[pay].unwrapped.mdp()
            far = steps_to_end(mdp, greedy(solved[pay][1]))
            order = [s for s in np.argsort(far) if not mdp.terminal[s]]
            value.plot(far[order], solved[pay][0][order], color=colour, label=f"{pay:g} a step", linewidth=1.4)
            q = np.mean([r.q.max(-1) for r in runs[pay]], 0)
            value.plot(far[order], q[order], "o", color=colour, markersize=5, markerfacecolor="white", markeredgewidth=1.4, label="_")
            band(length, np.arange(1, 101), moving_mean([r.lengths for r in runs[pay]], 5)[:, :100], f"{pay:g} a step", colour)
        value.set(xlabel="steps from the goal", ylabel="value", title="values: lines exact, rings learned (all cells)")
        length.set(xlabel="episode", ylabel="steps to the goal (mean of 5 episodes)", yscale="log", title="the first 100 episodes")
        whole_log(length)
        label_ends(value)
        label_ends(length)
    return Findings(checks, [table], {"gridworld-penalty": figure}, {"first_episodes": {f"{p:g}": [int(r.lengths[0]) for r in v] for p, v in runs.items()}})


def slip(options: Options, seeds: Sequence[int]) -> Findings:
    env = world(options)
    grid = env.unwrapped
    mdp, start = grid.mdp(), grid.start
    values, best = optimal(mdp, options.discount)
    errors: dict[str, list[list[float]]] = {}
    tables: dict[str, list[np.ndarray]] = {}
    for name, step in ((f"constant {options.alpha:g}", dict(alpha=options.alpha)), ("1 / visits^0.7", dict(alpha=1.0, decay=0.7))):
        errors[name], tables[name] = [], []
        for s in seeds:
            seen: list[float] = []
            run = train(options, env, s, epsilon=1.0, after=lambda _, q, seen=seen: seen.append(float(np.abs(q - best)[~mdp.terminal].max())), **step)
            errors[name].append(seen)
            tables[name].append(run.q)
    constant, decaying = errors
    tail = {name: over_seeds(float(np.mean(e[-50:])) for e in value) for name, value in errors.items()}
    top = float(values[start])
    worth = {name: over_seeds(policy_evaluation(mdp, first_best(q), options.discount)[start] for q in value) for name, value in tables.items()}
    ratio = over_seeds(float(np.mean(d[-50:]) / np.mean(c[-50:])) for d, c in zip(errors[decaying], errors[constant], strict=True))
    table = Table(f"slip {options.chance:g}, random behaviour, {options.episodes} episodes, {len(seeds)} seeds", ("step size", "largest error, last 50 episodes", "greedy policy's exact value", "best"),
                  [(name, tail[name], worth[name], top) for name in errors])  # fmt: skip
    checks = [
        Check("the decaying step ends below 0.05", said(tail[decaying], 4), tail[decaying].high < 0.05),
        Check("at less than half of the constant step's error", f"ratio {said(ratio)}; constant {said(tail[constant], 4)}", ratio.high < 0.5),
        Check(
            "both greedy policies are as good as the best to 0.02",
            ", ".join(f"{k}: {said(v, 3)}" for k, v in worth.items()) + f"; best {top:.3f}",
            all(v.low > top - 0.02 for v in worth.values()),
        ),
    ]
    with canvas(
        1,
        3,
        width=13.5,
        height=4.9,
        title=f"A slippery floor: one move in {1 / options.chance:.3g} is random" if options.chance else "A floor that does not slip",
        width_ratios=[1, 1, 1.15],
    ) as (figure, axes):
        common: dict[str, Any] = dict(
            walls=grid.walls, start=grid.start_cell, goal=grid.goal_cell, limits=(float(values[~mdp.terminal].min()), float(values.max()))
        )
        q = tables[decaying][0]
        draw_map(axes[0, 0], options.side, options.side, q.max(-1), policy=greedy(q), **common)
        axes[0, 0].set_title("learned, decaying step")
        draw_map(axes[0, 1], options.side, options.side, values, policy=greedy(best), **common)
        axes[0, 1].set_title("exact: value iteration")
        chart = axes[0, 2]
        for (name, curve), colour in zip(errors.items(), (ORANGE, BLUE), strict=True):
            band(chart, np.arange(1, options.episodes + 1), curve, name, colour)
        chart.set(xscale="log", yscale="log", xlabel="episode", ylabel="largest |Q - exact Q|", title="error by step size", xlim=(1, options.episodes))
        label_ends(chart)
    return Findings(checks, [table], {"gridworld-slip": figure}, {"tail_error": tail})
