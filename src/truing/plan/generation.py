"""Timing generation: whole rollouts where there is time for them, else some steps at the real batch, and what they say of the rest."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from truing.models.roles import Role
from truing.plan.clock import Span, repeat, span
from truing.rollout.sampler import sample
from truing.rollout.stopping import plain_text
from truing.types import Rollout

TOGETHER = 256  # rows decoded at once
Z = 1.64  # of the interval that the number of completions that ended gives


@dataclass(frozen=True)
class Generated:
    """Seconds of a whole rollout, mean tokens of a completion, and completions to go on with.

    ``whole(i)`` draws another whole rollout, where there is time for such.
    """

    seconds: Span
    tokens: Span
    rollout: Rollout
    basis: str
    whole: Callable[[int], Rollout] | None = None


class Sampling:
    """A stage's own way of sampling, on prompts of its own."""

    def __init__(self, config: Any, role: Role, renderer: Any, rows: int, seed: int) -> None:
        self.config, self.role, self.renderer, self.rows, self.seed = config, role, renderer, rows, seed

    def __call__(self, prompts: Sequence[Sequence[int]], new: int, step: int, *, ends: bool = True) -> Rollout:
        return sample(
            self.role, prompts, max_new_tokens=new, temperature=self.config.temperature, sampling=self.config.sampling, seed=self.seed, step=step, purpose="plan",
            stop_ids=self.renderer.stop_ids if ends else (), decode=plain_text(self.renderer.tokenizer),
        )  # fmt: skip


def probe(draw: Sampling, asked: Callable[[int], list[list[int]]], seconds: float) -> Generated:
    """``asked(i)`` gives the prompts of the i-th rollout."""
    new = draw.config.max_new_tokens
    draw(asked(0)[:2], min(2, new), 0)  # what is compiled and allocated once
    first, _ = timed(lambda: draw(asked(1), 1, 1))
    if new == 1:
        return _whole(draw, asked, seconds)
    few = min(new, 4)
    more, _ = timed(lambda: draw(asked(1), few, 1, ends=False))
    step = max(1e-6, (more - first) / (few - 1))
    if 3 * (first + step * (new - 1)) <= seconds:
        return _whole(draw, asked, seconds)
    return _some(draw, asked, seconds, step)


def _whole(draw: Sampling, asked: Callable[[int], list[list[int]]], seconds: float) -> Generated:
    made: list[Rollout] = []

    def one(i: int) -> float:
        took, rollout = timed(lambda: draw(asked(i + 1), draw.config.max_new_tokens, i + 1))
        made.append(rollout)
        return took

    found = span(repeat(one, seconds * 0.8))
    lengths = [float(r.lengths_B.sum()) / len(r.prompts) for r in made]
    mean, limit = sum(lengths) / len(lengths), float(draw.config.max_new_tokens)
    return Generated(found.between(1.0, limit / mean), Span(mean, min(lengths), limit), made[-1], f"whole rollouts of {len(made[-1].prompts)}", lambda i: draw(asked(i), draw.config.max_new_tokens, i))


