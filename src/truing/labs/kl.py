"""Three estimators of one KL divergence: their bias, their spread, and whose gradient they follow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import numpy as np
import torch
from pydantic import Field

from truing.config import Frozen
from truing.labs.canvas import canvas
from truing.labs.lab import Cell, Check, Findings, Table
from truing.maths.kl import exact, k1, k2, k3
from truing.maths.stats import Array, Interval, bootstrap
from truing.observe.svg import BLUE, GREEN, INK, MUTED, ORANGE, PURPLE
from truing.seeds import stream

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from torch import Tensor

SEEDS = 5
DISTANCES = (0.1, 1.0)  # Schulman's two references, N(0.1, 1) and N(1, 1)


class Options(Frozen):
    """The policy is N(0, 1) throughout; the softmax has ``actions`` logits drawn from N(0, 1) for it and for its reference."""

    distance: Annotated[float, Field(gt=0, le=3)] = Field(1.0, description="mean of a reference N(distance, 1), added to the textbook's 0.1 and 1")
    samples: Annotated[int, Field(ge=1000, le=5_000_000)] = Field(200_000, description="samples a seed, for each reference")
    actions: Annotated[int, Field(ge=2, le=12)] = Field(6, description="actions of the softmax whose gradients are compared")


def reversed_k3(logp: Tensor, logp_ref: Tensor) -> Tensor:
    """The trap: k3 with the ratio upside down, pi / ref - 1 - log(pi / ref). It looks right, and is never negative either."""
    return k3(logp_ref, logp)


ESTIMATORS = {"k1": k1, "k2": k2, "k3": k3, "reversed k3": reversed_k3}
COLOUR = {"k1": BLUE, "k2": ORANGE, "k3": GREEN, "reversed k3": PURPLE}


class Exact(NamedTuple):
    """Bias and standard deviation of one sample, both divided by the true KL."""

    bias: float
    spread: float


def closed_form(name: str, m: float) -> Exact:
    """For pi = N(0, 1) and ref = N(m, 1), where KL = m^2 / 2 and ``k1 = m^2 / 2 - m x`` is itself normal, N(KL, m^2).

    Checked by hand at m = 1, KL = 0.5: std of k1 = m = 2 KL; E[k2] = (m^2 + KL^2) / 2 = 0.625, a bias of 0.25 KL;
    var of k3 = e - 2 = 0.718, a std of 1.695 KL.

    >>> [tuple(round(v, 3) for v in closed_form(name, 1.0)) for name in ("k1", "k2", "k3")]
    [(0.0, 2.0), (0.25, 1.732), (0.0, 1.695)]
    """
    kl, s = m * m / 2, m * m
    if name == "k1":
        return Exact(0.0, m / kl)
    if name == "k2":
        return Exact(((s + kl * kl) / 2 - kl) / kl, float(np.sqrt(2 * s**2 + 4 * s * kl**2) / 2 / kl))
    if name == "k3":  # rho = ref / pi: E rho^2 = exp(s), cov(rho, log rho) = s
        return Exact(0.0, float(np.sqrt(np.expm1(s) - s) / kl))
    # w = pi / ref: E w = exp(s), E w^2 = exp(3 s), cov(w, log w) = s exp(s)
    return Exact((np.expm1(s) - kl) / kl - 1, float(np.sqrt(np.exp(3 * s) - np.exp(2 * s) + s - 2 * s * np.exp(s)) / kl))


def expectation(options: Options) -> str:
    return (
        "k1 = log(pi / ref) and k3 = r - 1 - log r with r = ref / pi are unbiased, k2 = k1^2 / 2 is not. Close to the reference (KL 0.005) one sample of k1 is off by 20 times "
        "the divergence, one of k2 or k3 by 1.4 times; at KL 0.5 all are off by about 2 times, and k2 is biased by 25%. With r upside down k3 is wrong and looks right. As losses "
        "they are not what they estimate: k1 has gradient 0, k2 that of KL(pi || ref), k3 that of KL(ref || pi); in the reward k1 has that of KL(pi || ref)."
    )


def run(options: Options, seeds: Sequence[int]) -> Findings:
    """Sample the Gaussians, and enumerate a softmax: there every gradient is exact."""
    distances = sorted({*DISTANCES, options.distance})
    sampled = {(name, m): _sample(name, m, options.samples, seeds) for m in distances for name in ESTIMATORS}
    rows: list[tuple[Cell, ...]] = []
    for (name, m), (bias, spread) in sampled.items():
        true = closed_form(name, m)
        rows.append((f"N({m:g}, 1)", m * m / 2, name, _over_seeds(bias), true.bias, _over_seeds(spread), true.spread))
    columns = ("reference", "KL, nats", "estimator", "bias / KL", "exact bias / KL", "std / KL", "exact std / KL")
    enumerated = [softmax_gradients(*logits(options.actions, seed)) for seed in seeds]
    compared = [compare(gradients) for gradients in enumerated]
    tables = [
        Table(f"One sample from N(0, 1), {options.samples:,} of them a seed", columns, rows),
        Table(f"Gradients on a softmax of {options.actions}, exact: largest distance over {len(seeds)} seeds", ("estimator", "from the gradient of KL(pi || ref)", "from that of KL(ref || pi)", "its own norm"), [(name, *(max(c[name][i] for c in compared) for i in range(3))) for name in compared[0]]),
    ]  # fmt: skip
    checks = [*_value_checks(options, sampled, seeds), *_gradient_checks(enumerated)]
    policy, reference = logits(options.actions, seeds[0])
    values: dict[str, Any] = {
        "sampled": [{"reference": m, "estimator": name, "bias": bias, "std": spread} for (name, m), (bias, spread) in sampled.items()],
        "softmax": {"KL": float(exact(policy, reference)), "reversed k3": float((policy.softmax(-1) * reversed_k3(policy.log_softmax(-1), reference.log_softmax(-1))).sum())},
        "gradients": enumerated[0],
    }  # fmt: skip
    return Findings(checks, tables, {"kl": draw(options, sampled, enumerated[0])}, values)


def _sample(name: str, m: float, n: int, seeds: Sequence[int]) -> tuple[Array, Array]:
    """Bias and standard deviation over the KL, one number a seed. Every estimator sees the same samples."""
    bias, spread, kl = [], [], m * m / 2
    for seed in seeds:
        x = torch.from_numpy(np.random.default_rng(stream(seed, "kl samples", round(m * 1000))).standard_normal(n))
        found = ESTIMATORS[name](-x.square() / 2, -(x - m).square() / 2) / kl  # the normal's constant cancels
        bias.append(float(found.mean()) - 1)
        spread.append(float(found.std()))
    return np.array(bias), np.array(spread)


def _over_seeds(x: Array) -> Interval | float:
    return bootstrap(x) if len(x) > 1 else float(x[0])


# -- gradients ----------------------------------------------------------------------------------------------------------


def logits(actions: int, seed: int) -> tuple[Tensor, Tensor]:
    """The policy's and the reference's, each N(0, 1)."""
    drawn = torch.from_numpy(np.random.default_rng(stream(seed, "kl logits")).standard_normal((2, actions)))
    return drawn[0], drawn[1]


def softmax_gradients(policy: Tensor, reference: Tensor) -> dict[str, Array]:
    """The expected gradient with respect to the policy's logits, enumerated over all actions: nothing is sampled.

    A loss differentiates the estimator itself; a reward multiplies it, as a constant, with the gradient of log pi.
    """
    out = {}
    for name, divergence in (("KL(pi || ref)", lambda z: exact(z, reference)), ("KL(ref || pi)", lambda z: exact(reference, z))):
        z = policy.clone().requires_grad_()
        out[name] = torch.autograd.grad(divergence(z), z)[0].numpy()
    for name, estimator in (("k1", k1), ("k2", k2), ("k3", k3)):
        for place in ("as a loss", "in the reward"):
            z = policy.clone().requires_grad_()
            logp, logp_ref = z.log_softmax(-1), reference.log_softmax(-1)
            weight = logp.detach().exp()  # how often each action is sampled
            k = estimator(logp, logp_ref)
            objective = weight * (k if place == "as a loss" else k.detach() * logp)
            out[f"{name} {place}"] = torch.autograd.grad(objective.sum(), z)[0].numpy()
    return out


def compare(gradients: dict[str, Array]) -> dict[str, tuple[float, float, float]]:
    """Largest difference from the gradient of either divergence, and the norm, of each estimator's gradient."""
    ahead, back = gradients["KL(pi || ref)"], gradients["KL(ref || pi)"]
    used = {name: g for name, g in gradients.items() if name.startswith("k")}
    return {name: (float(np.abs(g - ahead).max()), float(np.abs(g - back).max()), float(np.linalg.norm(g))) for name, g in used.items()}


