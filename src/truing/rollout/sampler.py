"""The sampler: prompts in, a `Rollout` out, from the current weights of a role and nothing else.

Rows are decoded together; when some have finished, waiting prompts take their places at once (continuous batching). A row's
tokens depend on its own uniforms only, never on its neighbours: in another batch its logits differ by rounding alone.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from truing.config import Sampling
from truing.errors import ConfigError
from truing.models.roles import Role
from truing.rollout.lean import LeanDecoder
from truing.rollout.sampling import draw
from truing.rollout.stopping import Stops
from truing.rollout.transformers_decoder import TransformersDecoder
from truing.seeds import uniforms
from truing.types import Rollout

REFILL = 8  # new rows join when this share (1 / REFILL) of the places is free: one prefill of several prompts costs little more than that of one


class Decoder(Protocol):
    """Rows of token sequences under way. ``joins`` says whether rows can be admitted while others are going.

    Tokens and rows come on the CPU, whatever the device of the model; logits are given where they are made.
    """

    joins: bool

    def admit(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """New rows after the present ones; the logits after each prompt, ``[n, V]``."""

    def step(self, tokens: Tensor) -> Tensor:
        """One more token a row; the logits after it, ``[b, V]``."""

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows, in this order."""


@torch.no_grad()
def sample(
    role: Role, prompts: Sequence[Sequence[int]], *, max_new_tokens: int | Sequence[int], temperature: float, stop_ids: Sequence[int],
    seed: int, step: int, purpose: str = "sample", samples: Sequence[int] | None = None, version: int = 0, batch_size: int = 256,
    sampling: Sampling = Sampling(), decode: Callable[[list[list[int]]], list[str]] | None = None,  # noqa: B008
) -> Rollout:  # fmt: skip
    """Complete every prompt once.

    Args:
        role: the policy; its weights as they are now.
        prompts: token ids, one list a completion. Repeat a prompt for several: it is read once.
        max_new_tokens: of every completion, or of each.
        stop_ids: end-of-turn tokens; the one sampled is part of the completion.
        seed, purpose, step, samples: what the randomness of each row is a function of; samples defaults to 0..B-1.
        batch_size: rows decoded together; changes speed and memory, not the result.
        sampling, decode: truncation of the distribution and stop strings, for which ``decode`` gives the text of tokens.

    Raises ConfigError for a prompt that leaves no room, an empty prompt, a limit below 1, or a negative temperature.
    """
    limits = [max_new_tokens] * len(prompts) if isinstance(max_new_tokens, int) else list(max_new_tokens)
    _check(prompts, limits, temperature, role.backbone.context)
    numbers = list(range(len(prompts))) if samples is None else list(samples)
    uniform_BT = uniforms(seed, purpose, step, numbers, max(limits))
    rows = min(batch_size, len(prompts))
    decoder: Decoder = LeanDecoder(role) if role.backbone.lean else TransformersDecoder(role)
    made = _Made(uniform_BT, torch.tensor(limits), temperature, sampling, Stops(stop_ids, sampling.stop, decode))
    # The longest first: whoever begins last and goes on for long would be alone at the end.
    waiting = deque(sorted(range(len(prompts)), key=lambda i: -limits[i]))
    active, drawn = torch.zeros(0, dtype=torch.long), torch.zeros(0, dtype=torch.long)
    while waiting or len(active):
        free = rows - len(active)
        if waiting and (len(active) == 0 or (decoder.joins and free >= max(1, rows // REFILL))):
            new = torch.tensor([waiting.popleft() for _ in range(min(free, len(waiting)))])
            first, over = made.draw(new, decoder.admit([prompts[i] for i in new.tolist()]))
            over = torch.cat([torch.zeros(len(active), dtype=torch.bool), over])
            active, drawn = torch.cat([active, new]), torch.cat([drawn, first])
        else:
            drawn, over = made.draw(active, decoder.step(drawn))
        if over.any():
            going = _without(over)
            decoder.keep(going)
            active, drawn = active[going], drawn[going]
    used = int(made.lengths.max())
    real = torch.arange(used) < made.lengths[:, None]
    return Rollout([list(p) for p in prompts], made.tokens[:, :used], real, made.logp[:, :used], made.finished, temperature, version, truncation=sampling)


def _check(prompts: Sequence[Sequence[int]], limits: Sequence[int], temperature: float, context: int | None) -> None:
    if temperature < 0:
        raise ConfigError(f"temperature={temperature} is negative; use 0 for the most likely token, 1 for the model's own distribution")
    if any(len(p) == 0 for p in prompts) or not prompts:
        raise ConfigError("sampling needs at least one prompt, and no empty one")
    if len(limits) != len(prompts) or min(limits) < 1:
        raise ConfigError(f"max_new_tokens must be 1 or more for each of the {len(prompts)} prompts; got {len(limits)} limits, the least {min(limits, default=0)}")
    length, limit = max(((len(p), n) for p, n in zip(prompts, limits, strict=True)), key=sum)
    if context and length + limit > context:
        raise ConfigError(f"a prompt of {length} tokens and max_new_tokens={limit} exceed the model's context of {context}; lower one of them")


class _Made:
    """What has been sampled, by row of the request."""

    def __init__(self, uniform_BT: Tensor, limits: Tensor, temperature: float, sampling: Sampling, stops: Stops) -> None:
        self.uniform_BT, self.limits, self.temperature, self.sampling, self.stops = uniform_BT, limits, temperature, sampling, stops
        self.tokens, self.logp = torch.zeros(uniform_BT.shape, dtype=torch.long), torch.zeros(uniform_BT.shape)
        self.lengths, self.finished = torch.zeros(len(limits), dtype=torch.long), torch.zeros(len(limits), dtype=torch.bool)

    def draw(self, rows: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
        """A token for each of these rows, and whether it is the row's last."""
        t = self.lengths[rows]
        drawn, self.logp[rows, t] = (x.cpu() for x in draw(logits, self.uniform_BT[rows, t], self.temperature, self.sampling))
        self.tokens[rows, t] = drawn
        self.lengths[rows] = t + 1
        self.finished[rows] = stopped = self.stops.stopped(rows, drawn)
        return drawn, stopped | (t + 1 >= self.limits[rows])


def _without(over: Tensor) -> Tensor:
    """The rows that are left, the last of them standing in the gaps of those that are over."""
    count = int((~over).sum())
    order = torch.arange(count)
    order[over[:count]] = (~over[count:]).nonzero().squeeze(-1) + count
    return order
