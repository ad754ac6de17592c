"""Drawing a token: inverse-CDF on given uniforms, so that a sample is a function of its own numbers and nothing else."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from truing.config import Sampling
from truing.errors import NonFiniteError
from truing.native import passes

BLOCK = 256  # the vocabulary is searched block by block: two short cumulative sums instead of one over V
AT_ONCE = 1 << 21  # elements of [B, V] that a CPU works on together: what stays in its caches
LIKELY = 4096  # so many of the likeliest tokens hold most nuclei; where they do not, all are sorted
LEAST = 1e-30  # no draw can tell a smaller probability from 0


def draw(logits: Tensor, uniforms: Tensor, temperature: float, truncation: Sampling = Sampling()) -> tuple[Tensor, Tensor]:  # noqa: B008 - frozen
    """One token a row of softmax(logits / temperature), truncated and renormalised, and its log-probability there.

    With p the softmax of a row and S the tokens that the truncation leaves, token i of S has probability ``p_i / sum_S p``. The one
    drawn is the first, by id, at which the cumulative probability exceeds the row's uniform.

    The truncations follow each other, each on what the one before left. Tokens stand in the order of their probabilities, equal ones
    in that of their ids:

    - ``top_k`` keeps the first k;
    - ``top_p`` the fewest that hold at least ``top_p`` of the probability: the token that crosses it is kept, so one at least;
    - ``min_p`` those at least ``min_p`` times as likely as the first.

    Args:
        logits: ``[B, V]``, float32; -inf is probability 0.
        uniforms: ``[B]`` in [0, 1), float64.
        temperature: 0 takes the most likely token (the first of equals), with its log-probability at temperature 1, never truncated.

    Returns ``(tokens [B], logp [B])``. Raises NonFiniteError for a row with NaN or +inf, or without a finite logit.

    Example: [0.5, 0.3, 0.2] with ``top_p = 0.7`` leaves [0.5, 0.3], that is [0.625, 0.375]; the uniform 0.7 draws token 1.

    >>> x = torch.tensor([[0.5, 0.3, 0.2]]).log()
    >>> token, logp = draw(x, torch.tensor([0.7], dtype=torch.float64), 1.0, Sampling(top_p=0.7))
    >>> token.item(), round(logp.exp().item(), 4)
    (1, 0.375)
    """
    compiled = passes(logits, torch.float32) if logits.dtype == torch.float32 else None
    if compiled is not None and temperature > 0 and not truncation.truncates:
        logits, uniforms = logits.contiguous(), uniforms.to(torch.float64).contiguous()
        tokens, logp = torch.empty(len(logits), dtype=torch.long), logits.new_empty(len(logits))
        compiled.draw(logits.data_ptr(), uniforms.data_ptr(), temperature, tokens.data_ptr(), logp.data_ptr(), *logits.shape)
        _check(~logp.isnan(), 0)
        return tokens, logp
    rows = len(logits) if logits.is_cuda else max(1, AT_ONCE // logits.shape[-1])
    uniforms = uniforms.to(logits.device, torch.float64)
    if rows >= len(logits):
        return _draw(logits, uniforms, temperature, truncation, 0)
    parts = [_draw(logits[i : i + rows], uniforms[i : i + rows], temperature, truncation, i) for i in range(0, len(logits), rows)]
    return torch.cat([tokens for tokens, _ in parts]), torch.cat([logp for _, logp in parts])


def _draw(logits: Tensor, uniforms: Tensor, temperature: float, truncation: Sampling, first: int) -> tuple[Tensor, Tensor]:
    if temperature not in (0, 1):
        logits = (logits - logits.amax(-1, keepdim=True)).div_(temperature)  # from the largest: x / temperature alone rounds a large x
    weight_BV = logits.softmax(-1)
    _check(torch.isfinite(weight_BV[:, 0]), first)  # one bad number makes all of its row NaN
    if temperature > 0 and truncation.truncates:
        weight_BV = _truncated(weight_BV, truncation)
    mass_BK = _blocks(weight_BV, torch.sum).to(torch.float64)
    cumulative_BK = mass_BK.cumsum(-1)
    tokens = _most_likely(logits) if temperature == 0 else _search(weight_BV, mass_BK, cumulative_BK, uniforms)
    return tokens, (weight_BV.gather(-1, tokens[:, None]) / cumulative_BK[:, -1:]).log().squeeze(-1).to(logits.dtype)


def _check(sound: Tensor, first: int) -> None:
    """Raises NonFiniteError for the first row that is not."""
    if not sound.all():
        row = first + int((~sound).nonzero()[0, 0])
        raise NonFiniteError(
            f"row {row} of the logits has NaN or +inf, or nothing but -inf, so no token can be drawn: the model has diverged; lower the learning rate"
        )


def _blocks(x_BV: Tensor, what: Callable[..., Tensor]) -> Tensor:
    """A sum or a maximum of each block of the vocabulary, ``[B, K]``; the last may be shorter. Sums of 256 in float32 err by 1e-7."""
    whole = x_BV.shape[-1] // BLOCK * BLOCK
    parts = [what(x_BV[:, :whole].unflatten(-1, (-1, BLOCK)), -1)] if whole else []
    if whole < x_BV.shape[-1]:
        parts.append(what(x_BV[:, whole:], -1, keepdim=True))
    return torch.cat(parts, -1)


def _inside(x_BV: Tensor, block_B1: Tensor, beyond: float) -> Tensor:
    """One block of each row, ``[B, BLOCK]``, filled up with ``beyond`` where the vocabulary has ended."""
    places = block_B1 * BLOCK + torch.arange(BLOCK, device=x_BV.device)
    last = x_BV.shape[-1] - 1
    return x_BV.gather(-1, places.clamp(max=last)).masked_fill_(places > last, beyond)


def _most_likely(logits: Tensor) -> Tensor:
    block_B1 = _blocks(logits, torch.amax).argmax(-1, keepdim=True)
    return block_B1.squeeze(-1) * BLOCK + _inside(logits, block_B1, float("-inf")).argmax(-1)


def _search(weight_BV: Tensor, mass_BK: Tensor, cumulative_BK: Tensor, uniforms: Tensor) -> Tensor:
    """The first token at which the cumulative weight exceeds ``uniform * total``: its block first, then its place in it.

    Each goal stays below the last cumulative weight, so what is found has weight, whatever was rounded.
    """
    goal = _below(uniforms[:, None] * cumulative_BK[:, -1:], cumulative_BK)
    block_B1 = torch.searchsorted(cumulative_BK, goal, right=True)
    mass = mass_BK.gather(-1, block_B1)
    share = (goal - (cumulative_BK.gather(-1, block_B1) - mass)) / mass
    inside = _inside(weight_BV, block_B1, 0.0).to(torch.float64).cumsum(-1)
    offset_B1 = torch.searchsorted(inside, _below(share.clamp(min=0.0) * inside[:, -1:], inside), right=True)
    return (block_B1 * BLOCK + offset_B1).squeeze(-1)


def _below(goal: Tensor, cumulative: Tensor) -> Tensor:
    last = cumulative[:, -1:]
    return torch.minimum(goal, torch.nextafter(last, torch.zeros_like(last)))


# -- truncation ----------------------------------------------------------------------------------------------------------
def _truncated(probs_BV: Tensor, truncation: Sampling) -> Tensor:
    """What is kept, as multiples of the least probability kept; 0 elsewhere. Overwrites ``probs_BV``."""
    edge_B1, spare_B1 = _edge(probs_BV, truncation)
    if truncation.min_p > 0:
        least_B1 = truncation.min_p * probs_BV.amax(-1, keepdim=True)
        spare_B1 = spare_B1.masked_fill(least_B1 > edge_B1, -1)
        edge_B1 = torch.maximum(edge_B1, least_B1)
    # Division rounds to 1 or more exactly where p >= edge, so one number separates all rows. Nobody can draw what is below LEAST.
    kept_BV = torch.nn.functional.threshold(probs_BV.div_(edge_B1.clamp(min=LEAST)), 1 - 2**-24, 0.0, inplace=True)
    for row in (spare_B1.squeeze(-1) >= 0).nonzero().squeeze(-1).tolist():
        equal = (kept_BV[row] == 1).nonzero().squeeze(-1)
        kept_BV[row, equal[int(spare_B1[row]) :]] = 0.0
    return kept_BV


def _edge(probs_BV: Tensor, truncation: Sampling, looked: int = LIKELY) -> tuple[Tensor, Tensor]:
    """The least probability that top_k and top_p keep, ``[B, 1]``, and of how many tokens that have just this one; -1 is all of them."""
    rows, vocabulary = probs_BV.shape
    most = min(truncation.top_k or vocabulary, vocabulary)
    if most == vocabulary and truncation.top_p == 1:
        return torch.zeros_like(probs_BV[:, :1]), torch.full((rows, 1), -1, device=probs_BV.device)
    looked = most + 1 if most < vocabulary else min(looked, vocabulary)
    likely = _largest(probs_BV, looked)
    count_B1 = torch.full((rows, 1), most, device=probs_BV.device)
    if truncation.top_p < 1:
        held = likely[:, :most].cumsum(-1, dtype=torch.float64)
        total_B1 = held[:, -1:] if most < vocabulary else probs_BV.sum(-1, keepdim=True, dtype=torch.float64)
        count_B1 = (torch.searchsorted(held, truncation.top_p * total_B1) + 1).clamp(max=most)  # the first at which the goal is reached
        if looked < most and bool((count_B1 >= looked).any()):
            return _edge(probs_BV, truncation, vocabulary)
    edge_B1 = likely.gather(-1, count_B1 - 1)
    tied = (count_B1 < looked) & (likely.gather(-1, count_B1.clamp(max=looked - 1)) == edge_B1)
    return edge_B1, torch.where(tied, count_B1 - (likely > edge_B1).sum(-1, keepdim=True), -1)


def _largest(x_BV: Tensor, count: int) -> Tensor:
    """The ``count`` largest numbers of each row, descending. On a CPU NumPy selects and sorts them several times faster."""
    if x_BV.is_cuda:
        return x_BV.topk(count, -1).values
    x = x_BV.neg().numpy()
    part = x if count == x.shape[-1] else np.partition(x, count - 1, axis=-1)[:, :count]
    return torch.from_numpy(np.sort(part, axis=-1)).neg_()
