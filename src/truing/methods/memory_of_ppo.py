"""What a PPO run will need of memory, before its first step: the models that are there, and what `methods.footprint` says of the rest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from truing import allocator
from truing.config import PPO, Lora
from truing.methods import footprint
from truing.methods.footprint import MemoryPlan, Weights
from truing.methods.roles_of_ppo import Roles
from truing.models import memory
from truing.models.anatomy import forget


def plan(config: PPO, roles: Roles, lengths: Sequence[int]) -> MemoryPlan:
    """The memory of a run; ``lengths`` are the tokens of its prompts. Draws no random numbers, changes no weight, leaves no gradient."""
    allocator.trim()
    held = replace(footprint.weights(config), items=counted(roles))
    load = footprint.of_rollouts(config, lengths)
    process = max(0.0, memory.resident() - sum(held.items.values()))
    made = footprint.plan(config, load, process, held=held, so_far=float(memory.highest()))
    others = {name: _update(other, process, lengths, own) for name, (other, own) in _others(config, held).items()}
    forget()
    return replace(made, alternatives=others)


def counted(roles: Roles) -> dict[str, float]:
    """Bytes of every weight, each under the first of these names that it belongs to."""
    claims: dict[str, list[object]] = {
        "trained weights": list(roles.parameters().values()),
        "frozen weights": [roles.policy],
        "reference copy": [roles.reference],
        "value model": [roles.value],
        "reward models": [roles.reward, roles.monitors],
    }
    seen: set[int] = set()
    found = {}
    for name, things in claims.items():
        new = {address: n for address, n in memory.storages(*things).items() if address not in seen}
        seen |= set(new)
        found[name] = float(sum(new.values()))
    return found


def _others(config: PPO, held: Weights) -> dict[str, tuple[PPO, bool]]:
    """Other choices, and whether each has a full reward model beside the other three."""
    changed = lambda lora, **more: config.model_copy(update={"lora": lora, "value": "separate", "value_model": None, "reference": "resident", "dtype": "auto", **more})  # noqa: E731
    adapted = config.lora or Lora()
    count = held.policy.layers
    return {
        "four separate copies, two trained": (changed(None), True),
        "one full copy, frozen reference and value copy": (changed(None), False),
        "lora on every layer": (changed(adapted.model_copy(update={"layers": None}), dtype=config.dtype), False),
        **({f"lora on the top {count // 4} layers": (changed(adapted.model_copy(update={"layers": count // 4}), dtype=config.dtype), False)} if count >= 4 else {}),
    }


def _update(config: PPO, process: float, lengths: Sequence[int], own_reward: bool) -> float:
    """The peak under other settings; no reward model is counted, or one of the policy's size."""
    found = footprint.weights(config.model_copy(update={"reward": "cut_off()", "monitors": {}}))
    items = {**found.items, "reward models": 4 * found.policy.elements if own_reward else 0.0}
    return footprint.plan(config, footprint.of_rollouts(config, lengths), process, held=replace(found, items=items), so_far=1.0).peak * footprint.MIB
