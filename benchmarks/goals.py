"""What each row should show, in one place. Ratios are of medians of one run; how many times as fast Truing is, or Truing's share of the peer's memory.

``bfloat16`` rows count only where learning curves equal float32's within noise, which `precision` measures.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Goal:
    """A bound on a figure or ratio, and which models it is meant for (None = any)."""

    bound: float
    most: bool = False
    """The figure may be at most the bound; else it must be at least that."""
    unit: str = "x"
    per_model: Mapping[str, float] | None = None

    def of(self, model: str) -> Goal | None:
        """The goal of one model."""
        if self.per_model is None:
            return self
        return Goal(self.per_model[model], self.most, self.unit) if model in self.per_model else None

    def held(self, figure: float) -> bool:
        return figure <= self.bound if self.most else figure >= self.bound

    def __str__(self) -> str:
        return f"{'<=' if self.most else '>='} {self.bound:g}{self.unit if self.unit in 'x%' else ' ' + self.unit}"


def least(bound: float, unit: str = "x", **models: float) -> Goal:
    """At least so much: of every model, or of those that are named (``smollm2_135m``)."""
    return Goal(bound, False, unit, {k.replace("_", "-"): v for k, v in models.items()} or None)


def most(bound: float, unit: str = "x") -> Goal:
    return Goal(bound, True, unit)


# (row, variant, measure) -> goal. A variant that is not here is measured without one.
GOALS: dict[tuple[str, str, str], Goal] = {
    ("decode", "float32", "speed"): least(2.5, small=2.5, medium=1.6, smollm2_135m=1.6),
    ("decode", "bfloat16", "speed"): least(4, small=4, medium=2.5, smollm2_135m=2.5),
    ("decode", "float32", "roofline"): least(60, "%", medium=60),
    ("decode-spread", "float32", "further"): least(2),
    ("decode-spread", "bfloat16", "further"): least(2),
    ("ppo", "float32, every weight", "speed"): least(2.2),
    ("ppo", "default", "speed"): least(4.5),
    ("ppo", "default", "memory"): most(0.4),
    ("grpo", "float32", "speed"): least(1.7),
    ("grpo", "float32", "memory"): most(0.6),
    ("grpo", "bfloat16", "speed"): least(2.8),
    ("grpo", "bfloat16", "memory"): most(0.6),
    ("sft", "float32", "speed"): least(1),
    ("sft", "bfloat16", "speed"): least(1.6),
    ("sft-padded", "float32", "speed"): least(3),
    ("sft-padded", "bfloat16", "speed"): least(3),
    ("sft-packed", "float32", "speed"): least(1.4),
    ("sft-packed", "bfloat16", "speed"): least(1.4),
    ("reward", "float32", "speed"): least(1.2),
    ("reward", "bfloat16", "speed"): least(2),
    ("reward-mixed", "float32", "speed"): least(2),
    ("reward-mixed", "bfloat16", "speed"): least(2),
    ("start-up", "import truing", "seconds"): most(0.3, "s"),
    ("start-up", "first PPO step", "seconds"): most(10, "s"),
    ("growth", "decode, batch x10", "time per token"): most(1.25),
    ("growth", "decode, length x4", "time per token"): most(1.25),
    ("growth", "sft, batch x10", "time per token"): most(1.25),
    ("growth", "sft, length x4", "time per token"): most(1.25),
    ("growth", "ppo, batch x10", "time per token"): most(1.25),
    ("growth", "ppo, length x4", "time per token"): most(1.25),
    ("growth", "decode, batch x10", "memory"): most(10),
    ("growth", "decode, length x4", "memory"): most(4),
    ("growth", "sft, batch x10", "memory"): most(10),
    ("growth", "sft, length x4", "memory"): most(4),
    ("growth", "ppo, batch x10", "memory"): most(10),
    ("growth", "ppo, length x4", "memory"): most(4),
}


def goal_of(row: str, variant: str, measure: str, model: str, peer: str | None = None) -> Goal | None:
    """The goal of a comparison, if it has one. Goals are against the peers as they usually run here, in float32; their bfloat16 is shown beside it."""
    found = GOALS.get((row, variant, measure))
    return found.of(model) if found and not (peer or "").endswith("bfloat16") else None
