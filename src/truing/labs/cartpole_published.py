"""PPO beside published numbers, and PPO with actions that are numbers.

Two kinds of score are published, and they must not be compared with each other: the returns of *training* episodes, whose actions are
drawn by chance, and those of an *evaluation* under the most likely actions. Each row says which it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from truing.envs.vector import make
from truing.labs.canvas import BLUE, GREEN, INK, MUTED, ORANGE, PURPLE, band, canvas
from truing.labs.cartpole_runs import SOLVED, Options, by_step, cap, late, over, told
from truing.labs.lab import Cell, Check, Findings, Table
from truing.maths.stats import Interval
from truing.methods.control import Trained, evaluate
from truing.methods.ppo_control import PPOControl, ppo
from truing.seeds import stream

TRAINING, EVALUATION = "training", "evaluation"
COLOURS = {"CartPole-v1": BLUE, "Acrobot-v1": GREEN, "MountainCar-v0": PURPLE}
LATE = 0.2  # training returns are those of the last fifth of the steps


@dataclass(frozen=True)
class Published:
    """A published result: ``mean`` and ``spread`` (standard deviation over its ``seeds``; None where one seed was run)."""

    source: str
    how: str
    config: PPOControl
    mean: float
    spread: float | None = None
    seeds: int = 3


def _cleanrl(environment: str, mean: float, spread: float) -> Published:
    config = PPOControl(
        environment=environment, total_steps=500_000, environments=4, length=128, epochs=4, minibatches=4, lr=2.5e-4, schedule="linear", clip=0.2, value_clip=0.2,
        entropy=0.01, discount=0.99, lam=0.95, grad_clip=0.5,
    )  # fmt: skip
    return Published("CleanRL", TRAINING, config, mean, spread)


TUNED = PPOControl(
    environment="CartPole-v1", total_steps=100_000, environments=8, length=32, epochs=20, minibatches=1, lr=1e-3, schedule="linear", clip=0.2, clip_to_zero=True,
    entropy=0.0, discount=0.98, lam=0.8,
)  # fmt: skip
ROWS = (
    _cleanrl("CartPole-v1", 490.04, 6.12),
    _cleanrl("Acrobot-v1", -86.36, 1.32),
    _cleanrl("MountainCar-v0", -200.0, 0.0),
    Published("RL Zoo, tuned", EVALUATION, TUNED, 500.0, None, 1),
)
PENDULUM = PPOControl(
    environment="Pendulum-v1", total_steps=100_000, environments=4, length=1024, epochs=10, minibatches=64, lr=1e-3, schedule="constant", clip=0.2, entropy=0.0,
    discount=0.9, lam=0.95,
)  # fmt: skip
EXPECTED = (
    f"with the settings behind the published numbers, the training returns of the last fifth of 500,000 steps agree with them: CartPole-v1 490 ± 6 (and {SOLVED:.0f} or more), "
    "Acrobot-v1 -86 ± 1, MountainCar-v0 -200, which is no success but what PPO earns where chance never finds the goal; and with tuned settings the most likely actions hold the pole for all 500 "
    "steps after 100,000 steps of training"
)  # fmt: skip
EXPECTED_CONTINUOUS = (
    "PPO with Gaussian actions learns to swing the pendulum up and to hold it: from what actions drawn at random earn, near -1,200, to better than -300 under its mean actions, on every seed. "
    "Published, with a kind of exploration that is not in Truing (gSDE): -172 ± 104 over episodes"
)  # fmt: skip


def score(row: Published, trained: Trained, seed: int) -> float:
    """The number that was published for this row."""
    if row.how == TRAINING:
        return late(trained, LATE)
    return float(np.mean(evaluate(trained, row.config.environment, 20, seed=stream(seed, "published"))))


def agrees(row: Published, scores: Sequence[float]) -> bool:
    """Not further below the published mean than 3 standard errors of the difference; with no published spread, ours alone counts, at least 1% of the mean.

    Better than published is no disagreement: the tasks are the same, and some details of this PPO are not.
    """
    ours = float(np.var(scores, ddof=1)) / len(scores) if len(scores) > 1 else 0.0
    theirs = (row.spread or 0.0) ** 2 / row.seeds
    return float(np.mean(scores)) >= row.mean - max(3 * float(np.sqrt(ours + theirs)), 0.01 * abs(row.mean) if row.spread is None else 0.0)


def published(options: Options, seeds: Sequence[int]) -> Findings:
    chosen = [r for r in ROWS if options.environment in (None, r.config.environment)]
    rows: list[tuple[Cell, ...]] = []
    checks, curves = [], {}
    for row in chosen:
        config = row.config if options.total_steps is None else row.config.model_copy(update={"total_steps": options.total_steps})
        runs = [ppo(config, seed) for seed in seeds]
        scores = [score(row, t, seed) for t, seed in zip(runs, seeds, strict=True)]
        curves[row] = runs
        known = f"{row.mean:.1f}" + (f" ± {row.spread:.1f}" if row.spread is not None else "")
        words = f"{config.environment} ({row.source}'s settings, {'training returns' if row.how == TRAINING else 'most likely actions'})"
        as_published = config.total_steps == row.config.total_steps
        rows.append(
            (config.environment, row.source, row.how, config.total_steps, over(scores), ", ".join(f"{s:.1f}" for s in scores), known if as_published else "")
        )
        if as_published:
            measured = f"{told(over(scores), 1)}; seeds {', '.join(f'{s:.1f}' for s in scores)}"
            checks.append(_claim(row, words, known, measured, scores))
    title = (
        f"PPO, {len(seeds)} seeds: training = returns of the last fifth of the training, sampled actions; evaluation = 20 episodes of the most likely actions"
    )
    columns = ("task", "settings", "scored by", "steps", "measured", "by seed", "published")
    if not checks:
        checks = [
            Check(
                "the runs end", f"{sum(len(r) for r in curves.values())} runs of {options.total_steps:,} steps, too unlike the published ones to compare", True
            )
        ]
    return Findings(checks, [Table(title, columns, rows)], {"published": _figure(curves)})


def _claim(row: Published, words: str, known: str, measured: str, scores: Sequence[float]) -> Check:
    if row.config.environment == "MountainCar-v0":
        return Check(f"{words}: stays at -200, as published", measured, all(s <= -199 for s in scores))
    held = agrees(row, scores)
    if row.config.environment == "CartPole-v1" and row.how == TRAINING:
        return Check(f"{words}: {SOLVED:.0f} or more, and not below the published {known}", measured, held and float(np.mean(scores)) >= SOLVED)
    return Check(f"{words}: not below the published {known}", measured, held)


def _figure(curves: Mapping[Published, Sequence[Trained]]) -> Any:
    n = len(curves)
    with canvas(1, n, width=max(6.0, 3.9 * n), height=3.9, title="PPO beside published numbers") as (figure, axes):
        for axis, (row, runs) in zip(axes[0], curves.items(), strict=True):
            _curve(axis, runs, COLOURS[row.config.environment], window=50)
            low, high = {"CartPole-v1": (0, 540), "Acrobot-v1": (-520, -40), "MountainCar-v0": (-206, -140)}[row.config.environment]
            axis.set(title=f"{row.config.environment}: {row.source}", ylim=(low, high))
            axis.axhline(row.mean, color=MUTED, linewidth=0.9, linestyle=(0, (4, 3)))
            text = f"published: {row.mean:.0f}" + (f" ± {row.spread:.0f}" if row.spread else "") + ("" if row.how == TRAINING else "\n(most likely actions)")
            axis.annotate(text, (0.97, 0.12), xycoords="axes fraction", ha="right", va="bottom", color=MUTED, fontsize=9.5)
        axes[0, 0].set_ylabel("return of training episodes (mean of 50)")
    return figure


def _curve(axis: Any, runs: Sequence[Trained], colour: str, window: int) -> None:
    end = min(t.steps[-1] for t in runs)
    at = np.linspace(min(2000, end // 10), end, 300)
    band(axis, at, [by_step(t, at, window) for t in runs], "PPO", colour)
    axis.get_lines()[-1].set_linewidth(2.6)
    axis.set(xlabel="environment steps", xlim=(0, end))
    axis.xaxis.set_major_formatter(lambda x, _: f"{x / 1000:.0f}k" if x else "0")
    axis.locator_params(axis="x", nbins=5)


# -- actions that are numbers -------------------------------------------------------------------------------------------


def at_random(environment: str, episodes: int, seed: int) -> list[float]:
    """Returns of episodes whose actions are drawn uniformly from the action space."""
    with make(environment, episodes, stream(seed, "random")) as environments:
        environments.reset()
        found: dict[int, float] = {}
        while len(found) < episodes:
            for episode in environments.step(environments.action_space.sample()).episodes:
                found.setdefault(episode.environment, episode.total)
    return list(found.values())


def continuous(options: Options, seeds: Sequence[int]) -> Findings:
    config = PENDULUM if options.total_steps is None else PENDULUM.model_copy(update={"total_steps": options.total_steps})
    runs = [ppo(config, seed) for seed in seeds]
    tried = [evaluate(t, config.environment, 50, seed=stream(seed, "pendulum")) for t, seed in zip(runs, seeds, strict=True)]
    scores = [float(np.mean(x)) for x in tried]
    random = [float(np.mean(at_random(config.environment, 50, seed))) for seed in seeds]
    gained = over([s - r for s, r in zip(scores, random, strict=True)])
    low = gained.low if isinstance(gained, Interval) else gained
    checks = [Check("it learns: far more than actions drawn at random", f"{told(over(scores))} against {told(over(random))}; gained {told(gained)}", low > 300)]
    if config.total_steps >= PENDULUM.total_steps:
        checks.append(Check("every seed ends better than -300 under its mean actions", ", ".join(f"{s:.0f}" for s in scores), min(scores) > -300))
    spread = float(np.std(np.concatenate(tried)))
    rows: list[tuple[Cell, ...]] = [
        ("actions at random", over(random), "", ""),
        ("PPO, the last fifth of training, sampled actions", over([late(t, LATE) for t in runs]), "", ""),
        ("PPO, 50 episodes, mean actions", over(scores), f"{spread:.0f}", "-172 ± 104 over episodes" if config.total_steps == PENDULUM.total_steps else ""),
    ]
    title = f"Pendulum-v1 after {config.total_steps:,} steps, {len(seeds)} seeds"
    table = Table(title, ("policy", "return", "s.d. over episodes", "published (with gSDE, one seed)"), rows)
    with canvas(1, 2, width=11.5, height=4.5, title="PPO with Gaussian actions: swinging a pendulum up", width_ratios=[1.3, 1]) as (figure, axes):
        left, right = axes[0]
        _curve(left, runs, ORANGE, window=20)
        left.set(ylabel="return of an episode of 200 steps", title="training, sampled actions: mean of the last 20 episodes", ylim=(-1800, 60))
        cap(left, f"actions at random: {np.mean(random):.0f}", float(np.mean(random)))
        for i, x in enumerate(tried):
            right.plot(i + np.random.default_rng(0).uniform(-0.18, 0.18, len(x)), x, "o", color=ORANGE, alpha=0.45, markersize=4.5, markeredgewidth=0)
            right.plot([i - 0.28, i + 0.28], [np.mean(x)] * 2, color=INK, linewidth=2)
            right.annotate(f"{np.mean(x):.0f}", (i + 0.3, float(np.mean(x))), xytext=(2, 0), textcoords="offset points", va="center", fontsize=10)
        right.set(title="50 fresh episodes, mean actions", xlim=(-0.6, len(runs) - 0.2), ylim=(min(-700.0, 1.05 * float(np.min(tried))), 50))
        right.set_xticks(range(len(runs)), [f"seed {seed}" for seed in seeds])
        right.axhline(-172.0, color=MUTED, linewidth=0.9, linestyle=(0, (4, 3)))
        right.annotate("grey: published, -172 ± 104", (0.98, 0.03), xycoords="axes fraction", ha="right", va="bottom", color=MUTED, fontsize=9.5)
        right.axhspan(-172 - 104, -172 + 104, color=MUTED, alpha=0.1, linewidth=0)
    return Findings(checks, [table], {"continuous": figure}, {"returns": tried, "random": random})
