"""Bias and variance of generalised advantage estimation over lambda, on a walk where every exact number is known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import numpy as np
from pydantic import Field

from truing.config import Frozen, Positive
from truing.labs.canvas import COLOURS, canvas
from truing.labs.gae_walk import Moments, critic, estimates, exact, measured, standard_score, values, walk
from truing.labs.lab import Check, Findings, Table
from truing.maths.stats import Array, Interval, bootstrap
from truing.observe.svg import BLUE, INK, MUTED, ORANGE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SEEDS = 10
LAMBDAS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0)
FINE = np.linspace(0, 1, 201)
FACTORS = (0.0, 0.25, 0.5, 1.0, 2.0)  # critics of the second figure, as multiples of critic_error (of 0.3 when that is 0)


class Options(Frozen):
    """The walk, its critic, and how much is averaged."""

    states: Annotated[int, Field(ge=2, le=21)] = Field(9, description="states of the walk between its two ends")
    critic_error: Annotated[float, Field(ge=0, le=10)] = Field(0.3, description="standard deviation of the critic's error, in units of reward; 0 is the exact value function")
    batch: Positive = Field(10, description="trajectories averaged in one estimate: divides the variance, leaves the bias")
    trajectories: Annotated[int, Field(ge=10, le=1000)] = Field(200, description="sampled from each state and action, a seed")


def expectation(options: Options) -> str:
    if options.critic_error == 0:
        return "With the exact value function every lambda is unbiased, and the variance grows with lambda: lambda 0, the TD error, is best."
    return (
        f"With a critic that is wrong by {options.critic_error:g}, the bias falls with lambda and is 0 at 1, where the critic no longer matters; what the trajectory's chance "
        f"adds grows with lambda. Averaging {options.batch} trajectories, the mean squared error is least in between. The better the critic, the smaller the best lambda; "
        "with the exact value function every lambda is unbiased, and 0 is best."
    )


def run(options: Options, seeds: Sequence[int]) -> Findings:
    """A critic and a set of walks per seed; intervals are over seeds (with one seed there are none to give)."""
    target = 2 / (options.states + 1)
    sampled, scores, perfect = [], [], []
    for seed in seeds:
        walks, v = walk(options.states, options.trajectories, seed), critic(options.states, options.critic_error, seed)
        expected = exact(v, LAMBDAS).mse(1)
        found = [estimates(walks, v, lam) for lam in LAMBDAS]
        sampled.append([measured(f) for f in found])
        scores.append([standard_score((f - target) ** 2, e) for f, e in zip(found, expected, strict=True)])
        perfect.append([standard_score(estimates(walks, values(options.states), lam), target) for lam in LAMBDAS])
    bias2, variance = np.moveaxis(np.array(sampled), 2, 0)  # [seeds, lambdas]
    truth = [exact(critic(options.states, options.critic_error, seed), FINE) for seed in seeds]
    exact_mean = Moments(np.mean([m.bias2 for m in truth], 0), np.mean([m.variance for m in truth], 0))
    mse = bias2 + variance / options.batch
    table = Table(
        f"Score x GAE, mean of {options.batch} trajectories; target {target:.3g}; sampled over {len(seeds)} seeds, exact in the last columns",
        ("lambda", "bias^2", f"variance / {options.batch}", "mean squared error", "exact bias^2", "exact mse"),
        [
            (lam, _spread(bias2[:, i]), _spread(variance[:, i] / options.batch), _spread(mse[:, i]), _at(exact_mean.bias2, lam), _at(exact_mean.mse(options.batch), lam))
            for i, lam in enumerate(LAMBDAS)
        ],
    )
    critics = _critics(options, seeds)
    best = Table("The best lambda by critic and batch (exact)", ("critic error", *(f"batch {b}" for b in _batches(options))), [(e, *(_best(m, b) for b in _batches(options))) for e, m in critics])
    checks = [_unbiased(options, np.array(perfect)), _agreement(np.array(scores)), *_shape(options, exact_mean, mse, critics)]
    machine = {"lambda": FINE[:: len(FINE) // 20], "exact_bias2": exact_mean.bias2[::10], "exact_variance": exact_mean.variance[::10], "best_lambda": _best(exact_mean, options.batch)}
    return Findings(checks, [table, best], {"gae": draw(options, exact_mean, bias2, variance, critics)}, machine)


def _spread(x: Array) -> Interval | float:
    return bootstrap(x) if len(x) > 1 else float(x[0])


def _at(curve: Array, lam: float) -> float:
    return float(np.interp(lam, FINE, curve))


def _batches(options: Options) -> list[int]:
    return sorted({1, options.batch, 10 * options.batch})


def _best(moments: Moments, batch: int) -> float:
    return float(FINE[int(np.argmin(moments.mse(batch)))])


def _critics(options: Options, seeds: Sequence[int]) -> list[tuple[float, Moments]]:
    """The same critics with larger and smaller errors, their moments meaned over the seeds."""
    out = []
    for error in (factor * (options.critic_error or 0.3) for factor in FACTORS):
        each = [exact(critic(options.states, error, seed), FINE) for seed in seeds]
        out.append((error, Moments(np.mean([m.bias2 for m in each], 0), np.mean([m.variance for m in each], 0))))
    return out


# -- the checks ---------------------------------------------------------------------------------------------------------


def _unbiased(options: Options, scores: Array) -> Check:
    """``scores [seeds, lambdas]``: the exact value function's estimates against the target, in standard errors."""
    together = scores.sum(0) / np.sqrt(len(scores))
    worst = float(np.abs(together).max())
    exactly = float(exact(values(options.states), FINE).bias2.max())
    return Check(
        "with the exact value function no lambda is biased",
        f"at the worst lambda the sampled mean lies {worst:.1f} standard errors from the target; exact bias^2 at most {exactly:.0e}", worst < 4 and exactly < 1e-20,
    )  # fmt: skip


