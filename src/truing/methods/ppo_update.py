"""PPO's estimate and PPO's loss: the very same lines improve a policy on a cart-pole and a language model.

An *element* is one action: a push of the cart, or one token. Callers bring tensors of elements; nothing here knows
where they came from.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from truing.errors import NonFiniteError
from truing.maths import kl, reduce
from truing.maths.advantages import gae, whiten
from truing.maths.policy import clip_share, clipped_surrogate, ratio
from truing.maths.value import clipped_squared_error, squared_error
from truing.seeds import permutation

EPS = 1e-8  # of whitening, inside the square root


class Bounds(Protocol):
    """The settings of one update; every PPO recipe has them.

    Attributes:
        clip: the ratio stays within 1 +- clip.
        value_clip: the same for values, around the old ones; None leaves them free.
        value_weight, entropy: weights of the value loss and of the entropy bonus.
        dual_clip: bounds the loss of a negative advantage; None does not.
    """

    @property
    def clip(self) -> float: ...
    @property
    def value_clip(self) -> float | None: ...
    @property
    def value_weight(self) -> float: ...
    @property
    def entropy(self) -> float: ...
    @property
    def dual_clip(self) -> float | None: ...


class Estimate(NamedTuple):
    """``advantages``, whitened over all counted elements, and the value ``targets`` (advantage + old value, not whitened).

    ``scale`` is what whitening multiplied by, 1 over the standard deviation: whatever else enters the loss in units of the
    reward must be multiplied by it too.
    """

    advantages: Tensor
    targets: Tensor
    scale: float


def estimate(rewards: Tensor, values: Tensor, next_values: Tensor, discount: Tensor, carry: Tensor, lam: float, counted: Tensor) -> Estimate:
    """Advantages by GAE (`maths.advantages.gae` has the arguments, all ``[..., T]``) and the targets they imply.

    Raises NonFiniteError when a value is NaN or infinite: the value model has diverged.
    """
    bad = int((~torch.isfinite(values)).sum())
    if bad:
        raise NonFiniteError(f"{bad} of {values.numel()} values are NaN or infinite: the value model has diverged; lower its learning rate")
    advantages = gae(rewards, values, next_values, discount, carry, lam)
    spread = float(torch.rsqrt(advantages[counted].var() + EPS)) if counted.sum() > 1 else 1.0
    return Estimate(whiten(advantages, counted, eps=EPS), advantages + values, spread)


@dataclass(frozen=True)
class Past:
    """What the update must know of the rollout, one number an element: all made before any weight changes.

    ``weight`` is the importance of an element that another program sampled; None is 1 for all.
    """

    logp: Tensor
    values: Tensor
    advantages: Tensor
    targets: Tensor
    weight: Tensor | None = None

    def __getitem__(self, index: Tensor | list[int] | slice) -> Past:
        weight = None if self.weight is None else self.weight[index]
        return Past(self.logp[index], self.values[index], self.advantages[index], self.targets[index], weight)


class Present(NamedTuple):
    """The same elements under the weights of now: log-probability, entropy and value, with gradient."""

    logp: Tensor
    entropy: Tensor
    values: Tensor


def minibatches(n: int, count: int, seed: int, step: int, epoch: int) -> Iterator[list[int]]:
    """Every one of n rows exactly once, shuffled, in ``count`` parts of nearly equal size (Huang et al. 2022, detail 6).

    A single part is everything, whose order cannot matter: it stays as it is.
    """
    order = permutation(n, seed, "ppo-minibatches", step, epoch) if count > 1 else list(range(n))
    count = min(count, n)
    return (order[i * n // count : (i + 1) * n // count] for i in range(count))


@dataclass
class Seen:
    """What one rollout's updates looked like: named tensors of every part of every update, one number an element.

    Only references are kept while training; `summary` does the arithmetic once.
    """

    updates: list[dict[str, list[Tensor]]] = field(default_factory=list)

    def begin(self) -> None:
        """A new update starts."""
        self.updates.append({})

    def again(self) -> None:
        """The update that has begun starts over."""
        self.updates[-1].clear()

    def add(self, **elements: Tensor) -> None:
        for name, x in elements.items():
            self.updates[-1].setdefault(name, []).append(x.detach())

    @torch.no_grad()
    def divergence(self) -> float:
        """k3 of KL(pi_old || pi), nats an element, as the last update saw it before its step."""
        logp, logp_old = (torch.cat(self.updates[-1][name]) for name in ("logp", "logp_old"))
        return float(kl.k3(logp_old, logp).mean())

    def all(self, name: str) -> Tensor:
        """One name's numbers of all updates, in order; empty when there are none."""
        return torch.cat([x.flatten() for update in self.updates for x in update.get(name, [])] or [torch.zeros(0)])


