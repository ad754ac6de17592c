"""REINFORCE to the cap of 500 steps, episode by episode, and the decay that often follows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from truing.labs.canvas import BLUE, GREEN, ORANGE, PURPLE, band, canvas, label_ends, moving_mean
from truing.labs.cartpole_runs import CAP, SOLVED, Options, cap, highest, over, reached, told
from truing.labs.lab import Cell, Check, Findings, Table
from truing.methods.control import Trained, evaluate
from truing.methods.policy_gradient import WINDOW, Reinforce, reinforce
from truing.seeds import stream

MAIN, RAW, SUM = "standardised", "raw returns", "standardised, summed"
COLOURS = {MAIN: BLUE, RAW: ORANGE, SUM: GREEN}
PALETTE = (BLUE, ORANGE, GREEN, PURPLE, "#e69f00", "#56b4e9")
EXPECTED = (
    f"with each episode's returns standardised, REINFORCE reaches a mean of {SOLVED:.0f} over {WINDOW} episodes within 1,000 episodes on four seeds of five (--seeds 5), "
    f"and the best networks keep it in {WINDOW} fresh episodes of sampled actions; many runs decay later, because a constant learning rate goes on taking steps where there is "
    "nothing left to learn. Raw returns, all positive, push every action taken up, and are slower"
)  # fmt: skip


def variants(episodes: int) -> dict[str, Reinforce]:
    """What is compared: the default; the same without baseline and standard deviation; and the sum over an episode's steps in place of their mean."""
    return {
        MAIN: Reinforce(episodes=episodes),
        RAW: Reinforce(episodes=episodes, baseline="none", standardise=False),
        SUM: Reinforce(episodes=episodes, reduction="sum"),
    }


def needed(seeds: int) -> int:
    """Four of five, two of three, one of two."""
    return max(1, int(0.8 * seeds))


def run(options: Options, seeds: Sequence[int]) -> Findings:
    episodes = options.episodes or 1000
    runs = {name: [reinforce(config, seed) for seed in seeds] for name, config in variants(episodes).items()}
    tried = [evaluate(t, "CartPole-v1", 100, seed=stream(seed, "best"), sample=True, networks=t.best) for t, seed in zip(runs[MAIN], seeds, strict=True)]
    first = {name: [reached(t, SOLVED) for t in group] for name, group in runs.items()}
    got = [r for r in first[MAIN] if r]
    kept = [float(np.mean(x)) for x in tried]
    ahead = over([float(np.mean(a.returns) - np.mean(b.returns)) for a, b in zip(runs[MAIN], runs[RAW], strict=True)])
    checks = [
        Check(
            f"the mean of {WINDOW} episodes reaches {SOLVED:.0f} within {episodes:,} episodes on {needed(len(seeds))} of {len(seeds)} seeds or more",
            f"{len(got)} of {len(seeds)}, at episode {', '.join(str(r.episodes) if r else 'never' for r in first[MAIN])}", len(got) >= needed(len(seeds)),
        ),
        Check(
            f"the best networks, acting by chance in 100 fresh episodes, average {SOLVED:.0f} or more on as many seeds",
            f"{', '.join(f'{x:.0f}' for x in kept)}; mean {told(over(kept))}", sum(x >= SOLVED for x in kept) >= needed(len(seeds)),
        ),
        Check(
            "raw returns are slower: less return over the whole training", f"standardised ahead by {told(ahead)} an episode",
            (ahead.low if isinstance(ahead, tuple) else ahead) > 0,
        ),
    ]  # fmt: skip
    rows: list[tuple[Cell, ...]] = []
    for name, group in runs.items():
        for seed, t, r in zip(seeds, group, first[name], strict=True):
            rows.append((name, seed, r.episodes if r else "never", r.steps if r else "", highest(t), float(np.mean(t.returns[-WINDOW:])), t.steps[-1]))
    columns = ("returns", "seed", f"episodes until {SOLVED:.0f}", "steps until then", "best mean of 100", "last mean of 100", "steps in all")
    title = f"REINFORCE on CartPole-v1, {episodes:,} episodes: best networks, sampled actions, 100 fresh episodes: {told(over(kept))}"
    return Findings(
        checks,
        [Table(title, columns, rows)],
        {"reinforce": _figure(runs, seeds)},
        {"best_networks": kept, "returns": {n: [t.returns for t in g] for n, g in runs.items()}},
    )


def _figure(runs: Mapping[str, Sequence[Trained]], seeds: Sequence[int]) -> Any:
    with canvas(1, 2, width=13, height=5.3, title="REINFORCE on CartPole-v1: up to the cap, and sometimes down again", sharey=True) as (figure, axes):
        single, all_of_them = axes[0]
        for i, (seed, t) in enumerate(zip(seeds, runs[MAIN], strict=True)):
            means, colour = moving_mean(t.returns, WINDOW), PALETTE[i % len(PALETTE)]
            found = reached(t, SOLVED)
            single.plot(np.arange(1, len(means) + 1), means, linewidth=1.8, color=colour, label=f"seed {seed}: {found.episodes if found else 'never'}")
            if found:
                single.plot(found.episodes, means[found.episodes - 1], "o", color=colour, markersize=7, zorder=5, markeredgecolor="white")
        single.legend(
            title=f"episode at which it reaches {SOLVED:.0f} (dot)",
            loc="upper center",
            bbox_to_anchor=(0.5, -0.13),
            ncols=5,
            fontsize=9,
            title_fontsize=9,
            columnspacing=1.2,
            handlelength=1.2,
        )
        single.set(
            title="standardised returns, by seed",
            xlabel="episode",
            ylabel=f"return (mean of the last {WINDOW} episodes)",
            xlim=(0, max(len(t.returns) for t in runs[MAIN])),
        )
        for name, group in runs.items():
            shortest = min(len(t.returns) for t in group)
            band(all_of_them, np.arange(1, shortest + 1), [moving_mean(t.returns, WINDOW)[:shortest] for t in group], name, COLOURS[name])
            all_of_them.get_lines()[-1].set_linewidth(2.8)
        all_of_them.set(title="what is made of the returns: mean of the seeds, 10th to 90th percentile", xlabel="episode", xlim=(0, shortest), ylim=(0, 535))
        for axis in (single, all_of_them):
            cap(axis, level=CAP, left=True)
        label_ends(all_of_them)
    return figure