# -- the checks ---------------------------------------------------------------------------------------------------------


def _value_checks(options: Options, sampled: dict[tuple[str, float], tuple[Array, Array]], seeds: Sequence[int]) -> list[Check]:
    worst, where = 0.0, ""
    for (name, m), (bias, _) in sampled.items():
        true = closed_form(name, m)
        if name != "reversed k3":  # its variance may be too great to be estimated from these samples
            z = abs(float(bias.mean()) - true.bias) / (true.spread / np.sqrt(options.samples * len(seeds)))
            worst, where = max((worst, where), (z, f"{name} at N({m:g}, 1)"))
    checks = [Check("every bias is the closed form's", f"largest deviation {worst:.1f} standard errors ({where})", worst < 4)]
    for m, said in zip(DISTANCES, ("20.0, 1.42 and 1.42", "2.00, 1.73 and 1.70"), strict=True):
        measured = {name: float(sampled[name, m][1].mean()) for name in ("k1", "k2", "k3")}
        close = all(abs(v / closed_form(name, m).spread - 1) < max(0.01, 30 / np.sqrt(options.samples * len(seeds))) for name, v in measured.items())
        checks.append(Check(f"reference N({m:g}, 1): std / KL of k1, k2, k3 is {said}", ", ".join(f"{v:.3g}" for v in measured.values()), close))
    bias, _ = sampled["k2", 1.0]
    found, noise = _over_seeds(bias), closed_form("k2", 1.0).spread / np.sqrt(options.samples * len(seeds))
    said = f"{found.mean:.4f} [{found.low:.4f}, {found.high:.4f}]" if isinstance(found, Interval) else f"{found:.4f} (one seed)"
    checks.append(Check("k2 is biased by a quarter of the KL at N(1, 1)", said, bool(abs(bias.mean() - 0.25) < 4 * noise)))
    trap = float(sampled["reversed k3", 1.0][0].mean())
    checks.append(Check("k3 upside down is not the KL", f"{1 + trap:.2f} times the KL at N(1, 1); in closed form (e - 1.5) / 0.5 = 2.44", abs(trap) > 0.5))
    return checks