def _agreement(scores: Array) -> Check:
    worst = float(np.abs(scores).max())
    return Check("sampled trajectories agree with the two linear systems", f"largest of {scores.size} deviations: {worst:.1f} standard errors", worst < 4.5)


def _shape(options: Options, truth: Moments, mse: Array, critics: list[tuple[float, Moments]]) -> list[Check]:
    peak = float(FINE[int(np.argmax(truth.variance))])
    checks = [Check("the variance is largest at lambda 1", f"{truth.variance[0]:.3g} at 0, {_at(truth.variance, 0.5):.3g} at 0.5, {truth.variance[-1]:.3g} at 1; largest at {peak:g}", peak == 1)]
    if options.critic_error == 0:
        best = _best(truth, options.batch)
        return [*checks, Check("lambda 0 is best", f"least mean squared error at {best:g}", best == 0)]
    shown = ", ".join(f"{_at(truth.bias2, lam):.3g} at {lam:g}" for lam in (0, 0.5, 0.9))
    falls = bool(np.all(np.diff(truth.bias2) < 1e-12) and truth.bias2[-1] < 1e-20)
    checks.append(Check("the bias falls with lambda, to 0 at 1", f"bias^2 {shown}, {truth.bias2[-1]:.0e} at 1", falls))
    least = int(np.argmin(mse.mean(0)))
    gains = [_spread(mse[:, end] - mse[:, least]) for end in (0, -1)]
    said = " and ".join(f"{g.mean:.3f} [{g.low:.3f}, {g.high:.3f}]" if isinstance(g, Interval) else f"{g:.3f} (one seed)" for g in gains)
    above = all((g.low if isinstance(g, Interval) else g) > 0 for g in gains)
    checks.append(Check("the mean squared error is least strictly between 0 and 1", f"least at {LAMBDAS[least]:g}; lambda 0 and 1 lie above it by {said}", above and 0 < LAMBDAS[least] < 1))
    best_of = [_best(m, options.batch) for _, m in critics]
    ordered = best_of == sorted(best_of) and best_of[0] == 0 and best_of[-1] > 0
    checks.append(Check("the better the critic, the smaller the best lambda", ", ".join(f"{b:g} at error {e:.3g}" for b, (e, _) in zip(best_of, critics, strict=True)), ordered))
    return checks


