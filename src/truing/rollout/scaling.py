"""Running scales of observations and rewards, for tasks whose numbers are not near 1."""

from __future__ import annotations

import numpy as np


class Scaler:
    """Observations to zero mean and unit variance, rewards divided by the standard deviation of the discounted return; both limited to +-10.

    Means and variances run over everything seen so far. Source: Huang et al. 2022, "The 37 implementation details of PPO", MuJoCo details 5 to 8.
    """

    LIMIT = 10.0

    def __init__(self, shape: tuple[int, ...], environments: int, discount: float) -> None:
        self.discount = discount
        self.seen, self.returned = Moments(shape), Moments(())
        self.running = np.zeros(environments)

    def observations(self, x: np.ndarray, *, learn: bool) -> np.ndarray:
        """Scaled ``[N, ...]``, float32; `learn` counts them in first."""
        if learn:
            self.seen.add(x)
        return np.clip((x - self.seen.mean) / np.sqrt(self.seen.variance + 1e-8), -self.LIMIT, self.LIMIT).astype(np.float32)

    def rewards(self, rewards: np.ndarray, ended: np.ndarray) -> np.ndarray:
        """Scaled ``[N]``; the mean is left alone, so the sign of a reward stays."""
        self.running = self.discount * self.running + rewards
        self.returned.add(self.running)
        self.running[ended] = 0.0
        return np.clip(rewards / np.sqrt(self.returned.variance + 1e-8), -self.LIMIT, self.LIMIT)


class Moments:
    """Mean and (population) variance of everything added so far.

    Source: Chan, Golub and LeVeque 1979, the merge of two sets' moments.

    >>> m = Moments(())
    >>> m.add(np.array([1.0, 2.0])); m.add(np.array([6.0]))
    >>> float(m.mean), round(float(m.variance), 6)  # 9 / 3; (4 + 1 + 9) / 3
    (3.0, 4.666667)
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.count, self.mean, self.variance = 0, np.zeros(shape), np.ones(shape)

    def add(self, x: np.ndarray) -> None:
        n, mean, variance = len(x), x.mean(0), x.var(0)
        total, shift = self.count + n, mean - self.mean
        self.variance = (self.count * self.variance + n * variance + shift**2 * self.count * n / total) / total
        self.mean, self.count = self.mean + shift * n / total, total
