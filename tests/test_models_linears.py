"""Linear layers that read the same input, with adapters and without: forward and backward in both forms beside float64."""

from __future__ import annotations

import math
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from test_models_fused import form, numbers  # noqa: F401
from truing.models import linears
from truing.models.linears import Part
from truing.native import passes

SCALE = 0.7
NEAR = {torch.float32: 1e-6, torch.bfloat16: 8e-3}  # of the norm; the low dimensions, their gradient and the result are rounded to 2^-9 each


class Case(NamedTuple):
    x: Tensor
    parts: list[Part]
    gs: list[Tensor]

    def forward(self) -> tuple[list[Tensor], Tensor | None]:
        return linears.forward(self.x, self.parts, SCALE)

    def backward(self, low: Tensor | None, wanted: tuple[bool, ...] | None = None) -> tuple[Tensor | None, list[Tensor | None]]:
        return linears.backward(self.gs, self.x, low, self.parts, SCALE, wanted or (True, *(True, True, *[self.parts[0].a is not None] * 2) * len(self.parts)))


def drawn(n: int, wide: int, outs: list[int], rank: int, dtype: torch.dtype, *, frozen: bool = False) -> Case:
    """Weights are float32, as they are where they are trained; or in the products' precision, as frozen ones are."""
    parts = []
    for i, out in enumerate(outs):
        a, b = (numbers(rank, wide, seed=10 + i) / math.sqrt(wide), numbers(out, rank, seed=20 + i)) if rank else (None, None)
        weight = numbers(out, wide, seed=30 + i) / math.sqrt(wide)
        parts.append(Part(weight.to(dtype) if frozen else weight, numbers(out, seed=50 + i), a, b))
    return Case(numbers(n, wide, seed=1, dtype=dtype), parts, [numbers(n, out, seed=40 + i, dtype=dtype) for i, out in enumerate(outs)])


def away(found: Tensor | None, wanted: Tensor) -> float:
    assert found is not None and found.shape == wanted.shape
    return float((found.double() - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("dtype", NEAR)
@pytest.mark.parametrize("rank", [0, 2, 3, 8, 16, 18, 64])  # below, at and beyond the sixteen lanes, odd, and blocks of eight whole and with a rest
@pytest.mark.parametrize("outs", [[32], [30, 66], [48, 16, 16], [15]], ids=str)
@pytest.mark.parametrize(("n", "wide"), [(7, 48), (64, 34), (65, 64), (203, 130), (1030, 33)])  # tokens in blocks of 8, 64 and 512, whole and with a rest; odd widths
def test_values_and_gradients_are_the_formulas(form: str, n: int, wide: int, outs: list[int], rank: int, dtype: torch.dtype) -> None:  # noqa: F811
    case = drawn(n, wide, outs, rank, dtype)
    x, parts, gs = case
    ys, low = case.forward()
    exact = []
    for p in parts:
        a, b = (p.a.double(), p.b.double()) if p.a is not None and p.b is not None else (torch.zeros(1, wide).double(), torch.zeros(len(p.weight), 1).double())
        exact.append((p.weight.to(dtype).double(), a, b, SCALE * x.double() @ a.t()))
    assert (low is None) == (rank == 0)
    if low is not None:
        assert low.dtype == dtype and away(low, torch.cat([own for *_, own in exact], 1)) < NEAR[dtype]
    for y, p, (w, _, b, own) in zip(ys, parts, exact, strict=True):
        assert p.bias is not None and y.dtype == dtype
        assert away(y, x.double() @ w.t() + p.bias.to(dtype).double() + own @ b.t()) < NEAR[dtype]

    g_x, found = case.backward(low)
    assert away(g_x, sum((g.double() @ (w + SCALE * b @ a) for g, (w, a, b, _) in zip(gs, exact, strict=True)), torch.zeros_like(x).double())) < NEAR[dtype]
    for i, (g, (_, _, b, own)) in enumerate(zip(gs, exact, strict=True)):
        g_weight, g_bias, g_a, g_b = found[4 * i : 4 * i + 4]
        assert g_weight is not None and g_weight.dtype == torch.float32 and away(g_weight, g.double().t() @ x.double()) < NEAR[dtype]
        assert away(g_bias, g.double().sum(0)) < NEAR[dtype]
        if rank:
            assert g_a is not None and g_b is not None and g_a.dtype == g_b.dtype == torch.float32
            assert away(g_a, SCALE * (g.double() @ b).t() @ x.double()) < NEAR[dtype] and away(g_b, g.double().t() @ own) < NEAR[dtype]


@pytest.mark.parametrize("dtype", NEAR)
def test_only_what_is_wanted_is_made(form: str, dtype: torch.dtype) -> None:  # noqa: F811
    case = drawn(20, 32, [48, 16], 8, dtype, frozen=True)
    _, low = case.forward()
    g_x, whole = case.backward(low)
    assert case.backward(low, (False,) * 9) == (None, [None] * 8)
    for wanted in ((True, *(False,) * 8), (False, *(False, False, True, True) * 2), (False, *(True, False, False, False) * 2), (False, *(False,) * 4, *(False, True, False, True))):
        own, found = case.backward(low, wanted)
        assert own is None if not wanted[0] else torch.equal(own, g_x)  # type: ignore[arg-type]
        for w, made, every in zip(wanted[1:], found, whole, strict=True):
            assert made is None if not w else torch.equal(made, every)  # type: ignore[arg-type]
    empty = Case(case.x.new_empty(0), case.parts, case.gs)  # the input is for the gradients of weights and of A only
    _, found = empty.backward(low, (True, *(False, False, False, True) * 2))
    assert all(torch.equal(found[i], whole[i]) for i in (3, 7))  # type: ignore[arg-type]


@pytest.mark.parametrize(("dtype", "rank"), [(torch.float32, 0), (torch.bfloat16, 0), (torch.bfloat16, 16)])
def test_nothing_depends_on_threads_or_a_token_on_others(dtype: torch.dtype, rank: int) -> None:
    whole = drawn(603, 64, [48, 34], rank, dtype)
    if not hasattr(passes(whole.x, dtype), "linears"):
        pytest.skip("no compiled products on this machine: PyTorch's may depend on both")

    def everything(tokens: int, threads: int) -> list[Tensor]:
        held = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            case = Case(whole.x[:tokens], whole.parts, [g[:tokens] for g in whole.gs])
            ys, low = case.forward()
            g_x, found = case.backward(low)
            return [t for t in (*ys, low, g_x, *found) if t is not None]
        finally:
            torch.set_num_threads(held)

    one = everything(603, 1)
    for threads in (2, 3, 7):  # columns of their own, and with more threads than columns for them, rows
        assert all(torch.equal(a, b) for a, b in zip(one, everything(603, threads), strict=True))
    by_token = 4 if rank else 3
    assert all(torch.equal(a[:5], b) for a, b in zip(one[:by_token], everything(5, 1)[:by_token], strict=True))


def test_a_processor_that_can_has_the_products() -> None:
    for dtype, able in ((torch.float32, torch.cpu._is_avx512_supported()), (torch.bfloat16, torch.cpu._is_avx512_bf16_supported() and not torch.cpu._is_amx_tile_supported())):
        c = passes(torch.zeros(1), dtype)
        if c is None:
            pytest.skip("no C compiler, so every pass is PyTorch's")
        assert hasattr(c, "linears") == hasattr(c, "step") == able
