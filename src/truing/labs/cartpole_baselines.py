"""What a baseline does to the policy gradient's variance: the same episodes of the same frozen policy, weighted in several ways.

The gradient of one episode is that of the exact sum, ``g = sum_t (G_t - b_t) grad log pi(a_t|s_t)``. As long as b_t does not depend on
the episode's own actions, E[g] is the same whatever b is (Sutton and Barto, 2nd ed., equation 13.10), so the mean must be that
of *other* episodes, and the learned V must be fitted on other episodes. Both are here: the mean leaves the episode itself
out, and V is fitted on episodes of its own and then frozen.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from truing.envs.vector import make
from truing.labs.canvas import BLUE, MUTED, ORANGE, PURPLE, canvas
from truing.labs.cartpole_runs import Array, Options, told
from truing.labs.lab import Cell, Check, Findings, Table
from truing.learn.update import Learner
from truing.maths import policy
from truing.maths.returns import discounted_returns
from truing.maths.stats import Interval, bootstrap, explained_variance
from truing.maths.value import squared_error
from truing.methods.policy_gradient import Reinforce, reinforce
from truing.models.networks import Networks
from truing.rollout.steps import Collector, Steps
from truing.seeds import generator, stream

DISCOUNT = 0.99
LEVEL = 40.0  # train until 100 episodes in a row have this mean: the policy is then half-way, well past the start and below the cap
FITTED = 400  # episodes that the learned baseline is fitted on
NAMES = ("none", "mean of the others", "learned V(s)", "own mean")
COLOURS = (MUTED, ORANGE, BLUE, PURPLE)
EXPECTED = (
    "at frozen, half-trained policies the variance across episodes of the gradient's norm falls from no baseline to the mean return to a learned V(s), over all seeds, "
    "and so does the gradient's whole variance (the trace of its covariance), on every seed, while the mean gradient stays what it was. The mean is that of the *other* episodes, "
    f'V(s) is fitted on {FITTED} episodes of its own; the mean of the episode itself, as `Reinforce(baseline="mean")` takes it, is shown beside them: it is biased'
)


@dataclass(frozen=True)
class Compared:
    """One frozen policy.

    Attributes:
        gradients: ``[4, n, P]``, one row an episode, in the order of `NAMES`; P counts the policy's weights.
        direction: ``[P]``, of unit length: the mean gradient over the *fitting* episodes, which the compared ones had no part in.
        returns: ``[n]``, undiscounted.
        explained: share of the returns' variance that V(s) explains, on the compared episodes.
    """

    gradients: Array
    direction: Array
    returns: Array
    explained: float

    @property
    def norms(self) -> Array:
        return np.asarray(np.linalg.norm(self.gradients, axis=-1))

    def slope_change(self, b: int) -> Interval:
        """How much baseline b changes the mean gradient along `direction`, as a share of it; 0 where b is unbiased. A 99.7% interval."""
        slopes = self.gradients[[0, b]] @ self.direction
        return bootstrap((slopes[1] - slopes[0]) / slopes[0].mean(), resamples=5000, level=0.997)


def norm_ratio(found: Sequence[Compared], a: int, b: int) -> Interval:
    """Variance across episodes of the gradient's norm under baseline b over that under a: the geometric mean over the policies. Episodes are resampled."""
    norms = np.stack([c.norms[[a, b]].T for c in found], 1)  # [n, policies, 2]

    def ratio(x: Array) -> Array:
        variance = x.var(1)
        return np.asarray(np.exp(np.log(variance[..., 1] / variance[..., 0]).mean(-1)))

    return bootstrap(norms, resamples=2000, statistic=ratio)


def trace_ratio(found: Sequence[Compared], a: int, b: int) -> Interval:
    """The same for the trace of the gradient's covariance, ``mean |g|^2 - |mean g|^2``."""
    n = len(found[0].returns)
    products = [[g @ g.T for g in c.gradients[[a, b]]] for c in found]

    def ratio(which: Array) -> Array:
        drawn = np.stack([np.bincount(row, minlength=n) for row in which[..., 0].astype(int)]) / n
        traces = [[drawn @ np.diagonal(p) - ((drawn @ p) * drawn).sum(-1) for p in pair] for pair in products]
        return np.asarray(np.exp(np.mean([np.log(second / first) for first, second in traces], 0)))

    return bootstrap(np.arange(n)[:, None], resamples=2000, statistic=ratio)


