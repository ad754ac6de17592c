"""CartPole: REINFORCE, actor-critic and PPO side by side, and what their parts are good for.

A pole stands on a cart; each step pays 1, and after 500 the episode is cut. A fall terminates the episode, the cut only
truncates it, and the agents that have a critic tell the two apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from truing.labs import cartpole_baselines, cartpole_published, cartpole_reinforce
from truing.labs.canvas import BLUE, GREEN, INK, MUTED, ORANGE, band, canvas, label_ends
from truing.labs.cartpole_runs import CAP, SOLVED, Options, Reached, by_step, cap, highest, late, reached
from truing.labs.lab import Cell, Check, Findings, Table
from truing.methods.control import Trained
from truing.methods.policy_gradient import WINDOW, ActorCritic, Reinforce, actor_critic, reinforce
from truing.methods.ppo_control import ppo

__all__ = ["SEEDS", "Options", "expectation", "run"]
SEEDS = 3
STEPS = 100_000
LEVEL = 400.0  # mean return of 100 training episodes at which the agents' speeds are compared
AGENTS = ("REINFORCE", "REINFORCE, raw", "actor-critic", "PPO")
COLOURS = dict(zip(AGENTS, (BLUE, MUTED, ORANGE, GREEN), strict=True))


def expectation(options: Options) -> str:
    return {
        "main": f"all agents learn to balance. REINFORCE with standardised returns reaches the cap of {CAP:.0f} steps on every seed; with raw returns it is slow. The actor-critic reaches a mean of {LEVEL:.0f} in fewer "
        "environment steps than REINFORCE with raw returns on two of three seeds or more (against standardised returns neither is reliably first here: see the table). "
        f"PPO uses each step twenty times, and its last fifth averages {SOLVED:.0f} or more on every seed",
        "reinforce": cartpole_reinforce.EXPECTED,
        "baselines": cartpole_baselines.EXPECTED,
        "published": cartpole_published.EXPECTED,
        "continuous": cartpole_published.EXPECTED_CONTINUOUS,
    }[options.exercise]


def run(options: Options, seeds: Sequence[int]) -> Findings:
    return {
        "main": main, "reinforce": cartpole_reinforce.run, "baselines": cartpole_baselines.run, "published": cartpole_published.published,
        "continuous": cartpole_published.continuous,
    }[options.exercise](options, seeds)  # fmt: skip


def train(steps: int, seed: int) -> dict[str, Trained]:
    """The agents of one seed, each for so many environment steps."""
    tuned = cartpole_published.TUNED.model_copy(update={"total_steps": steps})
    return {
        "REINFORCE": reinforce(Reinforce(episodes=steps, total_steps=steps), seed),
        "REINFORCE, raw": reinforce(Reinforce(episodes=steps, total_steps=steps, baseline="none", standardise=False), seed),
        "actor-critic": actor_critic(ActorCritic(total_steps=steps), seed),
        "PPO": ppo(tuned, seed),
    }


def main(options: Options, seeds: Sequence[int]) -> Findings:
    steps = options.total_steps or STEPS
    by_seed = [train(steps, seed) for seed in seeds]
    runs = {name: [one[name] for one in by_seed] for name in AGENTS}
    first = {name: [reached(t, LEVEL) for t in group] for name, group in runs.items()}
    best = {name: [highest(t) for t in group] for name, group in runs.items()}
    end = {name: [late(t) for t in group] for name, group in runs.items()}
    full = [sum(r >= CAP for r in t.returns) for t in runs["REINFORCE"]]
    checks = [
        Check(
            "REINFORCE reaches the cap: it balances for all 500 steps, on every seed", f"{', '.join(map(str, full))} episodes of {CAP:.0f} steps", min(full) > 0
        ),
        _sooner(first["actor-critic"], first["REINFORCE, raw"]),
        Check(f"PPO's last fifth averages {SOLVED:.0f} or more on every seed", ", ".join(f"{x:.0f}" for x in end["PPO"]), min(end["PPO"]) >= SOLVED),
    ]
    rows: list[tuple[Cell, ...]] = []
    for name, group in runs.items():
        for seed, t, r, b, e in zip(seeds, group, first[name], best[name], end[name], strict=True):
            rows.append((name, seed, len(t.returns), _steps(r), r.episodes if r else "", None if np.isnan(b) else b, e))
    columns = ("agent", "seed", "episodes", f"steps until {LEVEL:.0f}", "episodes until then", "best mean of 100", "last fifth")
    title = f"CartPole-v1, {steps:,} environment steps a run; returns of training episodes, actions sampled"
    return Findings(
        checks,
        [Table(title, columns, rows)],
        {"cartpole": _figure(runs, seeds, steps)},
        {"steps_until": {n: [r.steps if r else None for r in f] for n, f in first.items()}, "last_fifth": end},
    )


def _sooner(critic: Sequence[Reached | None], other: Sequence[Reached | None]) -> Check:
    sooner = sum(bool(a and (b is None or a.steps < b.steps)) for a, b in zip(critic, other, strict=True))
    many = -(-2 * len(critic) // 3)
    return Check(
        f"the actor-critic reaches a mean of {LEVEL:.0f} in fewer environment steps than REINFORCE with raw returns on {many} of {len(critic)} seeds or more",
        f"{sooner} of {len(critic)}: " + "; ".join(f"{_steps(a)} against {_steps(b)}" for a, b in zip(critic, other, strict=True)),
        sooner >= many,
    )


def _steps(found: Any) -> str:
    return f"{found.steps:,}" if found else "never"


def _figure(runs: Mapping[str, Sequence[Trained]], seeds: Sequence[int], steps: int) -> Any:
    at = np.linspace(steps / 200, steps, 300)
    title = "CartPole-v1: following the policy gradient in several ways"
    with canvas(1, 2, width=12.5, height=4.8, title=title, width_ratios=[1.75, 1]) as (figure, axes):
        curves, dots = axes[0]
        for name, group in runs.items():
            band(curves, at, [by_step(t, at) for t in group], name, COLOURS[name])
            curves.get_lines()[-1].set_linewidth(2.8)
        cap(curves, left=True)
        curves.set(
            xlim=(0, steps),
            ylim=(0, 535),
            xlabel="environment steps",
            ylabel=f"return (mean of the last {WINDOW} episodes)",
            title=f"training: mean of {len(seeds)} seeds, 10th to 90th percentile",
        )
        curves.xaxis.set_major_formatter(lambda x, _: f"{x / 1000:.0f}k" if x else "0")
        label_ends(curves)
        for i, (name, group) in enumerate(runs.items()):
            for j, t in enumerate(group):
                found, y = reached(t, LEVEL), -i + 0.16 * ((len(group) - 1) / 2 - j)
                dots.plot([0, found.steps if found else steps], [y, y], color=COLOURS[name], alpha=0.25, linewidth=2)
                dots.plot(found.steps if found else steps, y, "o" if found else ">", color=COLOURS[name], markersize=7, fillstyle="full" if found else "none")
        dots.set_yticks(-np.arange(len(AGENTS)), AGENTS)
        for tick, name in zip(dots.get_yticklabels(), AGENTS, strict=True):
            tick.set_color(COLOURS[name])
        dots.grid(True, axis="x")
        dots.grid(False, axis="y")
        dots.tick_params(axis="y", length=0)
        dots.set(xlim=(0, steps * 1.05), ylim=(0.5 - len(AGENTS), 0.5), xlabel="environment steps", title=f"steps until the mean is {LEVEL:.0f}, by seed")
        dots.xaxis.set_major_formatter(lambda x, _: f"{x / 1000:.0f}k" if x else "0")
        if any(reached(t, LEVEL) is None for group in runs.values() for t in group):
            dots.annotate("▷ not within the run", (1.0, 0.01), xycoords="axes fraction", ha="right", va="bottom", fontsize=8.5, color=INK)
    return figure