def _gradient_checks(enumerated: list[dict[str, Array]]) -> list[Check]:
    ahead, back = "KL(pi || ref)", "KL(ref || pi)"
    claims = (
        ("k1 as a loss", "no gradient", lambda g: 0.0), ("k1 in the reward", f"the gradient of {ahead}", lambda g: g[ahead]),
        ("k2 as a loss", f"the gradient of {ahead}", lambda g: g[ahead]), ("k3 as a loss", f"the gradient of {back}", lambda g: g[back]),
        ("k3 in the reward", f"the gradient of {ahead} - {back}", lambda g: g[ahead] - g[back]),
    )  # fmt: skip
    checks = []
    for name, claim, target in claims:
        gap = max(float(np.abs(g[name] - target(g)).max()) for g in enumerated)
        checks.append(Check(f"{name} has {claim}", f"to {gap:.0e}, over {len(enumerated)} random softmaxes", gap < 1e-10))
    return checks


# -- the drawing --------------------------------------------------------------------------------------------------------


def draw(options: Options, sampled: dict[tuple[str, float], tuple[Array, Array]], gradients: dict[str, Array]) -> Figure:
    """Spread, bias and gradient, side by side."""
    furthest = max(2.0, options.distance)
    line = np.geomspace(0.05, furthest, 300)
    with canvas(1, 3, width=14, height=4.9, width_ratios=[1, 1, 1.15], title="Three estimators of KL(pi || ref), one sample each") as (figure, axes):
        spread, bias, slope = axes[0]
        for name, colour in COLOUR.items():
            truth = [closed_form(name, float(m)) for m in line]
            places = [m for n, m in sampled if n == name]
            for panel, index in ((spread, 1), (bias, 0)):
                if name == "reversed k3" and panel is spread:
                    continue
                hidden = name == "k1" and panel is bias  # beneath k3: both are 0
                panel.plot(line**2 / 2, [t[index] for t in truth], color=colour, label=name, linestyle="--" if name == "reversed k3" else "-", linewidth=5 if hidden else 1.8, alpha=0.35 if hidden else 1)  # fmt: skip
                panel.plot([m * m / 2 for m in places], [float(sampled[name, m][index].mean()) for m in places], "o", color=colour, markersize=5)
        spread.set(xscale="log", yscale="log", xlabel="KL, nats", ylabel="standard deviation / KL", ylim=(0.9 * min(1.0, 2 / furthest), 60))
        spread.set_yticks([1, 2, 5, 10, 20, 50], ["1", "2", "5", "10", "20", "50"])
        spread.set_title("spread")
        bias.set(xscale="log", xlabel="KL, nats", ylabel="bias / KL", ylim=(-0.15, 2.1))
        bias.set_title("bias")
        for panel in (spread, bias):
            panel.set_xticks([0.005, 0.05, 0.5], ["0.005", "0.05", "0.5"])
            panel.legend(loc="upper right" if panel is spread else "upper left")
        _slopes(slope, gradients)
        figure.supxlabel("pi = N(0, 1), ref = N(m, 1): lines are closed forms, dots are sampled. Gradients are enumerated.", fontsize=9, color=MUTED, x=0.01, ha="left")
    return figure