def compare(options: Options, seed: int) -> Compared:
    """Train a policy, freeze it, fit V on some of its episodes, and take the gradients of others."""
    networks = reinforce(Reinforce(episodes=1000, stop_at=LEVEL), seed).networks
    fitting, fresh = play(networks, FITTED, stream(seed, "fitting")), play(networks, options.episodes or 800, stream(seed, "compared"))
    value = fit(networks, fitting, seed)
    direction = gradients(networks, fitting, value, (2,))[0].mean(0)
    with torch.no_grad():
        predicted = torch.cat([value.values(s.observations[0]) for s in fresh])
    explained = explained_variance(predicted.numpy(), torch.cat([returns(s) for s in fresh]).numpy())
    return Compared(gradients(networks, fresh, value), direction / np.linalg.norm(direction), np.array([float(s.rewards.sum()) for s in fresh]), explained)


def play(networks: Networks, episodes: int, seed: int) -> list[Steps]:
    """Whole episodes of a policy, one record each."""
    with make("CartPole-v1", 1, seed) as environments:
        collector = Collector(environments, networks, discount=DISCOUNT, seed=seed)
        return [collector.collect(None) for _ in range(episodes)]


def returns(steps: Steps) -> Tensor:
    """G_t, ``[T]``; what lies past the cap of 500 steps counts nothing, whatever the baseline."""
    return discounted_returns(steps.rewards, torch.zeros_like(steps.rewards), steps.discount, steps.carry)[0]