# -- the drawing --------------------------------------------------------------------------------------------------------


def draw(options: Options, truth: Moments, bias2: Array, variance: Array, critics: list[tuple[float, Moments]]) -> Figure:
    """Left: the trade-off, lines exact and dots sampled. Right: how its best point moves with the critic."""
    mean_squared = truth.mse(options.batch)
    top = 1.9 * float(mean_squared[0]) if mean_squared[0] > 1.2 * mean_squared.min() else 1.1 * float(mean_squared[-1])
    with canvas(1, 2, width=12, height=4.8, width_ratios=[1.1, 1], title="GAE trades the critic's bias against the trajectory's variance") as (figure, axes):
        left, right = axes[0]
        parts = [
            ("bias$^2$", truth.bias2, bias2, ORANGE), (f"variance / {options.batch}", truth.variance / options.batch, variance / options.batch, BLUE),
            ("mean squared error", mean_squared, bias2 + variance / options.batch, INK),
        ]  # fmt: skip
        for shift, (name, line, dots, colour) in zip((-0.006, 0.0, 0.006), parts, strict=True):
            left.plot(FINE, line, color=colour, label=name, linewidth=2.6 if colour == INK else 1.8)
            low, high = (np.quantile(dots, q, axis=0) for q in (0.1, 0.9))
            left.vlines(np.array(LAMBDAS) + shift, low, high, color=colour, linewidth=1, alpha=0.5)
            left.plot(np.array(LAMBDAS) + shift, dots.mean(0), "o", color=colour, markersize=4)
        best = _best(truth, options.batch)
        left.plot([best], [mean_squared.min()], "o", markersize=11, markerfacecolor="none", markeredgecolor=INK)
        left.annotate(f"best at {best:.2f}", (best, mean_squared.min()), xytext=(0, 14), textcoords="offset points", ha="center" if best > 0.1 else "left", fontsize=10)
        left.set(xlabel="lambda", ylabel="squared error of the advantage", ylim=(-0.03 * top, top), xlim=(-0.02, 1.02))
        left.set_title(f"a critic wrong by {options.critic_error:g}" if options.critic_error else "the exact value function")
        left.legend(handles=left.get_lines()[::2][:3], loc="upper center")
        floor = min((float(m.mse(options.batch).min()) for error, m in critics if error > 0), default=1e-3) / 5
        for (error, moments), colour in reversed(list(zip(critics, COLOURS, strict=False))):
            curve = moments.mse(options.batch)
            right.plot(FINE, curve, color=colour)
            right.plot([_best(moments, options.batch)], [max(curve.min(), floor)], "o", color=colour, markersize=7, clip_on=False)
            named = int(np.argmax(curve > 1.5 * floor))  # where the curve has come into view
            name = f"error {error:.3g}" if error else "exact"
            right.annotate(name, (FINE[named], curve[named]), xytext=(4, 5) if error else (-6, 0), textcoords="offset points", ha="left" if error else "right", color=colour, fontsize=9.5)  # fmt: skip
        right.set(xlabel="lambda", ylabel=f"mean squared error, batch {options.batch}", yscale="log", ylim=(floor, 2 * max(float(m.mse(options.batch).max()) for _, m in critics)), xlim=(-0.02, 1.02))
        right.set_title("the better the critic, the smaller the best lambda (dots)")
        figure.supxlabel(
            f"walk of {options.states} states, target {2 / (options.states + 1):.2g}; lines exact, dots sampled with the 10th to 90th percentile of {len(bias2)} critics",
            fontsize=9, color=MUTED, x=0.01, ha="left",
        )  # fmt: skip
    return figure
