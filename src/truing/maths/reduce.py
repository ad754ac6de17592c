"""From one number an element to one number: sums divided by *global* counts that the caller passes in.

So the result cannot depend on how a batch is cut into micro-batches, accumulated, packed or sharded: the parts' scalars add up.
``counted`` has the loss's shape and is True where an element counts (or 1, or its weight); where it is 0 the loss may be
anything, NaN too.
Each raises ValueError when the shapes differ or a total is not positive.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from truing.maths import check


def tokens(loss: Tensor, counted: Tensor, total: int) -> Tensor:
    """Mean over tokens: ``sum(loss * counted) / total``, total = counted tokens of the *whole* batch.

    >>> tokens(torch.tensor([[.1, .2, .3, .4], [.5, .4, .3, .2]]), torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]]), total=7)  # 2.0 / 7
    tensor(0.2857)
    """
    return _kept("tokens", loss, counted).sum() / _positive("tokens", total=total)


def sequences(loss: Tensor, counted: Tensor, total: int) -> Tensor:
    """Mean over sequences of the mean over their tokens (``[B, T]``), total = sequences of the whole batch.

    A sequence with no counted token adds 0.

    >>> round(float(sequences(torch.tensor([[.1, .2, .3, .4], [.5, .4, .3, .2]]), torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]]), total=2)), 6)  # (.2 + .35) / 2
    0.275
    """
    sums, counts = _kept("sequences", loss, counted).sum(-1), counted.sum(-1)
    return (sums / torch.where(counts == 0, math.inf, counts)).sum() / _positive("sequences", total=total)


def constant(loss: Tensor, counted: Tensor, total: int, length: int) -> Tensor:
    """Sum over tokens divided by ``total * length``, a fixed length for all (Dr. GRPO: no length bias).

    >>> round(float(constant(torch.tensor([[.1, .2, .3, .4], [.5, .4, .3, .2]]), torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]]), total=2, length=4)), 6)  # 2.0 / 8
    0.25
    """
    return _kept("constant", loss, counted).sum() / (_positive("constant", total=total) * _positive("constant", length=length))


def elements(loss: Tensor, total: int) -> Tensor:
    """Mean over elements that all count, ``sum(loss) / total``: pairs, steps, packed tokens, or sequences with one loss each.

    total = those of the whole batch, of which these may be a part.

    >>> elements(torch.tensor([1.0, 2.0]), total=6)  # 3 / 6
    tensor(0.5000)
    """
    return loss.sum() / _positive("elements", total=total)


def _kept(caller: str, loss: Tensor, counted: Tensor) -> Tensor:
    check.same_shape(f"reduce.{caller}", loss=loss, counted=counted)
    return torch.where(counted == 0, 0.0, loss * counted)


def _positive(caller: str, **counts: int) -> int:
    ((name, count),) = counts.items()
    if not count > 0:
        raise ValueError(f"reduce.{caller}: {name}={count}; the batch has nothing that counts in the loss, so there is nothing to learn from")
    return count
