"""Attention at every length, in both forms of the passes, beside PyTorch's own in float64; and how much is multiplied."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode, bmm_flop

from test_models_fused import CLOSE, close, form, numbers  # noqa: F401
from truing import native
from truing.models import attention
from truing.models import attention_plain as plain
from truing.models.fused import Turn
from truing.models.pack import Pack

D = 8  # of a head


def drawn(lengths: list[int], keys: int, groups: int, dtype: torch.dtype = torch.float32, d: int = D) -> tuple[Pack, tuple[Tensor, Tensor, Tensor], Turn, Tensor]:
    """A pack, queries, keys and values, tables that turn, and the gradient that arrives."""
    pack = Pack([[1] * n for n in lengths])
    every = keys * groups
    q, k, v, g = (numbers(pack.tokens, heads, d, seed=i, dtype=dtype) for i, heads in enumerate((every, keys, keys, every)))
    angle = torch.arange(max(lengths))[:, None] * torch.logspace(0, -1.5, d // 2)
    turn = Turn(torch.cat((angle.cos(), angle.cos()), -1), torch.cat((-angle.sin(), angle.sin()), -1))
    return pack, (2 * q.requires_grad_(), k.requires_grad_(), v.requires_grad_()), turn, g


def wanted_of(pack: Pack, q: Tensor, k: Tensor, v: Tensor, turn: Turn, scale: float = 0.4) -> Tensor:
    """Sequence by sequence, all in float64; a head's halves are the real and imaginary parts of numbers that turn."""
    out = []
    for start, n in zip(pack.starts, pack.lengths, strict=True):
        own = slice(start, start + n)
        unit = torch.complex(turn.cos[:n, None, : q.shape[2] // 2].double(), turn.sin[:n, None, q.shape[2] // 2 :].double())
        rotated = [torch.complex(*x[own].double().chunk(2, -1)) * unit for x in (q, k)]
        turned = [torch.cat((z.real, z.imag), -1).transpose(0, 1)[None] for z in rotated]
        mixed = F.scaled_dot_product_attention(*turned, v[own].double().transpose(0, 1)[None], is_causal=True, scale=scale, enable_gqa=True)
        out.append(mixed[0].transpose(0, 1))
    return torch.cat(out)


def away(found: Tensor, wanted: Tensor) -> float:
    return float(((found.double() - wanted).norm() / wanted.norm()).detach())


LENGTHS = ([1], [2, 1], [127, 128], [129], [129, 100], [130, 130], [255, 160, 257], [300, 200, 7], [511], [512, 330], [513, 400])


@pytest.mark.parametrize(("dtype", "near"), [(torch.float32, 1e-6), (torch.bfloat16, 1.5e-2)])  # the units are 6e-8 and 4e-3; weights, products and turns round once each
@pytest.mark.parametrize(("keys", "groups"), [(1, 1), (2, 3), (3, 1)])
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_attention_is_pytorchs_at_every_length(form: str, lengths: list[int], keys: int, groups: int, dtype: torch.dtype, near: float) -> None:  # noqa: F811
    pack, qkv, turn, g = drawn(lengths, keys, groups, dtype)
    found, wanted = attention.attend(*qkv, pack, turn, 0.4), wanted_of(pack, *qkv, turn)
    assert found.dtype == dtype and away(found, wanted) < near
    gradients = zip(torch.autograd.grad(found, qkv, g), torch.autograd.grad(wanted, qkv, g.double()), strict=True)
    if lengths != [1]:  # of one token alone the weight is 1, and no query or key moves it
        assert max(away(a, b.double()) for a, b in gradients) < 2 * near
    with torch.no_grad():
        assert torch.equal(attention.attend(*qkv, pack, turn, 0.4), found)


@pytest.mark.parametrize("dtype", CLOSE)
@pytest.mark.parametrize(("keys", "groups"), [(1, 4), (2, 5)])
@pytest.mark.parametrize("d", [2, 16, 30, 32, 40, 64, 128])  # below, at and beyond the sixteen lanes, an odd and an even number of them, whole and with a rest
def test_heads_of_every_width_and_number(form: str, d: int, keys: int, groups: int, dtype: torch.dtype) -> None:  # noqa: F811
    pack, qkv, turn, g = drawn([17, 1, 40], keys, groups, dtype, d)
    found, wanted = attention.attend(*qkv, pack, turn, d**-0.5), wanted_of(pack, *qkv, turn, d**-0.5)
    near = 1e-6 if dtype == torch.float32 else 1.5e-2
    assert away(found, wanted) < near
    assert max(away(a, b.double()) for a, b in zip(torch.autograd.grad(found, qkv, g), torch.autograd.grad(wanted, qkv, g.double()), strict=True)) < 2 * near


def everything(pack: Pack, qkv: tuple[Tensor, ...], turn: Turn, g: Tensor) -> list[Tensor]:
    out = attention.attend(*qkv, pack, turn, 0.4)
    return [out.detach(), *torch.autograd.grad(out, qkv, g)]


@pytest.mark.parametrize("dtype", CLOSE)
@pytest.mark.skipif(native.library(torch.float32) is None, reason="no C compiler on this machine")
def test_a_sequence_comes_out_the_same_bits_whatever_stands_beside_it_and_however_many_threads_there_are(dtype: torch.dtype) -> None:
    lengths = [33, 7, 150, 16]
    pack, qkv, turn, g = drawn(lengths, 2, 3, dtype)
    whole, threads = everything(pack, qkv, turn, g), torch.get_num_threads()
    for start, n in zip(pack.starts, lengths, strict=True):
        own = slice(start, start + n)
        alone = everything(Pack([[1] * n]), tuple(x.detach()[own].clone().requires_grad_() for x in qkv), turn, g[own])
        assert all(torch.equal(a, b[own]) for a, b in zip(alone, whole, strict=True))
    try:
        torch.set_num_threads(1 if threads > 1 else 2)
        assert all(torch.equal(a, b) for a, b in zip(everything(pack, qkv, turn, g), whole, strict=True))
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("dtype", CLOSE)
def test_large_scores_do_not_overflow_and_a_nan_stays_in_its_sequence(form: str, dtype: torch.dtype) -> None:  # noqa: F811
    pack, _, _, _ = drawn([20, 5, 20], 1, 2, dtype)
    still = Turn(torch.ones(20, D), torch.zeros(20, D))
    q, k, v = (numbers(pack.tokens, heads, D, seed=i, dtype=dtype) for i, heads in enumerate((2, 1, 1)))
    k[:] = 100.0 * q[3, :1]  # the scores of one query are some 10,000s, all the same
    found = attention.attend(100 * q, k, v, pack, still, 1.0)
    torch.testing.assert_close(found[19, 0].double(), v[:20, 0].double().mean(0), atol=1e-6 if dtype == torch.float32 else 1e-2, rtol=1e-2)
    qkv = tuple(x.requires_grad_() for x in (q, torch.where(torch.arange(pack.tokens)[:, None, None] == 22, float("nan"), k.detach()), v))
    out, *gradients = everything(pack, qkv, still, torch.ones_like(q))
    own = slice(20, 25)
    assert out[22:25].isnan().all()
    assert all(x[own].isnan().any() and not torch.cat([x[:20], x[25:]]).isnan().any() for x in (out, *gradients))


def test_what_lies_between_heads_is_not_read_and_rows_that_fill_up_give_zeros(form: str) -> None:  # noqa: F811
    pack, qkv, turn, g = drawn([9, 30], 2, 2)
    beside = torch.full((pack.tokens + 5, 2 * sum(x.shape[1] for x in qkv), D), float("nan"))
    at, strided = 0, []
    for x in qkv:
        strided.append(beside[:, at : at + x.shape[1]])
        strided[-1][: pack.tokens] = x.detach()
        at += 2 * x.shape[1]
    found = attention.attend(*strided, pack, turn, 0.4)
    assert torch.equal(found[: pack.tokens], attention.attend(*qkv, pack, turn, 0.4)) and found[pack.tokens :].eq(0).all()


@pytest.mark.parametrize(("length", "blocks"), [(96, [96]), (128, [128]), (129, [64, 65]), (384, [128, 128, 128]), (500, [125] * 4), (512, [128] * 4)])
def test_a_block_of_queries_meets_only_the_keys_before_its_end(length: int, blocks: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "passes", lambda x, dtype: None)
    pack, qkv, turn, g = drawn([length, length], 1, 2)
    square = sum(rows * sum(blocks[: i + 1]) for i, rows in enumerate(blocks))
    each = 2 * 2 * 2 * D * square  # 2 sequences, 2 heads, a multiplication and an addition
    with FlopCounterMode(display=False) as forward:
        out = attention.attend(*qkv, pack, turn, 0.4)
    assert forward.get_total_flops() == 2 * each
    with FlopCounterMode(display=False, custom_mapping={torch.ops.aten.baddbmm_: lambda _, a, b, **more: bmm_flop(a, b)}) as backward:
        torch.autograd.grad(out, qkv, g)
    assert backward.get_total_flops() == (4 if length <= 128 else 5) * each  # the weights of long ones are made again


@pytest.mark.parametrize("dtype", CLOSE)
@pytest.mark.parametrize("groups", [1, 2, 3])
@pytest.mark.parametrize(("queries", "t"), [(1, 1), (5, 5), (16, 16), (33, 33), (96, 96), (1, 17), (5, 16), (16, 47), (33, 64), (43, 129)])  # squares, and last rows of them
def test_causal_softmax_looks_at_nothing_behind(queries: int, t: int, groups: int, dtype: torch.dtype) -> None:
    scores, g = 5 * numbers(3, queries * groups, t, dtype=dtype), numbers(3, queries * groups, t, seed=1, dtype=dtype)
    place = torch.arange(t - queries, t).repeat_interleave(groups)
    seen = torch.arange(t) <= place[:, None]
    s64 = scores.double().requires_grad_()
    wanted = s64.masked_fill(~seen, float("-inf")).softmax(-1)
    weights = plain.causal_softmax(scores.clone(), groups)
    close(weights, wanted, dtype)
    assert weights[:, ~seen].eq(0).all()
    (expected,) = torch.autograd.grad(wanted, s64, g.double())
    found = torch._softmax_backward_data(g, weights, -1, dtype)
    close(found, expected, dtype)
    assert found[:, ~seen].eq(0).all()


@pytest.mark.parametrize("dtype", CLOSE)
@pytest.mark.parametrize("lengths", [[4, 4], [9, 5, 2]])
@pytest.mark.parametrize("d", [2, 32, 40])
def test_heads_are_laid_out_turned_and_brought_back(d: int, lengths: list[int], dtype: torch.dtype) -> None:
    pack = Pack([[1] * n for n in lengths])
    angle = torch.arange(max(lengths))[:, None] * torch.linspace(1, 0.1, d // 2)
    turn = Turn(angle.cos().repeat(1, 2), torch.cat((-angle.sin(), angle.sin()), -1))
    wide = numbers(pack.tokens, 6, d, dtype=dtype)
    x, heads = wide[:, :4], 2  # a slice of a wider matrix, as queries are of queries and keys
    (grid,) = pack.grids()
    laid, turned = plain.lay(grid, x, heads), plain.lay(grid, x, heads, turn, 0.5)
    assert laid.shape == turned.shape == (len(lengths) * heads, max(lengths), 2, d)
    for row, (start, n) in enumerate(zip(pack.starts, lengths, strict=True)):
        for head in range(4):
            own, at = x[start : start + n, head].double(), row * heads + head // 2
            a, b = own[:, : d // 2], own[:, d // 2 :]
            c, s = angle[:n].double().cos(), angle[:n].double().sin()
            close(laid[at, :n, head % 2], own, dtype)
            close(turned[at, :n, head % 2], torch.cat((a * c - b * s, b * c + a * s), -1) / 2, dtype)
        past = slice(row * heads, (row + 1) * heads), slice(n, None)
        assert laid[past].eq(0).all() and turned[past].eq(0).all()
    back = torch.full((pack.tokens, 4, d), 7.0, dtype=dtype)
    plain.flat(grid, turned, back, turn, 2.0)
    close(back, x, dtype)
