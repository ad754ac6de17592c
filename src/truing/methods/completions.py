"""What every method that trains on its own completions does with them: read, score, place the reward, take log-probabilities.

Shapes: B completions, T tokens of the longest, right-padded; a part of a batch is packed, its M completion tokens end to end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from truing.config import GRPO, PPO
from truing.errors import RewardError
from truing.maths.likelihood import TokenLikelihood
from truing.methods.actor import Actor
from truing.models.pack import Pack
from truing.models.roles import Role
from truing.rewards.completions import Completions, as_completions
from truing.types import Rollout, Score


@dataclass(frozen=True)
class Batch:
    """Completions whose reward is usable: the rollout's tensors and the packed sequences every role reads.

    ``failed`` is what was left out, as rows for the samples: what was said, and why it has no score. ``kept`` says which of the
    rollout's completions these are.
    """

    rollout: Rollout
    texts: Completions
    failed: tuple[dict[str, Any], ...] = ()
    kept: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.texts.texts)

    def tokens(self, rows: Sequence[int]) -> int:
        return sum(self.texts.pack.lengths[r] for r in rows)

    def pack(self, rows: Sequence[int]) -> tuple[Pack, Tensor]:
        """These rows' packed sequences, and where in them each completion token is predicted from: one before the token itself."""
        part, places = self.texts.pack.select(rows), self.texts.places
        return part, part.at([places[r] for r in rows]) - 1

    def rows(self, scores: Sequence[Score]) -> list[dict[str, Any]]:
        logp = [[round(v, 4) for v in row[mask].tolist()] for row, mask in zip(self.rollout.sampler_logp_BT, self.rollout.trained_BT, strict=True)]
        good = [
            {"prompt": p, "completion": c, "score": s.value, "parts": dict(s.parts), "status": s.status.value, "tokens": len(lp), "logp": lp}
            for p, c, s, lp in zip(self.texts.prompts, self.texts.transcripts or self.texts.texts, scores, logp, strict=True)
        ]
        return [*good, *self.failed]


def read(
    rollout: Rollout, questions: list[str], roles: Actor, config: PPO | GRPO, rows: Sequence[Mapping[str, Any]] = (), outcomes: Sequence[Score] = ()
) -> Completions:
    """The rollout as scorers see it; its frozen layers run here, once, for every role and epoch.

    ``rows`` are the other columns of each prompt's row of data, ``outcomes`` what an environment made of each episode.
    """
    pack = Pack(rollout.sequences())
    roles.prepare(pack, config.micro_tokens)
    return as_completions(rollout, roles.decode, questions, pack, rows, outcomes)


def score(rollout: Rollout, texts: Completions, roles: Actor, config: PPO | GRPO) -> tuple[Batch, list[Score], dict[str, list[Score]]]:
    """Reward and monitors of every completion; those whose reward failed are left out. Raises RewardError above ``scores.bad_share``."""
    scores = roles.reward(texts)
    usable = [i for i, s in enumerate(scores) if s.status.usable]
    failed = 1 - len(usable) / len(scores)
    if failed > config.scores.bad_share or not usable:
        first = next(s for s in scores if not s.status.usable)
        raise RewardError(f"{failed:.0%} of the rewards failed (allowed {config.scores.bad_share:.0%}), the first with {first.status.value}: {next(iter(first.parts), '')}")
    left_out: tuple[dict[str, Any], ...] = tuple(
        {"prompt": texts.prompts[i], "completion": texts.texts[i], "score": None, "parts": {}, "status": s.status.value, "reason": next(iter(s.parts), "")}
        for i, s in enumerate(scores) if not s.status.usable
    )  # fmt: skip
    if left_out:
        rollout, texts, scores = rollout.select(usable), texts.select(usable), [scores[i] for i in usable]
    return Batch(rollout, texts, left_out, tuple(usable)), scores, {name: monitor(texts) for name, monitor in roles.monitors.items()}


def rewards_of(batch: Batch, scores: Sequence[Score], config: PPO | GRPO) -> Tensor:
    """Every score at its completion's last token, or spread over its tokens: ``[B, T]``."""
    rewards = torch.zeros(batch.rollout.trained_BT.shape)
    last = batch.rollout.lengths_B - 1
    for row, s in enumerate(scores):
        if s.spread:
            rewards[row, : len(s.spread)] = torch.tensor(s.spread)
        else:
            rewards[row, last[row]] = s.value
    if config.scores.missing_eos is not None:
        rewards[torch.arange(len(batch)), last] += config.scores.missing_eos * ~batch.rollout.finished_B
    return rewards


def likelihood(role: Role, hidden_MD: Tensor, pack: Pack, positions_M: Tensor, config: PPO | GRPO) -> TokenLikelihood:
    """Log-probability and entropy of the tokens after these positions, at the sampling temperature, from the role's hidden states there."""
    return role.likelihood(hidden_MD, pack, positions_M, temperature=config.temperature, entropy_gradient=config.entropy > 0)


def put(grid_BT: Tensor, x_M: Tensor, rows: Sequence[int], trained_BT: Tensor) -> None:
    """Write the packed numbers of a part, whose rows may stand in any order, to their places in the batch."""
    for row, piece in zip(rows, x_M.split(trained_BT[list(rows)].sum(-1).tolist()), strict=True):
        grid_BT[row, : len(piece)] = piece
