"""Log-probability and entropy of chosen tokens, from hidden states or from logits, without keeping ``[N, V]`` for backward.

The language-model head is the largest product of a small model. Rows go through in chunks. From hidden states, the gradient
``d logp / d h = sum_v ([v = target] - p_v) W_v / temperature`` is made while a chunk's probabilities are at hand, so a frozen head is
multiplied twice a token in all and nothing of size V outlives its chunk. From logits, the probabilities are made again in backward.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from truing.native import passes, products

CHUNK = 512  # rows of logits alive at once: 512 x 49,152 x 4 bytes = 100 MB


class TokenLikelihood(NamedTuple):
    """``logp`` of the given tokens and ``entropy`` of their distributions, both ``[N]``, in nats."""

    logp: Tensor
    entropy: Tensor


def token_likelihood(
    hidden: Tensor, weight: Tensor, targets: Tensor, *, bias: Tensor | None = None, temperature: float = 1.0, entropy_gradient: bool = False, chunk: int = CHUNK,
    backward: torch.dtype | None = None,
) -> TokenLikelihood:  # fmt: skip
    """``log softmax((W h + b) / temperature)[target]`` and the entropy of that distribution, for every row.

    Args:
        hidden: ``[N, D]`` final hidden states of the positions *before* the tokens.
        weight: ``[V, D]`` head; ``bias`` ``[V]`` or None.
        targets: ``[N]`` token ids.
        temperature: the sampling temperature; the policy that sampled at T is softmax(logits / T).
        entropy_gradient: True when the entropy is part of the loss (one more product a token). Otherwise it has no gradient.
        chunk: rows at once; changes memory, never the result.
        backward: precision of the product that takes the gradient from logits to hidden states, rounded factor by factor; None is that of ``hidden``, as is with
            ``entropy_gradient``. Log-probabilities, entropies and the head's own gradient are not touched by it.

    Raises ValueError for a temperature or chunk that is not positive, shapes that do not fit, or a target outside the vocabulary.

    >>> head = torch.tensor([[0.0], [1.0]])
    >>> token_likelihood(torch.zeros(1, 1), head, torch.tensor([1])).logp  # two equal logits: log 1/2
    tensor([-0.6931])
    """
    _settings("token_likelihood", temperature, chunk)
    if hidden.ndim != 2 or weight.shape != (len(weight), hidden.shape[1]) or (bias is not None and bias.shape != weight.shape[:1]):
        raise ValueError(f"token_likelihood: hidden {tuple(hidden.shape)}, weight {tuple(weight.shape)}, bias {bias if bias is None else tuple(bias.shape)}; they are [N, D], [V, D] and [V]")
    _choices("token_likelihood", targets, hidden.shape[:1], len(weight))
    return TokenLikelihood(*_Head.apply(hidden, weight, bias, targets, temperature, entropy_gradient, chunk, backward))  # type: ignore[no-untyped-call]


def from_logits(logits: Tensor, targets: Tensor, *, temperature: float = 1.0, entropy_gradient: bool = False, chunk: int = CHUNK) -> TokenLikelihood:
    """``log softmax(logits / temperature)[target]`` and the entropy of that distribution, for every row, in float32 or finer.

    Args:
        logits: ``[..., V]``; -inf excludes a choice (top-k, an invalid action) and gets no gradient.
        targets: ``[...]`` token ids, or indices of actions; the results have this shape.
        temperature, entropy_gradient, chunk: as in `token_likelihood`.

    Only the logits themselves are kept for backward. Raises ValueError as `token_likelihood` does.

    >>> logits = torch.tensor([[0.0, 0.0], [0.0, float("-inf")]])
    >>> from_logits(logits, torch.tensor([1, 0])).logp  # a coin, and a certainty
    tensor([-0.6931,  0.0000])
    """
    _settings("from_logits", temperature, chunk)
    if logits.ndim == 0:
        raise ValueError("from_logits: logits is a single number; it is [..., V]")
    _choices("from_logits", targets, logits.shape[:-1], logits.shape[-1])
    rows = logits.reshape(-1, logits.shape[-1])
    logp, entropy = _Logits.apply(rows, targets.reshape(-1), temperature, entropy_gradient, chunk)  # type: ignore[no-untyped-call]
    return TokenLikelihood(logp.reshape(targets.shape), entropy.reshape(targets.shape))


def entropy(logits: Tensor) -> Tensor:
    """``-sum_v p_v log p_v`` of categorical distributions given as logits ``[..., V]``, in nats; the result is ``[...]``, with gradient.

    A logit of -inf excludes a choice: it adds 0 and gets no gradient.

    >>> entropy(torch.tensor([[0.0, 0.0, 0.0, 0.0], [0.0, 0.0, float("-inf"), float("-inf")]]))  # log 4, log 2
    tensor([1.3863, 0.6931])
    """
    log_probs = logits.log_softmax(-1)
    probs = log_probs.exp()
    return -(probs * torch.where(probs > 0, log_probs, probs)).sum(-1)


class _Head(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, temperature: float, with_entropy: bool, chunk: int, backward: torch.dtype | None) -> tuple[Tensor, Tensor]:  # fmt: skip
        n = len(hidden)
        logp, entropy = hidden.new_empty(n), hidden.new_empty(n)
        d_logp = torch.empty_like(hidden) if hidden.requires_grad else None
        d_entropy = torch.empty_like(hidden) if hidden.requires_grad and with_entropy else None
        dtype = hidden.dtype if backward is None or with_entropy else backward
        factor = weight.to(dtype) if hidden.requires_grad else weight
        keeps = ctx.needs_input_grad[1] and n <= chunk and dtype == hidden.dtype and not with_entropy  # one chunk's: what backward would make again
        kept: Tensor | None = None
        for rows in _chunks(rows=n, at_once=chunk):
            logits = _logits(hidden[rows], weight, bias, temperature)
            log_probs = logits.log_softmax(1) if d_entropy is not None else None
            logp[rows], entropy[rows], pull = _read(logits, targets[rows], less=1.0, dtype=dtype)
            if d_logp is not None:  # dlogp/dlogit_v = [v = target] - p_v
                d_logp[rows] = -products.back_by(pull, factor) / temperature
            if d_entropy is not None and log_probs is not None:  # dH/dlogit_v = -p_v (log p_v + H)
                probs = pull.scatter_add_(1, targets[rows, None], torch.ones_like(pull[:, :1]))
                d_entropy[rows] = -(log_probs.add_(entropy[rows, None]).mul_(probs) @ weight) / temperature
            kept = pull if keeps else None
            del logits, log_probs, pull  # before the next chunk's are made
        ctx.save_for_backward(hidden, weight, bias, targets, d_logp, d_entropy, kept)
        ctx.settings = (temperature, chunk)
        ctx.set_materialize_grads(False)  # what is not in the loss arrives as None and costs nothing
        if not with_entropy:
            ctx.mark_non_differentiable(entropy)
        return logp, entropy

    @staticmethod
    def backward(ctx: Any, g_logp: Tensor | None, g_entropy: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets, d_logp, d_entropy, kept = ctx.saved_tensors
        temperature, chunk = ctx.settings
        terms = [g[:, None] * d for g, d in ((g_logp, d_logp), (g_entropy, d_entropy)) if g is not None and d is not None]
        g_hidden = sum(terms[1:], terms[0]) if terms else None
        g_weight = g_bias = None
        if kept is not None and g_logp is not None:
            pull = g_logp[:, None] / -temperature
            g_weight, g_bias = products.over_rows(kept, hidden * pull).to(weight.dtype), (kept.t() @ pull)[:, 0] if bias is not None else None
        elif ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:  # a trained head: make the chunk's probabilities again
            g_weight = torch.zeros_like(weight)
            g_bias = torch.zeros_like(bias) if bias is not None else None
            for rows in _chunks(rows=len(hidden), at_once=chunk):
                logits = _logits(hidden[rows], weight, bias, temperature)
                log_probs = logits.log_softmax(1) if g_entropy is not None else None
                _, entropy, probs = _read(logits, targets[rows])
                g = _logit_gradient(probs, log_probs, entropy, targets[rows], _of(g_logp, rows), _of(g_entropy, rows)).div_(temperature)
                torch.addmm(g_weight, g.t(), hidden[rows], out=g_weight)
                if g_bias is not None:
                    g_bias += g.sum(0)
                del logits, log_probs, probs, g  # before the next chunk's are made
        return g_hidden, g_weight, g_bias, None, None, None, None, None


class _Logits(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, temperature: float, with_entropy: bool, chunk: int) -> tuple[Tensor, Tensor]:
        n, dtype = len(logits), torch.float64 if logits.dtype == torch.float64 else torch.float32
        logp, entropy = logits.new_empty(n, dtype=dtype), logits.new_empty(n, dtype=dtype)
        for rows in _chunks(rows=n, at_once=chunk):
            log_probs = (logits[rows].to(dtype) / temperature).log_softmax(1)
            logp[rows] = _at(log_probs, targets[rows])
            probs = log_probs.exp()
            entropy[rows] = -(probs * _finite(log_probs)).sum(1)
        ctx.save_for_backward(logits, targets)
        ctx.settings = (dtype, temperature, chunk)
        ctx.set_materialize_grads(False)
        if not with_entropy:
            ctx.mark_non_differentiable(entropy)
        return logp, entropy

    @staticmethod
    def backward(ctx: Any, g_logp: Tensor | None, g_entropy: Tensor | None) -> tuple[Tensor | None, ...]:
        logits, targets = ctx.saved_tensors
        dtype, temperature, chunk = ctx.settings
        gradient = torch.empty_like(logits)
        for rows in _chunks(rows=len(logits), at_once=chunk):
            log_probs = _finite((logits[rows].to(dtype) / temperature).log_softmax(1))
            probs = log_probs.exp()
            entropy = -(probs * log_probs).sum(1)
            own = _logit_gradient(probs, log_probs, entropy, targets[rows], _of(g_logp, rows), _of(g_entropy, rows))
            gradient[rows] = (own / temperature).to(logits.dtype)
        return gradient, None, None, None, None


def _logit_gradient(
    probs: Tensor, log_probs: Tensor | None, entropy: Tensor, targets: Tensor, g_logp: Tensor | None, g_entropy: Tensor | None
) -> Tensor:
    """dlogp/dlogit_v = [v = target] - p_v and dH/dlogit_v = -p_v (log p_v + H), weighted and summed: ``[n, V]``, in place of the probabilities."""
    pull: Tensor | float = 0.0 if g_logp is None else -g_logp[:, None]
    if g_entropy is not None and log_probs is not None:
        pull = pull - g_entropy[:, None] * (log_probs + entropy[:, None])
    gradient = probs.mul_(pull)
    return gradient if g_logp is None else gradient.scatter_add_(1, targets[:, None], g_logp[:, None])


def _read(logits: Tensor, targets: Tensor, *, less: float = 0.0, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """``logp`` and ``entropy`` ``[n]``, and the probabilities in ``dtype`` with ``less`` taken off at the target: where the logits stood, if one compiled pass does it all."""
    dtype = dtype or logits.dtype
    c = passes(logits, dtype) if logits.dtype == torch.float32 else None
    if c is None:
        log_probs = logits.log_softmax(1)
        probs = log_probs.exp()
        logp, entropy = _at(log_probs, targets), -log_probs.mul_(probs).sum(1)
        return logp, entropy, (probs.scatter_add_(1, targets[:, None], torch.full_like(probs[:, :1], -less)) if less else probs).to(dtype)
    targets, (logp, entropy) = targets.contiguous(), logits.new_empty(2, len(logits))
    c.likelihood(logits.data_ptr(), targets.data_ptr(), less, logp.data_ptr(), entropy.data_ptr(), *logits.shape)
    return logp, entropy, logits.view(dtype)[:, : logits.shape[1]]


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, temperature: float) -> Tensor:
    bias = None if bias is None else bias / temperature
    return products.rows_by(hidden / temperature, weight, bias)  # D divisions a row, not V


def _finite(log_probs: Tensor) -> Tensor:
    return log_probs.clamp_(min=torch.finfo(log_probs.dtype).min)  # log 0: times p = 0 it must give 0, not NaN


def _at(log_probs: Tensor, targets: Tensor) -> Tensor:
    return log_probs.gather(1, targets[:, None])[:, 0]


def _of(gradient: Tensor | None, rows: slice) -> Tensor | None:
    return None if gradient is None else gradient[rows]


def _chunks(*, rows: int, at_once: int) -> list[slice]:
    return [slice(i, i + at_once) for i in range(0, rows, at_once)]


def _settings(caller: str, temperature: float, chunk: int) -> None:
    if not 0 < temperature < math.inf:
        raise ValueError(f"{caller}: temperature={temperature} must be positive")
    if chunk < 1:
        raise ValueError(f"{caller}: chunk={chunk} must be 1 or more")


def _choices(caller: str, targets: Tensor, shape: torch.Size, size: int) -> None:
    if targets.shape != shape:
        raise ValueError(f"{caller}: targets {tuple(targets.shape)} must be {tuple(shape)}, one a row")
    if targets.numel() and (int(targets.min()) < 0 or int(targets.max()) >= size):
        raise ValueError(f"{caller}: token ids span {int(targets.min())}..{int(targets.max())}, outside the {size} choices 0..{size - 1}")
