"""What a step of PPO writes down: the metrics of its rollout, and of policy, reference and value model on it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from truing.config import PPO
from truing.maths import kl, stats
from truing.methods.completions import Batch
from truing.methods.rollout_record import of_rollout, of_sampler
from truing.rewards.normalise import Normalised
from truing.types import Score

if TYPE_CHECKING:
    from truing.methods.ppo import Experience


def record(
    batch: Batch, scores: Sequence[Score], normalised: Normalised, monitored: dict[str, list[Score]], experience: Experience, config: PPO
) -> dict[str, float]:
    """The rollout's metrics; `observe/metrics.py` defines each."""
    rollout, past, n = batch.rollout, experience.past, len(batch)
    trained, count = rollout.trained_BT, int(rollout.trained_BT.sum())
    away, mismatch = kl.k1(past.logp, experience.logp_ref), (past.logp - rollout.sampler_logp_BT)[trained]
    weight = torch.ones(count) if past.weight is None else past.weight[trained]
    return {
        **of_rollout(batch, scores, normalised, monitored),
        "reward/total": float(experience.rewards.sum()) / n,
        "kl/sequence": float(away.sum()) / n,
        "kl/k3_sequence": float(kl.k3(past.logp, experience.logp_ref).sum()) / n,
        "kl/token": float(away.sum()) / count,
        "policy/entropy": float(experience.entropy.sum()) / count,
        "value/explained_variance": stats.explained_variance(past.values[trained].numpy(), past.targets[trained].numpy()),
        "value/error": float((past.targets - past.values)[trained].square().mean().sqrt()),
        "advantage/std": float((past.targets - past.values)[trained].std()),
        **of_sampler(mismatch, config.sampling),
        **({} if config.sampling.truncates else {"sampler/weight_mean": float(weight.mean())}),  # it would be what was kept
        "sampler/capped_share": 0.0 if config.sampler_cap is None else float((weight >= config.sampler_cap).float().mean()),
    }
