"""Which prompts come next: an endless walk through shuffled epochs that leaves out, for a while, what teaches nothing now.

A prompt whose completions are all right, or all wrong, has no gradient under any group baseline. Its solve rate is known from
its own visits, so nothing is sampled to find out. Sources: Bengio et al. 2009; Yu et al. 2025 (arXiv 2503.14476), section 3.2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from truing.config.grpo import Curriculum
from truing.data.batches import epoch_order

MEMORY = 0.5  # weight of the last visit in a prompt's solve rate: the policy changes, so old visits fade


@dataclass
class Walk:
    """Where the walk stands, and what it knows of each prompt. A function of the seed and of the scores so far; `state` is all of it.

    Attributes:
        at: prompts that the walk has passed.
        known: prompt -> [completions seen, solve rate, times left out since it was last tried].
        skipped: prompts left out since `restore`, that is within a step.
    """

    prompts: int
    seed: int
    options: Curriculum
    at: int = 0
    known: dict[int, list[float]] = field(default_factory=dict)
    skipped: dict[str, int] = field(default_factory=lambda: {"solved": 0, "hopeless": 0})

    def next(self, count: int) -> list[int]:
        """The next prompts. After a whole epoch in which too few are left, the rest is taken as it comes."""
        chosen: list[int] = []
        passed = 0
        while len(chosen) < count:
            prompt = _order(self.prompts, self.seed, self.at // self.prompts)[self.at % self.prompts]
            self.at += 1
            why = self.why_not(prompt) if passed < self.prompts else None
            passed += 1
            if why is None:
                chosen.append(prompt)
            else:
                self.skipped[why] += 1
                self.known[prompt][2] += 1
        return chosen

    def why_not(self, prompt: int) -> str | None:
        """"solved" or "hopeless" when the prompt is left out now."""
        seen, rate, rested = self.known.get(prompt, (0, 0.0, 0))
        if seen < self.options.after or rested >= self.options.rest:
            return None
        if self.options.solved is not None and rate >= self.options.solved:
            return "solved"
        return "hopeless" if self.options.hopeless is not None and rate <= self.options.hopeless else None

    def learn(self, scores: Mapping[int, Sequence[float]]) -> None:
        """Take in the scores (0 to 1) of the prompts that were visited."""
        for prompt, values in scores.items():
            rate = sum(min(1.0, max(0.0, v)) for v in values) / len(values)
            seen, before, _ = self.known.get(prompt, (0, rate, 0))
            self.known[prompt] = [seen + len(values), before + MEMORY * (rate - before), 0]

    def metrics(self) -> dict[str, float]:
        rates = [rate for _, rate, _ in self.known.values()]
        return {
            "curriculum/skipped_solved": float(self.skipped["solved"]),
            "curriculum/skipped_hopeless": float(self.skipped["hopeless"]),
            "curriculum/solve_rate": sum(rates) / len(rates) if rates else 0.0,
        }

    def state(self) -> dict[str, Any]:
        return {"at": self.at, "known": {str(k): v for k, v in self.known.items()}}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.at, self.known = state["at"], {int(k): list(v) for k, v in state["known"].items()}
        self.skipped = {"solved": 0, "hopeless": 0}


@lru_cache(maxsize=2)
def _order(prompts: int, seed: int, epoch: int) -> tuple[int, ...]:
    """An epoch's order, kept: the walk passes the prompts one by one, most of them at once when most are left out."""
    return tuple(epoch_order(prompts, seed, epoch, "grpo"))
