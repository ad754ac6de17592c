"""Opening PPO's four models: which backbone, adapter and head each role gets under the recipe's settings."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from truing.config import PPO
from truing.errors import ModelError
from truing.models.backbone import Backbone
from truing.models.heads import ScalarHead
from truing.models.offload import Offloaded
from truing.models.pack import Pack
from truing.models.roles import Origin, Role, open_backbone, origin, policy_role, reference_role, same_tokens, tokenizer_of
from truing.rewards.scorers import Scorer, find_scorer, learned_in


@dataclass(frozen=True)
class Roles:
    """Policy, reference, value model and reward; with LoRA all of them share one frozen backbone.

    ``offloaded`` is the reference's weights when they lie on the disk: read it inside `reading_reference` only.
    """

    policy: Role
    reference: Role
    value: Role
    reward: Scorer
    monitors: dict[str, Scorer]
    tokenizer: Any
    source: Origin
    offloaded: Offloaded | None = None

    def reading_reference(self) -> AbstractContextManager[None]:
        """Around every use of the reference: an offloaded one is in memory inside this block only."""
        return self.offloaded.reading() if self.offloaded else nullcontext()

    def prepare(self, pack: Pack, micro_tokens: int) -> None:
        """Run the layers that no adapter touches over a rollout, once for all roles, minibatches and epochs."""
        for backbone in dict.fromkeys(role.backbone for role in (self.policy, self.reference, self.value)):
            backbone.prepare(pack, micro_tokens)

    def parameters(self) -> dict[str, nn.Parameter]:
        """Trained parameters: the policy's, and the value model's own."""
        own = {f"policy.{k}": p for k, p in self.policy.parameters().items()}
        known = {id(p) for p in own.values()}
        return own | {f"value.{k}": p for k, p in self.value.parameters().items() if id(p) not in known}

    def values(self, hidden_MD: Tensor, pack: Pack, positions_M: Tensor) -> Tensor:
        """The value model at packed positions ``[M]``; `hidden_MD` is the policy's there, which a shared value head reads as it is."""
        if self.value.head is not None and self.value.backbone is self.policy.backbone and self.value.adapter is self.policy.adapter:
            return self.value.head(hidden_MD)
        return self.value.values(pack, positions_M)

    def decode(self, sequences: Sequence[Sequence[int]]) -> list[str]:
        """Text for people and text scorers; nothing that is trained on passes through here."""
        return [text.strip() for text in self.tokenizer.batch_decode([list(s) for s in sequences], skip_special_tokens=True)]


def open_roles(config: PPO, seed: int, folder: Path | None = None) -> Roles:
    """Load what the recipe names; `folder` is where an offloaded reference lies (None = a temporary one).

    Raises ModelError or ConfigError when something is missing or does not fit.
    """
    backbone, source = open_backbone(config.model, config)
    policy = policy_role(backbone, source, seed=seed, purpose="policy")
    offloaded = Offloaded(backbone, folder, source=_folder(source.base)) if config.reference == "offloaded" else None
    reference = Role(offloaded.backbone) if offloaded else reference_role(policy, source, seed=seed)
    tokenizer = tokenizer_of(config.model)
    reward = find_scorer(config.reward, share=backbone, share_base=source.base, tokenizer=tokenizer, at=config.scores.at, timeout=config.scores.timeout)
    monitors = {name: find_scorer(spec, share=backbone, share_base=source.base, tokenizer=tokenizer, timeout=config.scores.timeout) for name, spec in config.monitors.items()}
    value = _value_model(config, config.value_model, policy, source, seed) if config.value_model else _value_role(config, policy, reward, seed)
    return Roles(policy, reference, value, reward, monitors, tokenizer, source, offloaded)


def _folder(base: str) -> Path | None:
    return Path(base) if Path(base).is_dir() else None


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
    role.head = ScalarHead(backbone.width, seed=seed, purpose="value-head")
    tensors = saved.head_tensors()
    if tensors is not None:
        role.head.load_state_dict(tensors)
    return _scoring(role)


def _value_role(config: PPO, policy: Role, reward: Scorer, seed: int) -> Role:
    """The value model. A separate one starts from the (first) reward model when that has the same shape: a critic that already
    knows what the score depends on (Huang et al. 2024). Otherwise it starts from the policy with a fresh head."""
    backbone = policy.backbone
    learned = next((found.role for found in learned_in(reward) if _same_body(found.role.backbone, backbone)), None)
    head = ScalarHead(backbone.width, seed=seed, purpose="value-head")
    if config.value == "shared":
        return Role(backbone, policy.adapter, head)
    if learned is not None and learned.head is not None:
        head.load_state_dict(learned.head.state_dict())
    if backbone.lora is None:
        start = backbone.model if learned is None else learned.backbone.model
        return _scoring(Role(Backbone(copy.deepcopy(start), lora=None, lean=backbone.lean), None, head))
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
