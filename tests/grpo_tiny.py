"""The group methods on models of a few thousand weights: options under which a run takes a fraction of a second, rewards to learn from, and groups that were drawn."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import ppo_tiny
from truing.config import GRPO
from truing.methods import grpo as page
from truing.methods.actor import Actor, open_actor
from truing.methods.completions import read, score
from truing.methods.groups import Drawn
from truing.methods.ppo_update import minibatches
from truing.observe.events import read_events
from truing.rollout.sampler import sample
from truing.types import Score

WORLDS = 12  # prompts of a file


def world(path: Path) -> Path:
    """What `ppo_tiny.world` has, and tasks.jsonl: twelve numbered prompts, each with an answer between 1 and 9."""
    ppo_tiny.world(path)
    rows = [{"id": f"t{i}", "prompt": f"Say a word. {i}", "answer": i % 9 + 1} for i in range(WORLDS)]
    (path / "tasks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def options(path: Path, **changes: Any) -> GRPO:
    small = {
        "model": str(path / "base"), "reward": "ppo_tiny:sums", "prompts": str(path / "tasks.jsonl"), "lora": ppo_tiny.LORA.model_dump(), "dtype": "float32", "steps": 2,
        "batch_size": 8, "group": 4, "minibatches": 2, "epochs": 2, "lr": 5e-3, "max_new_tokens": 6, "save_every": 2, "max_length": 96, "scores": {"timeout": None},
    }  # fmt: skip
    return GRPO(**{**small, **changes})


def run(path: Path, folder: Path, *, seed: int = 0, **changes: Any) -> list[dict[str, Any]]:
    """A whole run's metrics, one row a step."""
    page.grpo(options(path, **changes), folder, seed=seed)
    return metrics(folder)


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [dict(e) for e in read_events(folder) if e["kind"] == "metrics"]


def samples(folder: Path, step: int) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "samples" / f"step-{step:06}.jsonl").read_text().splitlines()]


def number(prompt: str) -> int:
    """Which of the world's prompts it is."""
    return int(prompt.split()[-1])


# -- rewards -------------------------------------------------------------------------------------------------------------
def parity(prompts: list[str], completions: list[str]) -> list[float]:
    """0 or 1, as the letters fall: groups of four differ seven times in eight."""
    return [float(sum(map(ord, text)) % 2) for text in completions]


def by_thirds(prompts: list[str], completions: list[str]) -> list[float]:
    """Every third prompt is solved whatever is said, every next one is hopeless, and the four completions of the others always differ."""
    return [(1.0, 0.0, i % 4 / 3)[number(p) % 3] for i, p in enumerate(prompts)]


def fickle(prompts: list[str], completions: list[str]) -> list[float]:
    """No score for a completion whose letters add up to a multiple of seven."""
    return [math.nan if sum(map(ord, text)) % 7 == 0 else found for text, found in zip(completions, ppo_tiny.sums(prompts, completions), strict=True)]


# -- groups ----------------------------------------------------------------------------------------------------------------
def actor(config: GRPO, folder: Path, size: float = 0.2) -> Actor:
    """The policy away from where it starts; a reference when there is a penalty."""
    found = open_actor(config, 0, folder, reference=config.kl.coef > 0)
    ppo_tiny.shake(found.policy, size, seed=1)
    return found


def drawn(actor: Actor, config: GRPO, values: Sequence[float], *, noise: float = 0.0, greedy: float = 0.25) -> Drawn:
    """A rollout of short prompts, half of whose completions end by themselves, scored by hand; ``noise`` disturbs what the sampler says of itself."""
    import torch

    starts = [ids for ids in ppo_tiny.prompts(config.batch_size // config.group) for _ in range(config.group)]
    found = sample(actor.policy, starts, max_new_tokens=config.max_new_tokens, temperature=config.temperature, stop_ids=ppo_tiny.STOPS, seed=0, step=1)
    if noise:
        shaken = torch.randn(found.sampler_logp_BT.shape, generator=torch.Generator().manual_seed(9)) * noise
        found = replace(found, sampler_logp_BT=torch.where(found.trained_BT, found.sampler_logp_BT + shaken, 0.0))
    batch, _, _ = score(found, read(found, ["q"] * len(starts), actor, config), replace(actor, monitors={}), config)
    which = [i // config.group for i in range(len(starts))]
    return Drawn(batch, [Score(v, {"by hand": v}) for v in values], {}, which, which, dict.fromkeys(which, greedy) if config.advantage == "greedy" else {})


def planned(used: Sequence[int], config: GRPO) -> list[list[list[int]]]:
    return [[[used[i] for i in rows] for rows in minibatches(len(used), config.minibatches, 0, 1, epoch)] for epoch in range(config.epochs)]
