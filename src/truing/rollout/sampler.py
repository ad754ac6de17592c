"""The sampler: prompts in, a `Rollout` out, from the current weights of a role and nothing else.

Both decoders below answer one protocol: `prefill` gives the logits after the prompts, `step` those after one more token,
`keep` forgets finished rows. A row's tokens depend on its own uniforms only, never on its neighbours' draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from truing.errors import ConfigError
from truing.models.roles import Role
from truing.rollout.lean import LeanDecoder
from truing.rollout.sampling import draw
from truing.rollout.transformers_decoder import TransformersDecoder
from truing.seeds import uniforms
from truing.types import Rollout


class Decoder(Protocol):
    def prefill(self, prompts: Sequence[Sequence[int]], room: int) -> Tensor: ...
    def step(self, tokens: Tensor) -> Tensor: ...
    def keep(self, rows: Tensor) -> None: ...


@torch.no_grad()
def sample(
    role: Role, prompts: Sequence[Sequence[int]], *, max_new_tokens: int, temperature: float, stop_ids: Sequence[int],
    seed: int, step: int, purpose: str = "sample", samples: Sequence[int] | None = None, version: int = 0, batch_size: int = 256,
) -> Rollout:  # fmt: skip
    """Complete every prompt once.

    Args:
        role: the policy; its weights as they are now.
        prompts: token ids, one list a completion (repeat a prompt for several).
        stop_ids: end-of-turn tokens; the one sampled is part of the completion.
        seed, purpose, step, samples: what the randomness of each row is a function of; samples defaults to 0..B-1.
        batch_size: rows decoded together; changes speed and memory, not the result.

    Raises ConfigError for a prompt that leaves no room, an empty prompt, or a negative temperature.
    """
    if temperature < 0:
        raise ConfigError(f"temperature={temperature} is negative; use 0 for the most likely token, 1 for the model's own distribution")
    if any(len(p) == 0 for p in prompts) or not prompts:
        raise ConfigError("sampling needs at least one prompt, and no empty one")
    limit = role.backbone.context
    longest = max(map(len, prompts))
    if limit and longest + max_new_tokens > limit:
        raise ConfigError(f"a prompt of {longest} tokens and max_new_tokens={max_new_tokens} exceed the model's context of {limit}; lower one of them")
    numbers = list(range(len(prompts))) if samples is None else list(samples)
    uniform_BT = uniforms(seed, purpose, step, numbers, max_new_tokens)
    decoder: Decoder = LeanDecoder(role) if role.backbone.lean else TransformersDecoder(role)
    parts = [_complete(decoder, prompts[i : i + batch_size], uniform_BT[i : i + batch_size], temperature, stop_ids) for i in range(0, len(prompts), batch_size)]
    tokens, logp, lengths, finished = (torch.cat([p[k] for p in parts]) for k in range(4))
    used = int(lengths.max())
    real = torch.arange(used) < lengths[:, None]
    return Rollout([list(p) for p in prompts], tokens[:, :used], real, logp[:, :used], finished, temperature, version)


def _complete(decoder: Decoder, prompts: Sequence[Sequence[int]], uniform_BT: Tensor, temperature: float, stop_ids: Sequence[int]) -> tuple[Tensor, ...]:
    count, room = uniform_BT.shape
    tokens, logp = torch.zeros(count, room, dtype=torch.long), torch.zeros(count, room)
    lengths, finished = torch.zeros(count, dtype=torch.long), torch.zeros(count, dtype=torch.bool)
    stops = torch.tensor(list(stop_ids), dtype=torch.long)
    active = torch.arange(count)
    logits = decoder.prefill(prompts, room)
    for t in range(room):
        drawn, drawn_logp = draw(logits, uniform_BT[active, t], temperature)
        tokens[active, t], logp[active, t] = drawn, drawn_logp
        lengths[active] += 1
        stopped = torch.isin(drawn, stops)
        finished[active[stopped]] = True
        going = (~stopped).nonzero().squeeze(-1)
        if len(going) == 0 or t + 1 == room:
            break
        if len(going) < len(active):
            decoder.keep(going)
            active, drawn = active[going], drawn[going]
        logits = decoder.step(drawn)
    return tokens, logp, lengths, finished
