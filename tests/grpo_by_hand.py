"""Groups whose every number is known: completions, scores and log-probabilities by hand, and what the page makes of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import ppo_tiny
from truing.config import GRPO
from truing.methods import grpo as page
from truing.methods.groups import Drawn
from truing.methods.grpo_loss import Before, reduced, token_losses
from truing.methods.ppo_update import Seen
from truing.types import Score

LENGTHS = (2, 1, 3, 2)
REWARDS = (1.0, 0.0, 0.0, 1.0)
# One group of four: the current policy, the one that sampled, and the reference, token by token.
LOGP = ((-0.5, -1.2), (-2.0,), (-0.7, -0.1, -1.5), (-0.9, -0.3))
OLD = ((-0.6, -1.0), (-1.6,), (-0.7, -0.5, -1.4), (-1.2, -0.4))
REF = ((-0.8, -0.9), (-1.0,), (-0.9, -0.6, -1.1), (-0.7, -0.8))


def options(preset: str, **changes: Any) -> GRPO:
    return GRPO(**{"preset": preset, "prompts": "p", "batch_size": 4, "group": 4, "max_new_tokens": 5, "max_length": 64, "sampler_cap": None, **changes})


def grid(rows: tuple[tuple[float, ...], ...]) -> Tensor:
    out = torch.zeros(len(rows), max(map(len, rows)))
    for row, values in zip(out, rows, strict=True):
        row[: len(values)] = torch.tensor(values)
    return out


def drawn(rewards: tuple[float, ...] = REWARDS, lengths: tuple[int, ...] = LENGTHS, prompts: tuple[int, ...] | None = None, finished: tuple[bool, ...] | None = None, greedy: dict[int, float] | None = None) -> Drawn:
    batch = ppo_tiny.by_hand([[7 + t for t in range(n)] for n in lengths], list(finished or (True,) * len(lengths)))
    return Drawn(batch, [Score(r, {"r": r}) for r in rewards], {}, list(prompts or (0,) * len(rewards)), list(prompts or (0,) * len(rewards)), greedy or {})


def before(config: GRPO, found: Drawn, *, old: Tensor | None, ref: Tensor | None, coef: float | None = None) -> tuple[Before, list[int]]:
    used, groups, _ = page.usable(found, found.scores, config)
    looked = page.Looked(old, ref)
    return page.advantage(found, found.scores, used, groups, looked, config, config.kl.coef if coef is None else coef), used


def loss(config: GRPO, found: Drawn | None = None, *, logp: Tensor | None = None, old: Tensor | None = None, ref: Tensor | None = None) -> Tensor:
    """The scalar the page minimises for these log-probabilities, as one part."""
    found = found or drawn()
    logp = grid(LOGP) if logp is None else logp
    past, used = before(config, found, old=grid(OLD) if old is None else old, ref=grid(REF) if ref is None else ref)
    counted = found.batch.rollout.trained_BT[used]
    losses = token_losses(logp[used], torch.zeros_like(logp[used]), past[used], counted, config, _begun())
    return reduced(losses, counted, config, tokens=int(counted.sum()), sequences=len(used))


def _begun() -> Seen:
    seen = Seen()
    seen.begin()
    return seen
