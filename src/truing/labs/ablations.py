"""What each part of PPO is for: leave it out, and see it fail the way the theory says.

The language of the lab `optimum`, small enough that every number is an exact sum over all completions. Its reward is a proxy: it likes the word ``a``, the more
the better, which is right until nothing else is said. None of these ablations is a setting: each is made on the steps of the page.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple

import numpy as np
from pydantic import Field

from truing.config import KL, Frozen, Scores
from truing.labs import ablations_draw
from truing.labs.ablations_gradient import Spread, spread
from truing.labs.lab import Cell, Check, Findings, Table
from truing.labs.optimum_loop import by_hand, one_late
from truing.labs.optimum_world import Array, apart, best, world, worth
from truing.labs.tabular import enough, over_seeds, said
from truing.maths.stats import Interval

SEEDS = 3
OWN = 0.2  # share of a completion's own number in both rewards
PAID = (0.0, 0.5, 1.0, 1.5)  # the proxy, for 0, 1, 2 and 3 times the word a
MEANT = (0.0, 0.5, 1.0, -1.0)  # the gold reward
INTACT = "intact"


def proxy(prompts: list[str], completions: list[str]) -> list[float]:
    """What is optimised: half a point for every ``a``, and a number of the completion's own.

    >>> round(proxy(["b0"], ["a0 a0"])[0] - 0.2 * worth(["b0"], ["a0 a0"])[0], 6)
    1.0
    """
    return _rewards(prompts, completions, PAID)


def gold(prompts: list[str], completions: list[str]) -> list[float]:
    """What is meant: the same, but a completion of nothing else is a nuisance."""
    return _rewards(prompts, completions, MEANT)


def _rewards(prompts: list[str], completions: list[str], worths: Sequence[float]) -> list[float]:
    own = worth(prompts, completions)
    return [OWN * number + worths[sum(word.startswith("a") for word in text.split())] for number, text in zip(own, completions, strict=True)]


class Options(Frozen):
    """What ``--set`` may change."""

    coef: Annotated[float, Field(ge=0.1, le=2)] = Field(0.7, description="reward per nat of the intact PPO")
    steps: Annotated[int, Field(ge=2, le=10_000)] = Field(30, description="rollouts of each run, of 256 completions, each followed by 2 epochs of 4 minibatches")
    faster: Annotated[float, Field(ge=1, le=100)] = Field(10, description="times the learning rate, with and without the clip")
    gradients: Annotated[int, Field(ge=8, le=10_000)] = Field(64, description="rollouts of 64 completions of a frozen policy, for the variance of its gradient")


class Kind(NamedTuple):
    """An ablation: the stage's options that differ, and the step of the page that does."""

    name: str
    options: dict[str, Any]
    step: dict[str, Any]


class Outcome(NamedTuple):
    """A run's exact means at every time, ``[times]``: what was optimised, what was meant, nats from the reference, and total variation to the intact PPO's closed form."""

    at: list[int]
    proxy: Array
    gold: Array
    kl: Array
    apart: Array


def kinds(options: Options) -> list[Kind]:
    fast = {"lr": min(1.0, 3e-3 * options.faster), "epochs": 4}
    return [
        Kind(INTACT, {}, {}),
        Kind("clip", fast, {}),
        Kind("no clip", fast, {"clipped": False}),
        Kind("beta 0", {"kl": KL(coef=0.0, target=None)}, {}),
        Kind("flipped", {}, {"sign": -1.0}),
        Kind("late", {}, {"change": one_late}),
    ]


def expectation(options: Options) -> str:
    return (
        f"with {options.faster:g} times the learning rate the policy stays near its optimum with the clip and is thrown away without; without a baseline the gradient of one and the same policy varies more; "
        "with beta 0 the proxy rises and what is meant falls below where it began; with the KL's sign flipped the divergence passes that of every right policy; a reward on the padding teaches nothing"
    )


def run(options: Options, seeds: Sequence[int]) -> Findings:
    enough("ablations", seeds)
    found = {kind.name: [one(options, kind, seed) for seed in seeds] for kind in kinds(options)}
    spreads = [variance(options, seed) for seed in seeds]
    rows: list[tuple[Cell, ...]] = [("before training", *_means(found[INTACT], 0))]
    rows += [(LONG[name], *_means(group, -1)) for name, group in found.items()]
    table = Table(
        f"After {options.steps} rollouts, {len(seeds)} seeds, exact sums",
        ("PPO", "proxy", "gold", "KL(pi || ref), nats", "total variation to its closed form"),
        rows,
    )
    noise = Table(
        f"Gradient of one frozen policy, {options.gradients} rollouts of 64 completions",
        ("advantage", "trace of the covariance, against none"),
        [(name, over_seeds(s.traces[i] / s.traces[0] for s in spreads)) for i, name in enumerate(("return (no baseline)", "return less the batch's mean", "return less V(s)"))],
    )
    values = {name: {"proxy": [o.proxy.tolist() for o in group], "gold": [o.gold.tolist() for o in group], "kl": [o.kl.tolist() for o in group]} for name, group in found.items()}
    return Findings(checks(found, spreads, options), [table, noise], {"ablations": ablations_draw.draw(found, spreads, options.faster)}, values)


