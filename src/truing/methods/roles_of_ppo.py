"""Opening PPO's four models: which backbone, adapter and head each role gets under the recipe's settings."""

from __future__ import annotations

import copy
from dataclasses import dataclass, fields
from pathlib import Path

from torch import Tensor, nn

from truing.config import PPO
from truing.errors import ModelError
from truing.methods.actor import Actor, open_actor
from truing.models.backbone import Backbone
from truing.models.pack import Pack
from truing.models.roles import Origin, Role, open_backbone, origin, policy_role, same_tokens
from truing.rewards.scorers import Scorer, learned_in


@dataclass(frozen=True, kw_only=True)
class Roles(Actor):
    """Policy, reference, value model and reward."""

    reference: Role
    value: Role

    def backbones(self) -> list[Backbone]:
        return list(dict.fromkeys([*super().backbones(), self.value.backbone]))

    def parameters(self) -> dict[str, nn.Parameter]:
        """Trained parameters: the policy's, and the value model's own."""
        own = super().parameters()
        known = {id(p) for p in own.values()}
        return own | {f"value.{k}": p for k, p in self.value.parameters().items() if id(p) not in known}

    def values(self, hidden_MD: Tensor, pack: Pack, positions_M: Tensor) -> Tensor:
        """The value model at packed positions ``[M]``; `hidden_MD` is the policy's there, which a shared value head reads as it is."""
        same = self.value.backbone is self.policy.backbone and self.value.adapter is self.policy.adapter
        return self.value.values(pack, positions_M, hidden_MD if same else None)


def open_roles(config: PPO, seed: int, folder: Path | None = None) -> Roles:
    """Load what the recipe names, and the value model; `folder` is where an offloaded reference lies (None = a temporary one).

    Raises ModelError or ConfigError when something is missing or does not fit.
    """
    found = open_actor(config, seed, folder)
    value = _value_model(config, config.value_model, found.policy, found.source, seed) if config.value_model else _value_role(config, found.policy, found.reward, seed)
    return Roles(**{f.name: getattr(found, f.name) for f in fields(found)}, value=value)


def _value_model(config: PPO, name: str, policy: Role, source: Origin, seed: int) -> Role:
    """A value model of its own, trained as the policy is: with an adapter, or every weight. A scorer's head comes with it.

    One that has the policy's base lies on the same frozen backbone: the numbers are the same, the weights are there once.
    """
    saved = origin(name)
    if not same_tokens(saved.base, source.base):
        raise ModelError(f"value_model={name} reads other tokens than {source.base}; a value per token needs the same tokenizer: use a model of one family, or value_model: null")
    lora = policy.backbone.lora
    if lora is not None and saved.base == source.base and saved.lora in (None, lora):
        backbone, start = policy.backbone, saved
    else:
        backbone, start = open_backbone(name, config, body=True)
    role = policy_role(backbone, start, seed=seed, purpose="value")
    role.head = backbone.head(seed, "value-head")
    tensors = saved.head_tensors()
    if tensors is not None:
        role.head.load_state_dict(tensors)
    return _scoring(role)


def _value_role(config: PPO, policy: Role, reward: Scorer, seed: int) -> Role:
    """The value model. A separate one starts from the (first) reward model when that has the same shape: a critic that already
    knows what the score depends on (Huang et al. 2024). Otherwise it starts from the policy with a fresh head."""
    backbone = policy.backbone
    learned = next((found.role for found in learned_in(reward) if _same_body(found.role.backbone, backbone)), None)
    head = backbone.head(seed, "value-head")
    if config.value == "shared":
        return Role(backbone, policy.adapter, head)
    if learned is not None and learned.head is not None:
        head.load_state_dict(learned.head.state_dict())
    if backbone.lora is None:
        start = backbone.model if learned is None else learned.backbone.model
        return _scoring(Role(Backbone(copy.deepcopy(start), lora=None, lean=backbone.lean, dtype=backbone.dtype, checkpointing=backbone.checkpointing), None, head))
    adapter = backbone.adapter(seed, "value")
    like = policy.adapter if learned is None else learned.adapter
    if like is not None:
        adapter.load({k: v.detach() for k, v in like.tensors().items()})
    return Role(backbone, adapter, head)


def _scoring(role: Role) -> Role:
    """A full model that is only asked for scores does not train (or save the moments of) a language-model head of its own."""
    model = role.backbone.model
    if role.backbone.lora is None and role.backbone.head_weight is not model.get_input_embeddings().weight:
        model.get_output_embeddings().requires_grad_(False)
    return role


def _same_body(reward: Backbone, policy: Backbone) -> bool:
    """Whether the reward model's body and head can both be taken over: an adapter on the shared backbone, or a full model of its shape."""
    if policy.lora is not None:
        return reward is policy
    return reward.lora is None and reward.model.config.model_type == policy.model.config.model_type and reward.width == policy.width
