"""Which settings would make a stage fit, what each costs in time, and which of them change what is learned."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import yaml
from pydantic import ValidationError

from truing.config import PPO, Evaluate, Stage
from truing.methods.footprint import MIB, Load, MemoryPlan, Weights
from truing.models.precision import has_bfloat16

LEAST = 256  # tokens of a micro-batch below which smaller ones only cost time


@dataclass(frozen=True)
class Change:
    """Another value of some settings.

    Attributes:
        settings: option -> value, as a recipe has them; nested options with a dot.
        cost: what it does to the time, in words.
        times: of phases, by how much they take longer (below 1: shorter), as far as arithmetic says so.
        same: True when the result is the same but for rounding.
    """

    settings: Mapping[str, Any]
    cost: str
    times: Mapping[str, float]
    same: bool

    def applied(self, config: Any) -> Any:
        """The options with this change. Raises ValidationError where it cannot be."""
        values = config.model_dump()
        for key, value in self.settings.items():
            node, *rest = key.split(".")
            if rest:
                values[node] = {**(values[node] or {}), rest[0]: value}
            else:
                values[node] = value
        return type(config).model_validate(values)

    def text(self, stage: str) -> str:
        """As it is written after ``truing run RECIPE``."""
        return " ".join(f"--set {shlex.quote(f'{stage}.{key}={_yaml(value)}')}" for key, value in self.settings.items())


@dataclass(frozen=True)
class Advice:
    """A change and the peak that it is predicted to have, in MiB."""

    change: Change
    peak: float
    fits: bool


def advise(config: Any, weights: Weights, load: Load, peak: float, room: float, planned: Callable[[Any], MemoryPlan]) -> list[Advice]:
    """Changes that lower the peak, those that suffice first; when none does alone, all of them together.

    Args:
        peak: MiB of the stage as it is.
        room: MiB that are there.
        planned: the memory of the stage under other options.
    """
    found = []
    for change in changes(config, weights, load):
        try:
            lowered = planned(change.applied(config)).peak
        except (ValidationError, ValueError):  # options that exclude one another
            continue
        if lowered < 0.995 * peak:
            found.append(Advice(change, lowered, lowered <= room))
    found = _least(found)
    if not any(a.fits for a in found):
        found += _together(config, found, room, planned)
    return sorted(found, key=lambda a: (not a.fits, not a.change.same, a.peak))


def _least(found: list[Advice]) -> list[Advice]:
    """Of several values of one setting, the mildest that fits, or the strongest."""
    kept: dict[tuple[str, ...], Advice] = {}
    for advice in found:
        key = tuple(advice.change.settings)
        if key not in kept or not kept[key].fits:
            kept[key] = advice
    return list(kept.values())


def _together(config: Any, found: list[Advice], room: float, planned: Callable[[Any], MemoryPlan]) -> list[Advice]:
    """One change after the other, those that keep the result first, until it fits."""
    settings: dict[str, Any] = {}
    times: dict[str, float] = {}
    peak, same = float("inf"), True
    for advice in sorted(found, key=lambda a: (not a.change.same, a.peak)):
        change = Change({**settings, **advice.change.settings}, "", {}, True)
        try:
            lowered = planned(change.applied(config)).peak
        except (ValidationError, ValueError):
            continue
        if lowered >= peak:
            continue
        settings, peak, same = dict(change.settings), lowered, same and advice.change.same
        times = {k: times.get(k, 1.0) * advice.change.times.get(k, 1.0) for k in {*times, *advice.change.times}}
        if peak <= room:
            break
    together = Change(settings, "all of these together", times, same)
    return [Advice(together, peak, peak <= room)] if len(settings) > 1 else []


def changes(config: Any, weights: Weights, load: Load) -> Iterator[Change]:
    """Everything that may be tried, the mildest value of each setting first."""
    tokens, least = int(min(config.micro_tokens, load.tokens)), max(*load.part, LEAST)
    while tokens > least:
        tokens = max(1 << (tokens - 1).bit_length() - 1, least)  # the next power of two below
        yield Change({"micro_tokens": tokens}, "up to a fifth longer: more and smaller products", {}, True)
    if not isinstance(config, Stage):
        if isinstance(config, Evaluate) and config.samples > 1:
            yield Change({"samples": 1}, "less, and wider intervals", {"generate": 1 / config.samples, "score": 1 / config.samples, "look": 1 / config.samples}, False)
        return
    yield from _of_training(config, weights)
    if isinstance(config, PPO) and config.reference == "resident" and config.lora is None:
        yield Change({"reference": "offloaded"}, f"{4 * weights.policy.elements / MIB:,.0f} MiB are read from the disk each step", {}, True)
    if isinstance(config, PPO) and config.value == "separate" and config.value_model is None and not config.value_warmup:
        yield Change({"value": "shared"}, "less: the value model is a head on the policy", {"update": 0.55}, False)
    if load.rows > 1:
        batch, parts = config.batch_size, getattr(config, "minibatches", 1)
        group = getattr(config, "group", 1)
        while batch % (2 * parts) == 0 and (batch // 2) % group == 0 and batch > parts:
            batch //= 2
            half = batch / config.batch_size
            yield Change({"batch_size": batch}, "less a step, and a step learns from fewer completions", dict.fromkeys(("generate", "trunk", "score", "look", "update"), half), False)


def _of_training(config: Stage, weights: Weights) -> Iterator[Change]:
    model = weights.policy
    if getattr(config, "checkpointing", None) is False:
        more = 3 / 2 if config.lora else 4 / 3  # forward again, beside forward and the backward that has one product a weight, or two
        yield Change({"checkpointing": True}, f"updates {more:.2g} times as long: each layer's forward runs twice", {"update": more}, True)
    if config.lora is None:
        yield Change({"lora": {}}, "less: no gradients of weights", {"update": 2 / 3}, False)
    if model.itemsize == 4 and has_bfloat16() and model.lean:
        yield Change({"dtype": "bfloat16"}, "less: this processor multiplies bfloat16 faster", {"update": 0.7, "look": 0.7, "generate": 0.8}, False)
    if config.lora is not None:
        layers = model.adapted
        while layers > 1:
            layers = max(1, layers // 2)
            yield Change({"lora.layers": layers}, "less: backward ends at the lowest adapter", {"update": layers / model.adapted}, False)


def _yaml(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True).removesuffix("\n").removesuffix("\n...")