LONG = {
    INTACT: "intact", "clip": "faster, 4 epochs", "no clip": "faster, 4 epochs, no clip", "beta 0": "beta 0",
    "flipped": "the KL's sign flipped", "late": "reward on the padding",
}  # fmt: skip


def _means(group: Sequence[Outcome], when: int) -> tuple[Interval, ...]:
    return tuple(over_seeds(series[when] for series in column) for column in zip(*((o.proxy, o.gold, o.kl, o.apart) for o in group), strict=True))


def one(options: Options, kind: Kind, seed: int) -> Outcome:
    """One run of one kind, measured ten times."""
    with world(seed, score=proxy, **stage(options, **kind.options)) as w:
        judged = np.array([gold([p] * len(w.texts), w.texts) for p in w.prompts])
        made = by_hand(w, seed, every=max(1, options.steps // 10), **kind.step)
    logp, ref = np.array(made.logps), made.logps[0]
    wanted = np.exp(best(ref, w.rewards, options.coef).logp)
    p = np.exp(logp)
    mean = lambda x: (p * x).sum(-1).mean(-1)  # noqa: E731
    return Outcome(made.at, mean(w.rewards), mean(judged), mean(logp - ref), apart(p, wanted).mean(-1))


def stage(options: Options, **changes: Any) -> dict[str, Any]:
    return {"steps": options.steps, "batch_size": 256, "kl": KL(coef=options.coef, target=None), "scores": Scores(missing_eos=None, timeout=None), **changes}


def variance(options: Options, seed: int) -> Spread:
    with world(seed, score=proxy, **stage(options, steps=max(5, options.steps // 5))) as w:
        return spread(w, by_hand(w, seed).roles, seed, options.gradients)


# -- checks -------------------------------------------------------------------------------------------------------------


def checks(found: dict[str, list[Outcome]], spreads: Sequence[Spread], options: Options) -> list[Check]:
    """What the theory says of each, with intervals over seeds; differences are taken seed by seed."""

    def end(name: str, key: str) -> Array:
        return np.array([getattr(o, key)[-1] for o in found[name]])

    before = {key: np.array([getattr(o, key)[0] for o in found[INTACT]]) for key in ("proxy", "gold")}
    near = over_seeds(end(INTACT, "apart"))
    kept, thrown = over_seeds(end("clip", "apart")), over_seeds(end("no clip", "apart") - end("clip", "apart"))
    quieter = over_seeds(s.traces[2] / s.traces[0] for s in spreads)
    shift = float(np.mean([s.shift[2] for s in spreads]))
    gamed, harmed = over_seeds(end("beta 0", "proxy") - end(INTACT, "proxy")), over_seeds(end("beta 0", "gold") - before["gold"])
    meant = over_seeds(end(INTACT, "gold") - before["gold"])
    blown = over_seeds(end("flipped", "kl") / end(INTACT, "kl"))
    learned, taught = over_seeds(end(INTACT, "proxy") - before["proxy"]), over_seeds(end("late", "proxy") - before["proxy"])
    return [
        Check("intact: within 0.1 of its closed form, and what is meant rises", f"total variation {said(near)}; gold {_signed(meant)}", near.high < 0.1 and meant.low > 0),
        Check(f"{options.faster:g} times the learning rate: without the clip it ends further away", f"total variation {said(kept)} with the clip, {_signed(thrown)} without", thrown.low > 0),
        Check("no baseline: the same policy's gradient varies more, and is the same on average", f"variance with V(s) is {said(quieter)} of that without; shift {shift:.1f} times chance", quieter.high < 1 and shift < 3),
        Check("beta 0: the proxy ends higher, what is meant below where it began", f"proxy {_signed(gamed)} against intact, gold {_signed(harmed)}", gamed.low > 0 and harmed.high < 0),
        Check("the KL's sign flipped: the divergence blows up", f"{said(blown, 1)} times the intact one's", blown.low > 2),
        Check("reward on the padding: nothing is learned", f"proxy {_signed(taught)}, intact {_signed(learned)}", taught.low <= 0 and taught.high < 0.25 * learned.low),
    ]


def _signed(x: Interval) -> str:
    return f"{x.mean:+.2f} [{x.low:+.2f}, {x.high:+.2f}]"