def fit(networks: Networks, episodes: Sequence[Steps], seed: int, epochs: int = 40, batch: int = 512) -> Networks:
    """A copy whose value network is fitted to the episodes' returns by least squares; the policy stays."""
    value = copy.deepcopy(networks)
    seen, target = torch.cat([s.observations[0] for s in episodes]), torch.cat([returns(s) for s in episodes])
    updates = epochs * (len(seen) // batch)
    learner = Learner(dict(value.named_parameters()), lr=5e-3, total=updates, schedule="linear", grad_clip=1e9)
    draws = generator(seed, "fit")
    for _ in range(updates):
        rows = torch.randint(len(seen), (batch,), generator=draws)
        learner.update([0], lambda _: 0, lambda _: squared_error(value.values(seen[rows]), target[rows]).mean())  # noqa: B023
    return value


def gradients(networks: Networks, episodes: Sequence[Steps], value: Networks, which: Sequence[int] = (0, 1, 2, 3)) -> Array:
    """``[len(which), n, P]``: every episode's gradient of the loss ``sum_t -(G_t - b_t) log pi(a_t|s_t)`` under some of the four baselines."""
    totals = [float(returns(s).sum()) for s in episodes]
    counts = [s.rewards.numel() for s in episodes]
    parameters = list(networks.parameters())
    found = []
    for steps, total, count in zip(episodes, totals, counts, strict=True):
        g, others = returns(steps), (sum(totals) - total) / (sum(counts) - count)
        logp = networks.look(steps.observations[0], steps.actions[0]).logp
        with torch.no_grad():
            baselines = [torch.zeros_like(g), torch.full_like(g, others), value.values(steps.observations[0]), g.mean().expand_as(g)]
        for i in which:
            parts = torch.autograd.grad(
                policy.reinforce(logp, g - baselines[i]).sum(), parameters, allow_unused=True, materialize_grads=True, retain_graph=True
            )
            found.append(torch.cat([p.flatten() for p in parts]))
    rows = torch.stack(found).view(len(episodes), len(which), -1).transpose(0, 1).double().numpy()
    return np.asarray(rows[..., _of_the_policy(networks)])


def _of_the_policy(networks: Networks) -> Array:
    """Which places of the flattened weights belong to the policy: a layer holds the policy's at 0 and the value's at 1, each has a head of its own."""
    places = []
    for p in networks.parameters():
        mine = torch.zeros_like(p, dtype=torch.bool)
        if p is networks.policy or p is networks.policy_bias:
            mine[:] = True
        elif p is not networks.value and p is not networks.value_bias:
            mine[0] = True
        places.append(mine.flatten())
    return np.asarray(torch.cat(places).numpy())


def run(options: Options, seeds: Sequence[int]) -> Findings:
    found = [compare(options, seed) for seed in seeds]
    changes = [[c.slope_change(b) for c in found] for b in (1, 2)]
    checks = [
        _ordered("the variance of the gradient's norm", norm_ratio, found, each=False),
        _ordered("the gradient's whole variance (trace of its covariance)", trace_ratio, found, each=True),
        Check(
            "neither baseline changes the mean gradient: along its own direction the change is 0 within noise (99.7%)",
            "; ".join(f"{name}: {', '.join(_percent(c) for c in row)}" for name, row in zip(NAMES[1:3], changes, strict=True)),
            all(c.low <= 0 <= c.high for row in changes for c in row),
        ),
    ]
    rows: list[tuple[Cell, ...]] = []
    for seed, c in zip(seeds, found, strict=True):
        for b, name in enumerate(NAMES):
            rows.append(
                (
                    seed, told(float(c.returns.mean())), name, float(c.norms[b].mean()), float(c.norms[b].var()), norm_ratio([c], 0, b) if b else 1.0,
                    float(c.gradients[b].var(0).sum()), trace_ratio([c], 0, b) if b else 1.0, _percent(c.slope_change(b)) if b else "",
                )
            )  # fmt: skip
    columns = (
        "seed",
        "mean return",
        "baseline",
        "mean norm",
        "variance of the norm",
        "as a share",
        "trace of the covariance",
        "as a share",
        "change of the mean gradient",
    )
    title = f"Gradients of {len(found[0].returns)} episodes of one frozen policy a seed, under four baselines (shares are of no baseline's)"
    values = {"explained_variance": [c.explained for c in found], "mean_return": [float(c.returns.mean()) for c in found]}
    return Findings(checks, [Table(title, columns, rows)], {"baselines": _figure(found, seeds)}, values)


def _ordered(what: str, ratio: Callable[[Sequence[Compared], int, int], Interval], found: Sequence[Compared], *, each: bool) -> Check:
    """Over all policies both ratios lie below 1 with their whole interval; with ``each``, every single policy's estimate does too."""
    steps = [(ratio(found, a, b), [ratio([c], a, b).mean for c in found]) for a, b in ((0, 1), (1, 2))]
    (first, firsts), (second, seconds) = steps
    measured = f"mean / none {told(first, 2)}, by seed {_each(firsts)}; learned / mean {told(second, 2)}, by seed {_each(seconds)}"
    over = "on every seed and over all" if each else "over all seeds"
    return Check(
        f"{what} falls from none to the mean to the learned baseline, {over}", measured,
        all(pooled.high < 1 and (max(single) < 1 or not each) for pooled, single in steps),
    )  # fmt: skip


def _each(values: Sequence[float]) -> str:
    return ", ".join(f"{x:.2f}" for x in values)


def _percent(x: Interval) -> str:
    return f"{100 * x.mean:+.0f}% [{100 * x.low:+.0f}, {100 * x.high:+.0f}]"


def _figure(found: Sequence[Compared], seeds: Sequence[int]) -> Any:
    with canvas(1, 2, width=12, height=4.6, title="The same episodes, three baselines: how far the gradient scatters", width_ratios=[1.35, 1]) as (
        figure,
        axes,
    ):
        spread, bars = axes[0]
        c = found[0]
        x = np.logspace(np.log10(max(1.0, np.quantile(c.norms[:3], 0.005))), np.log10(c.norms.max() * 1.02), 34)
        for b in (0, 1, 2):
            height, _ = np.histogram(c.norms[b], x)
            spread.stairs(height, x, color=COLOURS[b], fill=True, alpha=0.18)
            spread.stairs(height, x, color=COLOURS[b], linewidth=1.6)
            deviation = float(c.norms[b].std())
            spread.annotate(
                f"{NAMES[b]}\nstandard deviation {deviation:,.0f}", (0.985, 0.96 - 0.16 * b), xycoords="axes fraction", ha="right", va="top", color=COLOURS[b], fontsize=10,
            )  # fmt: skip
        spread.set(
            xscale="log",
            xlabel="norm of one episode's gradient",
            ylabel=f"episodes of {len(c.returns)}",
            title=f"one frozen policy (seed {seeds[0]}, mean return {c.returns.mean():.0f})",
        )
        decades = [m * 10.0**e for e in range(8) for m in (1, 2, 5)]
        spread.set_xticks([t for t in decades if x[0] <= t <= x[-1]])
        spread.minorticks_off()
        spread.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        for i, one in enumerate(found):
            for b in (0, 1, 2):
                ratio = trace_ratio([one], 0, b) if b else Interval(1.0, 1.0, 1.0)
                where = i + 0.22 * (b - 1)
                bars.plot([where, where], [ratio.low, ratio.high], color=COLOURS[b], linewidth=2.4, alpha=0.5)
                bars.plot(where, ratio.mean, "o", color=COLOURS[b], markersize=6)
                bars.annotate(f"{ratio.mean:.2f}", (where, ratio.mean), xytext=(6, 0), textcoords="offset points", va="center", fontsize=8.5, color=COLOURS[b])
        bars.set(
            yscale="log",
            ylim=(0.5 * min(trace_ratio([c], 0, 2).low for c in found), 1.3),
            xlim=(-0.5, len(found) - 0.35),
            title="whole variance, as a share of no baseline's (95%)",
        )
        bars.set_xticks(range(len(found)), [f"seed {seed}\nreturn {one.returns.mean():.0f}" for seed, one in zip(seeds, found, strict=True)])
        bars.set_yticks([y for y in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0) if y > bars.get_ylim()[0]])
        bars.minorticks_off()
        bars.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    return figure
