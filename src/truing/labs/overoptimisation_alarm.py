"""Is the alarm of `observe.monitor` in time? Training runs whose true gold is known exactly at every step.

A run walks along the tilted policies of a proxy, at even steps of sqrt(KL). What it logs is what a real one would: means over
a batch of samples, with all their noise. What the alarm should have said is known from the enumeration.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from scipy.stats import spearmanr

from truing.labs.overoptimisation_curves import strengths_for, tilt
from truing.labs.overoptimisation_world import LENGTH, World, draw
from truing.maths.stats import Array
from truing.observe.metrics import CORRELATION
from truing.observe.monitor import Finding, overoptimisation
from truing.seeds import stream

LOSS = 0.1  # of gold's peak, by which the alarm must have gone off
RUNS = {"proxy": (False, 0.0), "gold": (True, 0.0), "gold, noisy judge": (True, 1.0)}  # what is trained on is gold itself; standard deviation of the judge's errors


class Watched(NamedTuple):
    """A run: its events, the exact gold of each step's policy, and what the monitor found."""

    events: list[dict[str, Any]]
    gold: Array
    found: list[Finding]

    @property
    def peak(self) -> int:
        """Step of the greatest gold; the first is step 1."""
        return int(np.argmax(self.gold)) + 1

    @property
    def lost(self) -> int | None:
        """First step after the peak at which a tenth of its gold is gone; None when that does not come."""
        after = np.flatnonzero(self.gold[self.peak :] < (1 - LOSS) * self.gold[self.peak - 1])
        return int(after[0]) + self.peak + 1 if len(after) else None

    def alarm(self, kind: str = "") -> int | None:
        """Step of the first alarm; of "ranks" or "slopes" alone."""
        steps = [f.step for f in self.found if f.step is not None and (not kind or f.name.endswith(CORRELATION) == (kind == "ranks"))]
        return min(steps, default=None)

    @property
    def in_time(self) -> bool:
        alarm = self.alarm()
        return alarm is not None and (self.lost is None or alarm < self.lost)

    def gone(self, step: int | None) -> float:
        """Share of the peak's gold that was lost at a step; negative before the peak, by what was still missing. The last step when there was no alarm."""
        gap = float(1 - self.gold[(step or len(self.gold)) - 1] / self.gold[self.peak - 1])
        return -gap if (step or len(self.gold)) < self.peak else gap


def watch(world: World, proxy: Array, kind: str, seed: int, *, steps: int, batch: int, furthest: float) -> Watched:
    """One run to ``furthest`` nats: trained on the proxy, on gold, or on gold and watched by a judge whose every score is off by N(0, 1)."""
    on_gold, error = RUNS[kind]
    reward = world.gold if on_gold else proxy
    distances = np.sqrt(furthest) * np.arange(1, steps + 1) / steps
    rng = np.random.default_rng(stream(seed, f"overoptimisation run {kind}"))
    events, gold = [], []
    for step, strength in enumerate(strengths_for(world.reference, reward, distances), 1):
        policy = tilt(world.reference, reward, float(strength))
        gold.append(float(policy @ world.gold))
        sampled = draw(policy, batch, rng)
        scores, judged = reward[sampled], world.gold[sampled] + error * rng.standard_normal(batch)
        row: dict[str, Any] = {"kind": "metrics", "step": step, "reward/proxy": float(scores.mean()), "reward/score_std": float(scores.std()), "monitor/gold": float(judged.mean()), "tokens/mean": float(LENGTH)}
        if np.ptp(scores) > 0 and np.ptp(judged) > 0:
            row[f"monitor/gold{CORRELATION}"] = float(spearmanr(scores, judged).statistic)
        events.append(row)
    return Watched(events, np.array(gold), overoptimisation(events))
