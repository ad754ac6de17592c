"""How good a policy is that a proxy has pushed a distance away from the reference: exactly, by adding up 262,144 sequences.

Two ways to push: best-of-n, and the optimum of reinforcement learning with a KL penalty, ``pi ~ ref * exp(proxy / beta)``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from truing.maths.stats import Array


class Curve(NamedTuple):
    """One number a point: ``strength`` (n, or 1 / beta), KL(pi || ref) in nats, and the means of gold and proxy under pi."""

    strength: Array
    kl: Array
    gold: Array
    proxy: Array

    @property
    def distance(self) -> Array:
        """d = sqrt(KL)."""
        return np.sqrt(np.maximum(self.kl, 0.0))

    @property
    def peak(self) -> int:
        return int(np.argmax(self.gold))

    def at(self, kl: float) -> float:
        """Gold at a KL, by linear interpolation in d."""
        return float(np.interp(np.sqrt(kl), self.distance, self.gold))

    @property
    def decline(self) -> float:
        """Share of the peak's gold that is lost at the last point."""
        return float(1 - self.gold[-1] / self.gold[self.peak])


def best_of_n(reference: Array, gold: Array, proxy: Array, counts: Sequence[int]) -> Curve:
    """The sequence of highest proxy among n of the reference's, for each n, as an exact distribution.

    Sorted by proxy, with F_i the reference's probability of i and all below it, the best of n is i with probability
    ``q_i = F_i^n - F_{i-1}^n``. Sequences of equal proxy share theirs in proportion to the reference.

    >>> c = best_of_n(np.array([0.5, 0.5]), np.array([0.0, 1.0]), np.array([0.0, 1.0]), [1, 2])  # best of two coins: 3/4 heads
    >>> c.gold.tolist(), round(float(c.kl[1]), 6)  # 1/4 log(1/2) + 3/4 log(3/2)
    ([0.5, 0.75], 0.130812)
    """
    value, group = np.unique(proxy, return_inverse=True)
    mass = np.bincount(group, reference)
    mean_gold = np.bincount(group, reference * gold) / mass
    below = np.cumsum(mass) / mass.sum()
    below[-1] = 1.0  # whatever rounding left of it
    rows = []
    for n in counts:
        q = np.diff(below**n, prepend=0.0)
        there = q > 0
        rows.append((n, q[there] @ np.log(q[there] / mass[there]), q @ mean_gold, q @ value))
    return Curve(*np.array(rows, dtype=float).T)


def tilt(reference: Array, proxy: Array, strength: float) -> Array:
    """``ref * exp(strength * proxy)``, normalised: what maximises ``E[proxy] - KL / strength``."""
    weight: Array = np.exp(strength * (proxy - proxy.max())) * reference
    return weight / weight.sum()


def tilts(reference: Array, gold: Array, proxy: Array, strengths: Sequence[float] | Array) -> Curve:
    """The tilted policies of these strengths; ``KL = strength * E[proxy] - log E_ref[exp(strength * proxy)]``.

    >>> c = tilts(np.array([0.5, 0.5]), np.array([0.0, 1.0]), np.array([0.0, 1.0]), [np.log(3)])  # odds 1 : 3
    >>> round(float(c.gold[0]), 6), round(float(c.kl[0]), 6)
    (0.75, 0.130812)
    """
    rows = []
    top = proxy.max()
    for strength in strengths:
        weight = np.exp(strength * (proxy - top)) * reference
        total = weight.sum()
        mean = weight @ proxy / total
        rows.append((strength, strength * (mean - top) - np.log(total), weight @ gold / total, mean))
    return Curve(*np.array(rows, dtype=float).T)


def strengths_for(reference: Array, proxy: Array, distances: Array) -> Array:
    """1 / beta at which sqrt(KL) is each of ``distances``, from a fine table (interpolated; KL is within about 1%)."""
    grid = np.concatenate([[0.0], np.geomspace(0.02, 60.0, 50)])
    return np.interp(distances, tilts(reference, proxy, proxy, grid).distance, grid)


class Fit(NamedTuple):
    """Least squares of gold = d (alpha - beta d) (``form`` "d") or d (alpha - beta log d) ("log d"), and the share of variance it explains."""

    form: str
    alpha: float
    beta: float
    r2: float

    def __call__(self, d: Array) -> Array:
        return d * (self.alpha - self.beta * (d if self.form == "d" else np.log(np.maximum(d, 1e-9))))


def fit(curve: Curve, form: str, reach: float = 1.5) -> Fit:
    """Gao et al. 2023 (arXiv 2210.10760), equations 1 and 2, over points with d > 0 up to ``reach`` times the peak's d."""
    d, gold = curve.distance, curve.gold
    use = (d > 1e-6) & (d <= reach * d[curve.peak])
    d, gold = d[use], gold[use]
    alpha, beta = np.linalg.lstsq(np.stack([d, -d * (d if form == "d" else np.log(d))], 1), gold, rcond=None)[0]
    found = Fit(form, float(alpha), float(beta), 0.0)
    return found._replace(r2=float(1 - ((gold - found(d)) ** 2).sum() / ((gold - gold.mean()) ** 2).sum()))
