"""The grid's exercises that compare agents: ways to explore, Q-learning against REINFORCE, random against trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from truing.labs.canvas import BLUE, GREEN, INK, MUTED, ORANGE, PURPLE, band, canvas, label_ends, moving_mean
from truing.labs.gridworld_world import Options, train, world
from truing.labs.lab import Check, Findings, Table
from truing.labs.tabular import draw_map, draw_path, episodes_until, first_best, optimal, over_seeds, reference, said, steps_to_end, whole_log
from truing.maths.exploration import boltzmann, epsilon_greedy
from truing.maths.planning import Mdp, greedy, policy_evaluation
from truing.maths.stats import wilson
from truing.methods import tabular_reinforce
from truing.methods.prediction import follow

EXPECTED = {
    "exploration": (
        "a softmax temperature is measured against the *differences* between action values (a wrong step costs about 0.04 here), not against the values (about 1): with exact "
        "values tau = 0.1 wanders. A learner that has tried everything (its estimates start at 1, above all that can be earned) earns just what the exact values predict, so "
        "less than epsilon = 0.1. One whose estimates start at 0 escapes: what it hardly tried stays near 0, a gap of the size of the values, and it is greedy out of ignorance. "
        "Epsilon-greedy hardly depends on the start"
    ),
    "reinforce": (
        "Q-learning needs fewer episodes, because each step teaches and values flow back from state to state, where REINFORCE hears one number an episode; "
        "REINFORCE varies more from seed to seed; in the end it comes within 0.02 of the best return, as its own randomness fades by itself"
    ),
    "random": "the random agent's returns, lengths and successes are those its Markov chain says; the trained agent reaches the goal every time, in a fraction of the steps",
}  # fmt: skip


def _ends_by(mdp: Mdp, policy: np.ndarray, start: int, longest: int) -> np.ndarray:
    """The exact probability of having terminated after 0, 1, ..., longest steps."""
    step = np.einsum("sa,sat->st", policy, mdp.transitions)
    step[mdp.terminal] = np.eye(len(step))[mdp.terminal]
    where, ended = np.eye(len(step))[start], []
    for _ in range(longest + 1):
        ended.append(float(where[mdp.terminal].sum()))
        where = where @ step
    return np.array(ended)


def exploration(options: Options, seeds: Sequence[int]) -> Findings:
    env = world(options)
    mdp, start = env.unwrapped.mdp(), env.unwrapped.start
    _, best = optimal(mdp, options.discount)
    late, ask = options.late, options.epsilon
    settings = [("epsilon", x) for x in sorted({0.01, 0.03, 0.1, 0.3, ask})] + [("tau", x) for x in sorted({0.003, 0.01, 0.03, 0.1, 0.3, options.temperature})]
    runs: dict[tuple[str, float, float], Any] = {}
    for kind, x in settings:
        how: dict[str, Any] = dict(epsilon=x) if kind == "epsilon" else dict(epsilon=None, temperature=x)
        for initial in (0.0, 1.0):
            runs[kind, x, initial] = [train(options, env, s, initial_q=initial, **how) for s in seeds]
    rule = {"epsilon": epsilon_greedy, "tau": boltzmann}
    exact = {(kind, x): float(policy_evaluation(mdp, rule[kind](best, x), 1.0)[start]) for kind, x in settings}
    ends = {key: over_seeds(r.returns[-late:].mean() for r in value) for key, value in runs.items()}
    table = Table(
        f"return in the last {late} of {options.episodes} episodes, {len(seeds)} seeds", ("exploration", "estimates start at 0", "at 1", "with exact values", "steps, start at 0", "at 1"),
        [(f"{kind} {x:g}", ends[kind, x, 0.0], ends[kind, x, 1.0], exact[kind, x], *(over_seeds(r.lengths[-late:].mean() for r in runs[kind, x, i]) for i in (0.0, 1.0))) for kind, x in settings],
    )  # fmt: skip
    hot = options.temperature
    wide, narrow = (
        (over_seeds(a.returns[-late:].mean() - b.returns[-late:].mean() for a, b in zip(runs["epsilon", ask, i], runs["tau", hot, i], strict=True)))
        for i in (1.0, 0.0)
    )
    unmoved = over_seeds(a.returns[-late:].mean() - b.returns[-late:].mean() for a, b in zip(runs["epsilon", ask, 0.0], runs["epsilon", ask, 1.0], strict=True))
    followed = max(abs(ends["tau", x, 1.0].mean - exact["tau", x]) for kind, x in settings if kind == "tau")
    checks = [
        Check(f"once everything has been tried (start at 1), epsilon {ask:g} earns more than tau {hot:g}", f"difference {said(wide, 3)}", wide.low > 0),
        Check("and softmax earns what the exact values predict, to 0.05 at every temperature", f"largest difference {followed:.3f}", followed < 0.05),
        Check(
            f"from a start at 0, tau {hot:g} does not pay for its temperature: it earns no less than epsilon {ask:g} by 0.02",
            f"difference {said(narrow, 3)}",
            narrow.high < 0.02,
        ),
        Check("epsilon-greedy's return depends on the start by less than 0.02", f"difference {said(unmoved, 3)}", -0.02 < unmoved.low and unmoved.high < 0.02),
    ]
    with canvas(1, 3, width=13.5, height=4.5, title="Exploring: epsilon-greedy against softmax", width_ratios=[1.25, 1, 1]) as (figure, axes):
        curve, *sweeps = axes[0]
        shown = {
            ("epsilon", ask, 0.0): (BLUE, f"ε = {ask:g}"),
            ("tau", hot, 0.0): (ORANGE, f"τ = {hot:g}"),
            ("tau", hot, 1.0): (PURPLE, f"τ = {hot:g}, Q from 1"),
        }
        for key, (colour, name) in shown.items():
            band(curve, np.arange(1, options.episodes + 1), moving_mean([r.returns for r in runs[key]], 20), name, colour)
        curve.set(xlabel="episode", ylabel="return (mean of 20 episodes)", title="while learning", ylim=(None, 1.08))
        label_ends(curve)
        low = min([*exact.values(), *(e.low for e in ends.values())])
        for axis, kind, word, colours in zip(sweeps, ("epsilon", "tau"), ("ε", "temperature τ"), ((BLUE, GREEN), (ORANGE, PURPLE)), strict=True):
            xs = [x for k, x in settings if k == kind]
            fine = np.geomspace(xs[0], xs[-1], 60)
            axis.plot(fine, [policy_evaluation(mdp, rule[kind](best, float(x)), 1.0)[start] for x in fine], color=MUTED, linewidth=1.2, label="exact values")
            for initial, colour, mark in zip((0.0, 1.0), colours, ("o", "s"), strict=True):
                e = np.array([ends[kind, x, initial] for x in xs])
                axis.errorbar(xs, e[:, 0], [e[:, 0] - e[:, 1], e[:, 2] - e[:, 0]], fmt=mark, color=colour, capsize=3, markersize=5 + 2 * initial,
                              markerfacecolor="white" if initial else colour, label=f"learned, Q starts at {initial:g}", zorder=2 if initial else 3)  # fmt: skip
            axis.set(xscale="log", xlabel=word, title=f"return at the end, by {word}", ylim=(low - 0.08, 1.0))
            axis.legend(loc="lower left")
    return Findings(checks, [table], {"gridworld-exploration": figure}, {"exact": {f"{k} {x:g}": v for (k, x), v in exact.items()}})


def reinforce(options: Options, seeds: Sequence[int]) -> Findings:
    env = world(options)
    mdp, start = env.unwrapped.mdp(), env.unwrapped.start
    best = greedy(optimal(mdp, options.discount)[1])
    shortest, top = float(steps_to_end(mdp, best)[start]), float(policy_evaluation(mdp, best, 1.0)[start])
    plain, mean = "REINFORCE", "REINFORCE, mean baseline"
    runs = {"Q-learning": [train(options, env, s) for s in seeds]}
    for name in (plain, mean):
        settings: dict[str, Any] = dict(episodes=options.episodes, alpha=options.policy_alpha, discount=options.discount, baseline=name == mean)
        runs[name] = [tabular_reinforce.learn(env, seed=s, **settings) for s in seeds]
    late, learned = options.late, {name: episodes_until([r.lengths for r in value], 1.25 * shortest) for name, value in runs.items()}
    ends = {name: over_seeds(r.returns[-late:].mean() for r in value) for name, value in runs.items()}
    table = Table(
        f"{options.episodes} episodes, {len(seeds)} seeds; learned = the mean of 20 episodes' steps is within 25% of the shortest way's {shortest:.4g}",
        ("agent", "episodes until learned", "seeds that never did", f"return, last {late}", "steps, last"),
        [
            (
                name,
                over_seeds(learned[name]),
                int((learned[name] == options.episodes).sum()),
                ends[name],
                over_seeds(r.lengths[-late:].mean() for r in runs[name]),
            )
            for name in runs
        ],
    )
    more = over_seeds(learned[mean] - learned["Q-learning"])
    spread = {name: float(np.std(learned[name], ddof=1)) for name in runs}
    checks = [
        Check("Q-learning needs fewer episodes than REINFORCE with a mean baseline", f"{said(more, 0)} episodes fewer", more.low > 0),
        Check(
            "REINFORCE varies more from seed to seed",
            f"standard deviation of the episodes needed: {spread[plain]:.0f} plain, {spread[mean]:.0f} with a baseline, {spread['Q-learning']:.0f} Q-learning",
            min(spread[plain], spread[mean]) > spread["Q-learning"],
        ),
        Check("with the baseline it ends within 0.02 of the best return", f"{said(ends[mean], 3)}, best {top:.3f}", ends[mean].low > top - 0.02),
    ]
    with canvas(width=9.5, height=4.6, title="Values or preferences: Q-learning against REINFORCE") as (figure, axes):
        axis = axes[0, 0]
        for (name, value), colour in zip(runs.items(), (BLUE, ORANGE, PURPLE), strict=True):
            band(axis, np.arange(1, options.episodes + 1), moving_mean([r.lengths for r in value], 10), name, colour)
        axis.set(
            xlabel="episode",
            ylabel="steps to the goal (mean of 10 episodes)",
            yscale="log",
            xlim=(0, options.episodes),
            ylim=(0.75 * shortest, None),
            title=f"mean of {len(seeds)} seeds; band: 10th to 90th percentile of the seeds",
        )
        reference(axis, shortest, f"shortest way, {shortest:.4g} steps", above=False)
        whole_log(axis)
        label_ends(axis)
    return Findings(checks, [table], {"gridworld-reinforce": figure}, {"episodes_until_learned": {k: v.tolist() for k, v in learned.items()}})


def random(options: Options, seeds: Sequence[int]) -> Findings:
    env, limit, games = world(options), 200, 50
    grid = env.unwrapped
    mdp, start = grid.mdp(), grid.start
    best = optimal(mdp, options.discount)[1]
    uniform = np.full(best.shape, 1 / best.shape[1])
    trained = [train(options, env, s).q for s in seeds]
    played = {
        "random": [follow(env, uniform, episodes=games, seed=s, max_steps=limit) for s in seeds],
        "trained, still exploring": [
            follow(env, epsilon_greedy(q, options.epsilon), episodes=games, seed=s, max_steps=limit) for q, s in zip(trained, seeds, strict=True)
        ],
        "trained, greedy": [follow(env, first_best(q), episodes=games, seed=s, max_steps=limit) for q, s in zip(trained, seeds, strict=True)],
    }
    policies = dict(zip(played, (uniform, epsilon_greedy(best, options.epsilon), greedy(best)), strict=True))
    ended = {name: _ends_by(mdp, policy, start, limit) for name, policy in policies.items()}
    # The number of steps is at least t + 1 exactly when the walk has not ended by step t, so the mean sums these probabilities; 200 steps are the limit.
    mean_steps = {name: float((1 - e[:-1]).sum()) for name, e in ended.items()}
    rows = [(name, over_seeds(w.returns.mean() for w in walks), over_seeds(w.lengths.mean() for w in walks), mean_steps[name],
             wilson(sum(int(w.terminated.sum()) for w in walks), games * len(seeds)), float(ended[name][-1])) for name, walks in played.items()]  # fmt: skip
    table = Table(
        f"{games} episodes of each of {len(seeds)} seeds, cut at {limit} steps", ("agent", "return", "steps", "steps, exact", "goal reached", "exactly"), rows
    )
    lengths = over_seeds(w.lengths.mean() for w in played["random"])
    faster = over_seeds(a.lengths.mean() / b.lengths.mean() for a, b in zip(played["random"], played["trained, greedy"], strict=True))
    success = sum(int(w.terminated.sum()) for w in played["trained, greedy"])
    exact = mean_steps["random"]
    wide = 3 * (lengths.high - lengths.low) / 2
    checks = [
        Check("the random agent takes the steps its Markov chain says", f"{said(lengths, 1)}, exactly {exact:.1f}", abs(lengths.mean - exact) <= wide),
        Check("the trained agent reaches the goal every time", f"{success} of {games * len(seeds)} episodes", success == games * len(seeds)),
        Check("in less than a third of the random agent's steps", f"random / trained: {said(faster, 1)}", faster.low > 3),
    ]
    with canvas(1, 3, width=13.5, height=4.6, title="Random against trained", width_ratios=[1, 1, 1.5]) as (figure, axes):
        pictures = (("random", ORANGE, "a random episode"), ("trained, greedy", BLUE, "a trained episode"))
        for axis, (name, colour, words) in zip(axes[0, :2], pictures, strict=True):
            draw_map(axis, options.side, options.side, walls=grid.walls, start=grid.start_cell, goal=grid.goal_cell)
            walk = played[name][0]
            middle = int(np.argsort(walk.lengths)[games // 2])  # of median length
            n = int(walk.lengths[middle])
            draw_path(axis, [*walk.states[middle, :n], walk.next_states[middle, n - 1]], options.side, colour, shake=0.16 if name == "random" else 0.0)
            axis.set_title(f"{words}: {n} steps")
        chart = axes[0, 2]
        for (name, walks), colour in zip(played.items(), (ORANGE, BLUE, GREEN), strict=True):
            steps = np.arange(limit + 1)
            share = np.array([[np.mean((w.lengths <= t) & w.terminated) for t in steps] for w in walks]).mean(0)
            chart.step(steps[1:], 100 * share[1:], where="post", color=colour, label=name)
            chart.step(
                steps[1:],
                100 * ended[name][1:],
                where="post",
                color=INK,
                linewidth=0.9,
                linestyle=(0, (3, 2)),
                label="exact" if name == "trained, greedy" else None,
            )
        chart.set(xscale="log", xlabel="steps", ylabel="episodes at the goal by then (%)", ylim=(0, 103), xlim=(4, limit), title="how long it takes")
        whole_log(chart, "x")
        chart.legend(loc="lower right", bbox_to_anchor=(1.0, 0.05))
    return Findings(checks, [table], {"gridworld-random": figure}, {"mean_steps_exact": mean_steps})
