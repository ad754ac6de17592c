"""Attention at every length, in both forms of the passes, beside PyTorch's own in float64; and how much is multiplied."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode, bmm_flop

from test_models_fused import form, numbers  # noqa: F401
from truing.models import attention
from truing.models.fused import Turn
from truing.models.pack import Pack

D = 8


def drawn(lengths: list[int], keys: int, groups: int, dtype: torch.dtype = torch.float32) -> tuple[Pack, tuple[Tensor, Tensor, Tensor], Turn, Tensor]:
    """A pack, queries, keys and values, tables that turn, and the gradient that arrives."""
    pack = Pack([[1] * n for n in lengths])
    every = keys * groups
    q, k, v, g = (numbers(pack.tokens, heads, D, seed=i, dtype=dtype) for i, heads in enumerate((every, keys, keys, every)))
    angle = torch.arange(max(lengths))[:, None] * torch.tensor([1.0, 0.3, 0.1, 0.03])
    turn = Turn(torch.cat((angle.cos(), angle.cos()), -1), torch.cat((-angle.sin(), angle.sin()), -1))
    return pack, (2 * q.requires_grad_(), k.requires_grad_(), v.requires_grad_()), turn, g


def plain(pack: Pack, q: Tensor, k: Tensor, v: Tensor, turn: Turn) -> Tensor:
    """Sequence by sequence, all in float64; a head's halves are the real and imaginary parts of numbers that turn."""
    out = []
    for start, n in zip(pack.starts, pack.lengths, strict=True):
        own = slice(start, start + n)
        unit = torch.complex(turn.cos[:n, None, : D // 2].double(), turn.sin[:n, None, D // 2 :].double())
        rotated = [torch.complex(*x[own].double().chunk(2, -1)) * unit for x in (q, k)]
        turned = [torch.cat((z.real, z.imag), -1).transpose(0, 1)[None] for z in rotated]
        mixed = F.scaled_dot_product_attention(*turned, v[own].double().transpose(0, 1)[None], is_causal=True, scale=0.4, enable_gqa=True)
        out.append(mixed[0].transpose(0, 1))
    return torch.cat(out)


def away(found: Tensor, wanted: Tensor) -> float:
    return float(((found.double() - wanted).norm() / wanted.norm()).detach())


LENGTHS = ([1], [2, 1], [127, 128], [129], [129, 100], [130, 130], [255, 160, 257], [300, 200, 7], [511], [512, 330], [513, 400])


@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-6), (torch.bfloat16, 1.5e-2)])  # the units are 6e-8 and 4e-3; weights, products and turns round once each
@pytest.mark.parametrize(("keys", "groups"), [(1, 1), (2, 3), (3, 1)])
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_attention_is_pytorchs_at_every_length(form: str, lengths: list[int], keys: int, groups: int, dtype: torch.dtype, close: float) -> None:  # noqa: F811
    pack, qkv, turn, g = drawn(lengths, keys, groups, dtype)
    found, wanted = attention.attend(*qkv, pack, turn, 0.4), plain(pack, *qkv, turn)
    assert found.dtype == dtype and away(found, wanted) < close
    gradients = zip(torch.autograd.grad(found, qkv, g), torch.autograd.grad(wanted, qkv, g.double()), strict=True)
    if lengths != [1]:  # of one token alone the weight is 1, and no query or key moves it
        assert max(away(a, b.double()) for a, b in gradients) < 2 * close
    with torch.no_grad():
        assert torch.equal(attention.attend(*qkv, pack, turn, 0.4), found)


@pytest.mark.parametrize(("length", "blocks"), [(96, [96]), (128, [128]), (129, [64, 65]), (384, [128, 128, 128]), (500, [125] * 4), (512, [128] * 4)])
def test_a_block_of_queries_meets_only_the_keys_before_its_end(length: int, blocks: list[int]) -> None:
    pack, qkv, turn, g = drawn([length, length], 1, 2)
    square = sum(rows * sum(blocks[: i + 1]) for i, rows in enumerate(blocks))
    each = 2 * 2 * 2 * D * square  # 2 sequences, 2 heads, a multiplication and an addition
    with FlopCounterMode(display=False) as forward:
        out = attention.attend(*qkv, pack, turn, 0.4)
    assert forward.get_total_flops() == 2 * each
    with FlopCounterMode(display=False, custom_mapping={torch.ops.aten.baddbmm_: lambda _, a, b, **more: bmm_flop(a, b)}) as backward:
        torch.autograd.grad(out, qkv, g)
    assert backward.get_total_flops() == (4 if length <= 128 else 5) * each  # the weights of long ones are made again
