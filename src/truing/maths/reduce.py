"""From one number an element to one number: sums divided by *global* counts that the caller passes in.

So the result cannot depend on how a batch is cut into micro-batches, accumulated, packed or sharded: the parts' scalars add up.
"""

from __future__ import annotations

from torch import Tensor


def tokens(loss: Tensor, counted: Tensor, total: int) -> Tensor:
    """Mean over tokens: ``sum(loss * counted) / total``, total = counted tokens of the *whole* batch.

    >>> import torch
    >>> tokens(torch.tensor([[.1, .2, .3, .4], [.5, .4, .3, .2]]), torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]]), total=7)  # 2.0 / 7
    tensor(0.2857)
    """
    return (loss * counted).sum() / _positive(total, "tokens")


def sequences(loss: Tensor, counted: Tensor, total: int) -> Tensor:
    """Mean over sequences of the mean over their tokens (``[B, T]``), total = sequences of the whole batch.

    >>> import torch
    >>> round(float(sequences(torch.tensor([[.1, .2, .3, .4], [.5, .4, .3, .2]]), torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]]), total=2)), 6)  # (.2 + .35) / 2
    0.275
    """
    return ((loss * counted).sum(-1) / counted.sum(-1).clamp(min=1)).sum() / _positive(total, "sequences")


def constant(loss: Tensor, counted: Tensor, total: int, length: int) -> Tensor:
    """Sum over tokens divided by ``total * length``, a fixed length for all (Dr. GRPO: no length bias).

    >>> import torch
    >>> round(float(constant(torch.tensor([[.1, .2, .3, .4], [.5, .4, .3, .2]]), torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]]), total=2, length=4)), 6)  # 2.0 / 8
    0.25
    """
    return (loss * counted).sum() / (_positive(total, "constant") * _positive(length, "constant"))


def pairs(loss: Tensor, total: int) -> Tensor:
    """Mean over pairs: ``sum(loss) / total``, total = pairs of the whole batch."""
    return loss.sum() / _positive(total, "pairs")


def _positive(total: int, name: str) -> int:
    if total <= 0:
        raise ValueError(f"reduce.{name}: total={total}; the batch has nothing that counts in the loss, so there is nothing to learn from")
    return total