def _some(draw: Sampling, asked: Callable[[int], list[list[int]]], seconds: float, step: float) -> Generated:
    """Prefill of some prompts, and steps at the real number of rows, over a cache as long as it is halfway."""
    prompts, new = asked(1), draw.config.max_new_tokens
    count = min(draw.rows, TOGETHER)
    k = max(2, min(new, round(0.3 * seconds / step)))
    took, rollout = timed(lambda: draw(prompts[:count], k, 1, ends=False))
    hazard = Hazard.of(rollout, draw.renderer.stop_ids)
    middle = sorted(prompts, key=len)[len(prompts) // 2]
    filler = [middle[i % len(middle)] for i in range(max(0, (new - k) // 2))]
    few = max(2, min(k, round(0.1 * seconds / step)))

    def steps(rows: int) -> Span:
        """Seconds of a step of so many rows: the difference between several tokens and one, so that reading the prompt cancels."""

        def one(i: int) -> float:
            long, _ = timed(lambda: draw([middle + filler] * rows, few, i, ends=False))
            short, _ = timed(lambda: draw([middle + filler] * rows, 1, i, ends=False))
            return max(1e-6, (long - short) / (few - 1))

        return span(repeat(one, 0.0))

    all, quarter = steps(count), steps(max(1, count // 4))
    row = max(0.0, (all.seconds - quarter.seconds) / max(1, count - max(1, count // 4)))
    fixed = max(0.0, all.seconds - row * count)
    different = list({tuple(p): p for p in prompts}.values())
    some = different[: max(1, min(len(different), 8))]
    reading = span(repeat(lambda i: timed(lambda: draw(some, 1, i))[0], 0.0)).times(sum(map(len, different)) / sum(map(len, some)))

    def whole(mean: float, rate: float) -> float:
        longest = max(hazard.longest(rate, count, new), draw.rows * mean / count)
        return fixed * longest + row * draw.rows * mean

    mean, short, long = (hazard.mean(rate, new) for rate in (hazard.rate, hazard.high, hazard.low))
    spread = (all.low / all.seconds, all.high / all.seconds)
    found = Span(whole(mean, hazard.rate), whole(short, hazard.high) * spread[0], whole(float(new), 0.0) * spread[1])
    basis = f"{k} of {new} tokens of {count} completions" + ("" if hazard.ended else "; none ended by then, so all are taken to go on to the end")
    return Generated(found + reading, Span(mean, short, float(new)), longer(rollout, round(mean)), basis)


@dataclass(frozen=True)
class Hazard:
    """How often a completion ends, a token: its maximum-likelihood estimate where some were cut off, and an interval."""

    ended: int
    tokens: int

    @classmethod
    def of(cls, rollout: Rollout, stops: Sequence[int]) -> Hazard:
        """From completions that were not allowed to end."""
        at = torch.isin(rollout.completion_BT, torch.tensor(list(stops)))
        ended = at.any(-1)
        seen = torch.where(ended, at.float().argmax(-1) + 1, torch.tensor(at.shape[1]))
        return cls(int(ended.sum()), int(seen.sum()))

    @property
    def rate(self) -> float:
        return self.ended / self.tokens

    @property
    def low(self) -> float:
        return max(0.0, self.ended - Z * math.sqrt(self.ended)) / self.tokens

    @property
    def high(self) -> float:
        return min(1.0, (self.ended + Z * math.sqrt(self.ended + 1) + 1) / self.tokens)

    @staticmethod
    def mean(rate: float, limit: int) -> float:
        """Expected tokens of a completion that ends with this probability after each, and at the limit.

        >>> Hazard.mean(0.0, 8), round(Hazard.mean(0.5, 2), 3)  # 1 + 1/2
        (8.0, 1.5)
        """
        return float(limit) if rate <= 0 else (1 - (1 - rate) ** limit) / rate

    @staticmethod
    def longest(rate: float, rows: int, limit: int) -> float:
        """Expected tokens of the longest of several."""
        return sum(1 - (1 - (1 - rate) ** t) ** rows for t in range(limit))


def longer(rollout: Rollout, tokens: int) -> Rollout:
    """Completions of so many tokens made of these, by saying the same again."""
    have = rollout.completion_BT.shape[1]
    at = torch.arange(max(1, tokens)) % have
    every = torch.ones(len(rollout.prompts), len(at), dtype=torch.bool)
    return Rollout(
        rollout.prompts, rollout.completion_BT[:, at], every, rollout.sampler_logp_BT[:, at], torch.zeros(len(rollout.prompts), dtype=torch.bool), rollout.temperature,
        rollout.version, (), rollout.truncation,
    )  # fmt: skip


def timed(run: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    found = run()
    return time.perf_counter() - start, found
