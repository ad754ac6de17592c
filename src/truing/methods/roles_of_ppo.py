"""Opening PPO's four models: which backbone, adapter and head each role gets under the recipe's settings."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from truing.config import PPO
from truing.models.backbone import Backbone
from truing.models.heads import ScalarHead
from truing.models.roles import Origin, Role, open_backbone, policy_role, reference_role, tokenizer_of
from truing.rewards.scorers import Learned, Scorer, find_scorer


@dataclass(frozen=True)
class Roles:
    """Policy, reference, value model and reward; with LoRA all of them share one frozen backbone."""

    policy: Role
    reference: Role
    value: Role
    reward: Scorer
    monitors: dict[str, Scorer]
    tokenizer: Any
    source: Origin

    def parameters(self) -> dict[str, nn.Parameter]:
        """Trained parameters: the policy's, and the value model's own."""
        own = {f"policy.{k}": p for k, p in self.policy.parameters().items()}
        known = {id(p) for p in own.values()}
        return own | {f"value.{k}": p for k, p in self.value.parameters().items() if id(p) not in known}

    def decode(self, sequences: Sequence[Sequence[int]]) -> list[str]:
        """Text for people and text scorers; nothing that is trained on passes through here."""
        return [text.strip() for text in self.tokenizer.batch_decode([list(s) for s in sequences], skip_special_tokens=True)]


def open_roles(config: PPO, seed: int) -> Roles:
    """Load what the recipe names. Raises ModelError or ConfigError when something is missing or does not fit."""
    backbone, source = open_backbone(config.model, config)
    policy = policy_role(backbone, source, seed=seed, purpose="policy")
    reference = reference_role(policy, source, seed=seed)
    reward = find_scorer(config.reward, share=backbone, share_base=source.base)
    monitors = {name: find_scorer(spec, share=backbone, share_base=source.base) for name, spec in config.monitors.items()}
    value = _value_role(config, policy, reward, seed)
    return Roles(policy, reference, value, reward, monitors, tokenizer_of(config.model), source)


def _value_role(config: PPO, policy: Role, reward: Scorer, seed: int) -> Role:
    """The value model. A separate one starts from the reward model when that has the same shape: a critic that already
    knows what the score depends on (Huang et al. 2024). Otherwise it starts from the policy with a fresh head."""
    backbone = policy.backbone
    learned = reward.role if isinstance(reward, Learned) and _same_body(reward.role.backbone, backbone) else None
    head = ScalarHead(backbone.width, seed=seed, purpose="value-head")
    if config.value == "shared":
        return Role(backbone, policy.adapter, head)
    if learned is not None and learned.head is not None:
        head.load_state_dict(learned.head.state_dict())
    if backbone.lora is None:
        start = backbone.model if learned is None else learned.backbone.model
        return Role(Backbone(copy.deepcopy(start), lora=None, lean=backbone.lean), None, head)
    adapter = backbone.adapter(seed, "value")
    like = policy.adapter if learned is None else learned.adapter
    if like is not None:
        adapter.load({k: v.detach() for k, v in like.tensors().items()})
    return Role(backbone, adapter, head)


def _same_body(reward: Backbone, policy: Backbone) -> bool:
    """Whether the reward model's body and head can both be taken over: an adapter on the shared backbone, or a full model of its shape."""
    if policy.lora is not None:
        return reward is policy
    return reward.lora is None and reward.model.config.model_type == policy.model.config.model_type and reward.width == policy.width
