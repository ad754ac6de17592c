"""Log-probability and entropy of chosen tokens straight from hidden states, without keeping ``[N, V]`` for backward.

The language-model head is the largest product of a small model. Rows go through in chunks; the gradient with respect to
the hidden state, ``d logp / d h = (W[target] - sum_v p_v W_v) / temperature``, is made while a chunk's probabilities are
at hand, so a frozen head is multiplied twice a token in all and nothing of size V outlives its chunk.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

CHUNK = 512  # rows of logits alive at once: 512 x 49,152 x 4 bytes = 100 MB


class TokenLikelihood(NamedTuple):
    """``logp`` of the given tokens and ``entropy`` of their distributions, both ``[N]``, in nats."""

    logp: Tensor
    entropy: Tensor


class _Head(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, temperature: float, with_entropy_gradient: bool, chunk: int) -> tuple[Tensor, Tensor]:  # fmt: skip
        n = len(hidden)
        logp, entropy = hidden.new_empty(n), hidden.new_empty(n)
        wants_hidden = hidden.requires_grad
        d_logp = torch.empty_like(hidden) if wants_hidden else None
        d_entropy = torch.empty_like(hidden) if wants_hidden and with_entropy_gradient else None
        for i in range(0, n, chunk):
            rows = slice(i, i + chunk)
            log_probs = _log_probs(hidden[rows], weight, bias, temperature)
            logp[rows] = log_probs.gather(-1, targets[rows, None]).squeeze(-1)
            probs = log_probs.exp()
            entropy[rows] = -(probs * log_probs).sum(-1)
            if d_logp is not None:
                d_logp[rows] = (weight[targets[rows]] - probs @ weight) / temperature
            if d_entropy is not None:  # dH/dlogit_v = -p_v (log p_v + H)
                d_entropy[rows] = -(probs * (log_probs + entropy[rows, None])) @ weight / temperature
        ctx.save_for_backward(hidden, weight, bias, targets, d_logp, d_entropy)
        ctx.settings = (temperature, with_entropy_gradient, chunk)
        if not with_entropy_gradient:
            ctx.mark_non_differentiable(entropy)
        return logp, entropy

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets, d_logp, d_entropy = ctx.saved_tensors
        temperature, with_entropy, chunk = ctx.settings
        g_logp, g_entropy = grads
        g_hidden = None
        if d_logp is not None:
            g_hidden = g_logp[:, None] * d_logp
            if d_entropy is not None:
                g_hidden = g_hidden + g_entropy[:, None] * d_entropy
        g_weight = g_bias = None
        if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:  # a trained head: make the chunk's probabilities again
            g_weight = torch.zeros_like(weight)
            g_bias = torch.zeros_like(bias) if bias is not None else None
            for i in range(0, len(hidden), chunk):
                rows = slice(i, i + chunk)
                log_probs = _log_probs(hidden[rows], weight, bias, temperature)
                probs = log_probs.exp()
                g = -g_logp[rows, None] * probs
                g.scatter_add_(-1, targets[rows, None], g_logp[rows, None])
                if with_entropy:
                    entropy = -(probs * log_probs).sum(-1, keepdim=True)
                    g -= g_entropy[rows, None] * probs * (log_probs + entropy)
                g /= temperature
                g_weight += g.t() @ hidden[rows]
                if g_bias is not None:
                    g_bias += g.sum(0)
        return g_hidden, g_weight, g_bias, None, None, None, None


def _log_probs(hidden: Tensor, weight: Tensor, bias: Tensor | None, temperature: float) -> Tensor:
    logits = torch.nn.functional.linear(hidden, weight, bias)
    if temperature != 1.0:
        logits = logits / temperature
    return logits.log_softmax(-1)


def token_likelihood(
    hidden: Tensor, weight: Tensor, targets: Tensor, *, bias: Tensor | None = None, temperature: float = 1.0, entropy_gradient: bool = False, chunk: int = CHUNK
) -> TokenLikelihood:
    """``log softmax(W h / temperature)[target]`` and the entropy of that distribution, for every row.

    Args:
        hidden: ``[N, D]`` final hidden states of the positions *before* the tokens.
        weight: ``[V, D]`` head; ``bias`` ``[V]`` or None.
        targets: ``[N]`` token ids.
        temperature: the sampling temperature; the policy that sampled at T is softmax(logits / T).
        entropy_gradient: True when the entropy is part of the loss (one more product a token).
        chunk: rows at once; changes memory, never the result.

    Raises ValueError for a temperature that is not positive or a target outside the vocabulary.
    """
    if temperature <= 0:
        raise ValueError(f"token_likelihood: temperature={temperature} must be positive")
    if len(targets) and (int(targets.min()) < 0 or int(targets.max()) >= len(weight)):
        raise ValueError(f"token_likelihood: token ids span {int(targets.min())}..{int(targets.max())}, the head has {len(weight)} rows")
    logp, entropy = _Head.apply(hidden, weight, bias, targets, temperature, entropy_gradient, chunk)  # type: ignore[no-untyped-call]
    return TokenLikelihood(logp, entropy)
