"""What a step of a group method writes down: its completions, its groups, and what the update did."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from truing.config import GRPO
from truing.maths import kl
from truing.methods.groups import Drawn, overlong
from truing.methods.grpo_loss import Before
from truing.methods.ppo_update import Seen, summary
from truing.methods.rollout_record import of_rollout, of_sampler
from truing.rewards.normalise import Normalised
from truing.types import Score

if TYPE_CHECKING:
    from truing.methods.grpo import Looked


def record(
    drawn: Drawn, normalised: Normalised, differ: Sequence[bool], used: Sequence[int], before: Before, seen: Looked, table: Seen,
    updated: Sequence[dict[str, float]], config: GRPO,
) -> dict[str, float]:  # fmt: skip
    """The step's metrics; `observe/metrics.py` defines each. What needs an update or a reference is there when they are."""
    batch, scores, rollout = drawn.batch, drawn.scores, drawn.batch.rollout
    each = drawn.solved()
    solved = [[each[row] for row in rows] for rows in drawn.groups()]
    values = {
        **of_rollout(batch, scores, normalised, drawn.monitored),
        "groups/count": float(len(solved)),
        **({"groups/varied_share": sum(differ) / len(differ)} if config.group > 1 else {}),
        **({"reward/overlong": float(overlong(batch, config).mean())} if config.overlong is not None else {}),
        "groups/solved_share": sum(min(g) >= 1 for g in solved) / len(solved),
        "groups/hopeless_share": sum(max(g) <= 0 for g in solved) / len(solved),
        "groups/used_share": len(used) / len(batch),
        "policy/updates": float(len(updated)),
    }
    values |= _gap(scores)
    if used:
        counted = rollout.trained_BT[list(used)]
        values["advantage/std"] = float(before.advantages[list(used)][counted].std()) if counted.sum() > 1 else 0.0
    if seen.logp is not None and seen.logp_ref is not None:
        counted = rollout.trained_BT
        away, k3 = kl.k1(seen.logp, seen.logp_ref)[counted], kl.k3(seen.logp, seen.logp_ref)[counted]
        values |= {"kl/sequence": float(away.sum()) / len(batch), "kl/k3_sequence": float(k3.sum()) / len(batch), "kl/token": float(away.mean())}
    if updated:
        values |= summary(table, updated, config.clip_high)
        first = table.updates[0]
        values["policy/entropy"] = float(torch.cat(first["entropy"]).mean())
        values |= of_sampler(torch.cat(first["mismatch"]), config.sampling)
    return values


def _gap(scores: Sequence[Score]) -> dict[str, float]:
    """How much better the tests that the model may know go than those it does not, over programs that have both: what a gamed checker shows first."""
    both = [s.parts["visible_tests"] - s.parts["hidden_tests"] for s in scores if {"visible_tests", "hidden_tests"} <= s.parts.keys()]
    return {"reward/hidden_gap": sum(both) / len(both)} if both else {}
