"""The only place that changes weights: accumulate micro-batches, clip, step; refuse non-finite numbers, survive out-of-memory.

Losses arrive already divided by the whole batch's count (`maths.reduce`), so the parts add up and the cut into
micro-batches cannot change the result.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from truing.errors import ModelError, NonFiniteError

MAX_SKIPS = 5  # consecutive updates with a non-finite gradient before the run stops


class Learner:
    """AdamW over named parameters, with warm-up, schedule, global gradient-norm clipping and bounded retries.

    Args:
        params: trainable parameters by name; names are what checkpoints store.
        total: updates over the whole run, for the schedule.
        lr_of: learning rate of a name; None gives `lr` to all.

    Source: Loshchilov and Hutter 2019 (arXiv 1711.05101). eps = 1e-5 as in openai/baselines PPO (Huang et al. 2022, detail 3).
    """

    def __init__(
        self, params: Mapping[str, nn.Parameter], *, lr: float, total: int, warmup: float = 0.0, schedule: str = "constant", weight_decay: float = 0.0,
        grad_clip: float = 1.0, micro_tokens: int = 2048, eps: float = 1e-8, lr_of: Callable[[str], float] | None = None,
    ) -> None:  # fmt: skip
        if not params:
            raise ModelError("nothing to train: every weight is frozen")
        self.params = dict(sorted(params.items()))
        self.lr, self.total, self.warmup, self.schedule, self.grad_clip = lr, max(total, 1), warmup, schedule, grad_clip
        self.micro_tokens = micro_tokens
        self.updates = self.skipped = self.skipped_in_a_row = 0
        by_rate: dict[float, list[nn.Parameter]] = {}
        for name, p in self.params.items():
            by_rate.setdefault(lr_of(name) if lr_of else lr, []).append(p)
        self.base_lrs = list(by_rate)
        groups = [{"params": group, "lr": rate} for rate, group in by_rate.items()]
        self.adam = torch.optim.AdamW(groups, betas=(0.9, 0.999), eps=eps, weight_decay=weight_decay, fused=True)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(iter(self.params.values())).device

    def factor(self, update: int) -> float:
        """The schedule's multiplier of the learning rate at an update (0-based)."""
        rising = math.ceil(self.warmup * self.total)
        if update < rising:
            return (update + 1) / rising
        left = max(0.0, (self.total - update) / max(1, self.total - rising))
        return {"constant": 1.0, "linear": left, "cosine": 0.5 * (1 - math.cos(math.pi * left))}[self.schedule]

    def update(
        self, items: Sequence[int], tokens: Callable[[list[int]], int], loss: Callable[[list[int]], Tensor | Iterator[Tensor]], again: Callable[[], None] = lambda: None
    ) -> dict[str, float]:
        """One optimiser step on a batch.

        Args:
            items: what `loss` is called with, part by part.
            tokens: how many tokens a part puts through the model; parts hold at most `micro_tokens`.
            loss: the part's share of the scalar loss, with gradient; or several in turn, each of which is taken back through the
                model before the next is asked for, so that their activations are never there together.
            again: called before the batch is tried again in smaller parts, to forget what `loss` has counted.

        Returns ``loss``, ``grad/norm`` (before clipping), ``lr`` and ``update/skipped`` (1 when the update was left out).
        Raises NonFiniteError after `MAX_SKIPS` skipped updates in a row.
        """
        value = self._accumulate(items, tokens, loss, again)
        grads = [p.grad for p in self.params.values() if p.grad is not None]
        if not grads:
            raise ModelError("the loss reaches none of the trained weights; check what is frozen, and that the loss comes from them")
        norm = float(torch.stack(torch._foreach_norm(grads)).norm())
        finite = math.isfinite(norm) and math.isfinite(value)
        factor = self.factor(self.updates)
        if finite:
            for group, base in zip(self.adam.param_groups, self.base_lrs, strict=True):
                group["lr"] = base * factor
            if norm > self.grad_clip:
                torch._foreach_mul_(grads, self.grad_clip / norm)
            self.adam.step()
            self.skipped_in_a_row = 0
        else:
            self.skipped += 1
            self.skipped_in_a_row += 1
            if self.skipped_in_a_row >= MAX_SKIPS:
                raise NonFiniteError(f"{MAX_SKIPS} updates in a row had a non-finite loss or gradient (loss {value}, norm {norm}); lower lr or look at the last samples")
        self.updates += 1
        self._forget_gradients()
        return {"loss": value, "grad/norm": norm, "lr": self.lr * factor, "update/skipped": float(not finite)}

    def leave_out(self, updates: int) -> None:
        """Planned updates that will not be made: the schedule goes on as if they had been."""
        self.updates += updates

    def _accumulate(
        self, items: Sequence[int], tokens: Callable[[list[int]], int], loss: Callable[[list[int]], Tensor | Iterator[Tensor]], again: Callable[[], None]
    ) -> float:
        while True:
            self._forget_gradients()
            try:
                total = 0.0
                for part in parts(items, tokens, self.micro_tokens):
                    found = loss(part)
                    for share in (found,) if isinstance(found, Tensor) else found:
                        total += float(share.detach())
                        share.backward()
                        del share
                return total
            except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
                least = max(tokens([item]) for item in items)
                if not _is_out_of_memory(error) or self.micro_tokens <= least:
                    raise
                self.micro_tokens = max(least, self.micro_tokens // 2)
                again()

    def _forget_gradients(self) -> None:
        for p in self.params.values():
            p.grad = None

    # -- state -----------------------------------------------------------------------------------------------------
    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """Weights and moments, by group, for a checkpoint."""
        moments = {name: self.adam.state.get(p, {}) for name, p in self.params.items()}
        return {
            "weights": {name: p.detach() for name, p in self.params.items()},
            "adam": {f"{name}/{key}": state[key] for name, state in moments.items() for key in ("exp_avg", "exp_avg_sq", "step") if key in state},
        }

    def state(self) -> dict[str, Any]:
        return {"updates": self.updates, "skipped": self.skipped, "skipped_in_a_row": self.skipped_in_a_row, "micro_tokens": self.micro_tokens}

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]) -> None:
        """Put back what `tensors` and `state` gave."""
        if set(tensors["weights"]) != set(self.params):
            odd = sorted(set(tensors["weights"]) ^ set(self.params))
            raise ModelError(f"the checkpoint's weights do not match this recipe, first at {odd[0]!r}; use the recipe it was written with")
        for name, p in self.params.items():
            p.copy_(tensors["weights"][name])
            if f"{name}/exp_avg" in tensors["adam"]:
                self.adam.state[p] = {k: tensors["adam"][f"{name}/{k}"].clone().to(p.device) for k in ("step", "exp_avg", "exp_avg_sq")}
        self.updates, self.skipped, self.skipped_in_a_row = state["updates"], state["skipped"], state["skipped_in_a_row"]
        self.micro_tokens = state["micro_tokens"]


def parts(items: Sequence[int], tokens: Callable[[list[int]], int], budget: int) -> list[list[int]]:
    """Items cut, in order, into as few parts of at most `budget` tokens as that allows, and these about equal; one that is larger stands alone.

    >>> parts([0, 1, 2, 3], lambda part: 3 * len(part), budget=10)
    [[0, 1], [2, 3]]
    """
    if len(items) and (whole := tokens(list(items))) <= budget:
        return [list(items)]
    found = _cut(items, tokens, budget)
    least = min(budget, whole / len(found)) if found else budget
    for eighths in range(8):  # the largest part decides the memory: the smallest budget that needs no further part
        equal = _cut(items, tokens, math.ceil(least + (budget - least) * eighths / 8))
        if len(equal) == len(found):
            return equal
    return found


def _cut(items: Sequence[int], tokens: Callable[[list[int]], int], budget: int) -> list[list[int]]:
    found: list[list[int]] = []
    for item in items:
        if found and tokens([*found[-1], item]) <= budget:
            found[-1].append(item)
        else:
            found.append([item])
    return found


def _is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)
