"""The loss of the group methods: one row of the table advantage x ratio x clip x reduction x KL, token by token.

Shapes: b completions of a part, T tokens of the longest. ``counted`` is True at a completion's own tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from truing.config import GRPO
from truing.maths import kl, reduce
from truing.maths.policy import cispo, clip_share, clipped_surrogate, masked_importance, ratio, reinforce, sequence_logp, truncated_importance
from truing.methods.ppo_update import Seen


@dataclass(frozen=True)
class Before:
    """What is known of the completions before any weight changes, ``[B, T]``.

    ``logp`` is None when the rollout gets one update only: the policy that learns is then the one that sampled. ``logp_ref``
    and ``later`` (the divergence still to come after each token, less a baseline) belong to a penalty in the loss, and ``leash``
    is its coefficient.
    """

    advantages: Tensor
    sampler_logp: Tensor
    logp: Tensor | None = None
    logp_ref: Tensor | None = None
    later: Tensor | None = None
    leash: float = 0.0

    def __getitem__(self, rows: list[int]) -> Before:
        pick = lambda x: None if x is None else x[rows]  # noqa: E731
        return Before(self.advantages[rows], self.sampler_logp[rows], pick(self.logp), pick(self.logp_ref), pick(self.later), self.leash)


def token_losses(logp: Tensor, entropy: Tensor, before: Before, counted: Tensor, config: GRPO, seen: Seen) -> Tensor:
    """``weight * surrogate - entropy * H + leash * divergence``, one number a token; what is not counted may be anything."""
    old = logp.detach() if before.logp is None else before.logp
    loss = surrogate(logp, old, before.advantages, counted, config, seen)
    if config.sampler_cap is not None:
        weigh = truncated_importance if config.sampler_outside == "cap" else masked_importance
        loss = weigh(old, before.sampler_logp, config.sampler_cap) * loss
    if config.mask_beyond is not None:
        loss = loss * ~left_behind(logp, old, before.advantages, counted, config.mask_beyond)[:, None]
    seen.add(logp=logp[counted], logp_old=old[counted], surrogate=loss[counted], entropy=entropy[counted], mismatch=(old - before.sampler_logp)[counted])
    if before.leash and before.logp_ref is not None:
        away = divergence(logp, old, before, config)
        seen.add(away=estimate(logp, before.logp_ref, config)[counted])
        loss = loss + before.leash * away
    return loss - config.entropy * entropy if config.entropy else loss


def surrogate(logp: Tensor, old: Tensor, advantages: Tensor, counted: Tensor, config: GRPO, seen: Seen) -> Tensor:
    """The policy's part under ``config.ratio`` and ``config.clip``. A ratio of completions stands at each of its tokens."""
    if config.ratio == "none":
        return reinforce(logp, advantages)
    if config.ratio == "sequence":
        now, past = (sequence_logp(x, counted)[:, None].expand_as(logp) for x in (logp, old))
        whole = (advantages * counted).sum(-1, keepdim=True) / counted.sum(-1, keepdim=True).clamp(min=1)
        advantages = whole.expand_as(logp)
    else:
        now, past = logp, old
    if config.clip == "none":
        return -advantages * ratio(now, past)
    low = config.clip_high if config.clip_low is None else config.clip_low
    outside = clip_share(now, past, low, config.clip_high) if config.clip_low is not None else (ratio(now, past) > 1 + config.clip_high).float()
    seen.add(outside=outside[counted])
    if config.clip == "weight":
        return cispo(now, past, advantages, clip_low=config.clip_low, clip_high=config.clip_high)
    return clipped_surrogate(now, past, advantages, low, config.clip_high)


def left_behind(logp: Tensor, old: Tensor, advantages: Tensor, counted: Tensor, limit: float) -> Tensor:
    """True for completions of negative advantage whose mean ``log pi_old - log pi`` exceeds the limit, ``[b]``: the policy has turned away
    from them, and pushing further costs what it can do elsewhere. Source: DeepSeek-AI 2025, V3.2, off-policy sequence masking."""
    tokens = counted.sum(-1).clamp(min=1)
    mean = lambda x: torch.where(counted, x, 0.0).sum(-1) / tokens  # noqa: E731
    return (mean(advantages) < 0) & (mean((old - logp).detach()) > limit)


def divergence(logp: Tensor, old: Tensor, before: Before, config: GRPO) -> Tensor:
    """The penalty in the loss: of whole completions with the gradient of KL(pi || ref), or each token's estimate alone."""
    if before.logp_ref is None or before.later is None:
        raise ValueError("divergence: a penalty in the loss needs logp_ref and later; both come from the reference")
    if config.kl.place.startswith("token_"):
        return estimate(logp, before.logp_ref, config)
    bound = config.clip_high if config.clip == "surrogate" and config.ratio == "token" else None
    return kl.penalty(logp, old, before.logp_ref, before.later, config.kl.place.removeprefix("loss_"), bound)


def estimate(logp: Tensor, logp_ref: Tensor, config: GRPO) -> Tensor:
    """k2 or k3 of each token, never negative."""
    return (kl.k2 if config.kl.place.endswith("k2") else kl.k3)(logp, logp_ref)


def reduced(loss: Tensor, counted: Tensor, config: GRPO, *, tokens: int, sequences: int) -> Tensor:
    """The part's share of the scalar; ``tokens`` and ``sequences`` count those of the whole minibatch."""
    if config.reduction == "token":
        return reduce.tokens(loss, counted, tokens)
    if config.reduction == "sequence":
        return reduce.sequences(loss, counted, sequences)
    return reduce.constant(loss, counted, sequences, config.max_new_tokens if config.reduction == "constant" else 1)


def grid(x_M: Tensor, counted: Tensor) -> Tensor:
    """Packed numbers of a part at their places, 0 elsewhere; gradients go through."""
    return torch.zeros(counted.shape, dtype=x_M.dtype).masked_scatter(counted, x_M)
