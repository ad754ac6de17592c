"""Groups: the completions of one prompt, and what their rewards say of each of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from truing.config import GRPO
from truing.maths.advantages import best_of_group, group_centred, group_standardised, leave_one_out
from truing.methods.completions import Batch, rewards_of
from truing.models.pack import Pack
from truing.rewards.completions import Completions
from truing.rewards.shaping import soft_overlong
from truing.types import Rollout, Score


@dataclass(frozen=True)
class Drawn:
    """Scored completions of a step, the prompt (its number among all) that each answers, and the group it belongs to.

    ``greedy`` is the reward of each prompt's most likely completion, where that is the baseline. ``checked`` names the parts of a
    score that a verifier or an environment made.
    """

    batch: Batch
    scores: list[Score]
    monitored: dict[str, list[Score]]
    prompt_B: list[int]
    group_B: list[int]
    greedy: Mapping[int, float]
    checked: tuple[str, ...] = ()

    def solved(self) -> list[float]:
        """How far each completion solves its prompt: the part of its score that was checked, the least when there are several; else the score."""
        return [min((s.parts[name] for name in self.checked), default=s.value) for s in self.scores]

    def groups(self) -> list[list[int]]:
        """The rows of each group, in the order in which they were sampled."""
        found: dict[int, list[int]] = {}
        for row, group in enumerate(self.group_B):
            found.setdefault(group, []).append(row)
        return list(found.values())

    @classmethod
    def joined(cls, rounds: Sequence[Drawn]) -> Drawn:
        if len(rounds) == 1:
            return rounds[0]
        batches = [r.batch for r in rounds]
        batch = Batch(_rollouts([b.rollout for b in batches]), _texts([b.texts for b in batches]), tuple(row for b in batches for row in b.failed))
        monitored = {name: [s for r in rounds for s in r.monitored[name]] for name in rounds[0].monitored}
        greedy = {prompt: value for r in rounds for prompt, value in r.greedy.items()}
        return cls(batch, [s for r in rounds for s in r.scores], monitored, [p for r in rounds for p in r.prompt_B], [g for r in rounds for g in r.group_B], greedy, rounds[0].checked)


def varied(groups: Sequence[Sequence[int]], scores: Sequence[Score]) -> list[bool]:
    """Whether the scores of each group differ at all, before penalties of length; a completion alone differs from nothing."""
    return [any(scores[row].value != scores[rows[0]].value for row in rows) for rows in groups]


def outcome(batch: Batch, scores: Sequence[Score], config: GRPO) -> Tensor:
    """The reward of each completion, ``[B]``: its score, and the soft penalty of one that is nearly or quite too long."""
    return rewards_of(batch, scores, config).sum(-1) + overlong(batch, config)


def overlong(batch: Batch, config: GRPO) -> Tensor:
    """The soft penalty of each completion, 0 to -1; 0 for all without one."""
    if config.overlong is None:
        return torch.zeros(len(batch))
    margin = max(1, round(config.overlong * config.max_new_tokens))
    return torch.tensor([soft_overlong(n, config.max_new_tokens, margin) for n in batch.texts.lengths])


def advantages(rewards_B: Tensor, groups: Sequence[Sequence[int]], config: GRPO, baseline_B: Tensor | None = None) -> Tensor:
    """One number a completion, ``[B]``, under ``config.advantage``: each group by itself, whatever its size.

    A group of one, whose other completions have no usable reward, has nothing to be compared with: 0. ``baseline_B`` is the
    reward of the prompt's greedy completion, for `greedy`; NaN where there is none, and the advantage is 0. ("batch" is made of tokens, not of completions: see `grpo.advantage`.)
    """
    if config.advantage == "greedy":
        return rewards_B if baseline_B is None else torch.where(baseline_B.isnan(), 0.0, rewards_B - baseline_B)
    out = torch.zeros_like(rewards_B)
    for rows in map(list, groups):
        if len(rows) > 1:
            out[rows] = _of_group(rewards_B[rows], config)
    return out


def _of_group(rewards_G: Tensor, config: GRPO) -> Tensor:
    if config.advantage == "standardised":
        return group_standardised(rewards_G, floor=config.std_floor)
    return {"centred": group_centred, "centred_batch": group_centred, "leave_one_out": leave_one_out, "best": best_of_group}[config.advantage](rewards_G)


def _rollouts(parts: Sequence[Rollout]) -> Rollout:
    """Rollouts of one policy, one after the other, padded to the longest."""
    longest = max(r.completion_BT.shape[1] for r in parts)
    pad = lambda x: torch.nn.functional.pad(x, (0, longest - x.shape[1]))  # noqa: E731
    completion, trained, logp = (torch.cat([pad(getattr(r, name)) for r in parts]) for name in ("completion_BT", "trained_BT", "sampler_logp_BT"))
    spoken = any(r.heard for r in parts)
    heard = tuple(h for r in parts for h in (r.heard or ((),) * len(r.prompts))) if spoken else ()
    return Rollout([p for r in parts for p in r.prompts], completion, trained, logp, torch.cat([r.finished_B for r in parts]), parts[0].temperature, parts[0].version, heard, parts[0].truncation)


def _texts(parts: Sequence[Completions]) -> Completions:
    every = lambda name: [x for part in parts for x in getattr(part, name)]  # noqa: E731
    pack = Pack.joined([part.pack for part in parts])
    said_at = [place for part in parts for place in part.places] if any(part.said_at for part in parts) else ()
    turns = [t for part in parts for t in (part.turns or [[text] for text in part.texts])] if said_at else ()
    transcripts = [t for part in parts for t in (part.transcripts or part.texts)] if said_at else ()
    return Completions(every("prompts"), every("texts"), pack, every("starts"), every("finished"), every("rows"), every("outcomes"), said_at, turns, transcripts)
