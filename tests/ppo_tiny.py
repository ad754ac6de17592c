"""PPO on models of a few thousand weights: a folder to read, roles that have moved from their start, and a rollout to learn from."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import tiny
from truing.config import PPO, Lora, Stage
from truing.methods import ppo as page
from truing.methods.completions import Batch, read, score
from truing.methods.ppo_update import minibatches
from truing.methods.roles_of_ppo import Roles, open_roles
from truing.models.heads import ScalarHead
from truing.models.load import load_model, load_tokenizer, save_model
from truing.models.pack import Pack
from truing.models.roles import Role, open_backbone, policy_role, save_role
from truing.rewards.scorers import Completions
from truing.rollout.sampler import sample
from truing.types import Rollout, Score

LORA = Lora(rank=4, alpha=8.0, layers=1)  # of two layers, so that there is a frozen trunk
STOPS = range(0, 400, 6)  # tokens that end a completion here: about a sixth of all, so that some end early and some are cut off


def world(path: Path) -> Path:
    """base/, prompts.jsonl, and rm/: a reward model that has learnt nothing but gives every completion another score."""
    tiny.folder(path)
    model = load_model(str(path / "base"))
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(8.0)  # tied to the head: logits that differ by more than a fresh model's
    save_model(model, load_tokenizer(str(path / "base")), path / "base")
    backbone, source = open_backbone(str(path / "base"), Stage(lora=LORA, dtype="float32"))
    role = policy_role(backbone, source, seed=5, purpose="reward")
    role.head = ScalarHead(backbone.width, seed=5, purpose="reward-head")
    shake(role, 0.3, seed=6)
    save_role(role, path / "rm", base=source.base)
    return path


def options(path: Path, **changes: Any) -> PPO:
    """Settings under which a run takes a fraction of a second; `changes` go over them."""
    small = {
        "model": str(path / "base"), "reward": str(path / "rm"), "prompts": str(path / "prompts.jsonl"), "lora": LORA.model_dump(), "dtype": "float32", "steps": 2,
        "batch_size": 8, "minibatches": 2, "epochs": 2, "lr": 5e-3, "max_new_tokens": 6, "save_every": 2, "max_length": 64,
        "kl": {"coef": 0.1, "target": None}, "scores": {"timeout": None},
    }  # fmt: skip
    return PPO(**{**small, **changes})


def sums(prompts: list[str], completions: list[str]) -> list[float]:
    """A score from 0 to 1 that differs between completions and depends on nothing but their letters."""
    return [sum(map(ord, text)) % 11 / 10 for text in completions]


def moody(prompts: list[str], completions: list[str]) -> list[float]:
    """A scorer that has no answer for the first completion of a batch."""
    return [math.nan, *sums(prompts, completions)[1:]]


@torch.no_grad()
def shake(role: Role, size: float, seed: int) -> None:
    """Move a role's trained weights at random: an adapter's second factors by `size`, everything else by a tenth of it."""
    for i, (name, p) in enumerate(sorted(role.parameters().items())):
        scale = size if name.endswith(".B") else size / 10
        p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(1000 * seed + i)).to(p.device) * scale)


def moved_roles(config: PPO, folder: Path, size: float = 0.2) -> Roles:
    """All four roles, the policy and the value model away from where they start."""
    roles = open_roles(config, 0, folder)
    shake(roles.policy, size, seed=1)
    if config.value == "separate":
        shake(roles.value, size, seed=2)
    return roles


def prompts(count: int) -> list[list[int]]:
    """Prompts of one to five tokens."""
    return [[(11 * i + 7 * j) % 200 + 10 for j in range(i % 5 + 1)] for i in range(count)]


def rolled_out(roles: Roles, config: PPO, *, step: int = 1, noise: float = 0.0) -> tuple[Batch, list[Score]]:
    """A scored rollout of `config.batch_size`; half of the completions end by themselves. ``noise`` disturbs what the sampler says of itself."""
    found = sample(roles.policy, prompts(config.batch_size), max_new_tokens=config.max_new_tokens, temperature=config.temperature, stop_ids=STOPS, seed=0, step=step)
    if noise:
        drawn = torch.randn(found.sampler_logp_BT.shape, generator=torch.Generator().manual_seed(9)) * noise
        found = replace(found, sampler_logp_BT=torch.where(found.trained_BT, found.sampler_logp_BT + drawn, 0.0))
    batch, scores, _ = score(found, read(found, ["q"] * config.batch_size, roles, config), roles, config)
    return batch, scores


def by_hand(completions: list[list[int]], finished: list[bool], starts: list[list[int]] | None = None) -> Batch:
    """A batch of given completions, for tests that need to know every token."""
    starts = starts or prompts(len(completions))
    lengths = torch.tensor([len(c) for c in completions])
    grid = torch.zeros(len(completions), int(lengths.max()), dtype=torch.long)
    for row, ids in enumerate(completions):
        grid[row, : len(ids)] = torch.tensor(ids)
    real = torch.arange(grid.shape[1]) < lengths[:, None]
    rollout = Rollout(starts, grid, real, torch.zeros(grid.shape), torch.tensor(finished), 1.0, 0)
    n = len(completions)
    return Batch(rollout, Completions(["q"] * n, ["a"] * n, Pack(rollout.sequences()), [len(s) for s in starts], finished))


def plan_of(batch: Batch, config: PPO, step: int = 1) -> list[list[list[int]]]:
    return [list(minibatches(len(batch), config.minibatches, 0, step, epoch)) for epoch in range(config.epochs)]


def looked(batch: Batch, scores: list[Score], roles: Roles, config: PPO, *, micro_tokens: int | None = None) -> page.Experience:
    return page.look(batch, roles, config, plan_of(batch, config)[0], config.kl.coef, scores, micro_tokens or config.micro_tokens)
