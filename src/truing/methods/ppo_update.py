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

from truing.errors import NonFiniteError
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
    """Advantages by GAE (`maths.advantages.gae` has the arguments, all ``[..., T]``) and the targets they imply.

    Raises NonFiniteError when a value is NaN or infinite: the value model has diverged.
    """
    bad = int((~torch.isfinite(values)).sum())
    if bad:
        raise NonFiniteError(f"{bad} of {values.numel()} values are NaN or infinite: the value model has diverged; lower its learning rate")
    advantages = gae(rewards, values, next_values, discount, carry, lam)
    return Estimate(whiten(advantages, counted), advantages + values)


@dataclass(frozen=True)
class Past:
    """What the update must know of the rollout, one number an element: all made before any weight changes."""

    logp: Tensor
    values: Tensor
    advantages: Tensor
    targets: Tensor

    def __getitem__(self, index: Tensor | list[int] | slice) -> Past:
        return Past(*(getattr(self, f.name)[index] for f in fields(self)))


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
    """What one rollout's updates looked like: ``(logp, logp_old, surrogate, value error)`` of every part of every update.

    Only references are kept while training; `summary` does the arithmetic once.
    """

    updates: list[list[tuple[Tensor, Tensor, Tensor, Tensor]]] = field(default_factory=list)

    def begin(self) -> None:
        """A new update starts."""
        self.updates.append([])

    def again(self) -> None:
        """The update that has begun starts over."""
        self.updates[-1].clear()

    def add(self, *elements: Tensor) -> None:
        logp, logp_old, surrogate, error = (x.detach() for x in elements)
        self.updates[-1].append((logp, logp_old, surrogate, error))


def objective(now: Present, past: Past, total: int, bounds: Bounds, seen: Seen) -> Tensor:
    """These elements' share of the scalar to minimise: ``mean(surrogate + value_weight * value error - entropy * H)``.

    ``total`` counts the elements of the whole minibatch, of which these may be a part.
    """
    surrogate = clipped_surrogate(now.logp, past.logp, past.advantages, bounds.clip)
    if bounds.value_clip is None:
        error = squared_error(now.values, past.targets)
    else:
        error = clipped_squared_error(now.values, past.values, past.targets, bounds.value_clip)
    seen.add(now.logp, past.logp, surrogate, error)
    loss = surrogate + bounds.value_weight * error
    if bounds.entropy:
        loss = loss - bounds.entropy * now.entropy
    return reduce.elements(loss, total)


@torch.no_grad()
def summary(seen: Seen, updates: Sequence[dict[str, float]], clip: float) -> dict[str, float]:
    """The metrics of one rollout's updates: means over updates of means over elements, the largest ratio, and how far the very first was from 1.

    Args:
        updates: what `learn.update.Learner.update` returned for each.
        clip: the bound that ``policy/clip_share`` counts against.
    """
    logp, logp_old, surrogate, error = (torch.cat([x.flatten() for x in column]) for column in zip(*(part for update in seen.updates for part in update), strict=True))
    counts = [sum(part[0].numel() for part in update) for update in seen.updates]
    weight = torch.cat([torch.full((n,), 1 / (n * len(counts))) for n in counts])
    rho = ratio(logp, logp_old)
    means = {
        "policy/loss": surrogate,
        "policy/approx_kl": kl.k3(logp_old, logp),
        "policy/clip_share": clip_share(logp, logp_old, clip),
        "policy/ratio_mean": rho,
        "value/loss": error,
    }
    return {
        **{name: float((weight * value).sum()) for name, value in means.items()},
        **{name: sum(u[name] for u in updates) / len(updates) for name in ("grad/norm", "update/skipped")},
        "policy/ratio_max": float(rho.max()),
        "policy/first_ratio_error": float((rho[: counts[0]] - 1).abs().max()),
        "lr": updates[-1]["lr"],
    }
