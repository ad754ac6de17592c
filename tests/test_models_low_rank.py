"""What adapters add to a product, forward and backward, in both forms beside float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from test_models_fused import form, numbers  # noqa: F401
from truing.models import low_rank
from truing.native import passes

SCALE = 0.7
NEAR = {torch.float32: 1e-6, torch.bfloat16: 8e-3}  # of the norm; the low dimensions, their gradient and the result are rounded to 2^-9 each


def drawn(n: int, wide: int, outs: list[int], rank: int, dtype: torch.dtype) -> tuple[Tensor, list[Tensor], list[low_rank.Pair], list[Tensor]]:
    """Input, outputs so far, adapters, and the gradients that arrive."""
    pairs = [(numbers(rank, wide, seed=10 + i) / math.sqrt(wide), numbers(out, rank, seed=20 + i)) for i, out in enumerate(outs)]
    return numbers(n, wide, seed=1, dtype=dtype), [numbers(n, out, seed=30 + i, dtype=dtype) for i, out in enumerate(outs)], pairs, [numbers(n, out, seed=40 + i, dtype=dtype) for i, out in enumerate(outs)]


def away(found: Tensor, wanted: Tensor) -> float:
    return float((found.double() - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("dtype", NEAR)
@pytest.mark.parametrize("rank", [2, 6, 8, 16, 18, 64])  # below, at and beyond the sixteen lanes, and blocks of eight whole and with a rest
@pytest.mark.parametrize("outs", [[32], [30, 66], [48, 16, 16]], ids=str)
@pytest.mark.parametrize(("n", "wide"), [(7, 48), (64, 34), (65, 64), (203, 130)])  # tokens in blocks of 8 and 64, whole and with a rest, even and odd
def test_adapters_add_what_the_formula_says(form: str, n: int, wide: int, outs: list[int], rank: int, dtype: torch.dtype) -> None:  # noqa: F811
    x, before, pairs, gs = drawn(n, wide, outs, rank, dtype)
    ys = [y.clone() for y in before]
    low = low_rank.add(x, ys, pairs, SCALE)
    exact = [(SCALE * x.double() @ a.double().t(), b.double()) for a, b in pairs]
    assert low.dtype == dtype and away(low, torch.cat([own for own, _ in exact], 1)) < NEAR[dtype]
    assert max(away(y, start.double() + own @ b.t()) for y, start, (own, b) in zip(ys, before, exact, strict=True)) < NEAR[dtype]

    g_x = numbers(n, wide, seed=2, dtype=dtype)
    wanted_x = g_x.double() + sum(SCALE * g.double() @ b.double() @ a.double() for g, (a, b) in zip(gs, pairs, strict=True))
    g_as, g_bs = low_rank.backward(gs, x, low, pairs, SCALE, g_x, True, True)
    assert away(g_x, wanted_x) < NEAR[dtype]
    for g_a, g_b, g, (own, b) in zip(g_as, g_bs, gs, exact, strict=True):
        assert g_a.dtype == g_b.dtype == torch.float32 and g_a.shape == (rank, wide) and g_b.shape == b.shape
        assert away(g_a, SCALE * (g.double() @ b).t() @ x.double()) < NEAR[dtype] and away(g_b, g.double().t() @ own) < NEAR[dtype]


@pytest.mark.parametrize("dtype", NEAR)
def test_only_what_is_wanted_is_made(form: str, dtype: torch.dtype) -> None:  # noqa: F811
    x, ys, pairs, gs = drawn(20, 32, [48, 16], 8, dtype)
    low = low_rank.add(x, ys, pairs, SCALE)
    g_as, g_bs = low_rank.backward(gs, x, low, pairs, SCALE, None, True, True)
    assert low_rank.backward(gs, x, low, pairs, SCALE, None, False, False) == ([], [])
    nothing, same = low_rank.backward(gs, x.new_empty(0), low, pairs, SCALE, None, False, True)  # the input is for A's gradients only
    assert nothing == [] and all(torch.equal(a, b) for a, b in zip(same, g_bs, strict=True))
    same, nothing = low_rank.backward(gs, x, low, pairs, SCALE, torch.zeros_like(x), True, False)
    assert nothing == [] and all(torch.equal(a, b) for a, b in zip(same, g_as, strict=True))


def test_nothing_depends_on_threads_or_a_token_on_others() -> None:
    x, before, pairs, gs = drawn(203, 64, [48, 34], 16, torch.bfloat16)

    def everything(tokens: int, threads: int) -> list[Tensor]:
        held = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            ys, g_x = [y[:tokens].clone() for y in before], torch.zeros_like(x[:tokens])
            low = low_rank.add(x[:tokens], ys, pairs, SCALE)
            g_as, g_bs = low_rank.backward([g[:tokens] for g in gs], x[:tokens], low, pairs, SCALE, g_x, True, True)
            return [low, *ys, g_x, *g_as, *g_bs]
        finally:
            torch.set_num_threads(held)

    one = everything(203, 1)
    assert all(torch.equal(a, b) for a, b in zip(one, everything(203, 2), strict=True))
    assert all(torch.equal(a[:5], b) for a, b in zip(one[:4], everything(5, 1)[:4], strict=True))


@pytest.mark.parametrize(("wide", "outs", "rank"), [(33, [16], 4), (32, [15], 4), (32, [16], 3)])
def test_odd_sides_are_pytorchs(wide: int, outs: list[int], rank: int) -> None:
    x, ys, pairs, gs = drawn(9, wide, outs, rank, torch.bfloat16)
    before = ys[0].double()
    low = low_rank.add(x, ys, pairs, SCALE)
    (g_a,), (g_b,) = low_rank.backward(gs, x, low, pairs, SCALE, None, True, True)
    a, b = (w.double() for w in pairs[0])
    own, g = SCALE * x.double() @ a.t(), gs[0].double()
    assert away(ys[0], before + own @ b.t()) < 8e-3 and away(g_a, SCALE * (g @ b).t() @ x.double()) < 8e-3 and away(g_b, g.t() @ own) < 8e-3


def test_a_processor_that_multiplies_pairs_has_the_passes() -> None:
    c = passes(torch.zeros(1), torch.bfloat16)
    if c is None:
        pytest.skip("no C compiler, so every pass is PyTorch's")
    assert hasattr(c, "adapt") == torch.cpu._is_avx512_bf16_supported()
    assert not hasattr(passes(torch.zeros(1), torch.float32), "adapt")