def _slopes(axes: Axes, gradients: dict[str, Array]) -> None:
    """The two true gradients as bars, and the estimators' on them."""
    ahead, back = gradients["KL(pi || ref)"], gradients["KL(ref || pi)"]
    place = np.arange(1, len(ahead) + 1)
    axes.bar(place - 0.2, ahead, 0.38, color=INK, alpha=0.2, label="KL(pi || ref)")
    axes.bar(place + 0.2, back, 0.38, color=GREEN, alpha=0.2, label="KL(ref || pi)")
    for name, x, marker, colour in (
        ("k1 in the reward", place - 0.29, "s", BLUE), ("k2 as a loss", place - 0.11, "D", ORANGE), ("k3 as a loss", place + 0.2, "o", GREEN), ("k1 as a loss", place, "x", BLUE),
    ):  # fmt: skip
        axes.plot(x, gradients[name], marker, color=colour, markersize=5.5, label=name, linestyle="none")
    axes.axhline(0, color=MUTED, linewidth=0.6)
    axes.set(xlabel="action", ylabel="gradient by its logit", xticks=place)
    low, high = axes.get_ylim()
    axes.set_ylim(low, high + 0.42 * (high - low))  # room for the legend
    axes.set_title("whose gradient each follows")
    axes.legend(ncols=2, loc="upper center", fontsize=8.5, handletextpad=0.4, columnspacing=1)