def objective(now: Present, past: Past, total: int, bounds: Bounds, seen: Seen) -> Tensor:
    """These elements' share of the scalar to minimise: ``mean(surrogate + value_weight * value error - entropy * H)``.

    ``total`` counts the elements of the whole minibatch, of which these may be a part.
    """
    return reduce.elements(policy_loss(now.logp, now.entropy, past, bounds, seen) + value_loss(now.values, past, bounds, seen), total)


def policy_loss(logp: Tensor, entropy: Tensor, past: Past, bounds: Bounds, seen: Seen) -> Tensor:
    """``surrogate - entropy * H``, one number an element."""
    loss = clipped_surrogate(logp, past.logp, past.advantages, bounds.clip, dual_clip=bounds.dual_clip)
    if past.weight is not None:
        loss = loss * past.weight
    seen.add(logp=logp, logp_old=past.logp, surrogate=loss)
    return loss - bounds.entropy * entropy if bounds.entropy else loss


def value_loss(values: Tensor, past: Past, bounds: Bounds, seen: Seen) -> Tensor:
    """``value_weight * value error``, one number an element."""
    if bounds.value_clip is None:
        error = squared_error(values, past.targets)
    else:
        error = clipped_squared_error(values, past.values, past.targets, bounds.value_clip)
    seen.add(error=error, moved=values - past.values)
    return bounds.value_weight * error


@torch.no_grad()
def summary(seen: Seen, updates: Sequence[dict[str, float]], clip: float, value_clip: float | None = None) -> dict[str, float]:
    """The metrics of one rollout's updates: means over updates of means over elements, the largest ratio, and how far the very first was from 1.

    Args:
        updates: what `learn.update.Learner.update` returned for each.
        clip: the bound that ``policy/clip_share`` counts against.
        value_clip: the bound that ``value/clip_share`` counts against; None counts nothing.
    """
    logp, logp_old, moved, outside = (seen.all(name) for name in ("logp", "logp_old", "moved", "outside"))
    counts = [sum(x.numel() for x in update["logp"]) for update in seen.updates]
    weight = torch.cat([torch.full((n,), 1 / (n * len(counts))) for n in counts])
    rho = ratio(logp, logp_old)
    means = {
        "policy/loss": seen.all("surrogate"),
        "policy/approx_kl": kl.k3(logp_old, logp),
        "policy/clip_share": outside if len(outside) else clip_share(logp, logp_old, clip),
        "policy/ratio_mean": rho,
    }
    if len(moved):
        means |= {"value/loss": seen.all("error"), "value/clip_share": torch.zeros_like(moved) if value_clip is None else (moved.abs() > value_clip).float()}
    if len(seen.all("away")):
        means["kl/loss"] = seen.all("away")
    return {
        **{name: float((weight * value).sum()) for name, value in means.items()},
        **{name: sum(u[name] for u in updates) / len(updates) for name in ("grad/norm", "update/skipped")},
        "policy/ratio_max": float(rho.max()),
        "policy/first_ratio_error": float((rho[: counts[0]] - 1).abs().max()),
        "policy/updates": float(len(updates)),
        "lr": updates[-1]["lr"],
    }
