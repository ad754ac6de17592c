"""What every method that learns from its own completions opens: a policy, what it is scored by, and perhaps the reference it is held to."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from truing.config import GRPO, PPO
from truing.models.backbone import Backbone
from truing.models.offload import Offloaded
from truing.models.pack import Pack
from truing.models.roles import Origin, Role, open_backbone, policy_role, reference_role, tokenizer_of
from truing.rewards.scorers import Scorer, find_scorer


@dataclass(frozen=True, kw_only=True)
class Actor:
    """A policy and its judges; with LoRA all models among them share one frozen backbone.

    ``reference`` is None when nothing holds the policy to one. ``offloaded`` is its weights when they lie on the disk: read it
    inside `reading_reference` only.
    """

    policy: Role
    reference: Role | None
    reward: Scorer
    monitors: dict[str, Scorer]
    tokenizer: Any
    source: Origin
    offloaded: Offloaded | None = None

    def backbones(self) -> list[Backbone]:
        """Those that read a rollout, each once."""
        return list(dict.fromkeys(role.backbone for role in (self.policy, self.reference) if role is not None))

    def prepare(self, pack: Pack, micro_tokens: int) -> None:
        """Run the layers that no adapter touches over a rollout, once for all roles, minibatches and epochs."""
        for backbone in self.backbones():
            backbone.prepare(pack, micro_tokens)

    def reading_reference(self) -> AbstractContextManager[None]:
        """Around every use of the reference: an offloaded one is in memory inside this block only."""
        return self.offloaded.reading() if self.offloaded else nullcontext()

    def parameters(self) -> dict[str, nn.Parameter]:
        """Trained parameters by name."""
        return {f"policy.{k}": p for k, p in self.policy.parameters().items()}

    def decode(self, sequences: Sequence[Sequence[int]]) -> list[str]:
        """Text for people and text scorers; nothing that is trained on passes through here."""
        return [text.strip() for text in self.tokenizer.batch_decode([list(s) for s in sequences], skip_special_tokens=True)]


def open_actor(config: PPO | GRPO, seed: int, folder: Path | None = None, *, reference: bool = True) -> Actor:
    """Load what the recipe names; `folder` is where an offloaded reference lies (None = a temporary one).

    Raises ModelError or ConfigError when something is missing or does not fit.
    """
    backbone, source = open_backbone(config.model, config)
    policy = policy_role(backbone, source, seed=seed, purpose="policy")
    offloaded = Offloaded(backbone, folder, source=_folder(source.base)) if isinstance(config, PPO) and config.reference == "offloaded" else None
    held_to = Role(offloaded.backbone) if offloaded else reference_role(policy, source, seed=seed) if reference else None
    tokenizer = tokenizer_of(config.model)
    shared = {"share": backbone, "share_base": source.base, "tokenizer": tokenizer, "timeout": config.scores.timeout}
    reward = find_scorer(config.reward, at=config.scores.at, **shared)
    monitors = {name: find_scorer(spec, **shared) for name, spec in config.monitors.items()}
    return Actor(policy=policy, reference=held_to, reward=reward, monitors=monitors, tokenizer=tokenizer, source=source, offloaded=offloaded)


def _folder(base: str) -> Path | None:
    return Path(base) if Path(base).is_dir() else None
