"""Drawing a token: inverse-CDF on given uniforms, so that a sample is a function of its own numbers and nothing else."""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 256  # the vocabulary is searched block by block: two short cumulative sums instead of one over V


def draw(logits: Tensor, uniforms: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """One token a row of softmax(logits / temperature), and its log-probability there.

    Args:
        logits: ``[B, V]``, float32.
        uniforms: ``[B]`` in [0, 1), float64.
        temperature: 0 takes the most likely token (log-probability at temperature 1).

    Returns ``(tokens [B], logp [B])``.
    """
    log_probs = (logits / temperature if temperature > 0 else logits).log_softmax(-1)
    tokens = log_probs.argmax(-1) if temperature == 0 else _inverse_cdf(log_probs.exp(), uniforms)
    return tokens, log_probs.gather(-1, tokens[:, None]).squeeze(-1)


def _inverse_cdf(probs: Tensor, uniforms: Tensor) -> Tensor:
    rows, vocabulary = probs.shape
    blocks = -(-vocabulary // BLOCK)
    padded = torch.nn.functional.pad(probs, (0, blocks * BLOCK - vocabulary)).view(rows, blocks, BLOCK)
    mass = padded.sum(-1, dtype=torch.float64)
    cumulative = mass.cumsum(-1)
    goal = uniforms.to(torch.float64)[:, None] * cumulative[:, -1:]
    block = torch.searchsorted(cumulative, goal, right=True).clamp(max=blocks - 1)
    before = cumulative.gather(-1, block) - mass.gather(-1, block)
    inside = padded.gather(1, block[..., None].expand(-1, 1, BLOCK)).squeeze(1).to(torch.float64).cumsum(-1)
    offset = torch.searchsorted(inside, goal - before, right=True).squeeze(-1)
    token = block.squeeze(-1) * BLOCK + offset
    # Rounding at a block's end can point past it, or at a token of probability 0: take the likeliest of the block instead.
    allowed = (offset < BLOCK) & (token < vocabulary)
    safe = token.clamp(max=vocabulary - 1)
    allowed &= probs.gather(-1, safe[:, None]).squeeze(-1) > 0
    fallback = block.squeeze(-1) * BLOCK + padded.gather(1, block[..., None].expand(-1, 1, BLOCK)).squeeze(1).argmax(-1)
    return torch.where(allowed, safe, fallback)
