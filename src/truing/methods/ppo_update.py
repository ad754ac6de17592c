"""PPO's estimate and PPO's loss: the very same lines improve a policy on a cart-pole and a language model.

An *element* is one action: a push of the cart, or one token. Callers bring tensors of elements; nothing here knows
where they came from.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from truing.maths import kl, reduce
from truing.maths.advantages import gae, whiten
from truing.maths.policy import clip_share, clipped_surrogate, ratio
from truing.maths.value import clipped_squared_error, squared_error
from truing.seeds import permutation


class Bounds(Protocol):
    """The settings of one update; every PPO recipe has them.

    Attributes:
        clip: the ratio stays within 1 +- clip.
        value_clip: the same for values, around the old ones; None leaves them free.
        value_weight, entropy: weights of the value loss and of the entropy bonus.
    """

    @property
    def clip(self) -> float: ...
    @property
    def value_clip(self) -> float | None: ...
    @property
    def value_weight(self) -> float: ...
    @property
    def entropy(self) -> float: ...


class Estimate(NamedTuple):
    """``advantages``, whitened over all counted elements, and the value ``targets`` (advantage + old value, not whitened)."""

    advantages: Tensor
    targets: Tensor


def estimate(rewards: Tensor, values: Tensor, next_values: Tensor, discount: Tensor, carry: Tensor, lam: float, counted: Tensor) -> Estimate:
    """Advantages by GAE (`maths.advantages.gae` has the arguments, all ``[..., T]``) and the targets they imply."""
    advantages = gae(rewards, values, next_values, discount, carry, lam)
    return Estimate(whiten(advantages, counted), advantages + values)


@dataclass(frozen=True)
class Past:
    """What the update must know of the rollout, one number an element: all made before any weight changes."""

    logp: Tensor
    values: Tensor
    advantages: Tensor
    targets: Tensor

    def __getitem__(self, index: Tensor | list[int]) -> Past:
        return Past(*(getattr(self, f.name)[index] for f in fields(self)))


class Present(NamedTuple):
    """The same elements under the weights of now: log-probability, entropy and value, with gradient."""

    logp: Tensor
    entropy: Tensor
    values: Tensor


def minibatches(n: int, count: int, seed: int, step: int, epoch: int) -> Iterator[list[int]]:
    """Every one of n rows exactly once, shuffled, in ``count`` parts of nearly equal size (Huang et al. 2022, detail 6)."""
    order = permutation(n, seed, "ppo-minibatches", step, epoch)
    count = min(count, n)
    return (order[i * n // count : (i + 1) * n // count] for i in range(count))


@dataclass
class Seen:
    """Diagnostics of one update, gathered over its parts; they stay tensors until they are asked for."""

    means: dict[str, Tensor] = field(default_factory=dict)
    peaks: dict[str, Tensor] = field(default_factory=dict)

    def clear(self) -> None:
        self.means.clear()
        self.peaks.clear()

    @torch.no_grad()
    def add(self, total: int, means: dict[str, Tensor], peaks: dict[str, Tensor]) -> None:
        sums = torch.stack([v.detach().flatten() for v in means.values()]).sum(-1) / total
        for name, value in zip(means, sums, strict=True):
            self.means[name] = self.means[name] + value if name in self.means else value
        for name, value in peaks.items():
            self.peaks[name] = torch.maximum(self.peaks[name], value.max()) if name in self.peaks else value.max()

    def numbers(self) -> dict[str, float]:
        found = {**self.means, **self.peaks}
        return dict(zip(found, torch.stack(list(found.values())).tolist(), strict=True)) if found else {}


def objective(now: Present, past: Past, total: int, bounds: Bounds, seen: Seen) -> Tensor:
    """These elements' share of the scalar to minimise: ``mean(surrogate + value_weight * value error - entropy * H)``.

    ``total`` counts the elements of the whole minibatch, of which these may be a part. What the update looks like goes to ``seen``.
    """
    surrogate = clipped_surrogate(now.logp, past.logp, past.advantages, bounds.clip)
    if bounds.value_clip is None:
        error = squared_error(now.values, past.targets)
    else:
        error = clipped_squared_error(now.values, past.values, past.targets, bounds.value_clip)
    with torch.no_grad():
        rho = ratio(now.logp, past.logp)
        approx_kl, clipped = kl.k3(past.logp, now.logp), clip_share(now.logp, past.logp, bounds.clip)
        means = {"policy/loss": surrogate, "value/loss": error, "policy/approx_kl": approx_kl, "policy/ratio_mean": rho, "policy/clip_share": clipped}
        seen.add(total, means, {"policy/ratio_max": rho, "ratio_error": (rho - 1).abs()})
    loss = surrogate + bounds.value_weight * error
    if bounds.entropy:
        loss = loss - bounds.entropy * now.entropy
    return reduce.tokens(loss, torch.ones_like(loss), total)


def summary(updates: Sequence[dict[str, float]]) -> dict[str, float]:
    """The metrics of one rollout's updates: their means, the largest ratio, and how far the very first ratio was from 1."""
    names = ("policy/loss", "policy/approx_kl", "policy/clip_share", "policy/ratio_mean", "value/loss", "grad/norm", "update/skipped")
    return {
        **{name: sum(u[name] for u in updates) / len(updates) for name in names},
        "policy/ratio_max": max(u["policy/ratio_max"] for u in updates),
        "policy/first_ratio_error": updates[0]["ratio_error"],
        "lr": updates[-1]["lr"],
    }
