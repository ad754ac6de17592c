"""Over-optimisation without sampling noise: where gold peaks, whether ensembles help, and whether the alarm goes off in time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import numpy as np
from pydantic import Field

from truing.config import Frozen
from truing.labs.lab import Cell, Check, Findings, Table
from truing.labs.overoptimisation_alarm import RUNS, Watched, watch
from truing.labs.overoptimisation_curves import Curve, Fit, best_of_n, fit, strengths_for, tilts
from truing.labs.overoptimisation_world import SCENARIOS, combined, make
from truing.maths.stats import Array, Interval, bootstrap

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SEEDS = 12
WAYS = ("best of n", "KL penalty")
FORMS = ("d", "log d")
COUNTS = [2**k for k in range(15)]
POINTS = 40


class Options(Frozen):
    """A world has 8^6 sequences, its reference is a random bigram model, and its reward models are small networks trained on comparisons."""

    members: Annotated[int, Field(ge=2, le=10)] = Field(5, description="reward models of an ensemble")
    doubt: Annotated[float, Field(ge=0, le=10)] = Field(0.5, description="weight of the ensemble's variance in mean - var")
    furthest: Annotated[float, Field(ge=5, le=12)] = Field(9.0, description="nats of KL to which policies are pushed")
    runs: Annotated[int, Field(ge=0, le=100)] = Field(10, description="training runs that the alarm watches, of each kind, each in a world of its own; 0 leaves this out")
    steps: Annotated[int, Field(ge=30, le=1000)] = Field(100, description="steps of such a run, evenly spaced in sqrt(KL)")
    batch: Annotated[int, Field(ge=8, le=4096)] = Field(64, description="completions a step of such a run")


class Pushed(NamedTuple):
    """One reward pushed both ways, and the fits of the two laws to each; ``curves`` by way, ``fits`` by (way, form)."""

    curves: Mapping[str, Curve]
    fits: Mapping[tuple[str, str], Fit]


Found = Mapping[tuple[str, str], Sequence[Pushed]]  # (scenario, reward) -> one a seed


def expectation(options: Options) -> str:
    return (
        "What is optimised always rises; what it stands for does so only at first. With noise in the labels alone, gold flattens and hardly falls. When every comparison missed the same flaw, gold peaks "
        "and crashes, and no ensemble helps, because all of its members are wrong alike. When each reward model is wrong in its own way, a single one loses a tenth of its peak or more, and the least "
        "or the mean less the variance of an ensemble usually loses next to nothing. Where gold peaks, reward and gold no longer go together over the samples; so an alarm that watches their rank correlation goes "
        "off before a tenth of gold is lost, in at least nine runs of ten, and in at most one of ten when gold itself is trained on."
    )


def run(options: Options, seeds: Sequence[int]) -> Findings:
    """Enumerate every policy of three scenarios, then let the monitor watch runs whose gold is known."""
    from truing.labs.overoptimisation_draw import alarms, curves

    found: dict[tuple[str, str], list[Pushed]] = {}
    for scenario in SCENARIOS:
        for seed in seeds:
            world, scores = make(scenario, seed, options.members)
            for name, reward in combined(scores, options.doubt).items():
                found.setdefault((scenario, name), []).append(push(world.reference, world.gold, reward, options.furthest))
    runs: dict[str, list[Watched]] = {kind: [] for kind in RUNS} if options.runs else {}
    for seed in range(seeds[0], seeds[0] + options.runs):
        world, scores = make("shared flaw", seed, 1)
        for kind in runs:
            runs[kind].append(watch(world, scores[0], kind, seed, steps=options.steps, batch=options.batch, furthest=options.furthest))
    figures: dict[str, Figure] = {"overoptimisation": curves({s: {r: found[s, r][0] for _, r in found if (s, r) in found} for s in SCENARIOS})}
    tables, checks = [_ensembles(found), _laws(found)], _curve_checks(found)
    if runs:
        tables.append(_in_time(runs))
        checks += _alarm_checks(runs)
        figures["overoptimisation_alarm"] = alarms(runs)
    return Findings(checks, tables, figures, {"curves": _plain(found), "alarm": {kind: [_of(w) for w in watched] for kind, watched in runs.items()}})


def push(reference: Array, gold: Array, reward: Array, furthest: float) -> Pushed:
    """Both curves of one reward: best of 1 to 16,384, and tilts at even steps of sqrt(KL) up to ``furthest`` nats."""
    distances = np.sqrt(furthest) * np.arange(1, POINTS + 1) / POINTS
    made = {WAYS[0]: best_of_n(reference, gold, reward, COUNTS), WAYS[1]: tilts(reference, gold, reward, strengths_for(reference, reward, distances))}
    return Pushed(made, {(way, form): fit(curve, form) for way, curve in made.items() for form in FORMS})


# -- tables --------------------------------------------------------------------------------------------------------------


def over(values: Sequence[float]) -> Interval | float:
    return bootstrap(values) if len(values) > 1 else float(values[0])


def _ensembles(found: Found) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for (scenario, reward), pushed in found.items():
        bon, pi = ([p.curves[way] for p in pushed] for way in WAYS)
        rows.append((
            scenario, reward, over([float(c.gold[c.peak]) for c in bon]), over([float(c.gold[-1]) for c in bon]), over([c.decline for c in bon]),
            over([float(c.gold[c.peak]) for c in pi]), over([float(c.kl[c.peak]) for c in pi]), over([float(c.gold[-1]) for c in pi]),
        ))  # fmt: skip
    last = f"{next(iter(found.values()))[0].curves[WAYS[1]].kl[-1]:.0f}"
    columns = ("scenario", "reward", "best of n: peak", f"n = {COUNTS[-1]:,}", "share lost", "KL penalty: peak", "its KL, nats", f"at {last} nats")
    return Table("Gold, in standard deviations of the reference; means over seeds with 95% intervals", columns, rows)


def _laws(found: Found) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for scenario in SCENARIOS:
        for way in WAYS:
            for form in FORMS:
                fits = [p.fits[way, form] for p in found[scenario, "single"]]
                rows.append((scenario, way, f"d (alpha - beta {form})", over([f.alpha for f in fits]), over([f.beta for f in fits]), over([f.r2 for f in fits])))
    return Table("Fits of gold for a single reward model, d = sqrt(KL), up to 1.5 times the peak's d", ("scenario", "way", "law", "alpha", "beta", "R^2"), rows)


def _in_time(runs: Mapping[str, Sequence[Watched]]) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for kind, watched in runs.items():
        for rule in ("ranks", "slopes"):
            alarms = [w.alarm(rule) for w in watched]
            fired = [a for a in alarms if a is not None]
            before = sum(a is not None and (w.lost is None or a < w.lost) for a, w in zip(alarms, watched, strict=True))
            spoiled = kind == "proxy"
            rows.append((
                kind, rule, f"{len(fired)} of {len(watched)}", f"{before} of {len(watched)}" if spoiled else "-", float(np.median(fired)) if fired else "-",
                float(np.median([w.peak for w in watched])) if spoiled else "-", float(np.median([w.lost or len(w.gold) for w in watched])) if spoiled else "-",
            ))  # fmt: skip
    columns = ("trained on", "rule", "alarms", "before a tenth was lost", "step of the alarm (median)", "gold's peak (median)", "a tenth lost (median)")
    return Table(f"The alarm on runs of {len(next(iter(runs.values()))[0].gold)} steps in the shared-flaw world", columns, rows)


# -- checks --------------------------------------------------------------------------------------------------------------


def _said(values: Sequence[float], form: str = ".0%") -> str:
    x = over(values)
    return f"{x.mean:{form}} [{x.low:{form}}, {x.high:{form}}]" if isinstance(x, Interval) else f"{x:{form}} (one seed)"


def _curve_checks(found: Found) -> list[Check]:
    lost = {key: [p.curves[WAYS[0]].decline for p in pushed] for key, pushed in found.items()}
    high = {key: max(values) if len(values) == 1 else float(np.mean(values)) for key, values in lost.items()}
    every = [c for pushed in found.values() for p in pushed for c in p.curves.values()]
    checks = [Check("what is optimised always rises", f"in {sum(bool((np.diff(c.proxy) > 0).all()) for c in every)} of {len(every)} curves", all((np.diff(c.proxy) > 0).all() for c in every))]
    bounded = [c for pushed in found.values() for p in pushed for c in [p.curves[WAYS[0]]]]
    gap = max(float((c.kl - (np.log(c.strength) - (c.strength - 1) / c.strength)).max()) for c in bounded)
    checks.append(Check("KL of best-of-n is at most log n - (n - 1) / n", f"largest excess {gap:.1e} nats", gap < 1e-6))
    noise = lost["saturate", "single"]
    checks.append(Check("label noise alone: gold loses less than a tenth of its peak by n = 16,384", _said(noise), high["saturate", "single"] < 0.1))
    r2 = [p.fits[way, "d"].r2 for p in found["saturate", "single"] for way in WAYS]
    checks.append(Check("label noise alone: d (alpha - beta d) fits gold with R^2 of 0.9 or more", f"smallest {min(r2):.3f}", min(r2) >= 0.9))
    checks.append(Check("shared flaw: a single reward model loses a quarter of its peak or more", _said(lost["shared flaw", "single"]), high["shared flaw", "single"] >= 0.25))
    others = {r: high["shared flaw", r] for s, r in found if s == "shared flaw" and r != "single"}
    checks.append(Check("shared flaw: no ensemble helps; each loses a quarter or more", ", ".join(f"{r} {v:.0%}" for r, v in others.items()), min(others.values()) >= 0.25))
    checks.append(Check("idiosyncratic flaw: a single reward model loses a tenth of its peak or more", _said(lost["idiosyncratic flaw", "single"]), high["idiosyncratic flaw", "single"] >= 0.1))
    for r in ("min", "mean - var"):
        losses, middle = lost["idiosyncratic flaw", r], float(np.median(lost["idiosyncratic flaw", r]))
        saved = [a - b for a, b in zip(lost["idiosyncratic flaw", "single"], losses, strict=True)]
        sure = not isinstance(kept := over(saved), Interval) or kept.low > 0
        checks.append(Check(f"idiosyncratic flaw: {r} of the ensemble loses at most 3% in half of the worlds, and less than the single one", f"median {middle:.1%}, mean {_said(losses)}; {_said(saved)} less", middle <= 0.03 and sure))
    return checks


def _alarm_checks(runs: Mapping[str, Sequence[Watched]]) -> list[Check]:
    spoiled = runs["proxy"]
    n, caught = len(spoiled), sum(w.in_time for w in spoiled)
    gone = [w.gone(w.alarm()) for w in spoiled]
    checks = [Check(f"the alarm goes off before gold has lost a tenth of its peak, in at least {np.ceil(0.9 * n):.0f} of {n} runs", f"{caught} of {n}; at the worst {max(gone):.1%} was lost", caught >= 0.9 * n)]
    for kind in (k for k in runs if k != "proxy"):
        false = sum(w.alarm() is not None for w in runs[kind])
        checks.append(Check(f"trained on {kind}: at most {n // 10} of {n} runs are alarmed", f"{false} of {n}", false <= n / 10))
    return checks


# -- for machines --------------------------------------------------------------------------------------------------------


def _plain(found: Found) -> list[dict[str, Any]]:
    """The curves that are drawn: those of the first seed."""
    return [
        {"scenario": scenario, "reward": reward, "way": way, **{k: v.tolist() for k, v in p.curves[way]._asdict().items()}, "fits": {f: p.fits[way, f]._asdict() for f in FORMS}}
        for (scenario, reward), (p, *_) in found.items()
        for way in WAYS
    ]


def _of(w: Watched) -> dict[str, Any]:
    return {"peak": w.peak, "lost": w.lost, "ranks": w.alarm("ranks"), "slopes": w.alarm("slopes"), "gone": w.gone(w.alarm()), "in_time": w.in_time}
